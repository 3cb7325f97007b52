"""LongCat's network itself: frames, conditions, cache, errors, dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from crossings import Crossings
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import ConfigError, EngineError, RequestError, UnknownComponent
from engine.network.fused import set_fused
from plugins.families.longcat.attention import SelfAttention, set_self_attention_backend
from plugins.families.longcat.frames import FrameLayout
from plugins.families.longcat.layers import Modulation
from plugins.families.longcat.precision import cast_model, is_quantised_linear, kept_in_float32
from plugins.families.longcat.speakers import prepare_tracks
from plugins.families.longcat.transformer import AvatarTransformer3DModel

NEXT = FrameLayout(7, 3, True, 4, 1)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_a_reference_has_its_own_place_in_time() -> None:
    assert FrameLayout(4).times == FrameLayout(4, 1).times == (0, 1, 2, 3)
    assert FrameLayout(6, 3, True, position=30).times == (30, 0, 1, 2, 3, 4)
    assert FrameLayout(6, 3, True, position=-10).times[0] == -10


def test_frames_near_the_reference_do_not_see_it() -> None:
    # Noisy frame j of a continuation of 4 given frames is at position 4 + j.
    assert FrameLayout(25, 5, True, 10, 3).hiding == (3, 10)
    assert FrameLayout(25, 5, True, 10, 0).hiding == (0, 0)
    assert FrameLayout(24, 1).hiding == (0, 0)
    for outside in (30, -10):
        layout = FrameLayout(25, 5, True, outside, 3)
        assert layout.hiding == (0, 0)
        assert layout.warning == ""


@pytest.mark.parametrize("position", [5, 23])
def test_a_range_that_reaches_beyond_the_new_frames_hides_nothing_and_warns(position: int) -> None:
    """Kept quirk: the reference does not cut the range at the window's ends. It says nothing; we warn."""
    layout = FrameLayout(25, 5, True, position, 3)

    assert layout.hiding == (0, 0)
    assert "hidden from no frame" in layout.warning
    assert FrameLayout(25, 5, True, 10, 3).warning == ""


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((4, 5), "given"),
        ((4, -1), "given"),
        ((0,), "given"),
        ((4, 2, False), "reference"),
        ((4, 1, True), "reference"),
        ((4, 0, True), "reference"),
        ((7, 3, True, 4, -1), "hidden_range"),
    ],
)
def test_frames_that_the_network_was_not_made_for_are_refused(arguments: tuple[Any, ...], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        FrameLayout(*arguments)

    assert caught.value.field == f"layout.{field}"


@pytest.mark.parametrize("cached", [False, True])
def test_only_noisy_frames_are_predicted(avatar: Any, cached: bool) -> None:
    for layout in avatar.layouts():
        if layout.given or not cached:
            sample = avatar.run(avatar.model(), layout, cached=cached)
            assert sample.shape == (1, 16, layout.noisy, *avatar.grid)
            assert sample.dtype == torch.float32


@pytest.mark.parametrize("voices", [1, 2])
def test_a_cache_changes_nothing_but_rounding(avatar: Any, voices: int) -> None:
    for layout in (FrameLayout(4, 1), NEXT):
        whole = avatar.run(avatar.model(), layout, voices)
        torch.testing.assert_close(avatar.run(avatar.model(), layout, voices, cached=True), whole, atol=1e-5, rtol=1e-5)


def test_given_frames_see_neither_noise_nor_text_nor_voices(avatar: Any) -> None:
    model = avatar.model()
    seen: list[torch.Tensor] = []
    model.blocks[-1].register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    latents = avatar.latents(NEXT)
    other = torch.cat([latents[:, :, : NEXT.given], latents[:, :, NEXT.given :] + 1], dim=2)
    given = avatar.conditions(NEXT)
    changed = given | {key: given[key] + 1 for key in ("encoder_hidden_states", "audio_windows")}

    with torch.no_grad():
        for noisy, arguments in ((latents, given), (other, changed)):
            model(noisy, torch.tensor([500.0]), model.embed_conditions(**arguments))

    tokens = NEXT.given * 8
    assert torch.equal(seen[0][:, :tokens], seen[1][:, :tokens])
    assert not torch.allclose(seen[0][:, tokens:], seen[1][:, tokens:])


def test_hidden_frames_do_not_change_with_the_reference(avatar: Any) -> None:
    # One block, so that nothing reaches a frame through another.
    model, latents = avatar.model(depth=1), avatar.latents(NEXT)
    other = torch.cat([latents[:, :, :1] + 1, latents[:, :, 1:]], dim=2)
    begin, end = NEXT.hiding
    conditions = model.embed_conditions(**avatar.conditions(NEXT))

    with torch.no_grad():
        first, second = (model(one, torch.tensor([500.0]), conditions)[0] for one in (latents, other))

    assert (begin, end) == (1, 4)
    assert torch.equal(first[:, :, begin:end], second[:, :, begin:end])
    assert not torch.allclose(first[:, :, 0], second[:, :, 0])


def test_one_time_is_that_of_the_noisy_frames(avatar: Any) -> None:
    model, latents = avatar.model(), avatar.latents(NEXT)
    conditions = model.embed_conditions(**avatar.conditions(NEXT))
    times = torch.tensor([[0.0] * NEXT.given + [731.5] * NEXT.noisy])

    with torch.no_grad():
        (each,) = model(latents, times, conditions)

    assert torch.equal(each, avatar.run(avatar.model(), NEXT))


def test_times_are_rounded_to_bfloat16_only_by_choice(avatar: Any) -> None:
    model = avatar.model()
    exact = avatar.run(model, NEXT)
    model.time_dtype = torch.bfloat16
    rounded = avatar.run(model, NEXT)

    assert not torch.allclose(rounded, exact, atol=1e-3)
    conditions = model.embed_conditions(**avatar.conditions(NEXT))
    with torch.no_grad():
        (near,) = model(avatar.latents(NEXT), torch.tensor([732.0]), conditions)
    assert torch.equal(near, rounded)


# --- conditions -------------------------------------------------------------------------------------------------------


def test_padded_rows_of_the_text_take_part_in_the_attention(avatar: Any) -> None:
    own = avatar.conditions(NEXT)["encoder_hidden_states"]
    padded = torch.cat([own, torch.randn(1, 2, 8)], dim=1)
    masked = {"encoder_hidden_states": padded, "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}

    alone = avatar.run(avatar.model(), NEXT)

    assert torch.equal(avatar.run(avatar.model(), NEXT, **masked), alone)
    dropped = avatar.run(avatar.model(text_tokens_zero_pad=False), NEXT, **masked)
    assert torch.equal(dropped, avatar.run(avatar.model(text_tokens_zero_pad=False), NEXT))
    assert not torch.allclose(dropped, alone, atol=1e-3)


def test_swapped_voices_change_the_picture(avatar: Any) -> None:
    windows = avatar.conditions(NEXT, 2)["audio_windows"]

    swapped = avatar.run(avatar.model(), NEXT, 2, audio_windows=windows.flip(0))

    assert (swapped - avatar.run(avatar.model(), NEXT, 2)).abs().max() > 1e-3


def test_silence_of_two_voices_keeps_their_masks(avatar: Any) -> None:
    """Unlike MultiTalk's, the null audio has all tracks, and L-RoPE stays on."""
    silent = torch.zeros_like(avatar.conditions(NEXT, 2)["audio_windows"])

    both = avatar.run(avatar.model(), NEXT, 2, audio_windows=silent)
    one = avatar.run(avatar.model(), NEXT, 1, audio_windows=silent[:1])

    assert not torch.allclose(both, one, atol=1e-4)


def test_masks_without_a_second_voice_have_no_effect(avatar: Any) -> None:
    """Declined quirk: under a cache the reference would split the tokens of a single voice with masks in halves."""
    masks = avatar.conditions(NEXT, 2)["speaker_masks"]

    assert torch.equal(
        avatar.run(avatar.model(), NEXT, 1, speaker_masks=masks, cached=True),
        avatar.run(avatar.model(), NEXT, 1, cached=True),
    )


def test_bystanders_count_as_background_and_move_it_far_away() -> None:
    masks = torch.zeros(5, 6, dtype=torch.bool)
    for row in range(5):
        masks[row, row] = True

    plain = prepare_tracks(masks[:3], 2, 4, 12, 24, 4, torch.float32)
    crowd = prepare_tracks(masks, 3, 4, 12, 24, 4, torch.float32)

    assert plain.starts.tolist() == [0, 20, 12]
    assert crowd.starts.tolist() == [0, 20, 100, 100, 100]
    assert crowd.spans.tolist() == [4, 4, 0, 0, 0]
    assert plain.keys.turns.shape[1] == 8
    assert crowd.keys.turns.shape[1] == 12


@pytest.mark.parametrize(("masks", "tracks"), [(2, 2), (13, 2), (3, 1), (3, 4)])
def test_other_numbers_of_masks_and_voices_are_refused(masks: int, tracks: int) -> None:
    with pytest.raises(RequestError):
        prepare_tracks(torch.ones(masks, 6, dtype=torch.bool), tracks, 4, 12, 24, 4, torch.float32)


def test_masks_without_any_token_are_an_error(avatar: Any) -> None:
    with pytest.raises(RequestError, match="every mask is empty"):
        avatar.run(avatar.model(), NEXT, 2, speaker_masks=torch.zeros(3, 4, 8))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latent_shape", (6, 4, 8)),
        ("latent_shape", (7, 5, 8)),
        ("encoder_hidden_states", torch.zeros(1, 4, 7)),
        ("encoder_hidden_states", torch.zeros(1, 7, 8)),
        ("encoder_attention_mask", torch.ones(1, 3)),
        ("audio_windows", torch.zeros(2, 20, 5, 2, 4)),
        ("speaker_masks", None),
        ("speaker_masks", torch.ones(3, 4)),
    ],
)
def test_a_wrong_condition_is_an_error_that_names_it(avatar: Any, name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        avatar.model().embed_conditions(**avatar.conditions(NEXT, 2) | {name: value})

    assert name in caught.value.field


def test_two_voices_need_a_picture(avatar: Any) -> None:
    with pytest.raises(RequestError, match="no picture"):
        avatar.run(avatar.model(), FrameLayout(4), 2)


def test_a_wrong_forward_is_an_error_that_names_the_argument(avatar: Any) -> None:
    model, latents, time = avatar.model(), avatar.latents(NEXT), torch.tensor([500.0])
    conditions = model.embed_conditions(**avatar.conditions(NEXT))
    other = model.embed_conditions(**avatar.conditions(FrameLayout(4)))
    cache = model.fill_cache(latents[:, :, :1], FrameLayout(4, 1))
    for arguments, field in (
        ((None, time, conditions), "hidden_states"),
        ((latents[:, :15], time, conditions), "hidden_states"),
        ((latents[:, :, 1:], time, conditions), "hidden_states"),
        ((latents.expand(3, -1, -1, -1, -1), time, conditions), "hidden_states"),
        ((latents, None, conditions), "timestep"),
        ((latents, torch.zeros(2), conditions), "timestep"),
        ((latents, torch.zeros(1, 3), conditions), "timestep"),
        ((latents, time, [conditions, other]), "conditions"),
        ((latents, time, conditions, cache), "cache"),
        ((latents, time, conditions, None, True), "return_dict"),
        ((latents, time, None), "layout"),
    ):
        with pytest.raises(RequestError) as caught:
            model(*arguments)
        assert caught.value.field == field


def test_texts_of_different_lengths_cannot_share_a_forward(avatar: Any) -> None:
    model, given = avatar.model(text_tokens_zero_pad=False), avatar.conditions(NEXT)
    short = given | {"encoder_hidden_states": given["encoder_hidden_states"][:, :2]}
    both = [model.embed_conditions(**one) for one in (given, short)]

    with pytest.raises(RequestError, match="different numbers of rows"):
        model(avatar.latents(NEXT), torch.tensor([500.0]), both)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 25}, {"num_heads": 8}, {"patch_size": (2, 2, 2)}, {"audio_window": 4}],
)
def test_sizes_that_cannot_be_built_are_an_error(avatar: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        AvatarTransformer3DModel(**avatar.config | change)

    assert caught.value.field == next(iter(change))


# --- dtypes, kernels, devices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("voices", [1, 2])
def test_gradients_do_not_change_the_result(avatar: Any, voices: int) -> None:
    model = avatar.model()
    conditions = model.embed_conditions(**avatar.conditions(NEXT, voices))

    (slow,) = model(avatar.latents(NEXT), torch.tensor([731.5]), conditions)
    slow.sum().backward()

    torch.testing.assert_close(slow.detach(), avatar.run(avatar.model(), NEXT, voices), atol=1e-5, rtol=1e-5)
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "norm" in name)


@pytest.mark.parametrize("cast", [cast_model, lambda model, dtype: model.to(dtype)], ids=["policy", "everything"])
@pytest.mark.parametrize("cached", [False, True])
def test_bfloat16_model_answers_in_float32(avatar: Any, cast: Any, cached: bool) -> None:
    exact = avatar.run(avatar.model(), NEXT, 2)

    sample = avatar.run(cast(avatar.model(), torch.bfloat16), NEXT, 2, cached=cached)

    assert sample.dtype == torch.float32
    assert (sample - exact).norm() / exact.norm() < 0.05


def test_float16_is_refused_because_the_feed_forward_overflows_it(avatar: Any) -> None:
    with pytest.raises(ConfigError, match="float16"):
        cast_model(avatar.model(), torch.float16)


def test_cast_keeps_the_float32_parts_as_loading_does(avatar: Any, tmp_path: Path) -> None:
    model = avatar.model()
    model.save_pretrained(tmp_path)
    cast_model(model, torch.bfloat16)
    loaded = AvatarTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)

    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}

    assert kept == {name for name, _ in model.named_parameters() if kept_in_float32(name)}
    assert {"x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.attn.q_norm.weight"} <= kept
    assert "blocks.0.adaLN_modulation.1.weight" not in kept
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_modulation_is_computed_in_float32_from_weights_of_any_dtype() -> None:
    layer, time = Modulation(8, 4).bfloat16(), torch.randn(1, 3, 8)

    expected = torch.nn.functional.linear(time, layer.weight.float(), layer.bias.float())

    assert torch.equal(layer(time), expected)
    assert is_quantised_linear(layer, "blocks.0.adaLN_modulation.1")
    assert is_quantised_linear(torch.nn.Linear(8, 4), "blocks.0.attn.qkv")
    assert not is_quantised_linear(torch.nn.Linear(8, 4), "audio_proj.proj1")


def test_a_kernel_is_chosen_for_the_self_attention_of_one_model(avatar: Any) -> None:
    model, other = avatar.model(), avatar.model()

    set_self_attention_backend(model, "_native_math")

    def chosen(network: Any) -> set[str]:
        return {module.backend.value for module in network.modules() if isinstance(module, SelfAttention)}

    assert chosen(model) == {"_native_math"}
    assert chosen(other) == {"native"}
    torch.testing.assert_close(avatar.run(model, NEXT, 2), avatar.run(other, NEXT, 2), atol=1e-5, rtol=1e-4)
    with pytest.raises(UnknownComponent, match="native"):
        set_self_attention_backend(model, "eager")
    with pytest.raises(EngineError, match="not usable"):
        set_self_attention_backend(model, "flash")


@pytest.mark.parametrize("voices", [1, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_a_forward_brings_nothing_to_the_device_and_reads_nothing_from_it(
    avatar: Any, voices: int, cached: bool
) -> None:
    model = avatar.model().to("meta")
    given = avatar.conditions(NEXT, voices)
    on_device = {name: given[name].to("meta") for name in ("encoder_hidden_states", "audio_windows")}
    latents, time = avatar.latents(NEXT).to("meta"), torch.zeros(1, device="meta")
    with torch.no_grad(), Crossings() as embedding:
        conditions = model.embed_conditions(**given | on_device)
        # Its rotary table is the only tensor that it needs.
        cache = model.fill_cache(latents[:, :, : NEXT.given], NEXT) if cached else None

    with torch.no_grad(), Crossings() as forward:
        model(latents[:, :, NEXT.given :] if cached else latents, time, conditions, cache)

    assert forward.seen == []
    assert "aten._local_scalar_dense.default" not in embedding.seen


def test_tables_are_shared_by_forwards_of_one_size_until_they_are_forgotten(avatar: Any) -> None:
    model, given = avatar.model(), avatar.conditions(NEXT)

    first, second = model.embed_conditions(**given), model.embed_conditions(**given)
    model.forget_tables()

    assert first.rotary.turns is second.rotary.turns
    assert model.embed_conditions(**given).rotary.turns is not first.rotary.turns


@pytest.mark.parametrize("cached", [False, True])
def test_our_kernels_are_used_where_they_compute_the_same(avatar: Any, cached: bool) -> None:
    model = avatar.model().to("meta")
    set_fused(model, True)
    given = avatar.conditions(NEXT)
    on_device = {name: given[name].to("meta") for name in ("encoder_hidden_states", "audio_windows")}
    latents, time = avatar.latents(NEXT).to("meta"), torch.zeros(1, device="meta")
    calls: dict[str, int] = {}

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "multitalk":
                calls[func._opname] = calls.get(func._opname, 0) + 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        conditions = model.embed_conditions(**given | on_device)
        cache = model.fill_cache(latents[:, :, : NEXT.given], NEXT) if cached else None
        with Count():  # type: ignore[no-untyped-call]
            (sample,) = model(latents[:, :, NEXT.given :] if cached else latents, time, conditions, cache)

    assert sample.shape == (1, 16, NEXT.noisy, *avatar.grid)
    # Queries and keys of three attentions are normed, those of one rotated. There are two norms with parameters; where
    # all tokens have one time there are three others in each block, and one in the head.
    assert calls == {"rms_rotate": 2 * 8, "layer_norm": 2 * 5 + 1 if cached else 2 * 2}


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_blocks_are_compiled_as_whole_graphs(avatar: Any, cached: bool) -> None:
    expected = avatar.run(avatar.model().requires_grad_(False), NEXT, 2, cached=cached)
    model = avatar.model().requires_grad_(False)
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)

    torch.testing.assert_close(avatar.run(model, NEXT, 2, cached=cached), expected, atol=1e-4, rtol=0)

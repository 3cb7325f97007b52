"""The network itself: conditions, speakers, errors, dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from crossings import Crossings
from recordings import TinyNetwork
from tiny_folder import SIZES, build_transformer

from engine.errors import ConfigError, EngineError, RequestError, UnknownComponent
from engine.network.attention import SelfAttentionProcessor, class_scores, set_self_attention_backend
from engine.network.audio_projection import group_windows
from engine.network.embeddings import RMSNorm, rotary_table, rotate, timestep_sinusoid
from engine.network.precision import cast_model, kept_in_float32
from engine.network.speakers import label_positions, label_ranges, prepare_speakers
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel


@pytest.mark.parametrize("speakers", [1, 2, 3])
def test_conditions_embedded_once_give_the_same_forward(tiny: Any, speakers: int) -> None:
    model = tiny.model()
    conditions = model.embed_conditions(tiny.latent_shape, **tiny.conditions(speakers))

    with torch.no_grad():
        once = model(**tiny.latents(), conditions=conditions).sample
        (again,) = model(**tiny.latents(), conditions=conditions, return_dict=False)

    assert once.shape == (1, 16, *tiny.latent_shape)
    assert torch.equal(once, tiny.run(model, speakers))
    assert torch.equal(once, again)


def test_conditions_of_another_size_are_refused(tiny: Any) -> None:
    model = tiny.model()
    conditions = model.embed_conditions((3, 8, 8), **tiny.conditions(1))

    with pytest.raises(RequestError, match="embedded for latents"):
        model(**tiny.latents(), conditions=conditions)


def test_no_audio_is_one_silent_speaker(tiny: Any) -> None:
    model, conditions = tiny.model(), tiny.conditions(2)
    windows = torch.zeros_like(conditions["audio_windows"][:1])

    with torch.no_grad():
        silent = model(**tiny.latents(), **conditions | {"audio_windows": windows}).sample
        absent = model(**tiny.latents(), **conditions | {"audio_windows": None}).sample

    assert torch.equal(absent, silent)


@pytest.mark.parametrize("conditions", [{"speakers": 1}, {"speakers": 2, "speaker_masks": None}])
def test_reference_map_is_computed_only_for_several_speakers(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, conditions: dict[str, Any]
) -> None:
    def never(*_args: object) -> None:
        raise AssertionError("the map was computed")

    monkeypatch.setattr("engine.network.attention.class_scores", never)
    speakers = conditions.pop("speakers")

    sample = tiny.model()(**tiny.latents(), **tiny.conditions(speakers) | conditions).sample

    assert sample.isfinite().all()
    with pytest.raises(AssertionError, match="was computed"):
        tiny.run(tiny.model(), 2)


def test_no_head_of_an_odd_number_is_lost_in_the_map() -> None:
    """Declined quirk: the reference averages two halves of the heads and so drops the last of an odd number."""
    query, key = torch.zeros(1, 18, 3, 12), torch.zeros(1, 18, 3, 12)
    masks = torch.zeros(3, 6, dtype=torch.bool)
    masks[0, 0] = masks[1, 1:4] = masks[2, 4:] = True
    speakers = prepare_speakers(masks, 4, 12, 24, 4, torch.float32)
    even = class_scores(query, key, speakers)

    # Only the last head looks anywhere: at the first speaker's only token.
    query[:, :, 2], key[:, 0, 2] = 10.0, 10.0
    scores = class_scores(query, key, speakers)

    torch.testing.assert_close(even, torch.full((3, 18), 1 / 6))
    torch.testing.assert_close(scores[0], torch.full((18,), (1 / 6 + 1 / 6 + 1) / 3))


def test_speakers_are_scored_from_unrounded_queries_in_a_bfloat16_model(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        seen = []

        def watch(query: torch.Tensor, key: torch.Tensor, speakers: Any) -> torch.Tensor:
            seen.append((query, speakers.values))
            return class_scores(query, key, speakers)

        monkeypatch.setattr("engine.network.attention.class_scores", watch)
        tiny.run(model)
        return seen

    calls = scored(cast_model(tiny.model(), torch.bfloat16))

    assert len(calls) == 2
    for query, values in calls:
        assert query.dtype == values.dtype == torch.float32
        assert (query != query.bfloat16()).float().mean() > 0.9


def test_map_equals_the_masked_mean_of_softmax_weights() -> None:
    query, key = torch.randn(1, 18, 3, 12), torch.randn(1, 18, 3, 12)
    masks = torch.zeros(3, 6, dtype=torch.bool)
    masks[0, :2] = masks[1, 2:3] = masks[2, 3:] = True
    speakers = prepare_speakers(masks, 4, 12, 24, 4, torch.float32)

    weights = torch.einsum("blhd,bshd->hls", query, key[:, :6]).div(12**0.5).softmax(-1)
    expected = torch.stack([weights[:, :, mask].sum(-1).mean(0) / mask.sum() for mask in masks])

    torch.testing.assert_close(class_scores(query, key, speakers), expected, atol=1e-6, rtol=1e-5)


def test_label_ranges_of_two_are_the_references_and_more_are_even() -> None:
    assert label_ranges(2, 24, 4) == ([0, 20], 12)
    assert label_ranges(3, 24, 4) == ([0, 10, 20], 7)
    assert label_ranges(5, 24, 4) == ([0, 5, 10, 15, 20], 4.5)


def test_token_of_an_empty_class_is_never_labelled_so() -> None:
    masks = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    speakers = prepare_speakers(masks, 4, 12, 24, 4, torch.float32)
    scores = torch.tensor([[0.2, 0.0, 0.1], [0.1, 0.5, 0.1], [0.0, 0.0, 0.0]])

    assert label_positions(scores, speakers).tolist() == pytest.approx([4.0, 24.0, 2.0])


def test_masks_without_any_token_are_an_error(tiny: Any) -> None:
    empty = torch.zeros_like(tiny.conditions(2)["speaker_masks"])

    with pytest.raises(RequestError, match="every mask is empty"):
        tiny.model().embed_conditions(tiny.latent_shape, **tiny.conditions(2) | {"speaker_masks": empty})


def test_swapped_voices_change_the_picture(tiny: Any) -> None:
    model, conditions = tiny.model(), tiny.conditions(2)

    with torch.no_grad():
        swapped = model(**tiny.latents(), **conditions | {"audio_windows": conditions["audio_windows"].flip(0)}).sample

    assert (swapped - tiny.run(model, 2)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("hidden_states", (2, 36, 3, 4, 8)),
        ("hidden_states", (1, 16, 3, 4, 8)),
        ("hidden_states", (1, 36, 3, 5, 8)),
        ("timestep", (2,)),
        ("encoder_hidden_states", (1, 4, 7)),
        ("encoder_hidden_states", (1, 7, 8)),
        ("encoder_hidden_states_image", (1, 4, 10)),
        ("audio_windows", (2, 10, 5, 2, 4)),
        ("speaker_masks", (2, 4, 8)),
        ("speaker_masks", (3, 2, 4)),
    ],
)
def test_wrong_shape_is_an_error_that_names_the_argument(tiny: Any, name: str, shape: tuple[int, ...]) -> None:
    arguments = tiny.latents() | tiny.conditions(2)
    arguments[name] = torch.zeros(shape)

    with pytest.raises(RequestError) as caught:
        tiny.model()(**arguments)

    assert name in caught.value.field or "latent" in caught.value.field


def test_missing_inputs_are_an_error(tiny: Any) -> None:
    with pytest.raises(RequestError, match="latents and a timestep"):
        tiny.model()(**tiny.conditions())
    with pytest.raises(RequestError, match="text and image"):
        tiny.model()(**tiny.latents())


@pytest.mark.parametrize(
    "change",
    [
        {"patch_size": (2, 2, 2)},
        {"attention_head_dim": 13},
        {"qk_norm": "layer_norm"},
        {"added_kv_proj_dim": 7},
        {"pos_embed_seq_len": 514},
        {"audio_window": 4},
    ],
)
def test_sizes_that_cannot_be_built_are_an_error(tiny: Any, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        MultiTalkTransformer3DModel(**tiny.config | change)

    assert caught.value.field == next(iter(change))


def test_grouped_windows_hold_past_centres_and_future() -> None:
    # One number tells frame and slot: 10 * frame + slot.
    windows = (10 * torch.arange(9)[:, None] + torch.arange(5)).view(1, 9, 5, 1, 1)

    first, rest = group_windows(windows, 4)

    assert first.flatten().tolist() == [0, 1, 2, 3, 4]
    assert rest[0, 0].flatten().tolist() == [10, 11, 12, 22, 32, 42, 43, 44]
    assert rest[0, 1].flatten().tolist() == [50, 51, 52, 62, 72, 82, 83, 84]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_the_complex_product_with_and_without_gradients(dtype: torch.dtype) -> None:
    x, angles = torch.randn(1, 10, 3, 8).to(dtype), torch.randn(10, 4)
    turns = torch.polar(torch.ones(10, 4), angles)[None, :, None]
    expected = torch.view_as_real(torch.view_as_complex(x.float().view(1, 10, 3, 4, 2)) * turns).flatten(-2)

    slow = rotate(x, rotary_table(angles), dtype)
    with torch.no_grad():
        fast = rotate(x, rotary_table(angles), dtype)

    for turned in (slow, fast):
        assert turned.dtype == dtype
        torch.testing.assert_close(turned, expected.to(dtype))


def test_rms_norm_equals_torchs_with_and_without_gradients() -> None:
    x, norm = torch.randn(2, 5, 16), RMSNorm(16, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    expected = torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-3)

    torch.testing.assert_close(norm(x)[:, :, 0], expected)
    with torch.no_grad():
        torch.testing.assert_close(norm(x)[:, :, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_and_rotation_in_one_pass_equal_both_in_turn(dtype: torch.dtype) -> None:
    x, norm, rotary = torch.randn(1, 10, 24).to(dtype), RMSNorm(24, eps=1e-3), rotary_table(torch.randn(10, 4))
    torch.nn.init.normal_(norm.weight)
    kept = x.clone()

    slow = norm(x, 3, rotary, dtype)
    with torch.no_grad():
        fast = norm(x, 3, rotary, dtype)
        expected = rotate(norm(x, 3), rotary, dtype)

    for turned in (slow, fast):
        torch.testing.assert_close(turned, expected)
    # LoRAs of the norm, and step caches, read its input afterwards.
    assert torch.equal(x, kept)


def test_sinusoid_of_late_times_is_exact() -> None:
    angle = torch.tensor(997.3).double() * 10000.0 ** -(torch.arange(8).double() / 8)

    embedded = timestep_sinusoid(torch.tensor([997.3]), 16)[0].double()

    torch.testing.assert_close(embedded, torch.cat([angle.cos(), angle.sin()]), atol=6e-8, rtol=0)


def test_self_attention_backend_is_switched_on_one_model_only(tiny: Any) -> None:
    model, other = tiny.model(), tiny.model()
    expected = tiny.run(other)

    set_self_attention_backend(model, "_native_math")

    def chosen(network: Any) -> set[tuple[bool, str | None]]:
        return {
            (isinstance(processor, SelfAttentionProcessor), getattr(processor._attention_backend, "value", None))
            for processor in network.attn_processors.values()
        }

    assert chosen(model) == {(True, "_native_math"), (False, "native")}
    assert chosen(other) == chosen(tiny.model()) == {(True, None), (False, None)}
    torch.testing.assert_close(tiny.run(model), expected, atol=1e-5, rtol=1e-4)


@pytest.fixture
def math_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The attentions that diffusers' backend "_native_math" computes, one entry each."""
    from diffusers.models import attention_dispatch

    calls: list[int] = []
    backends = attention_dispatch._AttentionBackendRegistry._backends
    name = attention_dispatch.AttentionBackendName("_native_math")
    kernel = backends[name]

    def counted(**given: Any) -> Any:
        calls.append(1)
        return kernel(**given)

    monkeypatch.setitem(backends, name, counted)
    return calls


def test_a_process_wide_backend_does_not_reach_a_model_of_the_engine(tiny: Any, math_calls: list[int]) -> None:
    from diffusers import attention_backend

    model = tiny.model()
    set_self_attention_backend(model, "native")
    expected = tiny.run(model)

    with attention_backend("_native_math"):
        assert torch.equal(tiny.run(model), expected)
    assert not math_calls


def test_diffusers_ways_to_choose_a_backend_reach_every_attention(tiny: Any, math_calls: list[int]) -> None:
    from diffusers import attention_backend
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    # Two blocks of self-attention, text, picture and audio. The scores of speakers stay with torch's own kernel.
    model, every = tiny.model(), 2 * 4
    expected = tiny.run(model)
    default = _AttentionBackendRegistry._active_backend

    with attention_backend("_native_math"):
        torch.testing.assert_close(tiny.run(model), expected, atol=1e-5, rtol=1e-4)
    assert len(math_calls) == every
    try:
        model.set_attention_backend("_native_math")
        tiny.run(model)
        assert len(math_calls) == 2 * every
    finally:
        # diffusers changes the process' default as well, and does not reset it.
        _AttentionBackendRegistry.set_active_backend(default)
    model.reset_attention_backend()
    assert torch.equal(tiny.run(model), expected)
    assert len(math_calls) == 2 * every


def test_unknown_backend_lists_the_known(tiny: Any) -> None:
    with pytest.raises(UnknownComponent, match="native"):
        set_self_attention_backend(tiny.model(), "eager")


def test_backend_without_its_package_is_an_error(tiny: Any) -> None:
    with pytest.raises(EngineError, match="not usable"):
        set_self_attention_backend(tiny.model(), "flash")


@pytest.mark.parametrize("cast", [cast_model, lambda model, dtype: model.to(dtype)], ids=["policy", "everything"])
def test_bfloat16_model_answers_in_float32(tiny: Any, cast: Any) -> None:
    exact = tiny.run(tiny.model())

    sample = tiny.run(cast(tiny.model(), torch.bfloat16))

    assert sample.dtype == torch.float32
    assert (sample - exact).norm() / exact.norm() < 0.05


def test_cast_keeps_the_float32_parts(tiny: Any) -> None:
    model = cast_model(tiny.model(), torch.bfloat16)

    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}

    assert kept == {name for name, _ in model.named_parameters() if kept_in_float32(model, name)}
    assert {
        "patch_embedding.weight",
        "proj_out.weight",
        "blocks.1.scale_shift_table",
        "condition_embedder.time_proj.bias",
    } <= kept
    assert "blocks.0.attn1.to_q.weight" not in kept


@pytest.mark.parametrize("speakers", [1, 2, 3])
def test_a_forward_brings_nothing_to_the_device_and_reads_nothing_from_it(speakers: int) -> None:
    model = build_transformer().to("meta")
    shape = (2, 4, 4)
    text = torch.zeros(1, SIZES["text_len"], SIZES["text_dim"], device="meta")
    image = torch.zeros(1, SIZES["image_tokens"], SIZES["image_dim"], device="meta")
    voices = torch.zeros(speakers, 5, 5, SIZES["audio_layers"], SIZES["audio_channels"], device="meta")
    with torch.no_grad(), Crossings() as embedding:
        conditions = model.embed_conditions(shape, text, image, voices, torch.ones(speakers + 1, 4, 4))
    latents, time = torch.zeros(1, 36, *shape, device="meta"), torch.zeros(1, device="meta")

    with torch.no_grad(), Crossings() as forward:
        model(latents, time, conditions=conditions)

    assert forward.seen == []
    assert "aten._local_scalar_dense.default" not in embedding.seen
    # The table of the grid, and what is made of the masks.
    assert len(embedding.seen) == (1 if speakers == 1 else 6)


@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input each"])
def test_a_batch_gives_what_its_samples_give_one_by_one(shared: bool) -> None:
    network = TinyNetwork(latent_shape=(3, 4, 8))
    model = network.model()
    latents = torch.randn(1 if shared else 3, 36, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # One, two and three speakers: other numbers of audio tokens, and scores in two of the samples.
        batch = [model.embed_conditions((3, 4, 8), **network.conditions(people)) for people in (1, 2, 3)]
        whole = model(latents, torch.tensor([500.0]), conditions=batch).sample
        alone = [
            model(latents if shared else latents[index : index + 1], torch.tensor([500.0]), conditions=one).sample
            for index, one in enumerate(batch)
        ]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=0)


def test_a_batch_with_another_number_of_inputs_is_refused() -> None:
    network = TinyNetwork(latent_shape=(1, 2, 2))
    model = network.model()
    with torch.no_grad():
        one = model.embed_conditions((1, 2, 2), **network.conditions(1))
        with pytest.raises(RequestError, match=r"shape \(2, 36, 1, 2, 2\)"):
            model(torch.zeros(2, 36, 1, 2, 2), torch.tensor([500.0]), conditions=[one] * 3)

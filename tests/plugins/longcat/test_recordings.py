"""Recordings of LongCat-Video-Avatar, replayed; every file of --golden-longcat is run and none is known by name."""

from __future__ import annotations

import json
from typing import Any

import longcat_loops
import pytest
import torch
from longcat_recordings import cache_recording, replay
from torch import Tensor

from engine.network.audio import audio_windows
from engine.network.audio_projection import group_windows
from engine.network.speakers import Speakers, label_positions, rotary_at, token_masks
from plugins.families.longcat import attention
from plugins.families.longcat.guidance import AvatarGuidance
from plugins.families.longcat.precision import cast_model
from plugins.families.longcat.schedules import distilled_levels, guided_levels, shifted, with_tail

# The recordings are float32 of another order of operations; measured: 1.7e-5.
FORWARD_TOLERANCE = 1e-4
# Differences add up over steps and windows; measured: 2.3e-4 at latents up to 15.
LOOP_TOLERANCE = 1e-3
# Measured: 6e-8.
EXACT = 1e-5


@pytest.fixture
def emulate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the network repeat the defect we decline, so that the rest of such a recording still counts."""

    def empty_mask(scores: Tensor, speakers: Speakers, _shard: Any = None) -> Tensor:
        # 0 / 0 for an empty class, which then wins every argmax; the background's label is a constant.
        scores = torch.where(speakers.penalty[:, None] != 0, torch.nan, scores)
        low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
        starts, spans = speakers.starts[:, None], speakers.spans[:, None]
        positions = starts + torch.where(spans == 0, 0.0, spans * (scores - low) / (high - low + 1e-8))
        return positions.gather(0, scores.argmax(0, keepdim=True))[0]

    def apply(recorded: dict[str, Tensor]) -> bool:
        masks = recorded.get("in.ref_target_masks")
        if masks is None:
            return False
        rows, columns = (size // 2 for size in recorded["in.hidden_states"].shape[3:])
        empty = bool((token_masks(masks, rows, columns).sum(1) == 0).any())
        if empty:
            monkeypatch.setattr(attention, "label_positions", empty_mask)
        return empty

    return apply


def test_forward_equals_the_recording(longcat_forward: str, longcat: Any, emulate: Any) -> None:
    played = replay(longcat, longcat_forward)
    emulate(played.recorded)
    if not played.conditions:
        cache = played.model.fill_cache(played.latents, played.layout)
        assert len(cache.entries) == len(played.model.blocks)
        for index, pair in enumerate(cache.entries):
            for name, part in zip("kv", pair, strict=True):
                recorded = played.recorded[f"kv.{index}.{name}"].transpose(1, 2)
                torch.testing.assert_close(part, recorded, atol=FORWARD_TOLERANCE, rtol=0)
        return

    torch.testing.assert_close(played.run(), played.expected, atol=FORWARD_TOLERANCE, rtol=0)


def test_every_recorded_part_of_a_forward_is_met(longcat_forward: str, longcat: Any, emulate: Any) -> None:
    played = replay(longcat, longcat_forward)
    told = {key.removeprefix("mid."): part for key, part in played.recorded.items() if key.startswith("mid.")}
    if not told:
        pytest.skip("the recording holds no intermediate tensors")
    declined = emulate(played.recorded)
    parts: dict[str, Tensor] = {}
    model, block = played.model, played.model.blocks[0]

    def keep(name: str, module: torch.nn.Module, pick: Any = lambda output: output) -> None:
        module.register_forward_hook(lambda _module, _args, output: parts.update({name: pick(output).detach().clone()}))

    # Of given frames we compute nothing that nobody uses.
    given = 0 if played.cache is not None else played.layout.given
    frame = (played.latents.shape[3] // 2) * (played.latents.shape[4] // 2)
    keep("x_embedder", model.x_embedder)
    keep("block0.attn", block.attn, lambda output: output[0])
    keep("block0.cross_attn", block.cross_attn)
    keep("block0.audio_cross_attn", block.audio_cross_attn)
    keep("block0.ffn", block.ffn)
    keep("final_layer", model.final_layer)
    for index, layer in enumerate(model.blocks):
        keep(f"block{index}.out", layer)
    if played.conditions[0].speakers is not None and not declined:
        keep("block0.ref_attn_map", block.attn, lambda output: output[1][0])

    played.run()
    for name in ("block0.cross_attn", "final_layer"):
        told[name] = told[name][:, given * frame :]

    compared = parts.keys() & told.keys()
    assert {"x_embedder", "block0.attn", "block0.audio_cross_attn", "final_layer"} <= compared
    for name in sorted(compared):
        torch.testing.assert_close(
            parts[name], told[name], atol=FORWARD_TOLERANCE, rtol=FORWARD_TOLERANCE, msg=f"{name} differs"
        )


def test_time_and_text_are_embedded_as_recorded(longcat_home: Any) -> None:
    played = replay(longcat_home, "forward_a_single")

    text = played.model.y_embedder(played.recorded["in.encoder_hidden_states"])
    time = played.model.t_embedder(played.timestep)

    torch.testing.assert_close(text, played.recorded["mid.y_embedder"], atol=EXACT, rtol=EXACT)
    # The reference's angles are float32.
    torch.testing.assert_close(time[0], played.recorded["mid.t_embedder"], atol=FORWARD_TOLERANCE, rtol=0)


def test_speakers_are_placed_as_recorded(longcat_home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("forward_b_two", "forward_f_continue_two", "forward_k_others"):
        played = replay(longcat_home, name)
        places: list[Tensor] = []
        compute = label_positions

        def watch(*arguments: Any, compute: Any = compute, places: list[Tensor] = places) -> Tensor:
            places.append(compute(*arguments))
            return places[-1]

        with monkeypatch.context() as patch:
            patch.setattr(attention, "label_positions", watch)
            played.run()

        torch.testing.assert_close(places[0], played.recorded["mid.block0.visual_pos"], atol=2e-4, rtol=0)
        speakers = played.conditions[0].speakers
        recorded = played.recorded["mid.block0.audio_pos"]
        per_frame = recorded.view(played.layout.noisy, -1)[0]
        turns = rotary_at(per_frame, speakers.frequencies).turns
        assert torch.equal(speakers.keys.turns, turns)


def test_cached_frames_give_the_forward_without_a_cache(longcat_home: Any) -> None:
    whole, cached = replay(longcat_home, "forward_f_continue_two"), replay(longcat_home, "forward_h_cached_two")

    torch.testing.assert_close(cached.run(), whole.run(), atol=1e-5, rtol=0)


def test_bfloat16_forward_is_near_float32(longcat_forward: str, longcat: Any, emulate: Any) -> None:
    exact = replay(longcat, longcat_forward)
    if not exact.conditions:
        pytest.skip("a cache is filled")
    emulate(exact.recorded)
    rounded = replay(longcat, longcat_forward, cast_model(replay(longcat, longcat_forward).model, torch.bfloat16))

    sample, expected = rounded.run(), exact.run()

    assert sample.dtype == torch.float32
    # Measured: at most 1.7 %.
    assert (sample - expected).norm() / expected.norm() < 0.03


def test_loop_equals_the_recording(longcat_loop: str, longcat: Any) -> None:
    loop = longcat_loops.load_loop(longcat, longcat_loop)
    met = set()
    for one in loop.replay():
        met.add(one.what)
        tolerance = LOOP_TOLERANCE
        if one.what.endswith((".audio", ".sigmas", ".masks")):
            tolerance = EXACT
        elif one.what.endswith(".history"):
            # 8 bits: a difference of the last bit may move a value by one level.
            assert ((one.ours - one.recorded).abs() > 1e-6).float().mean() <= 0.005
            tolerance = 1.01 / 127.5
        torch.testing.assert_close(one.ours, one.recorded, atol=tolerance, rtol=0, msg=f"{one.what} differs")

    assert {f"clip{loop.clips - 1}.{what}" for what in ("audio", "sigmas", "final_latent", "decoded")} <= met


def test_passes_in_one_batch_and_without_a_cache_give_the_same_window(longcat_home: Any) -> None:
    loop = longcat_loops.load_loop(longcat_home, "loop_stream_two_v10")

    plain = {one.what: one.ours for one in loop.replay()}
    batched = {one.what: one.ours for one in loop.replay(batched=True)}
    whole = {one.what: one.ours for one in loop.replay(cached=False)}

    for other in (batched, whole):
        torch.testing.assert_close(other["clip0.final_latent"], plain["clip0.final_latent"], atol=1e-4, rtol=0)
        # Between windows there are 8 bits: a difference of the last bit may move a few pixels by one level.
        assert (other["clip1.final_latent"] - plain["clip1.final_latent"]).abs().mean() < 1e-4


def test_windows_and_projection_equal_the_recording(longcat: Any) -> None:
    longcat = longcat.of("audio_window_proj")
    recorded, header = longcat.tensors("audio_window_proj"), longcat.header("audio_window_proj")
    model = longcat.model(header["model"])
    frames, stride = int(header["num_frames"]), int(header["stride"])

    for start in json.loads(header["starts"]):
        windows = audio_windows(recorded["full_emb"], start / stride, frames, 25.0, 25.0 * stride)
        first, rest = group_windows(windows, 4)

        torch.testing.assert_close(windows, recorded[f"s{start}.windows"], atol=EXACT, rtol=0)
        torch.testing.assert_close(first, recorded[f"s{start}.proj_in_first"], atol=EXACT, rtol=0)
        torch.testing.assert_close(rest, recorded[f"s{start}.proj_in_latter"], atol=EXACT, rtol=0)
        torch.testing.assert_close(model.audio_proj(windows), recorded[f"s{start}.tokens"], atol=EXACT, rtol=EXACT)
    silent = model.audio_proj(torch.zeros(1, *windows.shape[1:]))
    torch.testing.assert_close(silent, recorded["zero.tokens"], atol=EXACT, rtol=EXACT)


def test_schedules_equal_the_recording(longcat: Any) -> None:
    recorded = longcat.tensors("timesteps")
    names = sorted({name.rpartition(".")[0] for name in recorded})
    assert names
    for name in names:
        # "v1.5_steps8_shift7_distill"
        version, steps, shift, *distilled = name.removeprefix("v").split("_")
        count = int(steps.removeprefix("steps"))
        raw = distilled_levels(version, count) if distilled else guided_levels(count)
        found = shifted(raw, float(shift.removeprefix("shift")))

        torch.testing.assert_close(torch.tensor(raw), recorded[f"{name}.raw_sigmas"], atol=EXACT, rtol=0)
        torch.testing.assert_close(torch.tensor((*found, 0.0)), recorded[f"{name}.sigmas"], atol=EXACT, rtol=0)
        times = recorded[f"{name}.timesteps"]
        torch.testing.assert_close(torch.tensor(found) * 1000, times, atol=1000 * EXACT, rtol=0)
        if f"{name}.tail_sigmas" in recorded:
            tail = torch.tensor((*with_tail(found), 0.0))
            torch.testing.assert_close(tail, recorded[f"{name}.tail_sigmas"], atol=EXACT, rtol=0)


def test_guidance_equals_the_recording(longcat: Any) -> None:
    recorded, header = longcat.tensors("guidance"), longcat.header("guidance")
    guidance = AvatarGuidance(float(header["text"]), float(header["audio"]))
    names = {"cond": "text_audio", "drop_text": "negative_text_audio", "uncond": "negative_text_null_audio"}
    latents, levels = recorded["latents0"], recorded["sigmas"].tolist()
    steps = sum(name.endswith(".guided") for name in recorded)

    for step in range(steps):
        guided = guidance.combine({branch: recorded[f"step{step}.{name}"] for branch, name in names.items()})
        latents = latents + (levels[step] - levels[step + 1]) * guided

        torch.testing.assert_close(guided, recorded[f"step{step}.guided"], atol=EXACT, rtol=EXACT)
        torch.testing.assert_close(latents, recorded[f"latents{step + 1}"], atol=EXACT, rtol=EXACT)


def test_the_recorded_cache_is_found_for_its_model(longcat_home: Any) -> None:
    name = cache_recording(longcat_home, longcat_home.model_name("forward_h_cached_two"))

    assert json.loads(longcat_home.header(name)["call"])["return_kv"]


def test_empty_background_keeps_speakers_apart_where_the_reference_loses_them(longcat_home: Any) -> None:
    """Declined quirk: with an empty mask the reference divides 0 by 0 and places every token at the background."""
    played = replay(longcat_home, "forward_l_empty_background")
    places: list[Tensor] = []
    hook = played.model.blocks[0].attn.register_forward_hook(
        lambda _module, _args, output: places.append(label_positions(output[1][0], played.conditions[0].speakers))
    )
    sample = played.run()
    hook.remove()

    assert sample.isfinite().all()
    assert (((places[0] >= 0) & (places[0] <= 4)) | ((places[0] >= 20) & (places[0] <= 24))).all()
    assert (places[0] <= 4).any()
    assert (places[0] >= 20).any()

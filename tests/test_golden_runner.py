"""The runner of recordings itself: it takes a file by its content, and a wrong number in it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_loops
import pytest
import torch
from recordings import Recordings
from safetensors.torch import save_file
from steering import make_guidance
from torch import Tensor

from engine.stages.encode import to_pixels

Changes = dict[str, Tensor | None]


def dropped_in(
    folder: Path, home: Recordings, name: str, header: dict[str, str] | None = None, changes: Changes | None = None
) -> Recordings:
    """Write a copy of the recording `name` with another header and with tensors replaced, or left out for None."""
    tensors = home.tensors(name) | (changes or {})
    kept = {key: tensor.clone() for key, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / f"{name}.safetensors", header if header is not None else home.header(name))
    return Recordings(folder)


def meet_all(recordings: Recordings, name: str) -> list[str]:
    met = []

    def meet(what: str, ours: Tensor, recorded: Tensor, tolerance: float) -> None:
        met.append(what)
        torch.testing.assert_close(ours, recorded, atol=tolerance, rtol=0, msg=lambda text: f"{what}: {text}")

    golden_loops.replay(golden_loops.load_loop(recordings, name), meet)
    return met


def test_a_loop_needs_neither_its_picture_nor_all_of_its_header(tmp_path: Path, home_recordings: Any) -> None:
    # As a picture that no other recording holds: only what the encoders saw of it is left.
    name = "loop_clip_2nfe"
    seen = home_recordings.tensors(name)["clip0.clip_vision_pixels_s8"]
    rebuilt = golden_loops._rebuilt(home_recordings.tensors(name), golden_loops_clip(home_recordings.tensors(name)))
    recordings = dropped_in(
        tmp_path,
        home_recordings,
        name,
        header={"text": "1.0", "audio": "2", "shift": "2"},
        changes={"image_uint8": None},
    )

    assert torch.equal(to_pixels(rebuilt)[:, ::8, ::8], seen[:, 0])
    assert {"clip0.y", "clip0.step_latents", "clip0.step0.pred1", "clip0.final_latent"} <= set(
        meet_all(recordings, name)
    )


def golden_loops_clip(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("clip0."): tensor for name, tensor in recorded.items()}


@pytest.mark.parametrize(
    "header",
    [
        {"apg": "True"},
        {"use_apg": "1", "apg_momentum": "-0.5", "apg_norm_threshold": "6"},
        {"apg": json.dumps({"momentum": -0.5, "norm_threshold": 6})},
        {"norm_threshold": "6", "momentum": "-0.5"},
    ],
)
def test_adaptive_guidance_is_told_by_the_header(header: dict[str, str], tmp_path: Path, home_recordings: Any) -> None:
    name = "loop_clip_3nfe"
    recordings = dropped_in(tmp_path, home_recordings, name, header=home_recordings.header(name) | header)

    guidance: Any = golden_loops.load_loop(recordings, name).guidance()

    assert (guidance.norm_threshold, guidance._momentum) == ((55, -0.75) if header == {"apg": "True"} else (6, -0.5))


@pytest.mark.parametrize("kind", ["cfg", "apg"])
def test_guidance_is_known_by_the_first_step_where_the_header_is_silent(
    kind: str, tmp_path: Path, home_recordings: Any
) -> None:
    name = "loop_clip_3nfe"
    recorded = home_recordings.tensors(name)
    predictions = {
        branch: recorded[f"clip0.step0.pred{index}"] for index, branch in enumerate(("cond", "drop_text", "uncond"))
    }
    velocity = make_guidance(kind, 5, 4).combine(predictions)
    latents = recorded["clip0.step_latents"].clone()
    interval = (recorded["clip0.timesteps"][0] - recorded["clip0.timesteps"][1]) / 1000
    latents[1] = latents[0] - velocity * interval
    recordings = dropped_in(tmp_path, home_recordings, name, changes={"clip0.step_latents": latents})

    guidance = golden_loops.load_loop(recordings, name).guidance()

    assert hasattr(guidance, "norm_threshold") is (kind == "apg")


@pytest.mark.parametrize(
    "tensor", ["clip0.final_latent", "clip0.y", "clip0.step_latents", "clip0.step0.pred1", "clip0.clip_fea", "context"]
)
def test_a_wrong_number_in_a_loop_fails(tensor: str, tmp_path: Path, home_recordings: Any) -> None:
    name = "loop_clip_2nfe"
    wrong = home_recordings.tensors(name)[tensor]
    wrong.view(-1)[wrong.numel() // 2] += 0.1 if tensor in ("clip0.clip_fea", "context") else 0.01
    recordings = dropped_in(tmp_path, home_recordings, name, changes={tensor: wrong})

    with pytest.raises(AssertionError, match="not close"):
        meet_all(recordings, name)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model_Z"):
        Recordings(tmp_path).path("model_Z.safetensors")

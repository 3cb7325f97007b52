"""Scenes of a source video as windows, soft edges, and latents that are held at the source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.data import Frames, Held, PlanInputs, SourceVideo, Window
from engine.data.dub import DubPlan, scene_of
from engine.stages.compose import compose, latent_mask, soft_mask
from engine.stages.decode import Decoded
from engine.stages.dub import plan_scenes
from engine.stages.hold_source import holding_source
from engine.stages.windows import plan_windows

INPUTS = PlanInputs(
    model="tiny",
    resolution="small",
    buckets={"1.00": (64, 64)},
    native_fps=25.0,
    window=81,
    motion=9,
    sampler="standard",
    steps=1,
    guidance="cfg",
    passes=1,
    untrained=False,
    weights=None,
    style="infinitetalk",
)
SOURCE = SourceVideo(Path("a.mp4"), (64, 64), 25.0, 100.0)


def scenes(frames: int, *cuts: float, fps: float = 25.0, inputs: PlanInputs = INPUTS) -> tuple[Window, ...]:
    return plan_scenes(frames, replace(SOURCE, cuts=cuts), fps=fps, inputs=inputs)


def test_without_cuts_windows_are_as_always() -> None:
    assert scenes(200) == plan_windows(200, window=81, motion=9)


def test_a_scene_begins_without_history_at_the_first_frame_that_shows_it() -> None:
    windows = scenes(200, 1.0, 6.01)
    assert [(one.index, one.start, one.motion, one.keep) for one in windows] == [
        (0, 0, 0, 25),
        (1, 25, 0, 81),
        (2, 97, 9, 45),
        (3, 151, 0, 49),
    ]
    # At 8 frames per second, 1.01 s is between frames 8 and 9.
    assert [one.start for one in scenes(60, 1.01, fps=8.0)] == [0, 9]


def test_a_cut_at_or_after_the_end_begins_nothing() -> None:
    assert scenes(25, 1.0, 3.0) == plan_windows(25, window=81, motion=9)


def test_scenes_of_a_model_of_whole_windows_are_whole() -> None:
    assert {one.frames for one in scenes(100, 1.0, inputs=replace(INPUTS, whole_windows=True))} == {81}


@given(st.integers(1, 400), st.lists(st.floats(0.01, 20), max_size=6), st.sampled_from([8.0, 23.976, 25.0, 60.0]))
def test_any_cuts_leave_each_frame_to_exactly_one_window(frames: int, cuts: list[float], fps: float) -> None:
    windows = scenes(frames, *sorted(cuts), fps=fps)
    assert [one.index for one in windows] == list(range(len(windows)))
    made = [one.start + one.motion + number for one in windows for number in range(one.keep)]
    assert made == list(range(frames))
    assert all(one.frames % 4 == 1 and one.keep <= one.frames - one.motion for one in windows)


def test_a_window_belongs_to_the_scene_that_began_before_it() -> None:
    plan = DubPlan("sparse", "find", (64, 64), 25.0, 8.0, scenes=((1, 1.0), (3, 6.0)))
    assert [scene_of(plan, index) for index in range(5)] == [0, 1, 1, 2, 2]


def test_a_soft_edge_is_inside_the_mask_and_not_at_the_picture_s_edge() -> None:
    mask = np.zeros((64, 64), bool)
    mask[24:, 16:48] = True
    soft = soft_mask(mask, 8)
    assert not soft[~mask].any()
    assert 0 < soft[24, 32] < soft[28, 32] < soft[32, 32] == 1
    assert soft[63, 32] == 1
    assert soft_mask(mask, 0).tolist() == mask.astype(float).tolist()
    # A small region still shows the person.
    small = np.zeros((64, 64), bool)
    small[30:36, 30:36] = True
    assert soft_mask(small, 40).max() == 1


def test_each_latent_cell_that_a_region_touches_is_inside() -> None:
    mask = np.zeros((16, 24), np.float32)
    mask[7:9, 8] = 0.1
    assert latent_mask(mask).tolist() == [[0, 1, 0], [0, 1, 0]]


def test_frames_and_history_have_the_source_outside_and_both_at_the_edge() -> None:
    mask = np.array([[0, 0.5, 1]], np.float32)
    source = np.full((5, 1, 3, 3), 101, np.uint8)
    frames = Frames(np.full((3, 1, 3, 3), 201, np.uint8), 25.0)
    made = compose(Decoded(frames, torch.ones(3, 4, 1, 3)), source, mask, 2)
    assert made.frames.pictures[:, 0, :, 0].tolist() == [[101, 151, 201]] * 3
    outside = 101 / 255 * 2 - 1
    assert made.history[0, 0, 0].tolist() == pytest.approx([outside, (outside + 1) / 2, 1])


def test_latents_outside_are_the_source_at_each_noise_level_and_inside_too_above_one() -> None:
    clean, noise, latents = torch.full((1, 1, 1, 2), 4.0), torch.full((1, 1, 1, 2), 8.0), torch.zeros(1, 1, 1, 2)
    held = Held(clean, torch.tensor([[0.0, 1.0]]), until=0.8)
    hold = holding_source(lambda given, _time: given, held, noise, torch.device("cpu"))
    assert hold(latents, 1000.0).flatten().tolist() == [8, 8]
    assert hold(latents, 900.0).flatten().tolist() == pytest.approx([7.6, 7.6])
    assert hold(latents, 500.0).flatten().tolist() == [6, 0]
    assert hold(latents, 0.0).flatten().tolist() == [4, 0]
    # What continues the window before has the last word.
    first = holding_source(lambda given, _time: given * 0 - 1, held, noise, torch.device("cpu"))
    assert first(latents, 500.0).flatten().tolist() == [-1, -1]

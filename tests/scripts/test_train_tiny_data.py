"""The training data of the embedded model, and the mouth-opening detector against it."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import shift

from engine.evaluation.mouths import best_lag, correlation, motion_energy, mouth_openings
from engine.evaluation.voices import REST_WIDTH, SAMPLE_RATE, Voice, mouth_of
from scripts.train_tiny.clips import SAMPLED_AT, Clip, make_clip
from scripts.train_tiny.people import SKINS, Mouth
from scripts.train_tiny.scene import ENERGIES, MOODS, TIMES, draw, prompt, random_scene
from scripts.train_tiny.speech import say, silence, synthetic, voice_of


def clip(seed: int, frames: int = 25, fps: float = 25.0, people: int = 2, size: tuple[int, int] = (160, 96)) -> Clip:
    return make_clip(seed, frames=frames, fps=fps, people=people, size=size, split="held_out", speak=synthetic)


@cache
def shown() -> tuple[Clip, ...]:
    return tuple(clip(seed, frames=33) for seed in range(18))


def blurred(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1))) for frame in frames])


@cache
def measured_openings(*, blur: bool) -> tuple[npt.NDArray[np.float32], ...]:
    """Openings of the clips that are shown, one fixed region a person: the mouth's box of frame 0."""
    return tuple(
        mouth_openings(blurred(made.frames) if blur else made.frames, made.mouth_boxes[:, 0]) for made in shown()
    )


def by_skin(*, blur: bool) -> dict[int, list[float]]:
    """Correlations with the truth."""
    result: dict[int, list[float]] = {skin: [] for skin in range(len(SKINS))}
    for made, measured in zip(shown(), measured_openings(blur=blur), strict=True):
        for person, skin in enumerate(made.skins):
            if made.openings[person].std() > 0.05:
                result[skin].append(correlation(measured[person], made.openings[person]))
    return result


def test_a_clip_has_the_shapes_that_trainings_expect() -> None:
    made = clip(0, frames=5, size=(96, 160))
    assert (made.frames.shape, made.frames.dtype.name) == ((5, 160, 96, 3), "uint8")
    assert made.openings.shape == made.widths.shape == (2, 5)
    assert (made.mouth_boxes.shape, made.face_boxes.shape) == ((2, 5, 4), (2, 4))
    assert [(len(voice), voice.dtype.name) for voice in made.voices] == [(SAMPLE_RATE // 5, "float32")] * 2


def test_a_seed_gives_the_same_clip_and_another_split_other_faces() -> None:
    one, again = clip(3, frames=3), clip(3, frames=3)
    other = make_clip(3, frames=3, people=2, split="train", speak=synthetic)
    assert np.array_equal(one.frames, again.frames)
    assert np.array_equal(one.voices[0], again.voices[0])
    assert not np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("size", [(160, 96), (128, 128), (96, 160), (320, 192)])
def test_mouths_stay_in_the_picture_and_faces_in_their_half(size: tuple[int, int]) -> None:
    for seed in range(12):
        scene = random_scene(seed, size, 2)
        for number, person in enumerate(scene.people):
            x0, y0, x1, y1 = np.array([person.mouth_box(time) for time in np.arange(0, 20, 0.5)]).T
            assert x0.min() > number * size[0] / 2 - 0.02 * size[0]
            assert x1.max() < (number + 1) * size[0] / 2 + 0.02 * size[0]
            assert y0.min() > 0
            assert y1.max() < size[1]


@pytest.mark.slow
def test_the_first_picture_of_some_clips_has_shut_mouths() -> None:
    shut = [made for made in shown() if made.shut_first]
    assert 3 <= len(shut) <= 12
    assert all(not made.openings[:, 0].any() for made in shut)


def test_silent_people_have_true_zeros_and_a_shut_mouth() -> None:
    silent = [(made, made.silent.index(True)) for made in shown() if any(made.silent)]
    assert silent
    for made, person in silent:
        assert not made.voices[person].any()
        assert not made.openings[person].any()
        assert made.openings[1 - person].any()


@pytest.mark.slow
def test_one_person_says_nothing_in_training_alone() -> None:
    training, held_out = (
        [make_clip(seed, frames=3, people=1, split=split, speak=synthetic) for seed in range(40)]
        for split in ("train", "held_out")
    )
    silent = [made for made in training if made.silent[0]]
    # The share is 12 %; none of 40 would be as rare as 1 in 160.
    assert 0 < len(silent) < 14
    assert not any(made.voices[0].any() or made.openings.any() for made in silent)
    assert not any(made.silent[0] for made in held_out)


def test_other_frame_rates_show_the_same_movement() -> None:
    voice = synthetic(1, 2.0)
    slow, fast = (voice.opening(np.arange(round(2 * fps)) / fps + SAMPLED_AT) for fps in (12.5, 25))
    assert np.allclose(slow, fast[::2])
    assert clip(0, frames=8, fps=8, people=1).voices[0].shape == (SAMPLE_RATE,)
    with pytest.raises(ValueError, match="8 to 30"):
        clip(0, fps=60)


def test_the_mouth_follows_level_and_spectrum() -> None:
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    level = np.where(time < 0.5, 0, np.where(time < 1, 0.05, 0.2))
    tone = level * np.sin(2 * np.pi * np.where(time < 1.5, 300, 2500) * time)
    openings, widths = mouth_of(tone.astype(np.float32))
    assert openings[10:40].max() == 0
    assert 0.2 < openings[75] < openings[125] <= 1
    assert widths[125] < 0.1 < 0.9 < widths[180]


def test_gain_and_noise_are_heard_but_not_seen() -> None:
    clean = (0.1 * np.sin(np.arange(SAMPLE_RATE) / 5)).astype(np.float32)
    one, other = (voice_of(clean, np.random.default_rng(seed)) for seed in range(2))
    assert np.array_equal(one.openings, other.openings)
    assert not np.allclose(one.samples, other.samples, atol=0.01)


def test_a_turn_is_heard_and_seen_between_its_ends_only() -> None:
    turn = synthetic(5, 1.5).during(0.0, 0.5)
    assert turn.samples[: SAMPLE_RATE // 2].any()
    assert not turn.samples[SAMPLE_RATE // 2 :].any()
    assert turn.opening(np.arange(50)).max() == 0
    assert silence(1.0).width(0.5) == pytest.approx(REST_WIDTH)


def test_prompts_say_what_is_drawn() -> None:
    for seed in range(40):
        scene = random_scene(seed, (160, 96))
        words = prompt(scene).lower()
        assert scene.place in words
        assert any(phrase in words for phrase in TIMES[scene.time_of_day])
        for table, chosen in ((MOODS, scene.mood), (ENERGIES, scene.energy)):
            named = [key for key, (_, phrases) in table.items() for phrase in phrases if f" {phrase}" in f" {words}"]
            assert set(named) == ({chosen} if chosen else set())


def test_nights_are_dark_and_lively_heads_move_more() -> None:
    brightness: dict[str, list[float]] = {name: [] for name in TIMES}
    energy: dict[str, list[float]] = {name: [] for name in ENERGIES}
    for seed in range(24):
        scene = random_scene(seed, (160, 96), 1)
        frames = np.stack([draw(scene, 2 + number / 25) for number in range(6)])
        brightness[scene.time_of_day].append(float(frames.mean()))
        person = scene.people[0]
        moved = motion_energy(frames, [person.face_box()], [person.mouth_box(2.0)])
        energy[scene.energy].append(float(np.median(moved)))
    assert np.mean(brightness["night"]) < 0.75 * np.mean(brightness["day"])
    assert np.mean(energy["lively"]) > 1.5 * np.mean(energy["calm"])


@pytest.mark.slow
def test_the_detector_agrees_with_the_truth_on_every_skin() -> None:
    result = by_skin(blur=False)
    assert np.mean([r for skin in result.values() for r in skin]) > 0.98
    assert min(np.mean(skin) for skin in result.values()) > 0.95


@pytest.mark.slow
def test_the_detector_stands_a_light_blur_on_every_skin() -> None:
    result = by_skin(blur=True)
    assert np.mean([r for skin in result.values() for r in skin]) > 0.96
    assert min(np.mean(skin) for skin in result.values()) > 0.91


def test_the_detector_sees_a_shut_mouth_stay_still_on_a_moving_head() -> None:
    still: list[float] = []
    speaking: list[float] = []
    for made, measured in zip(shown(), measured_openings(blur=False), strict=True):
        for person, quiet in enumerate(made.silent):
            (still if quiet else speaking).append(float(measured[person].std()))
    assert np.mean(still) < 0.05 * np.mean(speaking)


def test_a_blink_does_not_carry_the_mouth_away() -> None:
    # With open eyes alone to be seen in a dark face, shut ones look like a face that is elsewhere.
    made = clip(12700138, frames=81, size=(96, 160))
    assert (made.skins[1], made.silent[1]) == (5, True)
    shut, speaking = mouth_openings(made.frames, made.mouth_boxes[::-1, 0])
    assert np.abs(shut - shut[0]).max() < 0.15 * speaking.std()


def test_the_detector_prefers_height_to_breadth() -> None:
    scene = random_scene(4, (160, 96), 1)
    boxes = [person.mouth_box(2.0) for person in scene.people]
    mouths = [Mouth(0.5, 0.1), Mouth(0.5, 0.9), Mouth(0.8, 0.1)]
    narrow, broad, high = mouth_openings(np.stack([draw(scene, 2.0, [mouth]) for mouth in mouths]), boxes)[0]
    assert abs(broad - narrow) < 0.35 * (high - narrow)


def test_the_detector_goes_along_with_a_head_by_parts_of_a_pixel() -> None:
    scene = random_scene(4, (160, 96), 1)
    frame = draw(scene, 2.0, [Mouth(0.5, 0.5)]).astype(np.float32)
    places = [(0, 0), (0, 2), (1.5, -3), (-2.25, 1.75), (3, 3)]
    moved = np.stack([shift(frame, (*place, 0), order=1, mode="nearest") for place in places])
    box = scene.people[0].mouth_box(2.0)
    opening, shut = (
        mouth_openings(frames.astype(np.uint8), [box])[0]
        for frames in (moved, draw(scene, 2.0, [Mouth(0.0, 0.5)])[None])
    )
    assert np.abs(opening - opening[0]).max() < 0.1 * (opening[0] - shut[0])


def test_a_box_with_nothing_to_follow_above_it_stays_where_it_is() -> None:
    scene = random_scene(4, (160, 96), 1)
    x0, y0, x1, y1 = scene.people[0].mouth_box(2.0)
    mouths = [Mouth(0.0, 0.5), Mouth(0.5, 0.5), Mouth(1.0, 0.5)]
    frames = np.stack([draw(scene, 2.0, [mouth]) for mouth in mouths])[:, int(y0) :]
    shut, half, wide = mouth_openings(frames, [(x0, 0, x1, y1 - int(y0))])[0]
    assert shut < half < wide


def test_boxes_that_do_not_fit_are_refused() -> None:
    frames = np.zeros((3, 20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match=r"are not \(n, 4\)"):
        mouth_openings(frames, np.zeros((1, 2, 4)))
    with pytest.raises(ValueError, match="less than 4 pixels"):
        mouth_openings(frames, [(18, 0, 40, 20)])


def test_best_lag_finds_a_delay_and_its_sign() -> None:
    curve = np.random.default_rng(0).random(60)
    late = np.concatenate([np.zeros(2), curve[:-2]])
    assert best_lag(late, curve, 5) == pytest.approx((2, 1.0))
    assert best_lag(curve, late, 5) == pytest.approx((-2, 1.0))
    assert best_lag(curve, curve, 5) == pytest.approx((0, 1.0))
    assert correlation(curve, np.ones(60)) == 0.0


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs the command espeak-ng")
def test_espeak_is_asked_once_for_a_sentence(tmp_path: Path) -> None:
    def voice() -> Voice:
        return say(7, 1.0, "held_out", cache=tmp_path)

    first = voice()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert np.array_equal(first.samples, voice().samples)
    assert files
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert np.abs(first.samples).max() > 0.01

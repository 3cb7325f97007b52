"""Pictures and sounds in memory become frames in memory, those of the engine, and wrong arguments are named at once."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from engine import EngineService, Progress, Region, Request, Speaker, Talker, TalkingVideo
from engine.errors import Cancelled, ConfigError, RequestError

EXAMPLES = Path(str(files("engine") / "examples"))
PICTURE, VOICE = EXAMPLES / "one.png", EXAMPLES / "one.flac"
#: The shortest video.
SHORT: dict[str, Any] = {"num_frames": 5, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def talker() -> Iterator[Talker]:
    with Talker("tiny", sampler="turbo", source="packaged") as talker:
        yield talker


@pytest.fixture(scope="module")
def made(talker: Talker) -> TalkingVideo:
    """Return a video that is long enough for two parts: 7 frames in windows of 5, whose steps were followed."""
    return talker(PICTURE, VOICE, num_frames=7, num_inference_steps=2, fps=25)


def picture() -> Image.Image:
    return Image.open(PICTURE).convert("RGB")


def test_frames_are_those_of_the_file_before_they_were_encoded(made: TalkingVideo) -> None:
    with av.open(str(made.path)) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

    assert made.frames.dtype == np.uint8
    assert made.frames.shape == decoded.shape == (7, 96, 160, 3)
    assert np.abs(made.frames.astype(int) - decoded).mean() < 6
    assert (len(made), made.fps, made.seed) == (7, 25, 42)


def test_sound_is_as_long_as_the_video(made: TalkingVideo) -> None:
    assert made.audio.shape == (round(7 / 25 * 48_000), 2)
    assert made.audio.dtype == np.float32
    assert np.abs(made.audio).max() > 0.01


def test_a_soundtrack_is_heard_and_the_frames_are_those_of_the_voice(talker: Talker) -> None:
    heard = (np.sin(np.arange(48_000) / 20) * 0.3).astype(np.float32)
    plain = talker(PICTURE, VOICE, **SHORT)
    video = talker(PICTURE, VOICE, soundtrack=(heard, 48_000), **SHORT)
    assert np.array_equal(video.frames, plain.frames)
    # Kept with 32 bits, at the rate of the video's sound.
    assert np.abs(video.audio[:, 0] - heard[: len(video.audio)]).max() < 1e-3


def test_the_same_values_in_every_form_give_the_same_frames(talker: Talker, tmp_path: Path) -> None:
    pixels = np.asarray(picture())
    rate, samples = 16_000, np.sin(np.arange(8000) / 20).astype(np.float32) * 0.3
    pictures: list[Any] = [
        picture(),
        pixels,
        pixels.astype(np.float32) / 255,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        torch.from_numpy(pixels.copy()).permute(2, 0, 1).to(torch.float64) / 255,
    ]
    picture().save(tmp_path / "picture.png")
    pictures += [tmp_path / "picture.png", str(tmp_path / "picture.png")]
    voices: list[Any] = [
        (samples, rate),
        (torch.from_numpy(samples), rate),
        {"array": samples, "sampling_rate": rate},
        (rate, samples),
        (np.stack([samples, samples]), rate),
        (np.stack([samples, samples], axis=1), rate),
    ]
    voices += voices[:1]

    frames = [talker(one, voice, **SHORT).frames for one, voice in zip(pictures, voices, strict=True)]

    assert all(np.array_equal(frames[0], other) for other in frames[1:])


def test_frames_come_in_the_form_that_is_asked_for(made: TalkingVideo, talker: Talker) -> None:
    tensor = talker(PICTURE, VOICE, output_type="pt", **SHORT)
    none = talker(PICTURE, VOICE, output_type="none", **SHORT)

    assert isinstance(tensor.frames, torch.Tensor)
    assert tuple(tensor.frames.shape) == (5, 3, 96, 160)
    assert np.array_equal(np.asarray(made.pil()[3]), made.numpy()[3])
    assert np.array_equal(made.torch()[3].numpy(), np.moveaxis(made.numpy()[3], 2, 0))
    with pytest.raises(RequestError, match="output_type"):
        _ = none.frames


def test_the_video_is_that_of_the_service(made: TalkingVideo, talker: Talker, tmp_path: Path) -> None:
    service = EngineService(["model=tiny", "source=packaged", "sampler=turbo", f"sink.folder={tmp_path}"])
    speaker = Speaker(str(VOICE))
    request = Request("a person talks", str(PICTURE), (speaker,), frames=7, fps=25, overrides=("sampler.steps=2",))

    delivery = service.generate(request)

    assert delivery.plan == made.plan
    assert delivery.address is not None
    frames = []
    for path in (Path(delivery.address), made.path):
        with av.open(str(path)) as container:
            frames.append([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(frames[0], frames[1])
    assert delivery.address in repr(delivery)


def test_parts_of_a_stream_are_the_video_in_order(talker: Talker) -> None:
    options: dict[str, Any] = {
        "num_frames": 120,
        "num_inference_steps": 1,
        "overrides": ["continuation.frames=9"],
        "seed": 5,
    }
    stream = talker.stream(PICTURE, VOICE, **options)
    parts = list(stream)

    assert [part.index for part in parts] == list(range(parts[0].windows))
    assert len(parts) > 1
    assert stream.video is not None
    assert np.array_equal(np.concatenate([part.frames for part in parts]), stream.video.frames)
    assert np.array_equal(np.concatenate([part.audio for part in parts]), stream.video.audio)
    assert parts[1].start == pytest.approx(len(parts[0].frames) / 25)


def test_a_stream_that_is_closed_ends_the_generation(talker: Talker) -> None:
    seen: list[Progress] = []
    stream = talker.stream(PICTURE, VOICE, num_frames=120, progress=seen.append)

    stream.close()

    with pytest.raises(Cancelled):
        list(stream)
    assert stream.video is None
    assert max((update.window for update in seen), default=0) < 2


def test_a_stream_that_nobody_has_any_more_ends_the_generation(talker: Talker) -> None:
    # `next(talker.stream(...))`, or a loop that is left.
    seen: list[Progress] = []
    options: dict[str, Any] = {"num_frames": 300, "num_inference_steps": 1, "overrides": ["continuation.frames=9"]}
    stream = talker.stream(PICTURE, VOICE, progress=seen.append, **options)
    windows, thread = next(stream).windows, stream._thread

    del stream
    gc.collect()
    thread.join()

    assert max(update.window for update in seen) < windows - 2


def test_an_error_of_a_stream_reaches_whoever_reads_it(talker: Talker) -> None:
    stream = talker.stream(PICTURE, EXAMPLES / "nobody.flac")

    with pytest.raises(RequestError, match=r"audio\[0\]"):
        next(stream)


def test_a_callback_sees_the_latents_of_each_step(talker: Talker) -> None:
    steps: list[tuple[int, float, Any]] = []

    def follow(who: Talker, step: int, time: float, values: Any) -> None:
        assert who is talker
        steps.append((step, time, values))

    talker(PICTURE, VOICE, num_frames=5, num_inference_steps=3, callback_on_step_end=follow)

    assert [step for step, _, _ in steps] == [0, 1, 2]
    times = [time for _, time, _ in steps]
    assert times[0] == 1000
    assert times == sorted(times, reverse=True)
    for _, _, values in steps:
        assert values["latents"].shape == values["predicted"].shape == (24, 2, 12, 20)
    # Without noise they differ less from step to step.
    noisy, clean = (float((steps[0][2][name] - steps[2][2][name]).abs().mean()) for name in ("latents", "predicted"))
    assert clean < noisy


def test_an_exception_in_a_callback_ends_the_generation(talker: Talker) -> None:
    def fail(*_: Any) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        talker(PICTURE, VOICE, callback_on_step_end=fail, **SHORT)


def test_a_generator_gives_a_seed_and_moves_on(talker: Talker) -> None:
    seeds = [
        [talker.plan(PICTURE, VOICE, generator=generator).seed for _ in range(2)]
        for generator in (torch.Generator().manual_seed(7), torch.Generator().manual_seed(7))
    ]

    assert seeds[0] == seeds[1]
    assert seeds[0][0] != seeds[0][1]


def test_several_voices_and_regions_belong_together(talker: Talker) -> None:
    width, height = Image.open(EXAMPLES / "two.png").size
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    plan = talker.plan(
        EXAMPLES / "two.png",
        [EXAMPLES / "left.flac", None, Speaker(str(EXAMPLES / "right.flac"), delay=0.5)],
        regions=[mask, (0.4, 0.1, 0.6, 0.9), None],
    )

    assert [seat.kind for seat in plan.seats] == ["mask", "box", "auto"]
    assert [seat.silent for seat in plan.seats] == [False, True, False]
    assert plan.seats[2].begins == 0.5


def test_height_and_width_choose_the_resolution_that_has_them(talker: Talker) -> None:
    config = talker.service.config
    small, large = (config.model.resolutions[name].buckets for name in ("small", "large"))
    assert not {tuple(size) for size in small.values()} & {tuple(size) for size in large.values()}
    shape = talker.plan(PICTURE, VOICE, resolution="large").canvas.target

    plan = talker.plan(PICTURE, VOICE, width=shape[0], height=shape[1])

    assert plan.resolution == "large"
    assert plan.canvas.target == shape
    with pytest.raises(RequestError, match="near are 96 x 160"):
        talker.plan(PICTURE, VOICE, width=161, height=96)
    with pytest.raises(RequestError, match="for a picture of this shape"):
        talker.plan(PICTURE, VOICE, width=96, height=160)
    with pytest.raises(RequestError, match="height: height and width belong together"):
        talker.plan(PICTURE, VOICE, width=96)


#: A call's arguments, the error, and what it says.
WRONG: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"image": 3}, TypeError, "image: .*PIL.*int"),
    ({"image": None}, TypeError, "image: a picture is needed"),
    ({"image": np.zeros((4, 4, 2), np.uint8)}, RequestError, "image: an array of 4x4x2"),
    ({"image": np.full((4, 4, 3), 2.0)}, RequestError, "image: values outside 0 .. 1; divide by 255"),
    ({"image": np.full((4, 4, 3), np.nan)}, RequestError, "image: values outside"),
    ({"image": np.zeros((4, 4, 3), np.int64)}, RequestError, "image: values of int64"),
    ({"image": torch.zeros(5, 4, 3)}, RequestError, "image: an array of 5x4x3"),
    ({"image": "nowhere.png"}, RequestError, "^image: 'nowhere.png' does not exist"),
    ({"audio": None}, TypeError, "audio: a voice is needed, or num_frames"),
    ({"audio": np.zeros(9)}, TypeError, r"audio: samples need their rate: \(samples, rate\)"),
    ({"audio": (np.zeros((99, 20)), 16_000)}, RequestError, "audio: an array of 99x20 is no sound"),
    ({"audio": (np.full(99, np.inf), 16_000)}, RequestError, "audio: samples that are not finite"),
    ({"audio": (np.zeros(99), 3)}, RequestError, "audio: a rate of 3"),
    ({"audio": [VOICE, 7]}, TypeError, r"audio\[1\]: .*int"),
    ({"audio": [VOICE, VOICE], "regions": [None]}, RequestError, "regions: 1 regions for 2 voices"),
    ({"regions": (1, 2, 3)}, RequestError, "regions: 3 regions for 1 voices"),
    ({"regions": [(5, 5, 1, 1)]}, RequestError, r"^regions\[0\]: "),
    ({"soundtrack": 7}, TypeError, "soundtrack: .*int"),
    ({"soundtrack": "nowhere.wav"}, RequestError, "^soundtrack: 'nowhere.wav' does not exist"),
    ({"prompt": 3}, TypeError, "prompt: a text"),
    ({"prompt": " "}, RequestError, "^prompt: the prompt is empty"),
    ({"num_inference_steps": "4"}, TypeError, "num_inference_steps: a whole number"),
    ({"num_inference_steps": 0}, RequestError, "^num_inference_steps: "),
    ({"num_frames": 2.5}, TypeError, "num_frames: a whole number"),
    ({"num_frames": 0}, RequestError, "^num_frames: "),
    ({"guidance_scale": True}, TypeError, "guidance_scale: a number"),
    ({"guidance_scale": float("nan")}, RequestError, "^guidance_scale: "),
    ({"fps": 1000}, RequestError, "^fps: "),
    ({"seed": -3}, RequestError, "^seed: "),
    ({"seed": 1, "generator": torch.Generator()}, TypeError, "generator: give a seed or"),
    ({"generator": 3}, TypeError, "generator: a torch.Generator"),
    ({"sampler": "turbbo"}, RequestError, "^sampler: .*turbo"),
    ({"resolution": "480p"}, RequestError, "^resolution: .*small"),
    ({"steps": 4}, TypeError, "no argument 'steps'; did you mean num_inference_steps?"),
    ({"negativ_prompt": "x"}, TypeError, "did you mean negative_prompt?"),
    ({"overrides": "sampler.steps=4"}, TypeError, "overrides: a list"),
)


@pytest.mark.parametrize(("arguments", "kind", "told"), WRONG, ids=lambda value: str(value)[:40].split("(")[0])
def test_wrong_arguments_are_named_before_a_model_is_loaded(
    arguments: dict[str, Any], kind: type[Exception], told: str
) -> None:
    with Talker("tiny", source="packaged") as other:
        given = {"image": PICTURE, "audio": VOICE} | arguments

        with pytest.raises(kind, match=told):
            other(**given)

        assert not other.service.check()["loaded"]


def test_wrong_choices_are_named_when_a_talker_is_made() -> None:
    with pytest.raises(ConfigError, match="tinny"):
        Talker("tinny")
    with pytest.raises(ConfigError, match="samplr"):
        Talker("tiny", samplr="turbo")
    with pytest.raises(TypeError, match="sink: a Talker keeps the video"):
        Talker("tiny", sink="s3")
    with pytest.raises(TypeError, match="model: the name of a preset"):
        Talker(3)  # type: ignore[arg-type]


def test_a_video_is_saved_shown_and_removed_with_its_object(talker: Talker, tmp_path: Path) -> None:
    video = talker(PICTURE, VOICE, **SHORT)
    path = video.path

    assert video.save(tmp_path / "talk.mp4").read_bytes() == path.read_bytes()
    assert "160x96, 5 frames at 25" in repr(video)
    assert "<video controls autoplay" in video._repr_html_()
    assert video.report is not None
    assert any("voice is cut" in warning for warning in video.warnings)
    with pytest.raises(RequestError, match="path: the video cannot be saved"):
        video.save(tmp_path / "nowhere" / "talk.mp4")
    del video
    gc.collect()
    assert not path.parent.exists()


def test_a_preview_is_the_picture_with_the_regions(talker: Talker) -> None:
    preview = talker.preview(EXAMPLES / "two.png", [EXAMPLES / "left.flac", EXAMPLES / "right.flac"])

    assert isinstance(preview, Image.Image)
    assert preview.width >= 160


@pytest.mark.slow
def test_nothing_stays_on_the_disk_when_a_talker_is_closed(tmp_path: Path) -> None:
    code = f"""
import os, sys
from engine import Talker
with Talker("tiny", source="packaged", sampler="turbo") as talker:
    video = talker({str(PICTURE)!r}, {str(VOICE)!r}, num_frames=5, num_inference_steps=1)
    video.save({str(tmp_path / "talk.mp4")!r})
"""
    place = tmp_path / "temporary"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**_environment(), "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        check=True,
    )

    # Nor do libraries say anything when they are loaded.
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "talk.mp4").stat().st_size > 1000
    assert [path for path in place.iterdir() if path.name.startswith("multitalk-")] == []


def test_addresses_of_a_request_may_be_paths_and_nothing_else() -> None:
    path: Any = PICTURE
    request = Request("hello", path, (Speaker(path, Region(mask=path)),))

    assert (request.image, request.speakers[0].audio) == (str(PICTURE), str(PICTURE))
    assert request.speakers[0].region.mask == str(PICTURE)
    with pytest.raises(TypeError, match=r"image: .*Image; engine\.Talker takes"):
        Request("hello", picture(), ())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"audio: .*ndarray"):
        Speaker(np.zeros(3))  # type: ignore[arg-type]


def test_importing_the_door_of_the_engine_imports_no_torch() -> None:
    code = "import sys; from engine import Talker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}

"""A source video in place of the picture, on the embedded model: what each window sees, what is kept, where it cuts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import golden_loops
import numpy as np
import numpy.typing as npt
import pytest
from segments import decoded
from source_videos import scene_frames, write_source
from worker_fakes import ask

from engine import Delivery, EngineService, Progress, Region, Request, Speaker, hookimpl
from engine.assembly.dubbing import Dubbing
from engine.cli.main import main
from engine.cli.provenance_check import check_form
from engine.client import dub
from engine.data import Frames, SourceVideo, Window
from engine.errors import ConfigError, EngineError, RequestError
from engine.evaluation.frames import read_video
from engine.media.audio import SOUND_RATE, decode
from engine.media.canvas import make_canvas
from engine.media.source import SourceReader
from engine.plugin.manager import installed
from engine.serving.jobs.job import parse_job
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine
from engine.stages.encode import to_pixels
from engine.stages.windows import plan_windows
from engine.stages.write import read_provenance

EXAMPLES = files("engine") / "examples"
VOICE, PICTURE = str(EXAMPLES / "one.flac"), str(EXAMPLES / "one.png")
#: Windows of 9 frames, of which 4 are new after the first: frames 0 to 8, 9 to 12, 13 to 16.
BOOT = ["model=tiny", "device=cpu", "model.window=9", "continuation.frames=5", "sampler=turbo", "sampler.steps=1"]
#: The head of the person, in pixels of the source.
BOX = (40.0, 8.0, 120.0, 80.0)
Pictures = npt.NDArray[np.uint8]


class Videos:
    """Source videos of 17 frames of one size: one scene, and two with a cut before frame 7."""

    def __init__(self, folder: Path) -> None:
        one, two, other = (scene_frames(seed, 17) for seed in (31, 32, 33))
        self.frames = {"whole": one, "cut": np.concatenate([one[:7], two[:10]])}
        self.frames["recut"] = np.concatenate([other[:7], two[:10]])
        self.path = {name: str(write_source(folder / f"{name}.mp4", made)) for name, made in self.frames.items()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    return Videos(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineService]:
    service = EngineService([*BOOT, f"sink.folder={tmp_path_factory.mktemp('videos')}", "sink.overwrite=true"])
    yield service
    service.close()


@pytest.fixture(scope="module")
def base(videos: Videos) -> Request:
    speaker = Speaker(VOICE, Region(box=BOX))
    return Request("A person talks.", "", (speaker,), video=videos.path["whole"], frames=17, filename="talk.mp4")


class _Collected:
    def __init__(self) -> None:
        self.windows: list[Pictures] = []

    @hookimpl
    def window_finished(self, request: Request, window: Window, frames: Frames) -> None:
        self.windows.append(frames.pictures.copy())


def make(service: EngineService, request: Request) -> tuple[Pictures, Delivery]:
    collected = _Collected()
    plugins = installed().plugins
    name = plugins.register(collected)
    try:
        delivery = service.generate(request)
    finally:
        plugins.unregister(name=name)
    return np.concatenate(collected.windows), delivery


def references(service: EngineService, request: Request, monkeypatch: pytest.MonkeyPatch) -> list[Pictures]:
    """Return the picture that each window was conditioned on."""
    seen: list[Pictures] = []
    usual: Callable[..., Any] = Dubbing.begin

    def begin(*arguments: Any) -> Any:
        found = usual(*arguments)
        seen.append(found[0].image)
        return found

    monkeypatch.setattr(Dubbing, "begin", begin)
    make(service, request)
    return seen


def nearest(picture: Pictures, frames: Pictures) -> int:
    return int(np.abs(frames.astype(int) - picture).mean((1, 2, 3)).argmin())


def test_each_window_sees_the_source_frame_at_its_begin_as_infinitetalk_does(
    service: EngineService, videos: Videos, base: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = references(service, base, monkeypatch)
    # The repeated frames belong to a window: it begins with them.
    assert [nearest(picture, videos.frames["whole"]) for picture in seen] == [0, 4, 8]


def test_recorded_clips_of_infinitetalk_saw_the_frames_that_a_source_video_gives(
    infinite_loop_recording: str, recordings: Any, tmp_path: Path
) -> None:
    loop = golden_loops.load_loop(recordings, infinite_loop_recording)
    clips = [loop.clip(index) for index in range(loop.clips)]
    window, motion = clips[0]["decoded_s8"].shape[1], loop.motion_frames
    windows = plan_windows(window + (window - motion) * (len(clips) - 1), window=window, motion=motion)
    # The recording's video: the picture, and with inverted colours from the second clip's begin on.
    frames = np.stack([loop.source if index < windows[1].start else 255 - loop.source for index in range(12)])
    path = write_source(tmp_path / "source.mkv", frames, colours=True)
    height, width = (8 * side for side in clips[0]["decoded_s8"].shape[2:])
    size = (frames.shape[2], frames.shape[1])
    reader = SourceReader(SourceVideo(path, size, 25.0, 1.0), make_canvas(size, (width, height)), 25.0)
    for clip, one in zip(clips, windows, strict=True):
        seen = to_pixels(reader.frame(one.start))[:, ::8, ::8]
        assert (seen - clip["clip_vision_pixels_s8"][:, 0]).abs().max() < 1e-5
    reader.close()


def test_a_cut_begins_a_window_that_knows_nothing_of_the_scene_before(
    service: EngineService, videos: Videos, base: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(base, video=videos.path["cut"])
    one, delivery = make(service, request)
    other, _ = make(service, replace(base, video=videos.path["recut"]))
    assert [(window.start, window.motion, window.keep) for window in delivery.plan.windows] == [
        (0, 0, 7),
        (7, 0, 9),
        (11, 5, 1),
    ]
    assert delivery.plan.dub is not None
    assert delivery.plan.dub.scenes == ((1, 7 / 25),)
    # The same second scene after another first one: not one byte of it differs.
    assert (one[:7] != other[:7]).any()
    assert np.array_equal(one[7:], other[7:])
    # A cut stays a cut: on the frame, and as large as in the source.
    changes = np.abs(np.diff(one.astype(int), axis=0)).mean((1, 2, 3))
    source = np.abs(np.diff(videos.frames["cut"].astype(int), axis=0)).mean((1, 2, 3))
    assert changes.argmax() == 6
    assert changes[6] > 0.7 * source[6]
    assert changes[6] > 4 * np.delete(changes, 6).max()
    seen = references(service, request, monkeypatch)
    assert [nearest(picture, videos.frames["cut"]) for picture in seen] == [0, 7, 11]
    # The judge begins anew with the scene: a cut is not reported as a bad seam.
    assert delivery.report is not None
    assert delivery.report.windows[1].figures.get("seam") is None


def test_cuts_can_be_ignored(service: EngineService, videos: Videos, base: Request) -> None:
    plan = service.plan(replace(base, video=videos.path["cut"], overrides=("dub.cuts=none",)))
    assert [window.start for window in plan.windows] == [0, 4, 8]


def test_keep_has_the_bytes_of_the_source_outside_the_regions(
    service: EngineService, videos: Videos, base: Request
) -> None:
    request = replace(base, video=videos.path["cut"], overrides=("dub.mode=keep",))
    made, delivery = make(service, request)
    x0, y0, x1, y1 = (int(edge) for edge in BOX)
    outside = np.ones(made.shape[1:3], bool)
    outside[y0:y1, x0:x1] = False
    assert np.array_equal(made[:, outside], engine_frames(request.video, 17)[:, outside])
    # Within the region somebody else speaks, and the edge is soft.
    inside = made[:, y0 + 20 : y1 - 20, x0 + 20 : x1 - 20].astype(int)
    assert np.abs(inside - engine_frames(request.video, 17)[:, y0 + 20 : y1 - 20, x0 + 20 : x1 - 20]).mean() > 1
    assert delivery.plan.dub is not None
    assert delivery.plan.dub.mode == "keep"
    # In the MP4, too, as far as H.264 keeps it.
    assert delivery.address is not None
    error = read_video(Path(delivery.address))[:, outside].astype(float) - made[:, outside]
    assert 10 * np.log10(255**2 / (error**2).mean()) > 36


def engine_frames(path: str, count: int) -> Pictures:
    reader = SourceReader(SourceVideo(Path(path), (160, 96), 25.0, 1.0), make_canvas((160, 96), (160, 96)), 25.0)
    frames = reader.frames(0, count)
    reader.close()
    return frames


def test_keep_leaves_people_who_say_nothing_as_they_are(service: EngineService, base: Request) -> None:
    silent = Speaker(None, Region(box=(0, 0, 40, 96)))
    made, _ = make(service, replace(base, speakers=(*base.speakers, silent), overrides=("dub.mode=keep",)))
    assert np.array_equal(made[:, :, :40], engine_frames(base.video, 17)[:, :, :40])


@pytest.mark.slow
def test_keep_follows_the_source_more_the_longer_the_source_leads(service: EngineService, base: Request) -> None:
    source = engine_frames(base.video, 9).astype(float)
    distance = []
    for follow in (1, 0):
        request = replace(base, frames=9, overrides=("dub.mode=keep", "sampler.steps=3", f"dub.follow={follow}"))
        distance.append(np.abs(make(service, request)[0] - source).mean())
    assert distance[1] < 0.6 * distance[0]


@pytest.mark.slow
def test_an_interrupted_dub_continues_with_the_same_bytes(
    service: EngineService, videos: Videos, base: Request, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def stop(progress: Progress) -> None:
        if progress.window == 3 and progress.step == 1:
            raise Killed

    request = replace(base, video=videos.path["cut"], overrides=("dub.mode=keep",))
    whole = service.generate(request)
    keeps = EngineService([*service.overrides, f"resume.folder={tmp_path / 'states'}"], after=service)
    try:
        with pytest.raises(Killed):
            keeps.generate(request, progress=stop)
        # Another source of the same length is another video.
        other = keeps.generate(replace(request, video=videos.path["recut"], filename="other.mp4"))
        assert other.windows_taken_over == 0
        resumed = keeps.generate(replace(request, filename="resumed.mp4"))
    finally:
        service.__init__(service.overrides, after=keeps)  # type: ignore[misc]
    assert resumed.windows_taken_over == 2
    assert resumed.sha256 == whole.sha256


@pytest.mark.slow
def test_a_window_of_a_dub_is_made_again_if_it_is_bad(service: EngineService, base: Request) -> None:
    limits = ("report.still=0", "report.mouth=1", "retake.max=1")
    made, delivery = make(service, replace(base, overrides=("dub.mode=keep", *limits)))
    assert delivery.report is not None
    assert delivery.report.retaken
    assert np.array_equal(made[:, :8], engine_frames(base.video, 17)[:, :8])


@pytest.mark.slow
def test_parts_and_previews_of_a_dub_are_those_of_its_file(
    service: EngineService, videos: Videos, base: Request
) -> None:
    request = replace(base, video=videos.path["cut"], overrides=("dub.mode=keep",))
    plain = service.generate(replace(request, filename="plain.mp4"))
    previews: set[tuple[int, int]] = set()

    def note(now: Progress) -> None:
        if now.preview is not None:
            previews.add((now.preview.window, now.preview.step))

    live = service.generate(replace(request, live=True, preview="step"), progress=note)
    assert live.sha256 == plain.sha256
    assert decoded(str(live.live))[0] == decoded(str(plain.address))[0]
    assert previews == {(window, step) for window in (1, 2, 3) for step in (0, 1)}


def test_a_dub_is_made_again_from_its_provenance(
    videos: Videos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.mp4", tmp_path / "again.mp4"
    speakers = json.dumps({"speakers": [{"audio": VOICE, "region": {"box": BOX}}]})
    words = ["--video", videos.path["cut"], "--speakers", speakers, "--frames", "9", "--quiet", "--prompt", "she talks"]
    assert main(["generate", *words, *BOOT[4:], "dub.mode=keep", "--output", str(first)]) == 0
    provenance = read_provenance(first)
    check_form(provenance)
    assert provenance["request"]["video"] is True
    assert provenance["dub"]["mode"] == "keep"
    assert provenance["inputs"]["image"] == hashlib.sha256(Path(videos.path["cut"]).read_bytes()).hexdigest()
    capsys.readouterr()
    media = ["--video", videos.path["cut"], "--audio", VOICE, "--quiet", "--output", str(second)]
    assert main(["again", str(first), *media]) == 0
    assert second.read_bytes() == first.read_bytes()
    assert "not the" not in capsys.readouterr().err
    media[1] = videos.path["whole"]
    assert main(["again", str(first), *media, "--dry-run"]) == 0
    assert "is not the source video that the video was made from" in capsys.readouterr().err
    assert main(["again", str(first), "--image", PICTURE, *media[2:]]) == 2
    assert "give the source video again with --video FILE" in capsys.readouterr().err


def test_a_job_makes_what_python_makes(service: EngineService, videos: Videos, base: Request) -> None:
    request = replace(base, frames=9, fps=25.0, overrides=("dub.mode=keep",))
    wanted = service.generate(request)
    assert wanted.address is not None
    job = dub(videos.path["whole"], VOICE, prompt=base.prompt, num_frames=9, fps=25, region_1={"box": [*BOX]})
    job |= {"turbo": True, "overrides": ["dub.mode=keep", "sampler.steps=1"]}
    worker = EngineService([*BOOT, "sink=base64", "access.schemes=[data]"], after=service)
    try:
        answer = ask(Handler(WarmEngine(worker), Terms()), job)
    finally:
        service.__init__(service.overrides, after=worker)  # type: ignore[misc]
    assert "error" not in answer, answer
    assert base64.b64decode(answer["video_base64"]) == Path(wanted.address).read_bytes()


def test_a_job_has_a_source_video_or_a_picture() -> None:
    video = {"reference_video": "https://a.org/a.mp4", "audio_1": "https://a.org/a.wav", "prompt": "a"}
    parsed = parse_job({"input": video}).request
    assert parsed is not None
    assert (parsed.video, parsed.image) == ("https://a.org/a.mp4", "")
    # In a batch file, paths are relative to it.
    in_batch = parse_job({"input": {**video, "reference_video": "a.mp4"}}, folder=Path("/jobs")).request
    assert in_batch is not None
    assert in_batch.video == "/jobs/a.mp4"
    with pytest.raises(RequestError, match="cannot be combined with reference_video"):
        parse_job({"input": {**video, "reference_image": "https://a.org/a.png"}})
    with pytest.raises(RequestError) as caught:
        parse_job({"input": {"audio_1": "https://a.org/a.wav", "prompt": "a"}})
    assert caught.value.field == "reference_image"


def test_a_request_has_a_source_video_or_a_picture(service: EngineService, base: Request) -> None:
    with pytest.raises(RequestError, match="image and video are both given") as caught:
        service.plan(replace(base, image=PICTURE))
    assert (caught.value.field, caught.value.code) == ("request.video", "conflict")


@pytest.mark.parametrize(
    ("overrides", "region", "message", "field"),
    [
        (("continuation.style=multitalk",), BOX, "choose continuation.style=infinitetalk", "request.video"),
        (("windows=pauses",), BOX, "choose windows=fixed or dub.cuts=none", "windows"),
        (("dub.mode=keep",), None, "has no region", "request.speakers[0].region"),
        (("dub.mode=most",), BOX, "sparse", "dub.mode"),
        (("dub.sound_level=3",), BOX, "-60", "dub.sound_level"),
    ],
)
def test_what_cannot_be_dubbed_is_refused_with_what_works(
    service: EngineService, base: Request, overrides: tuple[str, ...], region: Any, message: str, field: str
) -> None:
    request = replace(base, speakers=(Speaker(VOICE, Region(box=region)),), overrides=overrides)
    with pytest.raises(EngineError) as caught:
        service.plan(request)
    assert message in str(caught.value)
    assert field in caught.value.field
    assert isinstance(caught.value, RequestError | ConfigError)


def test_the_plan_says_what_is_done_with_the_source(
    videos: Videos, base: Request, service: EngineService, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--video", videos.path["cut"], "--audio", VOICE, "--prompt", "a", "--frames", "25", *BOOT]
    assert main(["plan", *words]) == 0
    text = capsys.readouterr().out
    assert "source    160 x 96, 25 fps, 0.68 s; dub.mode=sparse" in text
    assert "1 cut: window 2 from 0.28 s" in text
    assert "its last frame stays" in text
    longer = service.plan(replace(base, frames=5))
    assert any("num_frames 17 (--frames 17) makes it as long as the source" in one for one in longer.warnings)


def test_the_sound_of_the_source_is_left_out_or_kept_under_the_voice(
    service: EngineService, videos: Videos, base: Request, tmp_path: Path
) -> None:
    seconds = np.arange(SOUND_RATE) / SOUND_RATE
    tone = (0.5 * np.sin(2 * np.pi * 5000 * seconds)).astype(np.float32)
    loud = write_source(tmp_path / "loud.mp4", videos.frames["whole"], sound=tone)
    levels = []
    for overrides in ((), ("dub.sound=under", "dub.sound_level=-20"), ("dub.sound=under", "dub.sound_level=0")):
        made = service.generate(replace(base, video=str(loud), frames=9, overrides=overrides))
        assert made.address is not None
        sound = decode(Path(made.address), SOUND_RATE, "mono")
        spectrum = np.abs(np.fft.rfft(sound[2000:14000])) / 6000
        levels.append(float(spectrum[round(5000 / SOUND_RATE * 12000)]))
    assert levels[0] < 0.01
    assert levels[1] == pytest.approx(0.05, rel=0.2)
    assert levels[2] == pytest.approx(0.5, rel=0.2)
    mute = service.plan(replace(base, overrides=("dub.sound=under",)))
    assert "dub.sound=under: the source video has no sound, so only the voices are heard" in mute.warnings


def test_a_source_video_that_is_no_video_is_named_in_the_job(service: EngineService, base: Request) -> None:
    with pytest.raises(RequestError) as caught:
        service.plan(replace(base, video=PICTURE))
    assert caught.value.field == "request.video"

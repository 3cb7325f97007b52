"""An interrupted video continues with its next window, and no failure of the folder of states fails a video."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from example_request import EXAMPLES
from key_values import FREE, places

from engine import Delivery, EngineService, Progress, Region, Request, Speaker
from engine.assembly import resuming
from engine.assembly.state_names import state_name
from engine.config import AdapterConfig, ResumeConfig
from engine.data import Kept
from engine.errors import Cancelled, NotDelivered, RequestError
from engine.files import lingering
from engine.files.states import StateFolder
from engine.serving.worker.defaults import boot
from engine.stages.write import read_provenance

#: Four windows: 5 frames, then 4 more each.
BOOT = (
    *("model=tiny", "model.window=5", "continuation.frames=1", "continuation.blend=2", "device=cpu"),
    *("sampler=turbo", "sampler.steps=1"),
)
ONE = Request("A woman speaks.", str(EXAMPLES / "one.png"), (Speaker(str(EXAMPLES / "one.flac")),), frames=17)


class Killed(BaseException):
    """Stands for a process that ends."""


class Place:
    """An engine that keeps states, and the videos of one that does not."""

    def __init__(self, folder: Path) -> None:
        self.states = folder / "states"
        self.plain = EngineService([*BOOT, f"sink.folder={folder / 'plain'}"])
        self.whole = self.plain.generate(ONE)
        self.service = EngineService(
            [*BOOT, f"sink.folder={folder / 'kept'}", f"resume.folder={self.states}"], after=self.plain
        )

    def stop_in(self, window: int, request: Request = ONE, service: EngineService | None = None) -> None:
        """Make a video until the first step of a window, counted from 1."""

        def stop(progress: Progress) -> None:
            # A publisher's updates come from its thread.
            main = threading.current_thread() is threading.main_thread()
            if progress.window == window and progress.step == 1 and main:
                raise Killed

        with pytest.raises(Killed):
            (service or self.service).generate(request, progress=stop)

    @contextmanager
    def changed(self, *overrides: str) -> Iterator[EngineService]:
        """Lend the weights to an engine with other settings."""
        service = EngineService([*self.service.overrides, *overrides], after=self.service)
        try:
            yield service
        finally:
            self.service = EngineService(self.service.overrides, after=service)

    def files(self) -> list[Path]:
        return sorted(path for path in self.states.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("resuming"))
    yield place
    place.service.close()


@pytest.fixture(autouse=True)
def _clean(place: Place) -> Iterator[None]:
    yield
    shutil.rmtree(place.states, ignore_errors=True)


def digest(delivery: Delivery) -> str:
    assert delivery.address is not None
    return hashlib.sha256(Path(delivery.address).read_bytes()).hexdigest()


def about_states(delivery: Delivery) -> list[str]:
    return [warning for warning in delivery.warnings if "state" in warning]


@pytest.mark.parametrize("window", [2, 4])
def test_an_interrupted_video_continues_with_its_next_window_and_has_the_same_bytes(place: Place, window: int) -> None:
    place.stop_in(window)
    assert place.files()
    told: list[Progress] = []

    delivery = place.service.generate(ONE, progress=told.append)

    assert delivery.windows_taken_over == window - 1
    assert digest(delivery) == digest(place.whole)
    assert delivery.forwards == place.whole.forwards
    assert not about_states(delivery)
    assert {progress.window for progress in told if progress.stage == "denoise"} == set(range(window, 5))
    begun = next(progress for progress in told if progress.stage == "encode")
    assert begun.fraction == pytest.approx((window - 1) / 4, abs=0.01)
    assert not place.files()


def test_a_judged_and_published_video_continues_with_its_judge_and_all_parts(place: Place, tmp_path: Path) -> None:
    # Windows that are long enough for faces and mouths, one of them made again.
    judged = ("model.window=17", "continuation.frames=5", "continuation.blend=8", "retake.max=1", "report.mouth=0.99")
    long = replace(ONE, frames=41)
    with place.changed(*judged, "resume.folder=null") as service:
        whole = service.generate(long)
    with place.changed(*judged, f"live.folder={tmp_path}", "live.enabled=true") as service:
        place.stop_in(3, long, service)
        delivery = service.generate(long)

    assert delivery.windows_taken_over == 2
    assert digest(delivery) == digest(whole)
    assert delivery.report is not None
    assert whole.report is not None
    assert replace(delivery.report, seconds=0.0) == replace(whole.report, seconds=0.0)
    assert any(window.attempts for window in delivery.report.windows)
    assert delivery.live is not None
    assert len(list(Path(delivery.live).parent.glob("part-*"))) == 3


def test_a_video_that_was_made_and_not_delivered_is_not_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Kept:
        raise Killed

    sink: Any = type(place.service.engine.sink)
    with monkeypatch.context() as patch:
        patch.setattr(sink, "put", refuse)
        with pytest.raises(Killed):
            place.service.generate(ONE)

    delivery = place.service.generate(ONE)

    assert delivery.windows_taken_over == 4
    assert digest(delivery) == digest(place.whole)


def test_a_video_that_its_sink_keeps_for_a_later_delivery_leaves_no_state(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(*_: Any) -> Kept:
        raise NotDelivered("the store is away", job="job", path="somewhere")

    with monkeypatch.context() as patch:
        patch.setattr(type(place.service.engine.sink), "put", keep)
        with pytest.raises(NotDelivered):
            place.service.generate(ONE)

    assert not place.files()


def test_a_killed_process_is_continued_by_another_one(place: Place, tmp_path: Path) -> None:
    # `nox -s resume` kills sixty, in four ways.
    words = [
        *("--image", ONE.image, "--audio", str(EXAMPLES / "one.flac"), "--prompt", ONE.prompt, "--frames", "17"),
        *(*BOOT, f"sink.folder={tmp_path}", "--resume", f"resume.folder={place.states}", "--quiet"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "engine", "generate", *words], env=environment)
    while process.poll() is None and not list(place.states.glob("*/00002.state")):
        time.sleep(0.005)
    process.kill()
    process.wait()

    delivery = place.service.generate(ONE)

    assert delivery.windows_taken_over >= 2
    assert digest(delivery) == digest(place.whole)
    assert not place.files()


def test_the_states_of_a_job_stay_until_its_answer_has_arrived(place: Place) -> None:
    job = replace(ONE, job="anna-1")
    assert place.service.generate(job).windows_taken_over == 0

    assert place.service.generate(job).windows_taken_over == 4
    assert place.service.generate(replace(ONE, job="anna-2")).windows_taken_over == 0

    assert place.files()
    lingering.remove_now()
    assert not place.files()


def test_states_of_a_worker_that_was_killed_after_its_answer_are_swept_soon(place: Place) -> None:
    place.service.generate(replace(ONE, job="anna-1"))
    (delivered,) = place.states.iterdir()
    past = time.time() - 61
    for path in (*delivered.iterdir(), delivered):
        os.utime(path, (past, past))

    place.stop_in(2, replace(ONE, seed=1))

    assert not delivered.exists()


def test_a_cancelled_video_continues_too(place: Place) -> None:
    cancel = threading.Event()

    def cancel_in_third(progress: Progress) -> None:
        if progress.window == 3:
            cancel.set()

    with pytest.raises(Cancelled):
        place.service.generate(ONE, progress=cancel_in_third, cancel=cancel)

    assert place.service.generate(ONE).windows_taken_over == 2


#: What differs -> a request that must not continue ONE's.
OTHERS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "A man speaks."},
    "seed": {"seed": 43},
    "negative prompt": {"negative_prompt": "rain"},
    "frames": {"frames": 16},
    "fps": {"fps": 24.0},
    "timing": {"timing": "native", "fps": 20.0},
    "fit": {"fit": "pad"},
    "picture": {"image": str(EXAMPLES / "two.png")},
    "voice": {"speakers": (Speaker(str(EXAMPLES / "left.flac")),)},
    "delay": {"speakers": (Speaker(str(EXAMPLES / "one.flac"), delay=0.1),)},
    "region": {"speakers": (Speaker(str(EXAMPLES / "one.flac"), Region(box=(0.1, 0.1, 0.9, 0.9))),)},
    "shift": {"overrides": ("sampler.shift=4",)},
    "blend": {"overrides": ("continuation.blend=1",)},
}


def test_only_the_same_request_continues(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    make = state_name

    def listen(*args: Any) -> str:
        names.append(make(*args))
        return names[-1]

    monkeypatch.setattr(resuming, "state_name", listen)
    same = replace(ONE, filename="other.mp4", job="job-1")
    for request in (ONE, same, *(replace(ONE, **other) for other in OTHERS.values())):
        with pytest.raises(Killed):
            place.service.generate(request, progress=_at_first_window)

    assert names[0] == names[1]
    assert len(set(names)) == 1 + len(OTHERS)
    assert len({name[25:] for name in names}) == 1


#: Bundles of the model that the config of this file does not choose.
UNCHOSEN = {"model.standard", "model.distilled"}


def test_every_key_of_the_config_is_in_the_name_unless_it_changes_no_byte(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    make = state_name

    def listen(*args: Any) -> str:
        calls.append(args)
        return make(*args)

    monkeypatch.setattr(resuming, "state_name", listen)
    with pytest.raises(Killed):
        place.service.generate(ONE, progress=_at_first_window)
    request, config, *others = calls[0]
    name = make(request, config, *others)

    same = set()
    for key in _leaves(config):
        changed = deepcopy(config)
        _change(changed, key)
        if make(request, changed, *others) == name:
            same.add(key)

    assert "memory.tile" not in same
    assert {key for key in same if not places(key) & (FREE.keys() | UNCHOSEN)} == set()
    assert {key for key in FREE if not key.startswith("model.distilled")} <= {
        part for key in same for part in places(key)
    }
    for key in ("seed", "weights", "versions", "threads", "processes", "device", "dtype", "decode_dtype", "attention"):
        provenance = others[1] | {key: "other"}
        assert make(request, config, others[0], provenance, *others[2:]) != name


def _leaves(config: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _change(config: Any, key: str) -> None:
    *groups, last = key.split(".")
    for group in groups:
        config = getattr(config, group)
    before = getattr(config, last)
    if last == "resolutions":
        for resolution in before.values():
            resolution.buckets = {"1.00": [16, 16]}
    elif last == "loras":
        setattr(config, last, [AdapterConfig("other")])
    else:
        other = {"kernels": "eager", "resolution": "large", "sampler.bundle": "standard"}.get(key, "other")
        setattr(config, last, not before if isinstance(before, bool) else -1.0 if key == "model.fps" else other)


def _at_first_window(progress: Progress) -> None:
    if progress.window == 1:
        raise Killed


def test_a_damaged_state_is_reported_and_the_one_before_it_is_used(place: Place) -> None:
    place.stop_in(4)
    newest = max(path for path in place.files() if path.suffix == ".state")
    newest.write_bytes(newest.read_bytes()[:-1000])

    delivery = place.service.generate(ONE)

    assert delivery.windows_taken_over == 2
    assert digest(delivery) == digest(place.whole)
    assert about_states(delivery) == ["the state after window 3 was ignored: it is cut short or changed"]


def test_states_with_a_damaged_segment_are_not_used(place: Place) -> None:
    place.stop_in(4)
    first = min(path for path in place.files() if path.suffix == ".segment")
    first.write_bytes(first.read_bytes()[:-1] + b"!")

    delivery = place.service.generate(ONE)

    assert delivery.windows_taken_over == 0
    assert digest(delivery) == digest(place.whole)
    assert len(about_states(delivery)) == 2
    assert "the segment 00000 is cut short or changed" in about_states(delivery)[0]


def test_a_state_of_another_format_or_video_is_reported(place: Place) -> None:
    place.stop_in(3)
    first, second = (path for path in place.files() if path.suffix == ".state")
    first.write_bytes(first.read_bytes().replace(b"multitalk-state 1", b"multitalk-state 9", 1))
    second.write_bytes(b"something else")

    told = about_states(place.service.generate(ONE))

    assert told == [
        "the state after window 2 was ignored: it is not a state",
        "the state after window 1 was ignored: it has another format than 1",
    ]


def test_a_state_of_other_versions_is_reported_and_not_used(place: Place) -> None:
    place.stop_in(3)
    (folder,) = place.states.iterdir()
    folder.rename(folder.with_name(folder.name[:25] + "0" * 24))

    delivery = place.service.generate(ONE)

    assert delivery.windows_taken_over == 0
    assert "other versions" in about_states(delivery)[0]
    StateFolder(place.states, folder.name[:25] + "0" * 24).remove()


def test_a_state_of_another_machine_is_used_and_the_answer_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(resuming, "machine_facts", lambda _: {"card": "another card"})
        place.stop_in(3)

    delivery = place.service.generate(ONE)

    assert delivery.windows_taken_over == 2
    assert any("another machine (another card;" in warning for warning in delivery.warnings)


def test_a_folder_that_cannot_be_written_costs_a_warning_only(place: Place, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    service = EngineService(
        [*BOOT, f"sink.folder={tmp_path}", f"resume.folder={blocked / 'states'}"], after=place.service
    )
    try:
        delivery = service.generate(ONE)
    finally:
        place.service = EngineService(place.service.overrides, after=service)

    assert digest(delivery) == digest(place.whole)
    assert len(about_states(delivery)) == 1
    assert about_states(delivery)[0].startswith("resume.folder: the folder of states cannot be used")
    assert "Not a directory" in about_states(delivery)[0]
    assert str(tmp_path) not in about_states(delivery)[0]


def test_keeping_states_without_a_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, few = replace(ONE, frames=5), [*BOOT, f"sink.folder={tmp_path}", "resume.keep=true"]
    delivery = EngineService(few).generate(one)
    told = next(text for text in delivery.warnings if "resume.keep" in text)
    assert told.startswith("resume.keep=true keeps nothing, because resume.folder names no folder: set it to a folder")
    missing = EngineService([*few, "resume.folder=volume", "resume.volume=/no/such/volume"]).generate(one)
    assert any(
        "keeps nothing, because resume.folder is on a volume that is not mounted" in text for text in missing.warnings
    )


def test_a_disk_that_becomes_full_keeps_the_states_so_far(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=10**12)

    def fill(progress: Progress) -> None:
        if progress.window == 3:
            usage.free = 1000
        if progress.window == 4 and progress.step == 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(Killed):
            place.service.generate(ONE, progress=fill)

    delivery = place.service.generate(ONE)
    # The second window's state is stored beside the third window.
    assert delivery.windows_taken_over in (1, 2)
    assert digest(delivery) == digest(place.whole)


def test_a_full_disk_is_reported_in_the_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        delivery = place.service.generate(ONE)

    told = "resume.folder: states are not kept any more after window 0: No space left on device"
    assert about_states(delivery) == [told]
    assert digest(delivery) == digest(place.whole)


@pytest.mark.parametrize("call", ["numbers", "put_segment"])
def test_a_stalled_volume_holds_the_video_up_no_longer_than_agreed(
    place: Place, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(StateFolder, call, lambda *_: answers.wait(60))
    with place.changed("resume.seconds=0.3") as service:
        began = time.monotonic()
        delivery = service.generate(ONE)
        took = time.monotonic() - began
    answers.set()

    assert digest(delivery) == digest(place.whole)
    assert "no answer for 0.3 s" in about_states(delivery)[0]
    assert took < 40


def test_two_engines_with_the_same_request_at_once_do_not_disturb_each_other(place: Place) -> None:
    other = EngineService(place.service.overrides)
    made: list[Delivery] = []

    def meanwhile(progress: Progress) -> None:
        if progress.window == 3 and progress.step == 1 and not made:
            made.append(other.generate(ONE))

    made.append(place.service.generate(ONE, progress=meanwhile))
    other.close()

    assert [digest(delivery) for delivery in made] == [digest(place.whole)] * 2
    assert made[0].windows_taken_over == 2
    assert not place.files()


def test_old_states_are_swept_by_age_and_size(place: Place) -> None:
    place.stop_in(2, replace(ONE, seed=1))
    place.stop_in(2, replace(ONE, seed=2))
    (old,) = {path.parent for path in place.files()} - {
        max(place.files(), key=lambda path: path.stat().st_mtime).parent
    }
    past = time.time() - 8 * 86_400
    for path in (*old.iterdir(), old):
        os.utime(path, (past, past))

    place.stop_in(2)

    assert not old.exists()
    assert len(list(place.states.iterdir())) == 2
    with place.changed("resume.gib=0") as service:
        service.generate(ONE)
    assert not list(place.states.iterdir())


def test_the_state_has_neither_texts_nor_paths_of_the_request(place: Place) -> None:
    place.stop_in(2)
    state = next(path for path in place.files() if path.suffix == ".state")
    head = state.read_bytes().split(b"\n")[1]
    assert set(json.loads(head)) == {"name", "windows", "segments", "arrays", "facts"}
    assert ONE.prompt.encode() not in head
    assert str(EXAMPLES).encode() not in head


def test_windows_are_made_again_from_a_kept_state_with_another_seed(place: Place) -> None:
    with place.changed("resume.keep=true") as service:
        first = service.generate(ONE)
    assert digest(first) == digest(place.whole)
    kept = place.files()
    # A segment and a state of each window, and the mark that they stay.
    assert len(kept) == 2 * 4 + 1
    with place.changed() as service:
        assert digest(service.generate(ONE)) == digest(place.whole)
    assert place.files() == kept

    with place.changed("resume.retake=3", "resume.retake_seed=7") as service:
        again = service.generate(ONE)
    with place.changed("resume.retake=3") as service:
        drawn = [service.generate(ONE) for _ in range(2)]
        place.stop_in(4, service=service)
        drawn.append(service.generate(ONE))

    assert again.windows_taken_over == 2
    assert first.address is not None
    assert again.address is not None
    frames = [decoded(delivery) for delivery in (first, again, drawn[0])]
    assert all((one[:9] == frames[0][:9]).all() for one in frames)
    assert (frames[1][9:] != frames[0][9:]).any()
    assert (frames[2][9:] != frames[1][9:]).any()
    assert read_provenance(Path(again.address))["made_again"] == [{"window": 3, "seed": 7}]
    assert len({digest(delivery) for delivery in drawn}) == 1
    assert drawn[-1].windows_taken_over == 3
    assert place.files() == kept


def decoded(delivery: Delivery) -> Any:
    assert delivery.address is not None
    with av.open(delivery.address) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_made_again_windows_need_a_kept_state(place: Place) -> None:
    with (
        place.changed("resume.folder=null", "resume.retake=3") as service,
        pytest.raises(RequestError, match="from kept states only"),
    ):
        service.generate(ONE)
    with (
        place.changed("resume.retake=3") as service,
        pytest.raises(RequestError, match="no state is kept of this video after window 2"),
    ):
        service.generate(ONE)


def test_the_folder_is_on_the_volume_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    volume, missing = tmp_path / "volume" / "models", tmp_path / "missing" / "models"
    volume.parent.mkdir()

    def folder(name: str, volume: Path) -> Path | None:
        return resuming._parent(ResumeConfig(folder=name, volume=str(volume)))

    assert folder("volume", volume) == folder("auto", volume) == volume / "resume"
    assert folder("volume", missing) is None
    assert folder("auto", missing) == tmp_path / "home" / ".cache" / "multitalk" / "resume"
    assert folder(str(tmp_path), volume) == tmp_path
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        folder("volume", volume)


def test_a_worker_keeps_states_on_its_volume_unless_told_otherwise() -> None:
    assert "resume.folder=volume" in boot([], {})
    assert "resume.folder=volume" not in boot(["resume.folder=null"], {})

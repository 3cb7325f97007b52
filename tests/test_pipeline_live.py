"""The embedded model publishes its windows while it makes them, and the file stays what it was."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segments import decoded

from engine import Delivery, EngineService, Progress, Request, Speaker
from engine.data import Preview
from engine.errors import Cancelled, RequestError

EXAMPLES = files("engine") / "examples"
#: Three short windows.
SHORT = ("sampler=turbo", "sampler.steps=2")
ONE = Request(
    prompt="A woman speaks.",
    image=str(EXAMPLES / "one.png"),
    speakers=(Speaker(str(EXAMPLES / "one.flac")),),
    frames=25,
    overrides=SHORT,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[EngineService]:
    words = ["model.window=13", "model.continuation.frames=5", f"sink.folder={folder}", "memory.overlap=true"]
    service = EngineService(words)
    yield service
    service.close()


@pytest.fixture(scope="module")
def plain(service: EngineService) -> Delivery:
    return service.generate(ONE)


def digest(delivery: Delivery) -> str:
    return hashlib.sha256(Path(str(delivery.address)).read_bytes()).hexdigest()


def test_windows_go_out_while_later_ones_are_made_and_the_file_has_the_same_bytes(
    service: EngineService, plain: Delivery
) -> None:
    updates: list[tuple[float, Progress]] = []
    delivery = service.generate(
        replace(ONE, live=True, preview="step"), progress=lambda now: updates.append((time.monotonic(), now))
    )

    assert len(delivery.plan.windows) == 3
    assert digest(delivery) == digest(plain)
    assert plain.live is None
    frames, _, sound = decoded(str(delivery.live))
    wanted, _, wanted_sound = decoded(str(plain.address))
    assert frames == wanted
    assert np.array_equal(sound[: len(wanted_sound)], wanted_sound)

    written = next(at for at, now in updates if now.stage == "write")
    out = next(at for at, now in updates if now.live is not None)
    last = next(at for at, now in updates if now.window == 3)
    assert out - written < 1
    assert out < last


def test_previews_look_like_the_frames_that_they_stand_for(service: EngineService, plain: Delivery) -> None:
    previews: list[Preview] = []

    def note(now: Progress) -> None:
        if now.preview is not None and now.preview not in previews:
            previews.append(now.preview)

    delivery = service.generate(replace(ONE, preview="step"), progress=note)

    assert digest(delivery) == digest(plain)
    assert {(one.window, one.step) for one in previews} == {(w, s) for w in (1, 2, 3) for s in (1, 2, 0)}
    strips = {(one.window, one.step): np.asarray(Image.open(io.BytesIO(one.content)), np.float32) for one in previews}
    # Four frames side by side; the last window has three latent frames.
    assert {place: strip.shape[1] // 160 for place, strip in strips.items()} == {
        (window, step): 3 if window == 3 and step else 4 for window in (1, 2, 3) for step in (1, 2, 0)
    }
    # Levels of 255: the colour of a latent stands for 8 x 8 pixels, so edges differ. The steps of later windows show
    # repeated frames, too.
    for window in (1, 2):
        assert np.abs(strips[window, 2] - strips[window, 0]).mean() < 25


def test_previews_of_windows_only_have_no_steps(service: EngineService, plain: Delivery) -> None:
    steps: set[int] = set()
    delivery = service.generate(
        replace(ONE, preview="window"), progress=lambda now: steps.add(now.preview.step if now.preview else -1)
    )

    assert steps == {-1, 0}
    assert digest(delivery) == digest(plain)


def test_a_cancelled_video_leaves_an_ended_playlist_of_its_finished_windows(
    service: EngineService, folder: Path
) -> None:
    class Token:
        set = False

        def is_set(self) -> bool:
            return self.set

    token = Token()

    def stop(now: Progress) -> None:
        token.set = token.set or (now.live is not None and now.window == 2)

    with pytest.raises(Cancelled):
        service.generate(replace(ONE, live=True, filename="stopped.mp4"), progress=stop, cancel=token)

    assert not (folder / "stopped.mp4").exists()
    text = (folder / "stopped.live" / "index.m3u8").read_text()
    assert text.endswith("#EXT-X-ENDLIST\n")
    assert len(decoded(str(folder / "stopped.live" / "index.m3u8"))[0]) == 13


def test_a_sink_that_cannot_publish_refuses_before_any_work(service: EngineService) -> None:
    stages: list[str] = []
    with pytest.raises(
        RequestError, match=r"request\.live: sink=base64 cannot publish.*sink=s3 or sink=disk"
    ) as caught:
        service.generate(replace(ONE, live=True, sink="base64"), progress=lambda now: stages.append(now.stage))
    assert caught.value.code == "live_unsupported"
    assert set(stages) <= {"read"}


def test_a_live_folder_serves_every_sink_under_its_url(tmp_path: Path) -> None:
    words = ["sink=base64", f"live.folder={tmp_path}", "live.url=https://example.com/live", "live.enabled=true"]
    service = EngineService([*words, *SHORT])
    try:
        delivery = service.generate(replace(ONE, frames=5, job="job-1", overrides=("sampler.steps=1",)))
    finally:
        service.close()

    assert delivery.live is not None
    path = delivery.live.removeprefix("https://example.com/live/")
    assert path.startswith("job-1/")
    assert len(decoded(str(tmp_path / path))[0]) == 5

"""The real command against the SDK's own loop: jobs, pings, a cancellation, and what is left at the end."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from engine import EngineService
from engine.bench.platform import Platform, working
from engine.errors import ConfigError

#: Seconds; a busy machine imports torch for a minute.
PATIENCE = 300.0


@pytest.fixture
def platform() -> Iterator[Platform]:
    served = Platform()
    yield served
    served.close()


def example(**changes: Any) -> dict[str, Any]:
    def inline(name: str) -> str:
        return base64.b64encode((files("engine") / "examples" / name).read_bytes()).decode("ascii")

    job = {"reference_image": inline("one.png"), "audio_1": inline("one.flac"), "prompt": "a person talks"}
    return {**job, "num_frames": 5, "fps": 25, "turbo": True, **changes}


def context(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines() if line.startswith("{")]


def ended(process: subprocess.Popen[bytes], platform: Platform) -> None:
    """Wait until the pings, which are a process of their own, have ended with the worker."""
    process.wait(60)
    told = len(platform.pings)
    time.sleep(2.5)
    assert len(platform.pings) <= told + 1


def test_a_worker_answers_makes_stops_and_leaves_nothing(platform: Platform, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    log = tmp_path / "log"
    platform.send("job-health", {"action": "health"})
    environment = {"TMPDIR": str(temporary), "HF_TOKEN": "hf_sentinel0123456789"}
    with working(platform, ["model=tiny", "entrypoint.grace=1"], log=log, **environment) as process:
        health = platform.result("job-health", PATIENCE)
        assert "error" not in health, health
        assert health["output"]["model"] == "tiny"

        platform.send("job-selftest", {"action": "selftest"})
        selftest = platform.result("job-selftest", PATIENCE)
        assert selftest["output"]["ok"] is True, selftest

        platform.send("job-video", example())
        video = platform.result("job-video", PATIENCE)["output"]
        assert base64.b64decode(video["video_base64"])[4:8] == b"ftyp"
        assert set(video["cold_start"]) == {"imports", "weights", "waited"}
        assert not list(temporary.rglob("*.mp4"))

        # Long enough not to end by itself.
        platform.send("job-stopped", example(num_frames=201, sampling_steps=100))
        while not platform.progress("job-stopped"):
            time.sleep(0.1)
        platform.stops.put("job-stopped")
        platform.send("job-after", {"action": "health"})
        after = platform.result("job-after", PATIENCE)["output"]
        assert (after["status"], after["loaded"]) == ("ready", True)
        with pytest.raises(TimeoutError):
            platform.result("job-stopped", 0.5)

        began = time.monotonic()
        platform.send("job-term", example(num_frames=201, sampling_steps=100))
        while not platform.progress("job-term"):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        stopped = platform.result("job-term", PATIENCE)
        took = time.monotonic() - began
        assert stopped["output"]["error_code"] == "worker_stopped"
        ended(process, platform)
        assert process.returncode == 0
    assert not [path for path in temporary.rglob("*") if path.name.startswith("multitalk-")]
    for _, told in platform.progress("job-stopped"):
        assert set(told) == {"percent", "stage", "step", "steps", "window", "windows", "seconds_left", "warnings"}
    # One a second is sent; when each arrives is the machine's.
    assert len(platform.progress("job-term")) <= 1 + took
    for posts in platform.posts.values():
        results = ["status" in post for _, post in posts]
        assert results == sorted(results, reverse=True), "progress came after the result"
    written = context(log)
    assert {"job-health", "job-selftest", "job-video", "job-term"} <= {line["requestId"] for line in written}
    text = log.read_text("utf-8")
    assert "hf_sentinel" not in text
    assert "Handler output" not in text
    assert "Heartbeat Sent" not in text
    assert any("job-term" in query.get("job_id", ()) for _, query in platform.pings)


@pytest.mark.slow
def test_an_idle_worker_ends_at_once(platform: Platform, tmp_path: Path) -> None:
    with working(platform, ["model=tiny"], log=tmp_path / "log") as process:
        assert platform.first_poll.wait(PATIENCE)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        ended(process, platform)
        assert process.returncode == 0
        # Not the up to 90 s of the SDK's questions.
        assert time.monotonic() - began < 30


def test_missing_weights_end_the_worker_with_the_command_that_fetches_them(platform: Platform, tmp_path: Path) -> None:
    log = tmp_path / "log"
    overrides = ["model=multitalk", "recipe=none", "device=cpu"]
    with working(platform, overrides, log=log, MODEL_PATH=str(tmp_path / "models")) as process:
        assert process.wait(PATIENCE) == 1
        complaint = next(query for _, query in platform.pings if "status" in query)
        assert complaint["check"] == ["multitalk_weights"]
        assert "multitalk models pull --preset multitalk-int8 " in complaint["reason"][0]
        ended(process, platform)
    assert not platform.first_poll.is_set()


@pytest.mark.parametrize(
    ("job", "status", "answer"),
    [
        ({"action": "health"}, 0, {"error": None}),
        ({"prompt": "x", "num_frames": 100_000}, 3, {"error_code": "out_of_range", "field": "num_frames"}),
    ],
)
def test_one_job_is_done_without_a_platform_and_its_answer_is_printed(
    job: dict[str, Any], status: int, answer: dict[str, Any], tmp_path: Path
) -> None:
    words = ["model=tiny", "--test-input", json.dumps({"input": job})]
    known = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    done = subprocess.run(
        [sys.executable, "-m", "engine", "runpod", *words],
        env=known,
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == status, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(b"{")]
    found = json.loads(line)
    assert {key: found.get(key) for key in answer} == answer


def sharers(worker: int) -> list[int]:
    """Return the processes that a worker started to share its videos."""
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return [int(child) for child in children if b"engine.cli.run" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="children are looked up in /proc")
def test_a_worker_shares_its_videos_with_a_process_it_started_and_asks_for_another_when_that_is_lost(
    platform: Platform, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    overrides = ["model=tiny", "device=cpu", "parallel=guidance", "parallel.processes=2", "entrypoint.grace=1"]
    with working(platform, overrides, log=log, OMP_NUM_THREADS="1") as process:
        platform.send("job-video", example(turbo=False, sampling_steps=2))
        video = platform.result("job-video", PATIENCE)
        assert base64.b64decode(video["output"]["video_base64"])[4:8] == b"ftyp", video
        # Two steps of three passes.
        assert video["output"]["forwards"] == 2 * 3

        (other,) = sharers(process.pid)
        os.kill(other, signal.SIGKILL)
        platform.send("job-lost", example(turbo=False, sampling_steps=2, seed=7))
        lost = platform.result("job-lost", PATIENCE)
        assert "another process of this job ended" in json.dumps(lost)
        # The platform stops this worker and starts a new one.
        assert lost["stopPod"] is True


def test_a_worker_with_one_device_has_nothing_to_share() -> None:
    service = EngineService(["model=tiny", "device=cpu", "parallel=ulysses", "entrypoint=runpod"])

    with pytest.raises(ConfigError, match="needs two devices or more, and this machine has 1"), service.lead():
        pass

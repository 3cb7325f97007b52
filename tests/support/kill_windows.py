"""Kill jobs of five windows at random points and let them continue: `kill_windows.py [ROUNDS] [SEED] [WAY ...]`.

Four ways: the command `generate --resume`, which is typed again; a worker of an endpoint, whose job is queued again; a
batch, which is started again or loses a worker; and two processes with `parallel=ulysses`. Prints one JSON object;
exits with 1 if a video has other bytes than one that was never interrupted, if more than one window was made twice, or
if anything is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from running_endpoint import running

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "engine" / "examples"
WINDOWS = 5
FRAMES = 21
MODEL = (
    *("model=tiny", "source=packaged", "model.window=5", "continuation.frames=1", "continuation.blend=2"),
    *("device=cpu", "sampler=turbo"),
)
WAYS = ("generate", "worker", "batch", "ulysses")
JOB: dict[str, Any] = {
    "reference_image": str(EXAMPLES / "one.png"),
    "audio_1": str(EXAMPLES / "one.flac"),
    "prompt": "A woman speaks.",
    "num_frames": FRAMES,
    "fps": 25,
    "turbo": True,
    "output": {"filename": "film.mp4"},
}
#: Seconds: longer than anything takes on a busy machine.
PATIENCE = 900
#: The longest wait after the window that is waited for, in seconds: about as long as a window takes, and after the last
#: window as long as writing and delivering.
WAIT, LAST_WAIT = 0.6, 0.25


@dataclass
class Round:
    """What happened to one job."""

    way: str
    seed: int
    #: Killed so many seconds after so many finished windows.
    after: int
    seconds: float
    victim: str = ""
    killed: bool = False
    #: Windows that were made in all, and that the last attempt took over.
    made: int = 0
    taken_over: int | None = None
    #: Whether a worker was killed after its answer, so that the next video on the volume removes the states.
    swept_later: bool = False
    problems: list[str] = field(default_factory=list)


class Home:
    """The folders of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.films, self.states, self.temporary = folder / "films", folder / "states", folder / "tmp"
        self.trace = folder / "trace"
        self.temporary.mkdir()
        self.trace.touch()
        self.environment = {
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "WINDOW_TRACE": str(self.trace),
            "PYTHONPATH": os.pathsep.join([str(_plugin(folder)), os.environ.get("PYTHONPATH", "")]),
        }
        self.errors = (folder / "stderr").open("ab")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        environment = os.environ | self.environment
        out = (self.folder / "stdout").open("ab")
        return subprocess.Popen(words, env=environment, stdout=out, stderr=self.errors, start_new_session=True)

    @property
    def windows(self) -> int:
        """Finished windows so far, of all attempts."""
        return len(self.trace.read_text().splitlines())

    def digest(self) -> str:
        film = self.films / "film.mp4"
        return hashlib.sha256(film.read_bytes()).hexdigest() if film.exists() else "no film"

    def left(self) -> list[str]:
        """Return the files that should not be there."""
        # The folder of a process that was killed is removed by the next one, which may have begun before its end.
        found = [path for path in self.states.rglob("*") if path.is_file()]
        found += [path for path in self.films.glob("*") if path.name not in ("film.mp4", "jobs.results.jsonl")]
        return [str(path.relative_to(self.folder)) for path in found]


def _plugin(folder: Path) -> Path:
    """Install the plugin that notes windows, for processes with the returned folder in PYTHONPATH."""
    site = folder / "site"
    about = site / "window_trace-1.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(HERE / "window_trace" / "window_trace.py", site)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: window-trace\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[multitalk_engine]\nwindow-trace = window_trace\n")
    return site


# --- the four ways ----------------------------------------------------------------------------------------------------


def _words(home: Home, *, resume: bool) -> list[str]:
    states = ["--resume", f"resume.folder={home.states}"] if resume else []
    return [
        *("generate", "--image", JOB["reference_image"], "--audio", JOB["audio_1"], "--prompt", JOB["prompt"]),
        *("--frames", str(FRAMES), "--output", str(home.films / "film.mp4"), "--json", *MODEL, *states),
    ]


def _generate(home: Home, found: Round | None) -> None:
    command = [sys.executable, "-m", "engine", *_words(home, resume=found is not None)]
    _command(home, found, command)


def _ulysses(home: Home, found: Round | None) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [*torchrun, "-m", "engine", *_words(home, resume=found is not None), "parallel=ulysses"]
    _command(home, found, command, victims=("all", "first", "second"))


def _command(home: Home, found: Round | None, command: Sequence[str], victims: Sequence[str] = ("all",)) -> None:
    process = home.start(*command)
    if found is not None:
        wait_for(home, found, process)
        found.victim = random.Random(found.seed).choice(victims)
        found.killed = process.poll() is None
        kill(process, found.victim)
        if process.wait(PATIENCE) == 0:
            # It was done, or the victim was.
            found.taken_over = _taken_over(home)
            return
        delivered = home.digest() != "no film"
        process = home.start(*command)
    else:
        delivered = False
    status = process.wait(PATIENCE)
    if found is None:
        assert status == 0, (home.folder / "stderr").read_text()[-2000:]
        return
    if delivered:
        # A video of that name is not replaced; the state, if it was not removed yet, is swept with the others.
        shutil.rmtree(home.states, ignore_errors=True)
        found.taken_over = WINDOWS
    elif status:
        found.problems.append(f"the next run ended with {status}")
    else:
        found.taken_over = _taken_over(home)


def _batch(home: Home, found: Round | None) -> None:
    jobs = home.folder / "jobs.jsonl"
    jobs.write_text(json.dumps({"id": "film", "input": JOB}) + "\n")
    states = ["--resume", f"resume.folder={home.states}"] if found is not None else []
    command = [sys.executable, "-m", "engine", "batch", str(jobs), *MODEL, f"sink.folder={home.films}", *states]
    process = home.start(*command)
    if found is not None:
        wait_for(home, found, process)
        found.victim = random.Random(found.seed).choice(("all", "worker"))
        found.killed = process.poll() is None
        kill(process, found.victim)
    if process.wait(PATIENCE):
        process = home.start(*command)
        assert process.wait(PATIENCE) == 0, (home.folder / "stderr").read_text()[-2000:]
    answers = [json.loads(line) for line in (home.films / "jobs.results.jsonl").read_text().splitlines()]
    if found is not None:
        found.taken_over = answers[-1].get("output", {}).get("windows_taken_over")
        if answers[-1]["status"] != "done":
            found.problems.append(str(answers[-1].get("error")))


def _worker(home: Home, found: Round | None) -> None:
    access = ("access.schemes=[path]", "sink=disk", f"sink.folder={home.films}")
    states = (f"resume.folder={home.states}",) if found is not None else ("resume.folder=null",)
    command = [sys.executable, "-m", "engine", "runpod", *MODEL, *access, *states]
    environment = home.environment | {"MULTITALK_LOG_LEVEL": "ERROR"}

    def call(url: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=60) as answer:
            return json.load(answer)

    with running(worker=command, environment=environment) as endpoint:
        job = call(endpoint.url("run"), {"input": JOB})["id"]
        if found is not None:
            until = time.monotonic() + PATIENCE
            while home.windows < found.after and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(found.seconds)
            found.victim = "worker"
            found.killed = call(endpoint.url(f"status/{job}"))["status"] != "COMPLETED"
            for worker in endpoint.ask(lambda: list(endpoint.endpoint.pool.workers.values())):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.process.pid, signal.SIGKILL)
        until = time.monotonic() + PATIENCE
        while (status := call(endpoint.url(f"status/{job}")))["status"] not in ("COMPLETED", "FAILED", "CANCELLED"):
            assert time.monotonic() < until, status
            time.sleep(0.05)
        if found is not None:
            found.taken_over = status.get("output", {}).get("windows_taken_over")
            if status["status"] != "COMPLETED":
                found.problems.append(str(status)[:500])
        else:
            assert status["status"] == "COMPLETED", status


# --- what they share --------------------------------------------------------------------------------------------------


def wait_for(home: Home, found: Round, process: subprocess.Popen[bytes]) -> None:
    """Wait until the point of a round."""
    while home.windows < found.after and process.poll() is None:
        time.sleep(0.002)
    time.sleep(found.seconds)


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    """Kill a process with its children, or only its first or second one, or the last one that computes."""
    if victim == "all":
        with contextlib.suppress(ProcessLookupError):
            for child in _children(process):
                child.kill()
            process.kill()
        return
    children = [child for child in _children(process) if child.is_running()]
    computing = sorted(children, key=lambda child: child.create_time())
    if computing:
        chosen = computing[0] if victim == "first" else computing[-1]
        with contextlib.suppress(psutil.NoSuchProcess):
            chosen.kill()


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(process.pid).children(recursive=True))
    return []


def _taken_over(home: Home) -> int | None:
    for line in reversed((home.folder / "stdout").read_text().splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["windows_taken_over"])
    return None


MAKE = {"generate": _generate, "worker": _worker, "batch": _batch, "ulysses": _ulysses}


def reference(way: str) -> str:
    """Return the SHA-256 of a video that was never interrupted."""
    with _home() as home:
        MAKE[way](home, None)
        assert home.windows == WINDOWS, home.windows
        return home.digest()


def run_round(way: str, seed: int, digest: str) -> Round:
    """Kill one job at a point that `seed` chooses, let it continue, and look at what came of it."""
    chance = random.Random(f"{way} {seed}")
    after = seed % (WINDOWS + 1)
    found = Round(way, seed, after, round(chance.uniform(0, LAST_WAIT if after == WINDOWS else WAIT), 4))
    with _home() as home:
        MAKE[way](home, found)
        found.made = home.windows
        if home.digest() != digest:
            found.problems.append("other bytes than the video that was never interrupted")
        if not WINDOWS <= found.made <= WINDOWS + 1:
            found.problems.append(f"{found.made} windows were made")
        if found.made == WINDOWS and not found.taken_over and list(home.states.glob("*/delivered")):
            found.swept_later = True
            shutil.rmtree(home.states)
        if left := home.left():
            found.problems.append(f"left: {left}")
        if found.problems and "KEEP" in os.environ:
            shutil.copytree(home.folder, Path(os.environ["KEEP"]) / f"{way}-{seed}", dirs_exist_ok=True)
    return found


@contextlib.contextmanager
def _home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="kill-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        try:
            yield home
        finally:
            home.errors.close()


def main(rounds: int = 60, seed: int = 1, ways: Sequence[str] = WAYS) -> int:
    """Run so many rounds, a share of each way, and print what they found."""
    found: list[Round] = []
    for way in ways:
        digest = reference(way)
        for number in range(seed, seed + rounds // len(ways)):
            found.append(run_round(way, number, digest))
            print(found[-1], file=sys.stderr, flush=True)
    report: dict[str, Any] = {"rounds": len(found), "windows": WINDOWS}
    for way in ways:
        mine = [one for one in found if one.way == way]
        report[way] = {
            "rounds": len(mine),
            "killed": sum(one.killed for one in mine),
            "continued": sum(bool(one.taken_over) for one in mine),
            "windows_taken_over": sum(one.taken_over or 0 for one in mine),
            "windows_made_twice": sum(max(0, one.made - WINDOWS) for one in mine),
            "most_made_twice": max(max(0, one.made - WINDOWS) for one in mine),
            "swept_later": sum(one.swept_later for one in mine),
            "problems": sum(bool(one.problems) for one in mine),
        }
    wrong = [asdict(one) for one in found if one.problems]
    print(json.dumps(report | {"problems": wrong, "found": [asdict(one) for one in found]}))
    return 1 if wrong else 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    chosen = [word for word in sys.argv[1:] if not word.isdigit()]
    rounds, seed = [*numbers, *(60, 1)[len(numbers) :]][:2]
    sys.exit(main(rounds, seed, chosen or WAYS))

"""All of it together, as a person sees it: the clients, the endpoint, its worker and a store. `nox -s show` runs it.

Three jobs of two people: one is followed to its end, one is cancelled, and of one the worker is killed. What was seen
is printed as JSON; the exit status is 1 where anything of it was not as it should be.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import boto3
import psutil
import runpod
from store import KEYS, store_environment, storing

from engine.client import Client, Job, Status, file

#: Seconds: longer than anything takes on a busy machine.
PATIENCE = 1800
BUCKET = "films"
Sight = dict[str, Any]


def main() -> int:
    """Run the three jobs and print what was seen."""
    examples = files("engine") / "examples"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default=str(examples / "two.png"))
    parser.add_argument("--audio", nargs=2, default=[str(examples / "left.flac"), str(examples / "right.flac")])
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    job = {
        "reference_image": file(asked.image),
        "audio_1": file(asked.audio[0]),
        "audio_2": file(asked.audio[1]),
        "prompt": "Two people talk.",
        "num_frames": asked.frames,
        "sampling_steps": asked.steps,
        "fps": 25,
        "seed": 7,
    }
    # RunPod's SDK lets every logger of the process speak, and httpx2 has a line for each look at a job.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # Neither client may look for loopback behind a proxy.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    with tempfile.TemporaryDirectory(prefix="show-") as name:
        folder = Path(name)
        with storing(folder / "store.log", {BUCKET: "us-east-1"}) as port, serving(folder, port) as (url, endpoint):
            seen = show(job, url, endpoint, Store(port), folder)
            processes = [psutil.Process(endpoint.pid), *psutil.Process(endpoint.pid).children(recursive=True)]
        seen["left"] = {
            "temporary": sorted(str(path.relative_to(folder)) for path in (folder / "tmp").rglob("*")),
            "volume": sorted(str(path.relative_to(folder)) for path in (folder / "volume").rglob("*")),
            "processes": sum(process.is_running() for process in processes),
            "status": endpoint.returncode,
        }
        found = check(seen)
        if not all(found.values()):
            sys.stderr.write((folder / "endpoint.log").read_text("utf-8")[-8000:])
    print(json.dumps({"show": "endpoint", **seen, "checks": found}, indent=1))
    return 0 if all(found.values()) else 1


def show(job: Mapping[str, Any], url: str, endpoint: subprocess.Popen[str], store: Store, folder: Path) -> Sight:
    """Run the jobs and return what was seen of each."""
    runpod.endpoint_url_base = f"{url}/v2"
    stock = runpod.Endpoint("local", api_key="any")
    with Client("local", api_key="any", base_url=f"{url}/v2") as client:
        began = time.monotonic()
        # Answered before the weights are there; this one waits for the process alone.
        health = stock.run_sync({"action": "health"}, timeout=PATIENCE)
        seen: Sight = {"health": {"seconds": round(time.monotonic() - began, 1), "status": health["status"]}}

        first = stock.run(dict(job))
        seen["followed"] = follow(first)

        second = stock.run({**job, "num_frames": 201, "sampling_steps": 100})
        at_work(client.job(second.job_id))
        seen["cancelled"] = cancel(second)

        # The first one's twin: what is made after all has to be the same video.
        third = client.submit(job)
        killed = kill(endpoint, at_work(third))
        seen["killed"] = {"worker": killed, "moments": [moment(status, began) for status in third.follow()]}

        seen["workers"] = [client.job(one).status().worker for one in (first.job_id, third.id)]
        seen["videos"] = {
            "followed": store.compare(first.output(), fetch(client.job(first.job_id), folder)),
            "killed": store.compare(third.wait(), fetch(third, folder)),
        }
        seen["health"]["jobs"] = stock.health()["jobs"]
    return seen


def check(seen: Sight) -> dict[str, bool]:
    """Return what had to be so, and whether it was."""
    followed, killed, videos = seen["followed"], seen["killed"], seen["videos"]
    percents = [told["percent"] for told in followed["progress"]]
    return {
        "a job is followed to its end": list(followed["states"])[-1] == "COMPLETED" and len(percents) > 1,
        "its progress only grows": percents == sorted(percents),
        "a cancelled job is over at once": seen["cancelled"]["states"] == ["CANCELLED", "CANCELLED"],
        "the worker that let go of it takes the next": killed["worker"] == seen["workers"][0],
        "a killed worker's job is done by another": killed["moments"][-1]["state"] == "COMPLETED"
        and seen["workers"][1] not in (None, killed["worker"]),
        "that is the one retry": seen["health"]["jobs"]["retried"] == 1,
        "each video is what the store has": all(video["same"] for video in videos.values()),
        "both are the same video": len({video["sha256"] for video in videos.values()}) == 1,
        "nothing is left": seen["left"] == {"temporary": [], "volume": [], "processes": 0, "status": 0},
    }


# --- what is done -----------------------------------------------------------------------------------------------------


def follow(job: Any) -> Sight:
    """Ask the stock client until the job is over; return the seconds of each state, and each progress."""
    began = time.monotonic()
    states: dict[str, float] = {}
    progress: list[Sight] = []
    while True:
        # In this order: what was the output while it still runs is progress.
        now = job.output()
        state = job.status()
        states.setdefault(state, round(time.monotonic() - began, 1))
        if state not in ("IN_QUEUE", "IN_PROGRESS"):
            answer = dict(job.output() or {})
            # A presigned URL is a key.
            answer.pop("video_url", None)
            return {"states": states, "progress": progress, "answer": answer}
        if state == "IN_PROGRESS" and now and now not in progress:
            progress.append(now)
        time.sleep(0.2)


def at_work(job: Job) -> Status:
    """Follow the job until frames are being made. Raises RuntimeError if it ends before."""
    for status in job.follow(shortest=0.1, longest=0.5):
        if not status.final and (status.progress or {}).get("stage") == "denoise":
            return status
    raise RuntimeError(f"the job was {status.state} before anything could be done to it: ask for more --steps")


def cancel(job: Any) -> Sight:
    """Withdraw the job with the stock client."""
    began = time.monotonic()
    told = job.cancel(timeout=60)
    return {"states": [told["status"], job.status()], "seconds": round(time.monotonic() - began, 2)}


def kill(endpoint: subprocess.Popen[str], status: Status) -> str:
    """Kill the worker that has the job, as a machine that fails does; return its id."""
    workers = psutil.Process(endpoint.pid).children()
    (process,) = [worker for worker in workers if worker.environ().get("RUNPOD_POD_ID") == status.worker]
    process.send_signal(signal.SIGKILL)
    return str(status.worker)


def fetch(job: Job, folder: Path) -> Path:
    """Download the job's video, which the client compares with the answer."""
    return job.download(folder / f"{job.id}.mp4").path


def moment(status: Status, began: float) -> Sight:
    """Return what is told of one look at a job."""
    progress = status.progress or {}
    told = {name: progress[name] for name in ("percent", "stage") if name in progress}
    return {"seconds": round(time.monotonic() - began, 1), "state": status.state, "worker": status.worker, **told}


class Store:
    """The bucket, asked with boto3 as anybody would."""

    def __init__(self, port: int) -> None:
        self._client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id=KEYS["BUCKET_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["BUCKET_SECRET_ACCESS_KEY"],
        )

    def compare(self, answer: Mapping[str, Any], path: Path) -> Sight:
        """Return a fetched video's digest, and whether it is the one that the store verified and the answer tells."""
        digest = hashlib.sha256(path.read_bytes())
        keys = [found["Key"] for found in self._client.list_objects_v2(Bucket=BUCKET)["Contents"]]
        (key,) = [key for key in keys if key in answer["video_url"]]
        kept = self._client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
        digests = {
            digest.hexdigest(),
            base64.b64decode(kept["ChecksumSHA256"]).hex(),
            answer["sha256"],
        }
        return {"sha256": digest.hexdigest(), "bytes": kept["ContentLength"], "key": key, "same": len(digests) == 1}


@contextmanager
def serving(folder: Path, port: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `multitalk endpoint` with the store at `port` while the block runs; yield its address and its process."""
    for name in ("tmp", "volume"):
        (folder / name).mkdir()
    known = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BUCKET_", "S3_"))}
    environment = {
        **known,
        **store_environment(port, BUCKET),
        "MODEL_PATH": str(folder / "volume"),
        "TMPDIR": str(folder / "tmp"),
        # They ask for 8.8.8.8, and measure the machine, not us.
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
    }
    flags = ["--port", "0", "--execution-timeout", str(PATIENCE), "--start-timeout", str(PATIENCE), "--grace", "120"]
    command = [sys.executable, "-m", "engine", "endpoint", "model=tiny", *flags]
    with (folder / "endpoint.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, (folder / "endpoint.log").read_text("utf-8")
            yield url, process
        finally:
            process.terminate()
            try:
                process.wait(300)
            finally:
                process.kill()


if __name__ == "__main__":
    sys.exit(main())

"""A worker on the SDK's own loop that publishes a real video window by window, each one when the test allows it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import runpod.serverless
from segments import pictures, video

from engine.data import Frames, Preview, Progress
from engine.data.live import Live
from engine.files.live import DiskLiveFolder
from engine.media.thumbnails import jpeg_strip
from engine.serving.worker.progress_sender import ProgressSender
from engine.serving.worker.sdk import poster, streamer
from engine.stages.publish import Publisher

#: Frames of the windows, at 25 per second.
COUNTS = (50, 25, 25)


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Make windows; window n + 1 is made once the file GATE-PROMPT-n exists. The prompt "fail" makes only one."""
    prompt, job_id = job["input"]["prompt"], job["id"]
    gate = f"{os.environ['LIVE_GATE']}-{prompt}"
    post = poster(job)
    assert post is not None
    sender = ProgressSender(post, stream=streamer(job), every=0.05)
    place = DiskLiveFolder(
        [Path(os.environ["MULTITALK_LIVE_FOLDER"]) / job_id / "attempt-of-16-ch"],
        url=f"{os.environ['MULTITALK_LIVE_URL']}/{job_id}/attempt-of-16-ch",
    )
    window = 0

    def report(live: Live) -> None:
        strip = Preview(jpeg_strip(pictures(50 * window, 4), 160), 4, window + 1)
        sender.report(Progress("denoise", window + 1, len(COUNTS), 1, 5, window / 3, live=live, preview=strip))

    with tempfile.TemporaryDirectory() as folder:
        with video(Path(folder) / "a.mp4", 25.0, COUNTS) as writer, Publisher(place, writer, 2, report=report) as live:
            for window, count in enumerate(COUNTS):
                while window and not Path(f"{gate}-{window}").exists():
                    time.sleep(0.02)
                if prompt == "fail" and window:
                    raise RuntimeError("window 2 is broken")
                writer.add(Frames(pictures(writer.frames, count), 25.0))
                live.add(writer.end_segment(last=window == len(COUNTS) - 1))
            artifact = writer.finish()
        content = artifact.path.read_bytes()
    sender.close()
    return {
        "video_base64": base64.b64encode(content).decode(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "live": {"playlist": live.address},
        "seed": 42,
        "frames": artifact.frames,
        "fps": 25,
        "seconds": artifact.seconds,
        "warnings": [],
    }


async def handler(job: dict[str, Any]) -> Any:
    return await asyncio.to_thread(make, job)


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})

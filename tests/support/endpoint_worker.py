"""A small worker on the SDK's own loop, for tests: what it does is what the job asks. `stream` makes it a generator."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import runpod.serverless

#: The judgement of two windows; the second one jumps and was made twice.
REPORT = {
    "below": [2],
    "retaken": [2],
    "windows": [
        {"window": 1, "start": 0.0, "end": 3.24, "figures": {"seam": None, "sharpness": 0.81234}, "below": []}
        | {"unknown": {"seam": "the first window"}, "badness": 0.0, "attempts": []},
        {"window": 2, "start": 3.24, "end": 6.12, "figures": {"seam": 7.5, "sharpness": 0.8}, "below": ["seam"]}
        | {
            "unknown": {},
            "badness": 1.5,
            "attempts": [
                {"seed": None, "badness": 2.0, "below": ["seam"], "kept": False},
                {"seed": 7, "badness": 1.5, "below": ["seam"], "kept": True},
            ],
        },
    ],
    "limits": {"seam": {"least": None, "most": 3.0}, "sharpness": {"least": 0.6, "most": 1.5}},
    "unknown": {},
    "seconds": 0.1,
}


async def handler(job: dict[str, Any]) -> Any:
    asked = job["input"]
    match asked.get("do", "talk" if "reference_image" in asked else asked.get("action", "echo")):
        case "talk":
            runpod.serverless.progress_update(job, {"percent": 50, "stage": "denoise", "step": 5, "steps": 10})
            if "TALK_GATE" in os.environ:
                await gate(os.environ["TALK_GATE"])
            film = b"\x00\x00\x00\x18ftypmp42" * 100
            return {
                "video_base64": base64.b64encode(film).decode(),
                "sha256": hashlib.sha256(film).hexdigest(),
                "seed": asked.get("seed", 42),
                "frames": 312 if asked.get("num_frames") == "auto" else asked.get("num_frames", 100),
                "fps": 8,
                "seconds": 12.5,
                "report": REPORT,
                "warnings": ["this is no video"],
            }
        case "capabilities":
            return {"model": "tiny", "resolutions": ["large", "small"], "resolution": "small", "fps": 25.0}
        case "tell":
            runpod.serverless.progress_update(job, {"percent": 50, "stage": "denoise"})
            await gate(asked["gate"])
        case "hold":
            try:
                Path(asked["gate"] + ".begun").touch()
                await gate(asked["gate"])
            except asyncio.CancelledError:
                Path(asked["gate"] + ".stopped").touch()
                raise
        case "block":
            time.sleep(60)
        case "die":
            if "gate" in asked:
                await gate(asked["gate"])
            # Once, if it is told where to note that it did.
            note = asked.get("note")
            if note is None or not Path(note).exists():
                if note is not None:
                    Path(note).write_text(tempfile.mkdtemp(), "utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
        case "big":
            return {"text": "x" * asked["size"]}
        case "fail":
            return {
                "error": "num_frames: too many",
                "error_code": "out_of_range",
                "field": "num_frames",
                "hint": "fewer",
            }
        case "raise":
            raise ValueError("a bug")
        case "lose":
            return {"answer": {1, 2}}
        case "refresh":
            return {"refresh_worker": True, "pid": os.getpid()}
    return {"pid": os.getpid(), "asked": asked, "s3Config": job.get("s3Config")}


async def pieces(job: dict[str, Any]) -> AsyncIterator[Any]:
    for number in range(job["input"]["count"]):
        yield {"number": number}


async def gate(path: str) -> None:
    while not Path(path).exists():
        await asyncio.sleep(0.02)


runpod.serverless.start(
    {"handler": pieces, "return_aggregate_stream": True} if "stream" in sys.argv else {"handler": handler}
)

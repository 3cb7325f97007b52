"""Workers without an engine, which do what a job's prompt says: for tests with real processes that are quick."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import Cancelled, SourceError


class WordWorker:
    """Implements `components.JobWorker`; `folder` is where its processes leave what a test looks at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopped = threading.Event()

    def start(self) -> None:
        with (self.folder / "starts").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if (self.folder / "no-weights").exists():
            raise SourceError("no weights", field="source", hint="get them")
        if (self.folder / "no-memory").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.folder / "slow").exists():
            (self.folder / "starting").touch()
            while (self.folder / "slow").exists() and not self.stopped.wait(0.02):
                pass
        if self.stopped.is_set():
            raise Cancelled("load")

    def work(self, job: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        word, _, name = job["input"]["prompt"].partition(" ")
        tell({"percent": 50, "stage": "denoise", "seconds_left": None})
        (self.folder / "temporary").write_text(tempfile.mkdtemp())
        film = self.folder / f"{job['id'].rpartition('-')[0]}.mp4"
        match word:
            case "die":
                film.write_text("half done")
                os.kill(os.getpid(), signal.SIGKILL)
            case "die-once" if not (self.folder / name).exists():
                (self.folder / name).touch()
                film.write_text("half done")
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                (self.folder / name).touch()
                self.stopped.wait(600)
            case "refresh":
                return {"error": "full", "error_code": "out_of_memory", "refresh_worker": True}
        if self.stopped.is_set():
            return {"error": "told to end", "error_code": "worker_stopped"}
        film.write_text(word)
        return {
            "video_path": film.name,
            "process": os.getpid(),
            "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "folder": str(Path.cwd()),
        }

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        with (self.folder / "ends").open("a") as file:
            file.write(f"{os.getpid()}\n")

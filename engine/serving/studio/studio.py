"""The studio without its page: makes videos of forms, follows them, and keeps them in the history."""

from __future__ import annotations

import logging
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

from engine.client import ClientError
from engine.client.answers import Status
from engine.errors import EngineError
from engine.redaction import scrub
from engine.serving.studio.backend import Backend
from engine.serving.studio.fields import FieldError
from engine.serving.studio.form import SEEDS, Form, form_field, job_input, read_form
from engine.serving.studio.history import RUNNING, Entry, History
from engine.serving.studio.snippets import snippets

_LOG = logging.getLogger(__name__)
#: Names of the files of a published video (`engine.stages.publish`).
LIVE = re.compile(r"index\.m3u8|init[a-z0-9-]*\.mp4|part-[0-9]{1,9}[a-z0-9-]*\.m4s")
#: Fields of an answer that the history keeps.
_KEPT = ("seed", "frames", "fps", "seconds", "forwards", "warnings", "report", "timings", "windows_taken_over")
_WORDS = {
    "IN_QUEUE": "Waiting",
    RUNNING: "Running",
    "COMPLETED": "Done",
    "FAILED": "Failed",
    "CANCELLED": "Cancelled",
    "TIMED_OUT": "Timed out",
    "STOPPED": "Stopped",
}


class Studio:
    """One studio: a backend and a history. All methods may be called from any thread."""

    def __init__(self, backend: Backend, history: History, *, every: float = 0.4) -> None:
        """Follow the jobs at a worker elsewhere that an earlier studio started; `every`: seconds between two looks."""
        self.backend, self.history, self._every = backend, history, every
        self._statuses: dict[str, Status] = {}
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        for entry in history.newest(1000):
            if entry.final:
                continue
            if entry.remote and backend.endpoint is not None:
                self._follow(entry.id, entry.remote)
            else:
                history.update(entry.id, state="STOPPED", error="The studio was stopped while it made this video.")

    def close(self) -> None:
        """Stop the jobs of this process, and following."""
        self._stopped.set()
        self.backend.close()
        for thread in self._threads:
            thread.join(5)

    def make(self, form: Form) -> str:
        """Start a video and return the id of its entry. Raises FieldError."""
        # A random seed is drawn here: with -1 an interrupted video could not continue.
        seed = secrets.randbelow(SEEDS)
        # Problems are found before files are copied.
        self._input(form, lambda _, name: name, seed)
        try:
            entry = self.history.add(form.settings(), form.media(), model=str(self._capability("model", "")))
            kept = read_form(form.settings(), self.history.files(entry))
            names = {path: Path(path).name for path in kept.media().values()}
            shown = self._input(kept, lambda path, _: names[str(path)], seed)
            entry = self.history.update(entry.id, job=shown)
        except OSError as error:
            raise FieldError("", f"The history cannot be written: {error.strerror or 'unknown error'}.") from error
        return self._start(entry, kept, seed)

    def retake(self, name: str, window: int, seed: int | None = None) -> str:
        """Make a window (from 1) of a finished video and all after it again, as a new entry. Raises FieldError."""
        entry = self.history.get(name)
        windows = len(((entry.output if entry else {}).get("report") or {}).get("windows", ()))
        if entry is None or entry.state != "COMPLETED" or not self.backend.retakes or entry.of:
            raise FieldError("", "This video has no windows that can be made again.")
        if not 1 <= window <= windows:
            raise FieldError("", f"Window {window}: the video has windows 1 to {windows}.")
        more = {"model": entry.model, "of": name, "window": window}
        made = self.history.add(entry.form, self.history.files(entry), **more)
        made = self.history.update(made.id, job=dict(entry.job))
        kept = read_form(made.form, self.history.files(made))
        return self._start(made, kept, int(entry.job["seed"]), retake=(window, seed))

    def cancel(self, name: str) -> None:
        """Cancel the job of an entry; one that has ended does not change. Raises ClientError."""
        entry = self.history.get(name)
        if entry is not None and not entry.final:
            self.backend.cancel(entry.remote or name)

    def remove(self, name: str) -> None:
        """Remove an entry that has ended, with its video."""
        entry = self.history.get(name)
        if entry is not None and entry.final:
            self.history.remove(name)

    def plan(self, form: Form) -> Mapping[str, Any]:
        """Return the plan of a form as `action: plan` answers it. Raises FieldError, also for what the worker says."""
        try:
            with self.history.inbox(form) as kept:
                answer = self.backend.plan(self._input(kept, self.backend.address, None))
        except ClientError as error:
            raise FieldError("", _sentence(scrub(str(error)))) from error
        if "error" in answer:
            raise self._worker_error(answer, form)
        return answer

    def rate(self, model: str, resolution: str) -> float | None:
        """Return the seconds per forward of the newest video of this model and resolution; None: there is none."""
        for entry in self.history.newest():
            if entry.state != "COMPLETED" or entry.model != model or not entry.seconds or entry.of:
                continue
            same = (entry.form.get("resolution") or self._capability("resolution", "")) == resolution
            if same and entry.output.get("forwards") and not entry.output.get("windows_taken_over"):
                return float(entry.seconds) / int(entry.output["forwards"])
        return None

    def view(self, name: str) -> dict[str, Any] | None:
        """Return what the page shows of an entry, without any path of this machine; None if there is none."""
        entry = self.history.get(name)
        if entry is None:
            return None
        status = self._statuses.get(name)
        running = not entry.final
        state = status.state if running and status is not None and not status.final else entry.state
        progress = status.output if running and status is not None and isinstance(status.output, Mapping) else {}
        live: Mapping[str, Any] = progress.get("live") or {}
        output = entry.output
        shown: dict[str, Any] = {
            "id": name,
            "state": state,
            "word": _WORDS.get(state, state),
            "final": entry.final,
            "title": str(entry.form.get("prompt") or "")[:200],
            "created": entry.created,
            "percent": progress.get("percent"),
            "detail": _detail(progress) if running else _summary(entry),
            "preview": (progress.get("preview") or {}).get("image"),
            "live": {"seconds": live.get("seconds")} if live.get("playlist") else None,
            "warnings": progress.get("warnings") or output.get("warnings") or [],
            "error": entry.error,
            "field": entry.field,
            "video": entry.state == "COMPLETED",
            "thumb": self.history.path(name, "thumb.jpg").is_file(),
            "report": output.get("report"),
            "retakes": self.backend.retakes and entry.state == "COMPLETED" and not entry.of,
            "elsewhere": self.backend.endpoint is not None,
            "of": entry.of,
            "window": entry.window,
        }
        if entry.job:
            shown["code"] = snippets(entry.job, self.backend.overrides, self.backend.endpoint)
        return shown

    def live_file(self, name: str, file: str) -> bytes | Path | None:
        """Return a file of a video that is published while it is made; None if there is none.

        It is a path for a job of this process; for one elsewhere it is fetched from the worker's endpoint.
        """
        status, entry = self._statuses.get(name), self.history.get(name)
        playlist = None if status is None else status.playlist
        if playlist is None or entry is None or not LIVE.fullmatch(file):
            return None
        if not entry.remote:
            path = Path(playlist).parent / file
            return path if path.is_file() else None
        address = urlsplit(playlist)
        own = urlsplit(self.backend.endpoint or "")
        # The endpoint may know itself by another name; nothing else is asked for what a worker's answer names.
        if not address.path.startswith("/live/"):
            return None
        try:
            answer = httpx2.get(urljoin(f"{own.scheme}://{own.netloc}{address.path}", file), timeout=10)
        except httpx2.HTTPError:
            return None
        return answer.content if answer.is_success else None

    def _input(self, form: Form, address: Callable[[Path, str], str], seed: int | None) -> dict[str, Any]:
        most = self._capability("limits", {}).get("frames")
        rate = float(self._capability("fps", 25.0))
        return job_input(form, address, native_fps=rate, most_frames=most, seed=seed)

    def _capability(self, name: str, default: Any) -> Any:
        try:
            return self.backend.capabilities().get(name, default)
        except ClientError:
            return default

    def _start(self, entry: Entry, form: Form, seed: int, retake: tuple[int, int | None] | None = None) -> str:
        try:
            job = self._input(form, self.backend.address, seed) | {"live": True, "preview": "step"}
            remote = self.backend.submit(entry.id, job, retake=retake)
        except (FieldError, ClientError) as error:
            self.history.remove(entry.id)
            if isinstance(error, FieldError):
                raise
            raise FieldError(form_field(error.field, form), _sentence(scrub(str(error)))) from error
        if remote != entry.id:
            self.history.update(entry.id, remote=remote)
        self._follow(entry.id, remote)
        return entry.id

    def _worker_error(self, answer: Mapping[str, Any], form: Form) -> FieldError:
        text = str(answer.get("error") or "the worker reported no reason")
        if (name := str(answer.get("field") or "")) and form_field(name, form):
            # The field is beside the text, in the person's own words.
            text = text.removeprefix(f"{name}: ")
        return FieldError(form_field(name, form), _sentence(text))

    def _follow(self, name: str, job: str) -> None:
        thread = threading.Thread(target=self._watch, args=(name, job), name="multitalk-follow", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self, name: str, job: str) -> None:
        missed = 0
        while not self._stopped.is_set():
            try:
                status = self.backend.status(job)
                missed = 0
            except EngineError as error:
                missed += 1
                if missed > 20 or getattr(error, "code", "") == "not_found":
                    self._end(name, state="FAILED", error=_sentence(scrub(str(error))))
                    return
                self._stopped.wait(1.0)
                continue
            if status.final:
                self._finish(name, job, status)
                return
            self._statuses[name] = status
            self._stopped.wait(self._every)

    def _finish(self, name: str, job: str, status: Status) -> None:
        entry = self.history.get(name)
        if entry is None:
            return
        output = status.output if isinstance(status.output, Mapping) else {}
        if status.state != "COMPLETED":
            error = self._worker_error(
                {**output, "error": output.get("error") or status.error or ""}, read_form(entry.form)
            )
            failed = status.state != "CANCELLED"
            self._end(name, state=status.state, error=error.text if failed else "", field=error.field if failed else "")
            return
        try:
            self.backend.fetch(job, self.history.path(name, "video.mp4"))
        except (EngineError, OSError) as error:
            text = scrub(str(error)) if isinstance(error, EngineError) else "the video cannot be written to the history"
            self._end(name, state="FAILED", error=_sentence(text))
            return
        kept = {key: output[key] for key in _KEPT if key in output}
        kept["warnings"] = [scrub(str(warning)) for warning in output.get("warnings") or ()]
        self._end(name, state="COMPLETED", output=kept, seconds=status.execution)

    def _end(self, name: str, **changes: Any) -> None:
        try:
            self.history.update(name, **changes)
        except (KeyError, OSError):
            _LOG.warning("an entry of the history cannot be written")


def _sentence(text: str) -> str:
    text = " ".join(text.split()) or "unknown error"
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _detail(progress: Mapping[str, Any]) -> str:
    parts = [] if progress.get("percent") is None else [f"{progress['percent']} %"]
    if progress.get("stage"):
        parts.append(_STAGES.get(str(progress["stage"]), str(progress["stage"])))
    parts += [
        f"{name} {progress[name]} of {progress[f'{name}s']}"
        for name in ("window", "step")
        if progress.get(name) and progress.get(f"{name}s")
    ]
    if progress.get("seconds_left") is not None:
        parts.append(f"about {duration(float(progress['seconds_left']))} left")
    return ", ".join(parts)


_STAGES = {
    "wait": "waiting",
    "load": "loading the model",
    "read": "reading picture and voices",
    "encode": "encoding",
    "denoise": "making pictures",
    "decode": "decoding",
    "write": "writing the video",
}


def _summary(entry: Entry) -> str:
    output = entry.output
    if not output.get("frames"):
        return ""
    took = "" if entry.seconds is None else f", made in {duration(entry.seconds)}"
    return f"{output.get('seconds', 0):.2f} s, {output['frames']} frames, seed {output.get('seed')}{took}"


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 8 s, 3 min, 1.5 h."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

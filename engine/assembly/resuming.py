"""Keeps what the next window needs after each window, and continues from there if an earlier attempt was interrupted.

A failure of the folder never fails the video: it is reported as a warning, and costs what was not kept.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from engine.assembly.carried import arrays_of, carried_of
from engine.assembly.judge_states import Form, form_of, judge_state, restore_judge
from engine.assembly.provenance import Runtime
from engine.assembly.retakes import Retakes
from engine.assembly.state_names import machine_facts, state_name
from engine.assembly.weights import LoadedModel
from engine.config import Config
from engine.config.resume import ResumeConfig, kept_nowhere
from engine.data import Plan, Request, Window
from engine.errors import Cancelled, NotDelivered, RequestError
from engine.files.aside import Aside
from engine.files.lingering import keep_longer, remove_later
from engine.files.states import Entry, Found, State, StateFolder, relatives, sweep_states
from engine.media.segments import Segment, dump, load
from engine.runtime.progress import Meter

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from engine.data import Tally
    from engine.family import Carried
    from engine.stages.behind import WriteBehind

#: Folder of the states on the volume, and in the home folder.
_ON_VOLUME = "resume"
_AT_HOME = "~/.cache/multitalk/resume"
#: Seconds for which a failed job waits for the state of its last window.
_GRACE = 2.0


class Keeping:
    """The states of one request. As a context manager it ends its thread; the states stay until `delivered`."""

    def __init__(
        self,
        resume: ResumeConfig,
        name: str,
        source: str,
        plan: Plan,
        machine: dict[str, Any],
        meter: Meter,
        job: str | None = None,
        publish: Callable[[Segment], None] = lambda _: None,
    ) -> None:
        """Touch nothing yet. `name` is that of the states; `source`: of the video whose windows are made again.

        `publish` gets each segment, also those of an earlier attempt, before it is stored.
        """
        self._publish = publish
        self._job = None if job is None else hashlib.sha256(job.encode("utf-8", "surrogatepass")).hexdigest()
        self.resume = resume
        self._name = name
        self._source = source
        self._plan = plan
        self._machine = machine
        self._meter = meter
        self._aside = Aside("multitalk-resume", resume.seconds)
        #: The folder of the states; None: nothing is kept, or no more.
        self._own: StateFolder | None = None
        self._parent: Path | None = None
        self._state: State | None = None
        self._taken = 0
        self._segments: tuple[Path, ...] = ()
        self._entries: dict[int, Entry] = {}
        self._bytes = 0
        self._pending: dict[int, Callable[[Entry], None]] = {}
        self._running: Future[None] | None = None
        #: What is known of the windows so far; plain JSON values, kept with each state for later attempts.
        self.facts: dict[str, Any] = {}
        #: For the answer: what could not be kept or used, one sentence each.
        self.warnings: list[str] = []

    @property
    def taken(self) -> int:
        """The number of windows that an earlier attempt finished, and that are not made again."""
        return self._taken

    def look(self, into: Path) -> None:
        """Find the newest state, and copy its segments to the folder `into`. Raises Cancelled.

        Raises RequestError if windows are to be made again, and the state before them is not there.
        """
        resume, retake = self.resume, self.resume.retake
        if retake > len(self._plan.windows):
            raise RequestError(
                f"the video has {len(self._plan.windows)} windows, not {retake}", field="--window", hint="see plan"
            )

        def find() -> tuple[Path | None, StateFolder | None, Found, bool]:
            parent = _parent(resume)
            if parent is None:
                return None, None, Found(), False
            own = StateFolder(parent, self._name, keep=resume.keep, beat=self._aside.beat)
            windows = len(self._plan.windows)
            keep_longer(own)
            own.look()
            if not own.keeps and own.delivered() not in (None, self._job):
                # Another job, which has its video already.
                own.remove()
            found = own.find(into, most=windows)
            if found.state is None and retake > 1:
                before = StateFolder(parent, self._source, beat=self._aside.beat)
                found = before.find(into, most=retake - 1, exact=True)
                return parent, own, found, True
            return parent, own, found, False

        try:
            answer = self._aside.wait(self._aside.begin(find), check=self._check)
            self._parent, self._own, found, other = answer
        except OSError as error:
            found, other = Found(), True
            self._warn("the folder of states cannot be used, so nothing is kept of this video", error)
        self.warnings += found.problems
        if retake > 1 and found.state is None:
            raise RequestError(
                f"no state is kept of this video after window {retake - 1}",
                field="--window",
                hint="name their folder (--resume, or resume.folder=…); they stay if the video was made with "
                "resume.keep=true and the same settings, media and versions",
            )
        if found.state is None:
            self._tell_relatives()
        else:
            self._state, self._taken, self._segments = found.state, found.state.windows, found.segments
            self._bytes = sum(entry.bytes for entry in found.state.segments)
            self.facts.update(found.state.facts.get("facts", {}))
            if not other:
                self._entries.update(enumerate(found.state.segments))
            made_on = found.state.facts.get("machine")
            if made_on != self._machine:
                self.warnings.append(
                    f"windows 1 to {self.taken} were made on another machine ({_text(made_on)}; this one: "
                    f"{_text(self._machine)}): last bits may differ from a video made on one machine"
                )
        if self._parent is None and self._own is None and not self.warnings:
            self.warnings += kept_nowhere(resume, "is on a volume that is not mounted")
        if self._parent is not None:
            most = resume.gib * 2**30
            sweep = partial(sweep_states, self._parent, days=resume.days, most=most, using=self._name)
            self._aside.begin(partial(sweep, beat=self._aside.beat))

    def take_over(
        self, writer: WriteBehind, generator: torch.Generator, tally: Tally, retakes: Retakes
    ) -> tuple[tuple[Window, ...], Carried | None]:
        """Put the finished windows into the video; return the windows that are left, and what the first gets.

        Generator, tally and judge continue as after the last finished window. Raises SinkError.
        """
        import torch

        windows = self._plan.windows
        carried: Carried = {}
        # Its arrays need not stay in memory.
        state, self._state = self._state, None
        if state is not None:
            for index, path in enumerate(self._segments):
                writer.take_over(load(path.read_bytes()), last=index + 1 == len(windows))
                path.unlink()
            generator.set_state(torch.frombuffer(bytearray(state.arrays["generator"]), dtype=torch.uint8))
            carried = carried_of(state)
            tally.asked, tally.skipped, tally.counted = state.facts["tally"]
            restore_judge(retakes, state.facts["judge"], state.arrays, state.forms)
            self._meter.take_over(state.windows)
        retake = self.resume.retake
        if retake and self.taken < retake:
            seed = self.resume.retake_seed
            if seed is None:
                seed = int(torch.randint(2**63 - 1, (), generator=generator))
            generator.manual_seed(seed)
            self.facts["made_again"] = [{"window": retake, "seed": seed}]
        return windows[self.taken :], carried or None

    @property
    def provenance(self) -> dict[str, Any]:
        """The facts that belong into the video's provenance: windows that were made again."""
        return {key: value for key, value in self.facts.items() if key == "made_again"}

    def made(
        self, window: Window, carried: Carried, generator: torch.Generator, tally: Tally, retakes: Retakes
    ) -> None:
        """Note what the window after `window` needs; it is stored with the window's segment."""
        if self._own is None:
            return
        arrays = {"generator": _array(generator.get_state())}
        if window is not self._plan.windows[-1]:
            arrays |= arrays_of(carried)
        judge, small = judge_state(retakes)
        arrays |= {name: form_of(array) for name, array in small.items()}
        facts = {
            "machine": self._machine,
            "judge": judge,
            "tally": [tally.asked, tally.skipped, tally.counted],
            "facts": dict(self.facts),
        }

        def store(entry: Entry) -> None:
            assert self._own is not None
            self._entries[window.index] = entry
            segments = [self._entries[index] for index in range(window.index + 1)]
            self._own.put_state(segments, arrays, facts)

        self._pending[window.index] = store

    def segment(self, segment: Segment) -> None:
        """Store a window's segment and state, in a thread; wait only for the one before. Raises Cancelled."""
        self._publish(segment)
        own, index = self._own, segment.index
        if own is None or index in self._entries:
            return
        store = self._pending.pop(index, None)
        self._settle()
        if self._own is None:
            return

        def keep() -> None:
            content = dump(segment)
            _leave_room(own.path, 2 * (self._bytes + len(content)))
            self._bytes += len(content)
            entry = own.put_segment(index, content)
            if store is None:
                self._entries[index] = entry
            else:
                store(entry)

        self._running = self._aside.begin(keep)

    def deliver(self, put: Callable[[], Any]) -> Any:
        """Return what `put` does, which delivers the video; then remove the states, unless they are to be kept.

        They are also removed if the video itself is kept for a later delivery, and stay if `put` fails otherwise.
        """
        try:
            kept = put()
        except NotDelivered:
            self._remove()
            raise
        self._remove(linger=True)
        self.close()
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            # Before this process ends, perhaps: the state of the last finished window.
            try:
                self._aside.wait(self._running, most=_GRACE)
            except Exception:  # noqa: BLE001 - the job has failed already, or was told before
                self._own = None
        self.close()

    def close(self) -> None:
        """End the thread; nothing is kept any more."""
        self._aside.end()

    def _settle(self, *, delivered: bool = False) -> None:
        """Wait for the state before, and give up keeping states if it failed. Raises Cancelled, unless `delivered`."""
        running, self._running = self._running, None
        if running is None:
            return
        try:
            self._aside.wait(running, check=(lambda: None) if delivered else self._check)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the video can be made without states
            self._own = None
            last = max(self._entries, default=-1) + 1
            self._warn(f"states are not kept any more after window {last}", error)

    def _remove(self, *, linger: bool = False) -> None:
        self._settle(delivered=True)
        own, self._own = self._own, None
        if own is None or own.keeps:
            return
        try:
            if linger and self._job is not None:
                self._aside.wait(self._aside.begin(partial(own.mark_delivered, self._job)))
                remove_later(own)
            else:
                self._aside.wait(self._aside.begin(own.remove))
        except OSError as error:
            self._warn("the states of the finished video cannot be removed", error)

    def _tell_relatives(self) -> None:
        if self._parent is None:
            return
        try:
            count = self._aside.wait(self._aside.begin(partial(relatives, self._parent, self._name)), check=self._check)
        except OSError:
            count = 0
        if count:
            self.warnings.append(
                "an earlier attempt's state was ignored, because other versions, weights, settings of the device or "
                "threads made it: the video was made from its start"
            )

    def _check(self) -> None:
        self._meter.check("resume")

    def _warn(self, what: str, error: Exception) -> None:
        # With the key and without the path, which belongs to this machine.
        reason = error.strerror if isinstance(error, OSError) else None
        self.warnings.append(f"resume.folder: {what}: {reason or type(error).__name__}")


def open_states(
    request: Request,
    config: Config,
    plan: Plan,
    provenance: dict[str, Any],
    loaded: LoadedModel,
    runtime: Runtime,
    folder: Path,
    meter: Meter,
    publish: Callable[[Segment], None],
) -> Keeping:
    """Return the states of a request, with the newest one of an earlier attempt; segments are copied to `folder`.

    `publish` gets each segment before it is stored.

    Raises Cancelled and RequestError.
    """
    resume = config.resume
    if resume.folder is None and resume.retake:
        raise RequestError(
            "windows are made again from kept states only", field="resume.folder", hint="name the folder of the states"
        )
    if resume.folder is None:
        # Nothing is looked for, so nothing is kept.
        nothing = Keeping(resume, "", "", plan, {}, meter, publish=publish)
        nothing.warnings += kept_nowhere(resume, "names no folder")
        return nothing
    name = partial(state_name, request, config, plan, provenance, loaded, runtime)
    source = name()
    retake = (resume.retake, resume.retake_seed) if resume.retake else None
    own = source if retake is None else name(retake)
    keeping = Keeping(resume, own, source, plan, machine_facts(runtime), meter, request.job, publish)
    try:
        with meter.stage("resume"):
            keeping.look(folder)
    except BaseException:
        keeping.close()
        raise
    return keeping


def _parent(resume: ResumeConfig) -> Path | None:
    """Return the folder of all states; None: there is no volume."""
    assert resume.folder is not None
    if resume.folder not in ("auto", "volume"):
        return Path(resume.folder).expanduser().absolute()
    volume = Path(resume.volume).expanduser().absolute()
    folder = volume / _ON_VOLUME
    # The mount point of a missing volume is not created: its content would be lost with the container.
    above = next((up for up in (folder, volume, volume.parent) if up.is_dir()), Path("/"))
    mounted = above != Path("/")
    if mounted and os.access(above, os.W_OK | os.X_OK):
        return folder
    if resume.folder == "auto":
        return Path(_AT_HOME).expanduser()
    if mounted:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return None


def _leave_room(path: Path, size: int) -> None:
    """Raise OSError if states would take the room that the video itself may need."""
    above = next(up for up in (path, *path.parents) if up.is_dir())
    if shutil.disk_usage(above).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _array(tensor: Tensor) -> Form:
    return form_of(tensor.numpy())


def _text(machine: Any) -> str:
    return ", ".join(map(str, machine.values())) if isinstance(machine, dict) else "unknown"

"""`multitalk generate`: plans or makes the video of one request from the command line."""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from omegaconf import II

from engine import (
    SILENCE,
    Delivery,
    Plan,
    Progress,
    Request,
    Speaker,
    hookimpl,
    read_boxes,
    read_script,
    read_speakers,
    read_timeline,
)
from engine.components import CancelToken, Entrypoint, ProgressCallback, Service
from engine.config import EntrypointConfig, RequestConfig
from engine.errors import Cancelled, RequestError, SinkError, plain, plain_json
from engine.plugin.register import Register
from engine.redaction import redact
from engine.runtime.bar import bar, elapsed
from engine.runtime.player import find_player, play
from engine.serving.estimate_lines import estimate_lines
from engine.serving.plan_lines import dialogue_lines, window_lines
from engine.text.terminal import columns, hanging, is_live, tell

if TYPE_CHECKING:
    from engine.data import (
        AudioType,
        Canvas,
        Fit,
        LoraUse,
        Seat,
        Timing,
    )


_LOG = logging.getLogger(__name__)
#: Fields of a speaker that select a part of the file; `delay` is visible in the times.
_TAKEN = ("start", "duration", "track", "channel")


@dataclass
class GenerateConfig(EntrypointConfig):
    """Makes one video: a picture, voices and a prompt in, an MP4 out."""

    parallel: ClassVar[bool] = True
    name: str = "generate"
    #: As `request`.
    request: RequestConfig = II("request")
    json: bool = field(default=False, metadata={"help": "print one JSON object as the last line of stdout"})
    dry_run: bool = field(default=False, metadata={"help": "only print the plan; load and make nothing"})
    preview: str | None = field(
        default=None,
        metadata={"help": "first draw the speakers' regions on the picture as the network sees it", "word": "PNG"},
    )
    resume: bool = field(
        default=False,
        metadata={"help": "keep finished windows until the video is done; the same command continues (resume.folder)"},
    )
    quiet: bool = field(default=False, metadata={"help": "no progress and no summary; warnings are still shown"})
    open: bool = field(default=False, metadata={"help": "open the video with the system's player when it is done"})


class Generate:
    """Entrypoint for one request. Prints the video's address on stdout and everything else on stderr."""

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config

    def run(self, service: Service) -> int:
        """Make the request's video, or only plan it. Raises EngineError; an interrupt becomes Cancelled."""
        config = self.config
        request = make_request(config.request)
        if config.preview is not None:
            _draw(service, request, Path(config.preview), quiet=config.quiet)
        if config.dry_run:
            plan = service.plan(request)
            print(to_json(plan) if config.json else describe(plan, request))
            return 0
        # Before the work, not after it.
        player = find_player() if config.open else ""
        warnings = _Warnings()
        try:
            with interruptible() as cancel, progress_display(quiet=config.quiet) as show:
                delivery = service.generate(request, progress=warnings.of(show), cancel=cancel)
        except Cancelled:
            if config.resume and not config.quiet:
                tell("", "the same command continues after the last finished window")
            raise
        warnings.print(delivery.warnings)
        _log_stages(delivery)
        if player:
            _open(player, delivery)
        if delivery.report is not None and (line := delivery.report.line):
            tell("", f"report: {plain(line)}")
        if config.json:
            print(to_json(delivery))
            return 0
        if not config.quiet:
            tell("", _summary(delivery))
        print(delivery.address if delivery.address is not None else delivery.content)
        return 0


def _open(player: str, delivery: Delivery) -> None:
    path = Path(delivery.address or "")
    if not path.is_file():
        tell("warning", "--open: the video is not a file on this machine (sink=disk is)")
    elif not play(player, path):
        tell("warning", plain(f"--open: {player} could not be started"))


def _log_stages(delivery: Delivery) -> None:
    for stage, seconds in delivery.timings.items():
        _LOG.info("%s: %.2f s", stage, seconds)


def make_request(config: RequestConfig) -> Request:
    """Build the request. Raises RequestError for missing inputs; the engine checks the values."""
    if not config.image and not config.images and not config.video:
        raise RequestError("no picture", field="request.image", hint="give --image FILE, or --video FILE")
    if config.prompt is None and config.prompts is None:
        raise RequestError("no prompt", field="request.prompt", hint='give --prompt "what is to be seen"')
    return Request(
        prompt=config.prompt or "",
        image=config.image or "",
        prompts=() if config.prompts is None else read_timeline(config.prompts, "prompts"),
        images=() if config.images is None else read_timeline(config.images, "images"),
        video=config.video or "",
        speakers=() if config.script is not None or config.voices is not None else _speakers(config),
        script="" if config.script is None else read_script(config.script),
        voices=config.voices or "",
        people=config.people,
        boxes=() if config.boxes is None else read_boxes(config.boxes),
        keep_voices=config.keep_voices or "",
        soundtrack=config.soundtrack or "",
        negative_prompt=config.negative_prompt,
        seed=config.seed,
        frames=_frames(config.frames),
        fps=config.fps,
        audio_type=cast("AudioType", config.audio_type),
        timing=cast("Timing", config.timing),
        fit=cast("Fit", config.fit),
        filename=config.filename,
    )


def describe(plan: Plan, request: Request) -> str:
    """Return the plan as text."""
    passes = "1 pass" if plan.passes == 1 else f"{plan.passes} passes"
    evaluations = plan.evaluations or plan.forwards // (len(plan.windows) * plan.passes)
    each = "per step" if evaluations == plan.steps else f"in each of {evaluations} evaluations per window"
    if plan.forwards < len(plan.windows) * evaluations * plan.passes:
        passes = f"at most {passes}"
    sampling = f"{plan.sampler}, {plan.steps} steps, guidance {plan.guidance}, {passes} {each}"
    lines = [
        # One clause per line: warnings about weights have many clauses.
        *(
            ("" if index else "warning", line)
            for warning in plan.warnings
            for index, line in enumerate(warning.split("; "))
        ),
        ("model", f"{plan.model}, resolution {plan.resolution}"),
        ("weights", str(plan.weights) if plan.weights else "not found"),
        *(("loras" if index == 0 else "", _lora(lora)) for index, lora in enumerate(plan.loras)),
        ("picture", _picture(plan.canvas)),
        *(("speakers" if index == 0 else "", _seat(seat, request, plan)) for index, seat in enumerate(plan.seats)),
        *dialogue_lines(plan.dialogue),
        ("video", f"{plan.frames} frames at {plan.fps:g} per second, {plan.seconds:.2f} s, seed {plan.seed}"),
        *([_native(plan)] if plan.timing == "native" else []),
        *window_lines(plan),
        ("sampling", f"{sampling}: {plan.forwards} forwards in all"),
        *([("retakes", _retakes(plan))] if plan.retakes else []),
        *([("attention", plan.attention)] if plan.attention else []),
        *([] if plan.estimates is None else estimate_lines(plan.estimates)),
    ]
    limit = columns()
    return "\n".join(
        line
        for name, text in lines
        for line in hanging(f"{name:<10}", plain(text), limit, style="yellow" if name == "warning" else "cyan")
    )


def to_json(answer: Plan | Delivery) -> str:
    """Return the answer as one line of JSON; the keys are the fields of the dataclass, paths are text."""
    return plain_json(asdict(answer))


@contextmanager
def interruptible() -> Iterator[CancelToken]:
    """Let the first interrupt (Ctrl-C, SIGTERM) set the yielded token; a second one interrupts at once."""
    cancel = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield cancel
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Warnings:
    """Prints each warning, and the address of a published video, on stderr once; rich redraws a live bar below it."""

    def __init__(self) -> None:
        self._printed: set[str] = set()

    def print(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            if warning not in self._printed:
                self._printed.add(warning)
                tell("warning", plain(warning))

    def _print_live(self, progress: Progress) -> None:
        # From now on a player can open it.
        if progress.live is not None and (address := progress.live.address) not in self._printed:
            self._printed.add(address)
            print(f"multitalk: live: {plain(address)}", file=sys.stderr, flush=True)

    def of(self, show: ProgressCallback | None) -> ProgressCallback:
        def report(progress: Progress) -> None:
            self.print(progress.warnings)
            if show is not None:
                self._print_live(progress)
                show(progress)

        return report


@contextmanager
def progress_display(*, quiet: bool) -> Iterator[ProgressCallback | None]:
    """Show progress on stderr: a live bar on a terminal, a line for each tenth elsewhere, nothing if `quiet`."""
    if quiet:
        yield None
        return
    # Not rich's own answer: FORCE_COLOR would draw a bar into a file, and a dumb terminal cannot draw one again.
    if sys.stderr is None or not is_live(sys.stderr):
        yield lines(lambda text: tell("", text))
        return
    from rich.console import Console

    with bar(Console(stderr=True), state) as report:
        yield report


def lines(write: Callable[[str], None]) -> ProgressCallback:
    """Return a callback that writes a line for each tenth, but none while the request is read.

    Errors in a request are found while it is read, and their message must be the only line.
    """
    last = -1

    def report(progress: Progress) -> None:
        nonlocal last
        if progress.stage == "read":
            return
        if (tenth := int(progress.fraction * 10 + 1e-9)) > last:
            last = tenth
            write(f"{progress.fraction:4.0%}  {state(progress)}")

    return report


def state(progress: Progress) -> str:
    """Return the position of a generation as text: stage, window, step, remaining time."""
    parts = [progress.stage]
    if progress.window:
        parts.append(f"window {progress.window}/{progress.windows}")
    if progress.step:
        parts.append(f"step {progress.step}/{progress.steps}")
    if progress.remaining is not None:
        parts.append(f"{elapsed(round(progress.remaining))} left")
    return ", ".join(parts)


def _draw(service: Service, request: Request, path: Path, *, quiet: bool) -> None:
    try:
        service.preview(request, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SinkError(
            f"cannot write {str(path)!r}: {reason}", field="entrypoint.preview", hint="give a PNG file in a folder"
        ) from error
    if not quiet:
        tell("", f"preview: {plain(str(path))}")


def _summary(delivery: Delivery) -> str:
    took, taken = sum(delivery.timings.values()), delivery.windows_taken_over
    more = f", {taken} of {len(delivery.plan.windows)} windows taken over" if taken else ""
    return (
        f"{delivery.seconds:.2f} s of video, {delivery.frames} frames at {delivery.fps:g} per second, "
        f"seed {delivery.seed}, made in {took:.0f} s{more}"
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _picture(canvas: Canvas) -> str:
    fitted = "cut" if canvas.fit == "crop" else "padded"
    x, y = canvas.offset
    return f"{_size(canvas.source)}, scaled to {_size(canvas.scaled)}, {fitted} to {_size(canvas.target)} at ({x}, {y})"


def _lora(lora: LoraUse) -> str:
    return f"{lora.file}, scale {lora.scale:g}" + (f": {lora.alpha}" if lora.alpha else "")


def _seat(seat: Seat, request: Request, plan: Plan) -> str:
    if plan.dialogue is not None:
        name = f"{plan.dialogue.people[seat.speaker]}, " if plan.dialogue.people else ""
        times = "silent" if seat.silent else f"{seat.begins:.2f} s to {seat.begins + seat.seconds:.2f} s"
        return f"{seat.speaker + 1}: in {list(seat.box)} ({seat.kind}), {name}{times}"
    # A presigned URL is a key, and a data: URL is the file itself, so neither is printed.
    audio = redact(request.speakers[seat.speaker].audio or "")
    voice = "silent" if seat.silent else f"{audio}, {seat.begins:.2f} s to "
    if not seat.silent:
        voice += f"{seat.begins + seat.seconds:.2f} s"
        speaker = request.speakers[seat.speaker]
        excerpt = [f"{key} {value}" for key in _TAKEN if (value := getattr(speaker, key)) is not None]
        voice += f" ({', '.join(excerpt)} of the file)" if excerpt else ""
    return f"{seat.speaker + 1}: in {list(seat.box)} ({seat.kind}), {voice}"


def _retakes(plan: Plan) -> str:
    times = "once" if plan.retakes == 1 else f"{plan.retakes} times"
    return f"a window outside the report's limits is made again, at most {times}: at most {plan.most_forwards} forwards"


def _native(plan: Plan) -> tuple[str, str]:
    return (
        "timing",
        f"native: {plan.generated_frames} frames at {plan.generated_fps:g} per second, selected for the video",
    )


def _frames(value: int | str | None) -> int | Literal["auto"] | None:
    # A flag's value is text; the engine reports text that is not a number.
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,30}", value):
        return int(value)
    return cast('int | Literal["auto"] | None', value)


def _speakers(config: RequestConfig) -> tuple[Speaker, ...]:
    if config.speakers is not None:
        speakers = read_speakers(config.speakers)
        if config.audio:
            raise RequestError(
                f"{len(config.audio)} voices are given by --audio and {len(speakers)} speakers by --speakers",
                field="request.speakers",
                hint="write each voice next to its region in the speakers file, and remove --audio",
            )
        return speakers
    if not config.audio:
        raise RequestError(
            "no voice", field="request.audio", hint="give --audio FILE for each person (silence for one who is quiet)"
        )
    return tuple(Speaker(None if audio == SILENCE else audio) for audio in config.audio)


@hookimpl
def register_entrypoints(register: Register[Entrypoint]) -> None:
    register(Generate, GenerateConfig)

"""Checks a file of jobs before anything is loaded: which jobs are wrong, and how much the others will make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.components import Service
from engine.data import Plan, Request
from engine.errors import EngineError, RequestError
from engine.serving.batch.jobs import JobFile, Line
from engine.serving.jobs.answers import error_answer
from engine.serving.jobs.job import ParsedJob, parse_job
from engine.serving.worker.handler import Terms


@dataclass
class CheckReport:
    """The result of the check."""

    #: Lines with jobs that cannot be made, each with its answer.
    invalid: list[tuple[Line, Mapping[str, Any]]] = field(default_factory=list)
    #: Lines with jobs that can be made.
    valid: list[Line] = field(default_factory=list)
    #: Number of videos; their frames and seconds as far as these are known; number of videos as long as their voices.
    videos: int = 0
    frames: int = 0
    seconds: float = 0.0
    as_voices: int = 0
    #: Card -> seconds of work and their cost in USD; empty if there is no estimate.
    cards: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: The estimate is extrapolated from one job.
    scaled: bool = False

    def lines(self) -> Iterator[str]:
        """Yield lines for a person: what is wrong, and what will be made."""
        for line, answer in self.invalid:
            yield f"{line.id}: cannot be made (line {line.number}, {answer['error_code']}): {answer['error']}"
        fixed = f"{self.frames} frames, {self.seconds:.1f} s in all" if self.frames else ""
        variable = f"{self.as_voices} as long as their voices" if self.as_voices else ""
        length = ", and ".join(filter(None, (fixed, variable)))
        yield f"{self.videos} videos to make{': ' if length else ''}{length}; {len(self.invalid)} cannot be made"
        if self.cards:
            card = min(self.cards, key=lambda name: self.cards[name][1])
            seconds, cost = self.cards[card]
            basis = ", extrapolated from the first job" if self.scaled else ""
            yield f"estimated on {card}: {seconds / 60:.0f} min of work, {cost:.2f} USD (docs/plan.md){basis}"


def check(jobs: JobFile, lines: Sequence[Line], terms: Terms, service: Service, *, whole: bool) -> CheckReport:
    """Check the jobs of `lines` against the schema and the files of this machine.

    With `whole` each job is planned, which opens its media and gives exact lengths and estimates. Otherwise only the
    first job with local media is planned, and the others are extrapolated from it. Loads and writes nothing.
    """
    report = CheckReport()
    first: tuple[Plan, int] | None = None
    for line in lines:
        job: ParsedJob | None = None
        try:
            job = parse_job(jobs.job(line), limits=terms.limits, job_defaults=terms.job_defaults, folder=terms.folder)
            request = job.request if job.action == "generate" else None
            if request is not None:
                _check_files(request)
                if whole:
                    _add(report, service.plan(request))
                else:
                    first = first or _first(service, request)
                    _count(report, request)
        except EngineError as error:
            report.invalid.append((line, error_answer(error, job, local_caller=True)))
            continue
        report.valid.append(line)
        report.videos += request is not None
    if first is not None:
        plan, frames = first
        share = (report.frames + report.as_voices * frames) / frames
        report.scaled = report.videos > 1
        cards = plan.estimates.cards if plan.estimates is not None else ()
        report.cards = {card.card: (card.seconds * share, card.cost * share) for card in cards if card.fits}
    return report


def _add(report: CheckReport, plan: Plan) -> None:
    report.frames += plan.frames
    report.seconds += plan.seconds
    cards = {card.card: card for card in plan.estimates.cards if card.fits} if plan.estimates is not None else {}
    totals = report.cards if report.videos else dict.fromkeys(cards, (0.0, 0.0))
    # Only cards that fit all of the jobs.
    report.cards = {
        name: (totals[name][0] + card.seconds, totals[name][1] + card.cost)
        for name, card in cards.items()
        if name in totals
    }


def _count(report: CheckReport, request: Request) -> None:
    if isinstance(request.frames, int) and request.fps is not None:
        report.frames += request.frames
        report.seconds += request.frames / request.fps
    elif isinstance(request.frames, int):
        report.frames += request.frames
    else:
        report.as_voices += 1


def _first(service: Service, request: Request) -> tuple[Plan, int] | None:
    # Jobs with remote media are skipped, so that nothing is downloaded twice. Errors of the plan are reported when the
    # job runs; here they only mean that there is no estimate.
    if any("://" in address for _, address in _media(request)):
        return None
    try:
        plan = service.plan(request)
    except EngineError:
        return None
    return plan, plan.frames


def _media(request: Request) -> Iterator[tuple[str, str]]:
    """Yield the engine's name of each address of a request, and the address."""
    yield "request.image", request.image
    for index, speaker in enumerate(request.speakers):
        for name, address in (("audio", speaker.audio), ("region.mask", speaker.region.mask)):
            if address:
                yield f"request.speakers[{index}].{name}", address


def _check_files(request: Request) -> None:
    """Raise RequestError for the first local file of a job that does not exist."""
    for name, address in _media(request):
        if "://" in address or address[:5].lower() == "data:":
            continue
        try:
            there = Path(address).exists()
        except (OSError, ValueError):
            there = False
        if not there:
            hint = "paths are relative to the folder of the file of jobs"
            raise RequestError(f"{address!r} does not exist", field=name, hint=hint)

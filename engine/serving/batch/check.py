"""What of a file's jobs can be known before anything is loaded: what is wrong with them, and what they will make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.components import Service
from engine.data import Plan, Request
from engine.errors import EngineError, RequestError
from engine.serving.batch.jobs import Jobs, Line
from engine.serving.jobs.answers import error_answer
from engine.serving.jobs.job import Job, parse_job
from engine.serving.worker.handler import Terms


@dataclass
class Checked:
    """What was found."""

    #: Lines whose jobs cannot be made, each with its answer.
    wrong: list[tuple[Line, Mapping[str, Any]]] = field(default_factory=list)
    #: Lines whose jobs go on.
    sound: list[Line] = field(default_factory=list)
    #: Videos and their frames and seconds, where these are known, and how many have the length of their voices.
    videos: int = 0
    frames: int = 0
    seconds: float = 0.0
    voices: int = 0
    #: Seconds of work and its cost by card; empty where nothing is known of them.
    cards: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: The estimate is one job's, for all.
    scaled: bool = False

    def lines(self) -> Iterator[str]:
        """Say in lines what is wrong and what will be made."""
        for line, answer in self.wrong:
            yield f"{line.id}: cannot be made (line {line.number}, {answer['error_code']}): {answer['error']}"
        known = f"{self.frames} frames, {self.seconds:.1f} s in all" if self.frames else ""
        open_ = f"{self.voices} as long as their voices" if self.voices else ""
        length = ", and ".join(filter(None, (known, open_)))
        yield f"{self.videos} videos to make{': ' if length else ''}{length}; {len(self.wrong)} cannot be made"
        if self.cards:
            card = min(self.cards, key=lambda name: self.cards[name][1])
            seconds, cost = self.cards[card]
            basis = ", reckoned from the first of them" if self.scaled else ""
            yield f"estimated on {card}: {seconds / 60:.0f} min of work, {cost:.2f} USD (docs/plan.md){basis}"


def check(jobs: Jobs, lines: Sequence[Line], terms: Terms, service: Service, *, whole: bool) -> Checked:
    """Check the jobs of `lines` against schema, defaults and files of this machine.

    `whole` plans each, which opens its media and says lengths and estimates exactly; else the first one whose media lie
    here is planned, and the others are reckoned from it. Nothing is loaded and nothing kept.
    """
    found = Checked()
    first: tuple[Plan, int] | None = None
    for line in lines:
        job: Job | None = None
        try:
            job = parse_job(jobs.job(line), limits=terms.limits, habits=terms.habits, folder=terms.folder)
            request = job.request if job.action == "generate" else None
            if request is not None:
                _check_files(request)
                if whole:
                    _add(found, service.plan(request))
                else:
                    first = first or _first(service, request)
                    _count(found, request)
        except EngineError as error:
            found.wrong.append((line, error_answer(error, job, own=True)))
            continue
        found.sound.append(line)
        found.videos += request is not None
    if first is not None:
        plan, frames = first
        share = (found.frames + found.voices * frames) / frames
        found.scaled = found.videos > 1
        cards = plan.estimates.cards if plan.estimates is not None else ()
        found.cards = {card.card: (card.seconds * share, card.cost * share) for card in cards if card.fits}
    return found


def _add(found: Checked, plan: Plan) -> None:
    found.frames += plan.frames
    found.seconds += plan.seconds
    cards = {card.card: card for card in plan.estimates.cards if card.fits} if plan.estimates is not None else {}
    known = found.cards if found.videos else dict.fromkeys(cards, (0.0, 0.0))
    # Cards that hold all of the jobs.
    found.cards = {
        name: (known[name][0] + card.seconds, known[name][1] + card.cost)
        for name, card in cards.items()
        if name in known
    }


def _count(found: Checked, request: Request) -> None:
    if isinstance(request.frames, int) and request.fps is not None:
        found.frames += request.frames
        found.seconds += request.frames / request.fps
    elif isinstance(request.frames, int):
        found.frames += request.frames
    else:
        found.voices += 1


def _first(service: Service, request: Request) -> tuple[Plan, int] | None:
    # Nothing is downloaded twice. What is wrong with it shows when it is done; here it only gives no estimate.
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
    """Raise RequestError for the first file of this machine that a job names and that is not there."""
    for name, address in _media(request):
        if "://" in address or address[:5].lower() == "data:":
            continue
        try:
            there = Path(address).exists()
        except (OSError, ValueError):
            there = False
        if not there:
            hint = "paths count from the folder of the file of jobs"
            raise RequestError(f"{address!r} does not exist", field=name, hint=hint)

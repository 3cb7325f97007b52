"""Many jobs from a file, and what came of each into another."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import II

from engine import EngineService, hookimpl
from engine.components import Entrypoint, Launcher, Service
from engine.config import ComponentConfig, one_of, within
from engine.errors import ConfigError, plain
from engine.plugin.register import Register
from engine.serving.worker.limits import JobsConfig

if TYPE_CHECKING:
    from engine.serving.batch.check import Checked
    from engine.serving.batch.jobs import Jobs, Line
    from engine.serving.batch.results import Results
    from engine.serving.worker.handler import Terms

INTERRUPTED = 130
#: Status of a batch some of whose jobs have failed; 2 is told where nothing was begun.
SOME_FAILED = 3


@dataclass
class BatchConfig(JobsConfig):
    """Makes the videos of a file of jobs, one JSON object per line (docs/batch.md)."""

    name: str = "batch"
    #: As `launcher`.
    launcher: ComponentConfig = field(default=II("launcher"), metadata={"flag": False})
    #: As `sink.name`.
    sink: str = field(default=II("sink.name"), metadata={"flag": False})
    #: Folder of the videos (the sink's); null: the sink has none.
    folder: str | None = field(default="${oc.select:sink.folder,null}", metadata={"flag": False})
    jobs: str | None = field(
        default=None,
        metadata={"help": "the file of jobs, in the format of docs/api.md", "word": "JOBS.jsonl", "bare": True},
    )
    results: str | None = field(
        default=None,
        metadata={"help": "file of results (JOBS.results.jsonl in the folder of the videos)", "word": "FILE"},
    )
    check: bool = field(default=False, metadata={"help": "only check and plan all jobs; load, make and store nothing"})
    retry_failed: bool = field(default=False, metadata={"help": "repeat jobs that failed before"})
    defaults_of: str = field(
        default="job",
        metadata={
            "help": "defaults of jobs: job: those of a worker; model: those of the command line, which are the model's "
            "rate, steps and scales and the length of the voices (job)",
            "word": "job|model",
        }
        | one_of("job", "model"),
    )
    grace: float = field(
        default=20.0,
        metadata={"help": "seconds that running jobs have to finish after Ctrl-C (20)", "word": "S"}
        | within(0, 86_400),
    )
    json: bool = field(default=False, metadata={"help": "print one JSON object as the last line of stdout"})
    quiet: bool = field(default=False, metadata={"help": "no progress and no summary"})

    @classmethod
    def boot(cls, overrides: Sequence[str]) -> list[str]:
        """Let jobs name their media as anywhere: by paths, as on the command line, and by URLs, as on a worker."""
        if any(override.lstrip("+~").startswith("access.schemes=") for override in overrides):
            return list(overrides)
        return ["access.schemes=[path,data,http,https,s3]", *overrides]


class Batch:
    """Entrypoint for a file of jobs. Prints the path of the results on stdout and everything else on stderr."""

    def __init__(self, config: BatchConfig, launcher: Launcher) -> None:
        """Raise ConfigError for limits that cannot be meant, and where no file of jobs is named."""
        if not config.jobs:
            raise ConfigError("no file of jobs", field="entrypoint.jobs", hint="multitalk batch JOBS.jsonl")
        self.config = config
        self._launcher = launcher
        self._jobs = Path(config.jobs)
        self._folder = None if config.folder is None else Path(config.folder)
        self._terms = config.terms(defaults_of=config.defaults_of, own=True, folder=self._jobs.absolute().parent)

    def run(self, service: Service) -> int:
        """Do what has no result yet. Raises EngineError for what concerns all jobs, before or after those done."""
        from engine.serving.batch.check import check
        from engine.serving.batch.jobs import Jobs
        from engine.serving.batch.results import keeping
        from engine.serving.batch.run import Run, interruptible
        from engine.serving.batch.worker import EngineWorker

        began, say = time.monotonic(), self._say
        jobs = Jobs(self._jobs, sink=self.config.sink, folder=self._folder is not None)
        name = self.config.results or (self._folder or Path()) / f"{self._jobs.stem}.results.jsonl"
        make = functools.partial(EngineWorker, functools.partial(EngineService, tuple(service.overrides)), self._terms)
        say(f"jobs that do not say {taken(self._terms)}")
        if self.config.check:
            return self._checked(check(jobs, jobs.lines, self._terms, service, whole=True), say)
        with keeping(Path(name).absolute(), self._folder) as results:
            pending = self._pending(jobs, results)
            checked = check(jobs, pending, self._terms, service, whole=False)
            for text in checked.lines() if pending else ():
                say(text)
            for line, answer in checked.wrong:
                results.add(line, answer, 0.0)
            run = Run(jobs, results, checked.sound, say, _warn)
            if checked.sound:
                with (
                    self._launcher.launch(make, len(checked.sound)) as workers,
                    interruptible(run, self.config.grace, say),
                ):
                    run.through(workers)
            statuses = Counter(results.status(line) or "left" for line in jobs.lines)
            told = {
                "jobs": len(jobs.lines),
                **{status: statuses[status] for status in ("done", "failed", "left")},
                "skipped": len(jobs.lines) - len(pending),
                "seconds": round(time.monotonic() - began, 3),
                "results": str(results.path),
            }
        say("{jobs} jobs: {done} done, {failed} failed, {left} left; {skipped} were known before".format(**told))
        print(json.dumps(told) if self.config.json else told["results"])
        if run.interrupted and told["left"]:
            return INTERRUPTED
        return SOME_FAILED if told["failed"] else 0

    def _checked(self, checked: Checked, say: Callable[[str], None]) -> int:
        for text in checked.lines():
            say(text)
        jobs = len(checked.sound) + len(checked.wrong)
        cards = {name: {"seconds": round(took), "cost": round(cost, 4)} for name, (took, cost) in checked.cards.items()}
        told = {
            "jobs": jobs,
            "videos": checked.videos,
            "frames": checked.frames,
            "seconds": round(checked.seconds, 3),
            "cards": cards,
            "wrong": [{"id": line.id, "line": line.number, **answer} for line, answer in checked.wrong],
        }
        print(json.dumps(told) if self.config.json else f"{checked.videos} of {jobs}")
        return SOME_FAILED if checked.wrong else 0

    def _pending(self, jobs: Jobs, results: Results) -> list[Line]:
        pending = []
        for line in jobs.lines:
            match results.status(line):
                case None:
                    pending.append(line)
                case "failed" if self.config.retry_failed:
                    pending.append(line)
                case "done" if results.changed(line):
                    what = f"the job {line.id!r} in line {line.number} was changed since it was done"
                    _warn(f"{what}; to have it done, give it another id")
        return pending

    def _say(self, text: str) -> None:
        if not self.config.quiet:
            _write(text)


def taken(terms: Terms) -> str:
    """Say in words what jobs take that name no length, rate, steps, scale and seed."""
    from engine.serving.jobs.defaults import defaults

    found = defaults(terms.limits, terms.habits)
    frames, rate = found["num_frames"], found.get("fps")
    length = "are as long as their voices" if frames == "auto" else f"have {frames} frames"
    pace = "at the model's own rate" if rate is None else f"at {rate:g} a second"
    steps, scale = found.get("sampling_steps"), found.get("guidance_scale")
    work = "the model's steps and text scale" if steps is None else f"{steps} steps, a text scale of {scale:g}"
    return f"{length} {pace}, {work}, seed {found['seed']} (--defaults-of {terms.habits.of})"


def _warn(text: str) -> None:
    _write(f"warning: {text}")


def _write(text: str) -> None:
    # At one stroke: the threads of several workers speak.
    sys.stderr.write(f"multitalk: {plain(text)}\n")
    sys.stderr.flush()


@hookimpl
def register_entrypoints(register: Register[Entrypoint], launchers: Register[Launcher]) -> None:
    """Offer `multitalk batch`."""
    register(lambda config: Batch(config, launchers.build(config.launcher)), BatchConfig)

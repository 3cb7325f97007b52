"""`multitalk batch`: does many jobs from a file and writes their results to another file."""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import II

from engine import hookimpl
from engine.components import Entrypoint, Launcher, Service
from engine.config import ComponentConfig, one_of, within
from engine.errors import ConfigError, plain
from engine.plugin.register import Register
from engine.serving.worker.limits import JobsConfig
from engine.text.terminal import tell

if TYPE_CHECKING:
    from engine.serving.batch.check import CheckReport
    from engine.serving.batch.jobs import JobFile, Line
    from engine.serving.batch.results import Results
    from engine.serving.worker.handler import Terms

INTERRUPTED = 130
#: Exit status of a batch with failed jobs; 2 means that no job was started.
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
        default="${oc.select:model.defaults_of,job}",
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
    resume: bool = field(
        default=False,
        metadata={"help": "keep each finished window of running jobs, so that the next run continues (resume.folder)"},
    )
    json: bool = field(default=False, metadata={"help": "print one JSON object as the last line of stdout"})
    quiet: bool = field(default=False, metadata={"help": "no progress and no summary"})

    @classmethod
    def boot(cls, overrides: Sequence[str]) -> list[str]:
        """Allow media of jobs both as paths, as on the command line, and as URLs, as on a worker."""
        overrides = super().boot(overrides)
        if any(override.lstrip("+~").startswith("access.schemes=") for override in overrides):
            return overrides
        return ["access.schemes=[path,data,http,https,s3]", *overrides]


class Batch:
    """Entrypoint for a file of jobs. Prints the path of the results on stdout and everything else on stderr."""

    def __init__(self, config: BatchConfig, launcher: Launcher) -> None:
        """Raise ConfigError for limits that are out of range, and if there is no file of jobs."""
        if not config.jobs:
            raise ConfigError("no file of jobs", field="entrypoint.jobs", hint="multitalk batch JOBS.jsonl")
        self.config = config
        self._launcher = launcher
        self._jobs = Path(config.jobs)
        self._folder = None if config.folder is None else Path(config.folder)
        self._terms = config.terms(local_caller=True, folder=self._jobs.absolute().parent)

    def run(self, service: Service) -> int:
        """Do the jobs without a result. Raises EngineError for errors that concern all jobs."""
        from engine import EngineService
        from engine.serving.batch.check import check
        from engine.serving.batch.jobs import JobFile
        from engine.serving.batch.results import open_results
        from engine.serving.batch.run import BatchRun, interruptible
        from engine.serving.batch.worker import EngineWorker

        began, say = time.monotonic(), self._say
        jobs = JobFile(self._jobs, sink=self.config.sink, in_folder=self._folder is not None)
        name = self.config.results or (self._folder or Path()) / f"{self._jobs.stem}.results.jsonl"
        make = functools.partial(EngineWorker, functools.partial(EngineService, tuple(service.overrides)), self._terms)
        say(f"by default jobs {describe_defaults(self._terms)}")
        if self.config.check:
            return self._checked(check(jobs, jobs.lines, self._terms, service, whole=True), say)
        with open_results(Path(name).absolute(), self._folder) as results:
            pending = self._pending(jobs, results)
            checked = check(jobs, pending, self._terms, service, whole=False)
            for text in checked.lines() if pending else ():
                say(text)
            for line, answer in checked.invalid:
                results.add(line, answer, 0.0)
            run = BatchRun(jobs, results, checked.valid, say, _warn)
            if checked.valid:
                with (
                    self._launcher.launch(make, len(checked.valid)) as workers,
                    interruptible(run, self.config.grace, say),
                ):
                    run.process(workers)
            statuses = Counter(results.status(line) or "left" for line in jobs.lines)
            summary = {
                "jobs": len(jobs.lines),
                **{status: statuses[status] for status in ("done", "failed", "left")},
                "skipped": len(jobs.lines) - len(pending),
                "seconds": round(time.monotonic() - began, 3),
                "results": str(results.path),
            }
        say("{jobs} jobs: {done} done, {failed} failed, {left} left; {skipped} had a result before".format(**summary))
        print(json.dumps(summary) if self.config.json else summary["results"])
        if run.interrupted and summary["left"]:
            if self.config.resume:
                say("the next run continues after the last finished windows")
            return INTERRUPTED
        return SOME_FAILED if summary["failed"] else 0

    def _checked(self, checked: CheckReport, say: Callable[[str], None]) -> int:
        for text in checked.lines():
            say(text)
        jobs = len(checked.valid) + len(checked.invalid)
        cards = {name: {"seconds": round(took), "cost": round(cost, 4)} for name, (took, cost) in checked.cards.items()}
        summary = {
            "jobs": jobs,
            "videos": checked.videos,
            "frames": checked.frames,
            "seconds": round(checked.seconds, 3),
            "cards": cards,
            "wrong": [{"id": line.id, "line": line.number, **answer} for line, answer in checked.invalid],
        }
        print(json.dumps(summary) if self.config.json else f"{checked.videos} of {jobs}")
        return SOME_FAILED if checked.invalid else 0

    def _pending(self, jobs: JobFile, results: Results) -> list[Line]:
        pending = []
        for line in jobs.lines:
            match results.status(line):
                case None:
                    pending.append(line)
                case "failed" if self.config.retry_failed:
                    pending.append(line)
                case "done" if results.changed(line):
                    what = f"the job {line.id!r} in line {line.number} was changed since it was done"
                    _warn(f"{what}; to do it again, give it another id")
        return pending

    def _say(self, text: str) -> None:
        if not self.config.quiet:
            tell("", plain(text))


def describe_defaults(terms: Terms) -> str:
    """Describe the defaults of length, frame rate, steps, scale and seed in words."""
    from engine.serving.jobs.defaults import input_defaults

    values = input_defaults(terms.limits, terms.job_defaults)
    frames, rate = values["num_frames"], values.get("fps")
    length = "are as long as their voices" if frames == "auto" else f"have {frames} frames"
    pace = "at the model's own rate" if rate is None else f"at {rate:g} per second"
    steps, scale = values.get("sampling_steps"), values.get("guidance_scale")
    work = "the model's steps and text scale" if steps is None else f"{steps} steps, a text scale of {scale:g}"
    return f"{length} {pace}, {work}, seed {values['seed']} (--defaults-of {terms.job_defaults.source})"


def _warn(text: str) -> None:
    tell("warning", plain(text))


@hookimpl
def register_entrypoints(register: Register[Entrypoint], launchers: Register[Launcher]) -> None:
    """Offer `multitalk batch`."""
    register(lambda config: Batch(config, launchers.build(config.launcher)), BatchConfig)

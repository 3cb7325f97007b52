"""Jobs of a RunPod serverless endpoint, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine import hookimpl
from engine.components import Entrypoint, Service
from engine.config import within
from engine.errors import ConfigError
from engine.plugin.register import Register
from engine.serving.worker.defaults import boot
from engine.serving.worker.limits import JobsConfig


@dataclass
class RunpodConfig(JobsConfig):
    """Serves jobs as a RunPod serverless worker (docs/worker.md)."""

    name: str = "runpod"
    #: A worker cannot distinguish /run (10 MB) from /runsync (20 MB).
    answer_bytes: int = field(
        default=10_000_000, metadata={"help": "maximum bytes of an answer", "word": "N"} | within(1, 2**40)
    )
    sinks: str = field(
        default="s3 base64",
        metadata={"help": "sinks that a job may choose besides the worker's own, separated by spaces", "word": "NAMES"},
    )
    grace: float = field(
        default=20.0,
        metadata={"help": "seconds that a running job has to finish when the worker is stopped", "word": "S"}
        | within(0, 86_400),
    )
    log_level: str = field(
        default="${oc.env:MULTITALK_LOG_LEVEL,INFO}",
        metadata={"help": "lowest level of log lines: DEBUG, INFO, WARNING or ERROR", "word": "LEVEL"},
    )
    test_input: str | None = field(
        default=None, metadata={"help": "run this one job and exit, without a platform", "word": "JSON"}
    )

    @classmethod
    def boot(cls, overrides: Sequence[str]) -> list[str]:
        """Return the worker's defaults and what its environment says, before `overrides`. Raises ConfigError."""
        return boot(overrides)


class Runpod:
    """Entrypoint of a serverless worker: the heartbeat first, then weights and checks, then jobs."""

    def __init__(self, config: RunpodConfig) -> None:
        """Raise ConfigError for limits that cannot be meant."""
        # The worker's rooms bring asyncio along: only a worker pays for it.
        from engine.serving.jobs.defaults import Habits
        from engine.serving.jobs.schema import Limits
        from engine.serving.worker.handler import ENVELOPE, Terms

        self.config = config
        if config.answer_bytes <= ENVELOPE:
            raise ConfigError(
                f"answers of {config.answer_bytes} bytes", field="entrypoint.answer_bytes", hint=f"more than {ENVELOPE}"
            )
        self._terms = Terms(
            limits=Limits(config.max_frames, config.max_steps, config.max_seconds, config.max_forwards),
            habits=Habits(config.num_frames),
            answer_bytes=config.answer_bytes,
            sinks=tuple(config.sinks.split()),
        )

    def run(self, service: Service) -> int:
        """Take jobs until told to end. Raises MissingExtra and ConfigError."""
        from engine.serving.worker import heartbeat, logs, sdk
        from engine.serving.worker.fitness import checks
        from engine.serving.worker.handler import Handler
        from engine.serving.worker.warm_engine import Keeper

        sdk.require()
        lines = logs.Lines()
        # In this order: the SDK configures the log for itself when it is imported; the pings take its level along, and
        # are forked before a thread runs or torch is there.
        sdk.quiet(lines)
        logs.install(self.config.log_level, lines)
        mirror = heartbeat.start()
        keeper = Keeper(service)
        keeper.warm()
        try:
            return sdk.serve(
                Handler(keeper, self._terms, poster=sdk.poster, lines=lines),
                keeper,
                checks(service),
                grace=self.config.grace,
                lines=lines,
                mirror=mirror,
                test_input=self.config.test_input,
            )
        finally:
            keeper.close()


@hookimpl
def register_entrypoints(register: Register[Entrypoint]) -> None:
    """Offer `multitalk runpod`."""
    register(Runpod, RunpodConfig)

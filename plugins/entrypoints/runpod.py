"""`multitalk runpod`: does the jobs of a RunPod serverless endpoint, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from engine import hookimpl
from engine.components import Entrypoint, Service
from engine.config import within
from engine.plugin.register import Register
from engine.serving.worker.defaults import boot
from engine.serving.worker.limits import JobsConfig


@dataclass
class RunpodConfig(JobsConfig):
    """Serves jobs as a RunPod serverless worker (docs/worker.md)."""

    leads: ClassVar[bool] = True
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
    warm_up: bool = field(
        default=False,
        metadata={"help": "make two short videos before the first job, which compile and load all kernels"},
    )
    test_input: str | None = field(
        default=None, metadata={"help": "run this one job and exit, without a platform", "word": "JSON"}
    )

    @classmethod
    def boot(cls, overrides: Sequence[str]) -> list[str]:
        """Return `overrides` after the worker's defaults and those of its environment. Raises ConfigError."""
        return boot(overrides)


class Runpod:
    """Entrypoint of a serverless worker: starts the heartbeat, loads the weights, runs the checks, takes jobs."""

    def __init__(self, config: RunpodConfig) -> None:
        """Raise ConfigError for limits that are out of range."""
        # The worker's modules import asyncio, so they are imported only here.
        from engine.serving.worker.serve import check_terms

        self.config = config
        self._terms = config.terms(answer_bytes=config.answer_bytes, sinks=tuple(config.sinks.split()))
        check_terms(self._terms)

    def run(self, service: Service) -> int:
        """Take jobs until the worker is stopped. Raises MissingExtra and ConfigError."""
        from engine.serving.worker.serve import serve

        config = self.config
        return serve(
            service,
            self._terms,
            grace=config.grace,
            log_level=config.log_level,
            test_input=config.test_input,
            warm=config.warm_up,
        )


@hookimpl
def register_entrypoints(register: Register[Entrypoint]) -> None:
    """Offer `multitalk runpod`."""
    register(Runpod, RunpodConfig)

"""Overrides -> the entrypoint at work, once or for every combination of a sweep."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from engine.commands.escape import override
from engine.commands.hush import hush
from engine.compose import CONF, compose, translated
from engine.errors import Cancelled, ConfigError, EngineError
from engine.registry import installed
from engine.service import EngineService


def launch(overrides: Sequence[str]) -> int:
    """Boot the engine with `overrides` and hand it to the entrypoint they name; return its exit status.

    A single run composes without hydra.main: the config is the same, our errors arrive as they are raised, and
    nothing is written beside the video.
    """
    service = EngineService(overrides)
    try:
        with service.joined() as led:
            if led:
                return follow(service)
            return installed().entrypoints.build(service.config.entrypoint).run(service)
    finally:
        service.close()


def follow(service: EngineService) -> int:
    """Work for the process that leads. Interrupts are its to answer: it gets them, too, and says when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return service.follow()


def sweep(overrides: Sequence[str]) -> int:
    """Run every combination of the values that `overrides` give with commas, through Hydra's sweeper and launcher.

    A job that cannot be made tells so in one line and the others go on; the status is the highest of all jobs'.
    """
    installed()
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3", job_name="multitalk"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        with translated():
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            swept = tuple(part.get_key_element() for part in parsed if part.is_sweep_override())
            batches = hydra.multirun("config", functools.partial(run_job, swept=swept), list(overrides))
    # Other sweepers than Hydra's own return whatever they like: then a job's failure has been told, not counted.
    jobs = [job for batch in batches or () for job in batch] if isinstance(batches, list) else []
    return max((int(job.return_value) for job in jobs), default=0)


def run_job(composed: DictConfig, *, swept: Sequence[str] = ()) -> int:
    """Run one job of a sweep over the keys `swept`; launchers may call this in a fresh process."""
    hush()
    installed()
    # Taken unresolved: resolving would unescape a prompt's "${" once too often.
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    number = HydraConfig.get().job.num
    assert isinstance(overrides, list)
    chosen = [text for text in overrides if text.partition("=")[0] in swept]
    print(f"multitalk: job {number}: {', '.join(chosen)}", file=sys.stderr)
    try:
        config = compose(overrides)
        if config.parallel.name != "none":
            raise ConfigError("a sweep runs in one process", field="parallel", hint="choose parallel=none with -m")
        filename = config.request.filename
        if filename is not None:
            name = Path(filename)
            overrides.append(override("request.filename", f"{name.stem}-{number}{name.suffix}"))
        return launch(overrides)
    except Cancelled as error:
        # No Exception: Hydra would go on with the next job.
        raise KeyboardInterrupt(str(error)) from error
    except EngineError as error:
        print(f"multitalk: error: job {number}: {error}", file=sys.stderr)
        return 2

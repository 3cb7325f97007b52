"""Sweeps: one command line makes a run for every combination of its values, each in its own folder."""

from __future__ import annotations

import functools
import itertools
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from engine.assembly.compose import compose, translated
from engine.assembly.composition import CONF
from engine.assembly.escape import override
from engine.assembly.location import WeightsFinder
from engine.assembly.settings import make_plan_inputs
from engine.assembly.typed_overrides import readable
from engine.config import Config
from engine.data import Delivery, Request, Speaker
from engine.errors import Cancelled, ConfigError, EngineError, RequestError, plain
from engine.plugin.manager import installed
from engine.plugin.spec import hookimpl
from engine.runtime.quiet import silence_libraries
from engine.service import EngineService
from engine.stages.read import check_request
from engine.sweeps.run_folder import RunFolder
from engine.sweeps.runs import CONFIG, METRICS

#: The service of the previous run in this process. It is global because joblib's launcher calls `run_job` in processes
#: that make several runs without the sweep's own objects, and 14B weights must not be loaded for each run.
_previous: EngineService | None = None


def sweep(overrides: Sequence[str]) -> int:
    """Run every combination of the comma-separated values in `overrides`, with Hydra's sweeper and launcher.

    Each run has its own folder in the sweep's. A run that fails prints one line and the others continue; the returned
    exit status is the highest of all runs. Raises ConfigError before the first run if the config of any run is invalid.
    This check needs Hydra's own sweeper; the runs of other sweepers are not known in advance.
    """
    installed()
    overrides = readable(overrides, several=True)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3", job_name="multitalk"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        with translated():
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            swept = tuple(part.get_key_element() for part in parsed if part.is_sweep_override())
            if "sink.folder" in [part.key_or_group for part in parsed]:
                hint = "set the folder of the whole sweep with --output FOLDER/NAME.mp4 or hydra.sweep.dir=FOLDER"
                raise ConfigError("each run of a sweep has its own folder", field="sink.folder", hint=hint)
            composed = hydra.compose_config("config", list(overrides), RunMode.MULTIRUN, with_log_configuration=False)
            # Resolved once, so that the time in its name is the same for all runs.
            folder = Path(str(composed.hydra.sweep.dir))
            _check_new(folder)
            if str(composed.hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
                _check_runs(composed.hydra.sweeper.get("params") or {}, overrides)
            words = [*overrides, override("hydra.sweep.dir", str(folder))]
            existed = folder.exists()
            try:
                batches = hydra.multirun("config", functools.partial(run_job, swept=swept), words)
            finally:
                _release()
                # Hydra's overview contains the media's addresses, which may be secrets, and this machine's paths.
                (folder / "multirun.yaml").unlink(missing_ok=True)
                if not existed:
                    with suppress(OSError):
                        folder.rmdir()  # it is empty after a plan
    # Other sweepers than Hydra's own may return anything: then a failed run is reported but not counted.
    runs = [job for batch in batches or () for job in batch] if isinstance(batches, list) else []
    if any(folder.glob(f"*/{METRICS}")) and "entrypoint.quiet=true" not in overrides:
        name = plain(str(folder))
        print(f"multitalk: the runs are in {name}; compare them with: multitalk compare {name}", file=sys.stderr)
    return max((int(job.return_value) for job in runs), default=0)


def run_job(composed: DictConfig, *, swept: Sequence[str] = ()) -> int:
    """Make one run of a sweep over the keys `swept`, in its folder, and return its exit status.

    Launchers may call it in a new process. The weights of the previous run in this process are reused if they are the
    same.
    """
    silence_libraries()
    installed()
    hydra = HydraConfig.get()
    # Unresolved: resolving would unescape a prompt's "${" once too often.
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    keys = {*swept, *(hydra.sweeper.get("params") or ())}
    run = RunFolder(Path(hydra.runtime.output_dir), int(hydra.job.num), overrides, keys)
    print(f"multitalk: job {run.number}: {plain(', '.join(run.chosen))}", file=sys.stderr)
    try:
        return _make(run)
    except Cancelled as error:
        run.keep_error(error)
        # Not an Exception: Hydra would continue with the next run.
        raise KeyboardInterrupt(str(error)) from error
    except EngineError as error:
        run.keep_error(error)
        print(f"multitalk: error: job {run.number}: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001 - a bug or lack of memory: reported with its traceback, and counted
        run.keep_error(error)
        traceback.print_exc()
        # The state of the network is unknown.
        _release()
        return 1


def _make(run: RunFolder) -> int:
    global _previous
    words = list(run.overrides)
    config = _compose_checked(words, WeightsFinder(installed()))
    if config.sink.name == "disk":
        words.append(override("sink.folder", str(run.path)))
    service = _previous = EngineService(words, after=_previous)
    run.keep_config(service.config)
    with _deliveries() as deliveries:
        status = installed().entrypoints.build(service.config.entrypoint).run(service)
    if deliveries:
        run.keep_metrics(service, *deliveries[-1])
    else:
        run.discard()
    return status


def _check_new(folder: Path) -> None:
    if any(folder.glob(f"*/{METRICS}")) or any(folder.glob(f"[0-9]*/{CONFIG}")):
        raise ConfigError(
            f"{folder} contains the runs of an earlier sweep", field="hydra.sweep.dir", hint="choose another folder"
        )


def _check_runs(params: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise ConfigError, naming the run, if the config of a run is invalid.

    `params` are those of Hydra's sweeper; words of the command line override them.
    """
    words = [f"{key}={value}" for key, value in params.items()]
    values: dict[str, list[str]] = {}
    for part in OverridesParser.create().parse_overrides([*words, *overrides]):
        key = part.get_key_element()
        if part.is_sweep_override() and not part.is_discrete_sweep():
            # Hydra's sweeper rejects it with its own message.
            return
        if not part.key_or_group.startswith(("hydra.", "hydra/")):
            swept = part.is_sweep_override()
            values[key] = list(part.sweep_string_iterator()) if swept else [part.get_value_element_as_str()]
    # The sources are asked only once for weights that several runs need.
    weights = WeightsFinder(installed())
    for number, run in enumerate(itertools.product(*values.values())):
        words = [f"{key}={value}" for key, value in zip(values, run, strict=True)]
        try:
            _compose_checked(words, weights)
        except (ConfigError, RequestError) as error:
            differing = ", ".join(
                word for word, options in zip(words, values.values(), strict=True) if len(options) > 1
            )
            where = f" (job {number}: {plain(differing)})" if differing else ""
            raise ConfigError(f"{error.what}{where}", field=error.field, hint=error.hint, code=error.code) from error


def _compose_checked(words: Sequence[str], weights: WeightsFinder) -> Config:
    """Compose the config of one run. Raises ConfigError, and RequestError for values of its request."""
    config = compose(words)
    if config.parallel.name != "none":
        raise ConfigError("a sweep runs in one process", field="parallel", hint="choose parallel=none with -m")
    make_plan_inputs(config, installed(), weights)
    fields = config.request
    frames: Any = fields.frames
    if isinstance(frames, str) and re.fullmatch(r"[+-]?[0-9]{1,30}", frames):
        frames = int(frames)
    chosen: dict[str, Any] = {key: getattr(fields, key) for key in ("seed", "fps", "audio_type", "timing", "fit")}
    prompt = "in a timeline" if fields.prompt is None else fields.prompt
    # The run itself opens the picture and the voices: these names replace them here.
    check_request(Request(prompt, "picture", (Speaker("voice"),), fields.negative_prompt, frames=frames, **chosen))
    return config


@contextmanager
def _deliveries() -> Iterator[list[tuple[Request, Delivery]]]:
    """Collect the deliveries of any entrypoint."""
    deliveries: list[tuple[Request, Delivery]] = []

    class Collector:
        @hookimpl
        def generation_finished(self, request: Request, delivery: Delivery) -> None:
            deliveries.append((request, delivery))

    plugins = installed().plugins
    name = plugins.register(Collector())
    try:
        yield deliveries
    finally:
        plugins.unregister(name=name)


def _release() -> None:
    global _previous
    if _previous is not None:
        _previous.close()
        _previous = None

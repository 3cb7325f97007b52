"""The engine for entrypoints: plans without weights, and loads them for the first video."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.assembly.access import make_access
from engine.assembly.attention import plan_attention
from engine.assembly.compatibility import check_device, check_suited, with_loras
from engine.assembly.compose import Composer, compose, compose_request
from engine.assembly.estimates import advise, estimate_plan
from engine.assembly.licences import licences_for
from engine.assembly.location import WeightsFinder, locate_weights, weights_of
from engine.assembly.plan_request import plan_media, plan_request
from engine.assembly.prompts import lost_by, with_prompts
from engine.assembly.provenance import versions
from engine.assembly.sampling import build_sampling
from engine.assembly.settings import check_parallel
from engine.assembly.sinks import resume, sink_for_request
from engine.assembly.voices import usable_voices, voiced
from engine.cancel import acquire, apart, check
from engine.components import CancelToken, ProgressCallback
from engine.config import Config
from engine.data import Access, Delivery, Media, Plan, Request, Resumed
from engine.errors import ConfigError, EngineError, ProcessLost, SourceError
from engine.files.scratch import scratch
from engine.imports.collection import uncollected
from engine.loading.prefetch import reading_ahead
from engine.plugin.manager import installed
from engine.runtime.memory import reclaim
from engine.stages.read import listen

if TYPE_CHECKING:
    from engine.pipeline import Engine
    from engine.runtime.parallel import Ranks


class EngineService:
    """Implements `components.Service` for one boot config."""

    def __init__(
        self, overrides: Sequence[str] = (), *, access: Access | None = None, after: EngineService | None = None
    ) -> None:
        """Compose `overrides` (Hydra's grammar). Raises ConfigError; loads nothing.

        `after` is a service that is done. Its weights are not loaded again if they are what this one needs; else they
        are released before others are loaded.
        """
        self.overrides = tuple(overrides)
        self._composer = Composer(self.overrides)
        self.config = self._composer.config
        self.access = access or make_access(self.config)
        self._given_access = access
        self._registry = installed()
        self._engine: Engine | None = None
        self._after = None if after is None else after._hand_over()
        self._ranks: Ranks | None = None
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def generate(
        self, request: Request, *, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
    ) -> Delivery:
        """See `components.Service`. One generation runs at a time; others wait."""
        config, weights = self._config(request), WeightsFinder(self._registry)
        acquire(self._lock, cancel, "wait")
        try:
            engine = self._build_engine(weights)
            if self._ranks is not None and self._ranks.broken:
                # An earlier error left the other processes behind.
                raise ProcessLost()
            return engine.generate(request, config=config, progress=progress, cancel=cancel, weights=weights)
        finally:
            self._lock.release()

    def load(self) -> Mapping[str, float]:
        """See `components.Service`. The parts are "imports" and "weights"."""
        with self._lock:
            weights = WeightsFinder(self._registry)
            engine = self._build_engine(weights)
            if not engine.loaded:
                began = time.monotonic()
                engine.load(weights)
                self._seconds["weights"] = time.monotonic() - began
            return dict(self._seconds)

    def resume(self, request: Request, *, cancel: CancelToken | None = None) -> Resumed | None:
        """See `components.Service`."""
        own = self.config.sink
        sink = self._registry.sinks.build(own)
        sink = sink_for_request(sink, request, self._registry, self.access, own=own.name, cancel=cancel)
        return resume(sink, request)

    def plan(self, request: Request, *, cancel: CancelToken | None = None) -> Plan:
        """See `components.Service`."""
        config, weights = self._config(request), WeightsFinder(self._registry)
        with scratch() as folder:
            request = voiced(request, config, self._registry, self.access, folder, cancel=cancel)
            request, media, plan = self._plan(request, config, weights, folder, cancel)
            return apart(lambda: self._complete(plan, request, media, config, weights, cancel), cancel, "plan")

    def preview(self, request: Request, path: Path) -> Plan:
        """See `components.Service`."""
        from engine.assembly.find_regions import TooFewPeople
        from engine.stages.preview import draw_found, draw_preview

        with scratch() as folder:
            config = self._config(request)
            request = voiced(request, config, self._registry, self.access, folder)
            try:
                request, media, plan = self._plan(request, config, WeightsFinder(self._registry), folder)
            except TooFewPeople as error:
                draw_found(error.media, error.people, path)
                raise
            draw_preview(media, request, plan, path)
            return plan

    def capabilities(self) -> Mapping[str, Any]:
        """See `components.Service`."""
        config = self.config
        return {
            "model": config.model.name,
            "resolutions": sorted(config.model.resolutions),
            "resolution": config.resolution,
            "samplers": list(self._registry.samplers.names()),
            "sampler": config.sampler.name,
            "source": config.source.name,
            "quant": config.quant.name,
            "attention": config.attention.name,
            "lora": config.lora.mode,
            "reader": config.reader.name,
            "compile": config.compile.name,
            "parallel": config.parallel.name,
            "memory": config.memory.name if self._engine is None else self._engine.memory,
            "sink": config.sink.name,
            "sinks": list(self._registry.sinks.names()),
            "device": config.device,
            "window": config.model.window,
            "fps": config.model.fps,
            **usable_voices(config, self._registry),
            "versions": versions(),
            **licences_for(config),
        }

    def check(self) -> Mapping[str, Any]:
        """See `components.Service`."""
        report: dict[str, Any] = {"loaded": self._engine is not None and self._engine.loaded}
        errors: dict[str, EngineError] = {}
        try:
            folder = locate_weights(self.config, self._registry, fetch=True)
            report["weights"] = str(folder)
            check_suited(self.config, folder, self._registry)
        except (SourceError, ConfigError) as error:
            errors["weights"] = error
        try:
            self._registry.sinks.build(self.config.sink).check(None)
        except EngineError as error:
            errors["sink"] = error
        failed = {part: str(error) for part, error in errors.items()}
        hints = {part: error.hint for part, error in errors.items()}
        return report | {"failed": failed, "hints": hints, "errors": list(failed.values()), "healthy": not failed}

    def open(self, overrides: Sequence[str], *, alone: bool = False) -> EngineService:
        """See `components.Service`. An access given at boot stays; one that was composed is composed anew."""
        return EngineService([*(() if alone else self.overrides), *overrides], access=self._given_access)

    @property
    def engine(self) -> Engine:
        """The engine itself, for what looks into it. Raises ConfigError."""
        with self._lock:
            return self._build_engine(WeightsFinder(self._registry))

    @contextmanager
    def joined(self) -> Iterator[bool]:
        """Be one of the processes of `parallel` inside, where torchrun started some; yield whether another one leads.

        The config is the same in all of them. Raises ConfigError for what does not go together.
        """
        parallel = self.config.parallel
        check_parallel(self.config)
        if parallel.name == "none" or parallel.rank is None or parallel.size is None:
            # Without them a plan can be made, and no video.
            yield False
            return
        from engine.runtime.parallel import join_group

        with join_group(parallel, self.config.device) as self._ranks:
            yield self._ranks.rank > 0

    @contextmanager
    def lead(self) -> Iterator[None]:
        """Start the other processes of `parallel` inside, if the config asks for several, and lead them.

        After the block they end. Raises ConfigError for what does not go together.
        """
        parallel = self.config.parallel
        if parallel.name == "none":
            yield
            return
        from engine.runtime.parallel import join_group
        from engine.runtime.started import started

        joined = threading.Event()
        with (
            started(self.overrides, parallel, self.config.device, joined) as own,
            join_group(own, self.config.device) as self._ranks,
        ):
            joined.set()
            yield

    def follow(self) -> int:
        """Share the work of the process that leads until it has done; return the exit status."""
        with self._lock:
            self._build_engine(WeightsFinder(self._registry)).follow()
        return 0

    def close(self) -> None:
        """See `components.Service`."""
        with self._lock:
            for engine in filter(None, (self._engine, self._after)):
                engine.close()
                reclaim()
            self._engine = self._after = None

    @property
    def reused(self) -> bool:
        """Whether the weights in memory were loaded by a service before this one."""
        return self._engine is not None and self._engine.reused

    def __enter__(self) -> EngineService:
        """Close the service at the end of a `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()

    def _hand_over(self) -> Engine | None:
        with self._lock:
            engine, self._engine = self._engine or self._after, None
            self._after = None
            return engine

    def _build_engine(self, weights: WeightsFinder) -> Engine:
        if self._engine is None:
            began = time.monotonic()
            # The libraries take seconds in which nothing would be read.
            first = "engine.pipeline" not in sys.modules
            with reading_ahead(self._weight_files(weights)), uncollected(final=first):
                from engine.pipeline import Engine

            self._seconds["imports"] = time.monotonic() - began
            self._engine = Engine(self.config, self._registry, access=self.access, after=self._after, ranks=self._ranks)
            self._after = None
        return self._engine

    def _weight_files(self, weights: WeightsFinder) -> list[Path]:
        if "engine.pipeline" in sys.modules:
            return []
        from engine.loading.layout import find_parts

        needed = weights_of(self.config)
        try:
            parts, _ = find_parts(weights.folder(self.config), needed)
        except EngineError:
            # Whoever loads them reports it, and may still be waiting for a person to fetch them.
            return []
        # In the order in which they are loaded: what is read too early has left the cache again.
        return [path for component in needed.components if component in parts for path in parts[component].files]

    def _plan(
        self, request: Request, config: Config, weights: WeightsFinder, folder: Path, cancel: CancelToken | None = None
    ) -> tuple[Request, Media, Plan]:
        return plan_request(request, config, self._registry, self.access, weights, folder, cancel=cancel)

    def _complete(
        self,
        plan: Plan,
        request: Request,
        media: Media,
        config: Config,
        weights: WeightsFinder,
        cancel: CancelToken | None,
    ) -> Plan:
        """Return `plan` with estimates, and with what is known from the headers of the weights and from the sound."""
        plan = plan_attention(estimate_plan(plan, config, self._registry), config, self._registry)
        if (folder := plan.weights) is None:
            try:
                check_device(config, self._registry)
            except EngineError as error:
                plan = _impossible(plan, error)
        else:
            try:
                plan = with_loras(plan, config, folder, check_suited(config, folder, self._registry))
                branches = build_sampling(config, self._registry).guidance.branches
                plan = with_prompts(plan, request, config, branches, lost_by(config, folder))
            except EngineError as error:
                plan = _impossible(plan, error)
        plan = replace(plan, warnings=(*plan.warnings, *listen(media, plan, cancel=cancel)))
        if plan.estimates is None:
            return plan

        def replan(change: Sequence[str]) -> Plan:
            check(cancel, "plan")
            other = self._config(request, change)
            planned = plan_media(request, media, other, self._registry, weights, cancel=cancel)
            return estimate_plan(planned, other, self._registry)

        return replace(plan, estimates=advise(plan.estimates, config, replan))

    def _config(self, request: Request, change: Sequence[str] = ()) -> Config:
        if not change:
            return self._composer.request(request.overrides)
        boot = (*self.overrides, *change)
        return compose_request(boot, request.overrides) if request.overrides else compose(boot)


def _impossible(plan: Plan, error: EngineError) -> Plan:
    return replace(plan, warnings=(f"no video can be generated by this config: {error}", *plan.warnings))

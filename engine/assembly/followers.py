"""The processes that share the forwards of one job: rank 0, which generates, and those that follow it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from engine.assembly.batching import is_batched
from engine.assembly.sampling import Sampling, build_sampling
from engine.assembly.weights import LoadedModel
from engine.components import CancelToken
from engine.config import Config
from engine.errors import Cancelled, ProcessLost
from engine.family import Denoising, FamilyModel, SharingModel
from engine.plugin.manager import Registry
from engine.runtime.parallel import DenoiseWindow, LoadWeights, Ranks, require_ranks

logger = logging.getLogger(__name__)


class ProcessGroup:
    """The processes of one job, or this process alone. Methods raise ProcessLost if another one has ended."""

    def __init__(self, config: Config, registry: Registry, ranks: Ranks | None) -> None:
        """Raises ConfigError if `config` requires several processes and there is only one."""
        self._registry = registry
        self._ranks = require_ranks(config.parallel, ranks)
        self._family = config.family
        #: Number of processes in the group, including this one.
        self.size = 1 if ranks is None else ranks.size
        #: Number of processes among which the tokens of a forward are divided.
        self.sharing = 1 if ranks is None else ranks.sharing

    @property
    def follows(self) -> bool:
        """Whether another process leads."""
        return self._ranks is not None and self._ranks.rank > 0

    def build_sampling(self, config: Config) -> Sampling:
        """Build the components of a request's config; their decisions while running are the same in all processes.

        Raises ConfigError.
        """
        return build_sampling(config, self._registry, agree=None if self._ranks is None else self._ranks.agree)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Context in which to load the weights: rank 0 makes the others load too, and a failure of one reaches all."""
        if self._ranks is None:
            yield
            return
        if self._ranks.rank == 0:
            self._ranks.broadcast(LoadWeights())
        with self._ranks.synchronised():
            yield

    def denoise(
        self,
        model: FamilyModel,
        conditions: Any,
        sampling: Sampling,
        generator: torch.Generator,
        config: Config,
        on_step: Callable[[int, int], None],
        *,
        cancel: CancelToken,
        look: Callable[[int, Tensor, Tensor, float], None] | None = None,
    ) -> Tensor:
        """Denoise a window, from noise of `generator`, together with the processes that follow.

        `on_step` and `look` (see `engine.family.Denoising`) are called in this process only. The others build their own
        `sampling` from the request's `config`. Raises Cancelled.
        """
        noise = model.noise(conditions, generator)
        alone = Denoising(
            sampler=sampling.sampler,
            guidance=sampling.guidance,
            cache=sampling.cache,
            generator=generator,
            tally=sampling.tally,
            cancel=cancel,
            on_step=on_step,
            look=look,
            batched=partial(is_batched, sampling.batched, model, len(sampling.guidance.branches)),
        )
        if self._ranks is None:
            return model.denoise(conditions, noise, alone)
        self._ranks.broadcast(DenoiseWindow(config, conditions, noise, generator.get_state()))
        with self._ranks.denoising(cancel) as agreed:
            return self._together(self._ranks, model, conditions, noise, replace(alone, cancel=agreed))

    def follow(self, load: Callable[[], LoadedModel], device: str) -> None:
        """Follow rank 0 until it ends: load, and take part in denoising. Raises ProcessLost."""
        assert self._ranks is not None
        conditions = self._registry.families.build(self._family).messages()
        while (message := self._ranks.receive(device, conditions)) is not None:
            if isinstance(message, DenoiseWindow):
                self._denoise_along(self._ranks, message, load())
                continue
            try:
                load()
            except ProcessLost:
                raise
            except Exception:
                # Rank 0 gets this failure too, and raises it.
                logger.debug("cannot load", exc_info=True)

    def _denoise_along(self, ranks: Ranks, message: DenoiseWindow, loaded: LoadedModel) -> None:
        sampling = self.build_sampling(message.config)
        model = loaded.set_loras(message.config)
        generator = torch.Generator()
        generator.set_state(message.generator.cpu())
        with ranks.denoising(None) as cancel, suppress(Cancelled):
            steps = Denoising(
                sampler=sampling.sampler,
                guidance=sampling.guidance,
                cache=sampling.cache,
                generator=generator,
                tally=sampling.tally,
                cancel=cancel,
            )
            self._together(ranks, model, message.conditions, message.noise, steps)

    def _together(self, ranks: Ranks, model: FamilyModel, conditions: Any, noise: Tensor, steps: Denoising) -> Tensor:
        # A family whose forwards cannot be shared is refused before (`check_family`).
        sharing = cast("SharingModel", model)
        if ranks.sharing > 1:
            conditions = sharing.part_of(conditions, ranks.group, ranks.place, ranks.sharing)
        return model.denoise(conditions, noise, replace(steps, shared=ranks if ranks.groups > 1 else None))

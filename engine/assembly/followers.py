"""The processes that share the forwards of one job: rank 0, which generates, and those that follow it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from engine.assembly.batching import is_batched
from engine.assembly.sampling import Sampling, build_sampling
from engine.assembly.weights import LoadedModel
from engine.components import CancelToken
from engine.config import Config
from engine.data import Conditions
from engine.errors import Cancelled, ProcessLost
from engine.loading.model import Model
from engine.plugin.manager import Registry
from engine.runtime.parallel import DenoiseWindow, LoadWeights, Ranks, require_ranks
from engine.stages.denoise import denoise, draw_noise

logger = logging.getLogger(__name__)


class ProcessGroup:
    """The processes of one job, or this process alone. Methods raise ProcessLost if another one has ended."""

    def __init__(self, config: Config, registry: Registry, ranks: Ranks | None) -> None:
        """Raises ConfigError if `config` requires several processes and there is only one."""
        self._registry = registry
        self._ranks = require_ranks(config.parallel, ranks)
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
        model: Model,
        conditions: Conditions,
        sampling: Sampling,
        generator: torch.Generator,
        config: Config,
        on_step: Callable[[int, int], None],
        *,
        cancel: CancelToken,
        look: Callable[[int, Tensor, Tensor, float], None] | None = None,
    ) -> Tensor:
        """Denoise a window, from noise of `generator`, together with the processes that follow.

        `on_step` and `look` (see `stages.denoise`) are called in this process only. The others build their own
        `sampling` from the request's `config`. Raises Cancelled.
        """
        noise = draw_noise((model.codec.channels, *conditions.latents.shape[1:]), generator)
        if self._ranks is None:
            return _denoise(model, conditions, noise, sampling, generator, on_step, cancel, look=look)
        self._ranks.broadcast(DenoiseWindow(config, conditions, noise, generator.get_state()))
        with self._ranks.denoising(cancel) as agreed:
            part = self._ranks.part_of(conditions)
            return _denoise(model, part, noise, sampling, generator, on_step, agreed, self._ranks, look)

    def follow(self, load: Callable[[], LoadedModel], device: str) -> None:
        """Follow rank 0 until it ends: load, and take part in denoising. Raises ProcessLost."""
        assert self._ranks is not None
        while (message := self._ranks.receive(device)) is not None:
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
            part = ranks.part_of(message.conditions)
            _denoise(model, part, message.noise, sampling, generator, None, cancel, ranks)


def _denoise(
    model: Model,
    conditions: Conditions,
    noise: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    on_step: Callable[[int, int], None] | None,
    cancel: CancelToken,
    ranks: Ranks | None = None,
    look: Callable[[int, Tensor, Tensor, float], None] | None = None,
) -> Tensor:
    with model.use("transformer"):
        return denoise(
            model.transformer,
            conditions,
            noise,
            sampler=sampling.sampler,
            guidance=sampling.guidance,
            cache=sampling.cache,
            generator=generator,
            on_step=on_step,
            look=look,
            cancel=cancel,
            tally=sampling.tally,
            shared=ranks if ranks is not None and ranks.groups > 1 else None,
            batched=is_batched(sampling.batched, model, conditions, len(sampling.guidance.branches)),
        )

"""TeaCache (arXiv 2411.19108): skip the blocks while the time embedding has changed little."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import II

from engine import hookimpl
from engine.components import Agree, CacheCost, StepCache
from engine.config import CacheConfig, within
from engine.errors import ConfigError
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor, nn

_HOOK = "multitalk_teacache"


@dataclass
class TeaCacheConfig(CacheConfig):
    """TeaCache (arXiv 2411.19108): skip the blocks while the time embedding has changed little."""

    name: str = "teacache"
    #: Accumulated relative change that forces a computed step; 0.2 .. 0.5 is useful.
    threshold: float = field(default=0.2, metadata=within(1e-6, 100))
    #: First steps that are always computed.
    warmup: int = field(default=5, metadata=within(1, 1000))
    #: Polynomial from the change of the time embedding to that of the output, highest power first.
    coefficients: list[float] = field(
        default=II("model.resolutions.${resolution}.teacache"), metadata=within(-1e9, 1e9)
    )


class TeaCache:
    """TeaCache (arXiv 2411.19108): skip the blocks while the time embedding has changed little.

    The modulated time embedding does not depend on the conditions, so all branches of a step share one decision and
    each keeps its own residual (what the blocks added to their input when last computed). Steps are identified by
    number and branches by name, so any number of branches works. Raises ConfigError for a value out of range.
    """

    def __init__(self, config: TeaCacheConfig) -> None:
        if not config.coefficients:
            raise _out_of_range("coefficients", "no coefficients were measured for this model", "choose another cache")
        if not config.threshold > 0:
            raise _out_of_range("threshold", f"a threshold of {config.threshold:g}", "0.2 to 0.5 is useful")
        if not config.warmup >= 1:
            # The first step must compute the residual that replaces the blocks later.
            raise _out_of_range("warmup", f"{config.warmup} warm-up steps", "give 1 or more")
        self.threshold = config.threshold
        self.warmup = config.warmup
        self.coefficients = tuple(config.coefficients)
        self._agree: Agree = bool
        #: Which steps of the window ran the blocks.
        self.computed: list[bool] = []
        self._reset()

    def shared(self, agree: Agree) -> StepCache:
        """Make all processes decide alike: on different devices, values may differ in the last bit."""
        self._agree = agree
        return self

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        """One residual for each branch and, within a forward pass, the input of the blocks; one decision for all."""
        return CacheCost(kept=(branches + 1) * tokens * channels * 4, reads=1)

    def _reset(self) -> None:
        self.computed = []
        self._branch = ""
        self._step = -1
        self._decided = -1
        self._accumulated = 0.0
        self._signal: Tensor | None = None
        self._input: Tensor | None = None
        self._residuals: dict[str, Tensor] = {}
        self.running = True

    @contextmanager
    def attach(self, transformer: Any) -> Iterator[None]:
        """Hook every block of `transformer`; a skipped block does not run, so offloading does not load it."""
        from diffusers.hooks import HookRegistry

        blocks: list[nn.Module] = list(transformer.blocks)
        self._reset()
        try:
            for index, block in enumerate(blocks):
                registry = HookRegistry.check_if_exists_or_initialize(block)
                registry.register_hook(_hook()(self, index == 0, index == len(blocks) - 1), _HOOK)
            yield
        finally:
            for block in blocks:
                HookRegistry.check_if_exists_or_initialize(block).remove_hook(_HOOK, recurse=False)
            self._signal = self._input = None
            self._residuals.clear()

    @contextmanager
    def branch(self, name: str, step: int) -> Iterator[None]:
        """Name the forward pass in this context; the first one of a step decides for all of them."""
        self._branch, self._step = name, step
        yield

    def decide(self, signal: Tensor) -> bool:
        """Return whether this forward pass runs the blocks; `signal` is its time modulation, (1, 6, D)."""
        if self._decided != self._step:
            self._decided = self._step
            # Different devices may differ in the last bit; a process that skips alone would block the others.
            self.computed.append(self._agree(self._changed(signal)))
            self._signal = signal
        return self.computed[-1] or self._branch not in self._residuals

    def _changed(self, signal: Tensor) -> bool:
        if self._step >= self.warmup and self._signal is not None:
            change = float((signal - self._signal).abs().mean() / self._signal.abs().mean())
            estimate = 0.0
            for coefficient in self.coefficients:
                estimate = estimate * change + coefficient
            self._accumulated += estimate
            if self._accumulated < self.threshold:
                return False
        self._accumulated = 0.0
        return True

    def recall(self, tokens: Tensor) -> Tensor:
        """Return the estimated output of the blocks: `tokens` plus this branch's last residual."""
        return tokens + self._residuals[self._branch]

    def begin(self, tokens: Tensor) -> None:
        """Store the input of the blocks."""
        self._input = tokens

    def end(self, tokens: Tensor) -> None:
        """Store the residual: what the blocks added."""
        if self._input is not None:
            self._residuals[self._branch] = tokens - self._input
        self._input = None


def _out_of_range(name: str, what: str, hint: str) -> ConfigError:
    return ConfigError(what, field=f"cache.{name}", hint=hint)


@functools.cache
def _hook() -> Any:
    """Return the class of the hook of one block; defined here because its base class needs torch."""
    from diffusers.hooks import ModelHook

    class TeaCacheHook(ModelHook):  # type: ignore[misc]
        def __init__(self, cache: TeaCache, first: bool, last: bool) -> None:
            super().__init__()
            self.cache, self.first, self.last = cache, first, last

        def new_forward(self, module: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            cache = self.cache
            if self.first:
                # The third argument of MultiTalkTransformerBlock.forward, the second after hidden_states, is temb.
                cache.running = cache.decide(kwargs["temb"] if "temb" in kwargs else args[1])
                if not cache.running:
                    return cache.recall(hidden_states)
                cache.begin(hidden_states)
            elif not cache.running:
                return hidden_states
            output: Tensor = self.fn_ref.original_forward(hidden_states, *args, **kwargs)
            if self.last:
                cache.end(output)
            return output

    return TeaCacheHook


@hookimpl
def register_caches(register: Register[StepCache]) -> None:
    register(TeaCache, TeaCacheConfig)

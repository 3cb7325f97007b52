"""Step caches: forwards whose blocks are replaced by what an earlier step gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from engine.errors import ConfigError, UnknownComponent

NAMES = ("none", "teacache", "firstblock", "taylorseer")
_HOOK = "multitalk_teacache"
_SHARED = "choose teacache, taylorseer or none with parallel=ulysses"

#: Returns the decision of one of the processes that share a forward, the same one's for all.
Agree = Callable[[bool], bool]


class StepCache(Protocol):
    """A cache over the forwards of one window."""

    def attach(self, transformer: Any) -> AbstractContextManager[None]:
        """Work on `transformer` inside a `with`, from an empty state; leaves nothing behind, whatever happens."""
        ...

    def branch(self, name: str, step: int) -> AbstractContextManager[None]:
        """Say which guidance branch and step (from 0) the forward inside a `with` belongs to."""
        ...


def make_cache(
    name: str,
    *,
    threshold: float = 0.2,
    warmup: int = 5,
    coefficients: Sequence[float] = (),
    interval: int = 3,
    order: int = 1,
    agree: Agree | None = None,
) -> StepCache:
    """Build the cache `name`; each takes what it needs of the other arguments.

    "teacache": `threshold`, `warmup`, `coefficients` (highest power first). "firstblock": `threshold`. "taylorseer":
    `warmup`, `interval`, `order`. Where several processes share a forward `agree` makes them decide alike. Raises
    UnknownComponent, and ConfigError for a value out of range.
    """
    if name == "none":
        return NoCache()
    if name not in NAMES:
        raise UnknownComponent("cache", name, NAMES)
    if name == "teacache":
        _require(bool(coefficients), "coefficients", "none were measured for this model", "choose another cache")
        _require(threshold > 0, "threshold", f"a threshold of {threshold:g}", "0.2 to 0.5 is useful")
        # The residual that stands in for the blocks must come from somewhere.
        _require(warmup >= 1, "warmup", f"{warmup} warm-up steps", "give 1 or more")
        return TeaCache(threshold, warmup, coefficients, agree)
    if name == "firstblock":
        _require(agree is None, "name", "firstblock decides by all tokens, of which each process has a part", _SHARED)
        _require(threshold >= 0, "threshold", f"a threshold of {threshold:g}", "0.05 to 0.2 is useful")
        return _DiffusersCache(FirstBlockCacheConfig(threshold=threshold))
    _require(interval >= 1, "interval", f"an interval of {interval}", "give 1 or more")
    _require(0 <= order <= 4, "order", f"order {order}", "give 0 to 4")
    _require(warmup > order, "warmup", f"{warmup} warm-up steps for order {order}", f"give {order + 1} or more")
    return _DiffusersCache(
        TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=warmup,
            max_order=order,
            # Only the last projection's output is kept: small, and so kept exactly.
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,
        )
    )


def _require(holds: bool, field: str, what: str, hint: str) -> None:
    if not holds:
        raise ConfigError(what, field=f"cache.{field}", hint=hint)


class NoCache:
    """Computes everything."""

    def attach(self, transformer: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def branch(self, name: str, step: int) -> AbstractContextManager[None]:
        return nullcontext()


class TeaCache:
    """TeaCache (arXiv 2411.19108): skip the blocks while the time embedding has changed little.

    The modulated time embedding does not depend on the conditions, so all branches of a step share one decision and
    each keeps its own residual (what the blocks added to their input when last computed). Steps are told by number
    and branches by name, so any number of branches works.
    """

    def __init__(
        self, threshold: float, warmup: int, coefficients: Sequence[float], agree: Agree | None = None
    ) -> None:
        self.threshold = threshold
        self.warmup = warmup
        self.coefficients = tuple(coefficients)
        self._agree = agree or bool
        #: Which steps of the window ran the blocks.
        self.computed: list[bool] = []
        self._reset()

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
        """Hook every block of `transformer`; a skipped block is not entered, so offloading does not load it."""
        blocks: list[nn.Module] = list(transformer.blocks)
        self._reset()
        try:
            for index, block in enumerate(blocks):
                registry = HookRegistry.check_if_exists_or_initialize(block)
                registry.register_hook(_TeaCacheHook(self, index == 0, index == len(blocks) - 1), _HOOK)
            yield
        finally:
            for block in blocks:
                HookRegistry.check_if_exists_or_initialize(block).remove_hook(_HOOK, recurse=False)
            self._signal = self._input = None
            self._residuals.clear()

    @contextmanager
    def branch(self, name: str, step: int) -> Iterator[None]:
        """Name the forward inside; the first of a step decides for all of it."""
        self._branch, self._step = name, step
        yield

    def decide(self, signal: Tensor) -> bool:
        """Say whether this forward runs the blocks; `signal` is the modulation of its time, (1, 6, D)."""
        if self._decided != self._step:
            self._decided = self._step
            # Processes on unlike devices may differ in the last bit, and one that skips leaves the others waiting.
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
        """Return what the blocks would make of `tokens`, by this branch's last residual."""
        return tokens + self._residuals[self._branch]

    def begin(self, tokens: Tensor) -> None:
        """Remember what enters the blocks."""
        self._input = tokens

    def end(self, tokens: Tensor) -> None:
        """Keep what the blocks added."""
        if self._input is not None:
            self._residuals[self._branch] = tokens - self._input
        self._input = None


class _TeaCacheHook(ModelHook):  # type: ignore[misc]
    def __init__(self, cache: TeaCache, first: bool, last: bool) -> None:
        super().__init__()
        self.cache, self.first, self.last = cache, first, last

    def new_forward(self, module: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        cache = self.cache
        if self.first:
            # MultiTalkTransformerBlock.forward(hidden_states, encoder_hidden_states, temb, ...)
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


class _DiffusersCache:
    """One of diffusers' caches, which keep a state for each named context."""

    def __init__(self, config: FirstBlockCacheConfig | TaylorSeerCacheConfig) -> None:
        self.config = config
        self._transformer: Any = None

    @contextmanager
    def attach(self, transformer: Any) -> Iterator[None]:
        if isinstance(self.config, FirstBlockCacheConfig) and len(transformer.blocks) < 2:
            raise ConfigError("a network of one block has no others to skip", field="cache", hint="choose cache=none")
        # Enabling makes new, empty states.
        transformer.enable_cache(self.config)
        self._transformer = transformer
        try:
            yield
        finally:
            self._transformer = None
            # Disabling alone leaves hooks and states in circles, and at 720p 13 GB on the device, until Python looks.
            HookRegistry.check_if_exists_or_initialize(transformer).reset_stateful_hooks(recurse=True)
            transformer.disable_cache()

    @contextmanager
    def branch(self, name: str, step: int) -> Iterator[None]:
        with self._transformer.cache_context(name, step_index=step):
            yield

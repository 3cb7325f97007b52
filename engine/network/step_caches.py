"""Base classes of step caches that replace the work of a whole forward; created without torch."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from engine.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

_HOOK = "multitalk_step_cache"


def out_of_range(name: str, what: str, hint: str) -> ConfigError:
    """Return the error that the value of a cache's key `name`, described by `what`, is out of its range."""
    return ConfigError(what, field=f"cache.{name}", hint=hint)


@runtime_checkable
class TimedCache(Protocol):
    """A step cache that decides by the time of an evaluation."""

    def at(self, time: float) -> None:
        """Set the time, 0 .. 1000, of the following forwards; called before each evaluation."""
        ...


@runtime_checkable
class CountingCache(Protocol):
    """A step cache that counts the forwards that it skipped, so that an answer can report those that were made."""

    @property
    def skipped(self) -> int:
        """The number of forwards of this window so far that ran no block, or only the first."""
        ...


class SharedDecision(ABC):
    """The decision to compute or to skip an evaluation, which all its branches share.

    The first forward of an evaluation decides. Evaluations have numbers and branches have names, so any number of
    branches works. Subclasses say what a forward stores and how it is skipped.
    """

    def __init__(self) -> None:
        self._agree: Callable[[bool], bool] = bool
        self.reset()

    def reset(self) -> None:
        """Forget the window."""
        #: Which evaluations of the window were computed.
        self.computed: list[bool] = []
        #: Forwards that were skipped.
        self.skipped = 0
        #: Names of the branches of the forward: several if it is a batch.
        self._branches: tuple[str, ...] = ()
        self._step = -1
        self._decided = -1

    @contextmanager
    def branch(self, name: str, step: int) -> Iterator[None]:
        """Set the branch and the evaluation of the forward inside a `with`; "+" joins the branches of a batch."""
        self._branches, self._step = tuple(name.split("+")), step
        yield

    def shared(self, agree: Callable[[bool], bool]) -> Self:
        """Make all processes decide alike: on different devices, values may differ in the last bit."""
        self._agree = agree
        return self

    def decide(self, signal: Tensor) -> bool:
        """Return whether this forward is computed; `signal` is what `must_compute` decides by."""
        if self._decided != self._step:
            self._decided = self._step
            # A process that skips alone would block the others.
            self.computed.append(self._agree(self.must_compute(signal)))
        computes = self.computed[-1] or not all(map(self.remembers, self._branches))
        self.skipped += 0 if computes else len(self._branches)
        return computes

    @abstractmethod
    def must_compute(self, signal: Tensor) -> bool:
        """Return whether this evaluation has to be computed; called once for each evaluation."""

    @abstractmethod
    def remembers(self, branch: str) -> bool:
        """Return whether a skipped forward of that branch can be replaced."""


class ResidualCache(SharedDecision):
    """Skips the blocks of a forward and adds the residual of its branch instead: what the blocks last added.

    `must_compute` gets the time modulation, float32 (1, 6, D), which does not depend on the branch.
    """

    def reset(self) -> None:
        super().reset()
        self._input: Tensor | None = None
        self._residuals: dict[str, Tensor] = {}
        self.running = True

    def remembers(self, branch: str) -> bool:
        return branch in self._residuals

    @contextmanager
    def attach(self, transformer: Any) -> Iterator[None]:
        """Hook every block of `transformer`; a skipped block does not run, so offloading does not load it."""
        from diffusers.hooks import HookRegistry

        blocks: list[nn.Module] = list(transformer.blocks)
        self.reset()
        try:
            for index, block in enumerate(blocks):
                registry = HookRegistry.check_if_exists_or_initialize(block)
                registry.register_hook(_block_hook()(self, index == 0, index == len(blocks) - 1), _HOOK)
            yield
        finally:
            for block in blocks:
                HookRegistry.check_if_exists_or_initialize(block).remove_hook(_HOOK, recurse=False)
            self._release()

    def _release(self) -> None:
        self._input = None
        self._residuals.clear()

    def recall(self, tokens: Tensor) -> Tensor:
        """Return the estimated output of the blocks: `tokens` plus the last residual of each branch."""
        return tokens + join([self._residuals[branch] for branch in self._branches])

    def begin(self, tokens: Tensor) -> None:
        """Store the input of the blocks."""
        self._input = tokens

    def end(self, tokens: Tensor) -> None:
        """Store the residual: what the blocks added."""
        if self._input is not None:
            self._residuals |= zip(self._branches, (tokens - self._input).chunk(len(self._branches)), strict=True)
        self._input = None


class OutputCache(SharedDecision):
    """Skips a whole forward and estimates its output from its input.

    `must_compute` gets the noisy latents of the forward, (1, 16, T, h, w).
    """

    @contextmanager
    def attach(self, transformer: Any) -> Iterator[None]:
        """Hook `transformer` itself; of a skipped forward nothing runs."""
        from diffusers.hooks import HookRegistry

        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        self.reset()
        try:
            registry.register_hook(_root_hook()(self, int(transformer.config.out_channels)), _HOOK)
            yield
        finally:
            registry.remove_hook(_HOOK, recurse=False)
            self.reset_tensors()

    @abstractmethod
    def recall(self, latents: Tensor) -> Tensor:
        """Return the estimated outputs of the branches for noisy latents, float32: one sample for each branch."""

    @abstractmethod
    def learn(self, latents: Tensor, output: Tensor) -> None:
        """Store what the branches need of a computed forward, whose output has one sample for each branch."""

    @abstractmethod
    def reset_tensors(self) -> None:
        """Release all tensors."""


def join(parts: list[Tensor]) -> Tensor:
    """Return samples as one batch."""
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(parts)


@functools.cache
def _block_hook() -> Any:
    """Return the class of the hook of one block; defined here because its base class needs torch."""
    from diffusers.hooks import ModelHook

    class BlockHook(ModelHook):  # type: ignore[misc]
        def __init__(self, cache: ResidualCache, first: bool, last: bool) -> None:
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

    return BlockHook


@functools.cache
def _root_hook() -> Any:
    """Return the class of the hook of the whole network."""
    from diffusers.hooks import ModelHook
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    class RootHook(ModelHook):  # type: ignore[misc]
        def __init__(self, cache: OutputCache, channels: int) -> None:
            super().__init__()
            self.cache, self.channels = cache, channels

        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            inputs = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            # The other channels are the mask and the condition's latents.
            latents = inputs[:, : self.channels].float()
            if self.cache.decide(latents):
                result = self.fn_ref.original_forward(*args, **kwargs)
                self.cache.learn(latents, result[0])
                return result
            sample = self.cache.recall(latents)
            return Transformer2DModelOutput(sample=sample) if kwargs.get("return_dict", True) else (sample,)

    return RootHook

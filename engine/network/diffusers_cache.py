"""One of diffusers' own step caches on the network, for components that wrap one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook

_COUNT = "multitalk_count"


class _Count(ModelHook):  # type: ignore[misc]
    """Counts the samples that reach a block's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += len(args[0] if args else kwargs["hidden_states"])
        return args, kwargs


class DiffusersCache:
    """One of diffusers' caches, which keep a state for each named context."""

    def __init__(self, config: Any) -> None:
        """Take one of diffusers' cache configs, such as diffusers.FirstBlockCacheConfig."""
        self.config = config
        self._transformer: Any = None
        self._forwards = 0
        self._count = _Count()

    @property
    def skipped(self) -> int:
        """The number of forwards of this window so far that did not run the last block."""
        return self._forwards - self._count.calls

    @contextmanager
    def attach(self, transformer: Any) -> Iterator[None]:
        """Work on `transformer` inside, from an empty state; leaves nothing behind."""
        self._forwards, self._count = 0, _Count()
        last = HookRegistry.check_if_exists_or_initialize(transformer.blocks[-1])
        # Before the cache's own hooks, which then run around it.
        last.register_hook(self._count, _COUNT)
        try:
            # Enabling makes new, empty states.
            transformer.enable_cache(self.config)
            self._transformer = transformer
            yield
        finally:
            self._transformer = None
            # Disabling alone leaves hooks and states in circles, and at 720p 13 GB on the device, until Python looks.
            HookRegistry.check_if_exists_or_initialize(transformer).reset_stateful_hooks(recurse=True)
            if transformer.is_cache_enabled:
                transformer.disable_cache()
            last.remove_hook(_COUNT, recurse=False)

    @contextmanager
    def branch(self, name: str, step: int) -> Iterator[None]:
        """Say which context and which number the forward inside belongs to."""
        self._forwards += len(name.split("+"))
        with self._transformer.cache_context(name, step_index=step):
            yield

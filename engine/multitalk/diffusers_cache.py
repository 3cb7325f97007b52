"""One of diffusers' own step caches on the network, for components that wrap one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry


class DiffusersCache:
    """One of diffusers' caches, which keep a state for each named context."""

    def __init__(self, config: Any) -> None:
        """Take one of diffusers' cache configs, such as diffusers.FirstBlockCacheConfig."""
        self.config = config
        self._transformer: Any = None

    @contextmanager
    def attach(self, transformer: Any) -> Iterator[None]:
        """Work on `transformer` inside, from an empty state; leaves nothing behind."""
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
        """Say which context and which number the forward inside belongs to."""
        with self._transformer.cache_context(name, step_index=step):
            yield

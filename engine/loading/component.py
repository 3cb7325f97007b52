"""A component of a model: read from disk when it is needed, released when it is not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.text.amounts import gigabytes

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def _ignore(_module: Any) -> None:
    pass


@dataclass
class Component:
    """One component: how it is read, and the module while it is in memory."""

    name: str
    #: Size of its weights in memory, bytes.
    size: int
    #: Reads it to a device and returns it ready to run.
    read: Callable[[str], nn.Module]
    #: Called with the module after it was read, and with None after it was released.
    on_change: Callable[[Any], None] = _ignore
    module: nn.Module | None = field(default=None, repr=False)

    def load(self, device: str) -> nn.Module:
        """Read the component to `device`, unless it is in memory. Raises SourceError for a damaged file."""
        if self.module is None:
            began = time.monotonic()
            self.module = self.read(device)
            logger.info("read %s, %s, in %.1f s", self.name, gigabytes(self.size, 2), time.monotonic() - began)
            self.on_change(self.module)
        return self.module

    def release(self) -> None:
        """Drop the module, if it is in memory; `load` reads it again.

        Its memory is free after the next garbage collection: a network and its hooks are in a reference cycle.
        """
        if self.module is None:
            return
        self.module = None
        self.on_change(None)

"""A component of a model, read from disk when it is wanted and released when it is not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from engine.text.amounts import gigabytes

logger = logging.getLogger(__name__)


def _nobody(_module: Any) -> None:
    pass


@dataclass
class Component:
    """One component: how it is read, and the module while it is in memory."""

    name: str
    #: Bytes of its weights in memory.
    size: int
    #: Reads it to a device, ready to run.
    read: Callable[[str], nn.Module]
    #: Called with the module when it is in memory, and with None when it is released.
    hand: Callable[[Any], None] = _nobody
    module: nn.Module | None = field(default=None, repr=False)

    def load(self, device: str) -> nn.Module:
        """Read the component to `device`, unless it is in memory. Raises SourceError for a damaged file."""
        if self.module is None:
            began = time.monotonic()
            self.module = self.read(device)
            logger.info("read %s, %s, in %.1f s", self.name, gigabytes(self.size, 2), time.monotonic() - began)
            self.hand(self.module)
        return self.module

    def release(self) -> None:
        """Let go of the module, if it is in memory; `load` reads it again.

        Its memory is free as soon as the garbage is collected: a network and the hooks on it hold each other.
        """
        if self.module is None:
            return
        self.module = None
        self.hand(None)

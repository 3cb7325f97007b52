"""A parser of the command line whose errors are ours. Needs nothing but Python, as `multitalk models` does."""

from __future__ import annotations

import argparse
from typing import NoReturn

from engine.errors import ConfigError


class BaseParser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError in place of printing usage."""
        raise ConfigError(message.removeprefix("argument "), field="command line", hint=f"see {self.prog} --help")

"""A parser of the command line whose errors are ours. Needs nothing but Python, as `multitalk models` does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from engine.errors import ConfigError


class BaseParser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    #: Is given the parser in place of the arguments being parsed, which then ends; for the lists of completion.
    observer: ClassVar[Callable[[BaseParser], None] | None] = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does."""
        if BaseParser.observer is not None:
            BaseParser.observer(self)
            raise SystemExit(0)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError in place of printing usage."""
        raise ConfigError(message.removeprefix("argument "), field="command line", hint=f"see {self.prog} --help")

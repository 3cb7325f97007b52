"""A parser of the command line whose errors are ours. Needs nothing but Python, as `multitalk models` does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from engine.errors import ConfigError
from engine.text.similar import similar


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
        hint = f"see {self.prog} --help"
        if message.startswith("unrecognized arguments: "):
            word = message.partition(": ")[2].split()[0].partition("=")[0]
            message = f"unknown flag {word}" if word.startswith("-") else f"unexpected {word!r}"
            near = similar(word, sorted(self._option_string_actions))
            hint = f"did you mean {near[0]}?" if near else hint
        raise ConfigError(message.removeprefix("argument "), field="command line", hint=hint)

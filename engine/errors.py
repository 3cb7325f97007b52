"""What can go wrong, and how it is told.

* EngineError
  + ConfigError            the composed config cannot be built
    - UnknownComponent     no installed plugin or preset bears the name
    - MissingExtra         an optional package that was chosen is not installed
  + SourceError            weights are absent, incomplete or not what they should be
    - MissingWeights       they are absent or incomplete, and this gets them
  + RequestError           the caller asked for something that cannot be made
  + SinkError              the finished video cannot be kept
    - NotDelivered         it waits on this machine until it is asked for again
  + WorkerLost             the process that did the work is gone
  + ProcessLost            another process of the same job has ended
  + Cancelled              the caller withdrew the request
"""

from __future__ import annotations

import copyreg
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

#: The joiners are within words of Persian and Hindi, and within emoji; they move nothing.
_HARMLESS = "\u200c\u200d"
#: All that is not a printable ASCII character is looked at.
_OTHERS = re.compile(r"[^ -~]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class EngineError(Exception):
    """Base of every error the engine raises on purpose.

    `what` says in one line what is wrong, `field` names the input it is about (`request.frames`, `sampler`, ...)
    and `hint` what would work. An entrypoint shows the three as one line and keeps no traceback. `code` is a word that
    stays the same from release to release, for programs (docs/errors.md); the class says which where none is given.
    """

    #: The code of an error that brings none of its own.
    CODE = "engine_error"

    def __init__(self, what: str, *, field: str = "", hint: str = "", code: str = "") -> None:
        # Names and texts of strangers' files stand in both: a terminal, a log and a page only show them.
        self.what = plain(" ".join(what.split()))
        # A caller may name a field as they like; it stays one line.
        self.field = plain(field)
        self.hint = plain(" ".join(hint.split()))
        self.code = code or self.CODE
        super().__init__(self.what)

    def __str__(self) -> str:
        line = f"{self.field}: {self.what}" if self.field else self.what
        return f"{line}; {self.hint}" if self.hint else line

    def report(self) -> tuple[str, tuple[str, ...]]:
        """Return what is wrong, and what does not fit into one line with it, in lines of their own."""
        return f"{self.field}: {self.what}" if self.field else self.what, ()

    def lines(self) -> list[str]:
        """Return it for a terminal: one line, or more where `report` has more."""
        what, more = self.report()
        return [what, *(f"  {line}" for line in more)] if more else [str(self)]

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is, to another process: the arguments of a class' own __init__ are not in `args`.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigError(EngineError):
    """The composed config cannot be built."""

    CODE = "bad_config"


class UnknownComponent(ConfigError):
    """No installed plugin or preset offers what the config names."""

    CODE = "unknown_component"

    def __init__(self, group: str, name: str, known: Iterable[str], *, broken: Iterable[str] = ()) -> None:
        self.group, self.name, self.known = group, name, tuple(known)
        failed = f" (plugins that failed to load: {', '.join(broken)})" if (broken := tuple(broken)) else ""
        super().__init__(
            f"no {group} named {name!r}", field=group, hint=f"installed: {', '.join(self.known) or 'none'}{failed}"
        )


class MissingExtra(ConfigError):
    """A component was chosen whose optional package is not installed."""

    CODE = "missing_package"

    def __init__(self, chosen: str, package: str, extra: str, *, why: str = "") -> None:
        reason = f" ({why})" if why else ""
        super().__init__(
            f"{chosen} needs the package {package!r}, which is not installed{reason}",
            field=chosen.partition("=")[0],
            hint=f"pip install 'multitalk-engine[{extra}]'",
        )


class SourceError(EngineError):
    """Weights are absent, incomplete or not what they should be."""

    CODE = "weights_missing"


class MissingWeights(SourceError):
    """Weights are absent or incomplete.

    In one line like every error; `lines` tells the same over several, for a terminal.
    """

    #: Missing files that are named; the others are counted.
    SHOWN = 5

    def __init__(
        self,
        brief: str,
        *,
        missing: Sequence[str] = (),
        looked: Sequence[str] = (),
        commands: Sequence[tuple[str, str]] = (),
        instead: str = "",
        hint: str = "",
        seen: Sequence[str] = (),
    ) -> None:
        """`brief` says whose and where, `commands` are what gets them, each with what it brings.

        `instead` is what would work with what is there; `hint` helps where there is neither. `seen` are files that lie
        there in a format that is not read, each with what it is.
        """
        self.brief, self.missing, self.looked, self.commands = brief, tuple(missing), tuple(looked), tuple(commands)
        self.instead, self.seen = instead, tuple(seen)
        what = brief + (f", missing: {', '.join(self._named())}" if missing else "")
        what += f"; looked in {'; '.join(looked)}" if looked else ""
        what += f"; there and not read: {'; '.join(seen)}" if seen else ""
        lines = [f"{command} ({note})" if note else command for command, note in self.commands]
        get = f"get them with: {', or '.join(lines)}" if lines else ""
        hint = ", or ".join(filter(None, (instead, get))) or hint
        super().__init__(what, field="source", hint=hint)

    def report(self) -> tuple[str, tuple[str, ...]]:
        """Return what is missing, where was looked, and each command with what it brings, in lines of their own."""
        blocks = [("missing", self._named()), ("looked in", list(self.looked))]
        blocks += [("not read", list(self.seen))] if self.seen else []
        blocks += [("instead", [self.instead])] if self.instead else []
        for index, (command, note) in enumerate(self.commands):
            blocks.append(("or" if index else "get them", [command, note] if note else [command]))
        if not self.commands and not self.instead and self.hint:
            blocks.append(("", [self.hint]))
        more = (f"{'' if index else name:<11}{line}" for name, block in blocks for index, line in enumerate(block))
        return f"{self.field}: {self.brief}", tuple(more)

    def _named(self) -> list[str]:
        more = len(self.missing) - self.SHOWN
        return [*self.missing[: self.SHOWN], *([f"and {more} more"] if more > 0 else [])]


class RequestError(EngineError):
    """The caller asked for something that cannot be made."""

    CODE = "bad_request"


class SinkError(EngineError):
    """The finished video cannot be kept where it should go."""

    CODE = "sink_failed"


class NotDelivered(SinkError):
    """The video is made and waits on this machine, since the place where it should go refuses it.

    `job` is the name under which the sink finds it again. `path` says where it waits: for this machine's log, not for a
    remote caller, which is why no text of the error has it.
    """

    def __init__(self, what: str, *, job: str, path: str, field: str = "", hint: str = "", code: str = "") -> None:
        self.job = job
        self.path = path
        super().__init__(what, field=field, hint=hint, code=code)


class WorkerLost(EngineError):
    """A process of a batch ended while something was asked of it: it was killed, or a library took it down."""

    CODE = "worker_died"

    def __init__(self, how: str) -> None:
        super().__init__(f"the process that worked on it ended ({how})", hint="was the machine's memory used up?")


class ProcessLost(EngineError):
    """Another of the processes that work on one job has ended, and the job with it."""

    def __init__(self) -> None:
        super().__init__("another process of this job ended", field="parallel", hint="torchrun's report says how")


class Cancelled(EngineError):
    """The caller withdrew the request while it ran."""

    CODE = "cancelled"

    def __init__(self, stage: str = "") -> None:
        super().__init__(f"cancelled during {stage}" if stage else "cancelled")


def plain(text: str) -> str:
    """Return `text` in one line, with every character that a terminal or a reader acts on written as its escape.

    These are control characters (C0, DEL, C1), formats such as those that turn the direction of writing, breaks of
    lines and paragraphs, and halves of characters (surrogates).
    """
    return _OTHERS.sub(lambda found: _escape(found[0]), text)


def plain_json(value: Any) -> str:
    """Return `value` as JSON in one line of ASCII without control characters. Raises ValueError for NaN."""
    # The one control character that JSON leaves as it is.
    return json.dumps(value, default=str, allow_nan=False).replace("\x7f", "\\u007f")


def _escape(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _HARMLESS:
        return character
    return _SHORT.get(character) or character.encode("unicode_escape", "surrogatepass").decode("ascii")

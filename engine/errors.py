"""All errors of the engine; each has a message, a field, a hint and a code.

* EngineError
  + ConfigError            the composed config cannot be built
    - UnknownComponent     no installed component or preset has the name
    - MissingExtra         a chosen component needs a package that is not installed
  + SourceError            weights are missing, incomplete or wrong
    - MissingWeights       weights are missing or incomplete; names the command to download them
  + RequestError           the request asks for something impossible
  + SinkError              the finished video cannot be delivered
    - NotDelivered         it waits on this machine for a retry
  + WorkerLost             the process that did the work is gone
  + ProcessLost            another process of the same job has ended
  + Cancelled              the caller cancelled the request
"""

from __future__ import annotations

import copyreg
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

#: Joiners occur in words of Persian and Hindi, and in emoji; they are harmless on a terminal.
_HARMLESS = "\u200c\u200d"
#: Characters that are not printable ASCII are examined.
_OTHERS = re.compile(r"[^ -~]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class EngineError(Exception):
    """Base of every error the engine raises on purpose.

    `what` says in one line what is wrong, `field` names the input (`request.frames`, `sampler`, ...), and `hint` says
    what would work. An entrypoint shows the three as one line, without a traceback. `code` is stable between releases,
    for programs (docs/errors.md); by default it is the class's `CODE`.
    """

    #: The code of an error that was raised without one.
    CODE = "engine_error"

    def __init__(self, what: str, *, field: str = "", hint: str = "", code: str = "") -> None:
        # The texts may quote names and contents of untrusted files, so control characters are escaped.
        self.what = plain(" ".join(what.split()))
        # A caller may choose any name for a field.
        self.field = plain(field)
        self.hint = plain(" ".join(hint.split()))
        self.code = code or self.CODE
        super().__init__(self.what)

    def __str__(self) -> str:
        line = f"{self.field}: {self.what}" if self.field else self.what
        return f"{line}; {self.hint}" if self.hint else line

    def report(self) -> tuple[str, tuple[str, ...]]:
        """Return what is wrong, and further lines with details that do not fit into one line."""
        return f"{self.field}: {self.what}" if self.field else self.what, ()

    def lines(self) -> list[str]:
        """Return the error as lines for a terminal: one line, or more if `report` has details."""
        what, more = self.report()
        return [what, *(f"  {line}" for line in more)] if more else [str(self)]

    def __reduce__(self) -> tuple[Any, ...]:
        # For another process: subclasses have other arguments of __init__ than those in `args`.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigError(EngineError):
    """The composed config cannot be built."""

    CODE = "bad_config"


class UnknownComponent(ConfigError):
    """No installed plugin or preset has the name that the config asks for."""

    CODE = "unknown_component"

    def __init__(
        self, group: str, name: str, known: Iterable[str], *, broken: Iterable[str] = (), near: Iterable[str] = ()
    ) -> None:
        self.group, self.name, self.known = group, name, tuple(known)
        failed = f" (plugins that failed to load: {', '.join(broken)})" if (broken := tuple(broken)) else ""
        meant = f"did you mean {', '.join(near)}? " if (near := tuple(near)) else ""
        super().__init__(
            f"no {group} named {name!r}",
            field=group,
            hint=f"{meant}installed: {', '.join(self.known) or 'none'}{failed}",
        )


class MissingExtra(ConfigError):
    """The chosen component needs an optional package that is not installed."""

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

    Its text is one line, like that of every error; `lines` returns the same as several lines for a terminal.
    """

    #: Number of missing files that are named; the others are counted.
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
        """`brief` names the weights and their place; `commands` download them, each with a note on what it downloads.

        `instead` is a choice that works with the existing files; `hint` is used if there is neither. `seen` are
        existing files in an unsupported format, each with its format. `looked` are the places that were searched.
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
        """Return the missing files, the searched places and the commands, each in lines of its own."""
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
    """The finished video cannot be stored where it should go."""

    CODE = "sink_failed"


class NotDelivered(SinkError):
    """The video is made, but its destination rejects it, so it is kept on this machine.

    `job` is the name under which the sink finds it again. `path` is its place, for this machine's log only: a remote
    caller must not see it, so no text of the error contains it.
    """

    def __init__(self, what: str, *, job: str, path: str, field: str = "", hint: str = "", code: str = "") -> None:
        self.job = job
        self.path = path
        super().__init__(what, field=field, hint=hint, code=code)


class WorkerLost(EngineError):
    """A worker process of a batch ended during a call: it was killed, or a library crashed it."""

    CODE = "worker_died"

    def __init__(self, how: str) -> None:
        super().__init__(f"the worker process ended ({how})", hint="did the machine run out of memory?")


class ProcessLost(EngineError):
    """Another process of the same job has ended, so the job has failed."""

    def __init__(self) -> None:
        super().__init__("another process of this job ended", field="parallel", hint="its own report says why")


class Cancelled(EngineError):
    """The caller cancelled the request while it ran."""

    CODE = "cancelled"

    def __init__(self, stage: str = "") -> None:
        super().__init__(f"cancelled during {stage}" if stage else "cancelled")


def plain(text: str) -> str:
    """Return `text` as one line, with each character that could control a terminal or mislead a reader escaped.

    These are control characters (C0, DEL, C1), format characters such as those that change the writing direction, line
    and paragraph separators, and surrogates.
    """
    return _OTHERS.sub(lambda found: _escape(found[0]), text)


def plain_json(value: Any) -> str:
    """Return `value` as one line of ASCII JSON without control characters. Raises ValueError for NaN."""
    # The only control character that json.dumps does not escape.
    return json.dumps(value, default=str, allow_nan=False).replace("\x7f", "\\u007f")


def _escape(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _HARMLESS:
        return character
    return _SHORT.get(character) or character.encode("unicode_escape", "surrogatepass").decode("ascii")

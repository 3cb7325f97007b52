"""Hand the video over as base64 text."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from engine import hookimpl
from engine.components import Sink
from engine.config import SinkConfig
from engine.data import Artifact
from engine.errors import ConfigError, SinkError
from engine.register import Register


@dataclass
class Base64Config(SinkConfig):
    """Keep no file: the answer is the video itself, as base64 text."""

    name: str = "base64"
    #: Most bytes of base64 text that the answer may carry; None: any number.
    limit: int | None = None


@dataclass(frozen=True)
class _Kept:
    content: str = field(repr=False)
    address: str | None = None


class Base64Sink:
    """Keeps the content in the answer itself."""

    def __init__(self, config: Base64Config) -> None:
        """Look at nothing yet. Raises ConfigError for a limit below 1."""
        if config.limit is not None and config.limit < 1:
            raise ConfigError(f"a limit of {config.limit} bytes", field="sink.limit", hint="give 1 or more, or null")
        self.limit = config.limit

    def check(self, filename: str | None) -> None:
        """Accept any name: there is no place where it could be taken."""

    def put(self, artifact: Artifact) -> _Kept:
        """Read the file, remove it and return its content as base64 text. Raises SinkError, also above the limit."""
        try:
            self._measure(artifact.path.stat().st_size)
            content = base64.b64encode(artifact.path.read_bytes()).decode("ascii")
            artifact.path.unlink()
        except OSError as error:
            raise SinkError(f"the video cannot be read back: {error.strerror or error}", field="sink") from error
        return _Kept(content)

    def _measure(self, size: int) -> None:
        # Before the file is read: three bytes become four letters, and an answer that is too long would vanish unseen.
        letters = (size + 2) // 3 * 4
        if self.limit is not None and letters > self.limit:
            raise SinkError(
                f"the video has {size} bytes, which are {letters} as base64, and the answer carries {self.limit}",
                field="sink.limit",
                hint="upload it with sink=s3, or make it shorter or smaller",
                code="answer_too_large",
            )


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer `sink=base64`."""
    register(Base64Sink, Base64Config)

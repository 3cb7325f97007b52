"""Hand the video over as base64 text."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from engine import hookimpl
from engine.components import Sink
from engine.config import SinkConfig
from engine.data import Artifact
from engine.errors import SinkError
from engine.register import Register


@dataclass
class Base64Config(SinkConfig):
    """Keep no file: the answer is the video itself, as base64 text."""

    name: str = "base64"


@dataclass(frozen=True)
class _Kept:
    content: str
    address: str | None = None


class Base64Sink:
    """Keeps the content in the answer itself."""

    def __init__(self, config: Base64Config) -> None:
        """Need nothing of `config`."""

    def check(self, filename: str | None) -> None:
        """Accept any name: there is no place where it could be taken."""

    def put(self, artifact: Artifact) -> _Kept:
        """Read the file, remove it and return its content as base64 text. Raises SinkError."""
        try:
            content = base64.b64encode(artifact.path.read_bytes()).decode("ascii")
            artifact.path.unlink()
        except OSError as error:
            raise SinkError(f"the video cannot be read back: {error.strerror or error}", field="sink") from error
        return _Kept(content)


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer `sink=base64`."""
    register(Base64Sink, Base64Config)

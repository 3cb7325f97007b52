"""Hand the video over as base64 text."""

from __future__ import annotations

import base64
import copy
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from engine import hookimpl
from engine.cancel import apart
from engine.components import CancelToken, Sink
from engine.config import SinkConfig, within
from engine.data import Artifact, Kept
from engine.errors import ConfigError, SinkError
from engine.plugin.register import Register


@dataclass
class Base64Config(SinkConfig):
    """No file: the video itself is in the answer, as base64 text."""

    name: str = "base64"
    #: Maximum bytes of base64 text in the answer; null: no limit.
    limit: int | None = field(default=None, metadata=within(1, 2**40))


class Base64Sink:
    """Keeps the content in the answer itself, encoded once more where it is too long and still looks the same then."""

    def __init__(self, config: Base64Config) -> None:
        """Look at nothing yet. Raises ConfigError for a limit below 1."""
        if config.limit is not None and config.limit < 1:
            raise ConfigError(f"a limit of {config.limit} bytes", field="sink.limit", hint="give 1 or more, or null")
        self.limit = config.limit
        self._cancel: CancelToken | None = None

    def within(self, limit: int) -> Base64Sink:
        """Return the sink for an answer that carries at most `limit` bytes of text."""
        sink = copy.copy(self)
        sink.limit = limit if self.limit is None else min(limit, self.limit)
        return sink

    def until(self, cancel: CancelToken) -> Base64Sink:
        """Return the sink whose `put` raises Cancelled within a second once `cancel` is set."""
        sink = copy.copy(self)
        sink._cancel = cancel
        return sink

    def check(self, filename: str | None) -> None:
        """Accept any name: there is no place where it could be taken."""

    def put(self, artifact: Artifact) -> Kept:
        """Read the file, remove it and return its content as base64 text.

        One that is longer than the limit is encoded again to fit, if that keeps what `media.h264.Likeness` asks; a
        warning says so. Raises SinkError where it does not, and Cancelled.
        """
        smaller = artifact.path.with_name(f"{artifact.path.stem}-smaller.mp4")
        try:
            warnings = apart(lambda: self._fit(artifact.path, smaller), self._cancel, "keep", grace=0.5)
            content = (smaller if warnings else artifact.path).read_bytes()
            artifact.path.unlink()
        except OSError as error:
            raise SinkError(f"the video cannot be read back: {error.strerror or error}", field="sink") from error
        finally:
            smaller.unlink(missing_ok=True)
        text = base64.b64encode(content).decode("ascii")
        return Kept(None, text, hashlib.sha256(content).hexdigest(), len(content), warnings)

    def _fit(self, path: Path, smaller: Path) -> tuple[str, ...]:
        """Encode a video that is too long once more and say so; () where nothing had to be done. Raises SinkError."""
        size = path.stat().st_size
        # Before the file is read: three bytes become four letters, and an answer that is too long would vanish unseen.
        letters = (size + 2) // 3 * 4
        if self.limit is None or letters <= self.limit:
            return ()
        # PyAV takes a moment to import, and most videos fit.
        from engine.media.h264 import shrink

        likeness = shrink(path, smaller, self.limit // 4 * 3, cancel=self._cancel)
        if likeness is None:
            why = "no encoding of it is that small"
        elif likeness.holds:
            warning = (
                f"the video of {size} bytes was too long for the answer and was encoded again to "
                f"{smaller.stat().st_size} (PSNR {likeness.psnr:.1f} dB, SSIM {likeness.ssim:.3f} at its worst frame)"
            )
            return (warning,)
        else:
            why = f"an encoding that small shows (PSNR {likeness.psnr:.1f} dB, SSIM {likeness.ssim:.3f})"
        raise SinkError(
            f"the video has {size} bytes, which are {letters} as base64, and the answer carries {self.limit}; {why}",
            field="sink.limit",
            hint="upload it to S3 (sink=s3, or a job's s3Config), or make it shorter or smaller",
            code="answer_too_large",
        )


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer `sink=base64`."""
    register(Base64Sink, Base64Config)

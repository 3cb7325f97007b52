"""Return the video as base64 text."""

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
    """No file: the answer contains the video itself, as base64 text."""

    name: str = "base64"
    #: Maximum bytes of base64 text in the answer; null: no limit.
    limit: int | None = field(default=None, metadata=within(1, 2**40))


class Base64Sink:
    """Puts the video into the answer. A video that is too long is encoded again if it still looks the same."""

    def __init__(self, config: Base64Config) -> None:
        """Raises ConfigError for a limit below 1."""
        if config.limit is not None and config.limit < 1:
            raise ConfigError(f"a limit of {config.limit} bytes", field="sink.limit", hint="give 1 or more, or null")
        self.limit = config.limit
        self._cancel: CancelToken | None = None

    def within(self, limit: int) -> Base64Sink:
        """Return the sink for an answer with at most `limit` bytes of text."""
        sink = copy.copy(self)
        sink.limit = limit if self.limit is None else min(limit, self.limit)
        return sink

    def until(self, cancel: CancelToken) -> Base64Sink:
        """Return the sink whose `put` raises Cancelled within a second once `cancel` is set."""
        sink = copy.copy(self)
        sink._cancel = cancel
        return sink

    def check(self, filename: str | None) -> None:
        """Accept any name: no file is written, so no name can exist already."""

    def put(self, artifact: Artifact) -> Kept:
        """Read the file, remove it and return its content as base64 text.

        A video over the limit is encoded again to fit; a warning reports that. Raises SinkError if the new encoding
        differs more than `media.h264.Likeness` allows, and Cancelled.
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
        """Encode a video that is too long again; return a warning, or () if it was not too long. Raises SinkError."""
        size = path.stat().st_size
        # Checked before the file is read: an answer that is too long would be lost without an error.
        characters = (size + 2) // 3 * 4
        if self.limit is None or characters <= self.limit:
            return ()
        # Imported late: PyAV is slow to import, and most videos fit.
        from engine.media.h264 import shrink

        likeness = shrink(path, smaller, self.limit // 4 * 3, cancel=self._cancel)
        if likeness is None:
            why = "it cannot be encoded that small"
        elif likeness.holds:
            warning = (
                f"the video of {size} bytes was too long for the answer and was encoded again to "
                f"{smaller.stat().st_size} (PSNR {likeness.psnr:.1f} dB, SSIM {likeness.ssim:.3f} at its worst frame)"
            )
            return (warning,)
        else:
            why = f"encoded that small, it looks worse (PSNR {likeness.psnr:.1f} dB, SSIM {likeness.ssim:.3f})"
        raise SinkError(
            f"the video has {size} bytes, {characters} as base64; the answer may contain {self.limit}; {why}",
            field="sink.limit",
            hint="upload it to S3 (sink=s3, or a job's s3Config), or make it shorter or smaller",
            code="answer_too_large",
        )


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer `sink=base64`."""
    register(Base64Sink, Base64Config)

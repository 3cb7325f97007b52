"""Frames -> Artifact: one MP4, encoded while frames arrive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import av

from engine.data import Artifact, Frames
from engine.errors import ConfigError, RequestError, SinkError
from engine.media.containers import open_input
from engine.media.h264 import add_video, open_mp4
from engine.media.segments import Packet, PictureEncoder, Segment, SoundEncoder, Spool, add_sound, mux

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Key of the provenance in the JSON of the comment tag.
_KEY = "multitalk"
_MEDIA_TYPE = "video/mp4"


@dataclass(frozen=True)
class VideoOptions:
    """Settings of a request for encoding its video."""

    #: Constant rate factor of x264, 0 .. 51; lower values give larger files and finer pictures.
    crf: int = 18
    #: Preset of x264, from "ultrafast" to "placebo".
    preset: str = "medium"
    #: AAC bits per second.
    audio_bitrate: int = 192_000

    @property
    def x264(self) -> dict[str, str]:
        """The settings of x264."""
        return {"crf": str(self.crf), "preset": self.preset}

    def rejected(self) -> ConfigError:
        """Return the error for settings that the encoders reject."""
        what = f"the encoder rejects crf {self.crf}, preset {self.preset!r} or audio_bitrate {self.audio_bitrate}"
        return ConfigError(what, field="video", hint="try crf 18, preset medium, audio_bitrate 192000")


class Writer:
    """Encodes frames as they arrive: H.264 yuv420p (BT.709) and AAC in an MP4 with its index at the start.

    Pictures are encoded in segments, one per window; the MP4 consists of the same packets. The file gets its name only
    when it is complete. Use it as a context manager: without `finish` all files are removed. The bytes depend only on
    frames, their division into segments, sound, settings and library versions, not on time, host or number of cores.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: float,
        sound: npt.NDArray[np.float32] | None = None,
        options: VideoOptions | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        filename: str | None = None,
    ) -> None:
        """Prepare `path` for frames of `size` (width, height), both even.

        `sound` is float32 stereo 48 kHz (samples, 2), cut or extended with silence to the length of the frames; None
        is silence. `metadata` is stored in the file as its provenance. Raises ConfigError and SinkError.
        """
        if size[0] % 2 or size[1] % 2:
            raise ConfigError(
                f"a video of {size[0]} x {size[1]} pixels cannot be encoded",
                field="model.resolutions",
                hint="H.264 in yuv420p needs even sizes",
            )
        self.options = options or VideoOptions()
        self.path = path
        # The name until it is complete: the rest that a killed process leaves is not mistaken for a video.
        self._part = path.with_name(f".{path.name}.part")
        self.size = size
        # As typed, not as the nearest binary fraction: 23.976 is 2997/125, 12.5 is 25/2.
        self.rate = Fraction(fps).limit_denominator(1001)
        #: Frames of the segments that have ended.
        self.frames = 0
        self.segments = 0
        self._metadata = dict(metadata or {})
        self._filename = filename
        self._ended = False
        self._spool: Spool | None = None
        try:
            self._pictures = PictureEncoder(size, self.rate, self.options.x264)
            self._sound = SoundEncoder(sound, self.rate, self.options.audio_bitrate)
            self._spool = Spool(path.with_name(f".{path.name}.segments"))
        except av.ArgumentError as error:
            raise self.options.rejected() from error
        except (av.FFmpegError, OSError) as error:
            raise _sink_error(error, path) from error

    def add(self, frames: Frames) -> None:
        """Encode frames into the open segment. Raises SinkError, and ValueError for frames of another size."""
        if frames.pictures.shape[1:] != (self.size[1], self.size[0], 3):
            raise ValueError(f"frames of shape {frames.pictures.shape} do not fit a video of {self.size}")
        try:
            for picture in frames.pictures:
                self._pictures.add(picture)
        except av.FFmpegError as error:
            raise _sink_error(error, self.path) from error

    def end_segment(self, *, last: bool = False) -> Segment:
        """End the open segment, which may have no frames, and return it; the last one has the rest of the sound.

        Raises SinkError.
        """
        return self._append(self._pictures.frames, None, last)

    def take_over(self, segment: Segment, *, last: bool = False) -> Segment:
        """Use a segment that was encoded earlier, from the same request, in place of its frames. Raises SinkError."""
        return self._append(segment.frames, segment.pictures, last)

    def finish(self, facts: Mapping[str, Any] | None = None) -> Artifact:
        """Write the file and return it; `facts` are added to its provenance. Raises SinkError if it is incomplete."""
        if not self._ended:
            self.end_segment(last=True)
        if self._spool is None or self.frames == 0:
            raise ValueError("no frame was written")
        self._metadata.update(facts or {})
        try:
            self._mux(self._spool)
            with open_input(self._part) as written:
                written_frames = written.streams.video[0].frames
            if written_frames == self.frames:
                self._part.replace(self.path)
        except (av.FFmpegError, OSError) as error:
            raise _sink_error(error, self.path) from error
        finally:
            self.abort()
        if written_frames != self.frames:
            raise SinkError(f"only {written_frames} of {self.frames} frames were written to {self.path}", field="sink")
        return Artifact(
            path=self.path,
            media_type=_MEDIA_TYPE,
            seconds=float(self.frames / self.rate),
            frames=self.frames,
            filename=self._filename,
            metadata=self._metadata,
        )

    def abort(self) -> None:
        """Stop and remove the files."""
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.remove()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _append(self, frames: int, pictures: tuple[Packet, ...] | None, last: bool) -> Segment:
        if self._spool is None or self._ended:
            raise ValueError("the video has ended")
        try:
            if pictures is None:
                pictures = self._pictures.end(self.frames)
            # Encoded again for a segment that is taken over: the encoder's state depends on all sound before.
            sound = self._sound.until(self.frames + frames, last=last)
            segment = Segment(self.segments, self.frames, frames, pictures, sound)
            self._spool.add(segment)
        except (av.FFmpegError, OSError) as error:
            raise _sink_error(error, self.path) from error
        self.frames += frames
        self.segments += 1
        self._ended = last
        return segment

    def _mux(self, spool: Spool) -> None:
        container, file = open_mp4(self._part)
        with file, container:
            container.metadata["comment"] = json.dumps({_KEY: self._metadata}, ensure_ascii=False, sort_keys=True)
            video = add_video(container, self.size, self.rate, self.options.x264)
            audio = add_sound(container, self.options.audio_bitrate)
            for segment in spool:
                mux(container, video, audio, self.rate, [segment])


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance stored in a video. Raises RequestError for a file without it."""
    hint = "name a video that multitalk made"
    try:
        with open_input(path) as container:
            comment = container.metadata.get("comment", "")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{path} cannot be read: {reason}", field="file", hint=hint) from error
    try:
        provenance = json.loads(comment)[_KEY]
    except RecursionError as error:
        raise RequestError(f"the provenance in {path} is nested too deep", field="file", hint=hint) from error
    except (ValueError, KeyError, TypeError):
        provenance = None
    if not isinstance(provenance, dict):
        raise RequestError(f"{path} has no provenance", field="file", hint=hint)
    return provenance


def _sink_error(error: Exception, path: Path) -> SinkError:
    reason = getattr(error, "strerror", None) or str(error)
    return SinkError(
        f"the video cannot be written to {path.parent}: {reason}",
        field="sink",
        hint="free space there or choose another folder",
    )

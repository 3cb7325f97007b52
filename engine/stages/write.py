"""Frames -> Artifact: one MP4, encoded while frames arrive."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from engine.data import Artifact, Frames
from engine.errors import ConfigError, RequestError, SinkError
from engine.media.audio import SOUND_RATE
from engine.media.containers import open_input
from engine.media.h264 import add_video, open_mp4

#: Key of the provenance in the JSON of the comment tag.
_KEY = "multitalk"
_MEDIA_TYPE = "video/mp4"
#: Audio samples encoded at a time.
_CHUNK = SOUND_RATE
#: Samples of an AAC packet; decoders return whole packets.
_PACKET = 1024


@dataclass(frozen=True)
class VideoOptions:
    """Settings of a request for encoding its video."""

    #: Constant rate factor of x264, 0 .. 51; lower values give larger files and finer pictures.
    crf: int = 18
    #: Preset of x264, from "ultrafast" to "placebo".
    preset: str = "medium"
    #: AAC bits per second.
    audio_bitrate: int = 192_000


class Writer:
    """Encodes frames as they arrive: H.264 yuv420p (BT.709) and AAC in an MP4 with its index at the start.

    The file gets its name only when it is complete. Use it as a context manager: without `finish` the file is removed.
    The bytes depend only on frames, sound, settings and library versions, not on time, host or number of cores.
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
        """Open `path` for frames of `size` (width, height), both even.

        `sound` is float32 stereo 48 kHz (samples, 2), cut or extended with silence to the length of the frames; None
        is silence. `metadata` is stored in the file as its provenance. Raises ConfigError and SinkError.
        """
        if size[0] % 2 or size[1] % 2:
            raise ConfigError(
                f"a video of {size[0]} x {size[1]} pixels cannot be encoded",
                field="model.resolutions",
                hint="H.264 in yuv420p needs even sizes",
            )
        options = options or VideoOptions()
        self.path = path
        # The name until it is complete: the rest that a killed process leaves is not mistaken for a video.
        self._part = path.with_name(f".{path.name}.part")
        self.size = size
        # As typed, not as the nearest binary fraction: 23.976 is 2997/125, 12.5 is 25/2.
        self.rate = Fraction(fps).limit_denominator(1001)
        self.frames = 0
        self._sound = np.zeros((0, 2), np.float32) if sound is None else sound
        self._samples = 0
        self._metadata = dict(metadata or {})
        self._filename = filename
        self._container: av.container.OutputContainer | None = None
        self._file: io.FileIO | None = None
        try:
            self._open(options)
        except av.ArgumentError as error:
            self.abort()
            what = (
                f"the encoder rejects crf {options.crf}, preset {options.preset!r} or "
                f"audio_bitrate {options.audio_bitrate}"
            )
            raise ConfigError(what, field="video", hint="try crf 18, preset medium, audio_bitrate 192000") from error
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise _sink_error(error, path) from error

    def add(self, frames: Frames) -> None:
        """Encode frames, and the sound up to their end. Raises SinkError, and ValueError for frames of another size."""
        if frames.pictures.shape[1:] != (self.size[1], self.size[0], 3):
            raise ValueError(f"frames of shape {frames.pictures.shape} do not fit a video of {self.size}")
        try:
            for picture in frames.pictures:
                self._encode_picture(picture)
                until = self._sound_end()
                self._encode_sound(until - until % _PACKET)
        except (av.FFmpegError, OSError) as error:
            raise _sink_error(error, self.path) from error

    def finish(self) -> Artifact:
        """Close the file and return it. Raises SinkError if it is incomplete."""
        if self._container is None or self.frames == 0:
            raise ValueError("no frame was written")
        container = self._container
        try:
            self._encode_last_sound()
            container.mux(self._video.encode(None))
            container.mux(self._audio.encode(None))
            container.close()
            self._container = None
            self._close_file()
            with open_input(self._part) as written:
                written_frames = written.streams.video[0].frames
            if written_frames == self.frames:
                self._part.replace(self.path)
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise _sink_error(error, self.path) from error
        if written_frames != self.frames:
            self._part.unlink(missing_ok=True)
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
        """Stop and remove the file."""
        container, self._container = self._container, None
        if container is not None:
            # Errors do not matter: the file is deleted.
            with suppress(av.FFmpegError, OSError):
                container.close()
        self._close_file()
        self._part.unlink(missing_ok=True)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is not None:
            self.abort()

    def _open(self, options: VideoOptions) -> None:
        container, self._file = open_mp4(self._part)
        self._container = container
        container.metadata["comment"] = json.dumps({_KEY: self._metadata}, ensure_ascii=False, sort_keys=True)

        settings = {"crf": str(options.crf), "preset": options.preset}
        self._video = video = add_video(container, self.size, self.rate, settings)
        self._reformatter = VideoReformatter()

        self._audio = audio = container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        audio.codec_context.bit_rate = options.audio_bitrate
        audio.codec_context.flags |= Flags.bitexact
        video.codec_context.open()
        audio.codec_context.open()

    def _encode_picture(self, picture: npt.NDArray[np.uint8]) -> None:
        assert self._container is not None
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
            threads=1,
        )
        frame.pts = self.frames
        frame.time_base = 1 / self.rate
        self.frames += 1
        self._container.mux(self._video.encode(frame))

    def _sound_end(self) -> int:
        return round(self.frames / self.rate * SOUND_RATE)

    def _encode_last_sound(self) -> None:
        # The last packet is padded with silence. If a packet is longer than a frame, less than half a packet (11 ms) is
        # dropped instead: sound and pictures then end within one frame of each other, up to 93 frames per second.
        end = self._sound_end()
        if self.rate * _PACKET <= SOUND_RATE or end % _PACKET >= _PACKET // 2:
            self._encode_sound(end)

    def _encode_sound(self, until: int) -> None:
        assert self._container is not None
        while self._samples < until:
            count = min(until - self._samples, _CHUNK)
            part = np.zeros((count, 2), np.float32)
            samples = self._sound[self._samples : self._samples + count]
            part[: len(samples)] = samples
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part.T), format="fltp", layout="stereo")
            frame.sample_rate = SOUND_RATE
            frame.pts = self._samples
            frame.time_base = Fraction(1, SOUND_RATE)
            self._samples += count
            self._container.mux(self._audio.encode(frame))


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

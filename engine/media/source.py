"""Read source videos: what their packets say, their frames in order of time, upright and in RGB, and their cuts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from engine.cancel import check
from engine.data import Canvas, SourceVideo
from engine.data.cancel import CancelToken
from engine.errors import RequestError
from engine.media.canvas import apply_canvas
from engine.media.containers import open_input

#: Tolerance in seconds when a time is compared with the time of a frame, which containers round to milliseconds.
TINY = 1e-3
#: Seconds after a cut in which another one is ignored: flashes have cuts on both sides.
SHORTEST_SCENE = 0.2
#: The field of a request that errors are about.
FIELD = "request.video"

_HINT = "give an MP4, MOV, WebM, MKV or AVI file with moving pictures"
#: Width to which frames are reduced before they are compared for cuts.
_CUT_WIDTH = 320
#: How often reading a container is tried again after an error.
_RETRIES = 16
#: Packets between two checks of a cancel token.
_CHECK_EVERY = 64
#: Colours of videos without a description are BT.709 from this height on, as players assume.
_HIGH = 720
#: Transfer functions of high dynamic range: PQ and HLG (ITU-T H.273).
_HDR = (16, 18)
#: Matrix coefficients of H.273 -> FFmpeg's name.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Survey:
    """The result of `survey`: facts, the first frame, and sentences about what one might not expect."""

    source: SourceVideo
    #: uint8 RGB (height, width, 3), upright.
    first: Picture
    warnings: tuple[str, ...]


def survey(path: Path, *, max_pixels: int, cancel: CancelToken | None = None) -> Survey:
    """Read all packets of a video and decode its first frame.

    Raises RequestError about the video if it cannot be read, has one frame only, or frames of more than `max_pixels`
    pixels, and Cancelled.
    """
    with _reading(), open_input(path) as container:
        stream = _choose(container)
        times, base = _Times(), float(stream.time_base or 0)
        for packet in _packets(container, stream, cancel):
            if packet.size and not packet.is_discard:
                times.add(packet)
    if times.count < 2:
        raise RequestError(
            "the file has one picture and no moving ones",
            field=FIELD,
            hint="give a picture as image (a job: reference_image)",
            code="video_unreadable",
        )
    span = (times.last - times.first) * base
    fps = (times.count - 1) / span if span > 0 else 0.0
    if not math.isfinite(fps) or fps <= 0:
        raise _unreadable("its frames have no times")
    frames = Decoding(path, max_pixels=max_pixels, cancel=cancel)
    try:
        first = next(frames, None)
        if first is None:
            raise _unreadable("no frame can be decoded")
        picture, warnings = frames.upright(first.frame), _warnings(first.frame)
    finally:
        frames.close()
    size = (picture.shape[1], picture.shape[0])
    seconds = span + (times.duration * base or 1 / fps)
    return Survey(SourceVideo(path, size, fps, seconds, times.first * base, max_pixels), picture, tuple(warnings))


def find_cuts(
    source: SourceVideo, *, score: float, until: float, cancel: CancelToken | None = None
) -> tuple[float, ...]:
    """Return the times in seconds of the hard cuts before `until`: frames that FFmpeg's scdet gives `score` or more.

    A cut within `SHORTEST_SCENE` after the one before is left out. Fades and dissolves are not found. Frames are
    decoded one after the other. Raises RequestError and Cancelled.
    """
    frames, cuts = Decoding(source.path, max_pixels=source.max_pixels, cancel=cancel), [0.0]
    detector = _Detector(score)
    try:
        for shown in frames:
            if shown.time >= until:
                break
            if detector.is_cut(shown.frame) and shown.time - cuts[-1] > SHORTEST_SCENE - TINY:
                cuts.append(shown.time)
    finally:
        frames.close()
    return tuple(cuts[1:])


@dataclass(frozen=True)
class Shown:
    """A frame, and the second from which it is shown."""

    time: float
    frame: av.VideoFrame


class Decoding(Iterator[Shown]):
    """Iterates over the frames of a video in order of time; the first one is shown at 0.

    Packets that cannot be decoded are left out. Raises RequestError and Cancelled.
    """

    def __init__(self, path: Path, *, max_pixels: int, cancel: CancelToken | None = None) -> None:
        """Open nothing yet. Frames of more than `max_pixels` pixels are not decoded."""
        self._path, self._max_pixels, self._cancel = path, max_pixels, cancel
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._walk = self._frames()

    def __next__(self) -> Shown:
        """Return the next frame."""
        return next(self._walk)

    def close(self) -> None:
        """Close the file."""
        self._walk.close()  # type: ignore[attr-defined]

    def upright(self, frame: av.VideoFrame) -> Picture:
        """Return a frame as uint8 RGB (height, width, 3) in square pixels, turned as its file says.

        All frames get the size of the first one. Raises RequestError for one that is too large.
        """
        if self._size is None:
            self._size = self._square(frame)
        width, height = self._size
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        guessed = Colorspace.ITU709 if frame.height >= _HIGH else Colorspace.ITU601
        with _reading():
            picture = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format="rgb24",
                src_colorspace=_MATRICES.get(int(frame.colorspace), guessed),
                src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
                interpolation=Interpolation.BICUBIC,
            ).to_ndarray()
        # FFmpeg counts counterclockwise, as numpy does.
        turned: Picture = np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90) % 4))
        return turned

    def _square(self, frame: av.VideoFrame) -> tuple[int, int]:
        aspect = self._aspect
        width = max(1, round(frame.width * aspect))
        _check_pixels(max(width, frame.width), frame.height, self._max_pixels)
        return width, frame.height

    def _frames(self) -> Iterator[Shown]:
        zero: float | None = None
        with _reading(), open_input(self._path) as container:
            stream = _choose(container)
            _check_pixels(stream.width, stream.height, self._max_pixels)
            stream.thread_type = "AUTO"
            # A later frame may be larger than the header says.
            stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
            self._aspect = _aspect(stream)
            usual = float(1 / (stream.average_rate or Fraction(25)))
            time = -usual
            for packet in _packets(container, stream, self._cancel):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    continue
                for frame in frames:
                    stamp = None if frame.pts is None or not frame.time_base else float(frame.pts * frame.time_base)
                    if zero is None:
                        zero = stamp or 0.0
                    # A clock that goes back, or stands, is not followed.
                    time = time + usual if stamp is None or stamp - zero <= time else stamp - zero
                    yield Shown(time, frame)


class SourceReader:
    """The frames of a source video that are shown at the times of a video's frames, on its canvas.

    Frames are asked for in order, so only what is asked for is in memory; an earlier frame is decoded again from the
    beginning. After its end the last frame stays.
    """

    def __init__(self, source: SourceVideo, canvas: Canvas, fps: float, *, cancel: CancelToken | None = None) -> None:
        """Open nothing yet. `canvas` is for the upright frames, `fps` the rate of the frames that are asked for."""
        self._source, self._canvas, self._fps, self._cancel = source, canvas, fps, cancel
        self._decoding: Decoding | None = None
        self._shown: Shown | None = None
        self._following: Shown | None = None
        self._picture: Picture | None = None
        self._kept: dict[int, Picture] = {}
        #: The frame before which all was forgotten.
        self._begin = 0

    def frame(self, index: int) -> Picture:
        """Return the source's frame at index / fps seconds: uint8 RGB (H, W, 3). Raises as `frames` does."""
        picture: Picture = self.frames(index, 1)[0]
        return picture

    def frames(self, first: int, count: int) -> Picture:
        """Return `count` frames from the index `first` on: uint8 RGB (count, H, W, 3).

        Raises RequestError if the file cannot be read any more, and Cancelled.
        """
        if first < self._begin:
            self.close()
        self._begin = first
        self._kept = {index: picture for index, picture in self._kept.items() if index >= first}
        for index in range(first, first + count):
            if index not in self._kept:
                self._kept[index] = self._at(index / self._fps)
        return np.stack([self._kept[index] for index in range(first, first + count)])

    def close(self) -> None:
        """Close the file and forget all frames; the next call opens it again."""
        if self._decoding is not None:
            self._decoding.close()
        self._decoding = self._shown = self._following = self._picture = None
        self._kept, self._begin = {}, 0

    def _at(self, time: float) -> Picture:
        if self._decoding is None:
            self._decoding = Decoding(self._source.path, max_pixels=self._source.max_pixels, cancel=self._cancel)
            self._shown, self._following = next(self._decoding, None), next(self._decoding, None)
        while self._following is not None and self._following.time <= time + TINY:
            self._shown, self._following = self._following, next(self._decoding, None)
            self._picture = None
        if self._shown is None:
            raise _unreadable("no frame can be decoded")
        if self._picture is None:
            self._picture = apply_canvas(self._decoding.upright(self._shown.frame), self._canvas)
        return self._picture


class _Detector:
    """FFmpeg's scdet on reduced frames."""

    def __init__(self, score: float) -> None:
        self._score = score
        self._graph: av.filter.Graph | None = None
        self._form: tuple[int, int, str] | None = None

    def is_cut(self, frame: av.VideoFrame) -> bool:
        """Return whether a frame begins another scene than the one before."""
        form = (frame.width, frame.height, frame.format.name)
        if self._graph is None or form != self._form:
            self._graph, self._form = self._build(frame), form
        self._graph.push(frame)
        found = self._graph.pull()
        return "lavfi.scd.time" in found.metadata

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        )
        width = min(_CUT_WIDTH, frame.width)
        nodes = (
            graph.add("scale", f"{width}:-1:flags=area"),
            graph.add("format", "gray"),
            graph.add("scdet", f"threshold={self._score:g}"),
            graph.add("buffersink"),
        )
        graph.link_nodes(source, *nodes).configure()
        return graph


@contextmanager
def _reading() -> Iterator[None]:
    """Turn errors of FFmpeg and the file system into a RequestError about the video."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, EOFError, MemoryError) as error:
        raise _unreadable(str(getattr(error, "strerror", None) or error)) from error


def _unreadable(reason: str) -> RequestError:
    return RequestError(f"the video cannot be decoded: {reason}", field=FIELD, hint=_HINT, code="video_unreadable")


def _choose(container: av.container.InputContainer) -> av.VideoStream:
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        raise RequestError("the file has no pictures", field=FIELD, hint=_HINT, code="video_unreadable")
    return next((one for one in streams if one.disposition & Disposition.default), streams[0])


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise RequestError(
            f"its frames have {width} x {height} pixels",
            field=FIELD,
            hint=f"at most {most} pixels; scale the video down",
            code="picture_too_large",
        )


def _aspect(stream: av.VideoStream) -> float:
    """Return the width of a pixel relative to its height; 1 if the file states nothing, or nonsense."""
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    return aspect if 0.1 <= aspect <= 10 else 1.0


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, cancel: CancelToken | None
) -> Iterator[av.Packet[av.VideoStream]]:
    """Read packets of the stream; errors within the file are passed over, a few times."""
    for failures in range(_RETRIES + 1):
        try:
            for number, packet in enumerate(container.demux(stream)):
                if number % _CHECK_EVERY == 0:
                    check(cancel, "read")
                yield packet
        except av.FFmpegError:
            if failures == _RETRIES:
                return
            continue
        return


@dataclass
class _Times:
    """The times of a stream's packets, in units of its clock."""

    count: int = 0
    first: int = 0
    last: int = 0
    #: How long the last frame is shown; 0: unknown.
    duration: int = 0

    def add(self, packet: av.Packet[av.VideoStream]) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            stamp = self.last + self.duration
        self.first = stamp if not self.count else min(self.first, stamp)
        if not self.count or stamp >= self.last:
            self.last, self.duration = stamp, packet.duration or 0
        self.count += 1


def _warnings(frame: av.VideoFrame) -> list[str]:
    warnings = []
    if int(frame.color_trc) in _HDR:
        warnings.append("the source video is HDR (PQ or HLG): its colours are taken as SDR and look paler or darker")
    if frame.interlaced_frame:
        warnings.append("the source video is interlaced: moving edges show lines; deinterlace it first")
    return warnings

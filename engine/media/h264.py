"""H.264 encoding: the stream of every video, and a smaller encoding of a finished file."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av.codec.context import Flags
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from engine.cancel import check
from engine.data.cancel import CancelToken
from engine.errors import SinkError
from engine.media.containers import open_input

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: x264's output depends on the number of threads, so it must not depend on the machine's cores.
_THREADS = 4
#: x264's macroblock tree (165, assembly, with B-frames) reads uninitialised memory, so the bytes would differ from run
#: to run. The bits that it saves do not matter here.
X264_PARAMS = "mbtree=0"
#: Share of the allowed bytes that a smaller encoding aims at: two passes reach a size within a few per cent.
_AIM = 0.95

#: Least quality of a smaller encoding compared with the first one, by luma: PSNR in dB over the whole video, and SSIM
#: of the worst frame, so that a few bad seconds do not disappear in a mean.
LEAST_PSNR = 38.0
LEAST_SSIM = 0.95


def open_mp4(path: Path) -> tuple[av.container.OutputContainer, io.FileIO]:
    """Open an MP4 for writing, with its index at the front and without dates and versions in its bytes.

    Close the container first, then the file. FFmpeg does not open it: PyAV would never close a file that FFmpeg opened
    and whose header could not be written. Raises OSError.
    """
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    file = open_file(path)
    try:
        return av.open(file, "w", format="mp4", options=options), file
    except BaseException:
        file.close()
        raise


def open_file(path: Path) -> io.FileIO:
    """Open a new file for writing and reading, which writes all or raises OSError."""
    return _File(str(path.absolute()), "w+")


@contextmanager
def _writing(path: Path) -> Iterator[av.container.OutputContainer]:
    container, file = open_mp4(path)
    with file, container:
        yield container


class _File(io.FileIO):
    """A file of which PyAV may take for written what it gave: a disk that fills up takes a part of it first."""

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            rest = rest[super().write(rest) :]
        return size


def add_video(
    container: av.container.OutputContainer, size: tuple[int, int], rate: Fraction, options: Mapping[str, str]
) -> av.VideoStream:
    """Add a stream of yuv420p (BT.709) frames of `size` (width, height) with the time base 1 / `rate`."""
    video: av.VideoStream = container.add_stream("libx264", rate=rate, options={**options, "x264-params": X264_PARAMS})
    set_format(video.codec_context, size, rate)
    return video


def set_format(context: av.VideoCodecContext, size: tuple[int, int], rate: Fraction) -> None:
    """Have `context` encode yuv420p (BT.709) frames of `size` (width, height) with the time base 1 / `rate`."""
    context.width, context.height = size
    context.pix_fmt = "yuv420p"
    context.thread_count = _THREADS
    context.time_base = 1 / rate
    context.flags |= Flags.bitexact
    # Players guess the colour matrix of an untagged video from its size.
    context.colorspace = Colorspace.ITU709
    context.color_range = ColorRange.MPEG
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709


@dataclass(frozen=True)
class Likeness:
    """How similar two encodings are, by luma."""

    #: dB, over the whole video.
    psnr: float
    #: Of the worst frame, 0 .. 1.
    ssim: float

    @property
    def holds(self) -> bool:
        """Whether one may replace the other."""
        return self.psnr >= LEAST_PSNR and self.ssim >= LEAST_SSIM


def shrink(
    path: Path, into: Path, most: int, *, preset: str = "medium", cancel: CancelToken | None = None
) -> Likeness | None:
    """Encode the pictures of `path` again in two passes, to a file of at most `most` bytes at `into`.

    Sound, tags and times are unchanged. Returns how similar the two are; None, and leaves no file, if that size is not
    possible. Raises SinkError, and Cancelled between frames once `cancel` is set.
    """
    log = into.with_suffix(".passes")
    # It gets its name when it is complete.
    part = into.with_name(f".{into.name}.part")
    try:
        rate = _bitrate(path, most)
        if rate < 1000:
            return None
        settings = {"b": str(rate), "preset": preset, "stats": str(log.absolute())}
        for number in (Flags.pass1, Flags.pass2):
            _encode(path, part, settings, number, cancel)
        if part.stat().st_size > most:
            return None
        likeness = _compare(path, part, cancel)
        part.replace(into)
        return likeness
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SinkError(f"the video cannot be encoded again: {reason}", field="sink") from error
    finally:
        # The log, and x264's temporary one.
        for leftover in (part, log, log.with_suffix(".passes.temp")):
            leftover.unlink(missing_ok=True)


def _bitrate(path: Path, most: int) -> int:
    """Return the bits per second that remain for the pictures."""
    with open_input(path) as file:
        video = file.streams.video[0]
        pictures = sum(packet.size for packet in file.demux(video))
        seconds = float(video.frames / _rate(video))
    # Sound, index and tags need as much as before.
    return int((most * _AIM - (path.stat().st_size - pictures)) * 8 / seconds)


def _encode(path: Path, into: Path, settings: Mapping[str, str], number: Flags, cancel: CancelToken | None) -> None:
    with open_input(path) as file, _writing(into) as output:
        output.metadata.update(file.metadata)
        source = file.streams.video[0]
        video = add_video(output, (source.width, source.height), _rate(source), settings)
        video.codec_context.flags |= number
        sound = {stream: output.add_stream_from_template(stream) for stream in file.streams.audio}
        for packet in file.demux(source, *sound):
            check(cancel, "keep")
            if isinstance(packet.stream, av.AudioStream):
                if packet.dts is not None:
                    packet.stream = sound[packet.stream]
                    output.mux(packet)
                continue
            for frame in source.decode(packet):
                # Otherwise x264 would keep the frame types of the first encoder.
                frame.pict_type = PictureType.NONE
                output.mux(video.encode(frame))
        output.mux(video.encode(None))


def _compare(path: Path, other: Path, cancel: CancelToken | None = None) -> Likeness:
    errors: list[float] = []
    similarities: list[float] = []
    with open_input(path) as one, open_input(other) as two:
        graph = av.filter.Graph()
        ends = [graph.add_buffer(template=file.streams.video[0]) for file in (one, two)]
        # Each filter writes its results into the frame's tags and passes the smaller encoding on to the next filter.
        split, psnr, ssim = graph.add("split"), graph.add("psnr"), graph.add("ssim")
        sink = graph.add("buffersink")
        ends[0].link_to(split)
        for measure, number in ((psnr, 0), (ssim, 1)):
            split.link_to(measure, number, 1)
        ends[1].link_to(psnr, 0, 0)
        psnr.link_to(ssim, 0, 0)
        ssim.link_to(sink)
        graph.configure()
        for pair in chain(zip(one.decode(video=0), two.decode(video=0), strict=True), [(None, None)]):
            check(cancel, "keep")
            for end, frame in zip(ends, pair, strict=True):
                end.push(frame)
            with suppress(BlockingIOError, EOFError):
                while True:
                    metadata = sink.pull().metadata
                    errors.append(float(metadata["lavfi.psnr.mse.y"]))
                    similarities.append(float(metadata["lavfi.ssim.Y"]))
    mean = sum(errors) / len(errors)
    return Likeness(psnr=10 * math.log10(255**2 / mean) if mean else math.inf, ssim=min(similarities))


def _rate(video: av.VideoStream) -> Fraction:
    return Fraction(video.average_rate or video.base_rate or 0)

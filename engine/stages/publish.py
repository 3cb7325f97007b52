"""Segments -> a video that players can watch while it is made: parts and an HLS playlist that grows."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from types import TracebackType
from typing import Self

import av

from engine.components import CancelToken
from engine.data import Plan
from engine.data.live import Live, LiveFolder, LivePart
from engine.errors import Cancelled, EngineError
from engine.media.audio import SOUND_RATE
from engine.media.fragments import Fragmenter
from engine.media.segments import Segment
from engine.stages.windows import output_frames
from engine.stages.write import Writer

INIT_TYPE, PART_TYPE = "video/mp4", "video/iso.segment"
#: Seconds that a failed or cancelled request waits for its playlist to be ended.
_GRACE = 3.0


class Publisher:
    """Publishes each segment in a thread of its own, so that a slow place never delays the video.

    If a part cannot be stored, publishing ends there with a warning, and the video is still made. Use it as a context
    manager: at the end it waits for all parts, and then the playlist says that no part follows. If the block raises,
    the playlist is ended at the last part, or everything is removed.
    """

    def __init__(
        self,
        folder: LiveFolder | None,
        writer: Writer,
        longest: int,
        *,
        remove: bool = False,
        report: Callable[[Live], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """Publish the segments of `writer`'s video to `folder`; None publishes nothing.

        `longest` are the seconds of its longest part, rounded up: players poll the playlist as often as that.
        `report` is called in the thread, whenever there is a new part or the end. `remove`: if the block raises, remove
        what was published.
        """
        self._folder, self._rate = folder, writer.rate
        self._listener = report
        self._remove, self._cancel = remove, cancel
        options, self._fragments = writer.options, None
        if folder is not None:
            self._fragments = Fragmenter(writer.size, writer.rate, options.x264, options.audio_bitrate)
        self._head = _head(longest)
        self._lines: list[str] = []
        #: Segments without frames, whose sound is in the next part.
        self._held: list[Segment] = []
        self._live = Live("")
        #: The seconds of all parts, exactly.
        self._published = Fraction(0)
        self._queue: queue.SimpleQueue[Segment | bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="multitalk-live", daemon=True)
        self._failed = False
        self.warnings: tuple[str, ...] = ()

    @property
    def address(self) -> str | None:
        """Path or URL of the playlist; None if nothing was published."""
        return self._live.address or None

    def add(self, segment: Segment) -> None:
        """Publish a segment behind those before. Returns at once, raises nothing."""
        if self._folder is not None:
            self._queue.put(segment)

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is None:
            return
        self._queue.put(error is None)
        end = time.monotonic() + _GRACE
        while self._thread.is_alive():
            self._thread.join(0.1)
            cancelled = self._cancel is not None and self._cancel.is_set()
            if time.monotonic() < end:
                continue
            if error is not None:
                # The request is over: no progress may follow.
                self._listener = None
                return
            if cancelled:
                raise Cancelled("publish")

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            entry = self._queue.get()
            if isinstance(entry, bool):
                self._guarded(partial(self._end, complete=entry))
                return
            if not self._failed:
                self._guarded(partial(self._publish, entry))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Cancelled:
            self._failed = True
        except (EngineError, av.FFmpegError, ValueError) as error:
            seconds = self._live.seconds
            what = error.what if isinstance(error, EngineError) else "a part cannot be made"
            warning = f"the live playlist ends after {seconds:.2f} s: {what}"
            self.warnings = (*self.warnings, warning) if not self._failed else self.warnings
            self._failed = True

    def _publish(self, segment: Segment, *, last: bool = False) -> None:
        assert self._folder is not None
        assert self._fragments is not None
        self._held.append(segment)
        frames = sum(one.frames for one in self._held)
        if not frames and not last:
            return
        if not self._lines:
            name = self._folder.part("init.mp4", self._fragments.init, INIT_TYPE)
            self._lines.append(f'#EXT-X-MAP:URI="{name}"')
        number = len(self._live.parts)
        content = self._fragments.part(number, *self._held)
        seconds = frames / self._rate if frames else _sound(self._held)
        address = self._folder.part(f"part-{number:05d}.m4s", content, PART_TYPE)
        self._held.clear()
        self._lines += [f"#EXTINF:{float(seconds):.6f},", address]
        self._folder.playlist(self._text())
        # Sums of rounded numbers would show as 1.1600000000000001, and would drift over many parts.
        begins, self._published = self._published, self._published + seconds
        part = LivePart(address, round(float(begins), 6), round(float(seconds), 6))
        self._report(Live(self._folder.address, (*self._live.parts, part)))

    def _end(self, *, complete: bool) -> None:
        assert self._folder is not None
        if not complete and self._remove:
            self._live = Live("")
            self._folder.remove()
            return
        if complete and not self._failed and any(one.sound for one in self._held):
            self._publish(Segment(0, 0, 0, (), ()), last=True)
        if not self._live.parts:
            return
        self._folder.playlist(f"{self._text()}#EXT-X-ENDLIST\n")
        self._report(Live(self._live.address, self._live.parts, ended=True))

    def _report(self, live: Live) -> None:
        self._live = live
        if self._listener is not None:
            self._listener(live)

    def _text(self) -> str:
        return "".join(f"{line}\n" for line in (*self._head, *self._lines))


def longest_part(plan: Plan) -> int:
    """Return the seconds, rounded up, of the longest part of a plan's video; it is known before any part is made."""
    most = max(len(output_frames(window, plan.frames, plan.fps, plan.generated_fps)) for window in plan.windows)
    return max(1, math.ceil(most / plan.fps))


def _head(longest: int) -> list[str]:
    return [
        "#EXTM3U",
        # The first version with fragmented MP4.
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{longest}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        # Parts are only added, none is removed.
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        # Without it players begin near the end of a list that is not ended.
        "#EXT-X-START:TIME-OFFSET=0",
    ]


def _sound(segments: list[Segment]) -> Fraction:
    return Fraction(sum(packet.duration for one in segments for packet in one.sound), SOUND_RATE)

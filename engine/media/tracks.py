"""Choose the audio track of a file and measure its length on the file's own clock.

Packets are read but only the first ones are decoded, so that planning is fast even for an hour of sound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from engine.components import CancelToken
from engine.data import Cut, Link
from engine.errors import RequestError
from engine.media.clock import SLACK, Clock, find_zero, kind_of
from engine.media.containers import find_links, open_input
from engine.media.packets import PacketFacts, PacketLengths, facts_of, only, packets_of
from engine.media.pieces import HINT, check, reading

#: Packets that are decoded to find the first sound.
_TRIES = 64
#: Seconds, and share of the whole, that may be missing compared with the header.
_SHORT, _SHORT_SHARE = 0.15, 0.01
#: A WAV header with a larger size was written without knowing it: about 2 or 4 GiB.
_UNKNOWN = 2**31 - 2**16


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`: the cut, and sentences about what one might not expect."""

    cut: Cut
    warnings: tuple[str, ...]


def inspect(
    path: Path,
    *,
    field: str,
    start: float = 0.0,
    duration: float | None = None,
    track: int | None = None,
    channel: int | None = None,
    max_seconds: float | None = None,
    fields: dict[str, str] | None = None,
    cancel: CancelToken | None = None,
) -> Inspection:
    """Find the audio track and the part of it that is used, decoding only its first packets.

    `track` and `channel` count from 1. The default track is the one that FFmpeg and players choose: the one flagged as
    default, else the best. Seconds of the file include gaps in its timestamps and silence before a track that begins
    later than its pictures. Raises RequestError about `field` (or the name in `fields` for `start`, `track` and so on),
    and Cancelled.
    """
    names = dict.fromkeys(("start", "track", "channel"), field) | (fields or {})
    with reading(path, field):
        parts = find_links(path)
        links: list[Link] = []
        warnings: list[str] = []
        gaps: list[tuple[float, float]] = []
        damaged = 0
        until = None if duration is None else start + duration
        if max_seconds is not None:
            until = min(until or np.inf, start + max_seconds + SLACK)
        for part in parts:
            at = links[-1].at + links[-1].seconds if links else 0.0
            if until is not None and links and at >= until:
                break
            with open_input(path, part if len(parts) > 1 else None) as container:
                stream = _choose(container, track, field, names, warnings if not links else [])
                if channel is not None and not links and channel > stream.channels:
                    raise RequestError(
                        f"there is no channel {channel}: the track has {stream.channels}",
                        field=names["channel"],
                        hint="leave it out" if stream.channels == 1 else f"give 1 to {stream.channels}",
                        code="bad_value",
                    )
                survey = _Survey(path, container, stream, part, at, first=not links)
                for _ in survey.walk(cancel):
                    if until is not None and survey.clock.end > until:
                        break
                else:
                    warnings += survey.missing() if len(parts) == 1 else []
                if survey.link is None:
                    if links:
                        continue
                    raise survey.nothing(field)
                links.append(replace(survey.link, seconds=survey.clock.end - at))
                gaps += survey.clock.gaps
                damaged += survey.damaged
                if survey.offset and not start:
                    warnings.append(
                        f"the sound begins {survey.offset:.2f} s after the file does; silence is put before it"
                    )
        whole = links[-1].at + links[-1].seconds
    if start >= whole:
        raise RequestError(
            f"the voice is to begin at {start:g} s, and the file ends at {whole:.2f} s",
            field=names["start"],
            hint="give a smaller start",
            code="bad_value",
        )
    seconds = whole - start if duration is None else min(duration, whole - start)
    if max_seconds is not None and seconds > max_seconds:
        raise RequestError(
            f"the voice is longer than {max_seconds:g} seconds",
            field=field,
            hint="take a part of it with start and duration, or raise access.max_seconds",
            code="audio_too_long",
        )
    if duration is not None and seconds < duration - SLACK:
        warnings.append(f"{duration:g} s are asked for from {start:g} s on, and the file ends {seconds:.2f} s later")
    warnings += _gaps([(place, length) for place, length in gaps if start <= place < start + seconds])
    if damaged:
        warnings.append(
            f"the file is damaged: it cannot be read in {damaged} places, the last sound is at {whole:.2f} s"
        )
    return Inspection(Cut(start, seconds, channel, tuple(links)), tuple(warnings))


# --- which track ------------------------------------------------------------------------------------------------------


def _choose(
    container: av.container.InputContainer, track: int | None, field: str, names: dict[str, str], warnings: list[str]
) -> av.AudioStream:
    streams = container.streams.audio
    if not streams:
        raise RequestError("the file has no audio track", field=field, hint=HINT, code="audio_empty")
    if track is not None:
        if track > len(streams):
            have = "1 audio track" if len(streams) == 1 else f"{len(streams)} audio tracks"
            raise RequestError(
                f"there is no track {track}: the file has {have}",
                field=names["track"],
                hint="leave it out" if len(streams) == 1 else f"give 1 to {len(streams)}",
                code="bad_value",
            )
        return streams[track - 1]
    # av_find_best_stream, which prefers flags, then the stream with the most data.
    best = container.streams.best("audio")
    selected = best if isinstance(best, av.AudioStream) else streams[0]
    number = next(index for index, stream in enumerate(streams, 1) if stream.index == selected.index)
    if len(streams) > 1:
        flagged = ", flagged as default," if selected.disposition & Disposition.default else ""
        other = 1 if number > 1 else 2
        warnings.append(
            f"the file has {len(streams)} audio tracks, and track {number}{flagged} is heard; "
            f"choose another with track, or #track={other} behind the file's name"
        )
    return selected


def _gaps(gaps: Sequence[tuple[float, float]]) -> list[str]:
    if not gaps:
        return []
    seconds = sum(length for _, length in gaps)
    where = f"at {gaps[0][0]:.2f} s" if len(gaps) == 1 else f"in {len(gaps)} places, the first at {gaps[0][0]:.2f} s"
    return [f"the file's timestamps leave out {seconds:.2f} s {where}; silence is put there"]


# --- one link ---------------------------------------------------------------------------------------------------------


class _Survey:
    """Reads the packets of one link, decoding until the first sound."""

    def __init__(
        self,
        path: Path,
        container: av.container.InputContainer,
        stream: av.AudioStream,
        part: tuple[int, int],
        at: float,
        *,
        first: bool,
    ) -> None:
        #: How often the container could not be read.
        self.damaged = 0
        #: Seconds from the beginning of the file to the first sound.
        self.offset = 0.0
        self.link: Link | None = None
        self.clock = Clock(at, 0.0, kind_of(container))
        self._path = path
        self._container, self._stream, self._part, self._at, self._first = container, stream, part, at, first
        self._error: Exception | None = None
        #: Seconds that the header states; 0 if it does not.
        self._header_seconds = 0.0

    def walk(self, cancel: CancelToken | None) -> Iterator[None]:
        stream, before = self._stream, []
        only(self._container, stream)
        failures: list[av.FFmpegError] = []
        lengths: PacketLengths | None = None
        packets = packets_of(self._container, stream, failures)
        tries = 0
        for packet in packets:
            check(cancel)
            if lengths is None:
                tries += 1
                before.append(facts_of(packet))
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    self._error, frames = error, []
                if not (frames := [frame for frame in frames if frame.samples]):
                    if tries >= _TRIES:
                        return
                    continue
                lengths = PacketLengths(stream, before, frames[0], sound=self._error is None)
                self._begin(lengths)
                for facts in before:
                    self._place(facts, lengths)
            elif packet.size:
                self._place(facts_of(packet), lengths)
            yield
        if lengths is not None:
            self.clock.end += lengths.rounding
            self.damaged = len(failures)
        elif failures and self._error is None:
            self._error = failures[-1]

    def missing(self) -> list[str]:
        """Return a warning if the header states more sound than there is."""
        if self.link is None or not self._header_seconds:
            return []
        present = self.clock.end - self._at - self.offset
        if present >= self._header_seconds - max(_SHORT, _SHORT_SHARE * self._header_seconds):
            return []
        return [
            f"the file is cut off or damaged: its header states {self._header_seconds:.2f} s, it has {present:.2f} s"
        ]

    def nothing(self, field: str) -> RequestError:
        if self._error is None:
            return RequestError("the audio track has no samples", field=field, hint=HINT, code="audio_empty")
        reason = getattr(self._error, "strerror", None) or self._error
        return RequestError(f"the audio cannot be decoded: {reason}", field=field, hint=HINT, code="audio_unreadable")

    def _begin(self, lengths: PacketLengths) -> None:
        self._header_seconds = self._seconds_in_header(lengths)
        zero = (
            find_zero(self._container, lengths.first_packet, lengths.first_sound)
            if self._first
            else lengths.first_sound
        )
        self.clock = Clock(self._at, zero, kind_of(self._container))
        if self._first and lengths.first_sound - zero > SLACK:
            self.offset = lengths.first_sound - zero
        self.link = Link(self._part, self._stream.index, self._at, 0.0, zero, lengths.priming, lengths.even)

    def _seconds_in_header(self, lengths: PacketLengths) -> float:
        """Return the seconds that a header states; 0 if FFmpeg computed them from the file's size."""
        kind, stream = kind_of(self._container), self._stream
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        if kind == "wav" and lengths.pcm:
            # FFmpeg reduces the duration to what the file can hold.
            with self._path.open("rb") as file:
                file.seek(self._part[0] + 4)
                size = int.from_bytes(file.read(4), "little")
            missing = self._part[0] + 8 + size - self._part[1]
            return seconds + missing / lengths.pcm / lengths.rate if missing > 0 and size < _UNKNOWN else 0.0
        if kind == "matroska" and len(self._container.streams) == 1:
            begin = (self._container.start_time or 0) / av.time_base
            return max(0.0, (self._container.duration or 0) / av.time_base - max(0.0, begin))
        return seconds if kind in ("flac", "mov") or (kind == "mp3" and lengths.tagged) else 0.0

    def _place(self, facts: PacketFacts, lengths: PacketLengths) -> None:
        stamp, seconds = lengths.of(facts)
        if seconds > 0:
            self.clock.place(stamp, seconds, exact=lengths.exact)

"""Streams and events of the pretended card, and the order between them."""

from __future__ import annotations

from typing import Protocol

from engine.rehearsal.places import where

#: A vector clock: the last time of each stream that is known to be over, by the stream's number.
Clock = dict[int, int]


class Clocks(Protocol):
    """What streams need from the ledger."""

    #: The host's vector clock, the current stream, and all streams.
    host_clock: Clock
    stream: Stream
    streams: list[Stream]

    def wait(self, place: str) -> None:
        """Record that the host waits for the device."""
        ...

    def synchronise(self, *streams: Stream) -> None:
        """Record that the host has waited for everything in `streams`."""
        ...


class Stream:
    """A CUDA stream: its own time, and what it knows about the others."""

    _created = 0

    def __init__(self, ledger: Clocks, name: str = "stream") -> None:
        Stream._created += 1
        self.number = Stream._created
        self.name = name
        self.clock: dict[int, int] = {}
        self._ledger = ledger
        ledger.streams.append(self)

    def synchronize(self) -> None:
        """Make the host wait until everything is done."""
        self._ledger.wait(f"{where()} ({self.name} stream)")
        self._ledger.synchronise(self)

    def wait_stream(self, other: Stream) -> None:
        """Run later work after everything queued in `other`."""
        merge(self.clock, other.clock)

    def wait_event(self, event: Event) -> None:
        """Run later work after `event`."""
        merge(self.clock, event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        """Return an event after everything queued so far."""
        event = event or Event(self._ledger)
        event.record(self)
        return event

    def query(self) -> bool:
        """Return whether everything is done, as far as the host knows."""
        return all(moment <= self._ledger.host_clock.get(stream, 0) for stream, moment in self.clock.items())


class Event:
    """A CUDA event."""

    def __init__(self, ledger: Clocks) -> None:
        self.clock: dict[int, int] = {}
        self._ledger = ledger

    def record(self, stream: Stream | None = None) -> None:
        """Set the event after everything queued in `stream` so far."""
        self.clock = dict((stream or self._ledger.stream).clock)

    def wait(self, stream: Stream | None = None) -> None:
        """Make `stream` wait."""
        merge((stream or self._ledger.stream).clock, self.clock)

    def synchronize(self) -> None:
        """Make the host wait."""
        self._ledger.wait(f"{where()} (event)")
        merge(self._ledger.host_clock, self.clock)

    def query(self) -> bool:
        """Return whether the event has happened, as far as the host knows."""
        return all(moment <= self._ledger.host_clock.get(stream, 0) for stream, moment in self.clock.items())

    def elapsed_time(self, other: Event) -> float:
        """Return 0: nothing is timed here."""
        return 0.0


def merge(clock: dict[int, int], other: dict[int, int]) -> None:
    """Merge the clock `other` into `clock`."""
    for stream, moment in other.items():
        if moment > clock.get(stream, 0):
            clock[stream] = moment

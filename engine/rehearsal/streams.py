"""Streams and events of the pretended card: what is in order with what."""

from __future__ import annotations

from typing import Protocol

from engine.rehearsal.places import where

#: The last moment of each stream that is known to be over, by the stream's number.
Clock = dict[int, int]


class Clocks(Protocol):
    """What streams ask of the ledger."""

    #: What the host knows to be over, the current stream, and all streams.
    host_clock: Clock
    stream: Stream
    streams: list[Stream]

    def wait(self, place: str) -> None:
        """Note that the host waits for the device."""
        ...

    def synchronise(self, *streams: Stream) -> None:
        """Let the host know all that `streams` have done."""
        ...


class Stream:
    """A CUDA stream: operations in order, and what it knows of the others."""

    _made = 0

    def __init__(self, ledger: Clocks, name: str = "stream") -> None:
        Stream._made += 1
        self.number = Stream._made
        self.name = name
        self.clock: dict[int, int] = {}
        self._ledger = ledger
        ledger.streams.append(self)

    def synchronize(self) -> None:
        """Wait on the host until all is done."""
        self._ledger.wait(f"{where()} ({self.name} stream)")
        self._ledger.synchronise(self)

    def wait_stream(self, other: Stream) -> None:
        """Do what follows after all that `other` has been given."""
        merge(self.clock, other.clock)

    def wait_event(self, event: Event) -> None:
        """Do what follows after `event`."""
        merge(self.clock, event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        """Return an event that comes when all that was given so far is done."""
        event = event or Event(self._ledger)
        event.record(self)
        return event

    def query(self) -> bool:
        """Say whether all is done, as far as the host knows."""
        return all(moment <= self._ledger.host_clock.get(stream, 0) for stream, moment in self.clock.items())


class Event:
    """A CUDA event."""

    def __init__(self, ledger: Clocks) -> None:
        self.clock: dict[int, int] = {}
        self._ledger = ledger

    def record(self, stream: Stream | None = None) -> None:
        """Come when `stream` has done what it was given so far."""
        self.clock = dict((stream or self._ledger.stream).clock)

    def wait(self, stream: Stream | None = None) -> None:
        """Let `stream` wait."""
        merge((stream or self._ledger.stream).clock, self.clock)

    def synchronize(self) -> None:
        """Wait on the host."""
        self._ledger.wait(f"{where()} (event)")
        merge(self._ledger.host_clock, self.clock)

    def query(self) -> bool:
        """Say whether it has come, as far as the host knows."""
        return all(moment <= self._ledger.host_clock.get(stream, 0) for stream, moment in self.clock.items())

    def elapsed_time(self, other: Event) -> float:
        """Return no time: nothing is timed here."""
        return 0.0


def merge(clock: dict[int, int], other: dict[int, int]) -> None:
    """Let `clock` know what `other` does."""
    for stream, moment in other.items():
        if moment > clock.get(stream, 0):
            clock[stream] = moment

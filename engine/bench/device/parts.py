"""The parts of the bench, their order, and how long each may take. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchPart:
    """One part of the bench."""

    name: str
    #: "module:function"; the function takes a Bench and yields (name of a row, row).
    place: str
    #: Budget in seconds: no row begins later, and the process is ended GRACE seconds later.
    budget: float


#: Seconds beyond its budget in which a part may finish its row.
GRACE = 20.0

#: Cheap and uncertain parts come first: their results decide whether the others are worth their time.
PARTS = (
    BenchPart("machine", "engine.bench.device.machine:machine", 20),
    BenchPart("link", "engine.bench.device.machine:link", 30),
    BenchPart("generate", "engine.bench.device.film:generate", 60),
    BenchPart("attention", "engine.bench.device.attention:attention", 40),
    BenchPart("other_attention", "engine.bench.device.attention:other_attention", 30),
    BenchPart("offload", "engine.bench.device.network:offload", 60),
    BenchPart("forward", "engine.bench.device.network:forward", 90),
    BenchPart("products", "engine.bench.device.products:products", 40),
    BenchPart("bandwidth", "engine.bench.device.products:bandwidth", 15),
    BenchPart("codec", "engine.bench.device.codec:codec", 60),
    BenchPart("encoders", "engine.bench.device.encoders:encoders", 40),
    BenchPart("compile", "engine.bench.device.compiled:compiled", 120),
    BenchPart("fragments", "engine.bench.device.fragments:fragments", 90),
    BenchPart("doctor", "engine.bench.device.machine:doctor", 60),
)

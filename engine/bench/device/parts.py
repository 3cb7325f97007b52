"""What is measured, in which order, and how long each part may take. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of the bench."""

    name: str
    #: "module:function"; the function takes a Bench and yields (name of a row, row).
    place: str
    #: Seconds: no row begins after them, and the process is ended GRACE seconds later.
    budget: float


#: Seconds beyond its budget that a part has for the row it is at.
GRACE = 20.0

#: Cheap and doubtful parts come first: what they show decides whether the others are worth their time.
PARTS = (
    Part("machine", "engine.bench.device.machine:machine", 20),
    Part("link", "engine.bench.device.machine:link", 30),
    Part("generate", "engine.bench.device.film:generate", 60),
    Part("attention", "engine.bench.device.attention:attention", 40),
    Part("other_attention", "engine.bench.device.attention:other_attention", 30),
    Part("offload", "engine.bench.device.network:offload", 60),
    Part("forward", "engine.bench.device.network:forward", 90),
    Part("products", "engine.bench.device.products:products", 40),
    Part("bandwidth", "engine.bench.device.products:bandwidth", 15),
    Part("codec", "engine.bench.device.codec:codec", 60),
    Part("encoders", "engine.bench.device.encoders:encoders", 40),
    Part("compile", "engine.bench.device.compiled:compiled", 120),
    Part("fragments", "engine.bench.device.fragments:fragments", 90),
    Part("doctor", "engine.bench.device.machine:doctor", 30),
)

"""What happens on the pretended card: bytes, copies, waits, launches and operations, stage by stage."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from engine.rehearsal.allocator import Block, CachingAllocator, pinned
from engine.rehearsal.counts import Copy, Counts, Forward
from engine.rehearsal.places import where
from engine.rehearsal.streams import Stream, merge

_aten: Any = torch.ops.aten
#: Tensors of so many bytes are known by the place where they were made.
_LARGE = 2**20
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
#: These allocate, and launch nothing.
_EMPTY = (_aten.empty, _aten.empty_strided, _aten.empty_like, _aten.new_empty, _aten.new_empty_strided)
#: Plain enough to look into; the others take themselves apart into these first.
_PLAIN = (Tensor, nn.Parameter, FakeTensor, nn.Buffer)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation on fake tensors and enters it in the current stage's counts."""

    def __init__(self, allocator: CachingAllocator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocator = allocator
        self.now = Counts()
        #: Live bytes of the device and the host.
        self.live: Counter[str] = Counter()
        #: Pinned bytes with what pinning rounds up: now, and at most.
        self.pinned_total = self.most_pinned = 0
        #: Where an order was not kept: a tensor used before a stream that writes it was waited for.
        self.races: Counter[str] = Counter()
        #: Those of the current stage.
        self.forwards: list[Forward] = []
        self.inside = False
        self.host_clock: dict[int, int] = {}
        self.streams: list[Stream] = []
        self.stream = Stream(self, "compute")
        self._stored: dict[int, _Storage] = {}

    def begin(self) -> Counts:
        """Count anew from here on; return the new counts."""
        self.now = Counts(peak=self.live["cuda"], host_peak=self.live["cpu"])
        self.forwards = []
        self.allocator.reset_peak()
        return self.now

    def arrived(self) -> None:
        """Say that what the stage works with is on the device: its peak counts from here on."""
        self.now.arrival, self.now.peak, self.now.peak_where = self.now.peak, self.live["cuda"], ""

    def end(self) -> None:
        """Note what is left."""
        self.now.after = self.live["cuda"]
        for entry in self._stored.values():
            if entry.where:
                self.now.left[entry.where] += entry.size
        self.now.held = self.allocator.most_reserved

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Count what happens inside as one forward."""
        before, self.inside = self._sums(), True
        try:
            yield
        finally:
            self.inside = False
            self.forwards.append(Forward(*(now - then for now, then in zip(self._sums(), before, strict=True))))

    def _sums(self) -> Forward:
        now = self.now
        ways = {way: sum(size for copy, size in now.copied.items() if copy.direction == way) for way in ("up", "down")}
        return Forward(
            now.launches.total(),
            now.moved.total(),
            now.flops.total(),
            now.copies.total(),
            ways["up"],
            ways["down"],
            now.waits.total(),
            now.reads.total(),
        )

    # --- memory -------------------------------------------------------------------------------------------------------

    def track(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._stored or not isinstance(tensor, FakeTensor):
            return
        device = tensor.fake_device.type
        size = int(storage.nbytes())
        block = self.allocator.allocate(size, self.stream.number) if device == "cuda" and size else None
        taken = block.size if block is not None else size
        place = where() if block is not None and taken >= _LARGE else ""
        entry = _Storage(device, taken, block, self.stream.number, place)
        self._stored[key] = entry
        self.live[device] += taken
        if device == "cuda" and self.live["cuda"] > self.now.peak:
            self.now.peak, self.now.peak_where = self.live["cuda"], place or where()
        elif device == "cpu":
            self.now.host_peak = max(self.now.host_peak, self.live["cpu"])
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        entry = self._stored.pop(key)
        self.live[entry.device] -= entry.size
        if entry.pinned:
            self.pinned_total -= entry.pinned
            self.live["cpu"] -= entry.pinned - entry.size
        if entry.block is not None:
            self._check_free(entry)
            self.allocator.free(entry.block)

    def pin(self, tensor: Tensor) -> None:
        """Note that a tensor of the host is pinned: torch's allocator takes a power of two for it."""
        self.track(tensor)
        entry = self._stored[tensor.untyped_storage()._cdata]
        if not entry.pinned:
            entry.pinned = pinned(entry.size)
            self.pinned_total += entry.pinned
            self.most_pinned = max(self.most_pinned, self.pinned_total)
            self.live["cpu"] += entry.pinned - entry.size
            self.now.pinned += entry.size
            self.now.host_peak = max(self.now.host_peak, self.live["cpu"])

    def is_pinned(self, tensor: Tensor) -> bool:
        """Say whether a tensor lies in pinned memory."""
        entry = self._entry(tensor)
        return entry is not None and entry.pinned > 0

    def record_stream(self, tensor: Tensor, stream: Stream) -> None:
        """Note that a tensor's memory is not given to others before `stream` has done with it."""
        entry = self._entry(tensor)
        if entry is not None:
            entry.recorded.add(stream.number)

    def _entry(self, tensor: Tensor) -> _Storage | None:
        return self._stored.get(tensor.untyped_storage()._cdata)

    # --- operations ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(kind not in _PLAIN for kind in types):
            return NotImplemented
        inputs = list(_tensors(args))
        inputs += _tensors(kwargs.values())
        if func is _aten._local_scalar_dense.default:
            self.look(args[0])
            return self._read(args[0])
        out = func(*args, **kwargs)
        made = [tensor for tensor in _tensors((out,)) if isinstance(tensor, FakeTensor)]
        for tensor in made:
            self.track(tensor)
        on_card = any(tensor.device.type == "cuda" for tensor in inputs) or any(
            tensor.device.type == "cuda" for tensor in made
        )
        if not func._schema.is_mutable and _is_view(inputs, made):
            return out
        if not on_card:
            self._on_host(func, args, kwargs, inputs)
        elif not (func in _COPIES and self._copy(func, args, kwargs, out)):
            self._launch(func, args, kwargs, inputs, made, out)
        return out

    def look(self, tensor: Tensor) -> None:
        """Note that the host looks at a tensor's values."""
        entry = self._entry(tensor)
        if tensor.device.type == "cpu" and entry is not None:
            self._check(entry.written, self.host_clock, "read on the host before it has come")

    def _read(self, tensor: Tensor) -> bool | int | float:
        if tensor.device.type == "cuda":
            place = where()
            self.now.reads[place] += 1
            self.wait(place)
            self.synchronise(self.stream)
        constant = getattr(tensor, "constant", None)
        if constant is not None:
            known: bool | int | float = constant.item()
            return known
        # Nobody knows the value. These lead on: a mask has something in it, a change is not small.
        return True if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1

    def _copy(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> bool:
        source = args[1] if func is _aten.copy_.default else args[0]
        if not isinstance(source, Tensor) or source.device.type == out.device.type:
            return False
        without_wait = bool(
            kwargs.get("non_blocking", args[2] if func is _aten.copy_.default and len(args) > 2 else False)
        )
        up = out.device.type == "cuda"
        if func is _aten._to_copy.default and without_wait and not up:
            # As torch has it: what is to come without a wait comes to pinned memory.
            self.pin(out)
        # As copy_kernel_cuda has it: what a copy that nobody waits for converts, the device converts, else the host.
        crossing = source.dtype if without_wait == up else out.dtype
        size = out.numel() * crossing.itemsize
        there, here = (out, source) if up else (source, out)
        straight = _alike(source, out)
        if not straight and (crossing != there.dtype or not there.is_contiguous()):
            self._momentary(size)
        as_it_is = straight or (crossing == here.dtype and here.is_contiguous() and here.shape == out.shape)
        memory = "pinned" if as_it_is and self.is_pinned(here) else "pageable"
        # The driver copies pageable memory by way of memory of its own, and the host waits for that.
        blocks = not (without_wait and memory == "pinned")
        place = where()
        copy = Copy("up" if up else "down", memory, blocks, self.inside, place)
        self.now.copies[copy] += 1
        self.now.copied[copy] += size
        self._used((source,), (out,))
        if blocks:
            self.wait(place)
            self.synchronise(self.stream)
        return True

    def _momentary(self, size: int) -> None:
        """Count memory of the device that a copy takes for itself."""
        if not size:
            return
        block = self.allocator.allocate(size, self.stream.number)
        if self.live["cuda"] + block.size > self.now.peak:
            self.now.peak, self.now.peak_where = self.live["cuda"] + block.size, where()
        self.allocator.free(block)

    def _launch(
        self, func: Any, args: Any, kwargs: Any, inputs: Sequence[Tensor], made: Sequence[Tensor], out: Any
    ) -> None:
        if func._overloadpacket in _EMPTY:
            self._used((), made)
            return
        name = func._schema.name.removeprefix("aten::")
        self.now.launches[name] += 1
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.now.flops[name, str(made[0].dtype).removeprefix("torch.")] += count(*args, **kwargs, out_val=out)
        self.now.moved[name] += sum(_touched(tensor) for tensor in inputs if tensor.device.type == "cuda")
        self.now.moved[name] += sum(map(_touched, made))
        self._used(inputs, (*made, *_written(func, args, kwargs)))

    # --- order --------------------------------------------------------------------------------------------------------

    def wait(self, place: str) -> None:
        """Note that the host waits for the device."""
        self.now.waits[place] += 1
        if self.inside:
            self.now.forward_waits[place] += 1

    def synchronise(self, *streams: Stream) -> None:
        """Let the host know all that these streams have done."""
        for stream in streams:
            merge(self.host_clock, stream.clock)

    def _used(self, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """Enter a use of tensors by the current stream, and look whether it may be."""
        stream = self.stream
        merge(stream.clock, self.host_clock)
        stream.clock[stream.number] = moment = stream.clock.get(stream.number, 0) + 1
        for tensor in read:
            entry = self._entry(tensor)
            if entry is not None:
                self._check(entry.written, stream.clock, "read before it is written")
                entry.reads[stream.number] = moment
        for tensor in written:
            entry = self._entry(tensor)
            if entry is not None:
                self._check(entry.written, stream.clock, "written while it is written")
                self._check(entry.reads, stream.clock, "written while it is read")
                entry.written = {stream.number: moment}
                entry.reads = {}

    def _on_host(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], inputs: Sequence[Tensor]) -> None:
        for tensor in inputs:
            self.look(tensor)
        for tensor in _written(func, args, kwargs):
            entry = self._entry(tensor)
            if entry is not None:
                self._check(entry.reads, self.host_clock, "written on the host while it is copied")

    def _check(self, uses: dict[int, int], clock: dict[int, int], what: str) -> None:
        if any(moment > clock.get(stream, 0) for stream, moment in uses.items()):
            self.races[f"{where()}: {what}"] += 1

    def _check_free(self, entry: _Storage) -> None:
        """Memory is handed out again in the order of the stream it was allocated on."""
        known = self.stream.clock if self.stream.number == entry.stream else {}
        for uses in (entry.written, entry.reads):
            for stream, moment in uses.items():
                if stream == entry.stream or stream in entry.recorded:
                    continue
                if moment > max(known.get(stream, 0), self.host_clock.get(stream, 0)):
                    self.races[f"{where()}: freed while another stream uses it"] += 1


@dataclass(eq=False)
class _Storage:
    device: str
    size: int
    block: Block | None
    #: Number of the stream it was allocated on.
    stream: int
    #: Where a large tensor of the device was made.
    where: str = ""
    #: Bytes that pinning takes; 0 where it is not pinned.
    pinned: int = 0
    #: The last write and the reads since, by stream and moment.
    written: dict[int, int] = field(default_factory=dict)
    reads: dict[int, int] = field(default_factory=dict)
    recorded: set[int] = field(default_factory=set)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operator writes to."""
    if func._schema.is_mutable:
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield from _tensors((args[index] if index < len(args) else kwargs.get(argument.name),))


def _alike(source: Tensor, out: Tensor) -> bool:
    """Say whether the bytes of one can be those of the other."""
    if source.dtype != out.dtype or source.shape != out.shape:
        return False
    if source.is_contiguous() and out.is_contiguous():
        return True
    return source.stride() == out.stride() and is_non_overlapping_and_dense_or_false(out)


def _is_view(inputs: Sequence[Tensor], made: Sequence[Tensor]) -> bool:
    given = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in given for tensor in made)


def _touched(tensor: Tensor) -> int:
    """Return the bytes that are really read or written: a dimension without a stride is read once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride:
            size *= length
    return size

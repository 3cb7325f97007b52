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
from engine.rehearsal.counts import Copy, Counts, ForwardCounts
from engine.rehearsal.places import where
from engine.rehearsal.streams import Stream, merge

_aten: Any = torch.ops.aten
#: For tensors of at least this many bytes, the place where they were created is recorded.
_LARGE = 2**20
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
#: These operators allocate, but launch no kernel.
_EMPTY = (_aten.empty, _aten.empty_strided, _aten.empty_like, _aten.new_empty, _aten.new_empty_strided)
#: Plain tensors; other types first unpack themselves into these.
_PLAIN = (Tensor, nn.Parameter, FakeTensor, nn.Buffer)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Intercepts every operation on fake tensors and adds it to the current stage's counts."""

    def __init__(self, allocator: CachingAllocator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocator = allocator
        self.now = Counts()
        #: Live bytes on the device and on the host.
        self.live: Counter[str] = Counter()
        #: Pinned bytes including rounding: now, and the peak.
        self.pinned_total = self.most_pinned = 0
        #: Race conditions: places where a tensor is used without waiting for the stream that writes it.
        self.races: Counter[str] = Counter()
        #: The counts of the current stage.
        self.forwards: list[ForwardCounts] = []
        self.inside = False
        self.host_clock: dict[int, int] = {}
        self.streams: list[Stream] = []
        self.stream = Stream(self, "compute")
        self._stored: dict[int, _Storage] = {}

    def begin(self) -> Counts:
        """Start new counts and return them."""
        self.now = Counts(peak=self.live["cuda"], host_peak=self.live["cpu"])
        self.forwards = []
        self.allocator.reset_peak()
        return self.now

    def arrived(self) -> None:
        """Mark that the stage's component is on the device: its peak counts from here on."""
        self.now.arrival, self.now.peak, self.now.peak_where = self.now.peak, self.live["cuda"], ""

    def end(self) -> None:
        """Record what is still on the device."""
        self.now.after = self.live["cuda"]
        for entry in self._stored.values():
            if entry.where:
                self.now.left[entry.where] += entry.size
        self.now.held = self.allocator.most_reserved

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Count the block as one forward."""
        before, self.inside = self._sums(), True
        try:
            yield
        finally:
            self.inside = False
            self.forwards.append(ForwardCounts(*(now - then for now, then in zip(self._sums(), before, strict=True))))

    def _sums(self) -> ForwardCounts:
        now = self.now
        ways = {way: sum(size for copy, size in now.copied.items() if copy.direction == way) for way in ("up", "down")}
        return ForwardCounts(
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
        """Count a tensor's storage once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._stored or not isinstance(tensor, FakeTensor):
            return
        device = tensor.fake_device.type
        size = int(storage.nbytes())
        block = self.allocator.allocate(size, self.stream.number) if device == "cuda" and size else None
        allocated = block.size if block is not None else size
        place = where() if block is not None and allocated >= _LARGE else ""
        entry = _Storage(device, allocated, block, self.stream.number, place)
        self._stored[key] = entry
        self.live[device] += allocated
        if device == "cuda" and self.live["cuda"] > self.now.peak:
            self.now.peak, self.now.peak_where = self.live["cuda"], place or where()
        elif device == "cpu":
            self.now.host_peak = max(self.now.host_peak, self.live["cpu"])
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        entry = self._stored.pop(key)
        self.live[entry.device] -= entry.size
        if entry.pinned:
            self.pinned_total -= entry.pinned
            self.live["cpu"] -= entry.pinned - entry.size
        if entry.block is not None:
            self._check_free(entry)
            self.allocator.free(entry.block)

    def pin(self, tensor: Tensor) -> None:
        """Record that a host tensor is pinned: torch's allocator uses a power of two for it."""
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
        """Return whether a tensor is in pinned memory."""
        entry = self._entry(tensor)
        return entry is not None and entry.pinned > 0

    def record_stream(self, tensor: Tensor, stream: Stream) -> None:
        """Record that a tensor's memory is not reused before `stream` has finished with it."""
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
        outputs = [tensor for tensor in _tensors((out,)) if isinstance(tensor, FakeTensor)]
        for tensor in outputs:
            self.track(tensor)
        on_card = any(tensor.device.type == "cuda" for tensor in inputs) or any(
            tensor.device.type == "cuda" for tensor in outputs
        )
        if not func._schema.is_mutable and _is_view(inputs, outputs):
            return out
        if not on_card:
            self._on_host(func, args, kwargs, inputs)
        elif not (func in _COPIES and self._copy(func, args, kwargs, out)):
            self._launch(func, args, kwargs, inputs, outputs, out)
        return out

    def look(self, tensor: Tensor) -> None:
        """Record that the host reads a tensor's values."""
        entry = self._entry(tensor)
        if tensor.device.type == "cpu" and entry is not None:
            self._check(entry.written, self.host_clock, "read on the host before its copy has finished")

    def _read(self, tensor: Tensor) -> bool | int | float:
        if tensor.device.type == "cuda":
            place = where()
            self.now.reads[place] += 1
            self.wait(place)
            self.synchronise(self.stream)
        constant = getattr(tensor, "constant", None)
        if constant is not None:
            value: bool | int | float = constant.item()
            return value
        # The value is unknown. These values let the code continue: a mask is not empty, a change is not small.
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
            # As in torch: a copy to the host without waiting goes to pinned memory.
            self.pin(out)
        # As in copy_kernel_cuda: for a non-blocking copy the device converts dtypes, otherwise the host.
        crossing = source.dtype if without_wait == up else out.dtype
        size = out.numel() * crossing.itemsize
        on_device, on_host = (out, source) if up else (source, out)
        straight = _alike(source, out)
        if not straight and (crossing != on_device.dtype or not on_device.is_contiguous()):
            self._momentary(size)
        as_it_is = straight or (crossing == on_host.dtype and on_host.is_contiguous() and on_host.shape == out.shape)
        memory = "pinned" if as_it_is and self.is_pinned(on_host) else "pageable"
        # The driver copies pageable memory through its own buffer, and the host waits for that.
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
        """Count temporary device memory of a copy."""
        if not size:
            return
        block = self.allocator.allocate(size, self.stream.number)
        if self.live["cuda"] + block.size > self.now.peak:
            self.now.peak, self.now.peak_where = self.live["cuda"] + block.size, where()
        self.allocator.free(block)

    def _launch(
        self, func: Any, args: Any, kwargs: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], out: Any
    ) -> None:
        if func._overloadpacket in _EMPTY:
            self._used((), outputs)
            return
        name = func._schema.name.removeprefix("aten::")
        self.now.launches[name] += 1
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.now.flops[name, str(outputs[0].dtype).removeprefix("torch.")] += count(*args, **kwargs, out_val=out)
        # A tensor given as `out` is written, and not read.
        read = [*_tensors(args), *_tensors(value for key, value in kwargs.items() if key != "out")]
        self.now.moved[name] += sum(_touched(tensor) for tensor in read if tensor.device.type == "cuda")
        self.now.moved[name] += sum(map(_touched, outputs))
        self._used(inputs, (*outputs, *_written(func, args, kwargs)))

    # --- order --------------------------------------------------------------------------------------------------------

    def wait(self, place: str) -> None:
        """Record that the host waits for the device."""
        self.now.waits[place] += 1
        if self.inside:
            self.now.forward_waits[place] += 1

    def synchronise(self, *streams: Stream) -> None:
        """Record that the host has waited for everything in these streams."""
        for stream in streams:
            merge(self.host_clock, stream.clock)

    def _used(self, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """Record a use of tensors by the current stream, and check it for race conditions."""
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
        """Check that no other stream still uses memory that is reused in the order of its own stream."""
        clock = self.stream.clock if self.stream.number == entry.stream else {}
        for uses in (entry.written, entry.reads):
            for stream, moment in uses.items():
                if stream == entry.stream or stream in entry.recorded:
                    continue
                if moment > max(clock.get(stream, 0), self.host_clock.get(stream, 0)):
                    self.races[f"{where()}: freed while another stream uses it"] += 1


@dataclass(eq=False)
class _Storage:
    device: str
    size: int
    block: Block | None
    #: Number of the stream it was allocated on.
    stream: int
    #: Where a large tensor on the device was created.
    where: str = ""
    #: Bytes that pinning needs; 0 if it is not pinned.
    pinned: int = 0
    #: The last write and the reads since then, by stream and time.
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
    """Return whether outputs may share memory with inputs."""
    if source.dtype != out.dtype or source.shape != out.shape:
        return False
    if source.is_contiguous() and out.is_contiguous():
        return True
    return source.stride() == out.stride() and is_non_overlapping_and_dense_or_false(out)


def _is_view(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in storages for tensor in outputs)


def _touched(tensor: Tensor) -> int:
    """Return the bytes that are really read or written: a dimension with stride 0 is read once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride:
            size *= length
    return size

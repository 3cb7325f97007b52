"""Copies to and from the pretended card, what waits for them, and the order of streams, as on a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_code import called_from

from engine.rehearsal.ledger import Ledger

MIB = 2**20


# --- copies and waits -------------------------------------------------------------------------------------------------


def copies(ledger: Ledger) -> list[tuple[str, str, bool, int]]:
    """Return the copies since the last call: direction, memory, whether the host waits, bytes."""
    result = [(copy.direction, copy.memory, copy.blocks, size) for copy, size in ledger.now.copied.items()]
    ledger.begin()
    return result


def test_a_copy_waits_unless_it_need_not_and_memory_is_pinned(ledger: Ledger) -> None:
    plain, pinned = torch.empty(256), torch.empty(256, pin_memory=True)
    for host, memory in ((plain, "pageable"), (pinned, "pinned")):
        there = host.to("cuda")
        assert copies(ledger) == [("up", memory, True, 1024)]
        there = host.to("cuda", non_blocking=True)
        assert copies(ledger) == [("up", memory, memory == "pageable", 1024)]
        there.copy_(host, non_blocking=True)
        assert copies(ledger) == [("up", memory, memory == "pageable", 1024)]
        host.copy_(there)
        assert copies(ledger) == [("down", memory, True, 1024)]
        host.copy_(there, non_blocking=True)
        assert copies(ledger) == [("down", memory, memory == "pageable", 1024)]
    there.cpu()
    assert copies(ledger) == [("down", "pageable", True, 1024)]
    # TensorConversions.cpp, _to_copy: what comes without a wait comes to pinned memory.
    came = there.to("cpu", non_blocking=True)
    assert came.is_pinned()
    assert copies(ledger) == [("down", "pinned", False, 1024)]


def test_values_are_converted_where_copy_kernel_cuda_converts_them(ledger: Ledger) -> None:
    pinned = torch.empty(256, pin_memory=True)
    # On the host, to a tensor of its own, where somebody waits.
    there = pinned.to("cuda", torch.bfloat16)
    assert copies(ledger) == [("up", "pageable", True, 512)]
    # On the device, beside the result, where nobody does.
    there = pinned.to("cuda", torch.bfloat16, non_blocking=True)
    assert copies(ledger) == [("up", "pinned", False, 1024)]
    assert there.to("cpu", torch.float32).dtype == torch.float32
    assert copies(ledger) == [("down", "pageable", True, 512)]
    there.to("cpu", torch.float32, non_blocking=True)
    assert copies(ledger) == [("down", "pinned", False, 1024)]


def test_a_conversion_on_the_device_takes_memory_there(ledger: Ledger) -> None:
    host = torch.empty(MIB, pin_memory=True)
    place = torch.empty(MIB, dtype=torch.bfloat16, device="cuda")
    ledger.begin()
    place.copy_(host)
    assert ledger.now.peak == place.nbytes
    place.copy_(host, non_blocking=True)
    assert ledger.now.peak == place.nbytes + host.nbytes
    assert ledger.live["cuda"] == place.nbytes


def test_what_is_not_in_one_piece_is_put_together_before_it_crosses(ledger: Ledger) -> None:
    pinned = torch.empty(16, 32, pin_memory=True)
    pinned.t().to("cuda", non_blocking=True)
    # Whose bytes are those of the result as they are.
    assert copies(ledger) == [("up", "pinned", False, 2048)]
    pinned[:, ::2].to("cuda", non_blocking=True)
    assert copies(ledger) == [("up", "pageable", True, 1024)]


def test_numbers_made_on_the_device_are_copied_there(ledger: Ledger) -> None:
    torch.tensor([1.0, 0.0], device="cuda")
    assert copies(ledger) == [("up", "pageable", True, 8)]
    torch.zeros(2, device="cuda")
    assert copies(ledger) == []


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ("tensor.sum().item()", 1),
        ("float(tensor.sum())", 1),
        ("bool(tensor.any())", 1),
        ("if (tensor > 0).all(): pass", 1),
        ("tensor.tolist()", 0),
        ("tensor.cpu()", 0),
        ("torch.cuda.synchronize()", 0),
        ("torch.cuda.current_stream().synchronize()", 0),
        ("torch.cuda.current_stream().record_event().synchronize()", 0),
    ],
)
def test_each_wait_of_the_host_is_counted_where_it_stands(ledger: Ledger, code: str, reads: int) -> None:
    tensor = torch.ones(4, device="cuda")
    called_from(
        "engine/stages/made_up.py", f"def stage():\n    pass\n    {code}\n\nstage()", torch=torch, tensor=tensor
    )
    assert list(ledger.now.waits.values()) == [1]
    assert next(iter(ledger.now.waits)).startswith("engine/stages/made_up.py:3 stage")
    assert ledger.now.reads.total() == reads


def test_values_of_the_host_are_read_without_a_wait(ledger: Ledger) -> None:
    tensor = torch.ones(4)
    assert tensor.sum().item() == 1
    assert tensor.tolist() == [0, 0, 0, 0]
    assert torch.tensor(5).item() == 5
    assert not ledger.now.waits
    assert not ledger.now.reads


def test_what_happens_inside_a_forward_is_told_apart(ledger: Ledger) -> None:
    tensor = torch.ones(4, device="cuda")
    tensor.cpu()
    with ledger.forward():
        tensor.cpu()
        tensor + 1
    assert [copy.forward for copy in ledger.now.copies] == [False, True]
    assert ledger.now.forward_waits.total() == 1
    (forward,) = ledger.forwards
    assert (forward.copies, forward.down, forward.up, forward.waits, forward.launches) == (1, 16, 0, 1, 1)


def test_numpy_refuses_what_is_on_the_device(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        torch.ones(4, device="cuda").numpy()
    assert torch.ones(4, dtype=torch.int16).numpy().dtype == "int16"


# --- order ------------------------------------------------------------------------------------------------------------


class CopyLane:
    """A stream beside the current one, pinned memory and a place on the device."""

    def __init__(self) -> None:
        self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.host = torch.empty(4, pin_memory=True)
        self.place = torch.empty(4, device="cuda")
        self.stream.wait_stream(torch.cuda.current_stream())

    def up(self) -> Any:
        with torch.cuda.stream(self.stream):
            self.place.copy_(self.host, non_blocking=True)
            return self.stream.record_event()


@pytest.fixture
def lane(ledger: Ledger) -> CopyLane:
    """A way up beside the stream that computes."""
    return CopyLane()


def test_a_copy_on_another_stream_is_waited_for_before_it_is_read(ledger: Ledger, lane: CopyLane) -> None:
    lane.up()
    called_from("engine/stages/made_up.py", "found = place + 1", place=lane.place)
    assert dict(ledger.races) == {"engine/stages/made_up.py:1 <module>: read before it is written": 1}


@pytest.mark.parametrize(
    "wait",
    [
        lambda lane, event: torch.cuda.current_stream().wait_event(event),
        lambda lane, event: event.wait(),
        lambda lane, event: torch.cuda.current_stream().wait_stream(lane.stream),
        lambda lane, event: event.synchronize(),
        lambda lane, event: lane.stream.synchronize(),
        lambda lane, event: torch.cuda.synchronize(),
    ],
)
def test_who_waits_by_any_means_reads_in_order(
    ledger: Ledger, lane: CopyLane, wait: Callable[[CopyLane, Any], None]
) -> None:
    wait(lane, lane.up())
    assert (lane.place + 1).device.type == "cuda"
    assert not ledger.races


def test_an_event_covers_what_was_before_it_alone(ledger: Ledger, lane: CopyLane) -> None:
    event = lane.up()
    lane.up()
    torch.cuda.current_stream().wait_event(event)
    assert (lane.place + 1).device.type == "cuda"
    assert list(ledger.races) == ["?: read before it is written"]


def test_a_place_is_not_written_while_it_is_read(ledger: Ledger, lane: CopyLane) -> None:
    torch.cuda.current_stream().wait_event(lane.up())
    lane.place + 1
    lane.up()
    assert list(ledger.races) == ["?: written while it is read"]


def test_two_streams_do_not_write_to_one_place(ledger: Ledger, lane: CopyLane) -> None:
    lane.up()
    lane.place.zero_()
    assert "?: written while it is written" in ledger.races


def test_memory_is_not_freed_while_another_stream_uses_it(ledger: Ledger, lane: CopyLane) -> None:
    lane.up()
    del lane.place
    assert list(ledger.races) == ["?: freed while another stream uses it"]


def test_a_stream_that_is_recorded_may_use_what_is_freed(ledger: Ledger, lane: CopyLane) -> None:
    lane.up()
    lane.place.record_stream(lane.stream)
    del lane.place
    assert not ledger.races


def test_memory_is_freed_once_its_stream_has_waited(ledger: Ledger, lane: CopyLane) -> None:
    torch.cuda.current_stream().wait_event(lane.up())
    del lane.place
    assert not ledger.races


def test_pinned_memory_is_left_alone_while_it_is_copied(ledger: Ledger, lane: CopyLane) -> None:
    event = lane.up()
    lane.host.zero_()
    assert list(ledger.races) == ["?: written on the host while it is copied"]
    event.synchronize()
    lane.host.zero_()
    assert ledger.races.total() == 1


@pytest.mark.parametrize("read", [lambda came: came + 1, lambda came: came[0].item(), lambda came: came.numpy()])
def test_the_host_does_not_read_what_has_not_come(ledger: Ledger, read: Callable[[torch.Tensor], Any]) -> None:
    there = torch.ones(4, device="cuda")
    came = there.to("cpu", non_blocking=True)
    # To look at a part of it reads nothing.
    came[:2].view(2, 1)
    assert not ledger.races
    read(came)
    assert list(ledger.races) == ["?: read on the host before its copy has finished"]
    torch.cuda.synchronize()
    read(came)
    assert ledger.races.total() == 1


def test_a_blocking_copy_orders_the_host_and_all_that_it_asks_for(ledger: Ledger, lane: CopyLane) -> None:
    with torch.cuda.stream(lane.stream):
        lane.place.copy_(lane.host)
    assert (lane.place + 1).cpu().numpy().shape == (4,)
    assert not ledger.races

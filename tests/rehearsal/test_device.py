"""The pretended card is as strict as a real one where that is known: against real tensors, torch's files and source.

Nobody here has a card. What a rule says is compared with real tensors on the CPU where the rule is the same there, and
with the text of the installed torch where it is not; the others name the source that was read.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import allocated
from torch import nn

import engine
from engine.errors import ConfigError
from engine.planning.gpus import Card, cards
from engine.planning.memory import CONTEXT
from engine.rehearsal import guard
from engine.rehearsal.card import _cuda, pretended
from engine.rehearsal.ledger import Ledger

ROOT = Path(engine.__file__).parent.parent
MIB = 2**20
CARD = cards()[0]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """What is counted on a pretended card, which is there as long as the test runs."""
    with pretended(CARD) as counted:
        yield counted


def called_from(file: str, code: str, **names: Any) -> Any:
    """Run `code`, which makes `found`, as if it stood in a file of the engine."""
    exec(compile(code, str(ROOT / file), "exec"), names)
    return names.get("found")


# --- the guard --------------------------------------------------------------------------------------------------------

FAKE = """
import os
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from unittest.mock import patch
from engine.rehearsal.guard import provide_cuda_guard

def sliced():
    with patch.object(FakeTensorMode, "avoid_device_init", property(lambda _: True)), FakeTensorMode():
        return torch.empty(4, 4, device="cuda:0")[1:].shape

try:
    print(sliced())
except RuntimeError as error:
    print("without:", str(error).partition(chr(10))[0])
# Nothing is compiled: there is no compiler here.
os.environ["PATH"] = ""
provide_cuda_guard()
print("with:", sliced())
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a guard of its own")
def test_a_torch_without_cuda_has_no_device_guard_until_it_is_given_one() -> None:
    done = subprocess.run([sys.executable, "-c", FAKE], capture_output=True, text=True, check=False, cwd=ROOT)
    without, given = done.stdout.splitlines()
    assert "not linked with support for cuda" in without
    assert given == "with: torch.Size([3, 4])"


def test_the_numbers_of_device_types_are_those_of_the_installed_torch() -> None:
    text = (Path(torch.__file__).parent / "include" / "torch" / "headeronly" / "core" / "DeviceType.h").read_text()
    assert f"CUDA = {guard._CUDA}," in text
    assert f"Meta = {guard._META}," in text
    assert f"COMPILE_TIME_MAX_DEVICE_TYPES = {guard._SLOTS}," in text


def test_a_torch_whose_core_has_another_table_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Another library of the same kind: it has no such table.
    (tmp_path / "lib").mkdir()
    other = next((Path(torch.__file__).parent / "lib").glob("libshm*"))
    (tmp_path / "lib" / "libc10.so").symlink_to(other)
    monkeypatch.setattr(guard, "_ALREADY", None, raising=False)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ConfigError, match=r"cannot pretend a CUDA device: _ZN.*is in none of \['libc10\.so'\]") as seen:
        guard.provide_cuda_guard()
    assert "\n" not in seen.value.what
    assert "build of torch with CUDA" in str(seen.value.hint)


# --- pinning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_what_is_on_the_device_cannot_be_pinned(ledger: Ledger, dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError) as seen:
        torch.empty(3, dtype=dtype, device="cuda").pin_memory()
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), pytest.raises(RuntimeError) as real:
        torch.empty(3, dtype=dtype, device="meta").pin_memory()
    # The same words as a real tensor's that is not on the CPU, but for its type.
    before, _, after = str(real.value).partition("\n")[0].split("'")
    words = str(seen.value).split("'")
    assert (words[0], words[2]) == (before, after)
    name = str(real.value).split("'")[1].removeprefix("Meta").removesuffix("Type")
    library = (Path(torch.__file__).parent / "lib" / "libtorch_python.so").read_bytes()
    # Errors call these as Python does, the others as C++.
    old = f"torch.cuda.{name}Tensor"
    assert words[1] == (old if f"\0{old}\0".encode() in library else f"CUDA{name}Type")


def test_memory_of_the_device_cannot_be_made_pinned(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError, match="Only dense CPU tensors can be pinned"):
        torch.empty(3, device="cuda", pin_memory=True)


def test_pinned_memory_is_known_as_such_and_rounded_to_a_power_of_two(ledger: Ledger) -> None:
    made = torch.empty(3 * MIB, dtype=torch.uint8, pin_memory=True)
    plain = torch.empty(3 * MIB, dtype=torch.uint8)
    assert (made.is_pinned(), made[5:].is_pinned(), plain.is_pinned()) == (True, True, False)
    assert made.pin_memory() is made
    copy = plain.pin_memory()
    assert copy.is_pinned()
    assert (ledger.now.pinned, ledger.pinned_total) == (6 * MIB, 8 * MIB)
    del made, copy
    assert (ledger.pinned_total, ledger.most_pinned) == (0, 8 * MIB)


def test_a_pinned_copy_keeps_the_order_of_its_values(ledger: Ledger) -> None:
    # at::native::_pin_memory copies to a tensor of the same strides.
    assert torch.empty(3, 4).t().pin_memory().stride() == (1, 4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_torchao_tensor_is_pinned_in_its_parts(ledger: Ledger, dtype: torch.dtype) -> None:
    from engine.loading.quanto import quantise

    weight: Any = quantise(torch.empty(4, 6), dtype).kept(torch.bfloat16)
    pinned: Any = weight.pin_memory()
    assert type(pinned) is type(weight)
    assert pinned.is_pinned()
    assert pinned.qdata.is_pinned()
    assert pinned.scale.is_pinned()
    assert not weight.is_pinned()
    with pytest.raises(RuntimeError, match="cannot pin"):
        weight.to("cuda").pin_memory()


# --- which object, which memory ---------------------------------------------------------------------------------------


def kinds() -> dict[str, Callable[[], Any]]:
    """What makes a tensor of each kind that the engine keeps weights in."""
    from diffusers.quantizers.gguf import utils

    from engine.loading.quanto import quantise

    def kept(dtype: torch.dtype) -> Any:
        return quantise(torch.ones(4, 6), dtype).kept(torch.bfloat16)

    def packed() -> Any:
        import gguf

        data = torch.zeros(4, 34, dtype=torch.uint8)
        return utils.GGUFParameter(data, quant_type=gguf.GGMLQuantizationType.Q8_0)

    return {
        "plain": lambda: torch.ones(4, 6),
        "turned": lambda: torch.ones(6, 4).t(),
        "parameter": lambda: nn.Parameter(torch.ones(4, 6), requires_grad=False),
        "int8": lambda: kept(torch.int8),
        "float8": lambda: kept(torch.float8_e4m3fn),
        "int8 parameter": lambda: nn.Parameter(kept(torch.int8), requires_grad=False),
        "float8 parameter": lambda: nn.Parameter(kept(torch.float8_e4m3fn), requires_grad=False),
        "packed": packed,
    }


def first_part(tensor: Any) -> torch.Tensor:
    """Return the plain tensor that a tensor is, or the first that it is made of."""
    part: torch.Tensor = getattr(tensor, "qdata", tensor)
    return part


EXPRESSIONS: dict[str, Callable[[Any], Any]] = {
    "cpu": lambda tensor: tensor.cpu(),
    "to cpu": lambda tensor: tensor.to("cpu"),
    "to device": lambda tensor: tensor.to(device=torch.device("cpu")),
    "to dtype": lambda tensor: tensor.to(tensor.dtype),
    "to both": lambda tensor: tensor.to("cpu", tensor.dtype),
    "copied": lambda tensor: tensor.to("cpu", copy=True),
    "data": lambda tensor: tensor.data,
    "detach": lambda tensor: tensor.detach(),
    "contiguous": lambda tensor: tensor.contiguous(),
    "clone": lambda tensor: tensor.clone(),
    "view": lambda tensor: tensor.view(tensor.shape),
}
#: Of these real ones cannot do it either.
IMPOSSIBLE = {(kind, "view") for kind in ("int8", "float8", "int8 parameter", "float8 parameter", "packed")}


def identities() -> dict[tuple[str, str], tuple[bool, bool, tuple[int, ...]]]:
    """Say of each expression whether it gives the same object and the same memory, and its strides."""
    result = {}
    for kind, make in kinds().items():
        for name, expression in EXPRESSIONS.items():
            if (kind, name) in IMPOSSIBLE:
                continue
            tensor = make()
            made = expression(tensor)
            same = first_part(made).untyped_storage()._cdata == first_part(tensor).untyped_storage()._cdata
            result[kind, name] = (made is tensor, same, made.stride())
    return result


def test_expressions_give_the_same_object_and_memory_as_with_real_tensors() -> None:
    real = identities()
    with pretended(CARD):
        assert identities() == real
    # What brought group offload down: a torchao tensor's `.cpu()` is the tensor itself.
    assert real["int8 parameter", "cpu"][0]
    assert not real["parameter", "data"][0]


def moves() -> dict[str, list[bool]]:
    """Say for each way of moving a module which of its parameters stay the same objects, and take new memory."""

    def module() -> nn.Module:
        made = nn.Linear(6, 4)
        made.register_parameter("quantised", kinds()["int8 parameter"]())
        made.register_buffer("table", torch.ones(3))
        return made.requires_grad_(False)

    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "to cpu": lambda one: one.to("cpu"),
        "to dtype": lambda one: one.to(torch.float64),
        "bfloat16": lambda one: one.bfloat16(),
        "from meta": lambda one: one.to_empty(device="cpu"),
    }
    result = {}
    for name, way in ways.items():
        one = module() if name != "from meta" else nn.Linear(6, 4, device="meta")
        before = {**dict(one.named_parameters()), **dict(one.named_buffers())}
        memory = {key: first_part(tensor).untyped_storage()._cdata for key, tensor in before.items()}
        way(one)
        after = {**dict(one.named_parameters()), **dict(one.named_buffers())}
        assert not any(parameter.requires_grad for parameter in one.parameters()) or name == "from meta"
        result[name] = [after[key] is before[key] for key in before]
        if name == "to cpu":
            result[name] += [first_part(after[key]).untyped_storage()._cdata == memory[key] for key in before]
    return result


def test_a_module_that_moves_keeps_the_parameters_that_it_keeps_for_real() -> None:
    real = moves()
    with pretended(CARD):
        assert moves() == real


def test_a_module_on_the_device_has_the_parameters_that_it_had(ledger: Ledger) -> None:
    # As on the CPU with another dtype: the object stays, its memory is new (Module._apply, and swap_tensors).
    module = nn.Linear(6, 4).requires_grad_(False)
    module.register_parameter("quantised", kinds()["int8 parameter"]())
    before = list(module.parameters())
    module.to("cuda")
    assert all(one is other for one, other in zip(before, module.parameters(), strict=True))
    assert {part.device for parameter in before for part in (parameter, first_part(parameter))} == {
        torch.device("cuda", 0)
    }
    module.to("cpu")
    assert ledger.live["cuda"] == 0


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(2, device="cuda"),
        lambda: torch.tensor([1.0], device=torch.device("cuda")),
        lambda: torch.arange(3, device="cuda"),
        lambda: torch.randn(2, device="cuda"),
        lambda: torch.ones(2).to("cuda"),
        lambda: torch.ones(2).to(torch.device("cuda"), torch.bfloat16),
        lambda: torch.ones(2).to(device="cuda"),
        lambda: torch.ones(2).cuda(),
        lambda: torch.ones(2).cuda(0),
        lambda: torch.ones(2).new_empty(3, device="cuda"),
        lambda: torch.empty_like(torch.ones(2), device="cuda"),
        lambda: nn.Linear(2, 2, device="cuda").weight,
        lambda: nn.Linear(2, 2).cuda().weight,
        lambda: nn.Linear(2, 2).to("cuda").weight,
    ],
)
def test_a_device_without_an_index_is_the_first(ledger: Ledger, make: Callable[[], torch.Tensor]) -> None:
    assert make().device == torch.device("cuda", 0)


def test_under_a_default_device_tensors_are_on_the_card(ledger: Ledger) -> None:
    with torch.device("cuda"):
        assert torch.ones(2).device == torch.device("cuda", 0)


def test_tensors_of_two_devices_do_not_mix(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError, match=r"(same device|two different devices)"):
        torch.ones(2, device="cuda") + torch.ones(2)
    # But for a single number, as on a card.
    assert (torch.ones(2, device="cuda") * torch.tensor(2.0)).device.type == "cuda"


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.name)
def test_torch_answers_as_the_card_would(card: Card) -> None:
    assert not torch.cuda.is_available()
    with pretended(card):
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 1
        assert torch.cuda.get_device_name(0) == card.driver
        assert torch.cuda.get_device_capability() == card.capability
        properties = torch.cuda.get_device_properties(0)
        assert properties.total_memory == card.memory
        assert (properties.major, properties.minor) == card.capability
        free, total = torch.cuda.mem_get_info()
        assert (free, total) == (card.memory - CONTEXT, card.memory)
        tensor = torch.empty(30 * MIB, dtype=torch.uint8, device="cuda")
        assert torch.cuda.mem_get_info()[0] == free - 30 * MIB
        assert torch.cuda.memory_allocated() == tensor.nbytes
        del tensor
        # It is free for tensors, and not for others, until the cache is emptied.
        assert torch.cuda.memory_allocated() == 0
        assert torch.cuda.mem_get_info()[0] == free - 30 * MIB
        torch.cuda.empty_cache()
        assert torch.cuda.mem_get_info()[0] == free
        assert torch.cuda.max_memory_reserved() == 30 * MIB
    assert not torch.cuda.is_available()


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


# --- bytes and work ---------------------------------------------------------------------------------------------------


def test_storages_count_once_and_go_at_once(ledger: Ledger) -> None:
    tensor = torch.ones(100, device="cuda")
    # 400 bytes take 512.
    assert ledger.live["cuda"] == 512
    views = [tensor.view(10, 10), tensor[5:], tensor.detach(), tensor.t()]
    tensor.add_(1).mul_(2)
    assert ledger.live["cuda"] == 512
    assert ledger.now.peak == 512
    other = tensor + 1
    del tensor
    assert ledger.live["cuda"] == 1024
    del views
    assert ledger.live["cuda"] == 512
    del other
    assert (ledger.live["cuda"], ledger.now.peak) == (0, 1024)


def test_the_peak_is_named_by_its_place(ledger: Ledger) -> None:
    called_from(
        "engine/stages/made_up.py", "small = torch.ones(4, device='cuda')\nlarge = small.repeat(9)", torch=torch
    )
    assert ledger.now.peak_where == "engine/stages/made_up.py:2 <module>"


def test_large_tensors_that_are_left_are_named_by_their_place(ledger: Ledger) -> None:
    result = called_from("engine/stages/made_up.py", "found = torch.ones(2**20, device='cuda')", torch=torch)
    ledger.end()
    assert ledger.now.left == {"engine/stages/made_up.py:1 <module>": result.nbytes}


def small_forward(dtype: torch.dtype, speakers: int, ffn_dim: int, *, device: str = "cpu") -> Callable[[], Any]:
    """Return a forward of a small network, of weights and inputs that are there."""
    from engine.bench.transformer import build_inputs, build_model

    model = build_model(256, ffn_dim, 4, 2, dtype, torch.Generator().manual_seed(0)).requires_grad_(False)
    latents, time, conditions = build_inputs(model, (3, 16, 16), speakers, torch.Generator().manual_seed(0))
    model.to(device)
    there = [moved(part, device) for part in (latents, time, conditions)]
    return lambda: model(*there[:2], conditions=there[2])


def moved(value: Any, device: str) -> Any:
    """Return a tensor on a device, or what holds tensors."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: moved(getattr(value, one.name), device) for one in fields(value)})
    return value


@pytest.mark.parametrize(
    ("dtype", "speakers", "ffn_dim"), [(torch.float32, 1, 688), (torch.bfloat16, 1, 688), (torch.bfloat16, 2, 256)]
)
def test_live_bytes_of_a_forward_are_those_of_torchs_allocator(dtype: torch.dtype, speakers: int, ffn_dim: int) -> None:
    real = small_forward(dtype, speakers, ffn_dim)
    with torch.no_grad():
        real()
    measured = allocated(real)
    with pretended(CARD) as ledger:
        forward = small_forward(dtype, speakers, ffn_dim)
        forward()
        before = ledger.live["cpu"]
        ledger.begin()
        forward()
        counted = ledger.now.host_peak - before
    # The CPU's kernels take buffers for themselves, where the peak is in attention.
    assert counted == pytest.approx(measured, rel=0.001 if speakers == 1 else 0.01)


def test_operations_of_a_forward_are_those_that_torch_counts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    real = small_forward(torch.bfloat16, 2, 256)
    # As sums of products: of the CPU's own kernel torch knows no count.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        real()
    with pretended(CARD) as ledger:
        forward = small_forward(torch.bfloat16, 2, 256, device="cuda")
        ledger.begin()
        forward()
    assert ledger.now.flops.total() == counter.get_total_flops()
    # Who speaks where is found in float32, for which there is no flash attention.
    assert {(kernel, dtype) for kernel, _, dtype in ledger.now.attention} == {
        ("flash", "bfloat16"),
        ("efficient", "float32"),
    }
    assert ledger.now.attention.total() == sum(
        number for name, number in ledger.now.launches.items() if name.startswith("_scaled_dot_product")
    )


def test_bytes_that_an_operation_touches_are_those_of_its_tensors(ledger: Ledger) -> None:
    row = torch.ones(1, 1000, device="cuda")
    ledger.begin()
    # A row that is read again and again is read once.
    row.expand(50, 1000) + torch.ones(50, 1000, device="cuda")
    assert ledger.now.moved == {"ones": 200_000, "add": 4_000 + 2 * 200_000}
    assert ledger.now.launches == {"ones": 1, "add": 1}


def test_memory_alone_is_no_kernel(ledger: Ledger) -> None:
    torch.empty_like(torch.empty(4, device="cuda"))
    assert not ledger.now.launches


def test_each_name_in_torch_cuda_has_a_function_of_its_own() -> None:
    # torch._dynamo is imported by whom it pleases, and refuses one function under two names.
    with pretended(CARD) as ledger:
        names = _cuda(ledger, CARD)
        assert len({id(getattr(torch.cuda, name)) for name in names}) == len(names)

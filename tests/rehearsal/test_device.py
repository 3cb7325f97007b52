"""The pretended card is as strict as a real one where that is known: against real tensors, torch's files and source.

Nobody here has a card. What a rule says is compared with real tensors on the CPU where the rule is the same there, and
with the text of the installed torch where it is not; the others name the source that was read.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import engine
from engine.errors import ConfigError
from engine.planning.gpus import Card, cards
from engine.planning.memory import CONTEXT
from engine.rehearsal import guard
from engine.rehearsal.card import pretended
from engine.rehearsal.ledger import Ledger

ROOT = Path(engine.__file__).parent.parent
MIB = 2**20
CARD = cards()[0]


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


@pytest.mark.slow
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

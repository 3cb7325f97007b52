"""A pretended CUDA card: everything inside is a fake tensor, and torch.cuda answers as that card would."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from engine.network import eight_bit
from engine.planning.gpus import Card
from engine.planning.memory import CONTEXT
from engine.rehearsal.allocator import CachingAllocator
from engine.rehearsal.attention import Call, attend, pick_kernel
from engine.rehearsal.guard import provide_cuda_guard
from engine.rehearsal.ledger import Ledger
from engine.rehearsal.places import where
from engine.rehearsal.products import checked
from engine.rehearsal.streams import Event, Stream

#: CUDA tensor types with Python's names in torch's errors; the others have C++ names.
_OLD_TYPES = ("Byte", "Char", "Double", "Float", "Int", "Long", "Short", "Half")
_DEVICE = torch.device("cuda", 0)


@contextmanager
def pretended(card: Card, *, expandable: bool = False) -> Iterator[Ledger]:
    """Have `card` as CUDA device 0 inside a `with`, where every new tensor is fake; yield the ledger that counts.

    For one process and one thread, because torch.cuda itself is patched. Raises ConfigError if this torch cannot do it.
    """
    provide_cuda_guard()
    ledger = Ledger(CachingAllocator(card.memory - CONTEXT, expandable=expandable))
    with ExitStack() as stack:
        for name, value in _cuda(ledger, card).items():
            stack.enter_context(patch.object(torch.cuda, name, value, create=True))
        stack.enter_context(patch.object(torch.accelerator, "empty_host_cache", lambda: None, create=True))
        for kind, name, method in _methods(ledger):
            stack.enter_context(patch.object(kind, name, method, create=True))
        # Every CUDA build of torch for Linux brings it.
        stack.enter_context(patch.object(eight_bit, "has_triton", lambda: True))
        stack.enter_context(_packed_weights())
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", property(lambda _: True)))
        stack.enter_context(torch.no_grad())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(ledger)
        stack.enter_context(_Calls(ledger, card.capability))
        yield ledger


def _cuda(ledger: Ledger, card: Card) -> dict[str, Any]:
    """Return the replacements for torch.cuda while the card is pretended."""
    memory = ledger.allocator

    @contextmanager
    def stream(selected: Stream | None) -> Iterator[None]:
        before = ledger.stream
        ledger.stream = selected or before
        try:
            yield
        finally:
            ledger.stream = before

    def synchronize(*_: Any) -> None:
        ledger.wait(f"{where()} (device)")
        ledger.synchronise(*ledger.streams)

    def nothing() -> Callable[..., None]:
        # A separate object for each name: torch._dynamo, which libraries may import at any time, needs this.
        return lambda *_, **__: None

    properties = SimpleNamespace(
        name=card.driver,
        major=card.capability[0],
        minor=card.capability[1],
        total_memory=card.memory,
        multi_processor_count=100,
        gcnArchName="",
        warp_size=32,
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": nothing(),
        "_lazy_init": nothing(),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing(),
        "get_device_name": lambda *_: card.driver,
        "get_device_capability": lambda *_: card.capability,
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (memory.limit - memory.reserved, card.memory),
        "memory_allocated": lambda *_: memory.allocated,
        "memory_reserved": lambda *_: memory.reserved,
        "max_memory_allocated": lambda *_: memory.most_allocated,
        "max_memory_reserved": lambda *_: memory.most_reserved,
        "reset_peak_memory_stats": nothing(),
        "empty_cache": memory.empty_cache,
        "synchronize": synchronize,
        "Stream": lambda *_, **__: Stream(ledger, "transfer"),
        "Event": lambda *_, **__: Event(ledger),
        "stream": stream,
        "current_stream": lambda *_: ledger.stream,
        "default_stream": lambda *_, first=ledger.stream: first,
    }


def _methods(ledger: Ledger) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """Yield the methods that do not dispatch operations: class, name and replacement."""

    def record_stream(tensor: Tensor, stream: Stream) -> None:
        for part in inner(tensor):
            ledger.record_stream(part, stream)

    yield nn.Module, "_apply", _apply(ledger)
    yield torch.Tensor, "record_stream", record_stream
    yield FakeTensor, "tolist", lambda tensor: _values(ledger, tensor.cpu()).tolist()


def _apply(ledger: Ledger) -> Callable[..., nn.Module]:
    """Return a replacement for Module._apply that moves or casts parameters as torch does with real tensors.

    A parameter stays the same object and gets the new tensor's data; one that consists of others is swapped. torch
    always swaps fake ones, and refuses if there is a weak reference to them.
    """

    def apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if recurse:
            for module in self.children():
                module._apply(fn)  # type: ignore[no-untyped-call]
        for key, parameter in self._parameters.items():
            if parameter is None:
                continue
            applied = fn(parameter)
            if _is_wrapper(applied):
                moved = nn.Parameter(applied, requires_grad=parameter.requires_grad)
                torch.utils.swap_tensors(parameter, moved)  # type: ignore[no-untyped-call]
            elif _is_fake(parameter) and _is_fake(applied):
                _set_data(ledger, parameter, applied)
            else:
                # It leaves the meta device, or was created before the card.
                self._parameters[key] = nn.Parameter(applied, requires_grad=parameter.requires_grad)
        for key, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[key] = fn(buffer)
        return self

    return apply


@contextmanager
def _packed_weights() -> Iterator[None]:
    """Make diffusers' class for GGUF weights return fake tensors with its attributes.

    It is a Python subclass, which a fake tensor cannot be. As with the class itself, results of operations on a packed
    tensor are packed, until `as_tensor`.
    """
    try:
        from diffusers.quantizers.gguf import utils
    except ImportError:
        # Without the gguf package no such file is read.
        yield
        return

    def made(data: Tensor, requires_grad: bool = False, quant_type: Any = None) -> Tensor:
        packed: Tensor = _mark(data.detach(), quant_type)
        return packed

    with patch.object(utils, "GGUFParameter", made):
        yield


def _mark(packed: Any, quant_type: Any) -> Any:
    """Mark a tensor, or those of a list, as packed with `quant_type`."""
    if isinstance(packed, (list, tuple)):
        return type(packed)(_mark(one, quant_type) for one in packed)
    if isinstance(packed, FakeTensor):
        from diffusers.quantizers.gguf import utils

        if hasattr(packed, "quant_type"):
            # Every operation, even one without effect, returns another tensor.
            packed = packed.detach()
        block, size = utils.GGML_QUANT_SIZES[quant_type]
        packed.quant_type = quant_type
        packed.quant_shape = utils._quant_shape_from_byte_shape(packed.shape, size, block)
        # Weakly: a tensor that refers to itself would live until the next garbage collection.
        packed.as_tensor = partial(_plain, weakref.ref(packed))
    return packed


def _plain(reference: Callable[[], Any]) -> Tensor:
    packed = reference()
    attributes = {name: packed.__dict__.pop(name) for name in ("quant_type", "quant_shape", "as_tensor")}
    try:
        plain: Tensor = packed.detach()
    finally:
        packed.__dict__.update(attributes)
    return plain


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, FakeTensor) and tensor.device.type != "meta"


def _is_wrapper(tensor: Any) -> bool:
    return bool(is_traceable_wrapper_subclass(tensor))


def _set_data(ledger: Ledger, tensor: Tensor, data: Tensor) -> None:
    if tensor is data:
        return
    torch.Tensor.data.__set__(tensor, data)  # type: ignore[attr-defined]
    if isinstance(tensor, FakeTensor) and isinstance(data, FakeTensor):
        tensor.fake_device = data.fake_device
        ledger.track(tensor)


class _Calls(TorchFunctionMode):
    """Handles what torch does before it dispatches an operation, where a build without CUDA differs."""

    def __init__(self, ledger: Ledger, capability: tuple[int, int]) -> None:
        super().__init__()
        self._ledger, self._capability = ledger, capability
        self._ways: dict[Any, Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._attend,
            torch.Tensor.pin_memory: self._pin,
            torch.Tensor.is_pinned: lambda tensor, *_, **__: all(map(ledger.is_pinned, inner(tensor))),
            torch.Tensor.numpy: self._to_numpy,
            torch.Tensor.cuda: _to_cuda,
            torch.Tensor.data.__set__: partial(_set_data, ledger),  # type: ignore[attr-defined]
            **checked(capability),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = _indexed(kwargs["device"])
        if func is torch.Tensor.to:
            args = tuple(map(_indexed, args))
        way = self._ways.get(func)
        if way is not None:
            return way(*args, **kwargs)
        packed = next((value for value in args if isinstance(value, FakeTensor) and hasattr(value, "quant_type")), None)
        if packed is not None:
            return _mark(func(*args, **kwargs), packed.quant_type)
        if kwargs.pop("pin_memory", False):
            result = func(*args, **kwargs)
            if result.device.type != "cpu":
                raise RuntimeError("Only dense CPU tensors can be pinned")
            self._ledger.pin(result)
            return result
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.device.type != "cuda":
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        call = Call(query, key, value, attn_mask, is_causal)
        kernel = pick_kernel(call, self._capability)
        shapes = f"{tuple(query.shape)} x {tuple(key.shape)}"
        self._ledger.now.attention[kernel, shapes, str(query.dtype).removeprefix("torch.")] += 1
        return attend(call, kernel, scale)

    def _pin(self, tensor: Any, *_: Any, **__: Any) -> Tensor:
        if _is_wrapper(tensor):
            names, context = tensor.__tensor_flatten__()
            parts = {name: self._pin(getattr(tensor, name)) for name in names}
            whole: Tensor = type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
            return whole
        if tensor.device.type != "cpu":
            raise RuntimeError(f"cannot pin '{_type_name(tensor.dtype)}' only dense CPU tensors can be pinned")
        if self._ledger.is_pinned(tensor):
            pinned: Tensor = tensor
            return pinned
        copy: Tensor = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype).copy_(tensor)
        self._ledger.pin(copy)
        return copy

    def _to_numpy(self, tensor: Tensor, *_: Any, **__: Any) -> Any:
        if tensor.device.type != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy; copy the tensor to host memory first")
        return _values(self._ledger, tensor)


def _values(ledger: Ledger, tensor: Tensor) -> Any:
    """Return a host tensor as a numpy array: with its values if they are known."""
    ledger.look(tensor)
    constant = getattr(tensor, "constant", None)
    if constant is not None:
        return constant.numpy()
    # Zeros that need memory only when they are read.
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def inner(tensor: Any) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor consists of."""
    if not _is_wrapper(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from inner(getattr(tensor, name))


def _to_cuda(tensor: Tensor, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    return tensor.to(_DEVICE if device is None else _indexed(device), non_blocking=non_blocking, **kwargs)


def _type_name(dtype: torch.dtype) -> str:
    """Return the name of a CUDA tensor's type in torch's errors (torch/csrc/Exceptions.cpp, processErrorMsg)."""
    with torch._C.DisableTorchFunction():
        name = torch.empty(0, dtype=dtype, device="meta").type().rpartition(".")[2].removesuffix("Tensor")
    return f"torch.cuda.{name}Tensor" if name in _OLD_TYPES else f"CUDA{name}Type"


def _indexed(device: Any) -> Any:
    """Return "cuda" with its index, as in a CUDA build, and a plain index with its device type."""
    if isinstance(device, int) and not isinstance(device, bool):
        return torch.device("cuda", device)
    if device == "cuda" or (isinstance(device, torch.device) and device.type == "cuda" and device.index is None):
        return _DEVICE
    return device

"""Write plain tensors as published quantised transformers: optimum-quanto's files with their map, and GGUF."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import MissingExtra
from engine.loading.quanto import quantise

#: dtype of the stored weights -> its name in a quantisation map, and in the names of files.
_KINDS = {torch.int8: ("qint8", "int8"), torch.float8_e4m3fn: ("qfloat8", "fp8")}


def as_quanto(state: Mapping[str, Tensor], modules: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a state dict as optimum-quanto stores it, with the weights of `modules` as int8 or float8_e4m3fn."""
    stored = dict(state)
    for module in modules:
        quantised = quantise(stored.pop(f"{module}.weight"), dtype)
        stored |= {f"{module}.weight._data": quantised.data, f"{module}.weight._scale": quantised.scale}
        stored |= {f"{module}.input_scale": torch.ones(()), f"{module}.output_scale": torch.ones(())}
    return stored


def write_quanto(folder: Path, state: Mapping[str, Tensor], modules: Iterable[str], dtype: torch.dtype) -> None:
    """Write a transformer and its quantisation map into `folder`, as `as_quanto` stores it."""
    kind, name = _KINDS[dtype]
    names = list(modules)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(as_quanto(state, names, dtype), folder / f"dit_model_{name}.safetensors")
    quantisation_map = {module: {"weights": kind, "activations": "none"} for module in names}
    (folder / f"dit_model_map_{name}.json").write_text(json.dumps(quantisation_map), "utf-8")


def write_gguf(path: Path, state: Mapping[str, Tensor], kind: str = "Q8_0") -> None:
    """Write a GGUF file as converters of Wan's weights do: matrices packed as `kind` if their rows are divisible.

    `state` is float32. Raises MissingExtra without gguf.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("quant=gguf", "gguf", "gguf") from error
    packed = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[packed]
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in state.items():
        values = tensor.numpy()
        if values.ndim > 4:
            # The format has four dimensions; more are stored in a field.
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            values = values.reshape(values.shape[0], -1)
        elif values.ndim == 2 and values.shape[1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, packed), raw_dtype=packed)
            continue
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

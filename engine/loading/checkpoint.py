"""Files of one component, in any layout -> its tensors under our names, one at a time -> a network."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from engine.errors import EngineError, SourceError
from engine.loading.file_kinds import what_is
from engine.loading.fill import check_names
from engine.loading.gguf_header import read_header
from engine.loading.key_map import engine_name, to_engine_config
from engine.loading.layout import Part
from engine.loading.originals import (
    Converted,
    Converter,
    Shapes,
    clip_config,
    convert_clip,
    convert_umt5,
    convert_vae,
    umt5_config,
    vae_config,
)
from engine.loading.quantize import shape_of
from engine.loading.quanto import Quantised, join_halves
from engine.loading.safetensors_reader import stored_tensors
from engine.loading.scaled import Scaled, check_notes
from engine.loading.tensor_names import bare, scale_of
from engine.multitalk.compat import gguf_parts
from engine.multitalk.transformer import MultiTalkTransformer3DModel, kept_in_float32

Named = Iterator[tuple[str, Any]]


def convert_transformer(key: str, tensor: Tensor) -> Converted:
    """Name a tensor of the transformer, whose name is the reference's or ours; an unknown name is kept."""
    return ((engine_name(key) or key, tensor),)


_CONVERT: Mapping[str, Converter] = {
    "transformer": convert_transformer,
    "text_encoder": convert_umt5,
    "image_encoder": convert_clip,
    "vae": convert_vae,
}
#: Of the transformer: what a model has that takes a picture.
_SEES = "condition_embedder.image_embedder.norm1.weight"
#: Of the text encoder: another name of a tensor that stands under its first.
_TIED = "encoder.embed_tokens.weight"


def build_empty(component: str, part: Part) -> Any:
    """Return the network that the tensors of `part` belong to, on the meta device.

    Sizes are those of its config, and of its tensors where there is none. Raises SourceError where the two differ,
    naming tensors; nothing is read but headers.
    """
    stored = read_tensors(part, lambda key, tensor: ((key, tensor),), outline=True)
    shapes = {key: shape_of(tensor) for key, tensor in stored}
    with init_empty_weights():
        try:
            model = _BUILD[component](part, shapes)
        except Exception as error:
            # Config values reach constructors unchecked, so anything may come out of them.
            what = error.what if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            named = _names(part) if part.config is None else part.config
            raise SourceError(
                f"{named} builds no {component}: {what}", field="source", hint="get both again"
            ) from error
    check(component, model, part)
    return model


def fill(model: Any, component: str, part: Part, dtype: torch.dtype) -> None:
    """Give every parameter of `model`, which `build_empty` made, its tensor.

    `dtype` is that of the transformer but for its float32 parts, and of all of another component. Weights of the
    transformer's blocks that are quantised are kept so. Raises SourceError, and MissingExtra for a package of that.
    """
    for name, tensor in read_tensors(part, _CONVERT[component]):
        placed = place(model, component, name, tensor, dtype)
        module, _, leaf = name.rpartition(".")
        trainable = placed.is_floating_point() and type(placed) is Tensor
        model.get_submodule(module)._parameters[leaf] = nn.Parameter(placed, requires_grad=trainable)
    if component == "text_encoder":
        model.tie_weights()


def place(model: Any, component: str, name: str, tensor: Any, dtype: torch.dtype) -> Tensor:
    """Return `tensor` as `model` keeps it under `name`: cast, in memory of its own."""
    wanted = torch.float32 if component == "transformer" and kept_in_float32(name) else dtype
    kept = component == "transformer" and name.startswith("blocks.") and name.endswith(".weight")
    if isinstance(tensor, Scaled):
        return tensor.dense(wanted)
    if isinstance(tensor, Quantised):
        return tensor.kept(wanted) if kept else tensor.dense(wanted)
    if hasattr(tensor, "quant_type"):
        return _unpack_late(model, name, tensor, wanted) if kept else gguf_parts().dequantize(tensor).to(wanted)
    placed: Tensor = tensor.to(wanted, copy=True)
    return placed


def placed_size(component: str, part: Part, dtype: torch.dtype) -> int:
    """Return the bytes that `fill` will take, from headers alone."""
    total = 0
    for name, tensor in read_tensors(part, _CONVERT[component], outline=True):
        packed = isinstance(tensor, Quantised) or hasattr(tensor, "quant_type")
        if packed and component == "transformer" and name.startswith("blocks."):
            kept = (tensor.data, tensor.scale.float()) if isinstance(tensor, Quantised) else (tensor,)
            total += sum(part.nbytes for part in kept)
        else:
            wanted = torch.float32 if component == "transformer" and kept_in_float32(name) else dtype
            total += math.prod(shape_of(tensor)) * wanted.itemsize
    return total


def read_tensors(part: Part, convert: Converter, *, outline: bool = False) -> Named:
    """Stream (name as `convert` gives it, tensor) in the order of the files, holding one tensor at a time.

    A tensor is dense, and may lie in a mapped file: copy it; or it is Quantised, Scaled, or diffusers' GGUFParameter.
    With `outline` tensors are on the meta device: nothing is read but headers; names, shapes and dtypes are the same.
    Raises SourceError for files that are damaged, or that hold a tensor twice.
    """
    stored: Named = (pair for path in part.files for pair in _stored(path, outline))
    if part.map is not None:
        stored = join_halves(stored, json.loads(part.map.read_text("utf-8")))
    seen: set[str] = set()
    for key, tensor in stored:
        try:
            pairs = convert(key, tensor)
        except SourceError as error:
            raise SourceError(
                f"{_names(part)}: {error.what}", field="source", hint="is it the file it is named?"
            ) from error
        for name, converted in pairs:
            if name in seen:
                raise SourceError(f"{_names(part)} hold {name} twice", field="source", hint="keep one of them")
            seen.add(name)
            yield name, converted


def check(component: str, model: nn.Module, part: Part) -> None:
    """Raise SourceError, naming tensors, unless the files of `part` hold exactly those of `model`."""
    outline = read_tensors(part, _CONVERT[component], outline=True)
    wanted = {name: shape_of(tensor) for name, tensor in model.named_parameters() if name != _TIED}
    given = {name: shape_of(tensor) for name, tensor in outline}
    if component == "transformer" and _SEES in wanted.keys() - given.keys() and "patch_embedding.weight" in given:
        raise SourceError(
            f"{_names(part)} is a text-to-video model, which takes no picture",
            field="source",
            hint="take Wan2.1-I2V-14B-480P (or 720P)",
        )
    check_names(
        _names(part),
        lacking=wanted.keys() - given.keys(),
        unknown=given.keys() - wanted.keys(),
        misshapen={name for name in wanted.keys() & given.keys() if wanted[name] != given[name]},
    )


# --- empty networks ---------------------------------------------------------------------------------------------------


def _empty_transformer(part: Part, _shapes: Shapes) -> nn.Module:
    if part.form == "diffusers":
        own: nn.Module = MultiTalkTransformer3DModel.from_config(MultiTalkTransformer3DModel.load_config(part.folder))
        return own
    told = {} if part.config is None else json.loads(part.config.read_text("utf-8"))
    made: nn.Module = (
        MultiTalkTransformer3DModel.from_config(told)
        if "attention_head_dim" in told
        else MultiTalkTransformer3DModel(**to_engine_config(told))
    )
    return made


def _empty_text_encoder(_part: Part, shapes: Shapes) -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**umt5_config(shapes)))


def _empty_image_encoder(_part: Part, shapes: Shapes) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**clip_config(shapes)))


def _empty_vae(_part: Part, shapes: Shapes) -> nn.Module:
    from diffusers import AutoencoderKLWan

    empty: nn.Module = AutoencoderKLWan(**vae_config(shapes))
    return empty


_BUILD: Mapping[str, Callable[[Part, Shapes], nn.Module]] = {
    "transformer": _empty_transformer,
    "text_encoder": _empty_text_encoder,
    "image_encoder": _empty_image_encoder,
    "vae": _empty_vae,
}


def _unpack_late(model: nn.Module, name: str, packed: Any, dtype: torch.dtype) -> Tensor:
    """Have the layer of a packed weight unpack it at each forward."""
    path = name.removesuffix(".weight")
    layer: Any = model.get_submodule(path)
    with torch.device("meta"):
        late = gguf_parts().linear(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype)
    # The bias may have come first.
    late._parameters["bias"] = layer.bias
    model.set_submodule(path, late)
    copied: Tensor = packed.clone()
    return copied


# --- files ------------------------------------------------------------------------------------------------------------


def _stored(path: Path, outline: bool) -> Named:
    try:
        if path.suffix not in (".gguf", ".pth"):
            yield from _safetensors(path, outline)
            return
        for key, tensor in _gguf(path) if path.suffix == ".gguf" else _pickled(path):
            # Both map the file, so that a tensor that is not looked into is not read.
            yield key, tensor.to("meta") if outline else tensor
    except EngineError:
        raise
    except Exception as error:
        # Each of the three libraries has several of its own for a file that is not what it should be.
        if (found := what_is(path)) is not None and (path.suffix != ".pth" or "PyTorch" not in found[0]):
            raise SourceError(f"{path} is {found[0]}", field="source", hint=found[1]) from error
        raise SourceError(
            f"{path} cannot be read: {str(error).strip().partition(chr(10))[0]}",
            field="source",
            hint="get this file again",
        ) from error


def _safetensors(path: Path, outline: bool) -> Named:
    from safetensors import safe_open

    stored = stored_tensors(path)
    names = bare(stored)
    scales = {key: scale for key in stored if (scale := scale_of(key, stored)) is not None}
    rest = [key for key in names if key not in scales.values()]
    if scales:
        with safe_open(path, "np") as file:
            check_notes(path, stored, file.metadata() or {})
    if outline:
        # Asking for the tensors themselves has the system read them ahead, all 75 GB of them.
        empty = {key: torch.empty(told.shape, dtype=told.dtype, device="meta") for key, told in stored.items()}
        for key in rest:
            yield names[key], _joined(key, empty.__getitem__, scales)
        return
    with safe_open(path, "pt") as file:
        # In the order of the file, which is then read from front to back.
        wanted = set(rest)
        for key in file.offset_keys():
            if key in wanted:
                yield names[key], _joined(key, file.get_tensor, scales)


def _joined(key: str, get: Callable[[str], Tensor], scales: Mapping[str, str]) -> Tensor | Scaled:
    if key not in scales:
        return get(key)
    try:
        return Scaled(get(key), get(scales[key]))
    except ValueError as error:
        raise ValueError(f"{key} has {error}") from error


def _pickled(path: Path) -> Named:
    # What was saved before torch 1.6 is no archive, and cannot be mapped.
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if isinstance(state, Mapping):
        # Trainers keep the network beside other things.
        state = next(
            (state[key] for key in ("state_dict", "model", "module") if isinstance(state.get(key), dict)), state
        )
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError("it holds no tensors by name")
    for key, name in bare(state).items():
        yield name, state.pop(key)


def _gguf(path: Path) -> Named:
    """Yield what is packed as diffusers' GGUFParameter, and other tensors as they are."""
    import gguf

    # The package believes every count that stands in the file.
    read_header(path)
    # Copy-on-write: torch has no tensor that cannot be written to.
    reader = gguf.GGUFReader(path, "c")
    kinds = gguf.GGMLQuantizationType
    plain = (kinds.F32, kinds.F16, kinds.BF16)
    bared = {stored.name: stored.name for stored in reader.tensors} | bare([stored.name for stored in reader.tensors])
    for stored in reader.tensors:
        # The format knows four dimensions; converters note the fifth of the patches' convolution beside it.
        named = (f"comfy.gguf.orig_shape.{name}" for name in (stored.name, bared[stored.name]))
        noted = next((reader.fields[name] for name in named if name in reader.fields), None)
        packed = torch.from_numpy(stored.data)
        if stored.tensor_type == kinds.BF16:
            # The package has no such numbers and gives bytes.
            packed = packed.view(torch.bfloat16)
        if stored.tensor_type not in plain:
            packed = gguf_parts().parameter(packed, quant_type=stored.tensor_type)
        elif noted is not None:
            packed = packed.reshape([int(noted.parts[index][0]) for index in noted.data])
        yield stored.name, packed


def _names(part: Part) -> str:
    shown = ", ".join(str(path) for path in part.files[:2])
    return f"{shown} and {len(part.files) - 2} more" if len(part.files) > 2 else shown

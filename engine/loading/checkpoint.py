"""Files of one component, in any layout -> its tensors under our names, one at a time -> a network."""

from __future__ import annotations

import json
import logging
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from engine.loading.layout import ComponentLayout
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
from engine.loading.tensor_names import scale_of, strip_prefixes
from engine.network.compat import gguf_parts
from engine.network.precision import kept_in_float32

logger = logging.getLogger(__name__)

Named = Iterator[tuple[str, Any]]


def convert_transformer(key: str, tensor: Tensor) -> Converted:
    """Return a transformer tensor under our name; `key` is the reference's name or ours, an unknown one is kept."""
    return ((engine_name(key) or key, tensor),)


_CONVERT: Mapping[str, Converter] = {
    "transformer": convert_transformer,
    "text_encoder": convert_umt5,
    "image_encoder": convert_clip,
    "vae": convert_vae,
}
#: A tensor that only image-to-video transformers have.
_TAKES_PICTURE = "condition_embedder.image_embedder.norm1.weight"
#: The text encoder's second name for its token table ("shared.weight").
_TIED = "encoder.embed_tokens.weight"


def build_empty(component: str, part: ComponentLayout, network: Any = None) -> Any:
    """Build the network for the tensors of `part`, on the meta device; `network` is the class of a transformer.

    Sizes come from the config, or from the tensors' shapes if there is no config. Only headers are read. Raises
    SourceError, naming tensors, if config and tensors do not fit each other.
    """
    stored = read_tensors(part, lambda key, tensor: ((key, tensor),), headers_only=True)
    shapes = {key: shape_of(tensor) for key, tensor in stored}
    with init_empty_weights():
        try:
            model = _BUILD[component](part, shapes, network)
        except Exception as error:
            # Config values reach constructors unchecked, so any error is possible.
            what = error.what if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
            source = _names(part) if part.config is None else part.config
            raise SourceError(
                f"{source} builds no {component}: {what}", field="source", hint="get both again"
            ) from error
    check(component, model, part)
    return model


@dataclass(frozen=True)
class Keep:
    """Which stored 8-bit weights stay as they are."""

    #: Prefix of their names; None: no weights.
    prefix: str | None = None
    #: Values of this dtype stay, too, if a file has them with separate scales, and not more than one per row.
    scaled: torch.dtype | None = None

    def applies(self, name: str) -> bool:
        """Return whether the weight `name` stays if it is stored quantised."""
        return self.prefix is not None and name.startswith(self.prefix) and name.endswith(".weight")


#: What stays without further choices, by component.
KEEPS = {"transformer": Keep("blocks.")}


def fill(model: Any, component: str, part: ComponentLayout, dtype: torch.dtype, keep: Keep | None = None) -> None:
    """Give every parameter of `model` (from `build_empty`) its tensor.

    `dtype` applies to all parameters except the transformer's float32 parts. Quantised weights stay quantised as
    `keep` says; None: those of the transformer's blocks. Raises SourceError, and MissingExtra if a quantisation package
    is not installed.
    """
    keep = keep or KEEPS.get(component, Keep())
    dense: dict[str, list[str]] = {}
    for name, stored in read_tensors(part, _CONVERT[component]):
        tensor = stored
        if keep.scaled is not None and keep.applies(name) and isinstance(stored, Scaled):
            if (reason := _not_kept(stored, keep.scaled)) is None:
                tensor = stored.rows()
            else:
                dense.setdefault(reason, []).append(name)
        placed = place(model, component, name, tensor, dtype, keep)
        module, _, leaf = name.rpartition(".")
        trainable = placed.is_floating_point() and type(placed) is Tensor
        model.get_submodule(module)._parameters[leaf] = nn.Parameter(placed, requires_grad=trainable)
    if component == "text_encoder":
        model.tie_weights()
    for reason, names in dense.items():
        logger.info(
            "%s: %d weights are %s (first %s): they become %s and are quantised again",
            _names(part),
            len(names),
            reason,
            names[0],
            str(dtype).removeprefix("torch."),
        )


def _not_kept(tensor: Scaled, dtype: torch.dtype) -> str | None:
    """Return why a scaled weight cannot be multiplied in `dtype` as it is stored; None if it can be."""
    if tensor.data.dtype != dtype:
        return f"stored as {str(tensor.data.dtype).removeprefix('torch.')}"
    return None if tensor.has_rows else "stored with more than one scale per row"


def place(model: Any, component: str, name: str, tensor: Any, dtype: torch.dtype, keep: Keep | None = None) -> Tensor:
    """Return `tensor` as `model` keeps it under `name`: cast, and copied to its own memory."""
    target = torch.float32 if component == "transformer" and kept_in_float32(model, name) else dtype
    stays_quantised = (keep or KEEPS.get(component, Keep())).applies(name)
    if isinstance(tensor, Scaled):
        return tensor.dense(target)
    if isinstance(tensor, Quantised):
        return tensor.kept(target) if stays_quantised else tensor.dense(target)
    if hasattr(tensor, "quant_type"):
        return (
            _unpack_late(model, name, tensor, target) if stays_quantised else gguf_parts().dequantize(tensor).to(target)
        )
    placed: Tensor = tensor.to(target, copy=True)
    return placed


def placed_size(
    component: str, part: ComponentLayout, dtype: torch.dtype, keep: Keep | None = None, network: Any = None
) -> int:
    """Return the bytes that `fill` will need, from headers alone; `network` is the class of a transformer."""
    total = 0
    keep = keep or KEEPS.get(component, Keep())
    for name, stored in read_tensors(part, _CONVERT[component], headers_only=True):
        kept = keep.scaled is not None and isinstance(stored, Scaled) and _not_kept(stored, keep.scaled) is None
        tensor = stored.rows() if kept else stored
        packed = isinstance(tensor, Quantised) or hasattr(tensor, "quant_type")
        if packed and keep.applies(name):
            stored_parts = (tensor.data, tensor.scale.float()) if isinstance(tensor, Quantised) else (tensor,)
            total += sum(part.nbytes for part in stored_parts)
        else:
            target = torch.float32 if component == "transformer" and kept_in_float32(network, name) else dtype
            total += math.prod(shape_of(tensor)) * target.itemsize
    return total


def read_tensors(part: ComponentLayout, convert: Converter, *, headers_only: bool = False) -> Named:
    """Yield (name from `convert`, tensor) in file order, holding one tensor at a time.

    A tensor is dense, Quantised, Scaled, or a GGUFParameter of diffusers. A dense one may be part of a mapped file, so
    copy it. With `headers_only` tensors are on the meta device, with the same names, shapes and dtypes, and only
    headers are read. Raises SourceError for damaged files, or if a tensor appears twice.
    """
    stored: Named = (pair for path in part.files for pair in _stored(path, headers_only))
    if part.map is not None:
        stored = join_halves(stored, json.loads(part.map.read_text("utf-8")))
    seen: set[str] = set()
    for key, tensor in stored:
        try:
            pairs = convert(key, tensor)
        except SourceError as error:
            raise SourceError(
                f"{_names(part)}: {error.what}", field="source", hint="is this file what its name says?"
            ) from error
        for name, converted in pairs:
            if name in seen:
                raise SourceError(f"{_names(part)} hold {name} twice", field="source", hint="keep one of them")
            seen.add(name)
            yield name, converted


def check(component: str, model: nn.Module, part: ComponentLayout) -> None:
    """Raise SourceError, naming tensors, unless the files of `part` hold exactly the tensors of `model`."""
    entries = read_tensors(part, _CONVERT[component], headers_only=True)
    expected = {name: shape_of(tensor) for name, tensor in model.named_parameters() if name != _TIED}
    stored = {name: shape_of(tensor) for name, tensor in entries}
    if (
        component == "transformer"
        and _TAKES_PICTURE in expected.keys() - stored.keys()
        and "patch_embedding.weight" in stored
    ):
        raise SourceError(
            f"{_names(part)} is a text-to-video model, which takes no picture",
            field="source",
            hint="take Wan2.1-I2V-14B-480P (or 720P)",
        )
    check_names(
        _names(part),
        lacking=expected.keys() - stored.keys(),
        unknown=stored.keys() - expected.keys(),
        misshapen={name for name in expected.keys() & stored.keys() if expected[name] != stored[name]},
    )


# --- empty networks ---------------------------------------------------------------------------------------------------


def _empty_transformer(part: ComponentLayout, _shapes: Shapes, network: Any) -> nn.Module:
    if part.form == "diffusers":
        own: nn.Module = network.from_config(network.load_config(part.folder))
        return own
    config = {} if part.config is None else json.loads(part.config.read_text("utf-8"))
    model: nn.Module = (
        network.from_config(config) if "attention_head_dim" in config else network(**to_engine_config(config))
    )
    return model


def _empty_text_encoder(_part: ComponentLayout, shapes: Shapes, _network: Any) -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**umt5_config(shapes)))


def _empty_image_encoder(_part: ComponentLayout, shapes: Shapes, _network: Any) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**clip_config(shapes)))


def _empty_vae(_part: ComponentLayout, shapes: Shapes, _network: Any) -> nn.Module:
    from diffusers import AutoencoderKLWan

    empty: nn.Module = AutoencoderKLWan(**vae_config(shapes))
    return empty


_BUILD: Mapping[str, Callable[[ComponentLayout, Shapes, Any], nn.Module]] = {
    "transformer": _empty_transformer,
    "text_encoder": _empty_text_encoder,
    "image_encoder": _empty_image_encoder,
    "vae": _empty_vae,
}


def _unpack_late(model: nn.Module, name: str, packed: Any, dtype: torch.dtype) -> Tensor:
    """Replace the layer of a packed weight by one that unpacks it in each forward."""
    path = name.removesuffix(".weight")
    layer: Any = model.get_submodule(path)
    with torch.device("meta"):
        linear = gguf_parts().linear(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype)
    # The bias may have been read first.
    linear._parameters["bias"] = layer.bias
    model.set_submodule(path, linear)
    copied: Tensor = packed.clone()
    return copied


# --- files ------------------------------------------------------------------------------------------------------------


def _stored(path: Path, headers_only: bool) -> Named:
    try:
        if path.suffix not in (".gguf", ".pth"):
            yield from _safetensors(path, headers_only)
            return
        for key, tensor in _gguf(path) if path.suffix == ".gguf" else _pickled(path):
            # Both map the file: a tensor whose values are not used is not read.
            yield key, tensor.to("meta") if headers_only else tensor
    except EngineError:
        raise
    except Exception as error:
        # Each of the three libraries raises several types of its own for a file in another format.
        if (kind := what_is(path)) is not None and (path.suffix != ".pth" or "PyTorch" not in kind[0]):
            raise SourceError(f"{path} is {kind[0]}", field="source", hint=kind[1]) from error
        raise SourceError(
            f"{path} cannot be read: {str(error).strip().partition(chr(10))[0]}",
            field="source",
            hint="get this file again",
        ) from error


def _safetensors(path: Path, headers_only: bool) -> Named:
    from safetensors import safe_open

    stored = stored_tensors(path)
    names = strip_prefixes(stored)
    scales = {key: scale for key in stored if (scale := scale_of(key, stored)) is not None}
    rest = [key for key in names if key not in scales.values()]
    if scales:
        with safe_open(path, "np") as file:
            check_notes(path, stored, file.metadata() or {})
    if headers_only:
        # get_tensor() would make the system read ahead, all 75 GB.
        empty = {key: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for key, entry in stored.items()}
        for key in rest:
            yield names[key], _scaled(key, empty.__getitem__, scales)
        return
    with safe_open(path, "pt") as file:
        # In file order, so that the file is read from front to back.
        remaining = set(rest)
        for key in file.offset_keys():
            if key in remaining:
                yield names[key], _scaled(key, file.get_tensor, scales)


def _scaled(key: str, get: Callable[[str], Tensor], scales: Mapping[str, str]) -> Tensor | Scaled:
    if key not in scales:
        return get(key)
    try:
        return Scaled(get(key), get(scales[key]))
    except ValueError as error:
        raise ValueError(f"{key} has {error}") from error


def _pickled(path: Path) -> Named:
    # Files saved before torch 1.6 are no archives and cannot be mapped.
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if isinstance(state, Mapping):
        # Trainers save the network together with other state.
        state = next(
            (state[key] for key in ("state_dict", "model", "module") if isinstance(state.get(key), dict)), state
        )
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError("it holds no tensors by name")
    for key, name in strip_prefixes(state).items():
        yield name, state.pop(key)


def _gguf(path: Path) -> Named:
    """Yield packed tensors as diffusers' GGUFParameter, other tensors as they are."""
    import gguf

    # The gguf package trusts every count in the file.
    read_header(path)
    # Copy-on-write: torch has no read-only tensors.
    reader = gguf.GGUFReader(path, "c")
    kinds = gguf.GGMLQuantizationType
    plain = (kinds.F32, kinds.F16, kinds.BF16)
    short_names = {stored.name: stored.name for stored in reader.tensors} | strip_prefixes(
        [stored.name for stored in reader.tensors]
    )
    for stored in reader.tensors:
        # The format has four dimensions; converters store the five of the patch convolution in a field of their own.
        shape_fields = (f"comfy.gguf.orig_shape.{name}" for name in (stored.name, short_names[stored.name]))
        original_shape = next((reader.fields[name] for name in shape_fields if name in reader.fields), None)
        packed = torch.from_numpy(stored.data)
        if stored.tensor_type == kinds.BF16:
            # The package has no bfloat16 and returns bytes.
            packed = packed.view(torch.bfloat16)
        if stored.tensor_type not in plain:
            packed = gguf_parts().parameter(packed, quant_type=stored.tensor_type)
        elif original_shape is not None:
            packed = packed.reshape([int(original_shape.parts[index][0]) for index in original_shape.data])
        yield stored.name, packed


def _names(part: ComponentLayout) -> str:
    text = ", ".join(str(path) for path in part.files[:2])
    return f"{text} and {len(part.files) - 2} more" if len(part.files) > 2 else text

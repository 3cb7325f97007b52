"""A component's files -> its network, as often as it is needed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.components import Reader, Stored
from engine.errors import SourceError
from engine.loading import checkpoint
from engine.loading.fill import fill, filled_size, find_stored, match
from engine.loading.key_map import engine_name
from engine.loading.layout import ComponentLayout
from engine.loading.quantize import is_block_linear
from engine.loading.safetensors_reader import stored_tensors
from engine.loading.tensor_names import has_scales, strip_prefixes

#: transformers and accelerate patch PyTorch for the whole process while they build a network: if two threads build at
#: the same time, each network misses weights.
BUILDING = threading.RLock()

# Heads and decoders that encoder checkpoints contain and that are not used here.
_UNUSED = {
    "text_encoder": re.compile(r"decoder\.|lm_head\.|shared\.|encoder\.embed_tokens\."),
    "image_encoder": re.compile(r"text_|visual_projection|logit_scale|.*position_ids$|.*post_layernorm"),
}


class ComponentFiles:
    """The files of one component: its network on the meta device, and where each of its tensors is stored."""

    def __init__(
        self,
        part: ComponentLayout,
        name: str,
        dtype: torch.dtype,
        finish: Callable[[Any], None] = lambda _module: None,
        *,
        kept: float | None = None,
        chosen: Callable[[nn.Module, str], bool] = is_block_linear,
        keep: checkpoint.Keep | None = None,
        network: Any = None,
    ) -> None:
        """Read only configs and headers. Raises SourceError unless they fit each other.

        `kept`: bytes of a weight of the layers for which `chosen(layer, name)` is true, if `finish` quantises them.
        `keep`: which quantised weights stay as they are stored; None: those of the transformer's blocks. `network`: the
        class of the transformer.
        """
        self.keep, self._network = keep, network
        self.part, self.folder, self.name, self.dtype = part, part.folder, name, dtype
        self.finish, self.quantised = finish, kept is not None
        #: Whether all files are in one folder in the layout of diffusers and transformers.
        self.plain = part.form == "diffusers" and all(path.parent == part.folder for path in part.files)
        #: The network on the meta device: its config is used, and the first `read` fills it.
        self.meta_model: nn.Module | None = self._build()
        #: Tensors that need at most a cast; None: each tensor is converted while it is read.
        self.stored: dict[str, Stored] | None = None
        if self.plain:
            stored = find_stored(self.folder)
            if has_scales(stored):
                checkpoint.check(name, self.meta_model, part)
            else:
                self.stored = _renamed(name, stored, self.meta_model.state_dict(keep_vars=True).keys())
        elif name == "transformer" and part.map is None and all(path.suffix == ".safetensors" for path in part.files):
            files = [stored_tensors(path) for path in part.files]
            if not any(map(has_scales, files)):
                self.stored = {engine_name(key) or key: file[key] for file in files for key in strip_prefixes(file)}
        if self.stored is None:
            self.size = checkpoint.placed_size(name, part, dtype, keep, network)
            return
        match(self.folder, self.meta_model, self.stored, tied=_TIED.keys() if name == "text_encoder" else ())
        in_float32 = (
            set(getattr(self.meta_model, "_keep_in_fp32_modules", None) or ()) if name == "transformer" else set()
        )
        self.dtypes = {key: torch.float32 if in_float32 & set(key.split(".")) else dtype for key in self.stored}
        self.size = filled_size(self.stored, self.dtypes.__getitem__)
        if kept is not None:
            modules = self.meta_model.named_modules()
            linears = (f"{key}.weight" for key, module in modules if chosen(module, key))
            self.size -= int(sum(_saved(self.stored[key], self.dtypes[key], kept) for key in linears))

    def read(self, reader: Reader, device: str) -> nn.Module:
        """Return the component on `device`, ready to run."""
        module: Any = self.meta_model or self._build()
        self.meta_model = None
        if self.stored is None:
            checkpoint.fill(module, self.name, self.part, self.dtype, self.keep)
            self.finish(module)
            converted: nn.Module = module.to(device).eval()
            return converted
        # A network that is quantised after reading may not fit on the device before.
        fill(module, self.stored, self.dtypes.__getitem__, reader, "cpu" if self.quantised else device)
        if self.name == "text_encoder":
            # Its files hold one token table; both names of it must be the same tensor.
            module.set_input_embeddings(module.get_input_embeddings())
        self.finish(module)
        ready: nn.Module = module.to(device).eval()
        return ready

    def _build(self) -> nn.Module:
        from accelerate import init_empty_weights

        if not self.plain:
            with BUILDING:
                empty: nn.Module = checkpoint.build_empty(self.name, self.part, self._network)
            return empty
        try:
            # Buffers are in no file, so they are computed here. The text encoder has none: without them its table of
            # tokens, 4 GB, is not allocated before it is moved to the meta device.
            with BUILDING, init_empty_weights(include_buffers=self.name == "text_encoder"):
                return _BUILD[self.name](self.folder, self._network)
        except Exception as error:
            raise unusable_folder(self.folder, error) from error


def _saved(stored: Stored, dtype: torch.dtype, kept: float) -> float:
    """Return the bytes less that a weight takes where each of its values takes `kept` bytes."""
    return prod(stored.shape) * (dtype.itemsize - kept) if stored.dtype.is_floating_point else 0


def _build_transformer(folder: Path, network: Any) -> nn.Module:
    transformer: nn.Module = network.from_config(network.load_config(folder))
    return transformer


def _build_vae(folder: Path, _network: Any) -> nn.Module:
    from diffusers import AutoencoderKLWan

    vae: nn.Module = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(folder))
    return vae


def _build_text_encoder(folder: Path, _network: Any) -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def _build_image_encoder(folder: Path, _network: Any) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


_BUILD: Mapping[str, Callable[[Path, Any], nn.Module]] = {
    "transformer": _build_transformer,
    "vae": _build_vae,
    "text_encoder": _build_text_encoder,
    "image_encoder": _build_image_encoder,
}
#: The text encoder's second name for its token table -> the first.
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}
_CLIP_PREFIX = "vision_model."


def _renamed(part: str, stored: Mapping[str, Stored], names: Collection[str]) -> dict[str, Stored]:
    """Return `stored` under the network's `names`: older files use other names, and hold more tensors."""
    tensors: dict[str, Stored] = {}
    for key, tensor in stored.items():
        spellings = [key]
        if part == "image_encoder":
            spellings += [key.removeprefix(_CLIP_PREFIX), _CLIP_PREFIX + key]
        if part == "text_encoder":
            spellings = [_TIED.get(key, key)]
        if part == "transformer":
            spellings += [engine_name(key) or key]
        name = next((name for name in spellings if name in names), None)
        if name is not None:
            tensors[name] = tensor
        elif part not in _UNUSED or not _UNUSED[part].match(key):
            tensors[key] = tensor
    return tensors


def unusable_folder(folder: Path, error: Exception) -> SourceError:
    """Return the error for a folder that a library cannot load."""
    # Config values reach constructors unchecked, so any error is possible.
    return SourceError(
        f"{folder} cannot be loaded: its config.json and weights do not fit each other ({first_sentence(error)})",
        field="source",
        hint="get both again",
    )


def first_sentence(error: Exception) -> str:
    """Return an exception's message as one line, at most 160 characters."""
    # After the first sentence libraries give advice to programmers.
    line = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {line[:160]}" if line else type(error).__name__

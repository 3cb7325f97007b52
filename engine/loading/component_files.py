"""A component's files -> the network it becomes, as often as it is wanted."""

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
from engine.loading.layout import Part
from engine.loading.quantize import is_block_linear
from engine.loading.safetensors_reader import stored_tensors
from engine.loading.tensor_names import bare, has_scales
from engine.multitalk.transformer import MultiTalkTransformer3DModel

#: transformers and accelerate change what PyTorch does in the whole process while they build a network: where two
#: build at once, each misses weights.
BUILDING = threading.RLock()

# Heads and halves that checkpoints of the encoders bring along and that are not used here.
_UNUSED = {
    "text_encoder": re.compile(r"decoder\.|lm_head\.|shared\.|encoder\.embed_tokens\."),
    "image_encoder": re.compile(r"text_|visual_projection|logit_scale|.*position_ids$|.*post_layernorm"),
}


class OnDisk:
    """One component on disk: an empty network of its config, and where each of its tensors is stored."""

    def __init__(
        self,
        part: Part,
        name: str,
        dtype: torch.dtype,
        finish: Callable[[Any], None] = lambda _module: None,
        *,
        kept: float | None = None,
    ) -> None:
        """Read configs and headers alone. Raises SourceError unless they fit each other.

        `kept`: bytes of a weight of the blocks' linear layers where `finish` quantises them.
        """
        self.part, self.folder, self.name, self.dtype = part, part.folder, name, dtype
        self.finish, self.quantised = finish, kept is not None
        #: Whether the folder alone is the component, in the layout of diffusers and transformers.
        self.plain = part.form == "diffusers" and all(path.parent == part.folder for path in part.files)
        #: On the meta device: for its config, and to be filled first.
        self.shell: nn.Module | None = self._build()
        #: Tensors that are stored as they are wanted, but for the dtype; None: each is converted on its way.
        self.stored: dict[str, Stored] | None = None
        if self.plain:
            found = find_stored(self.folder)
            if has_scales(found):
                checkpoint.check(name, self.shell, part)
            else:
                self.stored = _spelled(name, found, self.shell.state_dict(keep_vars=True).keys())
        elif name == "transformer" and part.map is None and all(path.suffix == ".safetensors" for path in part.files):
            files = [stored_tensors(path) for path in part.files]
            if not any(map(has_scales, files)):
                self.stored = {engine_name(key) or key: file[key] for file in files for key in bare(file)}
        if self.stored is None:
            self.size = checkpoint.placed_size(name, part, dtype)
            return
        match(self.folder, self.shell, self.stored, tied=_TIED.keys() if name == "text_encoder" else ())
        exact = set(getattr(self.shell, "_keep_in_fp32_modules", None) or ()) if name == "transformer" else set()
        self.dtypes = {key: torch.float32 if exact & set(key.split(".")) else dtype for key in self.stored}
        self.size = filled_size(self.stored, self.dtypes.__getitem__)
        if kept is not None:
            linears = (f"{key}.weight" for key, module in self.shell.named_modules() if is_block_linear(module, key))
            self.size -= int(sum(_saved(self.stored[key], self.dtypes[key], kept) for key in linears))

    def read(self, reader: Reader, device: str) -> nn.Module:
        """Return the component on `device`, ready to run."""
        module: Any = self.shell or self._build()
        self.shell = None
        if self.stored is None:
            checkpoint.fill(module, self.name, self.part, self.dtype)
            self.finish(module)
            converted: nn.Module = module.to(device).eval()
            return converted
        # The whole of what is quantised once it is there may not fit on the device.
        fill(module, self.stored, self.dtypes.__getitem__, reader, "cpu" if self.quantised else device)
        if self.name == "text_encoder":
            # It looks tokens up in the one table that its files hold.
            module.set_input_embeddings(module.get_input_embeddings())
        self.finish(module)
        ready: nn.Module = module.to(device).eval()
        return ready

    def _build(self) -> nn.Module:
        from accelerate import init_empty_weights

        if not self.plain:
            with BUILDING:
                empty: nn.Module = checkpoint.build_empty(self.name, self.part)
            return empty
        try:
            # Buffers that no file holds are made for real.
            with BUILDING, init_empty_weights(include_buffers=False):
                return _BUILD[self.name](self.folder)
        except Exception as error:
            raise unfit(self.folder, error) from error


def _saved(stored: Stored, dtype: torch.dtype, kept: float) -> float:
    """Return the bytes less that a weight takes where each of its values takes `kept` bytes."""
    return prod(stored.shape) * (dtype.itemsize - kept) if stored.dtype.is_floating_point else 0


def _build_transformer(folder: Path) -> nn.Module:
    built: nn.Module = MultiTalkTransformer3DModel.from_config(MultiTalkTransformer3DModel.load_config(folder))
    return built


def _build_vae(folder: Path) -> nn.Module:
    from diffusers import AutoencoderKLWan

    built: nn.Module = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(folder))
    return built


def _build_text_encoder(folder: Path) -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def _build_image_encoder(folder: Path) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


_BUILD: Mapping[str, Callable[[Path], nn.Module]] = {
    "transformer": _build_transformer,
    "vae": _build_vae,
    "text_encoder": _build_text_encoder,
    "image_encoder": _build_image_encoder,
}
#: The text encoder's name of a tensor that is another one of its tensors as well.
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}
_CLIP_PREFIX = "vision_model."


def _spelled(part: str, stored: Mapping[str, Stored], names: Collection[str]) -> dict[str, Stored]:
    """Return what is `stored` under the network's `names`: older files spell some otherwise, and hold more."""
    found: dict[str, Stored] = {}
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
            found[name] = tensor
        elif part not in _UNUSED or not _UNUSED[part].match(key):
            found[key] = tensor
    return found


def unfit(folder: Path, error: Exception) -> SourceError:
    """Return the error for a folder out of which a library can make nothing."""
    # Config values reach constructors unchecked, so anything may come out of them.
    return SourceError(
        f"{folder} cannot be loaded: its config.json and weights do not fit each other ({first_sentence(error)})",
        field="source",
        hint="get both again",
    )


def first_sentence(error: Exception) -> str:
    """Return an exception in one line."""
    # What follows the first sentence is a library's advice to programmers.
    line = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {line[:160]}" if line else type(error).__name__

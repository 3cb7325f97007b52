"""A folder of weights -> Model: the network and its encoders, ready to run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from engine.data import Weights
from engine.errors import RequestError, SourceError, UnknownComponent
from engine.multitalk.attention import set_self_attention_backend
from engine.multitalk.audio import AudioEncoder
from engine.multitalk.checkpoint import read_part
from engine.multitalk.codec import LatentCodec, WanCodec, Withdrawn
from engine.multitalk.image import ImageEncoder
from engine.multitalk.layout import QUANTISED, Part, find_parts
from engine.multitalk.lora import Coverage, LoraMerger, RuntimeLora, load_runtime_lora
from engine.multitalk.memory import Placement, place
from engine.multitalk.quantize import change_weight, quantize_int8
from engine.multitalk.text import TextEncoder
from engine.multitalk.transformer import MultiTalkTransformer3DModel

logger = logging.getLogger(__name__)

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "audio_encoder")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUANTS = ("none", "int8", *QUANTISED)
LORA_MODES = ("runtime", "merged")

# Heads and halves that checkpoints of the encoders bring along and that are not used here.
_UNUSED = {
    "text_encoder": re.compile(r"decoder\.|lm_head\.|shared\.|encoder\.embed_tokens\."),
    "image_encoder": re.compile(r"text_|visual_projection|logit_scale|.*position_ids$|.*post_layernorm"),
    "audio_encoder": re.compile(r"quantizer\.|project_|lm_head\.|masked_spec_embed"),
}


class Prompted(Protocol):
    """Encodes prompts: (1, tokens, text_dim)."""

    def encode(self, prompt: str) -> Tensor: ...


class Seeing(Protocol):
    """Encodes a picture (3, H, W), float32 -1 .. 1: (1, tokens, image_dim)."""

    def encode(self, pixels: Tensor) -> Tensor: ...


class Hearing(Protocol):
    """Encodes a voice (samples,), float32 mono 16 kHz: (frames, layers, channels)."""

    def encode(self, voice: Tensor, frames: int, *, cancel: Withdrawn | None = None) -> Tensor: ...


Lora = tuple[Path, float]


@dataclass
class Model:
    """The parts of a loaded model and where they are."""

    transformer: MultiTalkTransformer3DModel
    codec: LatentCodec
    text: Prompted
    image: Seeing
    audio: Hearing
    placement: Placement
    #: Where forwards run: "cuda" or "cpu". Audio is always encoded on the CPU.
    device: str
    #: LoRAs beside the weights, by file.
    loras: Mapping[Path, RuntimeLora] = field(default_factory=dict)
    #: LoRAs in the weights, which stay on.
    merged: tuple[Lora, ...] = ()

    def use(self, name: str) -> AbstractContextManager[None]:
        """Have "transformer", "vae", "text_encoder" or "image_encoder" on the device inside a `with`."""
        return self.placement.use(name)

    def set_loras(self, active: Sequence[Lora]) -> None:
        """Have exactly the LoRAs `active` (file, scale) on from now on.

        Raises RequestError where one was not loaded, or where LoRAs are merged and others are asked for.
        """
        if self.merged:
            if set(active) != set(self.merged):
                raise RequestError(
                    f"{_names(self.merged)} merged into the weights and cannot be changed for one request",
                    field="lora",
                    hint="start an engine with lora.mode=runtime, or with the same LoRAs",
                )
            return
        for path, _ in active:
            if path not in self.loras:
                raise RequestError(
                    f"the LoRA {path.name!r} is not loaded", field="lora", hint="name it when the engine starts"
                )
        scales = dict(active)
        for path, lora in self.loras.items():
            if path not in scales:
                lora.disable()
            else:
                lora.enable(scales[path])

    def close(self) -> None:
        """Take everything off the device. The model is of no use afterwards."""
        self.placement.close()


def load_model(
    folder: Path,
    *,
    device: str,
    dtype: str,
    quant: str = "none",
    wanted: Weights | None = None,
    attention: str = "native",
    memory: str = "none",
    blocks: int = 1,
    loras: Sequence[Lora] = (),
    lora_mode: str = "runtime",
) -> Model:
    """Load a model from `folder`, which holds each of COMPONENTS in a layout of `find_parts`; nothing is downloaded.

    Args:
        folder: the weights; no file in it is changed.
        device: "cuda" or "cpu".
        dtype: "float32" or "bfloat16", of transformer, text and image encoder; the rest is float32.
        quant: "none", "int8", or one of `layout.QUANTISED`, which reads a quantised file and keeps it so.
        wanted: which of several files is meant.
        attention: name of diffusers' attention backend, as an AttentionBackend resolves it.
        memory: "none", "model-offload" or "group-offload".
        blocks: transformer blocks moved together by "group-offload".
        loras: files and scales. "merged": put into the weights. "runtime": loaded and switched off; see `set_loras`.
        lora_mode: "runtime" or "merged".

    Raises:
        SourceError: a file is absent, damaged or has other tensors than the network, each named.
        ConfigError: a choice that does not exist.
    """
    _choose("dtype", dtype, tuple(DTYPES))
    _choose("quant", quant, QUANTS)
    _choose("lora.mode", lora_mode, LORA_MODES)
    parts = _check_files(folder, replace(wanted or Weights("", "", COMPONENTS), quant=quant))
    torch_dtype = DTYPES[dtype]

    transformer = _load_transformer(parts["transformer"], torch_dtype)
    merged: tuple[Lora, ...] = ()
    if lora_mode == "merged":
        merged = tuple(loras)
        for path, scale in merged:
            _merge(transformer, path, scale)
    if quant == "int8":
        quantize_int8(transformer)
    runtime: dict[Path, RuntimeLora] = {}
    if lora_mode == "runtime":
        for index, (path, _) in enumerate(dict(loras).items()):
            runtime[path] = load_runtime_lora(transformer, _read_lora(path), f"lora{index}")
            _tell_coverage(path, runtime[path].coverage)
    set_self_attention_backend(transformer, attention)

    vae = _load_vae(parts["vae"])
    text_encoder, image_encoder, audio_encoder = _load_encoders(parts, torch_dtype)
    text = TextEncoder(_load_tokenizer(parts["tokenizer"].folder), text_encoder, int(transformer.config.text_len))
    _check_fit(parts["transformer"], transformer, vae, text_encoder, image_encoder, audio_encoder)
    modules: dict[str, nn.Module] = {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
    }
    return Model(
        transformer=transformer,
        codec=WanCodec(vae),
        text=text,
        image=ImageEncoder(image_encoder),
        audio=AudioEncoder(audio_encoder),
        placement=place(memory, modules, device=device, blocks=blocks),
        device=device,
        loras=runtime,
        merged=merged,
    )


def _choose(field: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UnknownComponent(field, name, known)


# --- files ------------------------------------------------------------------------------------------------------------


def _check_files(folder: Path, wanted: Weights) -> Mapping[str, Part]:
    """Return the components; raise SourceError for files that are absent or damaged, before anything large is read."""
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise SourceError(f"no folder {folder}", field="source")
    parts, absent = find_parts(folder, wanted)
    if absent:
        raise SourceError(f"{folder} lacks {', '.join(absent)}", field="source", hint="get the weights again")
    own = sorted(part.folder for part in parts.values() if part.form == "diffusers")
    for path in (path for below in own for path in sorted(below.glob("*.json"))):
        try:
            json.loads(path.read_text("utf-8"))
        except (ValueError, OSError) as error:
            raise SourceError(f"{path} cannot be read: {error}", field="source", hint="get this file again") from error
    for path in (path for part in parts.values() for path in part.files if path.suffix == ".safetensors"):
        try:
            # The header says how long the file must be.
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path} is damaged: {error}", field="source", hint="get this file again") from error
    for component, part in parts.items():
        logger.info("%s (%s): %s", component, part.form, ", ".join(map(str, part.files)) or part.folder)
    return parts


def _read(folder: Path, load: Callable[[], tuple[Any, Mapping[str, Any]]], component: str = "") -> Any:
    """Run a from_pretrained that reports, and hold it to having filled exactly the network's tensors."""
    try:
        with _without_bars():
            model, report = load()
    except Exception as error:
        # Config values reach constructors unchecked, so anything may come out of them.
        raise SourceError(
            f"{folder} cannot be loaded: its config.json and weights do not fit each other ({_first(error)})",
            field="source",
            hint="get both again",
        ) from error
    unused = _UNUSED.get(component)
    # Both libraries list names, or (name, shape, shape) where shapes differ.
    missing, unexpected, mismatched = (
        [key if isinstance(key, str) else str(key[0]) for key in report.get(f"{kind}_keys", ())]
        for kind in ("missing", "unexpected", "mismatched")
    )
    unexpected = [key for key in unexpected if unused is None or not unused.match(key)]
    missing = [key for key in missing if key != "masked_spec_embed"]
    missing += [name for name, tensor in model.named_parameters() if tensor.is_meta and name not in missing]
    for what, keys in (("lacks", missing), ("has the unknown", unexpected), ("has another shape of", mismatched)):
        if keys:
            shown = ", ".join(sorted(keys)[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise SourceError(
                f"{folder} {what} {shown}", field="source", hint="do config.json and weights belong together?"
            )
    return model.eval()


def _load_transformer(part: Part, dtype: torch.dtype) -> MultiTalkTransformer3DModel:
    if part.form != "diffusers" or any(path.parent != part.folder for path in part.files):
        return cast("MultiTalkTransformer3DModel", read_part("transformer", part, dtype))
    model: MultiTalkTransformer3DModel = _read(
        part.folder,
        lambda: MultiTalkTransformer3DModel.from_pretrained(
            part.folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True
        ),
    )
    return model


def _load_vae(part: Part) -> Any:
    from diffusers import AutoencoderKLWan

    if part.form != "diffusers":
        return read_part("vae", part, torch.float32)
    return _read(
        part.folder,
        lambda: AutoencoderKLWan.from_pretrained(
            part.folder, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
        ),
    )


def _load_encoders(parts: Mapping[str, Part], dtype: torch.dtype) -> tuple[Any, Any, Any]:
    from transformers import CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model

    def load(name: str, kind: Any, dtype: torch.dtype) -> Any:
        part = parts[name]
        if part.form != "diffusers":
            return read_part(name, part, dtype)
        return _read(
            part.folder,
            lambda: kind.from_pretrained(part.folder, dtype=dtype, local_files_only=True, output_loading_info=True),
            name,
        )

    return (
        load("text_encoder", UMT5EncoderModel, dtype),
        load("image_encoder", CLIPVisionModel, dtype),
        load("audio_encoder", Wav2Vec2Model, torch.float32),
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep both libraries from drawing bars; what was enabled is so again afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [bars for bars in (diffusers_logging, transformers_logging) if bars.is_progress_bar_enabled()]
    for bars in cast("list[Any]", shown):
        bars.disable_progress_bar()
    try:
        yield
    finally:
        for bars in cast("list[Any]", shown):
            bars.enable_progress_bar()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise SourceError(
            f"{folder} cannot be loaded as a tokenizer ({_first(error)})", field="source", hint="get its files again"
        ) from error


def _first(error: Exception) -> str:
    # What follows the first sentence is a library's advice to programmers.
    line = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {line[:160]}" if line else type(error).__name__


def _check_fit(part: Part, transformer: Any, vae: Any, text: Any, image: Any, audio: Any) -> None:
    """Raise SourceError where the other parts are not made for the transformer, which is in `part`."""
    config = transformer.config
    tokens = (image.config.image_size // image.config.patch_size) ** 2 + 1
    pairs = (
        ("text_dim", config.text_dim, "text_encoder", text.config.d_model),
        ("image_dim", config.image_dim, "image_encoder", image.config.hidden_size),
        ("image_tokens", config.image_tokens, "image_encoder", tokens),
        ("audio_channels", config.audio_channels, "audio_encoder", audio.config.hidden_size),
        ("audio_layers", config.audio_layers, "audio_encoder", audio.config.num_hidden_layers),
        ("out_channels", config.out_channels, "vae", vae.config.z_dim),
        ("vae_scale_temporal", config.vae_scale_temporal, "vae", vae.config.scale_factor_temporal),
    )
    for key, wanted, other, given in pairs:
        if wanted != given:
            raise SourceError(
                f"{part.config or part.folder / 'config.json'} wants {key} {wanted}, {other} has {given}",
                field="source",
                hint="the parts are of different models",
            )


# --- LoRA -------------------------------------------------------------------------------------------------------------


def _read_lora(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise SourceError(f"no LoRA file {path}", field="lora", hint="it is looked for below the folder of the weights")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is damaged: {error}", field="lora", hint="get this file again") from error


def _merge(transformer: nn.Module, path: Path, scale: float) -> None:
    merger = LoraMerger(_read_lora(path), scale=scale)
    for name in [name for name, _ in transformer.named_parameters() if name in merger]:
        # Tensor by tensor: a second copy of the whole network would not fit.
        change_weight(transformer, name, lambda weight, name=name: merger.merge(name, weight))  # type: ignore[misc]
    _tell_coverage(path, merger.coverage())


def _tell_coverage(path: Path, coverage: Coverage) -> None:
    """Log what a LoRA changes, as a warning where some of it finds no tensor."""
    logger.info("%s changes %d tensors", path.name, len(coverage.matched))
    if coverage.unmatched:
        shown = ", ".join(coverage.unmatched[:3]) + (", ..." if len(coverage.unmatched) > 3 else "")
        logger.warning("%s: %d entries match no tensor: %s", path.name, len(coverage.unmatched), shown)


def _names(loras: Sequence[Lora]) -> str:
    return ", ".join(path.name for path, _ in loras) + (" is" if len(loras) == 1 else " are")

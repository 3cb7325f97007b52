"""A folder of weights -> Model: a network of Wan's kind and its encoders, ready to run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from engine.components import MultiplyingQuantiser, Quantiser, Reader
from engine.data import Weights
from engine.data.attention import Attend
from engine.data.cancel import CancelToken
from engine.errors import RequestError, SourceError, UnknownComponent
from engine.imports.deferred import without_compiler
from engine.loading import dynamic
from engine.loading.checkpoint import Keep
from engine.loading.compiling import Compiling, compile_blocks
from engine.loading.component import Component
from engine.loading.component_files import ComponentFiles, first_sentence, unusable_folder
from engine.loading.file_kinds import what_is
from engine.loading.fill import check_names
from engine.loading.layout import QUANTISED, ComponentLayout, describe_unread, find_parts
from engine.loading.lora import Coverage, LoraMerger, load_runtime_lora
from engine.loading.lora_alpha import StatedAlpha
from engine.loading.lora_file import read_lora_header
from engine.loading.lora_names import unmatched_warning
from engine.loading.placement import Placement, Profile, activation_bytes, place, reduce_memory, resolve_profile
from engine.loading.quantize import change_weight, is_block_linear
from engine.loading.safetensors_reader import AheadReader
from engine.machine.kernels import dispatched, head_refusal
from engine.machine.products import check_products
from engine.network.attention import prepare_attention, set_own_self_attention, set_self_attention_backend
from engine.network.audio import AudioEncoder
from engine.network.codec import LatentCodec, WanCodec
from engine.network.fused import set_fused
from engine.network.image import ImageEncoder
from engine.network.prompt_cache import PromptCache
from engine.network.sequence import check_heads
from engine.network.text import TextEncoder

logger = logging.getLogger(__name__)

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "audio_encoder")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUANTS = ("none", *QUANTISED)
LORA_MODES = ("runtime", "merged")

# Heads that audio encoder checkpoints contain and that are not used here.
_UNUSED = re.compile(r"quantizer\.|project_|lm_head\.|masked_spec_embed")


class PromptEncoder(Protocol):
    """Encodes prompts: (1, tokens, text_dim), at most `text_len` tokens; `lost` returns what it cuts off."""

    @property
    def text_len(self) -> int: ...

    def encode(self, prompt: str) -> Tensor: ...

    def lost(self, prompt: str) -> str: ...


class PictureEncoder(Protocol):
    """Encodes a picture (3, H, W), float32 -1 .. 1: (1, tokens, image_dim)."""

    def encode(self, pixels: Tensor) -> Tensor: ...


class VoiceEncoder(Protocol):
    """Encodes a voice (samples,), float32 mono 16 kHz: (frames, layers, channels)."""

    def encode(self, voice: Tensor, frames: int, *, cancel: CancelToken | None = None) -> Tensor: ...


class PartFiles(Protocol):
    """The files of a part, as `ComponentFiles`."""

    size: int

    def read(self, reader: Reader, device: str) -> nn.Module: ...


Lora = tuple[Path, float]
M = TypeVar("M", bound="Model")


@dataclass
class Model:
    """The parts of a loaded model and where they are.

    If the memory profile releases parts, transformer, codec, text and image work only inside `use`.
    """

    transformer: Any
    codec: LatentCodec
    text: PromptEncoder
    image: PictureEncoder
    audio: VoiceEncoder
    placement: Placement
    #: Where forwards run: "cuda" or "cpu". Audio is always encoded on the CPU.
    device: str
    loras: Loras = field(default_factory=lambda: Loras())
    #: Features of earlier prompts.
    prompts: PromptCache = field(default_factory=PromptCache)
    #: The memory profile in use; `reason` says why it was chosen, if it was "auto".
    memory: str = "none"
    reason: str = ""

    def use(self, name: str) -> AbstractContextManager[None]:
        """Have "transformer", "vae", "text_encoder" or "image_encoder" on the device inside a `with`."""
        return self.placement.use(name)

    @property
    def prompt_limit(self) -> int:
        """Most tokens of a prompt."""
        return self.text.text_len

    def lost(self, prompt: str) -> str:
        """Return what of a prompt is beyond the limit."""
        return self.text.lost(prompt)

    def modules(self) -> Iterator[tuple[str, Any]]:
        """Yield the networks that are in memory, by component."""
        parts: tuple[tuple[str, Any], ...] = (
            ("transformer", self.transformer),
            ("vae", getattr(self.codec, "vae", None)),
            ("text_encoder", getattr(self.text, "model", None)),
            ("image_encoder", getattr(self.image, "model", None)),
        )
        yield from ((name, module) for name, module in parts if module is not None)

    def set_loras(self, active: Sequence[Lora]) -> None:
        """Switch exactly the LoRAs `active` (file, scale) on, all others off.

        Raises RequestError if one was not loaded, or if LoRAs are merged and others are requested.
        """
        self.loras.choose(active)

    def close(self) -> None:
        """Release everything. The model cannot be used afterwards."""
        self.placement.close()
        self.prompts.clear()


@without_compiler()
def load_model(
    folder: Path,
    network: Any,
    kind: type[M],
    *,
    device: str,
    dtype: str,
    decode_dtype: str = "float32",
    quant: str = "none",
    quantiser: Quantiser | None = None,
    wanted: Weights | None = None,
    attention: str = "native",
    attend: Attend | None = None,
    memory: Profile | None = None,
    reader: Reader | None = None,
    loras: Sequence[Lora] = (),
    lora_mode: str = "runtime",
    compiling: Compiling | None = None,
    fused: bool = False,
    residual_dtype: str = "float32",
    processes: int = 1,
    divided: int | None = None,
    alone: bool = False,
) -> M:
    """Load a model from `folder`, which has each of COMPONENTS in a layout of `find_parts`. Nothing is downloaded.

    Args:
        folder: the weights; its files are not changed.
        network: the class of the transformer.
        kind: the class of the result.
        device: "cuda" or "cpu".
        dtype: "float32" or "bfloat16", for transformer, text and image encoder; the rest is float32.
        decode_dtype: "float32" or "bfloat16", for the VAE's decoder.
        quant: "none", one of `layout.QUANTISED`, which reads a quantised file and keeps it quantised, or the
            quantiser's name.
        quantiser: quantises the network's layers after they are read; None: they are not quantised.
        wanted: which file to use if there are several.
        attention: name of diffusers' attention backend, from an AttentionBackend.
        attend: computes self-attention in place of a backend of diffusers; `attention` is then only its name.
        memory: what is in memory and on the device at a time; None: everything on the device.
        reader: reads tensors from files; None: the engine's own.
        loras: files and scales. "merged": added to the weights. "runtime": loaded and switched off; see `set_loras`.
        lora_mode: "runtime" or "merged".
        compiling: how the blocks of the network are compiled; None: they are not.
        fused: whether norms and rotations run in Triton kernels.
        residual_dtype: "float32" or "bfloat16", for the tokens between the network's layers.
        processes: how many processes share a video.
        divided: among how many of them the tokens of a forward are divided; None: all.
        alone: load only the transformer of the large parts; the others cannot be used.

    Raises:
        SourceError: a file is missing, damaged or has other tensors than the network; each is named.
        ConfigError: a choice does not exist, or the device does not support it.
    """
    _choose("dtype", dtype, tuple(DTYPES))
    _choose("vae.decode_dtype", decode_dtype, tuple(DTYPES))
    if quantiser is None:
        _choose("quant", quant, QUANTS)
    _choose("residual_dtype", residual_dtype, tuple(DTYPES))
    _choose("lora.mode", lora_mode, LORA_MODES)
    profile = memory or Profile()
    files = check_files(folder, replace(wanted or Weights("", "", COMPONENTS), quant=quant))
    adapters = Loras(loras, lora_mode)

    products = quantiser.products if isinstance(quantiser, MultiplyingQuantiser) else None
    if products is not None and device == "cuda":
        check_products(products, dtype, torch.cuda.get_device_capability(), torch.cuda.get_device_name())

    def prepare(transformer: Any) -> None:
        adapters.merge(transformer)
        if quantiser is not None:
            quantiser.apply(transformer, is_block_linear)
            check(transformer)
        adapters.attach_adapters(transformer)
        if attend is None:
            set_self_attention_backend(transformer, attention)
        else:
            set_own_self_attention(transformer, attend)
        transformer.stream_dtype = DTYPES[residual_dtype]
        set_fused(transformer, fused)
        if compiling is not None:
            compile_blocks(transformer, compiling)

    def prepare_text(text_encoder: Any) -> None:
        cast("MultiplyingQuantiser", quantiser).apply_text(text_encoder)
        check(text_encoder)

    def check(network: Any) -> None:
        if device == "cuda":
            dynamic.check_layers(network)

    kept = None if quantiser is None else quantiser.cost()[0]
    # Values that a file stores in the format of the products become the layers' own.
    scaled = None if products is None else dynamic.FORMATS[products]
    text_options: dict[str, Any] = {}
    if isinstance(quantiser, MultiplyingQuantiser) and quantiser.text:
        keep_text = Keep("encoder.block.", scaled)
        text_options = {"finish": prepare_text, "kept": kept, "chosen": dynamic.is_text_linear, "keep": keep_text}
    parts = {
        "transformer": ComponentFiles(
            files["transformer"],
            "transformer",
            DTYPES[dtype],
            prepare,
            kept=kept,
            keep=Keep("blocks.", scaled),
            network=network,
        ),
        "vae": ComponentFiles(files["vae"], "vae", torch.float32, lambda vae: reduce_memory(vae, profile)),
        "text_encoder": ComponentFiles(files["text_encoder"], "text_encoder", DTYPES[dtype], **text_options),
        "image_encoder": ComponentFiles(files["image_encoder"], "image_encoder", DTYPES[dtype]),
    }
    meta_models: dict[str, Any] = {name: part.meta_model for name, part in parts.items()}
    check_heads(meta_models["transformer"].config.num_attention_heads, divided or processes)
    if attend is None:
        _check_heads(attention, meta_models["transformer"].config.attention_head_dim)
        prepare_attention(attention)
    hearing = load_wav2vec2(files["audio_encoder"].folder)
    _check_fit(
        files["transformer"],
        meta_models["transformer"],
        meta_models["vae"],
        meta_models["text_encoder"],
        meta_models["image_encoder"],
        hearing,
    )

    text_len = int(meta_models["transformer"].config.text_len)
    text = TextEncoder(load_tokenizer(files["tokenizer"].folder), meta_models["text_encoder"], text_len)
    image = ImageEncoder(meta_models["image_encoder"])
    codec = WanCodec(meta_models["vae"], DTYPES[decode_dtype])

    activations = activation_bytes(
        profile.window, meta_models["transformer"].config, codec.spatial, DTYPES[dtype].itemsize
    )
    loaded = {name: part for name, part in parts.items() if name == "transformer" or not alone}
    sizes = {name: part.size for name, part in loaded.items()}
    profile, reason = resolve_profile(profile, sizes, activations=activations, device=device, processes=processes)
    if reason:
        logger.info("memory=auto chose %s: %s", profile.name, reason)
    model = kind(
        transformer=meta_models["transformer"],
        codec=codec,
        text=text,
        image=image,
        audio=AudioEncoder(hearing),
        placement=place(Profile(), {}, device=device),
        device=device,
        loras=adapters,
        prompts=PromptCache(profile.prompts * 2**20),
        memory=profile.name,
        reason=reason,
    )

    place_parts(model, loaded, profile, reader)
    return model


def place_parts(model: Model, parts: Mapping[str, PartFiles], profile: Profile, reader: Reader | None = None) -> None:
    """Have the parts of `model` read, and kept where `profile` says; `reader` None: the engine's own.

    `parts` are some of "transformer", "vae", "text_encoder" and "image_encoder".
    """

    def set_transformer(transformer: Any) -> None:
        model.transformer = transformer
        if transformer is None:
            model.loras.forget()

    # Bound now: a codec or encoder may be wrapped later, and its module is still replaced.
    codec: Any = model.codec
    setters: dict[str, Callable[[Any], None]] = {
        "transformer": set_transformer,
        "vae": codec.set_module,
        "text_encoder": partial(setattr, model.text, "model"),
        "image_encoder": partial(setattr, model.image, "model"),
    }
    components = {
        name: Component(name, part.size, partial(part.read, reader or AheadReader()), setters[name])
        for name, part in parts.items()
    }
    model.placement = place(profile, components, device=model.device)


def _check_heads(attention: str, head_dim: int) -> None:
    """Raise ConfigError if a kernel of diffusers does not work with the network's heads."""
    kernel = dispatched(attention)
    if kernel is not None and (problem := head_refusal(kernel, head_dim)) is not None:
        raise problem


def _choose(field: str, name: str, choices: tuple[str, ...]) -> None:
    if name not in choices:
        raise UnknownComponent(field, name, choices)


# --- files ------------------------------------------------------------------------------------------------------------


def check_files(folder: Path, weights: Weights) -> Mapping[str, ComponentLayout]:
    """Return the components; raise SourceError for missing or damaged files before any large file is read."""
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise SourceError(f"no folder {folder}", field="source")
    parts, absent = find_parts(folder, weights)
    if absent:
        unread = "".join(f"; {line}" for line in describe_unread(folder, weights))
        raise SourceError(f"{folder} lacks {', '.join(absent)}{unread}", field="source", hint="get the weights again")
    own = sorted(part.folder for part in parts.values() if part.form == "diffusers")
    for path in (path for below in own for path in sorted(below.glob("*.json"))):
        try:
            json.loads(path.read_text("utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise SourceError(f"{path} cannot be read: {error}", field="source", hint="get this file again") from error
    for path in (path for part in parts.values() for path in part.files if path.suffix == ".safetensors"):
        try:
            # The header says how long the file must be.
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            if (kind_and_hint := what_is(path)) is not None:
                raise SourceError(f"{path} is {kind_and_hint[0]}", field="source", hint=kind_and_hint[1]) from error
            raise SourceError(f"{path} is damaged: {error}", field="source", hint="get this file again") from error
    for component, part in parts.items():
        logger.info("%s (%s): %s", component, part.form, ", ".join(map(str, part.files)) or part.folder)
    return parts


# --- encoders and configs ---------------------------------------------------------------------------------------------


def load_wav2vec2(folder: Path) -> Any:
    """Load the audio encoder with transformers: it is small, and its older files need more than renaming."""
    from transformers import Wav2Vec2Model

    kind: Any = Wav2Vec2Model
    try:
        with _without_bars():
            model, report = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:
        raise unusable_folder(folder, error) from error
    # Names, or (name, shape, shape) for mismatched shapes.
    missing, unexpected, mismatched = (
        {key if isinstance(key, str) else str(key[0]) for key in report.get(f"{kind}_keys", ())}
        for kind in ("missing", "unexpected", "mismatched")
    )
    check_names(
        folder,
        lacking=missing - {"masked_spec_embed"},
        unknown={key for key in unexpected if not _UNUSED.match(key)},
        misshapen=mismatched,
    )
    return model.eval()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Switch the progress bars of both libraries off inside the block."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [bars for bars in (diffusers_logging, transformers_logging) if bars.is_progress_bar_enabled()]
    for bars in cast("list[Any]", libraries):
        bars.disable_progress_bar()
    try:
        yield
    finally:
        for bars in cast("list[Any]", libraries):
            bars.enable_progress_bar()


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        # Without trust_remote_code=False it asks at the terminal whether to run code in the tokenizer's folder.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise SourceError(
            f"{folder} cannot be loaded as a tokenizer ({first_sentence(error)})",
            field="source",
            hint="get its files again",
        ) from error


def _check_fit(part: ComponentLayout, transformer: Any, vae: Any, text: Any, image: Any, audio: Any) -> None:
    """Raise SourceError if a part does not fit the transformer, which is in `part`."""
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
    for key, expected, other, actual in pairs:
        if expected != actual:
            raise SourceError(
                f"{part.config or part.folder / 'config.json'} wants {key} {expected}, {other} has {actual}",
                field="source",
                hint="the parts are of different models",
            )


# --- LoRA -------------------------------------------------------------------------------------------------------------


class Switched(Protocol):
    """A LoRA attached to a network."""

    def enable(self, scale: float = 1.0) -> None: ...

    def disable(self) -> None: ...


class Loras:
    """The LoRAs of a model and which are on; this survives releasing and reading the network again."""

    def __init__(self, loras: Sequence[Lora] = (), mode: str = "runtime") -> None:
        """Read nothing yet. "merged": all `loras` are merged into the weights; "runtime": each can be switched."""
        self.loras = tuple(loras)
        self.mode = mode
        self.attached: dict[Path, Switched] = {}
        self._scales: dict[Path, float] = {}

    def merge(self, transformer: nn.Module) -> None:
        """Merge them into the weights, if that is the mode. Raises SourceError."""
        for path, scale in self.loras if self.mode == "merged" else ():
            _merge(transformer, path, scale)

    def attach_adapters(self, transformer: nn.Module) -> None:
        """Attach them to the network, if that is the mode, and switch on the active ones."""
        self.attached = {}
        for index, path in enumerate(dict(self.loras) if self.mode == "runtime" else ()):
            state, stated = _read_lora(path)
            lora = load_runtime_lora(transformer, state, f"lora{index}", stated=stated)
            self.attached[path] = lora
            _log_coverage(path, lora.coverage)
        self.switch()

    def forget(self) -> None:
        """Drop references to the network; which LoRAs are on stays the same for the next one."""
        self.attached = {}

    def choose(self, active: Sequence[Lora]) -> None:
        """See `Model.set_loras`."""
        if self.mode == "merged" and self.loras:
            if set(active) != set(self.loras):
                raise RequestError(
                    f"{_names(self.loras)} merged into the weights and cannot be changed for one request",
                    field="lora",
                    hint="start an engine with lora.mode=runtime, or with the same LoRAs",
                )
            return
        loaded = dict(self.loras)
        for path, _ in active:
            if path not in loaded:
                raise RequestError(
                    f"the LoRA {path.name!r} is not loaded", field="lora", hint="name it when the engine starts"
                )
        self._scales = dict(active)
        self.switch()

    def switch(self) -> None:
        """Switch exactly the active LoRAs on in the network."""
        for path, lora in self.attached.items():
            if path in self._scales:
                lora.enable(self._scales[path])
            else:
                lora.disable()


def _read_lora(path: Path) -> tuple[dict[str, Tensor], tuple[StatedAlpha, ...]]:
    """Return the tensors of a LoRA's file, and what its header and config state about alpha. Raises SourceError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_lora_header(path)
    try:
        return load_file(path), header.stated
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is damaged: {error}", field="lora", hint="get this file again") from error


def _merge(transformer: nn.Module, path: Path, scale: float) -> None:
    state, stated = _read_lora(path)
    merger = LoraMerger(state, scale=scale, stated=stated)
    for name in [name for name, _ in transformer.named_parameters() if name in merger]:
        # One tensor at a time: a second copy of the whole network would not fit.
        change_weight(transformer, name, lambda weight, name=name: merger.merge(name, weight))  # type: ignore[misc]
    _log_coverage(path, merger.coverage())


def _log_coverage(path: Path, coverage: Coverage) -> None:
    """Log what a LoRA changes. Results contain it, too: `engine.assembly.compatibility.look_at_loras`."""
    logger.info("%s changes %d tensors", path.name, len(coverage.matched))
    if coverage.unmatched:
        logger.warning(unmatched_warning(path.name, coverage.entries, coverage.unmatched))


def _names(loras: Sequence[Lora]) -> str:
    return ", ".join(path.name for path, _ in loras) + (" is" if len(loras) == 1 else " are")

"""A folder of weights -> Model: the network and its encoders, ready to run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from engine.components import Quantiser, Reader
from engine.data import Weights
from engine.data.cancel import CancelToken
from engine.errors import RequestError, SourceError, UnknownComponent
from engine.loading.component import Component
from engine.loading.component_files import OnDisk, first_sentence, unfit
from engine.loading.file_kinds import what_is
from engine.loading.fill import check_names
from engine.loading.layout import QUANTISED, Part, find_parts, seen
from engine.loading.lora import Coverage, LoraMerger, RuntimeLora, load_runtime_lora
from engine.loading.lora_alpha import Told
from engine.loading.lora_file import read_lora_header
from engine.loading.lora_names import tell_unmatched
from engine.loading.placement import Placement, Profile, activation_bytes, lighten, place, settle
from engine.loading.quantize import change_weight, is_block_linear
from engine.loading.safetensors_reader import AheadReader
from engine.multitalk.attention import set_self_attention_backend
from engine.multitalk.audio import AudioEncoder
from engine.multitalk.codec import LatentCodec, WanCodec
from engine.multitalk.image import ImageEncoder
from engine.multitalk.sequence import check_heads
from engine.multitalk.text import TextEncoder
from engine.multitalk.transformer import MultiTalkTransformer3DModel

logger = logging.getLogger(__name__)

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "audio_encoder")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUANTS = ("none", *QUANTISED)
LORA_MODES = ("runtime", "merged")

# Heads that checkpoints of the audio encoder bring along and that are not used here.
_UNUSED = re.compile(r"quantizer\.|project_|lm_head\.|masked_spec_embed")


class Prompted(Protocol):
    """Encodes prompts: (1, tokens, text_dim), of at most `text_len` tokens; `lost` is what it cuts off."""

    @property
    def text_len(self) -> int: ...

    def encode(self, prompt: str) -> Tensor: ...

    def lost(self, prompt: str) -> str: ...


class Seeing(Protocol):
    """Encodes a picture (3, H, W), float32 -1 .. 1: (1, tokens, image_dim)."""

    def encode(self, pixels: Tensor) -> Tensor: ...


class Hearing(Protocol):
    """Encodes a voice (samples,), float32 mono 16 kHz: (frames, layers, channels)."""

    def encode(self, voice: Tensor, frames: int, *, cancel: CancelToken | None = None) -> Tensor: ...


Lora = tuple[Path, float]


@dataclass
class Model:
    """The parts of a loaded model and where they are.

    Under a profile that releases parts, transformer, codec, text and image work inside of `use` alone.
    """

    transformer: MultiTalkTransformer3DModel
    codec: LatentCodec
    text: Prompted
    image: Seeing
    audio: Hearing
    placement: Placement
    #: Where forwards run: "cuda" or "cpu". Audio is always encoded on the CPU.
    device: str
    loras: Loras = field(default_factory=lambda: Loras())
    #: The memory profile in use; where it was not named, `reason` says why it is this one.
    memory: str = "none"
    reason: str = ""

    def use(self, name: str) -> AbstractContextManager[None]:
        """Have "transformer", "vae", "text_encoder" or "image_encoder" on the device inside a `with`."""
        return self.placement.use(name)

    def set_loras(self, active: Sequence[Lora]) -> None:
        """Have exactly the LoRAs `active` (file, scale) on from now on.

        Raises RequestError where one was not loaded, or where LoRAs are merged and others are asked for.
        """
        self.loras.choose(active)

    def close(self) -> None:
        """Take everything off the device. The model is of no use afterwards."""
        self.placement.close()


def load_model(
    folder: Path,
    *,
    device: str,
    dtype: str,
    quant: str = "none",
    quantiser: Quantiser | None = None,
    wanted: Weights | None = None,
    attention: str = "native",
    memory: Profile | None = None,
    reader: Reader | None = None,
    loras: Sequence[Lora] = (),
    lora_mode: str = "runtime",
    processes: int = 1,
    alone: bool = False,
) -> Model:
    """Load a model from `folder`, which holds each of COMPONENTS in a layout of `find_parts`; nothing is downloaded.

    Args:
        folder: the weights; no file in it is changed.
        device: "cuda" or "cpu".
        dtype: "float32" or "bfloat16", of transformer, text and image encoder; the rest is float32.
        quant: "none", one of `layout.QUANTISED`, which reads a quantised file and keeps it so, or the quantiser's name.
        quantiser: what the network's layers are quantised with once they are read; None: they stay as they are.
        wanted: which of several files is meant.
        attention: name of diffusers' attention backend, as an AttentionBackend resolves it.
        memory: what is in memory and on the device at a time; None: all of it.
        reader: how tensors come from their files; None: the engine's own.
        loras: files and scales. "merged": put into the weights. "runtime": loaded and switched off; see `set_loras`.
        lora_mode: "runtime" or "merged".
        processes: how many share a forward.
        alone: of the large parts only the transformer comes to memory; the others are not used then.

    Raises:
        SourceError: a file is absent, damaged or has other tensors than the network, each named.
        ConfigError: a choice that does not exist or that the device cannot run.
    """
    _choose("dtype", dtype, tuple(DTYPES))
    if quantiser is None:
        _choose("quant", quant, QUANTS)
    _choose("lora.mode", lora_mode, LORA_MODES)
    profile = memory or Profile()
    found = _check_files(folder, replace(wanted or Weights("", "", COMPONENTS), quant=quant))
    adapters = Loras(loras, lora_mode)

    def dress(transformer: Any) -> None:
        adapters.merge(transformer)
        if quantiser is not None:
            quantiser.apply(transformer, is_block_linear)
        adapters.lay_beside(transformer)
        set_self_attention_backend(transformer, attention)

    kept = None if quantiser is None else quantiser.cost()[0]
    parts = {
        "transformer": OnDisk(found["transformer"], "transformer", DTYPES[dtype], dress, kept=kept),
        "vae": OnDisk(found["vae"], "vae", torch.float32, lambda vae: lighten(vae, profile)),
        "text_encoder": OnDisk(found["text_encoder"], "text_encoder", DTYPES[dtype]),
        "image_encoder": OnDisk(found["image_encoder"], "image_encoder", DTYPES[dtype]),
    }
    shells: dict[str, Any] = {name: part.shell for name, part in parts.items()}
    check_heads(shells["transformer"].config.num_attention_heads, processes)
    hearing = _load_audio(found["audio_encoder"].folder)
    _check_fit(
        found["transformer"],
        shells["transformer"],
        shells["vae"],
        shells["text_encoder"],
        shells["image_encoder"],
        hearing,
    )

    text_len = int(shells["transformer"].config.text_len)
    text = TextEncoder(_load_tokenizer(found["tokenizer"].folder), shells["text_encoder"], text_len)
    image, codec = ImageEncoder(shells["image_encoder"]), WanCodec(shells["vae"])

    activations = activation_bytes(profile.window, shells["transformer"].config, codec.spatial, DTYPES[dtype].itemsize)
    loaded = {name: part for name, part in parts.items() if name == "transformer" or not alone}
    sizes = {name: part.size for name, part in loaded.items()}
    profile, reason = settle(profile, sizes, activations=activations, device=device, processes=processes)
    if reason:
        logger.info("memory=auto picked %s: %s", profile.name, reason)
    model = Model(
        transformer=shells["transformer"],
        codec=codec,
        text=text,
        image=image,
        audio=AudioEncoder(hearing),
        placement=place(Profile(), {}, device=device),
        device=device,
        loras=adapters,
        memory=profile.name,
        reason=reason,
    )

    def take_transformer(transformer: Any) -> None:
        model.transformer = transformer
        if transformer is None:
            adapters.forget()

    takers: dict[str, Callable[[Any], None]] = {
        "transformer": take_transformer,
        "vae": codec.take,
        "text_encoder": partial(setattr, text, "model"),
        "image_encoder": partial(setattr, image, "model"),
    }
    components = {
        name: Component(name, part.size, partial(part.read, reader or AheadReader()), takers[name])
        for name, part in loaded.items()
    }
    model.placement = place(profile, components, device=device)
    return model


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
        there = "".join(f"; {line}" for line in seen(folder, wanted))
        raise SourceError(f"{folder} lacks {', '.join(absent)}{there}", field="source", hint="get the weights again")
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
            if (told := what_is(path)) is not None:
                raise SourceError(f"{path} is {told[0]}", field="source", hint=told[1]) from error
            raise SourceError(f"{path} is damaged: {error}", field="source", hint="get this file again") from error
    for component, part in parts.items():
        logger.info("%s (%s): %s", component, part.form, ", ".join(map(str, part.files)) or part.folder)
    return parts


# --- encoders and configs ---------------------------------------------------------------------------------------------


def _load_audio(folder: Path) -> Any:
    """Load the audio encoder as transformers does: small, and the one whose older files need more than new names."""
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
        raise unfit(folder, error) from error
    # Names, or (name, shape, shape) where shapes differ.
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
        # Without the word it asks at the terminal whether to run code that lies beside the tokenizer.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise SourceError(
            f"{folder} cannot be loaded as a tokenizer ({first_sentence(error)})",
            field="source",
            hint="get its files again",
        ) from error


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


class Loras:
    """The LoRAs of a model: they stay chosen while the network they belong to is released and read again."""

    def __init__(self, given: Sequence[Lora] = (), mode: str = "runtime") -> None:
        """Read nothing yet. "merged": all of `given` are in the weights; "runtime": each can be switched."""
        self.given = tuple(given)
        self.mode = mode
        self.beside: dict[Path, RuntimeLora] = {}
        self._scales: dict[Path, float] = {}

    def merge(self, transformer: nn.Module) -> None:
        """Put them into the weights, where that is the mode. Raises SourceError."""
        for path, scale in self.given if self.mode == "merged" else ():
            _merge(transformer, path, scale)

    def lay_beside(self, transformer: nn.Module) -> None:
        """Load them beside the weights, where that is the mode, and switch on those that are chosen."""
        self.beside = {}
        for index, path in enumerate(dict(self.given) if self.mode == "runtime" else ()):
            state, told = _read_lora(path)
            self.beside[path] = load_runtime_lora(transformer, state, f"lora{index}", told=told)
            _log_coverage(path, self.beside[path].coverage)
        self._switch()

    def forget(self) -> None:
        """Let go of the network; what is chosen stays chosen for the next one."""
        self.beside = {}

    def choose(self, active: Sequence[Lora]) -> None:
        """See `Model.set_loras`."""
        if self.mode == "merged" and self.given:
            if set(active) != set(self.given):
                raise RequestError(
                    f"{_names(self.given)} merged into the weights and cannot be changed for one request",
                    field="lora",
                    hint="start an engine with lora.mode=runtime, or with the same LoRAs",
                )
            return
        known = dict(self.given)
        for path, _ in active:
            if path not in known:
                raise RequestError(
                    f"the LoRA {path.name!r} is not loaded", field="lora", hint="name it when the engine starts"
                )
        self._scales = dict(active)
        self._switch()

    def _switch(self) -> None:
        for path, lora in self.beside.items():
            if path in self._scales:
                lora.enable(self._scales[path])
            else:
                lora.disable()


def _read_lora(path: Path) -> tuple[dict[str, Tensor], tuple[Told, ...]]:
    """Return the tensors of a LoRA's file, and what it says about alpha beside them. Raises SourceError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_lora_header(path)
    try:
        return load_file(path), header.told
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is damaged: {error}", field="lora", hint="get this file again") from error


def _merge(transformer: nn.Module, path: Path, scale: float) -> None:
    state, told = _read_lora(path)
    merger = LoraMerger(state, scale=scale, told=told)
    for name in [name for name, _ in transformer.named_parameters() if name in merger]:
        # Tensor by tensor: a second copy of the whole network would not fit.
        change_weight(transformer, name, lambda weight, name=name: merger.merge(name, weight))  # type: ignore[misc]
    _log_coverage(path, merger.coverage())


def _log_coverage(path: Path, coverage: Coverage) -> None:
    """Log what a LoRA changes. The answer has it, too: `engine.assembly.compatibility.look_at_loras`."""
    logger.info("%s changes %d tensors", path.name, len(coverage.matched))
    if coverage.unmatched:
        logger.warning(tell_unmatched(path.name, coverage.entries, coverage.unmatched))


def _names(loras: Sequence[Lora]) -> str:
    return ", ".join(path.name for path, _ in loras) + (" is" if len(loras) == 1 else " are")

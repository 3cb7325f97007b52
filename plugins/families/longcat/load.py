"""A folder of weights -> LongCatModel: the network and its encoders, ready to run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from engine.components import MultiplyingQuantiser, Quantiser, Reader
from engine.data import Weights
from engine.data.attention import Attend
from engine.errors import ConfigError, SourceError
from engine.imports.deferred import without_compiler
from engine.loading.component_files import ComponentFiles
from engine.loading.layout import ComponentLayout
from engine.loading.model import DTYPES, Lora, check_files, load_tokenizer, load_wav2vec2, place_parts
from engine.loading.placement import Profile, place, reduce_memory, resolve_profile
from engine.machine.profiles import allowance
from engine.network.audio import AudioEncoder
from engine.network.codec import WanCodec
from engine.network.fused import set_fused
from engine.network.prompt_cache import PromptCache
from engine.network.text import TextEncoder
from plugins.families.longcat.attention import set_self_attention_backend
from plugins.families.longcat.frames import FrameLayout
from plugins.families.longcat.lora import AvatarLoras
from plugins.families.longcat.model import LongCatModel
from plugins.families.longcat.precision import is_quantised_linear
from plugins.families.longcat.settings import LongCatConfig
from plugins.families.longcat.sizes import cache_bytes
from plugins.families.longcat.weights import AvatarFiles
from plugins.families.longcat.whisper import load_whisper

logger = logging.getLogger(__name__)


@without_compiler()
def load_longcat(
    folder: Path,
    settings: LongCatConfig,
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
    fused: bool = False,
    residual_dtype: str = "float32",
    **unused: Any,
) -> LongCatModel:
    """Load a model from `folder`; the arguments are those of `engine.loading.model.load_model`.

    Those in `unused` are for what the family's config refuses: compiled blocks, and several processes. Raises
    SourceError, and ConfigError for an attention that is computed from the grid of the tokens.
    """
    if attend is not None:
        raise ConfigError(
            f"attention={attention} computes attention from the grid of the tokens, and groups of this network's "
            "frames see different ones",
            field="attention",
            hint="choose attention=auto",
        )
    if isinstance(quantiser, MultiplyingQuantiser):
        raise ConfigError(
            "products in 8 bits were not tested with this network", field="quant", hint="choose quant=int8"
        )
    profile, exact = memory or Profile(), DTYPES[dtype]
    needed = wanted or Weights("", "", settings.components, find=type(settings).find_parts)
    files = check_files(folder, replace(needed, quant=quant))
    adapters = AvatarLoras(loras, lora_mode)

    def prepare(network: Any) -> None:
        adapters.merge(network)
        if quantiser is not None:
            quantiser.apply(network, is_quantised_linear)
        adapters.attach_adapters(network)
        set_self_attention_backend(network, attention)
        network.stream_dtype = DTYPES[residual_dtype]
        if settings.rounded_times:
            network.time_dtype = DTYPES["bfloat16"]
        set_fused(network, fused)

    where = files["transformer"].folder
    parts: dict[str, AvatarFiles | ComponentFiles] = {
        "transformer": AvatarFiles(where, exact, prepare, kept=None if quantiser is None else quantiser.cost()),
        "vae": ComponentFiles(files["vae"], "vae", DTYPES["float32"], lambda vae: reduce_memory(vae, profile)),
        "text_encoder": ComponentFiles(files["text_encoder"], "text_encoder", exact),
    }
    meta: dict[str, Any] = {name: part.meta_model for name, part in parts.items()}
    config = meta["transformer"].config
    hearing = _load_audio(files["audio_encoder"].folder, settings.version, reader)
    _check_fit(files["transformer"], config, meta["vae"], meta["text_encoder"], hearing.model, settings.version)
    text = TextEncoder(load_tokenizer(files["tokenizer"].folder), meta["text_encoder"], int(config.text_len))
    codec = WanCodec(meta["vae"], DTYPES[decode_dtype])
    profile, reason = resolve_profile(
        profile,
        {name: part.size for name, part in parts.items()},
        activations=_working_bytes(profile.window, config, codec.spatial, exact.itemsize, kept=settings.keep_keys),
        device=device,
    )
    if reason:
        logger.info("memory=auto chose %s: %s", profile.name, reason)
    model = LongCatModel(
        transformer=meta["transformer"],
        codec=codec,
        text=text,
        # The picture enters as a latent frame.
        image=cast("Any", None),
        audio=hearing,
        placement=place(Profile(), {}, device=device),
        device=device,
        loras=adapters,
        prompts=PromptCache(profile.prompts * 2**20),
        memory=profile.name,
        reason=reason,
        settings=settings,
    )

    place_parts(model, parts, profile, reader)
    return model


def _load_audio(folder: Path, version: str, reader: Reader | None) -> Any:
    if version == "1.5":
        return load_whisper(folder, reader=reader)
    return AudioEncoder(load_wav2vec2(folder))


def _working_bytes(window: tuple[int, int, int], config: Any, spatial: int, itemsize: int, *, kept: bool) -> int:
    """Return the bytes reserved for activations, and for keys and values of given frames, beside the weights."""
    frames, height, width = window
    latents = 2 + (frames - 1) // config.vae_scale
    rows, columns = height // spatial, width // spatial
    tokens = latents * (rows // config.patch_size[1]) * (columns // config.patch_size[2])
    # A continuation's given frames: the picture, and usually four of the window before.
    given = FrameLayout(latents, min(5, latents - 1), latents > 2)
    cached = cache_bytes(config, given, rows, columns, value=itemsize) if kept else 0
    return allowance(int(tokens), int(config.hidden_size), itemsize) + cached


def _check_fit(part: ComponentLayout, config: Any, vae: Any, text: Any, audio: Any, version: str) -> None:
    """Raise SourceError if a part does not fit the transformer, which is in `part`."""
    whisper = version == "1.5"
    pairs = (
        ("caption_channels", config.caption_channels, "text_encoder", text.config.d_model),
        ("audio_channel", config.audio_channel, "audio_encoder", audio.config.hidden_size),
        ("audio_block", config.audio_block, "audio_encoder", 5 if whisper else audio.config.num_hidden_layers),
        ("out_channels", config.out_channels, "vae", vae.config.z_dim),
        ("vae_scale", config.vae_scale, "vae", vae.config.scale_factor_temporal),
    )
    for key, expected, other, actual in pairs:
        if expected != actual:
            raise SourceError(
                f"{part.folder / 'config.json'} wants {key} {expected}, {other} of version {version} has {actual}",
                field="source",
                hint="the parts are of different models or versions",
            )

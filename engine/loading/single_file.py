"""Files of a transformer's weights, in any format that is read -> the network alone, for pipelines of diffusers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from engine.errors import ConfigError, EngineError, SourceError
from engine.loading import checkpoint
from engine.loading.component_files import BUILDING
from engine.loading.fill import check_names
from engine.loading.key_map import engine_name, is_audio, to_engine_config
from engine.loading.layout import ComponentLayout, loose_transformer
from engine.loading.quantize import shape_of

Shapes = Mapping[str, tuple[int, ...]]

_FIELD = "from_single_file"
#: Arguments of diffusers' method that only concern the Hub, of which nothing is fetched here, or have no effect here.
_IGNORED = {
    "cache_dir",
    "disable_mmap",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "proxies",
    "revision",
    "token",
}
#: Channels and layers of Wav2Vec2's base model: the tensors only tell their product.
_HEARD = (768, 12)
_HEAD = 128
_STRIDE = 4


class FromSingleFile:
    """Adds `from_single_file` to a network of Wan's kind with audio attention."""

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str
        | PathLike[str]
        | Sequence[str | PathLike[str]]
        | Mapping[str, Tensor],
        *,
        config: str | PathLike[str] | Mapping[str, Any] | None = None,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        **unused: Any,
    ) -> Self:
        """Load the network from weight files on this machine, as diffusers' classes do. Nothing is downloaded.

        Args:
            pretrained_model_link_or_path_or_dict: a file, or several: shards, and audio weights beside Wan's. Read are
                safetensors and GGUF files, and int8 and float8 files of quanto with their map beside them; names are
                diffusers', Wan's or ComfyUI's (docs/weights.md). Or the tensors themselves, by such names.
            config: a config as a mapping, its JSON file, or a folder with config.json. None: config.json beside the
                file, else sizes from the tensors' shapes, which is right for published sizes.
            subfolder: the folder of the config in `config`.
            torch_dtype: a floating dtype; the parts that `from_pretrained` keeps in float32 stay so. None: float32.
            dtype: another name of it.
            device: where the network is put. None: the CPU.
            device_map: another name of it, as diffusers' methods have it: one device, or {"": device}.
            quantization_config: for a GGUF file, diffusers' GGUFQuantizationConfig, whose `compute_dtype` counts.
            unused: diffusers' arguments about the Hub, which have no effect. Others are refused.

        Returns:
            The network, in evaluation mode. Weights of GGUF and quanto files stay packed in the blocks.

        Raises:
            SourceError: a file is missing, damaged or has other tensors than the network; each is named.
            ConfigError: an argument cannot be used.
        """
        if others := sorted(unused.keys() - _IGNORED):
            raise ConfigError(f"there is no argument {others[0]!r}", field=_FIELD, hint="leave it out")
        where = _one_device(device, device_map)
        given = pretrained_model_link_or_path_or_dict
        if isinstance(given, Mapping):
            source: _Files | _Tensors = _Tensors(given)
        else:
            source = _Files([given] if isinstance(given, str | PathLike) else list(given))
        chosen = dtype or torch_dtype
        if quantization_config is not None:
            chosen = source.packed_dtype(quantization_config, chosen)
        shapes = source.shapes()
        if not any(map(is_audio, shapes)):
            raise SourceError(
                f"{source.names} has no audio weights",
                field=_FIELD,
                hint="also give their file: from_single_file([FILE, 'multitalk.safetensors'])",
            )
        read = _read_config(config, subfolder, source.config)
        arguments = sizes_of(shapes) if read is None else read
        with BUILDING, init_empty_weights():
            try:
                network: Any = _build(cls, arguments)
            except Exception as error:
                # Config values reach constructors unchecked, so any error is possible.
                what = error.what if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
                raise SourceError(f"no network can be built: {what}", field="config", hint="give config=") from error
        source.fill(network, chosen or torch.float32)
        loaded: Self = network.to(where).eval()
        return loaded


def _one_device(device: Any, device_map: Any) -> torch.device:
    field = "device" if device_map is None else "device_map"
    hint = "give one device, such as cpu, cuda or cuda:1"
    if device_map is not None and device is not None:
        raise ConfigError("both are given", field="device, device_map", hint="give one of them")
    named = device if device_map is None else device_map
    if isinstance(named, Mapping) and named.keys() == {""}:
        named = named[""]
    try:
        return torch.device("cpu" if named is None else named)
    except (TypeError, RuntimeError) as error:
        what = "the network is put on one device" if device_map is not None else f"there is no device {named!r}"
        raise ConfigError(what, field=field, hint=hint) from error


def sizes_of(shapes: Shapes) -> dict[str, Any]:
    """Return the constructor's arguments for the tensors of a file, by our names, of published sizes.

    Heads have 128 channels, text has 512 tokens and a picture 257, as in all published files. Raises SourceError if
    that cannot be: such a file needs its config.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise SourceError(f"there is no tensor {name}", field=_FIELD, hint="give the file of a whole network")
        return shapes[name]

    dim, channels, *patch = shape("patch_embedding.weight")
    hidden, first = shape("audio_proj.proj1.weight")
    output = shape("audio_proj.norm.weight")[0]
    # The other windows have as many places more as a latent frame has frames more than one.
    features, rest = divmod(shape("audio_proj.proj1_vf.weight")[1] - first, _STRIDE - 1)
    width, layers = _HEARD
    if dim % _HEAD or rest or features != width * layers:
        raise SourceError("the sizes are not those of a published network", field=_FIELD, hint="give config=")
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": dim // _HEAD,
        "attention_head_dim": _HEAD,
        "in_channels": channels,
        "out_channels": shape("proj_out.weight")[0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight")[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight")[1],
        "ffn_dim": shape("blocks.0.ffn.net.0.proj.weight")[0],
        "num_layers": 1 + max(int(found[1]) for found in map(re.compile(r"blocks\.(\d+)\.").match, shapes) if found),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "image_dim": shape("condition_embedder.image_embedder.norm1.weight")[0],
        "audio_window": first // features,
        "audio_layers": layers,
        "audio_channels": width,
        "audio_intermediate_dim": hidden,
        "audio_output_dim": output,
        "audio_tokens": shape("audio_proj.proj3.weight")[0] // output,
    }


class _Files:
    """Weights in files."""

    def __init__(self, given: Sequence[str | PathLike[str]]) -> None:
        """Look at headers. Raises SourceError."""
        if not given:
            raise SourceError("no file is given", field=_FIELD, hint="give the path of a file")
        paths = []
        for one in given:
            if str(one).startswith(("http://", "https://", "hf://")):
                raise SourceError(
                    "weights are read from files on this machine", field=_FIELD, hint="download it: hf download"
                )
            path = Path(one)
            if path.is_dir():
                raise SourceError(f"{path} is a folder", field=_FIELD, hint="use from_pretrained, or give its files")
            if not path.is_file():
                raise SourceError(f"there is no file {path}", field=_FIELD, hint="give the path of a file")
            paths.append(path)
        self.part: ComponentLayout = loose_transformer(paths)
        self.names = ", ".join(path.name for path in paths)
        self.config = self.part.config

    def packed_dtype(self, config: Any, dtype: torch.dtype | None) -> torch.dtype:
        """Return the dtype in which weights of a GGUF file are unpacked. Raises ConfigError for another config."""
        if self.part.form != "gguf" or getattr(config, "quant_method", "") != "gguf":
            raise ConfigError(
                "only GGUFQuantizationConfig can be given, and for a GGUF file",
                field="quantization_config",
                hint="to quantise dense weights use save_pretrained, then from_pretrained",
            )
        computes: torch.dtype = config.compute_dtype or dtype or torch.float32
        return computes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by our names."""
        stored = checkpoint.read_tensors(self.part, checkpoint.convert_transformer, headers_only=True)
        return {name: shape_of(tensor) for name, tensor in stored}

    def fill(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Give the network its weights. Raises SourceError."""
        checkpoint.check("transformer", network, self.part)
        checkpoint.fill(network, "transformer", self.part, dtype)


class _Tensors:
    """Weights in memory."""

    config = None
    names = "the mapping"

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        """Take them by any names."""
        self.tensors = {engine_name(name) or name: tensor for name, tensor in given.items()}

    def packed_dtype(self, config: Any, dtype: torch.dtype | None) -> torch.dtype:
        """Raise ConfigError: tensors in memory are not packed."""
        raise ConfigError("the tensors are not quantised", field="quantization_config", hint="leave it out")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by our names."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def fill(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Give the network its weights. Raises SourceError."""
        expected, stored = {name: tuple(one.shape) for name, one in network.named_parameters()}, self.shapes()
        check_names(
            self.names,
            lacking=expected.keys() - stored.keys(),
            unknown=stored.keys() - expected.keys(),
            misshapen={name for name in expected.keys() & stored.keys() if expected[name] != stored[name]},
        )
        for name, tensor in self.tensors.items():
            module, _, leaf = name.rpartition(".")
            placed = checkpoint.place(network, "transformer", name, tensor, dtype)
            network.get_submodule(module)._parameters[leaf] = nn.Parameter(placed)


def _read_config(
    config: str | PathLike[str] | Mapping[str, Any] | None, subfolder: str | None, beside: Path | None
) -> Mapping[str, Any] | None:
    if isinstance(config, Mapping):
        return config
    path = beside if config is None else Path(config)
    if path is None:
        return None
    if path.is_dir():
        path = path / (subfolder or "") / "config.json"
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{path.name} cannot be read: {type(error).__name__}",
            field="config",
            hint="give a config.json of this network",
        ) from error
    if not isinstance(read, dict):
        raise SourceError(f"{path.name} is not a config", field="config", hint="give a config.json of this network")
    return read


def _build(network: Any, config: Mapping[str, Any]) -> nn.Module:
    """Build a network from diffusers' config or from Wan's own."""
    diffusers = "attention_head_dim" in config
    built: nn.Module = network.from_config(dict(config)) if diffusers else network(**to_engine_config(config))
    return built

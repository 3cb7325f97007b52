"""Published files of the transformer, dense or int8 -> a network; tensors have the published names.

A file of int8 holds `X.weight_int8` (out, in) and `X.weight_scale` (out,) for the weight X of each linear layer but
`final_layer.linear`; the weight is their product.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from engine.components import Reader, Stored
from engine.errors import EngineError, SourceError
from engine.loading.fill import check_names
from engine.loading.quanto import Quantised
from engine.loading.safetensors_reader import AheadReader, stored_tensors
from engine.loading.tensor_names import strip_prefixes
from plugins.families.longcat.folders import STEMS, weight_files
from plugins.families.longcat.lora import FusedLora
from plugins.families.longcat.lora_keys import DATA, SCALE
from plugins.families.longcat.precision import is_quantised_linear, kept_in_float32
from plugins.families.longcat.transformer import AvatarTransformer3DModel


def find_stored(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a transformer's folder by name, without prefixes of tools. Only headers are read.

    Raises SourceError if a file is missing or damaged, or if a tensor is there twice.
    """
    stem = next((stem for stem in reversed(STEMS) if any(folder.glob(f"{stem}*.safetensors*"))), STEMS[0])
    found: dict[str, Stored] = {}
    for file in weight_files(folder, stem):
        if not file.is_file():
            raise SourceError(f"{file} is missing", field="source", hint="get this file")
        stored = stored_tensors(file)
        for name, short in strip_prefixes(stored).items():
            if short in found:
                raise SourceError(f"{folder} holds {short} twice", field="source", hint="keep one of the files")
            found[short] = stored[name]
    return found


def build_empty(folder: Path, stored: Mapping[str, Stored]) -> AvatarTransformer3DModel:
    """Build the network of `folder` on the meta device, for the tensors of its files.

    Raises SourceError, naming tensors, if config and tensors do not fit each other.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        with init_empty_weights():
            model: AvatarTransformer3DModel = AvatarTransformer3DModel.from_config(config)
    except Exception as error:
        # Config values reach constructors unchecked, so any error is possible.
        what = error.what if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        raise SourceError(f"{path} builds no transformer: {what}", field="source", hint="get both again") from error
    check_tensors(folder, model, stored)
    return model


def check_tensors(where: Path | str, model: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Raise SourceError, naming tensors, unless `stored` has exactly the tensors of `model`, dense or as int8."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    shapes: dict[str, tuple[int, ...]] = {}
    lacking: set[str] = set()
    for name, entry in stored.items():
        if name.endswith(DATA):
            module = name.removesuffix(DATA)
            shapes[f"{module}.weight"] = entry.shape
            scale = stored.get(module + SCALE)
            if scale is None or scale.shape != entry.shape[:1]:
                lacking.add(module + SCALE)
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) + DATA in stored):
            shapes[name] = entry.shape
    check_names(
        where,
        lacking=(expected.keys() - shapes.keys()) | lacking,
        unknown=shapes.keys() - expected.keys(),
        misshapen={name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]},
    )


class AvatarFiles:
    """The files of a transformer: its network on the meta device, and where each of its tensors is stored."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        finish: Callable[[Any], None] = lambda _network: None,
        *,
        keep_int8: bool = True,
        kept: tuple[float, int] | None = None,
    ) -> None:
        """Read only config and headers. Raises SourceError unless they fit each other.

        `dtype` applies to all parameters except the float32 parts. `keep_int8`: int8 weights of the blocks stay int8 in
        memory (torchao's tensors); otherwise all become dense. `finish` is called with the network before it moves to
        the device; `kept`: bytes of a weight, and of a row, of the layers that it quantises.
        """
        self.folder, self.dtype, self._finish, self._keep, self._quantises = folder, dtype, finish, keep_int8, kept
        self.stored = find_stored(folder)
        #: The network on the meta device: its config is used, and the first `read` fills it.
        self.meta_model: AvatarTransformer3DModel | None = build_empty(folder, self.stored)
        #: Whether the file is in 8 bits.
        self.int8 = any(name.endswith(DATA) for name in self.stored)
        self.size = sum(self._size(name, module) for name, module in self._tensors(self.meta_model))

    def read(self, reader: Reader, device: str) -> AvatarTransformer3DModel:
        """Return the network on `device`, ready to run. Raises SourceError, and MissingExtra without torchao."""
        network = self.meta_model or build_empty(self.folder, self.stored)
        self.meta_model = None
        # A network that is quantised after reading may not fit on the device before.
        where = torch.empty(0, device="cpu" if self._quantises else device).device
        names = {(entry.file, entry.name): name for name, entry in self.stored.items()}

        def into(entry: Stored) -> Tensor:
            return torch.empty(entry.shape, dtype=self._becomes(names[entry.file, entry.name]), device=where)

        here = where.type == "cpu"
        wanted = [
            replace(entry, stays=here and self._becomes(name) == entry.dtype) for name, entry in self.stored.items()
        ]
        halves: dict[str, dict[str, Tensor]] = {}
        for entry, tensor in reader.read(wanted, into):
            name = names[entry.file, entry.name]
            ending = next((end for end in (DATA, SCALE) if name.endswith(end)), None)
            if ending is None:
                _put(network, name, tensor)
                continue
            module = name.removesuffix(ending)
            pair = halves.setdefault(module, {})
            pair[ending] = tensor
            if len(pair) == 2:
                del halves[module]
                weight, target = Quantised(pair[DATA], pair[SCALE][:, None]), self._target(f"{module}.weight")
                _put(network, f"{module}.weight", weight.kept(target) if self._stays(module) else weight.dense(target))
        self._finish(network)
        ready: AvatarTransformer3DModel = network.to(device).eval()
        return ready

    def _stays(self, module: str) -> bool:
        return self._keep and module.startswith("blocks.")

    def _target(self, name: str) -> torch.dtype:
        return torch.float32 if kept_in_float32(name) else self.dtype

    def _becomes(self, name: str) -> torch.dtype:
        if name.endswith(DATA):
            return torch.int8
        return torch.float32 if name.endswith(SCALE) else self._target(name)

    def _tensors(self, network: nn.Module) -> list[tuple[str, nn.Module]]:
        modules = dict(network.named_modules())
        return [(name, modules[name.rpartition(".")[0]]) for name, _ in network.named_parameters()]

    def _size(self, name: str, module: nn.Module) -> int:
        """Return the bytes of a parameter of `module` in memory."""
        shape = getattr(module, name.rpartition(".")[2]).shape
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer + DATA in self.stored and self._stays(layer):
            return int(shape.numel()) + 4 * int(shape[0])
        if self._quantises and name.endswith(".weight") and is_quantised_linear(module, layer):
            each, row = self._quantises
            return int(shape.numel() * each + shape[0] * row)
        return int(shape.numel()) * self._target(name).itemsize


def load_transformer(
    folder: Path,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    keep_int8: bool = True,
    lora: FusedLora | None = None,
    multiplier: float = 1.0,
) -> AvatarTransformer3DModel:
    """Read the transformer of `folder`; see `AvatarFiles`. `lora` is merged into its weights.

    Raises SourceError, also for a LoRA of another network, and MissingExtra.
    """

    def finish(network: nn.Module) -> None:
        if lora is not None:
            lora.merge(network, multiplier)

    return AvatarFiles(folder, dtype, finish, keep_int8=keep_int8).read(AheadReader(), device)


def _put(network: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    trainable = type(tensor) is Tensor
    network.get_submodule(module)._parameters[leaf] = nn.Parameter(tensor, requires_grad=trainable)

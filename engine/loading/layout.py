"""A folder of weights -> which files belong to which component, in every layout in which weights are published."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from engine.data import Weights
from engine.errors import EngineError, MissingWeights, SourceError
from engine.loading.diffusers_folder import component_files, weight_files
from engine.loading.file_kinds import what_is
from engine.loading.gguf_header import read_header
from engine.loading.key_map import engine_name, is_audio
from engine.loading.tensor_names import describe_foreign, has_scales, kind_of, strip_prefixes
from engine.text.names import is_plain

#: "diffusers": a folder of its own with config.json, as diffusers and transformers write it. "original": files of the
#: Wan repositories. "quanto", "gguf": quantised files.
Form = Literal["diffusers", "original", "quanto", "gguf"]

#: quant=... -> form and dtype of the quantised transformer file it reads; other values read a dense file.
QUANTISED: Mapping[str, tuple[Form, str]] = {
    "int8-quanto": ("quanto", "I8"),
    "fp8-quanto": ("quanto", "F8_E4M3"),
    "gguf": ("gguf", ""),
}

#: Kinds in a quantisation map -> dtypes of safetensors.
_KINDS = {"qint8": "I8", "qfloat8": "F8_E4M3", "qfloat8_e4m3fn": "F8_E4M3"}

#: How many levels below the folder are searched: <repository>/google/umt5-xxl is the deepest published one.
_DEPTH = 4
_ORIGINAL = {
    "text_encoder": re.compile(r"models_t5.*\.pth$"),
    "image_encoder": re.compile(r"models_clip.*\.pth$"),
    "vae": re.compile(r"Wan.*VAE.*\.pth$"),
}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
_INDEX = "diffusion_pytorch_model.safetensors.index.json"
#: Suffix of the tensor that replaces a weight in quanto's files.
_PACKED = ".weight._data"
#: Name prefixes of files that diffusers and transformers write into a component's folder.
_OWN = ("diffusion_pytorch_model", "model.safetensors", "model-0", "pytorch_model")
#: Largest size of a quantisation map; a tokenizer's JSON is larger.
_MAP_BYTES = 4 * 2**20
#: Largest size of a config or index.
_JSON_BYTES = 64 * 2**20
#: How many unread files are described; the others are counted.
_SEEN = 5
_GET = "get this file again"


@dataclass(frozen=True)
class ComponentLayout:
    """Where one component's tensors are, and in which format."""

    form: Form
    folder: Path
    #: Weight files; audio weights that extend Wan's come last.
    files: tuple[Path, ...] = ()
    #: The config.json of a form other than "diffusers": usually Wan's own.
    config: Path | None = None
    #: The quantisation map of "quanto".
    map: Path | None = None


@dataclass
class _Tree:
    """The files below a folder, by folder, and the tensors (name -> dtype) of loose safetensors files."""

    root: Path
    files: dict[Path, list[str]] = field(default_factory=dict)
    tensors: dict[Path, dict[str, str]] = field(default_factory=dict)
    kinds: dict[Path, str] = field(default_factory=dict)

    def with_suffix(self, suffix: str) -> list[Path]:
        return [folder / name for folder, names in self.files.items() for name in names if name.endswith(suffix)]

    def kind(self, path: Path) -> str:
        """Return what a file holds, in the words of `kind_of`. Raises SourceError for a damaged file."""
        if path not in self.kinds:
            if path.suffix == ".gguf":
                self.kinds[path] = _gguf_kind(path)
            else:
                self.kinds[path] = kind_of(self.tensors[path])
        return self.kinds[path]

    def relative(self, path: Path) -> str:
        return str(path.relative_to(self.root))


class _Missing(Exception):
    """Required files are missing."""

    def __init__(self, *files: Path | str) -> None:
        super().__init__()
        self.files = files


def find_parts(root: Path, weights: Weights) -> tuple[dict[str, ComponentLayout], tuple[str, ...]]:
    """Find the components of `weights` below `root`; return them, and the missing files as relative paths.

    A component is a folder of its name in diffusers' layout, or files that are recognised by their tensors: shards and
    audio weights with Wan's own key names, quantised files with their map, `.pth` files. Only headers and small JSON
    files are read. Raises SourceError if a file is damaged or several files fit one component, and MissingExtra.
    """
    if weights.find is not None:
        found, absent = weights.find(root, weights)
        return dict(found), absent
    tree = _walk(root, weights)
    parts: dict[str, ComponentLayout] = {}
    missing: list[str] = []
    for component in weights.components:
        try:
            parts[component] = (
                _find_transformer(tree, weights) if component == "transformer" else _find(tree, component, weights)
            )
        except _Missing as absent:
            missing += [tree.relative(path) if isinstance(path, Path) else path for path in absent.files]
    return parts, tuple(missing)


def loose_transformer(files: Sequence[Path]) -> ComponentLayout:
    """Return the part of a transformer whose weights are `files`, wherever they are; audio weights come last.

    `config` is a transformer's config.json beside the first file, if there is one. Raises SourceError for a damaged
    file and for one of quanto without its map, and MissingExtra for a GGUF file without the package gguf.
    """
    first = files[0]
    folder = first.parent
    tree = _Tree(folder, {folder: sorted(path.name for path in folder.iterdir())})
    tree.tensors = {path: _tensors(path) for path in files if path.suffix in (".safetensors", ".sft")}
    beside = folder / "config.json"
    config = beside if beside.is_file() and _is_transformer(_json(beside)) else None
    if first.suffix == ".gguf":
        return ComponentLayout("gguf", folder, tuple(files), config)
    if not any(name.endswith(_PACKED) for name in tree.tensors.get(first, ())):
        return ComponentLayout("original", folder, tuple(files), config)
    return replace(_with_map(tree, ComponentLayout("quanto", folder, (first,), config)), files=tuple(files))


def missing_weights(root: Path, weights: Weights) -> tuple[str, ...]:
    """Return the files of `weights` that `root` lacks, as relative paths; () where it has all. Raises SourceError."""
    return find_parts(root, weights)[1]


def whole_folder(root: Path, weights: Weights) -> Path | None:
    """Return `root` if it holds all of `weights`, in any layout; None where there is no such folder.

    Raises MissingWeights where it is incomplete, with the files and what would get them, and SourceError.
    """
    if not root.is_dir():
        return None
    missing = missing_weights(root, weights)
    if missing:
        others = describe_unread(root, weights)
        raise MissingWeights(
            f"weights of {weights.model!r} in {root} are incomplete",
            missing=missing,
            commands=weights.commands,
            instead=other_quant(root, weights),
            hint="docs/weights.md lists the formats that are read" if others else "copy them there",
            seen=others,
        )
    return root


def other_quant(root: Path, weights: Weights) -> str:
    """Return a hint which quant=… the files below `root` support, if not the one of `weights`; "" for none."""
    for quant in ("none", *QUANTISED):
        try:
            _, missing = find_parts(root, replace(weights, quant=quant, file=None))
        except EngineError:
            continue
        if missing or quant == weights.quant:
            continue
        if quant == "none":
            return f"leave out quant={weights.quant} (a recipe may set it, and recipe=none undoes that)"
        return f"choose quant={quant}, whose files are there"
    return ""


def describe_unread(root: Path, weights: Weights) -> tuple[str, ...]:
    """Describe the files below `root` that are not read: what each is, and what to use instead.

    Helps when files seem to be missing but are present in another format. Raises nothing.
    """
    try:
        tree = _walk(root, weights)
    except SourceError:
        return ()
    lines = [
        f"{tree.relative(path)} is {what}" for path in _weight_files(tree) if (what := _describe(tree, path, weights))
    ]
    return tuple(lines[:_SEEN] + ([f"and {len(lines) - _SEEN} more"] if len(lines) > _SEEN else []))


def _weight_files(tree: _Tree) -> list[Path]:
    ends = (".safetensors", ".sft", ".gguf", ".pt", ".pth", ".bin", ".ckpt", ".zip", ".7z", ".tar", ".gz", ".onnx")
    return sorted(path for end in ends for path in tree.with_suffix(end))


def _describe(tree: _Tree, path: Path, weights: Weights) -> str:
    """Return what an unread file is; "" for a file that is read or has no known problem."""
    if path in tree.tensors:
        kind = tree.kind(path)
        if kind == "audio" and not path.match(weights.adapter or "*"):
            return f"a file of audio weights: name it with model.adapter={tree.relative(path)}"
        if kind == "audio_encoder" and "config.json" not in tree.files[path.parent]:
            return "a wav2vec2 without its config.json: keep it as audio_encoder/model.safetensors beside that file"
        # A LoRA in the folder for LoRAs is read.
        return "" if "loras" in path.parts else describe_foreign(tree.tensors[path])
    if path.suffix == ".gguf":
        return _describe_gguf(tree, path, weights)
    if path.suffix in (".safetensors", ".sft") or _is_read(path):
        return ""
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        if "fairseq" in path.name:
            return "fairseq's checkpoint of wav2vec2: use model.safetensors or pytorch_model.bin of its repository"
        kind_and_hint = what_is(path)
        if kind_and_hint is not None and "PyTorch" not in kind_and_hint[0]:
            return ": ".join(kind_and_hint)
        return "a PyTorch file whose name is not supported: use safetensors, or Wan's own .pth with its original name"
    kind_and_hint = what_is(path)
    return (
        ": ".join(kind_and_hint)
        if kind_and_hint
        else "an archive or an unsupported format: unpack it, or use safetensors"
    )


def _is_read(path: Path) -> bool:
    return path.name == "pytorch_model.bin" or any(name.match(path.name) for name in _ORIGINAL.values())


def _describe_gguf(tree: _Tree, path: Path, weights: Weights) -> str:
    try:
        names = gguf_names(path)
    except EngineError as error:
        return f"a GGUF file that cannot be opened: {error.what}"
    kind = kind_of(dict.fromkeys(names, "F32"))
    if kind == "audio":
        is_chosen = path.match(weights.adapter or "*")
        return "" if is_chosen else f"a GGUF file of audio weights: name it with model.adapter={tree.relative(path)}"
    if kind == "transformer":
        return "" if weights.quant == "gguf" else "a GGUF file: choose quant=gguf"
    if any(name.startswith(("enc.blk.", "token_embd.")) for name in names):
        return "a GGUF file of a text encoder: use models_t5_umt5-xxl-enc-bf16.pth or a umt5 in safetensors"
    return "a GGUF file of another network: use one of Wan2.1-I2V-14B"


def _find(tree: _Tree, component: str, weights: Weights) -> ComponentLayout:
    form, dtype = QUANTISED.get(weights.quant, ("", ""))
    if component == "text_encoder" and form == "quanto":
        quantised = _one(tree, component, [path for path in _quantised(tree, dtype) if _is_umt5(tree.tensors[path])])
        if quantised:
            return _with_map(tree, ComponentLayout("quanto", quantised.parent, (quantised,)))
    folders = _component_folders(tree, component)
    originals = [
        path for path in tree.with_suffix(".pth") if component in _ORIGINAL and _ORIGINAL[component].match(path.name)
    ]
    originals += [path for path in tree.tensors if component in _ORIGINAL and tree.kind(path) == component]
    location = _one(tree, component, folders + originals) or tree.root / component
    if location not in originals:
        return _diffusers_part(location, component)
    if not location.stat().st_size:
        raise _Missing(location)
    kind_and_hint = what_is(location)
    if kind_and_hint is not None and (location.suffix != ".pth" or "PyTorch" not in kind_and_hint[0]):
        raise SourceError(f"{location} is {kind_and_hint[0]}", field="source", hint=kind_and_hint[1])
    return ComponentLayout("original", location.parent, (location,))


def _diffusers_part(folder: Path, component: str) -> ComponentLayout:
    absent = [path for path in component_files(folder, component) if not path.is_file() or not path.stat().st_size]
    if absent:
        raise _Missing(*absent)
    return part_in(folder, component)


def is_scaled(part: ComponentLayout) -> bool:
    """Return whether weights of a part have separate scale tensors. Raises SourceError for a damaged file."""
    return any(has_scales(_tensors(path)) for path in part.files if path.suffix == ".safetensors")


def part_in(folder: Path, component: str) -> ComponentLayout:
    """Return the part of a component in `folder`, in diffusers' layout, without checking that it is complete."""
    return ComponentLayout(
        "diffusers", folder, () if component == "tokenizer" else tuple(weight_files(folder, component))
    )


# --- the transformer --------------------------------------------------------------------------------------------------


def _find_transformer(tree: _Tree, weights: Weights) -> ComponentLayout:
    if weights.quant in QUANTISED:
        form, dtype = QUANTISED[weights.quant]
        candidates = tree.with_suffix(".gguf") if form == "gguf" else _quantised(tree, dtype)
        if form == "gguf":
            files = [path for path in candidates if tree.kind(path) == "transformer"]
        else:
            files = [path for path in candidates if not _is_umt5(tree.tensors[path])]
        quantised = _pick_quantised(tree, files, weights)
        config = next((path for path in tree.with_suffix("config.json") if _is_transformer(_json(path))), None)
        part = ComponentLayout(form, quantised.parent, (quantised,), config)
        if form == "quanto":
            return _with_map(tree, part)
        return part if any(map(is_audio, gguf_names(quantised))) else _with_audio(tree, part, weights)

    shards: dict[Path, list[Path]] = {}
    for path, tensors in tree.tensors.items():
        # Quantised and plain files may be in one folder: two presets share it.
        packed = any(name.endswith(_PACKED) for name in tensors)
        if not packed and tree.kind(path) == "transformer" and weights.file in (None, "", tree.relative(path)):
            shards.setdefault(path.parent, []).append(path)
    folders = _component_folders(tree, "transformer")
    location = _one(tree, "transformer", [*folders, *shards]) or tree.root / "transformer"
    if location in shards:
        absent = _missing_shards(location, shards[location])
        if absent:
            raise _Missing(*absent)
        _check_once(tree, shards[location])
        config = location / "config.json" if "config.json" in tree.files[location] else None
        part = ComponentLayout("original", location, tuple(sorted(shards[location])), config)
        names = {name for path in part.files for name in tree.tensors[path]}
        if config is None:
            # ComfyUI's folders hold only weight files, so the config may be in a folder above.
            found_config = next(
                (path for path in tree.with_suffix("config.json") if _is_transformer(_json(path))), None
            )
            part = replace(part, config=found_config)
    else:
        part = _diffusers_part(location, "transformer")
        try:
            names = {name for path in part.files for name in _tensors(path)}
        except SourceError:
            # Loading reports damaged files in component folders.
            return part
    return part if any(map(is_audio, names)) else _with_audio(tree, part, weights)


def _is_transformer(config: Mapping[str, Any]) -> bool:
    """Return whether a config is a transformer's: Wan's own, or one in diffusers' layout."""
    return {"dim", "num_heads"} <= config.keys() or {"attention_head_dim", "audio_tokens"} <= config.keys()


def _with_audio(tree: _Tree, part: ComponentLayout, weights: Weights) -> ComponentLayout:
    """Add the file of audio weights to a transformer that has none."""
    suffix = Path(weights.adapter).parts
    candidates = [path for path in tree.tensors if tree.kind(path) == "audio"]
    if part.form == "gguf" or weights.adapter.endswith(".gguf"):
        candidates += [path for path in tree.with_suffix(".gguf") if tree.kind(path) == "audio"]
    matching = [path for path in candidates if path.parts[len(path.parts) - len(suffix) :] == suffix]
    audio = _one(tree, "file of audio weights", matching, "name one with model.adapter=FOLDER/FILE")
    if audio is None:
        raise _Missing(weights.adapter or "multitalk.safetensors (audio weights)")
    return replace(part, files=(*part.files, audio))


def _missing_shards(folder: Path, shards: list[Path]) -> list[Path]:
    present = {path.name for path in shards}
    expected: set[str] = set()
    for name in present:
        if match := _SHARD.match(name):
            count = int(match["count"])
            expected |= {f"{match['stem']}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)}
    if (folder / _INDEX).is_file():
        # MultiTalk's own index also names its audio weights, which may be elsewhere.
        weight_map = _json(folder / _INDEX).get("weight_map", {})
        expected |= {str(file) for name, file in weight_map.items() if not is_audio(name)}
        if not all(map(is_plain, expected)):
            raise SourceError(
                f"{folder / _INDEX} names a file outside its folder",
                field="source",
                hint=f"{_GET}, from a place you trust",
            )
    return [folder / name for name in sorted(expected - present)]


def _check_once(tree: _Tree, shards: list[Path]) -> None:
    """Raise SourceError if files of one folder are each a transformer, as in ComfyUI's folders."""
    first: dict[str, Path] = {}
    for path in sorted(shards):
        for name in strip_prefixes(tree.tensors[path]).values():
            other = first.setdefault(engine_name(name) or name, path)
            if other != path and not (_SHARD.match(path.name) or _SHARD.match(other.name)):
                _one(tree, "transformer", [other, path], "name one with quant.file=FOLDER/FILE")


def _pick_quantised(tree: _Tree, files: list[Path], weights: Weights) -> Path:
    what = f"transformer of quant={weights.quant}"
    if weights.file and tree.root / weights.file not in files:
        names = ", ".join(map(tree.relative, files))
        hint = f"known: {names}" if files else other_quant(tree.root, weights) or "put one there"
        raise SourceError(f"{weights.file} is not a {what} below {tree.root}", field="quant.file", hint=hint)
    path = tree.root / weights.file if weights.file else _one(tree, what, files, "name one with quant.file=FOLDER/FILE")
    if path is None:
        raise _Missing(f"a file with a {what}")
    return path


# --- quantised files --------------------------------------------------------------------------------------------------


def _quantised(tree: _Tree, dtype: str) -> list[Path]:
    return [path for path, tensors in tree.tensors.items() if (_PACKED, dtype) in _name_endings(tensors)]


def _name_endings(tensors: Mapping[str, str]) -> set[tuple[str, str]]:
    return {(name[-len(_PACKED) :], dtype) for name, dtype in tensors.items()}


def _with_map(tree: _Tree, part: ComponentLayout) -> ComponentLayout:
    (path,) = part.files
    dtypes = {name.removesuffix(_PACKED): dtype for name, dtype in tree.tensors[path].items() if name.endswith(_PACKED)}
    # By content: names follow no rule, int8 and float8 files may be in one folder, and any equal map is right.
    for name in tree.files[path.parent]:
        candidate = path.parent / name
        if (
            name.endswith(".json")
            and candidate.stat().st_size <= _MAP_BYTES
            and _module_dtypes(_json(candidate)) == dtypes
        ):
            return replace(part, map=candidate)
    raise SourceError(
        f"no JSON file beside {tree.relative(path)} lists its {len(dtypes)} quantised modules as they are stored",
        field="source",
        hint="get the quantisation map that is published with it",
    )


def _module_dtypes(quantisation_map: Mapping[str, Any]) -> dict[str, str]:
    kinds = {module: kinds.get("weights") for module, kinds in quantisation_map.items() if isinstance(kinds, dict)}
    return {module: _KINDS.get(str(kind), "") for module, kind in kinds.items()}


def gguf_names(path: Path) -> list[str]:
    """Return the names of the tensors of a GGUF file. Raises MissingExtra, and SourceError for a damaged file."""
    return list(read_header(path))


def _gguf_kind(path: Path) -> str:
    try:
        return kind_of(dict.fromkeys(gguf_names(path), "F32"))
    except SourceError:
        # Reading it will report what is wrong.
        return "transformer"


def _is_umt5(tensors: Mapping[str, str]) -> bool:
    return not {"token_embedding.weight", "token_embedding.weight._data"}.isdisjoint(tensors)


# --- files that exist -------------------------------------------------------------------------------------------------


def _walk(root: Path, weights: Weights) -> _Tree:
    tree = _Tree(root)
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder)
        deeper = len(here.relative_to(root).parts) < _DEPTH
        # Unfinished downloads are hidden files.
        below[:] = sorted(name for name in below if deeper and not name.startswith("."))
        tree.files[here] = sorted(name for name in names if not name.startswith("."))
    own = {folder for folder, names in tree.files.items() if folder.name in weights.components and _is_own(names)}
    for path in tree.with_suffix(".safetensors"):
        if path.parent not in own and path.stat().st_size:
            tree.tensors[path] = _tensors(path)
    return tree


def _is_own(names: list[str]) -> bool:
    """Return whether a folder is in diffusers' layout; ComfyUI has folders with the same names."""
    return any(name == "config.json" or name.startswith(_OWN) for name in names)


def _component_folders(tree: _Tree, component: str) -> list[Path]:
    # Files in ComfyUI's folders are recognised by their tensors instead.
    loose = {
        path.parent
        for path in tree.tensors
        if component in _ORIGINAL and not _is_own(tree.files[path.parent]) and tree.kind(path) == component
    }
    return [
        folder
        for folder, names in tree.files.items()
        if names and folder not in loose and _is_component(folder, names, component)
    ]


def _is_component(folder: Path, names: list[str], component: str) -> bool:
    if component == "tokenizer":
        return folder.name in ("tokenizer", "umt5-xxl")
    if component == "audio_encoder" and folder.name != component:
        return "config.json" in names and _json(folder / "config.json").get("model_type") == "wav2vec2"
    return folder.name == component


def _tensors(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        # The header says how long the file must be.
        with safe_open(path, "np") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if (kind_and_hint := what_is(path)) is not None:
            raise SourceError(f"{path} is {kind_and_hint[0]}", field="source", hint=kind_and_hint[1]) from error
        raise SourceError(f"{path} is damaged: {error}", field="source", hint=_GET) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError("it is larger than any such file")
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read: {error}", field="source", hint=_GET) from error
    return value if isinstance(value, dict) else {}


def _one(tree: _Tree, what: str, paths: list[Path], hint: str = "keep one of them there") -> Path | None:
    if len(paths) > 1:
        names = ", ".join(map(tree.relative, sorted(paths)))
        raise SourceError(f"{tree.root} holds more than one {what}: {names}", field="source", hint=hint)
    return paths[0] if paths else None

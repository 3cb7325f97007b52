"""A folder of weights -> which files hold which component, in every layout the weights are published in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from engine.data import Weights
from engine.errors import EngineError, MissingWeights, SourceError
from engine.loading.diffusers_folder import component_files, weight_files
from engine.loading.file_kinds import what_is
from engine.loading.gguf_header import read_header
from engine.loading.key_map import engine_name, is_audio
from engine.loading.tensor_names import bare, foreign, has_scales, kind_of
from engine.text.names import is_plain

#: "diffusers": a folder of its own with config.json, as diffusers and transformers write it. "original": files of the
#: Wan repositories. "quanto", "gguf": quantised files.
Form = Literal["diffusers", "original", "quanto", "gguf"]

#: Which quantised file of the transformer quant=... reads, and how its integers are stored; others read a dense one.
QUANTISED: Mapping[str, tuple[Form, str]] = {
    "int8-quanto": ("quanto", "I8"),
    "fp8-quanto": ("quanto", "F8_E4M3"),
    "gguf": ("gguf", ""),
}

#: Kinds in a quantisation map -> dtypes of safetensors.
_KINDS = {"qint8": "I8", "qfloat8": "F8_E4M3", "qfloat8_e4m3fn": "F8_E4M3"}

#: How deep below the folder is looked: <repository>/google/umt5-xxl is the deepest that is published.
_DEPTH = 4
_ORIGINAL = {
    "text_encoder": re.compile(r"models_t5.*\.pth$"),
    "image_encoder": re.compile(r"models_clip.*\.pth$"),
    "vae": re.compile(r"Wan.*VAE.*\.pth$"),
}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
_INDEX = "diffusion_pytorch_model.safetensors.index.json"
#: How quanto's files call what stands in place of a weight.
_PACKED = ".weight._data"
#: How files begin that diffusers and transformers write into a component's folder.
_OWN = ("diffusion_pytorch_model", "model.safetensors", "model-0", "pytorch_model")
#: No quantisation map is larger; a tokenizer's JSON is.
_MAP_BYTES = 4 * 2**20
#: No config and no index is larger.
_JSON_BYTES = 64 * 2**20
#: Files that are described; others are counted.
_SEEN = 5
_GET = "get this file again"


@dataclass(frozen=True)
class Part:
    """Where one component's tensors are, and how they are written."""

    form: Form
    folder: Path
    #: Files of weights; audio weights that lie over Wan's come last.
    files: tuple[Path, ...] = ()
    #: The config.json of a form that is no folder of ours: Wan's own as a rule.
    config: Path | None = None
    #: The quantisation map of "quanto".
    map: Path | None = None


@dataclass
class _Tree:
    """What lies below a folder: files by their folder, and the tensors (name -> dtype) of loose safetensors files."""

    root: Path
    files: dict[Path, list[str]] = field(default_factory=dict)
    tensors: dict[Path, dict[str, str]] = field(default_factory=dict)
    kinds: dict[Path, str] = field(default_factory=dict)

    def named(self, suffix: str) -> list[Path]:
        return [folder / name for folder, names in self.files.items() for name in names if name.endswith(suffix)]

    def kind(self, path: Path) -> str:
        """Return what a file holds, as `kind_of` calls it. Raises SourceError for a damaged one."""
        if path not in self.kinds:
            if path.suffix == ".gguf":
                self.kinds[path] = _gguf_kind(path)
            else:
                self.kinds[path] = kind_of(self.tensors[path])
        return self.kinds[path]

    def shown(self, path: Path) -> str:
        return str(path.relative_to(self.root))


class _Absent(Exception):
    """Files that should be there and are not."""

    def __init__(self, *files: Path | str) -> None:
        super().__init__()
        self.files = files


def find_parts(root: Path, weights: Weights) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Find the components of `weights` below `root`; return them, and the files that are missing, as relative paths.

    A component is a folder of its name in diffusers' layout, or files that are told by what they hold: shards and
    audio weights in Wan's own key names, quantised files with their map, `.pth` files. Only headers and small JSON
    files are read. Raises SourceError where a file is damaged, or where two could be meant, and MissingExtra.
    """
    tree = _walk(root, weights)
    parts: dict[str, Part] = {}
    missing: list[str] = []
    for component in weights.components:
        try:
            parts[component] = (
                _find_transformer(tree, weights) if component == "transformer" else _find(tree, component, weights)
            )
        except _Absent as absent:
            missing += [tree.shown(path) if isinstance(path, Path) else path for path in absent.files]
    return parts, tuple(missing)


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
        others = seen(root, weights)
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
    """Return in words the quant=… that the files below `root` serve in place of the one of `weights`; "" for none."""
    for quant in ("none", *QUANTISED):
        try:
            _, missing = find_parts(root, replace(weights, quant=quant, file=None))
        except EngineError:
            continue
        if missing or quant == weights.quant:
            continue
        if quant == "none":
            return f"leave out quant={weights.quant} (a recipe may set it, which recipe=none takes back)"
        return f"choose quant={quant}, whose files are there"
    return ""


def seen(root: Path, weights: Weights) -> tuple[str, ...]:
    """Return what lies below `root` and is not read, each file with what it is and what to take in its place.

    For whoever is told that files are missing which lie there in another format. Raises nothing.
    """
    try:
        tree = _walk(root, weights)
    except SourceError:
        return ()
    told = [f"{tree.shown(path)} is {what}" for path in _strangers(tree) if (what := _described(tree, path, weights))]
    return tuple(told[:_SEEN] + ([f"and {len(told) - _SEEN} more"] if len(told) > _SEEN else []))


def _strangers(tree: _Tree) -> list[Path]:
    ends = (".safetensors", ".sft", ".gguf", ".pt", ".pth", ".bin", ".ckpt", ".zip", ".7z", ".tar", ".gz", ".onnx")
    return sorted(path for end in ends for path in tree.named(end))


def _described(tree: _Tree, path: Path, weights: Weights) -> str:
    """Return what a file is, "" for one that is read, or that nothing is known against."""
    if path in tree.tensors:
        kind = tree.kind(path)
        if kind == "audio" and not path.match(weights.adapter or "*"):
            return f"a file of audio weights: name it with model.adapter={tree.shown(path)}"
        if kind == "audio_encoder" and "config.json" not in tree.files[path.parent]:
            return "a wav2vec2 without its config.json: keep it as audio_encoder/model.safetensors beside that file"
        # A LoRA in its place is read.
        return "" if "loras" in path.parts else foreign(tree.tensors[path])
    if path.suffix == ".gguf":
        return _described_gguf(tree, path, weights)
    if path.suffix in (".safetensors", ".sft") or _is_read(path):
        return ""
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        if "fairseq" in path.name:
            return "fairseq's checkpoint of wav2vec2: take model.safetensors or pytorch_model.bin of its repository"
        found = what_is(path)
        if found is not None and "PyTorch" not in found[0]:
            return ": ".join(found)
        return "a PyTorch file under a name that is not read: take safetensors, or Wan's own .pth under its own name"
    found = what_is(path)
    return ": ".join(found) if found else "an archive or a format that is not read: unpack it, or take safetensors"


def _is_read(path: Path) -> bool:
    return path.name == "pytorch_model.bin" or any(name.match(path.name) for name in _ORIGINAL.values())


def _described_gguf(tree: _Tree, path: Path, weights: Weights) -> str:
    try:
        names = gguf_names(path)
    except EngineError as error:
        return f"a GGUF file that cannot be looked into: {error.what}"
    kind = kind_of(dict.fromkeys(names, "F32"))
    if kind == "audio":
        named = path.match(weights.adapter or "*")
        return "" if named else f"a GGUF file of audio weights: name it with model.adapter={tree.shown(path)}"
    if kind == "transformer":
        return "" if weights.quant == "gguf" else "a GGUF file: choose quant=gguf"
    if any(name.startswith(("enc.blk.", "token_embd.")) for name in names):
        return "a GGUF file of a text encoder: take models_t5_umt5-xxl-enc-bf16.pth or a umt5 in safetensors"
    return "a GGUF file of another network: take one of Wan2.1-I2V-14B"


def _find(tree: _Tree, component: str, weights: Weights) -> Part:
    form, dtype = QUANTISED.get(weights.quant, ("", ""))
    if component == "text_encoder" and form == "quanto":
        quantised = _one(tree, component, [path for path in _quantised(tree, dtype) if _is_umt5(tree.tensors[path])])
        if quantised:
            return _with_map(tree, Part("quanto", quantised.parent, (quantised,)))
    folders = _component_folders(tree, component)
    originals = [
        path for path in tree.named(".pth") if component in _ORIGINAL and _ORIGINAL[component].match(path.name)
    ]
    originals += [path for path in tree.tensors if component in _ORIGINAL and tree.kind(path) == component]
    found = _one(tree, component, folders + originals) or tree.root / component
    if found not in originals:
        return _own_folder(found, component)
    if not found.stat().st_size:
        raise _Absent(found)
    told = what_is(found)
    if told is not None and (found.suffix != ".pth" or "PyTorch" not in told[0]):
        raise SourceError(f"{found} is {told[0]}", field="source", hint=told[1])
    return Part("original", found.parent, (found,))


def _own_folder(folder: Path, component: str) -> Part:
    absent = [path for path in component_files(folder, component) if not path.is_file() or not path.stat().st_size]
    if absent:
        raise _Absent(*absent)
    return part_in(folder, component)


def is_scaled(part: Part) -> bool:
    """Say whether weights of a part are products with scales beside them. Raises SourceError for a damaged file."""
    return any(has_scales(_tensors(path)) for path in part.files if path.suffix == ".safetensors")


def part_in(folder: Path, component: str) -> Part:
    """Return what `folder`, in diffusers' layout, holds of a component; whether it is complete is not looked into."""
    return Part("diffusers", folder, () if component == "tokenizer" else tuple(weight_files(folder, component)))


# --- the transformer --------------------------------------------------------------------------------------------------


def _find_transformer(tree: _Tree, weights: Weights) -> Part:
    if weights.quant in QUANTISED:
        form, dtype = QUANTISED[weights.quant]
        known = tree.named(".gguf") if form == "gguf" else _quantised(tree, dtype)
        if form == "gguf":
            files = [path for path in known if tree.kind(path) == "transformer"]
        else:
            files = [path for path in known if not _is_umt5(tree.tensors[path])]
        chosen = _chosen(tree, files, weights)
        config = next((path for path in tree.named("config.json") if _is_transformer(_json(path))), None)
        part = Part(form, chosen.parent, (chosen,), config)
        if form == "quanto":
            return _with_map(tree, part)
        return part if any(map(is_audio, gguf_names(chosen))) else _with_audio(tree, part, weights)

    shards: dict[Path, list[Path]] = {}
    for path, tensors in tree.tensors.items():
        # A quantised file may lie beside the plain ones: two presets share the folder.
        packed = any(name.endswith(_PACKED) for name in tensors)
        if not packed and tree.kind(path) == "transformer" and weights.file in (None, "", tree.shown(path)):
            shards.setdefault(path.parent, []).append(path)
    folders = _component_folders(tree, "transformer")
    found = _one(tree, "transformer", [*folders, *shards]) or tree.root / "transformer"
    if found in shards:
        absent = _absent_shards(found, shards[found])
        if absent:
            raise _Absent(*absent)
        _check_once(tree, shards[found])
        config = found / "config.json" if "config.json" in tree.files[found] else None
        part = Part("original", found, tuple(sorted(shards[found])), config)
        names = {name for path in part.files for name in tree.tensors[path]}
        if config is None:
            # ComfyUI's folders hold files of weights alone; one that is kept above them is meant.
            found_config = next((path for path in tree.named("config.json") if _is_transformer(_json(path))), None)
            part = replace(part, config=found_config)
    else:
        part = _own_folder(found, "transformer")
        try:
            names = {name for path in part.files for name in _tensors(path)}
        except SourceError:
            # Whoever loads it tells of all damaged files in folders of components.
            return part
    return part if any(map(is_audio, names)) else _with_audio(tree, part, weights)


def _is_transformer(config: Mapping[str, Any]) -> bool:
    """Say whether a config is a transformer's: Wan's own, or one in the layout of diffusers."""
    return {"dim", "num_heads"} <= config.keys() or {"attention_head_dim", "audio_tokens"} <= config.keys()


def _with_audio(tree: _Tree, part: Part, weights: Weights) -> Part:
    """Lay audio weights over a transformer that has none."""
    wanted = Path(weights.adapter).parts
    known = [path for path in tree.tensors if tree.kind(path) == "audio"]
    if part.form == "gguf" or weights.adapter.endswith(".gguf"):
        known += [path for path in tree.named(".gguf") if tree.kind(path) == "audio"]
    found = [path for path in known if path.parts[len(path.parts) - len(wanted) :] == wanted]
    audio = _one(tree, "file of audio weights", found, "name one with model.adapter=FOLDER/FILE")
    if audio is None:
        raise _Absent(weights.adapter or "multitalk.safetensors (audio weights)")
    return replace(part, files=(*part.files, audio))


def _absent_shards(folder: Path, shards: list[Path]) -> list[Path]:
    present = {path.name for path in shards}
    wanted: set[str] = set()
    for name in present:
        if match := _SHARD.match(name):
            count = int(match["count"])
            wanted |= {f"{match['stem']}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)}
    if (folder / _INDEX).is_file():
        # MultiTalk's own index names its audio weights, too, which may lie elsewhere.
        weight_map = _json(folder / _INDEX).get("weight_map", {})
        wanted |= {str(file) for name, file in weight_map.items() if not is_audio(name)}
        if not all(map(is_plain, wanted)):
            raise SourceError(
                f"{folder / _INDEX} names a file outside its folder",
                field="source",
                hint=f"{_GET}, from a place you trust",
            )
    return [folder / name for name in sorted(wanted - present)]


def _check_once(tree: _Tree, shards: list[Path]) -> None:
    """Raise SourceError for files of one folder that are each a transformer, as ComfyUI's folders have them."""
    first: dict[str, Path] = {}
    for path in sorted(shards):
        for name in bare(tree.tensors[path]).values():
            other = first.setdefault(engine_name(name) or name, path)
            if other != path and not (_SHARD.match(path.name) or _SHARD.match(other.name)):
                _one(tree, "transformer", [other, path], "name one with quant.file=FOLDER/FILE")


def _chosen(tree: _Tree, files: list[Path], weights: Weights) -> Path:
    what = f"transformer of quant={weights.quant}"
    if weights.file and tree.root / weights.file not in files:
        shown = ", ".join(map(tree.shown, files))
        hint = f"known: {shown}" if files else other_quant(tree.root, weights) or "put one there"
        raise SourceError(f"{weights.file} is no {what} below {tree.root}", field="quant.file", hint=hint)
    found = (
        tree.root / weights.file if weights.file else _one(tree, what, files, "name one with quant.file=FOLDER/FILE")
    )
    if found is None:
        raise _Absent(f"a file with a {what}")
    return found


# --- quantised files --------------------------------------------------------------------------------------------------


def _quantised(tree: _Tree, dtype: str) -> list[Path]:
    return [path for path, tensors in tree.tensors.items() if (_PACKED, dtype) in _endings(tensors)]


def _endings(tensors: Mapping[str, str]) -> set[tuple[str, str]]:
    return {(name[-len(_PACKED) :], dtype) for name, dtype in tensors.items()}


def _with_map(tree: _Tree, part: Part) -> Part:
    (path,) = part.files
    kept = {name.removesuffix(_PACKED): dtype for name, dtype in tree.tensors[path].items() if name.endswith(_PACKED)}
    # By content: names follow no rule, int8 and float8 files lie side by side, and equal maps are equally right.
    for name in tree.files[path.parent]:
        beside = path.parent / name
        if name.endswith(".json") and beside.stat().st_size <= _MAP_BYTES and _listed(_json(beside)) == kept:
            return replace(part, map=beside)
    raise SourceError(
        f"no JSON file beside {tree.shown(path)} lists its {len(kept)} quantised modules as they are stored",
        field="source",
        hint="get the quantisation map that is published with it",
    )


def _listed(told: Mapping[str, Any]) -> dict[str, str]:
    kinds = {module: kinds.get("weights") for module, kinds in told.items() if isinstance(kinds, dict)}
    return {module: _KINDS.get(str(kind), "") for module, kind in kinds.items()}


def gguf_names(path: Path) -> list[str]:
    """Return the names of the tensors of a GGUF file. Raises MissingExtra, and SourceError for a damaged file."""
    return list(read_header(path))


def _gguf_kind(path: Path) -> str:
    try:
        return kind_of(dict.fromkeys(gguf_names(path), "F32"))
    except SourceError:
        # Whoever reads it says what is wrong with it.
        return "transformer"


def _is_umt5(tensors: Mapping[str, str]) -> bool:
    return not {"token_embedding.weight", "token_embedding.weight._data"}.isdisjoint(tensors)


# --- what lies there --------------------------------------------------------------------------------------------------


def _walk(root: Path, weights: Weights) -> _Tree:
    tree = _Tree(root)
    for folder, below, names in os.walk(root, followlinks=True):
        here = Path(folder)
        deeper = len(here.relative_to(root).parts) < _DEPTH
        # Hidden is what is not finished yet.
        below[:] = sorted(name for name in below if deeper and not name.startswith("."))
        tree.files[here] = sorted(name for name in names if not name.startswith("."))
    own = {folder for folder, names in tree.files.items() if folder.name in weights.components and _is_own(names)}
    for path in tree.named(".safetensors"):
        if path.parent not in own and path.stat().st_size:
            tree.tensors[path] = _tensors(path)
    return tree


def _is_own(names: list[str]) -> bool:
    """Say whether a folder of a component's name is in the layout of diffusers; ComfyUI has folders so called, too."""
    return any(name == "config.json" or name.startswith(_OWN) for name in names)


def _component_folders(tree: _Tree, component: str) -> list[Path]:
    # Of ComfyUI's folders: what is in them is found by what it holds.
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
        if (told := what_is(path)) is not None:
            raise SourceError(f"{path} is {told[0]}", field="source", hint=told[1]) from error
        raise SourceError(f"{path} is damaged: {error}", field="source", hint=_GET) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError("it is larger than any such file")
        told = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read: {error}", field="source", hint=_GET) from error
    return told if isinstance(told, dict) else {}


def _one(tree: _Tree, what: str, found: list[Path], hint: str = "keep one of them there") -> Path | None:
    if len(found) > 1:
        shown = ", ".join(map(tree.shown, sorted(found)))
        raise SourceError(f"{tree.root} holds more than one {what}: {shown}", field="source", hint=hint)
    return found[0] if found else None

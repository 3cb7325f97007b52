"""Get a model's published weights and lay them out as the engine reads them.

    python scripts/download_models.py [--preset multitalk] [--model-path FOLDER]

FOLDER is $MODEL_PATH or /runpod-volume/models. Needs huggingface-hub and nothing else: neither torch nor the engine
have to be installed. Wan's parts come as its Diffusers repository has them; the audio weights of MultiTalk or
InfiniteTalk are renamed and put into the transformer's folder beside them. A run that was broken off goes on where it
was; `download_complete.txt` in the model's folder is written last, and where it is there nothing is fetched again.

Nobody has run this against the hub yet, for want of a machine that reaches it: the layout is tested on small folders
(tests/test_download_models.py), the names of repositories and files are those of their public pages.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

#: Fetches files of a repository that match patterns, at a revision, into a folder: huggingface_hub's snapshot_download.
Fetch = Callable[[str, tuple[str, ...], str | None, Path], None]

WAN = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
WAN_PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder")
WAV2VEC2 = "TencentGameMate/chinese-wav2vec2-base"
#: The only revision of it with safetensors.
WAV2VEC2_REVISION = "refs/pr/1"
FUSIONX = ("vrgamedevgirl84/Wan14BT2VFusioniX", "FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors")

ADAPTER = "audio-{:05d}.safetensors"
#: Bytes of one file of audio weights.
SHARD = 2 * 2**30
COMPLETE = "download_complete.txt"


@dataclass(frozen=True)
class Preset:
    """Where a model's audio weights are published."""

    repository: str
    file: str


PRESETS = {
    "multitalk": Preset("MeiGen-AI/MeiGen-MultiTalk", "multitalk.safetensors"),
    "infinitetalk": Preset("MeiGen-AI/InfiniteTalk", "multi/infinitetalk.safetensors"),
}


def download(name: str, folder: Path, fetch: Fetch, *, turbo: bool = True) -> Path:
    """Fill `folder` with the weights of preset `name` and return it."""
    preset = PRESETS[name]
    parts = folder / ".parts"
    (folder / COMPLETE).unlink(missing_ok=True)
    fetch(WAN, tuple(f"{part}/*" for part in WAN_PARTS), None, folder)
    wav2vec2 = ("config.json", "preprocessor_config.json", "model.safetensors")
    fetch(WAV2VEC2, wav2vec2, WAV2VEC2_REVISION, folder / "audio_encoder")
    fetch(preset.repository, (preset.file,), None, parts)
    add_audio(folder / "transformer", parts / preset.file)
    if turbo:
        fetch(FUSIONX[0], (FUSIONX[1],), None, parts)
        (folder / "loras").mkdir(exist_ok=True)
        (parts / FUSIONX[1]).replace(folder / "loras" / Path(FUSIONX[1]).name)
    shutil.rmtree(parts)
    index = {"_class_name": "MultiTalk", "model": name, "untrained": False}
    _write(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
    _write(folder / COMPLETE, " ".join(_words(name, turbo)) + "\n")
    return folder


def is_complete(name: str, folder: Path, *, turbo: bool = True) -> bool:
    """Return whether an earlier run got all of this."""
    try:
        return set(_words(name, turbo)) <= set((folder / COMPLETE).read_text("utf-8").split())
    except OSError:
        return False


def add_audio(transformer: Path, adapter: Path) -> None:
    """Make Wan's transformer folder one of ours: audio weights under our names, an index over all, our config."""
    stem = "diffusion_pytorch_model"
    weights = _wan_weights(transformer, stem)
    for number, names in enumerate(_copy_shards(adapter, transformer), 1):
        weights |= dict.fromkeys(names, ADAPTER.format(number))
    size = sum((transformer / name).stat().st_size for name in set(weights.values()))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weights.items()))}
    _write(transformer / f"{stem}.safetensors.index.json", json.dumps(index, indent=2))
    config = transformer / "config.json"
    ours = our_config(json.loads(config.read_text("utf-8")))
    _write(config, json.dumps(ours, indent=2) + "\n")


def our_config(wan: dict[str, object]) -> dict[str, object]:
    """Return our transformer's config for Wan's: its values where both have the name, our defaults (14B) elsewhere."""
    # Read, not imported: that would take torch.
    tree = ast.parse((_engine() / "multitalk" / "transformer.py").read_text("utf-8"))
    (network,) = (node for node in tree.body if getattr(node, "name", "") == "MultiTalkTransformer3DModel")
    assert isinstance(network, ast.ClassDef)
    (made,) = (node for node in network.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    known = [argument.arg for argument in made.args.args]
    return {"_class_name": "MultiTalkTransformer3DModel"} | {key: wan[key] for key in wan if key in known}


def _words(name: str, turbo: bool) -> list[str]:
    return [name, "turbo"] if turbo else [name]


def _wan_weights(transformer: Path, stem: str) -> dict[str, str]:
    index = transformer / f"{stem}.safetensors.index.json"
    if index.is_file():
        found: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        # A second run finds its own index.
        return {key: name for key, name in found.items() if not name.startswith("audio-")}
    with (transformer / f"{stem}.safetensors").open("rb") as file:
        return dict.fromkeys(_read_header(file), f"{stem}.safetensors")


def _copy_shards(adapter: Path, transformer: Path) -> list[list[str]]:
    # Names change and bytes do not, so safetensors' simple format is copied here: its library wants numpy or torch.
    to_engine = _engine_file("multitalk/keys.py").to_engine
    with adapter.open("rb") as file:
        header = _read_header(file)
        start = file.tell()
        shards: list[dict[str, Any]] = [{}]
        filled = 0
        # In the order of the file, which is then read from front to back.
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            if shards[-1] and filled + end - begin > SHARD:
                shards.append({})
                filled = 0
            shards[-1][to_engine(key)] = entry
            filled += end - begin
        for number, shard in enumerate(shards, 1):
            _copy_shard(file, start, shard, transformer / ADAPTER.format(number))
    return [list(shard) for shard in shards]


def _copy_shard(file: BinaryIO, start: int, shard: dict[str, Any], target: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for key, entry in shard.items():
        begin, end = entry["data_offsets"]
        header[key] = entry | {"data_offsets": [place, place + end - begin]}
        place += end - begin
    text = json.dumps(header).encode()
    # The format wants the data to begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    unfinished = target.with_name(target.name + ".part")
    with unfinished.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for entry in shard.values():
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            _copy(file, out, end - begin)
    unfinished.replace(target)


def _copy(file: BinaryIO, out: BinaryIO, size: int) -> None:
    while size:
        piece = file.read(min(size, 2**24))
        if not piece:
            raise EOFError("the audio weights end before their header says; remove them and run this again")
        out.write(piece)
        size -= len(piece)


def _read_header(file: BinaryIO) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(path)


def _engine() -> Path:
    # Of this checkout, else where it is installed, as in the image; found without being imported.
    beside = Path(__file__).resolve().parent.parent / "engine"
    if beside.is_dir():
        return beside
    spec = importlib.util.find_spec("engine")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("download_models.py: run it from a checkout of the engine, or with the engine installed")
    return Path(spec.submodule_search_locations[0])


def _engine_file(path: str) -> ModuleType:
    # One file of the engine: the package's own door needs what is not installed here.
    if "engine.errors" not in sys.modules:
        sys.modules["engine.errors"] = _load("engine.errors", _engine() / "errors.py")
    return _load(f"_download_{Path(path).stem}", _engine() / path)


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _fetch(repository: str, patterns: tuple[str, ...], revision: str | None, into: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(repository, revision=revision, allow_patterns=list(patterns), local_dir=into)


def main() -> None:
    """Read the command line and download."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="download_models.py"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="multitalk")
    parser.add_argument("--model-path", type=Path, default=Path(os.environ.get("MODEL_PATH", "/runpod-volume/models")))
    parser.add_argument("--no-turbo", action="store_true", help="leave out the distilled LoRA of sampler=turbo")
    parser.add_argument("--again", action="store_true", help="look at every file even if an earlier run got all")
    given = parser.parse_args()
    folder, turbo = given.model_path / given.preset, not given.no_turbo
    if given.again or not is_complete(given.preset, folder, turbo=turbo):
        download(given.preset, folder, _fetch, turbo=turbo)
    print(folder)


if __name__ == "__main__":
    main()

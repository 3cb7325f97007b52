"""Use files of a Hugging Face cache, this machine's or RunPod's: build a model folder of links to them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from engine.hub.manifest import Preset, expand
from engine.text.names import is_inside, is_plain


def snapshot(cache: Path, repository: str, revision: str = "main") -> Path | None:
    """Return a repository's folder in a hub cache, by `refs/<revision>` or a commit; None if the cache has none."""
    home = cache / f"models--{repository.replace('/', '--')}"
    if not is_inside(revision):
        return None
    try:
        commit = (home / "refs" / revision).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    # The library wrote it there as a server sent it.
    if not is_plain(commit):
        return None
    folder = home / "snapshots" / commit
    if folder.is_dir():
        return folder
    # RunPod documents only the snapshots; without a ref the only snapshot is used.
    snapshots = sorted(path for path in home.glob("snapshots/*") if path.is_dir())
    return snapshots[0] if revision == "main" and len(snapshots) == 1 else None


def hub_cache() -> Path:
    """Return the folder of the hub's cache on this machine; HF_HUB_CACHE and HF_HOME can set it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def find(preset: Preset, caches: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Return the cached files of `preset`, by their place in its folder, and the places of the others."""
    cached: dict[str, Path] = {}
    files = list(preset.files)
    # Indexes add their shards while the list is walked.
    for file in files:
        for cache in caches:
            folder = snapshot(cache, file.repository, file.revision)
            if folder is None or not (path := folder / file.path).is_file():
                continue
            if not file.exact or path.stat().st_size == file.size:
                cached[file.to] = path
                files += expand(file, path)[1:]
                break
    return cached, [file.to for file in files if file.to not in cached]


def link(files: dict[str, Path], name: str, into: Path | None = None) -> Path:
    """Return a folder in which each place in `files` is a link to its file; the same files give the same folder."""
    content = json.dumps({place: str(path) for place, path in sorted(files.items())})
    root = into or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "multitalk-engine" / "models"
    folder = root / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    for place, path in files.items():
        target = folder / place
        if target.is_symlink() and target.resolve() == path.resolve():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be creating the same link.
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(path.resolve())
        unfinished.replace(target)
    return folder

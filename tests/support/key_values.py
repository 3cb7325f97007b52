"""Every key of the config as an override, and another value for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.config_keys.reference import Key

#: Groups and keys of the config that may differ between two attempts at one video, with the reason.
FREE = {
    "source": "the name has a hash of the weights",
    "reader": "other readers read the same weights",
    "memory": "placement changes no value; but memory.tile does",
    "vae": "the runtime resolves it, and the provenance has the result",
    "dtype": "the runtime resolves it, and the provenance has the result",
    "device": "the runtime resolves it, and the provenance has the result",
    "kernels": "on a CPU all choices are the same; on CUDA the name has the result",
    "compile.cache": "a folder",
    "parallel.processes": "the provenance has the number of processes",
    "parallel.rank": "the number of a process",
    "parallel.local_rank": "the number of a process",
    "parallel.size": "the provenance has the number of processes",
    "parallel.run": "an id",
    "access": "media are in the name by their hashes",
    "sink": "the video is the same wherever it goes",
    "entrypoint": "all make the same video",
    "launcher": "all make the same video",
    "live": "what is published meanwhile is the same",
    "speech": "the voices are in the name by their hashes",
    "diariser": "the voices are in the name by their hashes",
    "request": "flags; the request itself is in the name",
    "resume": "where states are kept; windows that are made again are in the name by another way",
    "model.name": "the preset, which the provenance has",
    "model.folder": "the name has a hash of the weights",
    "model.packaged": "the name has a hash of the weights",
    "model.command": "text of an error",
    "model.architecture": "sizes for a plan without weights",
    "model.resolution": "`resolution` has the result",
    "model.decode_dtype": "the runtime resolves `vae.decode_dtype`, and the provenance has the result",
    "model.continuation.style": "`continuation` has the result",
    "model.continuation.blend": "`continuation` has the result",
    "model.continuation.color_strength": "`continuation` has the result",
    "model.continuation.multitalk_seconds": "text of a warning",
    "model.continuation.multitalk_seconds_by": "text of a warning",
    "model.continuation.instead": "text of a warning",
    "model.report": "`report` has the result",
    **{
        f"model.{bundle}.{key}": "`sampler` and `guidance` have the result"
        for bundle in ("standard", "turbo", "distilled")
        for key in ("steps", "shift", "text_scale", "audio_scale", "solver")
    },
    "model.defaults_of": "defaults of jobs, which the request has",
}


def concrete(key: Key) -> str:
    return key.name.replace(".NAME.", ".small.")


def override(key: Key, value: str) -> str:
    """Return the word that gives a key a value; what is in a list of LoRAs needs a whole list."""
    name = concrete(key)
    if "[]." not in name:
        return f"{name}={value}"
    name, last = name.split("[].")
    return f"{name}=[{{{last}:{value}}}]" if last == "file" else f"{name}=[{{file:a.safetensors,{last}:{value}}}]"


def other(key: Key, now: Any) -> str:
    """Return an allowed value of a key that is not `now`."""
    special = {"resolution": "large", "model.resolution": "large"}
    if key.name in special:
        return special[key.name]
    if key.words:
        return next(word for word in key.words if word != now)
    if key.type.startswith("table"):
        return "{a:[64,64]}"
    if key.type in ("list of float", "list of int"):
        return "[1.5]" if "float" in key.type else "[3]"
    if key.type.startswith("list"):
        return "[other]"
    kinds = key.type.split(" | ")
    if "bool" in kinds:
        return "false" if now is True else "true"
    if "int" in kinds or "float" in kinds:
        least, most = key.within or (1, 10)
        return str(next(n for n in (least, most) if n != now))
    return "other"


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, part in node.items():
            yield from leaves(part, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, node


def places(name: str) -> set[str]:
    """Return a key and the groups that it is in: a.b.c, a.b and a."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}

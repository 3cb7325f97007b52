"""The images' recipes, read as far as tests need them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILES = ("Dockerfile", "docker/Dockerfile.cpu")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its continued lines joined."""

    name: str
    value: str


def parse(text: str) -> list[Instruction]:
    """Read the part of the format that our files use: comments, also between continued lines; no heredocs."""
    found = []
    parts: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            name, _, value = " ".join(parts).partition(" ")
            found.append(Instruction(name, value.strip()))
            parts = []
    assert not parts, "the last line is continued"
    return found


def stages(path: str) -> list[list[Instruction]]:
    """Return the instructions of each stage, its FROM first."""
    found: list[list[Instruction]] = []
    for instruction in parse((ROOT / path).read_text("utf-8")):
        if instruction.name == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def values(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.value for instruction in stage if instruction.name == name]


def environment(path: str) -> dict[str, str]:
    words = [word for value in values(stages(path)[-1], "ENV") for word in shlex.split(value)]
    return dict(word.split("=", 1) for word in words)

"""The files of a rehearsal are those that are published, and the code runs with them on a simulated card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.assembly.compose import compose
from engine.assembly.location import weights_of
from engine.rehearsal.files import write_described
from engine.rehearsal.rehearse import default_card, rehearse
from engine.rehearsal.walk import Scene
from plugins.families.longcat.settings import INT8

#: Overrides, and bytes of files as they are published: the sum of all shards where there are several.
PUBLISHED: tuple[tuple[tuple[str, ...], dict[str, float]], ...] = (
    (
        ("model=longcat",),
        {
            "base_model": 31.7e9,
            "lora/dmd_lora.safetensors": 2_523_077_984,
            "text_encoder": 22_723_671_744,
            "vae": 507_591_892,
        },
    ),
    (("model=longcat", f"quant={INT8}"), {"base_model_int8": 15_880_382_936}),
    (("model=longcat-1.0",), {"avatar_single": 31.7e9, "chinese-wav2vec2-base": 380e6}),
    (("model=longcat-1.0-two",), {"avatar_multi": 31.7e9}),
)


@pytest.mark.parametrize(("overrides", "sizes"), PUBLISHED, ids=lambda value: " ".join(value))
def test_a_rehearsal_writes_files_of_the_published_sizes_that_are_found(
    overrides: tuple[str, ...], sizes: dict[str, float], tmp_path: Path
) -> None:
    config = compose(overrides)
    family: Any = config.family

    described = family.published_files(
        quant=config.quant.name, adapter=config.model.adapter, loras=["lora/dmd_lora.safetensors"]
    )
    write_described(tmp_path, described)
    parts, missing = type(family).find_parts(tmp_path, weights_of(config))

    assert missing == ()
    assert parts.keys() == set(family.components)
    for name, size in sizes.items():
        place = tmp_path / name
        files = [place] if place.is_file() else list(place.glob("*.safetensors"))
        # Published headers have more shards, and other settings of the tokenizer.
        assert sum(file.stat().st_size for file in files) == pytest.approx(size, rel=0.01), name
    taken = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file())
    assert taken < 4 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "speakers"),
    [
        (("model=longcat-guided", "memory=none"), 2),
        (("model=longcat", f"quant={INT8}", "memory=model-offload"), 1),
        (("model=longcat-1.0", "memory=group-offload", "quant=int8"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_rehearsal_of_few_blocks_finds_no_fault_and_the_memory_of_the_plan(
    overrides: tuple[str, ...], speakers: int
) -> None:
    report = rehearse(overrides, default_card(overrides), Scene(speakers, blocks=4))

    assert report.faults == ()
    assert report.fits
    assert report.settings["blocks"] == 48

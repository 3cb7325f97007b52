"""At full size every network is exactly what is published: names and shapes, from headers without data."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from original_folder import write_full_size

from engine.data import Weights
from engine.errors import SourceError
from engine.loading.checkpoint import build_empty, convert_transformer, read_tensors
from engine.loading.layout import ComponentLayout, find_parts
from engine.loading.model import COMPONENTS
from engine.rehearsal import published
from engine.rehearsal.files import write_sparse
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

WANTED = Weights("multitalk", "", COMPONENTS, adapter="multitalk.safetensors")
#: Component -> its tensors in our names, and their parameters, those of tensors that are not used left out.
SIZES = {
    "transformer": (1303 + 330, 16_394_878_784 + 2_487_168_000),
    "text_encoder": (242, 5_680_910_336),
    "image_encoder": (391 + 2 * 64, 632_076_800 - 1280 * 1024),
    "vae": (194, 126_892_531),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ComponentLayout]:
    result, missing = find_parts(write_full_size(tmp_path_factory.mktemp("full")), WANTED)
    assert missing == ()
    return result


@pytest.mark.parametrize("component", SIZES)
def test_files_of_full_size_fit_the_network_that_their_config_builds(
    component: str, parts: dict[str, ComponentLayout]
) -> None:
    # It raises unless both have the same names and shapes.
    model = build_empty(component, parts[component], MultiTalkTransformer3DModel)

    named = {name: tensor for name, tensor in model.named_parameters() if name != "encoder.embed_tokens.weight"}
    assert all(tensor.is_meta for tensor in named.values())
    assert (len(named), sum(tensor.numel() for tensor in named.values())) == SIZES[component]


@pytest.mark.skipif(shutil.which("fincore") is None, reason="no fincore of util-linux here")
def test_an_outline_reads_no_data(tmp_path: Path) -> None:
    # Of its own: what another test has read would be in memory already.
    shapes = published.wan(layers=1)
    path = write_sparse(tmp_path / "wan.safetensors", {name: ("F32", shape) for name, shape in shapes.items()})

    headers_only = dict(
        read_tensors(ComponentLayout("original", tmp_path, (path,)), convert_transformer, headers_only=True)
    )

    told = subprocess.run(["fincore", "-bno", "RES", path], stdout=subprocess.PIPE, text=True, check=True)
    assert len(headers_only) == len(shapes)
    assert int(told.stdout) < 2**20


def test_published_files_have_the_sizes_that_are_known(parts: dict[str, ComponentLayout]) -> None:
    (audio,) = (path for path in parts["transformer"].files if path.name == "multitalk.safetensors")
    assert audio.stat().st_size == 9_947_889_040
    # But for what torch.save puts around the data.
    for component, published_size in (("text_encoder", 11_361_920_418), ("vae", 507_609_880)):
        assert abs(parts[component].files[0].stat().st_size - published_size) < 2**20


def test_wav2vec2_has_the_published_tensors() -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    with torch.device("meta"):
        model = Wav2Vec2Model(Wav2Vec2Config())
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    convolution = "encoder.pos_conv_embed.conv"
    older = {f"{convolution}.weight_g": "original0", f"{convolution}.weight_v": "original1"}
    newer = {name: f"{convolution}.parametrizations.weight.{new}" for name, new in older.items()}
    assert ours == {newer.get(name, name): shape for name, shape in published.wav2vec2().items()}
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == 94_371_712


def test_audio_weights_of_another_width_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    shapes = published.wan(layers=2) | published.multitalk(layers=2, tokens=16)
    path = write_sparse(tmp_path / "wan.safetensors", {name: ("F32", shape) for name, shape in shapes.items()})
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"num_layers": 2}))

    with pytest.raises(SourceError, match=r"another shape of audio_proj\.proj3\.bias"):
        build_empty("transformer", ComponentLayout("original", tmp_path, (path,), config), MultiTalkTransformer3DModel)

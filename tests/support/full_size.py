"""Checkpoints of full size through the real reader, key maps and casts; too slow for the suite: nox -s complete."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from original_folder import write_full_size

#: What a load may hold beside the tensor it is placing: headers, and what the allocator keeps.
BUFFER = 64 * 2**20

READ = textwrap.dedent(
    """
    import json, re, sys
    from pathlib import Path
    from types import SimpleNamespace

    import torch

    from engine.data import Weights
    from engine.loading import checkpoint
    from engine.loading.layout import find_parts
    from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

    component, folder = sys.argv[1], Path(sys.argv[2])
    parts, missing = find_parts(folder, Weights("multitalk", "", (component,), adapter="multitalk.safetensors"))
    assert not missing, missing

    def anonymous():
        return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

    read = sum(path.stat().st_size for path in parts[component].files)
    report = {"tensors": 0, "read": read, "bytes": 0, "largest": 0, "peak": 0}

    dtype = torch.float32 if component == "vae" else torch.bfloat16
    model = checkpoint.build_empty(component, parts[component], MultiTalkTransformer3DModel)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    before = anonymous()
    # As `fill`, but that each tensor is compared and let go.
    for name, tensor in checkpoint.read_tensors(parts[component], checkpoint._CONVERT[component]):
        placed = checkpoint.place(model, component, name, tensor, dtype)
        kept = component == "transformer" and checkpoint.kept_in_float32(model, name)
        assert tuple(placed.shape) == wanted.pop(name), name
        assert placed.dtype == (torch.float32 if kept else dtype), name
        report["tensors"] += 1
        report["bytes"] += placed.nbytes
        report["largest"] = max(report["largest"], placed.nbytes)
        report["peak"] = max(report["peak"], anonymous() - before)
        del tensor, placed
        if report["tensors"] % 100 == 0:
            print(json.dumps(report), file=sys.stderr, flush=True)
    assert set(wanted) <= {"encoder.embed_tokens.weight"}, wanted
    print(json.dumps(report))
    """
)

TENSORS = {"vae": 194, "image_encoder": 391 + 2 * 64, "text_encoder": 242, "transformer": 1303 + 330}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_size(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("component", TENSORS)
def test_every_tensor_arrives_and_one_at_a_time(component: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ, component, str(folder)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0
    report = json.loads(done.stdout)
    print(f"\n{component}: {json.dumps(report)}")

    assert report["tensors"] == TENSORS[component]
    assert report["peak"] <= report["largest"] + BUFFER

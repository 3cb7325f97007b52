"""Large libraries that a run does not use are not imported, and work as ever when they are."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
#: What a video without LoRA, without compiling and without published int8 files has no use for.
UNUSED: tuple[str, ...] = ("boto3", "gguf", "peft", "pyloudnorm", "scipy.optimize", "scipy.signal", "scipy.stats")
UNUSED += ("torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "torchao")

RUN = """
import json, sys
from engine.cli.main import main
status = main(sys.argv[1:])
seen = {"status": status, "modules": sorted(sys.modules)}

import diffusers.hooks.layerwise_casting as casting
import torch
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from transformers import masking_utils

decide = FBCHeadBlockHook._should_compute_remaining_blocks
seen["marked"] = [getattr(decide, "_torchdynamo_disable", False)]
compiled = torch.compile(lambda value: value + 1, backend="eager")
seen["compiled"] = compiled(torch.ones(1)).item()
seen["marked"] += [getattr(decide, "_torchdynamo_disable", False)]
linear = torch.nn.Linear(2, 2)
seen["layer"] = [isinstance(linear, casting.BaseTunerLayer)]
from peft import LoraConfig, inject_adapter_in_model

adapted = inject_adapter_in_model(LoraConfig(target_modules=["0"]), torch.nn.Sequential(linear))
seen["layer"] += [isinstance(adapted[0], casting.BaseTunerLayer), isinstance(linear, casting.BaseTunerLayer)]
with casting.disable_input_dtype_casting(adapted):
    seen["entered"] = True

with masking_utils.TransformGetItemToIndex():
    seen["index"] = True
from scipy.stats import beta
from diffusers.schedulers import scheduling_unipc_multistep as unipc

seen["beta"] = [unipc.scipy.stats.beta.ppf(0.5, 2, 2), beta.ppf(0.5, 2, 2)]
print(json.dumps(seen))
"""


@cache
def run() -> dict[str, Any]:
    words = ["generate", "--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac"), "--quiet"]
    words += [
        "--prompt",
        "a person talks",
        "--frames",
        "5",
        "model=tiny",
        "sampler.steps=1",
        "model.turbo.loras=[]",
        "sink=base64",
    ]
    done = subprocess.run([sys.executable, "-c", RUN, *words], check=True, capture_output=True, text=True)
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.parametrize("name", UNUSED)
def test_a_video_without_lora_or_compiling_does_not_import(name: str) -> None:
    seen = run()
    assert seen["status"] == 0
    assert name not in seen["modules"]


def test_peft_is_recognised_as_soon_as_it_is_used() -> None:
    assert run()["layer"] == [False, True, False]
    assert run()["entered"]


def test_what_must_not_be_compiled_is_marked_when_something_is_compiled() -> None:
    assert run()["marked"] == [False, True]
    assert run()["compiled"] == 2
    assert run()["index"]


def test_libraries_that_are_looked_up_later_are_the_real_ones() -> None:
    assert run()["beta"] == pytest.approx([0.5, 0.5])


def imported_by(words: list[str]) -> set[str]:
    code = f"import sys; from engine.cli.main import main; main({words!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_no_library_of_numbers_or_media() -> None:
    assert not imported_by(["--help"]) & {"av", "engine.service", "numpy", "PIL", "scipy", "soxr", "torch"}


def test_a_plan_imports_no_network() -> None:
    words = ["plan", "--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac"), "--prompt", "a talk"]
    assert not imported_by(words) & {"accelerate", "diffusers", "peft", "scipy", "skimage", "torch", "transformers"}

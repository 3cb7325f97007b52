"""What "auto" means for the device, and what torch is told before CUDA starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from engine.errors import ConfigError
from engine.runtime.device import ALLOCATOR, pick_decode_dtype, pick_device

#: In a process of its own: engines are built as on a machine with a GPU, which this one is not, and load nothing.
PREPARE = """
import json, os, sys, torch
torch.cuda.is_available = lambda: True
from engine.assembly.compose import compose
from engine.pipeline import Engine
from engine.plugin.manager import installed
before = torch.cuda.is_initialized()
told = []
for device in sys.argv[1:]:
    Engine(compose(["model=tiny", f"device={device}"]), installed())
    told.append({name: os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")})
print(json.dumps([before, torch.cuda.is_initialized(), told]))
"""


def prepare(*devices: str, **environment: str) -> list[dict[str, str | None]]:
    """Return what the variables are after an engine for each device, one after the other."""
    clean = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, *devices],
        env=clean | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    before, after, told = json.loads(done.stdout.splitlines()[-1])
    assert not before
    assert not after
    found: list[dict[str, str | None]] = told
    return found


@pytest.mark.slow
def test_an_engine_on_a_cpu_sets_nothing_and_one_on_cuda_lets_segments_grow_before_cuda_starts() -> None:
    nothing = dict.fromkeys(ALLOCATOR, None)

    assert prepare("cpu", "cuda") == [nothing, nothing | {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALLOCATOR)
def test_what_the_user_set_is_left_as_it_is(name: str) -> None:
    (told,) = prepare("auto", **{name: "max_split_size_mb:512"})

    assert told == dict.fromkeys(ALLOCATOR, None) | {name: "max_split_size_mb:512"}


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="tpu"):
        pick_device("tpu")


@pytest.mark.parametrize(
    ("name", "device", "dtype", "picked"),
    [
        ("auto", "cuda", "bfloat16", "bfloat16"),
        # Whoever asks for float32 wants exact frames.
        ("auto", "cuda", "float32", "float32"),
        ("auto", "cpu", "bfloat16", "float32"),
        ("bfloat16", "cpu", "float32", "bfloat16"),
        ("float32", "cuda", "bfloat16", "float32"),
    ],
)
def test_decoding_follows_the_transformer_on_a_card(name: str, device: str, dtype: str, picked: str) -> None:
    assert pick_decode_dtype(name, device, dtype) == picked


def test_an_unknown_dtype_of_decoding_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no dtype named 'float16'") as caught:
        pick_decode_dtype("float16", "cuda", "bfloat16")
    assert caught.value.field == "vae.decode_dtype"

"""The machine: versions, flags, clocks and power, the link between host and card, and the doctor's findings."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from engine.bench.device.measure import DeviceBench, Rows, Skipped
from engine.errors import EngineError
from engine.machine.compiler import find_compiler
from engine.machine.profiles import free_on_host

#: Fields of nvidia-smi's query; clocks in MHz, power in W, memory in MiB.
_ASKED = (
    *("name", "driver_version", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit"),
    *("temperature.gpu", "pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "memory.total"),
)
#: Seconds for the doctor, where the part has more left.
_PATIENCE = 300.0
_OPTIONAL = ("torchao", "triton", "xformers", "flash_attn", "sageattention", "kernels", "gguf")


def machine(bench: DeviceBench) -> Rows:
    """Versions, the card, torch's flags, and the host."""
    yield "versions", bench.attempt(_versions)
    yield "card", bench.attempt(lambda: _card(bench))
    yield "driver", bench.attempt(ask_driver)
    yield "flags", bench.attempt(_flags)
    yield "host", bench.attempt(_host)


def _versions() -> dict[str, Any]:
    from engine.assembly.provenance import versions

    return {
        **versions(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "installed": [name for name in _OPTIONAL if find_spec(name) is not None],
        "compiler": find_compiler(),
    }


def _card(bench: DeviceBench) -> dict[str, Any]:
    bench.need_cuda()
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": properties.name,
        "known_as": None if bench.card is None else bench.card.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "free_bytes": free,
        "total_bytes": total,
        "count": torch.cuda.device_count(),
    }


def ask_driver() -> dict[str, Any]:
    """Return nvidia-smi's values for the first card. Raises Skipped without nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise Skipped("no nvidia-smi")
    command = [tool, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits", "--id=0"]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if completed.returncode:
        raise Skipped(f"nvidia-smi: {(completed.stderr or completed.stdout).strip()[:200]}")
    return read_driver(completed.stdout)


def read_driver(text: str) -> dict[str, Any]:
    """Return nvidia-smi's line of values by name, numbers as numbers."""
    return {name: _number(value.strip()) for name, value in zip(_ASKED, text.strip().split(","), strict=False)}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _flags() -> dict[str, Any]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    getters: dict[str, Callable[[], Any]] = {
        "flash_sdp": cuda.flash_sdp_enabled,
        "cudnn_sdp": cuda.cudnn_sdp_enabled,
        "mem_efficient_sdp": cuda.mem_efficient_sdp_enabled,
        "math_sdp": cuda.math_sdp_enabled,
        "preferred_blas": lambda: str(cuda.preferred_blas_library()),
        "preferred_linalg": lambda: str(cuda.preferred_linalg_library()),
        "matmul_tf32": lambda: cuda.matmul.allow_tf32,
        "matmul_bf16_reduction": lambda: str(cuda.matmul.allow_bf16_reduced_precision_reduction),
        "cudnn_tf32": lambda: cudnn.allow_tf32,
        "cudnn_benchmark": lambda: cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "threads": torch.get_num_threads,
    }
    flags = {}
    for name, ask in getters.items():
        try:
            flags[name] = ask()
        except Exception as error:  # noqa: BLE001 - a version without one flag has the others
            flags[name] = f"{type(error).__name__}"
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUDA_MODULE_LOADING", "NVIDIA_TF32_OVERRIDE"):
        flags[name] = os.environ.get(name)
    return flags


def _host() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model, "cores": usable, "free_bytes": free_on_host(), "system": platform.platform()}


# --- link -------------------------------------------------------------------------------------------------------------


def link(bench: DeviceBench) -> Rows:
    """Copies of one size: within the host, to pinned memory, and in both directions with pageable and pinned memory."""
    size = bench.shapes.copied
    yield "host to host", bench.attempt(lambda: _host_copy(bench, size))
    yield "allocate pinned", bench.attempt(lambda: _allocate(bench, size))
    yield "pin a copy", bench.attempt(lambda: _pin(bench, size))
    for pinned in (False, True):
        for way in ("host to device", "device to host"):
            name = f"{way}, {'pinned' if pinned else 'pageable'}"
            yield name, bench.attempt(lambda: _across(bench, size, way, pinned))  # noqa: B023 - it has run before the next


def _host_copy(bench: DeviceBench, size: int) -> dict[str, Any]:
    source, target = _pages(size), _pages(size)
    return _speed(size, bench.seconds(lambda: target.copy_(source)))


def _allocate(bench: DeviceBench, size: int) -> dict[str, Any]:
    bench.need_cuda()
    # A new size, so that it is not in torch's cache of pinned memory.
    return _speed(size, bench.once(lambda: torch.empty(size + 4096, dtype=torch.uint8, pin_memory=True)))


def _pin(bench: DeviceBench, size: int) -> dict[str, Any]:
    bench.need_cuda()
    source = _pages(size)
    return _speed(size, bench.seconds(source.pin_memory))


def _across(bench: DeviceBench, size: int, way: str, pinned: bool) -> dict[str, Any]:
    bench.need_cuda()
    host = _pages(size)
    if pinned:
        host = host.pin_memory()
    device = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    source, target = (host, device) if way == "host to device" else (device, host)
    return _speed(size, bench.seconds(lambda: target.copy_(source, non_blocking=pinned)))


def _pages(size: int) -> torch.Tensor:
    # Written once, because memory that was never touched is not allocated.
    return torch.ones(size, dtype=torch.uint8)


def _speed(size: int, seconds: float) -> dict[str, Any]:
    return {"bytes": size, "seconds": seconds, "gb_per_second": size / seconds / 1e9}


# --- doctor -----------------------------------------------------------------------------------------------------------


def doctor(bench: DeviceBench) -> Rows:
    """Run `multitalk doctor --json` for the embedded model on this device."""
    command = [sys.executable, "-m", "engine", "doctor", "--json", f"device={bench.device}"]
    # In a separate process, as users start it.
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=min(bench.seconds_left(), _PATIENCE)
    )
    try:
        findings = json.loads(done.stdout)["findings"]
    except ValueError as error:
        raise EngineError(f"the doctor answers nothing: {done.stderr[-400:]}", field="bench device") from error
    for finding in findings:
        yield finding["name"], finding

"""How fast weights are read from disk, compared with plain reading and the libraries' own loading, as JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.bench.family import network
from engine.components import Reader
from engine.errors import RequestError
from engine.evaluation.bars import Bar, check_bars
from engine.loading.component_files import ComponentFiles
from engine.loading.fill import find_stored
from engine.loading.layout import part_in
from engine.loading.model import DTYPES
from engine.loading.safetensors_reader import BUFFER, PIECE
from engine.plugin.manager import installed
from engine.runtime.memory import forget_peak, status

BARS = (
    Bar("cold, share of plain reading's speed", "ratios/cold", least=0.85),
    Bar("warm, share of the speed of reading to fresh memory and casting", "ratios/warm", least=0.9),
    Bar("warm, speed against from_pretrained and .to", "ratios/libraries_warm", least=1),
    Bar("cold, speed against from_pretrained and .to", "ratios/libraries_cold", least=1),
    Bar("host memory above the model, share of largest tensor and buffer", "memory/share", most=1),
)
#: Smaller checkpoints use a narrow network: a single block of the 14B's width is nearly 2 GB.
_NARROW_BELOW = 2.0
_NARROW = {"num_attention_heads": 4, "ffn_dim": 1536, "text_dim": 256, "audio_intermediate_dim": 16, "image_dim": 256}
_SHARD = 2**30
#: Largest share of a cold file that may be in the page cache.
_COLD = 0.01


def run(
    size: float = 4.0, rounds: int = 3, dtype: str = "bfloat16", reader: str = "ahead", folder: str = ""
) -> dict[str, Any]:
    """Write a float32 checkpoint of about `size` GB, load it in several ways in turn, and compare; Linux only.

    The network is the 14B's with fewer blocks. It is written below `folder` (default: the system's temporary folder;
    not in memory, because such files cannot be cold) and removed afterwards. Each figure is the median of `rounds`
    ratios of times measured one after the other. Raises RequestError.
    """
    if size <= 0 or rounds < 1 or dtype not in DTYPES:
        hint = "more than 0 GB, 1 round or more, float32 or bfloat16"
        raise RequestError(f"{size:g} GB, {rounds} rounds, {dtype}", field="bench load", hint=hint)
    chosen_reader = installed().readers.build_default(reader)
    with tempfile.TemporaryDirectory(prefix="multitalk-load-", dir=folder or None) as name:
        root = Path(name)
        config = write_checkpoint(root / "transformer", size)
        stored = find_stored(root / "transformer")
        busy = os.getloadavg()[0]
        timed = [_round(root, dtype, chosen_reader) for _ in range(rounds)]
        report: dict[str, Any] = {
            "bench": "load",
            "checkpoint": {
                "bytes": sum(entry.size for entry in stored.values()),
                "files": len({entry.file for entry in stored.values()}),
                "tensors": len(stored),
                "dtype": "float32",
                "config": config,
            },
            "dtype": dtype,
            "reader": reader,
            "rounds": rounds,
            "processors": os.cpu_count(),
            "load_average": busy,
            "seconds": {way: [row[way][0] for row in timed] for way in timed[0]},
            "cpu_seconds": {way: [row[way][1] for row in timed] for way in timed[0]},
            "ratios": _ratios(timed),
            "memory": _memory(root, dtype, reader, max(entry.size for entry in stored.values())),
        }
    report["bars"] = check_bars(report, BARS)
    return report


def write_checkpoint(folder: Path, size: float) -> dict[str, int]:
    """Write a transformer of about `size` GB in float32 in diffusers' layout; return its differences from the defaults.

    Raises RequestError if the disk is too small.
    """
    from accelerate import init_empty_weights

    folder.mkdir(parents=True)
    sizes: dict[str, Any] = dict(_NARROW) if size < _NARROW_BELOW else {}
    with init_empty_weights():
        outside, one = (_bytes(network()(**sizes, num_layers=layers)) for layers in (0, 1))
        sizes["num_layers"] = max(1, round((size * 1e9 - outside) / (one - outside)))
        size_needed, free = outside + sizes["num_layers"] * (one - outside), shutil.disk_usage(folder).free
        if size_needed > 0.9 * free:
            raise RequestError(
                f"a checkpoint of {size_needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                field="bench load",
                hint="--size, or --folder on another disk",
            )
        model = network()(**sizes)
    model.save_config(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    index: dict[str, str] = {}
    for number, names in enumerate(_shards(shapes), 1):
        file = f"diffusion_pytorch_model-{number:05d}.safetensors"
        _write_file(folder / file, {name: shapes[name] for name in names})
        index |= dict.fromkeys(names, file)
    index_file = {"metadata": {"total_size": size_needed}, "weight_map": index}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index_file), "utf-8")
    return sizes


def drop(files: Sequence[Path]) -> None:
    """Make the kernel drop `files` from its page cache. Raises RequestError if it does not."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    share = max(map(resident, files))
    if share > _COLD:
        raise RequestError(
            f"{share:.0%} of a file stay in memory, so no file can be cold",
            field="bench load",
            hint="name a --folder on a disk",
        )


def resident(file: Path) -> float:
    """Return the share of a file's pages that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    length = file.stat().st_size
    pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
    with file.open("rb") as opened:
        address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, opened.fileno(), 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        if libc.mincore(address, length, pages):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        libc.munmap(address, length)
    return sum(page & 1 for page in pages.raw) / len(pages)


# --- what is timed ----------------------------------------------------------------------------------------------------


def _files(root: Path, dtype: str) -> ComponentFiles:
    part = part_in(root / "transformer", "transformer")
    return ComponentFiles(part, "transformer", DTYPES[dtype], network=network())


def load_ours(root: Path, dtype: str, reader: Reader) -> nn.Module:
    """Load the transformer as the engine does."""
    return _files(root, dtype).read(reader, "cpu")


def load_theirs(root: Path, dtype: str) -> nn.Module:
    """Load the transformer as diffusers does, then cast it."""
    model: nn.Module = network().from_pretrained(root / "transformer", local_files_only=True)
    return model.to(DTYPES[dtype])


def read_plain(files: Sequence[Path]) -> None:
    """Read the files one after the other, from the first byte to the last, into one buffer."""
    buffer = bytearray(PIECE)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def read_fresh(part: ComponentFiles) -> dict[str, torch.Tensor]:
    """Read every tensor into its own memory, then cast it."""
    assert part.stored is not None, "a checkpoint of plain tensors"
    read = {}
    for name, stored in part.stored.items():
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        view = tensor.view(-1).view(torch.uint8).numpy().data
        with stored.file.open("rb", buffering=0) as opened:
            opened.seek(stored.offset)
            while view:
                view = view[opened.readinto(view) :]
        read[name] = tensor.to(part.dtypes[name])
    return read


def _round(root: Path, dtype: str, reader: Reader) -> dict[str, tuple[float, float]]:
    files = sorted((root / "transformer").glob("*.safetensors"))
    part = _files(root, dtype)
    ways: dict[str, Callable[[], object]] = {
        "plain_cold": lambda: read_plain(files),
        "ours_cold": lambda: load_ours(root, dtype, reader),
        "libraries_cold": lambda: load_theirs(root, dtype),
        "fresh_warm": lambda: read_fresh(part),
        "ours_warm": lambda: load_ours(root, dtype, reader),
        "libraries_warm": lambda: load_theirs(root, dtype),
    }
    times = {}
    for way, call in ways.items():
        if way.endswith("_cold"):
            drop(files)
        times[way] = _time(call)
    return times


def _time(call: Callable[[], object]) -> tuple[float, float]:
    """Return wall-clock seconds and processor seconds of `call`, and drop its result."""
    began, worked = time.perf_counter(), time.process_time()
    result = call()
    times = time.perf_counter() - began, time.process_time() - worked
    del result
    # Modules are in reference cycles; files that they map could not be dropped from the cache.
    gc.collect()
    return times


def _ratios(timed: Sequence[dict[str, tuple[float, float]]]) -> dict[str, float]:
    def ratio(other: str, ours: str) -> float:
        return statistics.median(row[other][0] / row[ours][0] for row in timed)

    return {
        "cold": ratio("plain_cold", "ours_cold"),
        "warm": ratio("fresh_warm", "ours_warm"),
        "libraries_cold": ratio("libraries_cold", "ours_cold"),
        "libraries_warm": ratio("libraries_warm", "ours_warm"),
    }


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory(root: Path, dtype: str, reader: str, largest: int) -> dict[str, float]:
    """Load in a new process and return its peak memory above the start, and above the model."""
    command = [sys.executable, "-m", "engine.bench.load", str(root), dtype, reader]
    completed = subprocess.run(command, check=True, capture_output=True, text=True)
    peaks: dict[str, int] = json.loads(completed.stdout.splitlines()[-1])
    above = peaks["peak_bytes"] - peaks["before_bytes"] - peaks["model_bytes"]
    allowed = largest + BUFFER
    return {**peaks, "above_bytes": above, "largest_bytes": largest, "buffer_bytes": BUFFER, "share": above / allowed}


def _child(root: Path, dtype: str, reader: str) -> dict[str, int]:
    chosen_reader = installed().readers.build_default(reader)
    part = _files(root, dtype)
    before = forget_peak() * 1024
    model = part.read(chosen_reader, "cpu")
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "before_bytes": before,
        "peak_bytes": status("VmHWM") * 1024,
        "model_bytes": sum(tensor.numel() * tensor.itemsize for tensor in tensors),
    }


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def _bytes(network: nn.Module) -> int:
    return sum(4 * tensor.numel() for tensor in network.state_dict().values())


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + 4 * math.prod(shape) > _SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += 4 * math.prod(shape)
    yield names


def _write_file(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a safetensors file in float32, tensor by tensor, because a whole one may not fit into memory."""
    # The values do not matter, but must be ordinary numbers.
    noise = (0.02 * torch.randn(2**20)).numpy().data.cast("B")
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as opened:
        opened.write(len(encoded).to_bytes(8, "little") + encoded)
        while end > 0:
            end -= opened.write(noise[: min(end, len(noise))])


if __name__ == "__main__":
    print(json.dumps(_child(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))

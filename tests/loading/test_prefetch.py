"""Weights are read while libraries are imported: they are in the machine's cache before anybody asks for them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from engine.loading.prefetch import reading_ahead

SIZE = 4 * 2**20
ROOT = Path(__file__).parents[2]


def cached(path: Path) -> bool:
    """Say whether all of a file is in the cache: reads that may not wait for the disk succeed."""
    with path.open("rb") as file:
        for start in range(0, path.stat().st_size, 4096):
            try:
                if not os.preadv(file.fileno(), [bytearray(4096)], start, os.RWF_NOWAIT):
                    return False
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                pytest.skip("this file system cannot say what is in the cache")
    return True


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file that is on the disk alone."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path):
        pytest.skip("this file system keeps everything in memory")
    return path


def test_files_are_in_the_cache_while_the_block_does_something_else(cold: Path, tmp_path: Path) -> None:
    with reading_ahead([tmp_path / "missing", cold]):
        deadline = time.monotonic() + 60
        while not cached(cold):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_reading_ends_with_the_block(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    written, broken = threading.Event(), threading.Event()

    def write() -> None:
        try:
            with path.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1024))
                    written.set()
                    time.sleep(0.01)
        except BrokenPipeError:
            broken.set()

    threading.Thread(target=write, daemon=True).start()
    with reading_ahead([path]):
        assert written.wait(60)
    assert broken.wait(60)


def test_the_service_reads_its_weights_ahead_of_its_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; from engine.service import EngineService; service = EngineService(['model=tiny']);"
        "from engine.assembly.location import WeightsFinder; weights = WeightsFinder(service._registry);"
        "names = [path.parent.name for path in service._weight_files(weights)];"
        "print(names[0], len(names) >= 5, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["transformer", "True", "False"]

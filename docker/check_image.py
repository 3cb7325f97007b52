"""What an image must be able to do, tried while it is built: an image that fails here is not built.

    python check_image.py [--compiler]

Libraries of installed packages must be compiled for the CUDA that torch brings; one for another would fail when it is
loaded, long after the start. With --compiler a C extension is built and imported, as Triton does before its first
kernel.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SOURCE = """
#include <Python.h>
static struct PyModuleDef about = {PyModuleDef_HEAD_INIT, "tried", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_tried(void) { return PyModule_Create(&about); }
"""


def misfits(folder: Path, cuda: str) -> Iterator[str]:
    """Yield a line for each library below `folder` that needs another major version of CUDA than `cuda`'s."""
    from engine.machine.libraries import cuda_of

    for path in sorted(path for path in folder.rglob("*.so*") if path.is_file()):
        try:
            wanted = cuda_of(path)
        except ValueError:
            # A linker script, or another architecture's.
            continue
        if wanted is not None and wanted != int(cuda.partition(".")[0]):
            yield f"{path.relative_to(folder)} needs libcudart.so.{wanted}, and torch brings CUDA {cuda}"


def compile_extension(include: str = sysconfig.get_paths()["include"]) -> None:
    """Build a C extension and import it. Raises RuntimeError saying what is missing."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("no C compiler is on the path, and Triton needs one")
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "tried.c"), Path(folder, "tried.so")
        source.write_text(_SOURCE)
        command = [compiler, str(source), "-O3", "-shared", "-fPIC", f"-I{include}", "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"a C extension cannot be built: {done.stderr.strip()}")
        spec = importlib.util.spec_from_file_location("tried", made)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def main(words: list[str]) -> int:
    """Return 0, or 1 where something would not work."""
    import torch

    wrong: list[str] = []
    if torch.version.cuda is not None:
        wrong += misfits(Path(sysconfig.get_paths()["purelib"]), torch.version.cuda)
    if "--compiler" in words:
        try:
            compile_extension()
        except RuntimeError as error:
            wrong.append(str(error))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Run the blocks of the documents as a reader would, with bash and Python; `nox -s blocks`.

    python tests/support/doc_runs.py [PAGE ...]

All blocks of a page run in one folder, in their order; those with a mark (doc_blocks.py) are left out. Prints a line
for each, with its seconds, and exits with 1 if one failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from doc_blocks import ROOT, Block, blocks
from PIL import Image

#: Seconds after which a block has failed: the longest makes eight videos on two cores.
LIMIT = 1800


def prepare(folder: Path) -> None:
    """Put into `folder` what a reader has: the examples, a picture and a voice of their own."""
    (folder / "examples").symlink_to(ROOT / "engine" / "examples")
    Image.open(ROOT / "engine" / "examples" / "one.png").convert("RGB").save(folder / "anna.jpg")
    shutil.copy(ROOT / "engine" / "examples" / "one.flac", folder / "anna.flac")


def run(block: Block, folder: Path) -> str:
    """Run a block in `folder`; return what is wrong, or ''."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": ""}
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    else:
        # A checkout's own environment is the one that runs this.
        command = ["bash", "-euo", "pipefail", "-c", block.text.replace(".venv/bin/", "")]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT} s"
    return "" if done.returncode == 0 else f"status {done.returncode}: {done.stderr[-2000:]}"


def main(pages: list[str]) -> int:
    """Run the blocks of `pages`, all by default."""
    chosen = [block for block in blocks() if block.language in ("bash", "python") and not block.mark]
    if pages:
        chosen = [block for block in chosen if str(block.page.relative_to(ROOT)) in pages]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="multitalk-blocks-") as name:
        for block in chosen:
            folder = Path(name) / block.page.stem
            if not folder.exists():
                folder.mkdir()
                prepare(folder)
            began = time.monotonic()
            wrong = run(block, folder)
            failed += bool(wrong)
            print(
                f"{'FAILED' if wrong else 'ok':6} {time.monotonic() - began:6.1f} s  {block.name}  {wrong}", flush=True
            )
    print(f"{len(chosen)} blocks, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

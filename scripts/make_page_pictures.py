"""Make the pictures of README and the documents that show the program at work; all of them are of real runs.

    python -m scripts.make_page_pictures [FOLDER] [--only NAME ...]

FOLDER is docs/images by default. talk.webp is the video at the top of README, plan.svg and progress.svg are what a
terminal shows, preview.png is what `--preview` draws, endpoint.png and compare.png are pages in Chromium (Debian:
apt-get install chromium). Takes about three minutes on two cores. Run it after what they show has changed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text

from engine.evaluation.frames import read_video

ROOT = Path(__file__).parent.parent
#: The drawn people talk one after the other; the larger resolution of the embedded model damages eyes.
TALK = (
    "multitalk generate --image examples/two.png --audio examples/left.flac --audio examples/right.flac"
    ' --audio-type add --prompt "Two people talk in a park in the morning, smiling." --seed 7'
)
PLAN = (
    "multitalk plan --image examples/two.png --audio examples/left.flac --audio examples/right.flac"
    ' --prompt "two people talk" model=multitalk recipe=card-24gb'
)
ONE = 'multitalk generate --image examples/one.png --audio examples/one.flac --prompt "a woman speaks"'
#: Every second frame of 25 is enough for a picture that moves, and halves the file.
STEP, ZOOM = 2, 3
COLUMNS = 100


def talk(out: Path, work: Path) -> None:
    """Make a video and keep its frames as an animated WebP."""
    multitalk(f"{TALK} --output {work}/talk.mp4 sampler=standard --quiet")
    frames = read_video(work / "talk.mp4")[::STEP]
    size = (frames.shape[2] * ZOOM, frames.shape[1] * ZOOM)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames]
    pictures[0].save(
        out / "talk.webp",
        save_all=True,
        append_images=pictures[1:],
        duration=40 * STEP,
        loop=0,
        quality=70,
        method=6,
    )


def plan(out: Path, work: Path) -> None:
    """Show a plan as a terminal does."""
    printed = multitalk(PLAN).replace(str(Path.home()), "~").replace(str(ROOT), "…")
    terminal(f"$ {PLAN}\n{printed}", out / "plan.svg", "multitalk plan")


def progress(out: Path, work: Path) -> None:
    """Show the bar of a video in the middle of its work, and what stands at its end."""
    typed = f"{ONE} sampler=turbo"
    seen = in_terminal(f"{typed} --output {work}/one.mp4")
    bars = [part for part in re.split(r"[\r\n]+", seen) if "denoise" in part]
    if not bars:
        raise SystemExit("no bar was seen; the terminal showed: " + seen)
    end = [line for line in re.split(r"[\r\n]+", seen) if "made in" in line][-1:]
    shown = "\n".join([f"$ {typed}", bars[len(bars) // 2], *end])
    terminal(re.sub(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", "", shown), out / "progress.svg", "multitalk generate")


def preview(out: Path, work: Path) -> None:
    """Show where the speakers of a file are."""
    multitalk(
        "multitalk generate --image examples/two.png --speakers examples/speakers.yaml"
        f' --prompt "two people talk" --preview {work}/who.png --dry-run'
    )
    with Image.open(work / "who.png") as picture:
        zoom = max(1, 640 // picture.width)
        large = picture.convert("RGB").resize((picture.width * zoom, picture.height * zoom), Image.Resampling.LANCZOS)
    large.quantize(128).save(out / "preview.png", optimize=True)


def compare(out: Path, work: Path) -> None:
    """Show the page of a sweep of two videos."""
    multitalk(f"{ONE} --output {work}/films/one.mp4 -m sampler=turbo request.seed=1,2 --quiet")
    multitalk(f"multitalk compare {work}/films")
    shot(f"file://{work}/films/index.html", out / "compare.png", work, width=1000, height=760)


def endpoint(out: Path, work: Path) -> None:
    """Show the endpoint's page after a job."""

    async def fill(tab: Any) -> dict[str, Any]:
        health = "document.getElementById('health').innerText.includes('of')"
        await tab.until(f"document.readyState === 'complete' && {health}")
        await tab.choose("picture", ROOT / "examples" / "one.png")
        await tab.choose("voice1", ROOT / "examples" / "one.flac")
        await tab.run("document.getElementById('prompt').value = 'A woman speaks.'")
        await tab.run("document.getElementById('turbo').checked = true")
        await tab.run("document.getElementById('send').click()")
        await tab.until("!document.getElementById('save').hidden")
        return {}

    with served() as address:
        shot(address, out / "endpoint.png", work, width=860, height=1950, use=fill)


@contextmanager
def served() -> Iterator[str]:
    """Run `multitalk endpoint model=tiny` and yield the address of its page."""
    words = [str(Path(sys.executable).with_name("multitalk")), "endpoint", "model=tiny", "--port", "0"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        if found is None:
            raise SystemExit("the endpoint printed no address")
        yield found[0] + "/"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def shot(
    page: str, file: Path, work: Path, *, width: int, height: int, use: Callable[[Any], Any] | None = None
) -> None:
    """Write what Chromium shows of `page`, once `use` is done with it, as a PNG of few colours."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from browser import CHROMIUM, opened

    if CHROMIUM is None:
        raise SystemExit("chromium is not installed; on Debian: apt-get install chromium")

    async def look(tab: Any) -> dict[str, Any]:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await tab.call("Emulation.setDeviceMetricsOverride", **metrics)
        if use is not None:
            await use(tab)
        await tab.until("document.readyState === 'complete'")
        await asyncio.sleep(1)
        content = (await tab.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, content["height"]), "scale": 1}
        taken = await tab.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))
        return {}

    asyncio.run(opened(page, work / "browser", look))
    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(200)
    few.save(file, optimize=True)


def multitalk(line: str) -> str:
    """Run a command line of ours as it would be typed in the checkout, and return its stdout."""
    words = [str(Path(sys.executable).with_name("multitalk")), *shlex.split(line)[1:]]
    environment = os.environ | {"COLUMNS": str(COLUMNS)}
    return subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def in_terminal(line: str) -> str:
    """Run a command line in a terminal of its own and return all that it wrote there."""
    words = [str(Path(sys.executable).with_name("multitalk")), *shlex.split(line)[1:]]
    written: list[bytes] = []

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        written.append(data)
        return data

    os.environ |= {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        pty.spawn(words, read)
    finally:
        os.chdir(here)
    return b"".join(written).decode("utf-8", "replace")


def terminal(text: str, file: Path, title: str) -> None:
    """Write `text`, with its colours, as an SVG that uses the reader's own fonts."""
    lines = text.rstrip("\n").split("\n")
    width = min(160, max(COLUMNS, *(len(Text.from_ansi(line)) for line in lines)))
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, force_terminal=True, color_system="truecolor")
        for line in lines:
            console.print(Text.from_ansi(line))
        drawn = console.export_svg(title=title)
    # rich names a font of another host, and itself.
    drawn = re.sub(r"@font-face \{.*?\}\n?", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!-- Generated with Rich .*? -->\n?", "", drawn)
    file.write_text(drawn.replace("Fira Code, monospace", "monospace"), "utf-8")


PICTURES = {one.__name__: one for one in (talk, plan, progress, preview, compare, endpoint)}


def main() -> None:
    """Read the command line and make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs" / "images")
    parser.add_argument("--only", nargs="+", choices=sorted(PICTURES), default=list(PICTURES))
    options = parser.parse_args()
    out = options.folder.resolve()
    for name in options.only:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="multitalk-pictures-") as work:
            PICTURES[name](out, Path(work).resolve())
        print(f"{name}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

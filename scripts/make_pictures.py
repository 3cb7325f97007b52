"""Make the pictures of README and docs with the embedded model, and one short clip.

    python -m scripts.make_pictures [FOLDER]

FOLDER is docs/images by default: demo.png (the preview of the demo picture, and frames of the demo), tiny.png (held-out
people, one a row, frame by frame) and tiny.mp4. Needs eSpeak NG for the voices of tiny.png.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine import EngineService, Request, Speaker
from engine.evaluation.frames import read_video
from scripts.evaluate_tiny.cases import find_cases
from scripts.evaluate_tiny.films import generate_video

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "engine" / "examples"
#: Frames of the demo that README shows: the left person talks, then the right one.
DEMO_FRAMES = (12, 34, 80, 112)
ROWS, COLUMNS = 4, 8

Pixels = npt.NDArray[np.uint8]


def demo(service: EngineService, folder: Path) -> None:
    """Show where each speaker is, and four frames of the demo."""
    request = Request(
        "Two people talk in a park in the morning, smiling.",
        str(EXAMPLES / "two.png"),
        (Speaker(str(EXAMPLES / "left.flac")), Speaker(str(EXAMPLES / "right.flac"))),
        audio_type="add",
        seed=7,
        overrides=("sampler=turbo",),
    )
    with tempfile.TemporaryDirectory() as name:
        preview = Path(name) / "who.png"
        service.preview(request, preview)
        who = Image.open(preview).convert("RGB")
    address = service.generate(request).address
    if address is None:
        raise SystemExit("the sink keeps no file")
    frames = read_video(Path(address))[list(DEMO_FRAMES)]
    height = 2 * frames.shape[1] + 4
    left = np.asarray(who.resize((round(who.width * height / who.height), height)))
    pairs = [np.concatenate([_padded(frames[i]), _padded(frames[i + 1])], 1) for i in (0, 2)]
    right = np.concatenate(pairs, 0)[:height]
    _save(np.concatenate([_padded(left)[:height], right], 1), folder / "demo.png", 2)


def sheet(service: EngineService, folder: Path) -> None:
    """Show held-out people who talk, and keep the first one's clip."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        cases = find_cases(6_500_000, ROWS, Path(name), frames=81, people=(2, 1), sizes=((160, 96),))
        for case in cases:
            frames = generate_video(service, case).frames[2 :: 81 // COLUMNS][:COLUMNS]
            rows.append(np.concatenate([_padded(frame) for frame in frames], 1))
        request = Request(
            cases[0].prompt, str(cases[0].image), tuple(Speaker(str(v)) for v in cases[0].voices), seed=cases[0].seed
        )
        address = service.generate(request).address
        if address is None:
            raise SystemExit("the sink keeps no file")
        shutil.copy(address, folder / "tiny.mp4")
    _save(np.concatenate(rows, 0), folder / "tiny.png", 1)


def _padded(frame: Pixels) -> Pixels:
    return np.pad(frame, ((0, 2), (0, 2), (0, 0)), constant_values=255)


def _save(pixels: Pixels, path: Path, zoom: int) -> None:
    picture = Image.fromarray(pixels)
    size = (picture.width * zoom, picture.height * zoom)
    picture.resize(size, Image.Resampling.LANCZOS).quantize(200).save(path, optimize=True)


def main() -> None:
    """Read the command line and make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs" / "images")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as films:
        service = EngineService(["model=tiny", "source=packaged", "sink=disk", f"sink.folder={films}"])
        demo(service, folder)
        sheet(service, folder)
        service.close()


if __name__ == "__main__":
    main()

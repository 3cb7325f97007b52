"""Draw the demo pictures and let eSpeak NG speak the demo voices.

    python scripts/make_examples.py [FOLDER]

FOLDER is engine/examples by default. Needs the command espeak-ng (Debian: apt-get install espeak-ng).
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

FOLDER = Path(__file__).parent.parent / "engine" / "examples"

SIZE = (480, 288)
#: Drawn larger, then made smaller: smooth edges.
OVERSAMPLING = 4

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Face:
    """How one cartoon person looks; `x` is the middle in picture widths, `scale` the head's height in pictures."""

    x: float
    skin: Colour
    hair: Colour
    shirt: Colour
    long_hair: bool
    scale: float = 0.5


ANNA = Face(0.28, (246, 205, 173), (94, 52, 28), (196, 62, 74), long_hair=True)
BEN = Face(0.72, (222, 168, 128), (38, 34, 40), (52, 98, 168), long_hair=False)
PICTURES = {"two.png": (ANNA, BEN), "one.png": (Face(0.5, *(BEN.skin, (150, 96, 40), (66, 130, 92)), False, 0.58),)}


@dataclass(frozen=True)
class Voice:
    """What eSpeak NG is asked to say."""

    voice: str
    pitch: int
    speed: int
    words: str


VOICES = {
    "left.flac": Voice("en-us+f3", 62, 165, "Hello Ben, what a sunny day it is."),
    "right.flac": Voice("en-gb+m3", 38, 155, "Good morning Anna, let us walk along the river."),
    "one.flac": Voice("en-us+m7", 45, 160, "I am a small drawing, and now I can talk."),
}


def make(folder: Path = FOLDER) -> None:
    """Write all pictures and voices into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, faces in PICTURES.items():
        draw(faces).save(folder / name, optimize=True)
    for name, voice in VOICES.items():
        speak(voice, folder / name)


def draw(faces: tuple[Face, ...]) -> Image.Image:
    """Draw people in a park, from the chest up."""
    width, height = (OVERSAMPLING * side for side in SIZE)
    picture = Image.new("RGB", (width, height), (164, 208, 240))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((0.84 * width, 0.06 * height, 0.94 * width, 0.06 * height + 0.1 * width), fill=(252, 226, 120))
    pen.ellipse((-0.2 * width, 0.55 * height, 0.7 * width, 1.6 * height), fill=(140, 192, 112))
    pen.ellipse((0.35 * width, 0.6 * height, 1.25 * width, 1.6 * height), fill=(120, 176, 98))
    for face in faces:
        _draw_face(pen, face, width, height)
    return picture.resize(SIZE, Image.Resampling.LANCZOS).quantize(96, dither=Image.Dither.NONE)


def _draw_face(pen: ImageDraw.ImageDraw, face: Face, width: int, height: int) -> None:
    unit = face.scale * height / 2
    x, y = face.x * width, 0.44 * height

    def oval(dx: float, dy: float, rx: float, ry: float, fill: Colour) -> None:
        box = (x + (dx - rx) * unit, y + (dy - ry) * unit, x + (dx + rx) * unit, y + (dy + ry) * unit)
        pen.ellipse(box, fill=fill)

    line = (60, 36, 30)
    if face.long_hair:
        oval(0, 0.25, 0.98, 1.35, face.hair)
    oval(0, 2.35, 1.35, 1.25, face.shirt)
    pen.rectangle((x - 0.26 * unit, y + 0.7 * unit, x + 0.26 * unit, y + 1.3 * unit), fill=face.skin)
    oval(0, -0.2, 0.86, 0.98, face.hair)
    for side in (-1, 1):
        oval(0.78 * side, 0.08, 0.14, 0.2, face.skin)
    oval(0, 0.08, 0.76, 0.94, face.skin)
    # A fringe: the forehead's upper part is hair again.
    pen.chord((x - 0.76 * unit, y - 0.95 * unit, x + 0.76 * unit, y + 0.35 * unit), 195, 345, fill=face.hair)
    for side in (-1, 1):
        oval(0.3 * side, 0.0, 0.15, 0.12, (255, 255, 255))
        oval(0.3 * side, 0.01, 0.075, 0.09, line)
        brow = (x + (0.3 * side - 0.18) * unit, y - 0.32 * unit, x + (0.3 * side + 0.18) * unit, y - 0.08 * unit)
        pen.arc(brow, 200, 340, fill=face.hair, width=int(0.06 * unit))
        oval(0.45 * side, 0.36, 0.13, 0.08, tuple(max(0, part - 14 * i) for i, part in enumerate(face.skin)))  # type: ignore[arg-type]
    pen.arc(
        (x - 0.1 * unit, y + 0.1 * unit, x + 0.1 * unit, y + 0.32 * unit), 20, 160, fill=line, width=int(0.04 * unit)
    )
    # The mouth: dark inside, lips around it, a little open.
    oval(0, 0.57, 0.3, 0.15, (190, 74, 80))
    oval(0, 0.57, 0.22, 0.075, (70, 16, 22))


def speak(voice: Voice, path: Path) -> None:
    """Let eSpeak NG say `voice.words` and write them as 16-bit mono FLAC."""
    command = shutil.which("espeak-ng")
    if command is None:
        raise SystemExit("espeak-ng is not installed; on Debian: apt-get install espeak-ng")
    options = ["-v", voice.voice, "-p", str(voice.pitch), "-s", str(voice.speed), "--stdout"]
    spoken = subprocess.run([command, *options, voice.words], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(spoken)) as sound:
        rate = sound.getframerate()
        # eSpeak streams: the header's length is not to be trusted.
        samples = np.frombuffer(sound.readframes(2**31 // 2 - 1), np.int16)
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    make(parser.parse_args().folder)

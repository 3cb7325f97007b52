"""Draw the demo pictures and make the demo voices with eSpeak NG.

    python -m scripts.make_examples [FOLDER]

FOLDER is engine/examples by default. The people are drawn as those the embedded model has learnt (scripts/train_tiny),
from seeds it has not seen. Needs the command espeak-ng (Debian: apt-get install espeak-ng).
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
from PIL import Image

from scripts.train_tiny.scene import draw, random_scene

FOLDER = Path(__file__).parent.parent / "engine" / "examples"

SIZE = (480, 288)
#: File -> people and seed of a held-out scene.
PICTURES = {"two.png": (2, 267), "one.png": (1, 2)}


@dataclass(frozen=True)
class SpokenLine:
    """A line for eSpeak NG to speak."""

    voice: str
    pitch: int
    speed: int
    words: str


VOICES = {
    "left.flac": SpokenLine("en-us+f3", 62, 165, "Hello Clara, what a sunny day it is."),
    "right.flac": SpokenLine("en-gb+f4", 45, 155, "Good morning Anna, let us walk along the river."),
    "one.flac": SpokenLine("en-us+f2", 50, 160, "I am a small drawing, and now I can talk."),
}


def make(folder: Path = FOLDER) -> None:
    """Write all pictures and voices into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (people, seed) in PICTURES.items():
        picture(people, seed).save(folder / name, optimize=True)
    for name, voice in VOICES.items():
        speak(voice, folder / name)


def picture(people: int, seed: int) -> Image.Image:
    """Draw a held-out scene as it begins, with shut mouths."""
    frame = draw(random_scene(seed, SIZE, people, "held_out"), 0.0)
    return Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE)


def speak(voice: SpokenLine, path: Path) -> None:
    """Speak `voice.words` with eSpeak NG and write them as 16-bit mono FLAC."""
    command = shutil.which("espeak-ng")
    if command is None:
        raise SystemExit("espeak-ng is not installed; on Debian: apt-get install espeak-ng")
    options = ["-v", voice.voice, "-p", str(voice.pitch), "-s", str(voice.speed), "--stdout"]
    wav = subprocess.run([command, *options, voice.words], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(wav)) as sound:
        rate = sound.getframerate()
        # eSpeak writes a stream, so the length in the header is wrong.
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

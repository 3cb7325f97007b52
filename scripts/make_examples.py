"""Draw the example pictures and a video, and make the example voices with eSpeak NG.

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
import numpy.typing as npt
from PIL import Image

from scripts.evaluate_tiny.cases import write_film
from scripts.train_tiny.clips import make_clip
from scripts.train_tiny.scene import draw, random_scene

FOLDER = Path(__file__).parent.parent / "engine" / "examples"

SIZE = (480, 288)
#: File -> people and seed of a held-out scene.
PICTURES = {"two.png": (2, 267), "one.png": (1, 2)}


#: Seed and frames of scene.mp4: one drawn person who speaks, for dubbing.
SCENE, SCENE_FRAMES = 8_100_003, 81


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
    """Write all pictures, voices and the video into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (people, seed) in PICTURES.items():
        picture(people, seed).save(folder / name, optimize=True)
    spoken = {name: speak(voice) for name, voice in VOICES.items()}
    for name, (rate, samples) in spoken.items():
        write(folder / name, rate, samples[None])
    rate, left = spoken["left.flac"]
    right = spoken["right.flac"][1]
    # As a call is recorded: each person on a channel, one after the other.
    channels = np.zeros((2, len(left) + len(right)), np.int16)
    channels[0, : len(left)], channels[1, len(left) :] = left, right
    write(folder / "call.flac", rate, channels)
    # The left person of two.png: white where that person is.
    width, height = SIZE
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (width // 20, height // 12, width * 9 // 20, height))
    mask.save(folder / "left-mask.png", optimize=True)
    clip = make_clip(SCENE, frames=SCENE_FRAMES, size=(320, 192), people=1, split="held_out")
    write_film(folder / "scene.mp4", clip.frames, clip.fps)


def picture(people: int, seed: int) -> Image.Image:
    """Draw a held-out scene as it begins, with shut mouths."""
    frame = draw(random_scene(seed, SIZE, people, "held_out"), 0.0)
    return Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE)


def speak(voice: SpokenLine) -> tuple[int, npt.NDArray[np.int16]]:
    """Speak `voice.words` with eSpeak NG and return the rate and the samples."""
    command = shutil.which("espeak-ng")
    if command is None:
        raise SystemExit("espeak-ng is not installed; on Debian: apt-get install espeak-ng")
    options = ["-v", voice.voice, "-p", str(voice.pitch), "-s", str(voice.speed), "--stdout"]
    wav = subprocess.run([command, *options, voice.words], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(wav)) as sound:
        # eSpeak writes a stream, so the length in the header is wrong.
        return sound.getframerate(), np.frombuffer(sound.readframes(2**31 // 2 - 1), np.int16)


def write(path: Path, rate: int, samples: npt.NDArray[np.int16]) -> None:
    """Write `samples` (channels, length) as 16-bit FLAC, mono or stereo."""
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, layout=layout)
        interleaved = np.ascontiguousarray(samples.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    make(parser.parse_args().folder)

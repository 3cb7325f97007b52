"""A finished video in memory, and the parts of one that is being made."""

from __future__ import annotations

import base64
import shutil
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from engine.data import Delivery, Plan
from engine.data.report import Report
from engine.errors import RequestError

if TYPE_CHECKING:
    from engine.files.scratch import Scratch

OutputType = Literal["np", "pil", "pt", "none"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("np", "pil", "pt", "none")
#: Samples per second of a video's sound.
SOUND_RATE = 48_000
#: Most bytes of a video that a notebook embeds.
_SHOWN = 32 * 2**20


def convert(pictures: npt.NDArray[np.uint8], output_type: OutputType) -> Any:
    """Return uint8 frames (T, H, W, 3) as they are ("np"), as PIL pictures, or as a uint8 tensor (T, 3, H, W)."""
    if output_type == "pil":
        from PIL import Image

        return [Image.fromarray(picture) for picture in pictures]
    if output_type == "pt":
        import torch

        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, 3, 1)))
    return pictures


@dataclass(frozen=True)
class Part:
    """The frames and the sound that a window adds to a video."""

    #: As the call's `output_type` says.
    frames: Any = field(repr=False)
    #: float32 (samples, 2), 48 kHz: the sound of these frames.
    audio: npt.NDArray[np.float32] = field(repr=False)
    fps: float
    #: Of the window, from 0, and how many there are.
    index: int
    windows: int
    #: Seconds in the video at which it begins.
    start: float
    sample_rate: int = SOUND_RATE


class TalkingVideo:
    """A finished video: its frames, its sound, and the file with both.

    The file exists as long as this object, unless it is saved.
    """

    def __init__(
        self,
        delivery: Delivery,
        folder: Scratch,
        pictures: Sequence[npt.NDArray[np.uint8]] | None,
        audio: npt.NDArray[np.float32],
        output_type: OutputType,
    ) -> None:
        """Take what a generation made; `pictures` are the frames of its windows. None: they were not kept."""
        self._delivery, self._output = delivery, output_type
        weakref.finalize(self, folder.close)
        self._pictures = None if pictures is None else np.concatenate(pictures)
        #: The sound, float32 (samples, 2) in -1 .. 1, as before it was encoded.
        self.audio = audio
        self.sample_rate = SOUND_RATE

    @property
    def frames(self) -> Any:
        """The frames as they were before they were encoded, in the form of the call's `output_type`.

        "np": uint8 (T, H, W, 3); "pt": uint8 tensor (T, 3, H, W); "pil": a list of pictures. Raises RequestError with
        output_type="none".
        """
        return convert(self._kept(), self._output)

    def numpy(self) -> npt.NDArray[np.uint8]:
        """Return the frames, uint8 (T, H, W, 3). Raises as `frames`."""
        return self._kept()

    def pil(self) -> list[Any]:
        """Return the frames as PIL pictures. Raises as `frames`."""
        pictures: list[Any] = convert(self._kept(), "pil")
        return pictures

    def torch(self) -> Any:
        """Return the frames as a uint8 tensor (T, 3, H, W). Raises as `frames`."""
        return convert(self._kept(), "pt")

    @property
    def path(self) -> Path:
        """The MP4 file, which is removed with this object."""
        assert self._delivery.address is not None
        return Path(self._delivery.address)

    def save(self, path: str | Path) -> Path:
        """Copy the MP4 file to `path`, whose folder must exist, and return it. Raises RequestError."""
        target = Path(path)
        try:
            shutil.copyfile(self.path, target)
        except OSError as error:
            raise RequestError(
                f"the video cannot be saved: {error.strerror}", field="path", hint="give a file in a writable folder"
            ) from error
        return target

    @property
    def plan(self) -> Plan:
        """What was decided before it was made."""
        return self._delivery.plan

    @property
    def report(self) -> Report | None:
        """The judgement of its windows; None: `report.enabled=false`."""
        return self._delivery.report

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller may not have expected, one sentence each."""
        return self._delivery.warnings

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._delivery.fps

    @property
    def seconds(self) -> float:
        """Its length."""
        return self._delivery.seconds

    @property
    def seed(self) -> int:
        """The seed of its noise."""
        return self._delivery.seed

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds of work by stage."""
        return self._delivery.timings

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._delivery.frames

    def __repr__(self) -> str:
        """Return its size and length in one line."""
        width, height = self.plan.canvas.target
        told = f", {len(self.warnings)} warnings" if self.warnings else ""
        return (
            f"<TalkingVideo {width}x{height}, {len(self)} frames at {self.fps:g}, {self.seconds:.2f} s, "
            f"seed {self.seed}{told}>"
        )

    def _repr_html_(self) -> str:
        """Return a player for notebooks, with the video inside."""
        content = self.path.read_bytes()
        if len(content) > _SHOWN:
            return f"<p>{len(content) / 1e6:.0f} MB are too many to embed: use <code>video.save(path)</code></p>"
        width, _ = self.plan.canvas.target
        text = base64.b64encode(content).decode()
        # Browsers let it play with sound where somebody has pressed a key or button of the page, as to run a cell.
        return f'<video controls autoplay width="{max(width, 320)}" src="data:video/mp4;base64,{text}"></video>'

    def _kept(self) -> npt.NDArray[np.uint8]:
        if self._pictures is None:
            raise RequestError(
                "the frames were not kept", field="output_type", hint='call with output_type="np", "pil" or "pt"'
            )
        return self._pictures

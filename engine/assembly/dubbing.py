"""The source video of a request, window by window: its reference frames, its latents, and its pixels in the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
import numpy.typing as npt

from engine.config import Config
from engine.data import Inputs, Media, Plan, Request, Window
from engine.data.dub import scene_of
from engine.family import DubbingModel, FamilyModel, Finished, Prepared
from engine.media.canvas import pixel_mask
from engine.media.source import SourceReader
from engine.runtime.progress import Meter
from engine.stages.compose import latent_mask, soft_mask

Picture = npt.NDArray[np.uint8]


class Dubbing:
    """Gives each window of a request what it needs of the source video; without one, nothing changes.

    Windows come in order, so frames are decoded as they are needed, and few are in memory. As a context manager it
    closes the file.
    """

    def __init__(
        self,
        reader: SourceReader | None,
        plan: Plan,
        mask: npt.NDArray[np.float32] | None = None,
        *,
        until: float = 1.0,
    ) -> None:
        """Open nothing yet. `mask`, float32 (H, W) in 0 .. 1, is where people speak; None: nothing of it is kept.

        `until` is the noise level above which the source is also held inside the mask.
        """
        self._reader, self._plan, self._mask, self._until = reader, plan, mask, until
        self._frames: Picture | None = None
        #: The first reference frame of the scene of that number.
        self._scene: tuple[int, Picture] | None = None

    def begin(self, model: FamilyModel, window: Window, inputs: Inputs, prepared: Prepared) -> tuple[Inputs, Prepared]:
        """Return a window's inputs, and what all windows share, with its reference frame in place of the picture.

        That is the source's frame at the time of the window's first one, the repeated ones included (InfiniteTalk,
        wan/multitalk.py, generate_infinitetalk). Colours are matched to it. Raises RequestError if the file can no
        longer be read, and Cancelled.
        """
        if self._reader is None:
            return inputs, prepared
        count = 1 if self._mask is None else window.frames
        self._frames = self._reader.frames(window.start, count)
        reference = self._frames[0]
        if not window.motion:
            self._scene = scene_of(self._dub, window.index), reference
        return replace(inputs, image=reference, images=()), _dubs(model).look_at(prepared, window, reference)

    def hold(self, model: FamilyModel, begun: Any) -> Any:
        """Return a window's conditions with its source frames, if they are kept."""
        if self._frames is None or self._mask is None:
            return begun
        return _dubs(model).hold(begun, self._frames, latent_mask(self._mask), self._until)

    def compose(self, model: FamilyModel, made: Finished, window: Window) -> Finished:
        """Put the source's pixels round the people of a window's new frames, and of what the next one gets."""
        if self._frames is None or self._mask is None:
            return made
        begin = window.motion
        return _dubs(model).compose(made, self._frames[: begin + window.keep], self._mask, begin)

    @property
    def scenes(self) -> Sequence[Picture]:
        """The first reference frame of each scene, read when it is asked for."""
        return _Scenes(self)

    def first_of(self, scene: int) -> Picture:
        """Return the first reference frame of a scene."""
        if self._scene is None or self._scene[0] != scene:
            assert self._reader is not None
            window = 0 if scene == 0 else self._dub.scenes[scene - 1][0]
            self._scene = scene, self._reader.frame(self._plan.windows[window].start)
        return self._scene[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()

    @property
    def _dub(self) -> Any:
        assert self._plan.dub is not None
        return self._plan.dub


def _dubs(model: FamilyModel) -> DubbingModel:
    # A plan refuses a source video for a family that cannot use it (`FamilyConfig.dubs`).
    return cast("DubbingModel", model)


class _Scenes(Sequence[Picture]):
    def __init__(self, dubbing: Dubbing) -> None:
        self._dubbing = dubbing

    def __len__(self) -> int:
        return len(self._dubbing._dub.scenes) + 1

    @overload
    def __getitem__(self, index: int) -> Picture: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...

    def __getitem__(self, index: int | slice) -> Picture | Sequence[Picture]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self._dubbing.first_of(index)


def make_dubbing(request: Request, media: Media, config: Config, plan: Plan, meter: Meter) -> Dubbing:
    """Return the source video of a request for its windows; it opens the file with the first window.

    Raises RequestError for a region that is not in the picture.
    """
    source = media.source
    if source is None or plan.dub is None:
        return Dubbing(None, plan)
    reader = SourceReader(source, plan.canvas, plan.generated_fps, cancel=meter)
    if plan.dub.mode != "keep":
        return Dubbing(reader, plan)
    speaking = [index for index, speaker in enumerate(request.speakers) if speaker.audio is not None]
    regions = [request.speakers[index].region for index in speaking]
    mask = pixel_mask(regions, [media.masks[index] for index in speaking], plan.canvas)
    return Dubbing(reader, plan, soft_mask(mask, config.dub.feather), until=config.dub.follow)

"""One call of a `Talker`: its arguments, its files, and the thread of a stream."""

from __future__ import annotations

import queue
import re
import secrets
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.components import ProgressCallback
from engine.data import Plan, Request
from engine.errors import EngineError, RequestError
from engine.files.scratch import Scratch
from engine.runtime.quiet import silence_libraries
from engine.talker.follow import Follower, follow_steps
from engine.talker.values import Files, regions_of, voices_of
from engine.talker.video import OUTPUT_TYPES, OutputType, Part, TalkingVideo, convert
from engine.text.similar import similar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engine.service import EngineService

#: Called at each step with the talker, the step (from 0), its time (0 .. 1000), and {"latents": …, "predicted": …}.
StepCallback = Callable[[Any, int, float, Mapping[str, Any]], None]
#: Arguments of other libraries' pipelines, and what they are called here.
_ELSEWHERE = {
    "steps": "num_inference_steps",
    "sampling_steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "text_guide_scale": "guidance_scale",
    "audio_guide_scale": "audio_guidance_scale",
    "audio_cfg": "audio_guidance_scale",
    "frames": "num_frames",
    "callback": "callback_on_step_end",
    "audio_1": "audio",
    "voice": "audio",
    "voices": "audio",
    "reference_image": "image",
    "cond_image": "image",
    "boxes": "regions",
    "masks": "regions",
    "frame_rate": "fps",
}
#: Fields of a request in errors, and the arguments that they come from.
_ARGUMENTS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^request\.speakers\[(\d+)\]\.region.*", r"regions[\1]"),
        (r"^request\.speakers\[(\d+)\](\.audio)?", r"audio[\1]"),
        (r"^request\.speakers", "audio"),
        (r"^request\.frames", "num_frames"),
        (r"^request\.", ""),
        (r"^sampler\.steps|^overrides \(sampler\.steps\)", "num_inference_steps"),
        (r"^guidance\.text_scale|^overrides \(guidance\.text_scale\)", "guidance_scale"),
        (r"^guidance\.audio_scale|^overrides \(guidance\.audio_scale\)", "audio_guidance_scale"),
        (r"^overrides \((sampler|resolution)\)", r"\1"),
    )
)


class Caller(Protocol):
    """Who is called: a `Talker`."""

    @property
    def service(self) -> EngineService: ...

    @property
    def options(self) -> Callable[..., dict[str, Any]]: ...


class Call:
    """The files and followers of one call."""

    def __init__(self, talker: Caller, output_type: OutputType, on_step: StepCallback | None) -> None:
        if output_type not in OUTPUT_TYPES:
            raise RequestError(
                f"no form {output_type!r} of frames", field="output_type", hint=f"choose {', '.join(OUTPUT_TYPES)}"
            )
        if on_step is not None and not callable(on_step):
            raise TypeError(f"callback_on_step_end: a function is needed, this is {type(on_step).__name__}")
        self.talker, self.output_type, self._on_step = talker, output_type, on_step
        #: The size that the call asks for, (width, height); None: none.
        self.size: tuple[int, int] | None = None
        self.folder = Scratch("talker-")
        self._given = False

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the files, unless a video has them."""
        if not self._given:
            self.folder.close()

    def request(self, image: Any, audio: Any, prompt: str, options: Mapping[str, Any]) -> Request:
        """Return the request of a call. Raises TypeError and RequestError, which name the argument."""
        known = signature(self.talker.options).parameters
        for name in options:
            if name not in known:
                near = [_ELSEWHERE[name]] if name in _ELSEWHERE else similar(name, sorted(known))
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
                raise TypeError(f"there is no argument {name!r}{hint}")
        if not isinstance(prompt, str):
            raise TypeError(f"prompt: a text is needed, this is {type(prompt).__name__}")
        fields = self.talker.options(**options)
        if fields.get("video") is None and image is None:
            raise TypeError("image: a picture is needed, or video=")
        if audio is None and fields["frames"] == "auto":
            raise TypeError("audio: a voice is needed, or num_frames= if nobody speaks")
        regions, video, soundtrack = (fields.pop(name) for name in ("regions", "video", "soundtrack"))
        values, voices = Files(self.folder.path), voices_of(audio)
        if options.get("height") is not None:
            self.size = options["width"], options["height"]
        several = len(voices) > 1
        speakers = [
            values.speaker(
                voice,
                region,
                f"audio[{index}]" if several else "audio",
                f"regions[{index}]" if several else "regions",
            )
            for index, (voice, region) in enumerate(zip(voices, regions_of(regions, len(voices)), strict=True))
        ]
        request = Request(
            prompt=prompt,
            image="" if image is None else values.picture(image, "image"),
            video="" if video is None else str(video),
            soundtrack="" if soundtrack is None else values.sound(soundtrack, "soundtrack"),
            speakers=tuple(speakers),
            filename=f"{secrets.token_hex(8)}.mp4",
            **fields,
        )
        if self.size is not None:
            with named():
                target = self.talker.service.plan(request).canvas.target
            if target != self.size:
                raise RequestError(
                    f"for a picture of this shape the model has {target[1]} x {target[0]}, not "
                    f"{self.size[1]} x {self.size[0]} (height x width)",
                    field="height",
                    hint="cut the picture, or choose resolution=",
                )
        return request

    def make(
        self,
        request: Request,
        *,
        progress: ProgressCallback | None,
        cancel: threading.Event | None = None,
        on_part: Callable[[Part], None] | None = None,
    ) -> TalkingVideo:
        """Make the video; `on_part` gets each window's part. Raises EngineError."""
        pictures: list[npt.NDArray[np.uint8]] | None = None if self.output_type == "none" else []

        def add(made: npt.NDArray[np.uint8], sound: Any, window: Any, plan: Plan, begin: float) -> None:
            if pictures is not None:
                pictures.append(made)
            if on_part is not None:
                frames = None if pictures is None else convert(made, self.output_type)
                on_part(Part(frames, sound, plan.fps, window.index, len(plan.windows), begin))

        on_step = self._on_step

        def step(number: int, time: float, latents: Any, predicted: Any) -> None:
            assert on_step is not None
            on_step(self.talker, number - 1, time, {"latents": latents, "predicted": predicted})

        if on_step is not None:
            follow_steps()
        with named(), Follower(request, add, None if on_step is None else step) as follower:
            delivery = self.talker.service.generate(request, progress=progress, cancel=cancel)
        assert delivery.address is not None
        kept = Path(delivery.address).rename(self.folder.path / "video.mp4")
        self._given = True
        delivery = replace(delivery, address=str(kept))
        return TalkingVideo(delivery, self.folder, pictures, follower.sound, self.output_type)


@contextmanager
def named() -> Iterator[None]:
    """Name the arguments of a call in errors about its request, inside a `with`; keep warnings of libraries off it."""
    with warnings.catch_warnings():
        silence_libraries()
        try:
            yield
        except EngineError as error:
            for pattern, name in _ARGUMENTS:
                error.field = pattern.sub(name, error.field)
            raise


class TalkingStream:
    """The parts of a video, in order, as they are made."""

    def __init__(self, call: Call, request: Request, progress: ProgressCallback | None) -> None:
        """Start a thread that makes the video."""
        self._made = _Made()
        # The thread does not know this object: once nobody does, its generation is cancelled.
        self._thread = threading.Thread(
            target=self._made.make, args=(call, request, progress), name="talker", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._made.cancel.set)

    @property
    def video(self) -> TalkingVideo | None:
        """The whole video, once all parts were taken."""
        return self._made.video

    def __iter__(self) -> Iterator[Part]:
        """Return itself."""
        return self

    def __next__(self) -> Part:
        """Wait for the next part. Raises what went wrong."""
        if (part := self._made.parts.get()) is not None:
            return part
        # Others who ask get the same answer.
        self._made.parts.put(None)
        self._thread.join()
        if self._made.error is not None:
            raise self._made.error
        raise StopIteration

    def close(self) -> None:
        """Cancel the generation, if it is not finished, and wait until it has ended."""
        self._made.cancel.set()
        self._thread.join()

    def __enter__(self) -> TalkingStream:
        """Cancel at the end of a `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()


class _Made:
    """What the thread of a stream makes."""

    def __init__(self) -> None:
        self.cancel = threading.Event()
        self.parts: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self.video: TalkingVideo | None = None

    def make(self, call: Call, request: Request, progress: ProgressCallback | None) -> None:
        try:
            self.video = call.make(request, progress=progress, cancel=self.cancel, on_part=self.parts.put)
        except BaseException as error:  # noqa: BLE001 - whoever takes the parts gets it
            self.error = error
        finally:
            call.close()
            self.parts.put(None)

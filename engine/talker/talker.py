"""`Talker`: one loaded model as a Python object; call it to make a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.assembly.escape import override
from engine.assembly.typed_overrides import parse
from engine.components import ProgressCallback
from engine.data import Plan, Request
from engine.errors import RequestError
from engine.files.scratch import Scratch
from engine.service import EngineService
from engine.stages.read import MAX_SEED
from engine.talker.call import Call, StepCallback, TalkingStream, named
from engine.talker.video import OutputType, TalkingVideo


class Talker:
    """A model that makes talking videos.

    ```
    with Talker("tiny", sampler="turbo") as talker:
        video = talker("one.png", "one.flac", "a person talks")
        video.save("talk.mp4")
    ```

    The weights are loaded with the first video and released by `close`, or at the end of the `with`. One video is made
    at a time; other threads wait.
    """

    def __init__(
        self, model: str | None = None, *, overrides: Sequence[str] = (), recipe: str | None = None, **choices: Any
    ) -> None:
        """Choose a model, such as "multitalk", and further components and settings by their names in the config.

        `choices` are keys of the config without a dot, such as sampler="turbo", quant="int8", device="cuda";
        `overrides` are written as on the command line, such as "guidance.text_scale=4", and come last. `recipe`: such
        as "card-24gb". Without a model, the default one or the recipe's. Raises ConfigError for names and values that
        do not exist; loads nothing.
        """
        if model is not None and not isinstance(model, str):
            raise TypeError(f"model: the name of a preset is needed, this is {type(model).__name__}")
        if isinstance(overrides, str):
            raise TypeError('overrides: a list is needed, such as ["sampler.steps=4"]')
        for name in ("sink", "entrypoint", "resume"):
            if name in choices:
                raise TypeError(f"{name}: a Talker keeps the video; use video.save, or EngineService")
        self._folder = Scratch("talker-")
        chosen = {"recipe": recipe, "model": model, **choices}
        words = [_override(key, value) for key, value in chosen.items() if value is not None]
        fixed = ("sink=disk", override("sink.folder", str(self._folder.path)))
        try:
            # Before torch is imported.
            with named():
                self._service = EngineService([*words, *overrides, *fixed])
        except BaseException:
            self._folder.close()
            raise

    def __call__(
        self,
        image: Any = None,
        audio: Any = None,
        prompt: str = "a person talks",
        *,
        output_type: OutputType = "np",
        callback_on_step_end: StepCallback | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> TalkingVideo:
        """Make a video.

        Args:
            image: a path, an address, a PIL picture, an array (H, W, 3) or a tensor (3, H, W).
            audio: one voice, or a list with one for each person from left to right: a path, an address, (samples,
                rate), {"array": …, "sampling_rate": …}, a `Speaker`, or None for a person who is silent.
            prompt: what is to be seen.
            output_type: the form of `video.frames`: "np", "pil", "pt", or "none", which keeps none in memory.
            callback_on_step_end: called in each step with this object, the step, its time, and a mapping of "latents"
                at its start and "predicted", the latents without noise; each float32 (channels, T, h, w).
            progress: called with each `Progress`.
            options: see `options`.

        Raises:
            TypeError: an argument has a wrong type; it is named.
            EngineError: a value is wrong (RequestError), weights are missing, or the video cannot be made.
        """
        with Call(self, output_type, callback_on_step_end) as call:
            request = call.request(image, audio, prompt, options)
            return call.make(request, progress=progress)

    def stream(
        self,
        image: Any = None,
        audio: Any = None,
        prompt: str = "a person talks",
        *,
        output_type: OutputType = "np",
        callback_on_step_end: StepCallback | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> TalkingStream:
        """Make a video, and yield each window's `Part` while later ones are made. Arguments as those of a call.

        The whole video is in `video` of what is returned, once all parts were taken. Closing it earlier cancels.
        """
        call = Call(self, output_type, callback_on_step_end)
        try:
            return TalkingStream(call, call.request(image, audio, prompt, options), progress)
        except BaseException:
            call.close()
            raise

    def plan(self, image: Any = None, audio: Any = None, prompt: str = "a person talks", **options: Any) -> Plan:
        """Return what a call with these arguments would do, with its memory, time and cost; needs no weights."""
        with Call(self, "none", None) as call, named():
            return self._service.plan(call.request(image, audio, prompt, options))

    def preview(self, image: Any = None, audio: Any = None, prompt: str = "a person talks", **options: Any) -> Any:
        """Return the picture as the network sees it, with the speakers' regions, as a PIL picture."""
        from PIL import Image

        with Call(self, "none", None) as call, named():
            path = call.folder.path / "preview.png"
            self._service.preview(call.request(image, audio, prompt, options), path)
            with Image.open(path) as picture:
                return picture.copy()

    def load(self) -> None:
        """Load the weights now instead of with the first video. Raises SourceError."""
        with named():
            self._service.load()

    @property
    def service(self) -> EngineService:
        """The engine below, for what a Talker does not offer."""
        return self._service

    def close(self) -> None:
        """Release the weights. Videos stay."""
        self._service.close()
        self._folder.close()

    def __enter__(self) -> Talker:
        """Close the talker at the end of a `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()

    def __repr__(self) -> str:
        """Return its model and sampler."""
        config = self._service.config
        return f"<Talker {config.model.name}, sampler {config.sampler.name}, quant {config.quant.name}>"

    def options(
        self,
        *,
        negative_prompt: str | None = None,
        num_frames: int | Literal["auto"] = "auto",
        fps: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        audio_guidance_scale: float | None = None,
        sampler: str | None = None,
        resolution: str | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        generator: Any = None,
        regions: Any = None,
        video: Any = None,
        soundtrack: Any = None,
        audio_type: str = "para",
        timing: str = "direct",
        fit: str = "crop",
        overrides: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Check the options of a call, and return them as fields of a `Request`.

        Args:
            negative_prompt: what is not to be seen; None: the model's own.
            num_frames: frames of the video; "auto": as many as the voices need.
            fps: frames per second, 1 to 60; None: the model's own.
            num_inference_steps: steps of the sampler; None: the model's own number for this sampler.
            guidance_scale: how strongly the prompt guides; 1: without.
            audio_guidance_scale: how strongly the voices guide; 1: without.
            sampler: "standard", "turbo" or another installed one.
            resolution: one of the model's, such as "480p". The shape is the one nearest to the picture's.
            height, width: instead of `resolution`, a size in pixels that the model has for the shape of this picture.
            seed: of all noise, 0 .. 2**63 - 1; -1: a random one, which the video tells; None, and no generator: 42.
            generator: a torch.Generator, from which the seed is drawn.
            regions: for each voice a box (x0, y0, x1, y1), in pixels or in fractions of the picture, or a mask in any
                form of `image`, or None.
            video: a source video in place of the picture (docs/dubbing.md).
            soundtrack: what is heard instead of the voices, in any form of `audio` but silence (docs/voices.md).
            audio_type: "para": all voices start at once; "add": one after the other.
            timing: "direct" or "native"; fit: "crop" or "pad".
            overrides: config of this video only, as on the command line.
        """
        words = [
            f"{key}={value}"
            for key, value in (
                ("sampler", sampler),
                ("resolution", resolution if resolution is not None else self._resolution(height, width)),
                ("sampler.steps", _number("num_inference_steps", num_inference_steps, int)),
                ("guidance.text_scale", _number("guidance_scale", guidance_scale, float)),
                ("guidance.audio_scale", _number("audio_guidance_scale", audio_guidance_scale, float)),
            )
            if value is not None
        ]
        if isinstance(overrides, str):
            raise TypeError('overrides: a list is needed, such as ["sampler.steps=4"]')
        return {
            "negative_prompt": negative_prompt,
            "frames": num_frames if num_frames == "auto" else _number("num_frames", num_frames, int),
            "fps": _number("fps", fps, float),
            "seed": _seed(seed, generator),
            "regions": regions,
            "video": video,
            "soundtrack": soundtrack,
            "audio_type": audio_type,
            "timing": timing,
            "fit": fit,
            "overrides": (*words, *overrides),
        }

    def _resolution(self, height: int | None, width: int | None) -> str | None:
        """Return the resolution that has a size. Raises RequestError."""
        if height is None and width is None:
            return None
        if height is None or width is None:
            missing = "height" if height is None else "width"
            raise RequestError("height and width belong together", field=missing, hint="give both, or resolution=")
        table = self._service.config.model.resolutions
        for name, entry in table.items():
            if (height, width) in {(int(size[0]), int(size[1])) for size in entry.buckets.values()}:
                return name
        sizes = {(int(size[0]), int(size[1])) for entry in table.values() for size in entry.buckets.values()}
        near = sorted(sizes, key=lambda size: abs(size[0] - height) + abs(size[1] - width))[:3]
        raise RequestError(
            f"the model has no size of {height} x {width}",
            field="height",
            hint=f"near are {', '.join(f'{tall} x {wide}' for tall, wide in near)} (height x width)",
        )


def _override(key: str, value: Any) -> str:
    """Return a choice as the command line has it. Raises TypeError for a type that no key has."""
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"{key}={value}"
    if isinstance(value, (str, Path)):
        word = f"{key}={value}"
        return word if parse(word) is not None else override(key, str(value))
    raise TypeError(f"{key}: a text, a number or a bool is needed, this is {type(value).__name__}")


def _number(name: str, value: Any, kind: type[int] | type[float]) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer) if kind is int else (int, float, np.number)):
        what = "a whole number" if kind is int else "a number"
        raise TypeError(f"{name}: {what} is needed, this is {type(value).__name__}")
    return kind(value)


def _seed(seed: Any, generator: Any) -> int:
    if seed is not None and generator is not None:
        raise TypeError("generator: give a seed or a generator, not both")
    if generator is not None:
        import torch

        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: a torch.Generator is needed, this is {type(generator).__name__}")
        return int(torch.randint(MAX_SEED, (1,), generator=generator, device=generator.device).item())
    number: int = Request.seed if seed is None else _number("seed", seed, int)
    return number

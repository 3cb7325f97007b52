"""The engine: built once from a config, asked many times."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from engine import recipe
from engine.choices import Choices, bundled_loras, choose, loadable_loras
from engine.components import CancelToken, ProgressCallback
from engine.config import Config
from engine.data import Access, Artifact, Delivery, Frames, Inputs, Media, Plan, Request, Window
from engine.errors import ConfigError
from engine.multitalk.load import Model, load_model
from engine.progress import Meter
from engine.registry import Registry
from engine.settings import locate_weights, make_settings
from engine.stages.color import color_statistics
from engine.stages.decode import decode
from engine.stages.denoise import denoise, draw_noise
from engine.stages.encode import encode, encode_text, encode_voices, to_pixels
from engine.stages.plan import plan_walk
from engine.stages.read import fetch, read
from engine.stages.windows import picks
from engine.stages.write import Writer


class Engine:
    """Turns requests into videos with one set of weights, which is loaded when the first request comes."""

    def __init__(self, config: Config, registry: Registry, *, access: Access | None = None) -> None:
        """Build the components that are fixed at boot. Raises ConfigError; loads no weights."""
        self.config = config
        self.access = access or Access()
        self.device = _device(config.device)
        self.dtype = _dtype(config.dtype, self.device)
        self.sink = registry.sinks.build(config.sink)
        self.attention = registry.attention.build(config.attention).resolve(self.device)
        self._registry = registry
        self._hooks = registry.plugins.hook
        self._model: Model | None = None
        self._weights = Path()

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    def generate(
        self,
        request: Request,
        *,
        config: Config | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> Delivery:
        """Make the video that `request` asks for and keep it in the sink.

        `config` may differ from the engine's own in what a request may override. Raises EngineError, Cancelled among
        them; nothing is left behind then.
        """
        config = config or self.config
        choices = choose(config, self._registry)
        meter = Meter(progress, cancel)
        with tempfile.TemporaryDirectory(prefix="multitalk-") as name:
            folder = Path(name)
            with meter.stage("read"):
                media = fetch(request, self._hooks.open_address, self.access, folder)
                plan = plan_walk(request, media, make_settings(config, self._registry))
                self.sink.check(request.filename)
                inputs = read(request, media, plan)
            with meter.stage("load"):
                model = self._load()
                model.set_loras(bundled_loras(config, self._weights))
            meter.expect(len(plan.windows), plan.steps)
            artifact = self._walk(request, config, choices, media, plan, inputs, model, meter, folder / "video.mp4")
            with meter.stage("keep"):
                kept = self.sink.put(artifact)
        delivery = Delivery(
            address=kept.address,
            content=kept.content,
            media_type=artifact.media_type,
            seconds=artifact.seconds,
            frames=artifact.frames,
            fps=plan.fps,
            seed=plan.seed,
            timings=meter.timings,
            plan=plan,
            warnings=plan.warnings,
        )
        self._hooks.generation_finished(request=request, delivery=delivery)
        return delivery

    def _walk(
        self,
        request: Request,
        config: Config,
        choices: Choices,
        media: Media,
        plan: Plan,
        inputs: Inputs,
        model: Model,
        meter: Meter,
        path: Path,
    ) -> Artifact:
        generator = torch.Generator().manual_seed(request.seed)
        negative = config.model.negative_prompt if request.negative_prompt is None else request.negative_prompt
        branches = choices.guidance.branches
        native = config.model.fps
        with meter.stage("listen"):
            text = encode_text(model, request.prompt, negative, branches)
            voices = encode_voices(model, inputs.voices, native, meter)
            colors = color_statistics(to_pixels(inputs.image).permute(1, 2, 0).numpy())
            told = recipe.make_recipe(
                request,
                media,
                config,
                weights=self._weights,
                threads=torch.get_num_threads(),
                device=self.device,
                dtype=self.dtype,
            )
        history = None
        size = plan.canvas.target
        with Writer(
            path,
            size,
            plan.fps,
            inputs.sound,
            crf=config.video.crf,
            preset=config.video.preset,
            audio_bitrate=config.video.audio_bitrate,
            metadata=told,
            filename=request.filename,
        ) as writer:
            for window in plan.windows:
                number = window.index + 1
                with meter.stage("encode", window=number):
                    conditions = encode(
                        model,
                        inputs,
                        window,
                        history=history,
                        text=text,
                        voices=voices,
                        branches=branches,
                        continuation_style=config.continuation.style,
                        fps=plan.generated_fps,
                        native_fps=native,
                        cancel=meter,
                    )
                with meter.stage("denoise", window=number), model.use("transformer"):
                    latents = denoise(
                        model.transformer,
                        conditions,
                        draw_noise((model.codec.channels, *conditions.latents.shape[1:]), generator),
                        sampler=choices.sampler,
                        guidance=choices.guidance,
                        cache=choices.cache,
                        generator=generator,
                        on_step=lambda step, _: self._hooks.step_finished(request=request, progress=meter.step(step)),
                        cancel=meter,
                    )
                with meter.stage("decode", window=number):
                    frames, history = decode(
                        model,
                        latents,
                        window,
                        motion_frames=config.continuation.frames,
                        reference=colors,
                        color_strength=config.continuation.color_strength,
                        fps=plan.generated_fps,
                        cancel=meter,
                    )
                with meter.stage("write", window=number):
                    self._hooks.window_finished(request=request, window=window, frames=frames)
                    writer.add(_picked(frames, window, plan))
            with meter.stage("write"):
                return writer.finish()

    def load(self) -> None:
        """Load the weights now, not with the first request. Raises SourceError and ConfigError."""
        self._load()

    def close(self) -> None:
        """Release weights and device."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def _load(self) -> Model:
        if self._model is None:
            config = self.config
            self._weights = locate_weights(config, self._registry)
            self._model = load_model(
                self._weights,
                device=self.device,
                dtype=self.dtype,
                quant=config.quant.name,
                attention=self.attention,
                memory=config.memory.name,
                blocks=config.memory.blocks,
                loras=loadable_loras(config, self._weights),
                lora_mode=config.lora.mode,
            )
        return self._model


def _picked(frames: Frames, window: Window, plan: Plan) -> Frames:
    chosen = picks(window, plan.frames, plan.fps, plan.generated_fps)
    return Frames(frames.pictures[list(chosen)], plan.fps)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"no device named {name!r}", field="device", hint="auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this machine has no CUDA device that torch can use", field="device", hint="device=cpu")
    return name


def _dtype(name: str, device: str) -> str:
    if name == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    if name not in ("bfloat16", "float32"):
        raise ConfigError(f"no dtype named {name!r}", field="dtype", hint="auto, bfloat16 or float32")
    return name

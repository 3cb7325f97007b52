"""The engine: built once from a config, asked many times."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from engine.assembly.prompts import negative_prompt
from engine.assembly.provenance import make_recipe
from engine.assembly.sampling import Choices, choose
from engine.assembly.settings import make_access, make_settings, request_access
from engine.assembly.sinks import request_sink
from engine.assembly.weights import Loaded, find_wanted, find_weights, load
from engine.components import CancelToken, ProgressCallback, Sink
from engine.config import Config
from engine.data import Access, Artifact, Conditions, Delivery, Frames, Inputs, Kept, Media, Plan, Request, Window
from engine.errors import Cancelled, ProcessLost
from engine.files.scratch import scratch
from engine.loading.model import Model
from engine.media.color import Statistics, color_statistics
from engine.plugin.manager import Registry
from engine.runtime.device import pick_device, pick_dtype
from engine.runtime.parallel import DenoiseWindow, LoadWeights, Ranks, require_ranks
from engine.runtime.progress import Meter
from engine.runtime.release import reclaim
from engine.stages.decode import Decoded, decode
from engine.stages.denoise import denoise, draw_noise
from engine.stages.encode import Shown, Texts, encode, encode_text, encode_voices, to_pixels
from engine.stages.plan import plan_walk
from engine.stages.read import drawn, fetch, read
from engine.stages.windows import picks
from engine.stages.write import Writer

logger = logging.getLogger(__name__)


class Engine:
    """Turns requests into videos with one set of weights, which is loaded when the first request comes."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        *,
        access: Access | None = None,
        after: Engine | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Build the components that are fixed at boot. Raises ConfigError; loads no weights.

        `after` is an engine that is done: its weights serve this one too, if they are what it would load; else they are
        released before it loads its own. `ranks` are the processes to share forwards with, which config.parallel asks
        for; this one leads, or follows.
        """
        self.config = config
        self.access = access or make_access(config)
        self.ranks = require_ranks(config.parallel, ranks)
        self._processes = 1 if ranks is None else ranks.size
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.sink = registry.sinks.build(config.sink)
        self.reader = registry.readers.build(config.reader)
        self.attention = registry.attention.build(config.attention).resolve(self.device)
        self._registry = registry
        self._hooks = registry.plugins.hook
        self._loaded: Loaded | None = None
        #: Those of the engine before, until it is known whether they serve.
        self._before = None if after is None else after._hand_over()
        #: Whether the weights are those of the engine before.
        self.reused = False

    def generate(
        self,
        request: Request,
        *,
        config: Config | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> Delivery:
        """Make the video that `request` asks for and keep it in the sink.

        `config` may differ in what a request may override. Raises EngineError, Cancelled too, and leaves nothing then.
        """
        config, own = config or self.config, self.config.sink.name
        sink = request_sink(self.sink, request, self._registry, self.access, own=own, cancel=cancel)
        job = _Job(drawn(request), config, self._choose(config), Meter(progress, cancel, self.device), sink)
        with scratch() as folder:
            media, plan = self._plan(job, folder)
            inputs = self._read(job, media, plan)
            model = self._ready(job, plan)
            plan = self.load().tell(plan, request, config)
            heard, history = self._listen(job, model, inputs), None
            with self._writer(job, media, plan, inputs, folder / "video.mp4") as writer:
                for window in plan.windows:
                    conditions = self._encode(job, model, plan, inputs, heard, window, history)
                    latents = self._denoise(job, model, heard, window, conditions)
                    frames, history = self._decode(job, model, plan, heard, window, latents, history)
                    self._write(job, plan, window, frames, writer)
                artifact = self._finish(job, writer)
            kept = self._keep(job, artifact)
        return self._deliver(job, plan, inputs, artifact, kept)

    def load(self) -> Loaded:
        """Load the weights, if that has not happened yet. Raises SourceError and ConfigError."""
        if self._loaded is None:
            with self._alike():
                self._loaded = self._load()
        return self._loaded

    def follow(self) -> None:
        """Share the forwards of the process that generates, until it has done. Raises ProcessLost."""
        assert self.ranks is not None
        while (word := self.ranks.receive(self.device)) is not None:
            if isinstance(word, DenoiseWindow):
                self._share(self.ranks, word)
                continue
            try:
                self.load()
            except ProcessLost:
                raise
            except Exception:
                # Rank 0 was told, and raises it.
                logger.debug("cannot load", exc_info=True)

    @property
    def memory(self) -> str:
        """The memory profile: once the weights are loaded, the one that "auto" picked."""
        return self.config.memory.name if self._loaded is None else self._loaded.model.memory

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._loaded is not None

    def close(self) -> None:
        """Release weights and device, also those of an engine before that were not taken over."""
        for loaded in filter(None, (self._loaded, self._before)):
            loaded.model.close()
        self._loaded = self._before = None

    # --- the weights, and those who share the work --------------------------------------------------------------------

    def _load(self) -> Loaded:
        wanted = find_wanted(
            self.config,
            self._registry,
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
            processes=self._processes,
            alone=self.ranks is not None and self.ranks.rank > 0,
        )
        before, self._before = self._before, None
        if before is not None and before.wanted == wanted:
            self.reused = True
            return before
        if before is not None:
            before.model.close()
            del before
            reclaim()
        return load(wanted, self.reader)

    def _hand_over(self) -> Loaded | None:
        # One that never loaded hands on those of the engine before it.
        loaded, self._loaded, self._before = self._loaded or self._before, None, None
        return loaded

    def _alike(self) -> AbstractContextManager[None]:
        if self.ranks is None:
            return nullcontext()
        if self.ranks.rank == 0:
            self.ranks.broadcast(LoadWeights())
        return self.ranks.synchronised()

    def _choose(self, config: Config) -> Choices:
        return choose(config, self._registry, agree=None if self.ranks is None else self.ranks.agree)

    @contextmanager
    def _shared(
        self, job: _Job, conditions: Conditions, noise: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[Conditions, CancelToken]]:
        """Have the other processes denoise along; yield this one's part and what says to all that the job is off."""
        if self.ranks is None:
            yield conditions, job.meter
            return
        self.ranks.broadcast(DenoiseWindow(job.config, conditions, noise, generator.get_state()))
        with self.ranks.denoising(job.meter) as cancel:
            yield self.ranks.part_of(conditions), cancel

    def _share(self, ranks: Ranks, word: DenoiseWindow) -> None:
        # Rank 0 had it loaded.
        assert self._loaded is not None
        model, choices = self._loaded.model, self._choose(word.config)
        model.set_loras(self._loaded.loras(word.config))
        generator = torch.Generator()
        generator.set_state(word.generator.cpu())
        with ranks.denoising(None) as cancel, model.use("transformer"), suppress(Cancelled):
            denoise(
                model.transformer,
                ranks.part_of(word.conditions),
                word.noise,
                sampler=choices.sampler,
                guidance=choices.guidance,
                cache=choices.cache,
                generator=generator,
                cancel=cancel,
            )

    # --- the stages, with what the config says to each ----------------------------------------------------------------

    def _plan(self, job: _Job, folder: Path) -> tuple[Media, Plan]:
        with job.meter.stage("read"):
            access = request_access(self.access, job.request)
            media = fetch(job.request, self._hooks.open_address, access, folder, cancel=job.meter)
            known = None if self._loaded is None else self._loaded.folder
            facts = make_settings(job.config, self._registry, weights=known)
            plan = plan_walk(job.request, media, facts, cancel=job.meter)
            job.sink.check(job.request.filename)
            if known is None:
                # Says what is missing, or does not go together, before any sound is decoded.
                find_weights(job.config, self._registry)
        # Before the work, not after it.
        job.meter.warn(plan.warnings)
        return media, plan

    def _read(self, job: _Job, media: Media, plan: Plan) -> Inputs:
        with job.meter.stage("read"):
            return read(job.request, media, plan, cancel=job.meter)

    def _ready(self, job: _Job, plan: Plan) -> Model:
        with job.meter.stage("load"):
            loaded = self.load()
            loaded.model.set_loras(loaded.loras(job.config))
        job.meter.expect(len(plan.windows), plan.steps)
        return loaded.model

    def _listen(self, job: _Job, model: Model, inputs: Inputs) -> _Heard:
        request, branches = job.request, job.choices.guidance.branches
        with job.meter.stage("listen"):
            return _Heard(
                text=encode_text(model, request.prompt, negative_prompt(request, job.config), branches),
                voices=encode_voices(model, inputs.voices, job.config.model.fps, job.meter),
                colors=color_statistics(to_pixels(inputs.image).permute(1, 2, 0).numpy()),
                generator=torch.Generator().manual_seed(job.request.seed),
            )

    def _writer(self, job: _Job, media: Media, plan: Plan, inputs: Inputs, path: Path) -> Writer:
        video = job.config.video
        recipe = make_recipe(
            job.request,
            media,
            job.config,
            weights=self.load().fingerprint,
            threads=torch.get_num_threads(),
            processes=self._processes,
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
        )
        return Writer(
            path,
            plan.canvas.target,
            plan.fps,
            inputs.sound,
            crf=video.crf,
            preset=video.preset,
            audio_bitrate=video.audio_bitrate,
            metadata=recipe,
            filename=job.request.filename,
        )

    def _encode(
        self, job: _Job, model: Model, plan: Plan, inputs: Inputs, heard: _Heard, window: Window, history: Tensor | None
    ) -> Conditions:
        with job.meter.stage("encode", window=window.index + 1):
            return encode(
                model,
                inputs,
                window,
                history=history,
                text=heard.text,
                voices=heard.voices,
                branches=job.choices.guidance.branches,
                continuation_style=job.config.continuation.style,
                fps=plan.generated_fps,
                native_fps=job.config.model.fps,
                shown=heard.shown,
                cancel=job.meter,
            )

    def _denoise(self, job: _Job, model: Model, heard: _Heard, window: Window, conditions: Conditions) -> Tensor:
        def tell(step: int, _steps: int) -> None:
            self._hooks.step_finished(request=job.request, progress=job.meter.step(step))

        noise = draw_noise((model.codec.channels, *conditions.latents.shape[1:]), heard.generator)
        with (
            job.meter.stage("denoise", window=window.index + 1),
            self._shared(job, conditions, noise, heard.generator) as (part, cancel),
            model.use("transformer"),
        ):
            return denoise(
                model.transformer,
                part,
                noise,
                sampler=job.choices.sampler,
                guidance=job.choices.guidance,
                cache=job.choices.cache,
                generator=heard.generator,
                on_step=tell,
                cancel=cancel,
            )

    def _decode(
        self, job: _Job, model: Model, plan: Plan, heard: _Heard, window: Window, latent: Tensor, history: Tensor | None
    ) -> Decoded:
        with job.meter.stage("decode", window=window.index + 1):
            return decode(
                model,
                latent,
                window,
                motion_frames=job.config.continuation.frames,
                reference=heard.colors,
                color_strength=job.config.continuation.color_strength,
                blend=job.config.continuation.blend,
                history=history,
                fps=plan.generated_fps,
                cancel=job.meter,
            )

    def _write(self, job: _Job, plan: Plan, window: Window, frames: Frames, writer: Writer) -> None:
        with job.meter.stage("write", window=window.index + 1):
            self._hooks.window_finished(request=job.request, window=window, frames=frames)
            chosen = picks(window, plan.frames, plan.fps, plan.generated_fps)
            writer.add(Frames(frames.pictures[list(chosen)], plan.fps))
        job.meter.window_done()

    def _finish(self, job: _Job, writer: Writer) -> Artifact:
        with job.meter.stage("write"):
            return writer.finish()

    def _keep(self, job: _Job, artifact: Artifact) -> Kept:
        with job.meter.stage("keep"):
            return job.sink.put(artifact)

    def _deliver(self, job: _Job, plan: Plan, inputs: Inputs, artifact: Artifact, kept: Kept) -> Delivery:
        delivery = Delivery(
            address=kept.address,
            content=kept.content,
            sha256=kept.sha256,
            bytes=kept.bytes,
            media_type=artifact.media_type,
            seconds=artifact.seconds,
            frames=artifact.frames,
            fps=plan.fps,
            seed=plan.seed,
            timings=job.meter.timings,
            plan=plan,
            memory=self.memory,
            peaks=job.meter.peaks.found,
            warnings=(*plan.warnings, *inputs.warnings, *kept.warnings),
        )
        self._hooks.generation_finished(request=job.request, delivery=delivery)
        return delivery


@dataclass(frozen=True)
class _Job:
    """One request with what was chosen for it."""

    request: Request
    config: Config
    choices: Choices
    meter: Meter
    sink: Sink


@dataclass(frozen=True)
class _Heard:
    """What holds for all windows of a request: features of prompt, voices and picture, its colours, the noise."""

    text: Texts
    voices: Tensor
    colors: Statistics
    generator: torch.Generator
    shown: Shown = field(default_factory=Shown)

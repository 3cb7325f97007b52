"""`Engine.generate`: all stages of a video in order. Built once per config, used for many requests."""

from __future__ import annotations

import torch

from engine.assembly.access import make_access
from engine.assembly.attention import with_attention
from engine.assembly.dubbing import make_dubbing
from engine.assembly.followers import ProcessGroup
from engine.assembly.live import live_folder, make_previews, make_publisher
from engine.assembly.location import WeightsFinder
from engine.assembly.options import make_options, make_writer
from engine.assembly.plan_request import plan_request
from engine.assembly.prompts import prompts_of
from engine.assembly.provenance import make_provenance
from engine.assembly.reports import facts_of, make_retakes
from engine.assembly.resuming import open_states
from engine.assembly.runtime import make_runtime
from engine.assembly.sinks import Making, make_delivery, sink_for_request
from engine.assembly.voices import read_for_network, voiced
from engine.assembly.weights import LoadedModel, WeightsHolder
from engine.assembly.windows import WindowMaker
from engine.components import CancelToken, ProgressCallback
from engine.config import Config
from engine.data import Access, Delivery, Request
from engine.files.scratch import scratch
from engine.plugin.manager import Registry
from engine.runtime.parallel import Ranks
from engine.runtime.progress import Meter
from engine.stages.behind import WriteBehind
from engine.stages.read import drawn
from engine.stages.windows import resample


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

        `after` is an engine that is done: its weights serve this one too if it would load the same; else they are
        released before it loads its own. `ranks` are the processes to share forwards with, where config.parallel asks.
        """
        self.config = config
        self.access = access or make_access(config)
        self._registry = registry
        self._hooks = registry.plugins.hook
        self._group = ProcessGroup(config, registry, ranks)
        self.sink = registry.sinks.build(config.sink)
        self.reader = registry.readers.build(config.reader)
        self.runtime, self._attention = make_runtime(config, registry, self._group)
        before, own = None if after is None else after._weights, self._attention.attend
        self._weights: WeightsHolder = WeightsHolder(config, registry, self.runtime, before, own)

    def generate(
        self,
        request: Request,
        *,
        config: Config | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        weights: WeightsFinder | None = None,
    ) -> Delivery:
        """Make the video that `request` asks for and keep it in the sink.

        `config` may differ in what a request may override. `weights` knows where they are if they were looked for
        already. Raises EngineError, Cancelled too, and leaves nothing then.
        """
        config, own = config or self.config, self.config.sink.name
        sink = sink_for_request(self.sink, request, self._registry, self.access, own=own, cancel=cancel)
        request, sampling = drawn(request), self._group.build_sampling(config)
        generator = torch.Generator().manual_seed(request.seed)
        meter, weights = Meter(progress, cancel, self.runtime.device), self._weights.finder(weights)

        with scratch() as folder:
            with meter.stage("read"):
                where = config, self._registry, self.access
                request = voiced(request, *where, folder, cancel=meter)
                request, media, plan = plan_request(request, *where, weights, folder, cancel=meter)
                sink.check(request.filename)
                place = live_folder(sink, request, config)
                # Says what is missing, or does not go together, before any sound is decoded.
                self._weights.check(config, weights)
                meter.warn(plan.warnings)
                inputs = read_for_network(request, media, plan, config, self._registry, cancel=meter)
            with meter.stage("load"):
                loaded = self.load(weights)
                model = loaded.set_loras(config)
            meter.expect(len(plan.windows), plan.steps, *sampling.all_forwards(plan.steps))
            plan = loaded.annotate(plan, request, config, sampling.guidance.branches)
            plan = with_attention(plan, config, self._attention)
            self._hooks.generation_started(request=request, plan=plan, inputs=inputs)
            options = make_options(config, plan, sampling, self.runtime.device)
            with meter.stage("listen"):
                prompts = prompts_of(request, config)
                prepared = model.prepare(inputs, prompts, plan, options.encode, cancel=meter)
            provenance = make_provenance(request, media, config, weights=loaded.fingerprint, runtime=self.runtime)
            file = make_writer(request, plan, inputs, options, provenance, folder)
            dubbing = make_dubbing(request, media, config, plan, meter)
            live = make_publisher(place, file, plan, config, meter)
            keeping = open_states(request, config, plan, provenance, loaded, self.runtime, folder, meter, live.add)
            behind = WriteBehind(file, overlap=options.overlap, cancel=meter, on_segment=keeping.segment)
            with dubbing, live, keeping, behind as writer:

                def step(number: int, _steps: int) -> None:
                    writer.check()
                    self._hooks.step_finished(request=request, progress=meter.step(number))

                retakes = make_retakes(config, inputs, plan, generator, meter, dubbing)
                looks = retakes, dubbing, make_previews(request, config, meter, self._hooks)
                given = model, inputs, prepared, options, sampling, generator, config, self._group, meter, step
                maker = WindowMaker(*given, *looks)
                windows, carried = keeping.take_over(writer, generator, sampling.tally, retakes)
                for window in windows:
                    frames, carried = maker.make(window, carried)
                    keeping.made(window, carried, generator, sampling.tally, retakes)
                    with meter.stage("write", window=window.index + 1):
                        self._hooks.window_finished(request=request, window=window, frames=frames)
                        writer.add(resample(frames, window, plan), last=window is plan.windows[-1])
                    meter.window_done()
                with meter.stage("write"):
                    artifact = writer.finish(facts_of(report := retakes.report()) | keeping.provenance)
            with meter.stage("keep"):
                kept = keeping.deliver(lambda: sink.put(artifact))
        told = report, live.address, live.warnings, keeping.taken, keeping.warnings
        made = Making(self.memory, sampling.tally.made, prepared.reused, writer.overlapped, *told)
        delivery = make_delivery(kept, artifact, plan, inputs, meter, made)
        self._hooks.generation_finished(request=request, delivery=delivery)
        return delivery

    def load(self, weights: WeightsFinder | None = None) -> LoadedModel:
        """Load the weights, if that has not happened yet. Raises SourceError and ConfigError."""
        return self._weights.load(self.reader, self._weights.finder(weights), self._group.loading())

    def follow(self) -> None:
        """Share the forwards of the process that generates, until it has done. Raises ProcessLost."""
        self._group.follow(self.load, self.runtime.device)

    @property
    def memory(self) -> str:
        """The memory profile: once the weights are loaded, the one that "auto" picked."""
        return self.config.memory.name if self._weights.loaded is None else self._weights.loaded.model.memory

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._weights.loaded is not None

    @property
    def reused(self) -> bool:
        """Whether the weights are those of the engine before."""
        return self._weights.reused

    def close(self) -> None:
        """Release weights and device, also those of an engine before that were not taken over."""
        self._weights.close()

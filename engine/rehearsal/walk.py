"""Run the engine itself on a pretended card and record what it does, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import patch

from engine.assembly.compose import compose
from engine.assembly.estimates import lora_bytes, lora_files
from engine.assembly.sampling import sampler_config
from engine.assembly.settings import largest_window
from engine.config import Config, DubConfig
from engine.data import Plan, Progress, Request, Speaker
from engine.errors import ConfigError
from engine.files.scratch import scratch
from engine.loading.model import Model
from engine.pipeline import Engine
from engine.planning.gpus import Card
from engine.planning.parameters import published_configs
from engine.plugin.manager import Registry, installed
from engine.rehearsal.card import pretended
from engine.rehearsal.counts import Counts, ForwardCounts
from engine.rehearsal.files import write_described, write_published
from engine.rehearsal.ledger import Ledger
from engine.rehearsal.reader import HeaderReader, headers_only

#: Component of the engine -> the name in plans of the stage that uses it.
_NAMES = {
    ("listen", "text_encoder"): "text",
    ("encode", "vae"): "vae encode",
    ("encode", "image_encoder"): "image",
    ("encode", "transformer"): "conditions",
    ("denoise", "transformer"): "denoise",
    ("decode", "vae"): "vae decode",
}
#: Stages in which no component is used.
_RESTS = {"listen": "audio", "encode": "inputs", "denoise": "noise", "decode": "colors"}
#: A prompt as long as the text encoder allows.
_PROMPT = "a person talks " * 200
_VOICES = ("left.flac", "right.flac", "one.flac")
#: What a rehearsal changes of every config: the file goes to a folder that is deleted, and frames without values cannot
#: be judged or published.
_FIXED = (
    *("device=cuda", "sink=disk", "sink.overwrite=true", "report.enabled=false", "retake.max=0"),
    *("live.enabled=false", "live.preview=none"),
)


@dataclass(frozen=True)
class Scene:
    """What a rehearsal generates."""

    speakers: int = 2
    windows: int = 2
    #: Steps of each window; None, or a number that the sampler does not take: the config's number.
    steps: int | None = 2
    #: Blocks of the transformer; None: the architecture's number.
    blocks: int | None = None
    #: Free bytes on the host.
    host: int = 2**40


@dataclass
class StageRow:
    """One stage, in one window (from 1) or before all of them (0)."""

    stage: str
    window: int
    counts: Counts = field(default_factory=Counts)
    forwards: list[ForwardCounts] = field(default_factory=list)
    #: Bytes on the device of each component's weights when the stage ended.
    weights: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Walk:
    """The record of a run."""

    config: Config
    card: Card
    scene: Scene
    rows: list[StageRow] = field(default_factory=list)
    plan: Plan | None = None
    #: Bytes of attached LoRAs.
    loras: int = 0
    #: The memory profile that was used, with what "auto" became.
    memory: str = ""
    #: Bytes of each component's weights, wherever they are.
    weights: Mapping[str, int] = field(default_factory=dict)
    #: Whether the audio encoder's weights are among the counted ones. One that reads its files itself is not.
    heard: bool = False
    #: Peak of pinned bytes, including rounding.
    pinned: int = 0
    races: Mapping[str, int] = field(default_factory=dict)
    #: Bytes by which the card was too small for the allocator at the peak.
    missing: int = 0
    #: The exception that ended it, and where it was raised.
    error: str = ""
    error_where: str = ""
    seconds: float = 0.0


def walk(overrides: Sequence[str], card: Card, scene: Scene, *, expandable: bool) -> Walk:
    """Generate a video with `overrides` on a pretended `card`; nothing is computed.

    The weights are files of the published sizes without data, except for a model in the package. Raises ConfigError for
    a config that cannot be rehearsed; errors on the card are in the result.
    """
    composed = compose(overrides)
    if scene.steps is not None and not _can_make(scene.steps, composed):
        scene = replace(scene, steps=None)
    steps = () if scene.steps is None else (f"sampler.steps={scene.steps}",)
    if composed.compile.name != "none":
        raise ConfigError(
            f"compile={composed.compile.name} generates code for a real card, which a rehearsal does not have",
            field="compile",
            hint="rehearse compile=none: products, copies and weights are the same",
        )
    if composed.dub != DubConfig():
        raise ConfigError(
            "a rehearsal has a picture and no source video, so dub has no effect",
            field="dub",
            hint="leave its keys out; dub.mode=keep needs one encoding of a window more than the rehearsal shows",
        )
    least = composed.memory.blocks + 3
    if scene.blocks is not None and scene.blocks < least:
        # With fewer, all blocks would be on the device at once.
        hint = f"give {least} or more, with memory.blocks={composed.memory.blocks}"
        raise ConfigError(f"{scene.blocks} blocks are too few to extrapolate the rest", field="--blocks", hint=hint)
    result = Walk(composed, card, scene)
    began = time.monotonic()
    with scratch("rehearsal-") as folder:
        source = _weights(composed, scene, folder)
        config = compose([*overrides, *_FIXED, *steps, f"sink.folder={folder / 'videos'}", *source])
        result.loras = lora_bytes(config, folder / config.model.folder, "bfloat16")
        request = request_for(config, scene, folder)
        with (
            pretended(card, expandable=expandable) as ledger,
            headers_only(),
            _forwards(ledger, installed().families.build(config.family).network()),
            # The memory of a machine with which the card is rented.
            patch("engine.loading.placement.free_on_host", lambda: scene.host),
            # A CUDA build of torch brings Triton. Its kernels are operators, which do not run on fake tensors.
            patch("engine.assembly.kernels.missing_for_triton", lambda: None),
        ):
            _run(result, config, request, ledger, installed())
    result.seconds = time.monotonic() - began
    return result


def _can_make(steps: int, config: Config) -> bool:
    """Return whether the sampler works with a number of steps; some distilled models have one number only."""
    try:
        installed().samplers.build(replace(sampler_config(config, installed()), steps=steps))
    except ConfigError:
        return False
    return True


def _run(result: Walk, config: Config, request: Request, ledger: Ledger, registry: Registry) -> None:
    engine = Engine(config, registry)
    engine.reader = HeaderReader()
    watch = _Recorder(result, ledger)
    try:
        with patch.object(Model, "use", watch.using(Model.use)):
            delivery = engine.generate(request, progress=watch.progress)
        result.plan = delivery.plan
    except Exception as error:  # noqa: BLE001 - any error on the card is a result
        result.error = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        result.error_where = _raised(error)
    finally:
        watch.end()
        result.memory = engine.memory
        result.pinned, result.races = ledger.most_pinned, dict(ledger.races)
        result.missing = ledger.allocator.missing
        engine.close()


class _Recorder:
    """Starts a row for each stage, and for each use of a component inside a stage."""

    def __init__(self, walk: Walk, ledger: Ledger) -> None:
        self._walk, self._ledger = walk, ledger
        self._row: StageRow | None = None
        self._stage, self._window = "", 0
        self._model: Model | None = None

    def progress(self, now: Progress) -> None:
        """Record that a stage begins."""
        if (now.stage, now.window) != (self._stage, self._window):
            self._stage, self._window = now.stage, now.window
            self._open(_RESTS.get(now.stage, now.stage))

    def using(self, use: Callable[..., Any]) -> Callable[..., Any]:
        """Return `Model.use` with a separate row for what happens inside."""

        @contextmanager
        def used(model: Model, name: str) -> Iterator[None]:
            self._model = model
            self._open(_NAMES.get((self._stage, name), name))
            with use(model, name):
                self._ledger.arrived()
                yield
            self._open(_RESTS.get(self._stage, self._stage))

        return used

    def end(self) -> None:
        """Close the last row, and record the sizes of all weights."""
        from torch._subclasses.fake_tensor import FakeTensor

        self._close()
        if self._model is not None:
            self._walk.weights = {name: _bytes(module, "") for name, module in self._model.modules()}
            hearing: Any = self._model.audio
            self._walk.heard = any(isinstance(value, FakeTensor) for value in hearing.model.parameters())

    def _open(self, stage: str) -> None:
        self._close()
        self._row = StageRow(stage, self._window, self._ledger.begin())

    def _close(self) -> None:
        row, self._row = self._row, None
        if row is None:
            return
        self._ledger.end()
        if self._idle(row):
            return
        row.forwards = self._ledger.forwards
        if self._model is not None:
            row.weights = {name: _bytes(module, "cuda") for name, module in self._model.modules()}
        self._walk.rows.append(row)

    def _idle(self, row: StageRow) -> bool:
        """Return whether nothing happened: between two components, or before the first."""
        counts, last = row.counts, self._walk.rows[-1].counts if self._walk.rows else None
        same = last is not None and counts.after == last.after and counts.peak == counts.after
        return row.stage != "load" and same and not counts.launches and not counts.copies and not counts.waits


@contextmanager
def _forwards(ledger: Ledger, network: Any) -> Iterator[None]:
    """Tell the ledger when it is inside a forward."""
    usual = network.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("latent_shape") is not None:
            return usual(self, *args, **kwargs)
        with ledger.forward():
            return usual(self, *args, **kwargs)

    with patch.object(network, "__call__", call):
        yield


def _weights(config: Config, scene: Scene, folder: Path) -> tuple[str, ...]:
    """Write files for the config's model, unless it comes in the package; return the overrides that find them."""
    model = config.model
    if model.packaged:
        if scene.blocks is not None:
            raise ConfigError(
                "the packaged model always runs with all of its blocks", field="--blocks", hint="leave it out"
            )
        return ("source=packaged",)
    loras = sorted(lora_files(config))
    described = config.family.published_files(
        quant=config.quant.name, adapter=model.adapter, loras=loras, blocks=scene.blocks
    )
    if described is not None:
        write_described(folder / model.folder, described)
    else:
        architecture = architecture_of(config, scene)
        write_published(
            folder / model.folder, architecture, quant=config.quant.form, adapter=model.adapter, loras=loras
        )
    return "source=volume", f"source.path={folder}", "quant.file=''"


def architecture_of(config: Config, scene: Scene) -> dict[str, dict[str, Any]]:
    """Return the configs of the published model, by part, with the number of blocks of `scene`."""
    architecture = published_configs(config.model.architecture)
    if scene.blocks is not None:
        architecture["transformer"]["num_layers"] = scene.blocks
    return architecture


def request_for(config: Config, scene: Scene, folder: Path) -> Request:
    """Return a request for `scene.windows` whole windows of the largest size of the config's resolution."""
    from PIL import Image

    if not 1 <= scene.speakers <= len(_VOICES):
        raise ConfigError(f"{scene.speakers} speakers", field="--speakers", hint=f"1 to {len(_VOICES)}")
    window, height, width = largest_window(config)
    picture = folder / "picture.png"
    Image.new("RGB", (width, height), (90, 120, 150)).save(picture)
    voices = [str(files("engine") / "examples" / name) for name in _VOICES[: scene.speakers]]
    return Request(
        _PROMPT,
        str(picture),
        tuple(map(Speaker, voices)),
        frames=window + (scene.windows - 1) * (window - config.continuation.frames),
    )


def _bytes(module: Any, device: str) -> int:
    """Return the bytes of a network's weights on a device, each storage once; None: on all devices."""
    from engine.rehearsal.card import inner

    sizes: dict[int, int] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        for part in inner(tensor):
            if part.device.type in (device, "" if device else part.device.type):
                storage = part.untyped_storage()
                sizes[storage._cdata] = int(storage.nbytes())
    return sum(sizes.values())


def _raised(error: BaseException) -> str:
    """Return file:line in the engine or a library where an exception was raised."""
    from engine.rehearsal.places import place_of

    trace, location = error.__traceback__, ""
    while trace is not None:
        location = place_of(trace.tb_frame, trace.tb_lineno) or location
        trace = trace.tb_next
    return location

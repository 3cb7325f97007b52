"""The component protocols that plugins implement, and the service protocol that entrypoints use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from engine.data import Artifact, Delivery, Kept, Plan, Progress, Request, Resumed, Store, Weights
from engine.data.attention import AttentionChoice, AttentionSite
from engine.data.cancel import CancelToken as CancelToken  # re-exported, like the names below
from engine.data.dialogue import Diariser as Diariser
from engine.data.dialogue import Samples as Samples
from engine.data.dialogue import Speech as Speech
from engine.data.dialogue import VoiceFilter as VoiceFilter
from engine.data.live import LiveFolder as LiveFolder
from engine.data.stored import Stored as Stored
from engine.data.voices import RegionFinder as RegionFinder

if TYPE_CHECKING:
    from torch import Tensor

ProgressCallback: TypeAlias = Callable[[Progress], None]
#: Takes this process's decision and returns the decision of one process, the same in all processes of a forward.
Agree: TypeAlias = Callable[[bool], bool]

#: Inputs with which a guidance can run the network. "cond": prompt and voices; "drop_text": negative prompt and voices;
#: "drop_audio": prompt and silence; "uncond": negative prompt and silence.
BRANCHES = ("cond", "drop_text", "drop_audio", "uncond")


class ModelSource(Protocol):
    """Where weights come from."""

    def locate(self, weights: Weights) -> Path | None:
        """Return a local folder that contains `weights`, or None if this source does not have them.

        Raises SourceError, naming each file, if the folder exists but its weights are incomplete.
        """

    def looked(self, weights: Weights) -> str:
        """Return a short description of the place that `locate` searches, for the error about missing weights."""


@runtime_checkable
class FetchingSource(ModelSource, Protocol):
    """A source that can download weights before they are read."""

    def fetch(self, weights: Weights) -> Path | None:
        """Do the same as `locate`, but download missing weights if that is allowed.

        Called only before weights are read, never for a plan. Raises SourceError if the download fails.
        """


class Reader(Protocol):
    """How tensors are read from their files into memory."""

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """Yield each of the `wanted` tensors once, file by file, in the tensor that `into` returns for it.

        That tensor is contiguous, has the stored tensor's shape, and may have any dtype and device: the data is cast
        and moved. `into` is called just before the tensor is read, possibly from another thread. A tensor with `stays`
        may be a private mapping of its file instead. In addition a reader may use a buffer of at most one file's size.
        Raises SourceError for a file that is too short.
        """


class Quantiser(Protocol):
    """How the blocks' linear layers are quantised while unquantised weights are loaded; created without torch."""

    def check(self) -> None:
        """Raise MissingExtra if a package is not installed; called before any weights are read."""

    def cost(self) -> tuple[float, int]:
        """Return the bytes per quantised weight, and the additional bytes per output row, such as its scale."""

    def apply(self, transformer: Any, chosen: Callable[[Any, str], bool]) -> None:
        """Replace, in place on the CPU, the layers for which `chosen(module, name)` is true, after LoRAs are merged."""


@runtime_checkable
class MultiplyingQuantiser(Quantiser, Protocol):
    """A quantiser whose layers also multiply in 8 bits."""

    #: Format of the products, "int8" or "fp8": a device that cannot multiply it is rejected.
    products: str
    #: Whether the text encoder is quantised, too.
    text: bool

    def apply_text(self, text_encoder: Any) -> None:
        """Replace the text encoder's layers, in place on the CPU."""


@runtime_checkable
class StoredQuantiser(Quantiser, Protocol):
    """A quantiser of quantised files."""

    #: Whether the weights pass through memory as their file has them, instead of unquantised.
    stored: bool


class AttentionBackend(Protocol):
    """Which kernel computes the network's self-attention."""

    def resolve(self, device: str) -> str:
        """Return the kernel's name in diffusers' attention dispatch, for "cuda" or "cpu".

        Raises MissingExtra if its package is not installed, and ConfigError if the device cannot run it.
        """
        ...


@runtime_checkable
class ChoosingBackend(AttentionBackend, Protocol):
    """A backend that needs to know more than the device, gives reasons, or computes attention itself."""

    def choose(self, site: AttentionSite) -> AttentionChoice:
        """Return the choice for a site; called instead of `resolve`, before weights are read. Raises as `resolve`."""
        ...


class Schedule(Protocol):
    """The steps from noise to latents. Each window gets a new schedule, because solvers keep state."""

    #: steps + 1 decreasing values on the network's scale of 0 .. 1000; the last is 0.
    timesteps: Sequence[float]

    def step(self, velocity: Tensor, index: int, latents: Tensor) -> Tensor:
        """Return the latents at timesteps[index + 1] from those at timesteps[index]; float32 in and out.

        `velocity` is the guided prediction of the direction noise - data.
        """
        ...


@dataclass(frozen=True)
class StepTools:
    """What a step of an `ExtendedSchedule` may use in addition to the velocity at its start."""

    #: (latents, time) -> velocity: one more evaluation of the network, with guidance and cache as in the step's first,
    #: and with the motion frames of that time. Latents and velocity are as in `step`; the time is on the scale of
    #: 0 .. 1000. A sampler whose schedules use it must be a `CountedSampler`.
    evaluate: Callable[[Tensor, float], Tensor]
    #: () -> new standard normal noise of the latents' shape, float32, on their device. It comes from the request's own
    #: generator, so that a seed gives the same video on every device and in each of several processes.
    noise: Callable[[], Tensor]


@runtime_checkable
class ExtendedSchedule(Protocol):
    """A schedule whose steps evaluate the network more than once, or use new noise."""

    #: As in `Schedule`.
    timesteps: Sequence[float]

    def step_with(self, velocity: Tensor, index: int, latents: Tensor, tools: StepTools) -> Tensor:
        """Do as `Schedule.step`; `tools.evaluate(latents, time)` evaluates once more, at a time of 0 to 1000."""
        ...


class Sampler(Protocol):
    """How noise becomes latents."""

    def schedule(self) -> Schedule | ExtendedSchedule:
        """Return a new schedule."""
        ...


@runtime_checkable
class CountedSampler(Sampler, Protocol):
    """A sampler with more than one evaluation of the network in some steps; others make one in each."""

    def evaluations(self) -> Sequence[int]:
        """Return the number of evaluations of each step, including its first: 1 or more for each step.

        Plans use these numbers and call this without torch. A step with another number of evaluations is an error.
        """
        ...


def evaluations_of(sampler: Sampler, steps: int) -> tuple[int, ...]:
    """Return the number of evaluations of the network in each of a sampler's `steps`."""
    return tuple(sampler.evaluations()) if isinstance(sampler, CountedSampler) else (1,) * steps


class Guidance(Protocol):
    """How forwards are combined into the sampler's velocity; created for each request without torch, for plans too."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches (of BRANCHES) that each evaluation needs, in the order in which they run; at least one."""
        ...

    def reset(self) -> None:
        """Forget earlier evaluations; called before each window."""
        ...

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Combine one evaluation's predictions, float32 (16, T, h, w) per branch; evaluations are passed in order."""
        ...


@dataclass(frozen=True)
class CacheCost:
    """The cost of a step cache, for plans."""

    #: Maximum bytes that it stores on the device from one evaluation to the next.
    kept: int = 0
    #: Number of values that it reads from the device in one evaluation; the host waits for each of them.
    reads: int = 0


class StepCache(Protocol):
    """A cache over the forwards of one window: some forwards reuse the blocks' result of an earlier one.

    It is created without torch, because a plan asks for its cost. The engine creates one for each request.
    """

    def attach(self, transformer: Any) -> AbstractContextManager[None]:
        """Cache the forwards of `transformer` inside a `with`, starting empty; restore it in any case afterwards."""
        ...

    def branch(self, name: str, step: int) -> AbstractContextManager[None]:
        """Set the branch of the guidance and the evaluation (from 0; of one per step, its index) inside a `with`.

        In a batched forward the name has all its branches, in the order of the samples, with "+" between them.
        """
        ...

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        """Return its cost in a network of `blocks` blocks with `branches` guidance branches.

        The hidden states of one forward are float32 (1, tokens, channels).
        """
        ...


@runtime_checkable
class SharedCache(StepCache, Protocol):
    """A step cache that supports forwards shared by several processes (parallel=ulysses); others are rejected there."""

    def shared(self, agree: Agree) -> StepCache:
        """Return the cache for one of the processes, each of which has a part of the tokens.

        Each decision to skip blocks must go through `agree`: if one process skips alone, the others wait forever.
        Raises ConfigError if the cache cannot work there.
        """
        ...


class Sink(Protocol):
    """Where a finished video is stored."""

    def put(self, artifact: Artifact) -> Kept:
        """Store the artifact and return where it is; its file no longer exists afterwards. Raises SinkError."""

    def check(self, filename: str | None) -> None:
        """Raise SinkError or RequestError, before any work, if `put` cannot succeed."""


@runtime_checkable
class JobSink(Sink, Protocol):
    """A sink that distinguishes jobs; the engine asks it for the sink of each request."""

    def for_job(self, job: str | None, store: Store | None, private_hosts: Collection[str]) -> Sink:
        """Return the sink for the request of that name, which may have its own bucket. Raises RequestError.

        The bucket's store must be on the public internet or in `private_hosts`.
        """


@runtime_checkable
class BoundSink(Sink, Protocol):
    """A sink whose answer contains the video; the engine gives it the maximum size of a request's answer."""

    def within(self, limit: int) -> Sink:
        """Return the sink for an answer with at most `limit` bytes of the video as text."""


@runtime_checkable
class KeepingSink(Sink, Protocol):
    """A sink that stores an undelivered video until its job is sent again."""

    def waiting(self, job: str) -> Artifact | None:
        """Return the undelivered video of this name, None if there is none. Raises SinkError."""

    def resume(self, job: str) -> Kept:
        """Deliver the undelivered video of this name. Raises SinkError."""


@runtime_checkable
class PatientSink(Sink, Protocol):
    """A sink whose calls may take long, for example on a network; the engine gives it the request's cancel token."""

    def until(self, cancel: CancelToken) -> Sink:
        """Return the sink whose calls raise Cancelled within a second after `cancel` is set."""


@runtime_checkable
class LiveSink(Sink, Protocol):
    """A sink that can also publish a video while it is made."""

    def live(self, filename: str | None) -> LiveFolder:
        """Return the place of the next video; nothing is written yet. `filename` is that of the finished video."""


@runtime_checkable
class RehearsingSink(Sink, Protocol):
    """A sink that can test whether a video would arrive."""

    def rehearse(self) -> None:
        """Write a small object to the place of videos, read it, and delete it. Raises SinkError."""


@runtime_checkable
class Service(Protocol):
    """The engine as an entrypoint sees it."""

    @property
    def overrides(self) -> Sequence[str]:
        """The overrides with which it was started, in Hydra's grammar, to start other services in the same way."""

    def generate(
        self, request: Request, *, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
    ) -> Delivery:
        """Make the video; load the weights first if they are not loaded yet. Raises EngineError."""

    def load(self) -> Mapping[str, float]:
        """Load the weights if they are not loaded yet; return the seconds that each part took to load."""

    def resume(self, request: Request, *, cancel: CancelToken | None = None) -> Resumed | None:
        """Deliver the video that an earlier attempt of `request.job` left undelivered; return None if there is none.

        It loads no weights and opens no media. Raises SinkError, RequestError and Cancelled.
        """

    def plan(self, request: Request, *, cancel: CancelToken | None = None) -> Plan:
        """Return the plan of `generate`. It decodes the media but loads no weights. Raises EngineError."""

    def preview(self, request: Request, path: Path) -> Plan:
        """Write a PNG to `path`: the picture as the network gets it, with the speakers' regions. Raises EngineError."""

    def capabilities(self) -> Mapping[str, Any]:
        """Return the settings with which this service was started and the choices that a request has."""

    def check(self) -> Mapping[str, Any]:
        """Return the state of weights and sink, without loading weights.

        "failed" maps "weights" or "sink" to one line if there is a problem with it, "hints" to that line's hint.
        """

    def open(self, overrides: Sequence[str], *, alone: bool = False) -> Service:
        """Return another service, started with this one's overrides and `overrides`, or only with those if `alone`."""

    def close(self) -> None:
        """Release weights and device."""


class JobWorker(Protocol):
    """One engine of a batch, which does one job after the other; or a proxy for one in another process."""

    def start(self) -> None:
        """Load the weights, in a new process if there is none.

        Raises an EngineError that would make every job fail, Cancelled after `stop`, and WorkerLost.
        """

    def work(self, job: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        """Return the answer of a job (docs/api.md), also if it failed; `tell` is called with its progress updates.

        After an answer with `refresh_worker`, call `close` and `start`. Raises WorkerLost; then call `start`.
        """

    def stop(self) -> None:
        """End the running work at its next check; may be called from another thread."""

    def close(self) -> None:
        """Release weights and device, and end the process; kill it if that takes too long."""


class Launcher(Protocol):
    """Starts the workers of a batch on machines and devices."""

    def launch(self, make: Callable[[], JobWorker], most: int) -> AbstractContextManager[Sequence[JobWorker]]:
        """Return proxies for one worker per device, at most `most`; all processes end with the context.

        `make` is pickled, and called in the process of each worker when it starts.
        """
        ...


class Entrypoint(Protocol):
    """A way for requests to arrive."""

    def run(self, service: Service) -> int:
        """Receive requests and answer each through `service` until done; return the process's exit status."""
        ...

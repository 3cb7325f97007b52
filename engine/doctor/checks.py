"""Checks of this machine for a config: what is wrong, and what to do about it."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from engine.assembly.attention import choice_of, site_here
from engine.assembly.compatibility import check_suited
from engine.assembly.compiling import check_compile as check_compile_config
from engine.assembly.location import locate_weights
from engine.components import RehearsingSink
from engine.data import Request, Speaker
from engine.data.attention import AttentionSite
from engine.data.estimates import Estimates
from engine.doctor.attention import try_attention
from engine.errors import EngineError
from engine.machine.compiler import find_compiler, missing_for_triton
from engine.machine.device import resolve_device, resolve_dtype
from engine.machine.host_memory import free_host_memory
from engine.machine.kernels import KERNELS, refusal
from engine.planning.gpus import installed_cards
from engine.plugin.manager import Registry, installed
from engine.service import EngineService
from engine.serving.worker.fitness import UnfitError, check_disk_space
from engine.text.amounts import gigabytes

State = Literal["ok", "note", "broken"]

_MIB, _GB = 2**20, 1e9
#: Most bytes and seconds of the speed test of a folder, for reading and for writing.
_PROBE, _MAX_SECONDS = 64 * _MIB, 3.0
#: Bytes per second below which a worker takes minutes to start.
_SLOW = 100e6
#: Largest error of attention in 16 bits, and in 8 or 4, as a share of the largest value.
_WRONG, _WRONG_LOSSY = 0.1, 0.3
#: Import names of this distribution; they are common words, so another distribution may install them, too.
_PACKAGES = ("engine", "plugins")
#: Variables of RunPod and of this project's docs; only their names are printed.
_VARIABLES = (
    *("RUNPOD_POD_ID", "RUNPOD_ENDPOINT_ID", "RUNPOD_INIT_TIMEOUT", "RUNPOD_LOG_LEVEL"),
    *("MODEL_PATH", "S3_BUCKET", "BUCKET_ENDPOINT_URL", "HF_TOKEN"),
)


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    name: str
    #: "broken": this config cannot work here. "note": it works, but with a remark.
    state: State
    what: str
    #: What to do; "": nothing.
    hint: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    #: For a terminal, instead of the hint: the searched places and the commands, in lines of their own.
    more: tuple[str, ...] = ()


Check = Callable[["CheckContext"], Iterator[CheckResult]]


class CheckContext:
    """The config that is checked, and facts that several checks need."""

    def __init__(self, overrides: Sequence[str]) -> None:
        """Compose `overrides`. Raises ConfigError."""
        self.service = EngineService(overrides)
        self.config = self.service.config
        self.registry: Registry = installed()
        self.cards = installed_cards()

    @property
    def device(self) -> str:
        """Return where the config would run: "cuda" or "cpu"."""
        import torch

        return resolve_device(self.config.device, cuda=torch.cuda.is_available())

    def estimates(self) -> Estimates | None:
        """Plan a video of one window with the example picture."""
        examples = files("engine") / "examples"
        speakers = (Speaker(str(examples / "left.flac")), Speaker(str(examples / "right.flac")))
        request = Request("two people talk", str(examples / "two.png"), speakers, frames=self.config.model.window)
        # A plan imports no torch and may not see a GPU that torch does.
        service = self.service.open([f"device={self.device}"]) if self.config.device == "auto" else self.service
        return service.plan(request).estimates


def examine(overrides: Sequence[str] = ()) -> list[CheckResult]:
    """Run all checks and return their results, in the order to print them. Raises ConfigError for the overrides."""
    context = CheckContext(overrides)
    results: list[CheckResult] = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        try:
            results += check(context)
        except EngineError as error:
            what, more = error.report()
            results.append(CheckResult(name, "broken", what, error.hint, more=more))
        except Exception as error:  # noqa: BLE001 - a check that fails must not hide the results of the others
            # Not the text of the error: it may contain anything, even an address with a key.
            results.append(CheckResult(name, "broken", f"the check failed ({type(error).__name__})"))
    return results


# --- the checks -------------------------------------------------------------------------------------------------------


def check_versions(context: CheckContext) -> Iterator[CheckResult]:
    """Python, the engine, and its libraries."""
    from engine.assembly.provenance import versions

    packages = versions()
    python = platform.python_version()
    text = f"Python {python}, " + ", ".join(f"{name} {version}" for name, version in packages.items())
    old = sys.version_info < (3, 11)
    yield CheckResult("versions", "broken" if old else "ok", text, "use Python 3.11 or later" if old else "", packages)
    for name in context.registry.broken:
        yield CheckResult("plugins", "note", f"the plugin {name} could not be loaded", "multitalk plugins says why")


def check_imports(context: CheckContext) -> Iterator[CheckResult]:
    """Whether `engine` and `plugins` belong to this distribution only (docs/decisions/017)."""
    origins = {name: spec.origin for name in _PACKAGES if (spec := find_spec(name)) is not None and spec.origin}
    owners = packages_distributions()
    others = sorted({owner for name in _PACKAGES for owner in owners.get(name, ()) if owner != "multitalk-engine"})
    places = {Path(origin).parent.parent for origin in origins.values()}
    text = " and ".join(f"{name} is {origin}" for name, origin in origins.items())
    if others:
        hint = "install multitalk-engine into an environment of its own"
        what = f"{', '.join(others)} also installs a package called engine or plugins"
        yield CheckResult("imports", "broken", what, hint, origins)
    elif len(origins) < len(_PACKAGES) or len(places) > 1:
        hint = "start Python in a folder without folders called engine or plugins, and check PYTHONPATH"
        yield CheckResult("imports", "broken", f"{text}, which are not of one package", hint, origins)
    else:
        yield CheckResult("imports", "ok", text, "", origins)


def check_device(context: CheckContext) -> Iterator[CheckResult]:
    """torch's build and the driver."""
    import torch

    build, driver = torch.version.cuda, _driver() or ("unknown" if torch.cuda.is_available() else None)
    built = f"torch {torch.__version__}, built for " + (f"CUDA {build}" if build else "CPUs only")
    details = {"torch": torch.__version__, "cuda_build": build, "driver": driver, "cards": list(context.cards)}
    required = context.config.device == "cuda"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        yield CheckResult("device", "ok", f"{built}; driver {driver}; {name}", "", details)
    elif driver is None:
        hint = "choose a machine with a GPU, start the container with --gpus all, or use device=cpu" if required else ""
        yield CheckResult(
            "device", "broken" if required else "ok", f"{built}; no NVIDIA driver, so the CPU", hint, details
        )
    elif not build:
        hint = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        yield CheckResult("device", "broken", f"{built}, but driver {driver} and a GPU are here", hint, details)
    else:
        hint = f"update the driver to one for CUDA {build}, or install a torch built for an older CUDA"
        yield CheckResult("device", "broken", f"{built}; driver {driver} does not serve it", hint, details)


def check_memory(context: CheckContext) -> Iterator[CheckResult]:
    """The memory that a plan needs, and the free memory."""
    import torch

    estimates, host = context.estimates(), free_host_memory()
    if context.device == "cuda" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        needed = None if estimates is None else estimates.device_memory_bytes
        text = f"{free / _GB:.1f} of {gigabytes(total)} are free on the card"
        yield _compare_memory("device memory", needed, free, text, estimates)
    if host is not None:
        needed = None if estimates is None else estimates.host_memory_bytes
        yield _compare_memory("host memory", needed, host, f"{gigabytes(host)} are free", estimates)


def check_attention(context: CheckContext) -> Iterator[CheckResult]:
    """Each attention backend that this device can run, run once and compared with torch's plain operations.

    A kernel from the Hub, whose code would be downloaded, runs only if it is chosen. Others are listed in one line.
    """
    import torch

    device = context.device
    if device == "cuda" and not torch.cuda.is_available():
        # Already reported.
        return
    site = site_here(device, resolve_dtype(context.config.dtype, device))
    elsewhere: dict[str, str] = {}
    for name in context.registry.attention.names():
        chosen = name == context.config.attention.name
        kernel = next((kernel for kernel in KERNELS if kernel.name == name), None)
        if not chosen and kernel is not None and (other := refusal(kernel, site, lambda *_: "")) is not None:
            elsewhere[name] = other.what
        elif not chosen and kernel is not None and kernel.hub and refusal(kernel, site) is None:
            what = f"not tried: it would download and run code from {kernel.hub}; choose it to try it"
            yield CheckResult(f"attention={name}", "note", what)
        else:
            yield _try_backend(context, name, site)
    if elsewhere:
        where = "a CPU" if site.capability is None else "compute capability {}.{}".format(*site.capability)
        what = f"not for {where} with {site.dtype}: {', '.join(sorted(elsewhere))}"
        yield CheckResult("attention", "note", what, "", elsewhere)


def _try_backend(context: CheckContext, name: str, site: AttentionSite) -> CheckResult:
    chosen = name == context.config.attention.name
    bad: State = "broken" if chosen else "note"
    try:
        backends = context.registry.attention
        backend = backends.build(context.config.attention) if chosen else backends.build_default(name)
        choice = choice_of(backend, site)
        error = try_attention(choice, site)
    except EngineError as problem:
        return CheckResult(f"attention={name}", bad, problem.what.removeprefix(f"attention={name} "), problem.hint)
    except Exception as problem:  # noqa: BLE001 - a kernel may raise anything
        what = f"its kernel fails ({type(problem).__name__})"
        return CheckResult(f"attention={name}", bad, what, "choose attention=sdpa" if chosen else "")
    what = f"runs as {choice.kernel}, {error:.1e} from plain arithmetic"
    what += f" ({choice.reason})" if choice.reason else ""
    # 8 and 4 bits are no fault of a kernel that says so.
    if error < (_WRONG_LOSSY if choice.note else _WRONG):
        return CheckResult(f"attention={name}", "ok", what)
    return CheckResult(f"attention={name}", bad, what, "its result is wrong: choose another")


def check_compile(context: CheckContext) -> Iterator[CheckResult]:
    """Whether torch.compile could generate kernels for this machine's card, and whether the config asks for it."""
    import torch

    chosen = context.config.compile.name
    name = f"compile={chosen}"
    # Raises ConfigError for what the config does not allow.
    check_compile_config(context.config)
    if not torch.cuda.is_available():
        yield CheckResult(name, "ok", "compiles nothing on a CPU")
    elif (missing := missing_for_triton()) is None:
        yield CheckResult(name, "ok", f"Triton compiles with {find_compiler()}")
    else:
        yield CheckResult(name, "note" if chosen == "none" else "broken", missing[0], missing[1])


def check_weights(context: CheckContext) -> Iterator[CheckResult]:
    """The weights of the chosen source, and whether quantisation and LoRAs are compatible with them."""
    folder = locate_weights(context.config, context.registry)
    check_suited(context.config, folder, context.registry)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    text = f"{context.config.model.name}: complete in {folder}, {gigabytes(size, 2)}"
    yield CheckResult("weights", "ok", text, "", {"folder": str(folder), "bytes": size})


def check_volume(context: CheckContext) -> Iterator[CheckResult]:
    """The read speed of the volume with the weights, and its write speed if it is writable."""
    try:
        folder = locate_weights(context.config, context.registry)
    except EngineError:
        # Already reported.
        return
    largest = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    reading = read_speed(largest)
    parent = folder.parent
    writing = write_speed(parent) if os.access(parent, os.W_OK | os.X_OK) else None
    text = f"reads {reading / 1e6:.0f} MB/s" + (
        f", writes {writing / 1e6:.0f} MB/s" if writing is not None else ", cannot be written to"
    )
    details = {"read_bytes_per_second": reading, "write_bytes_per_second": writing}
    total = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    slow = reading < _SLOW and total > _GB
    hint = f"reading the weights takes {total / reading / 60:.0f} minutes: use a faster volume" if slow else ""
    yield CheckResult("volume", "note" if slow else "ok", text, hint, details)


def check_disk(context: CheckContext) -> Iterator[CheckResult]:
    """Disk space for a job's files."""
    folder = Path(tempfile.gettempdir())
    try:
        check_disk_space(folder)
    except UnfitError as error:
        yield CheckResult("disk", "broken", error.what, error.hint)
        return
    free = os.statvfs(folder)
    yield CheckResult("disk", "ok", f"{gigabytes(free.f_bavail * free.f_frsize)} are free for temporary files")


def check_sink(context: CheckContext) -> Iterator[CheckResult]:
    """The sink of videos; in a bucket a test object is written and removed."""
    registry = context.registry
    sinks = {context.config.sink.name: registry.sinks.build(context.config.sink)}
    configured = any(os.environ.get(name) for name in ("S3_BUCKET", "BUCKET_ENDPOINT_URL"))
    if configured and "s3" in registry.sinks.names() and "s3" not in sinks:
        # A job may ask for it, even if the config has another sink.
        sinks["s3"] = registry.sinks.build(EngineService([*context.service.overrides, "sink=s3"]).config.sink)
    for name, sink in sinks.items():
        if isinstance(sink, RehearsingSink):
            sink.rehearse()
            yield CheckResult("sink", "ok", f"{name}: an object was written, read and removed")
        else:
            sink.check(None)
            yield CheckResult("sink", "ok", f"{name}: ready")


def check_runpod(context: CheckContext) -> Iterator[CheckResult]:
    """The names of the variables of a worker that are set."""
    names = [name for name in _VARIABLES if os.environ.get(name)]
    if not (os.environ.get("RUNPOD_POD_ID") or os.environ.get("RUNPOD_ENDPOINT_ID")):
        yield CheckResult("runpod", "ok", "not on RunPod", "", {"set": names})
        return
    text = f"on RunPod; set: {', '.join(names)}"
    if os.environ.get("RUNPOD_LOG_LEVEL", "DEBUG").upper() == "DEBUG":
        hint = "set RUNPOD_LOG_LEVEL=INFO: at DEBUG the SDK logs answers, and links to videos with them"
        yield CheckResult("runpod", "note", text, hint, {"set": names})
    else:
        yield CheckResult("runpod", "ok", text, "", {"set": names})


CHECKS: tuple[Check, ...] = (
    check_versions,
    check_imports,
    check_device,
    check_memory,
    check_attention,
    check_compile,
    check_weights,
    check_volume,
    check_disk,
    check_sink,
    check_runpod,
)


# --- what they measure ------------------------------------------------------------------------------------------------


def read_speed(path: Path) -> float:
    """Return the bytes per second at which the beginning of a file is read, after dropping it from the page cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, _PROBE, os.POSIX_FADV_DONTNEED)
        began, done = time.monotonic(), 0
        while done < _PROBE and time.monotonic() - began < _MAX_SECONDS:
            part = os.read(handle, 4 * _MIB)
            if not part:
                break
            done += len(part)
        return done / max(time.monotonic() - began, 1e-9)
    finally:
        os.close(handle)


def write_speed(folder: Path) -> float | None:
    """Return the bytes per second at which a file is written and synced in `folder`; None if that fails."""
    block = os.urandom(4 * _MIB)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".multitalk-doctor-") as file:
            began, done = time.monotonic(), 0
            while done < _PROBE and time.monotonic() - began < _MAX_SECONDS:
                file.write(block)
                done += len(block)
            file.flush()
            os.fsync(file.fileno())
            return done / max(time.monotonic() - began, 1e-9)
    except OSError:
        return None


def _driver() -> str | None:
    try:
        line = Path("/proc/driver/nvidia/version").read_text("utf-8", "replace").splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in line.split() if word[:1].isdigit() and "." in word), "unknown")


def _compare_memory(name: str, needed: int | None, free: int, text: str, estimates: Estimates | None) -> CheckResult:
    details = {"free_bytes": free, "needed_bytes": needed}
    if needed is None:
        return CheckResult(name, "note", f"{text}; what the model needs is not known", "", details)
    text = f"{text}; a window needs {gigabytes(needed)}"
    if needed <= free:
        return CheckResult(name, "ok", text, "", details)
    card = estimates and next((one for one in estimates.cards if one.card == estimates.card), None)
    change = " ".join(card.change) if card else ""
    hint = f"try {change}" if change else "multitalk plan says what would fit: memory=, quant=, resolution="
    return CheckResult(name, "broken", text, hint, details)

"""What is wrong with this machine for the config it is to run, and what to do about it."""

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

from engine.assembly.compatibility import check_suited
from engine.assembly.location import locate_weights
from engine.components import RehearsingSink
from engine.data import Request, Speaker
from engine.data.estimates import Estimates
from engine.errors import EngineError
from engine.machine.host_memory import free_host_memory
from engine.planning.gpus import installed_cards
from engine.plugin.manager import Registry, installed
from engine.service import EngineService
from engine.serving.worker.fitness import UnfitError, check_room

State = Literal["ok", "note", "broken"]

_MIB, _GB = 2**20, 1e9
#: Most bytes and seconds of the probe of a folder, each way.
_PROBE, _PATIENCE = 64 * _MIB, 3.0
#: Bytes a second below which the start of a worker is a matter of minutes.
_SLOW = 100e6
#: Share of the largest value by which attention in bfloat16, or in 8 bits, may be off.
_WRONG = 0.1
#: What the distribution installs; common words, so another one may install them, too.
_PACKAGES = ("engine", "plugins")
#: What RunPod and the docs of this project know; values are never shown.
_VARIABLES = (
    *("RUNPOD_POD_ID", "RUNPOD_ENDPOINT_ID", "RUNPOD_INIT_TIMEOUT", "RUNPOD_LOG_LEVEL"),
    *("MODEL_PATH", "S3_BUCKET", "BUCKET_ENDPOINT_URL", "HF_TOKEN"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    #: "broken": this config cannot work here. "note": it works, and there is something to know.
    state: State
    what: str
    #: What to do; empty where nothing is to be done.
    hint: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    #: For a terminal, in place of the hint: where it was looked for, and commands, in lines of their own.
    more: tuple[str, ...] = ()


Check = Callable[["Patient"], Iterator[Finding]]


class Patient:
    """A config and what several checks want to know of it."""

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

        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return self.config.device if self.config.device != "auto" else auto

    def estimates(self) -> Estimates | None:
        """Plan a video of one window with the example picture."""
        examples = files("engine") / "examples"
        speakers = (Speaker(str(examples / "left.flac")), Speaker(str(examples / "right.flac")))
        request = Request("two people talk", str(examples / "two.png"), speakers, frames=self.config.model.window)
        # A plan imports no torch and may not see a GPU that torch does.
        service = self.service.open([f"device={self.device}"]) if self.config.device == "auto" else self.service
        return service.plan(request).estimates


def examine(overrides: Sequence[str] = ()) -> list[Finding]:
    """Look at everything and return what was found, in the order to read it. Raises ConfigError for the overrides."""
    patient = Patient(overrides)
    found: list[Finding] = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        try:
            found += check(patient)
        except EngineError as error:
            what, more = error.report()
            found.append(Finding(name, "broken", what, error.hint, more=more))
        except Exception as error:  # noqa: BLE001 - a check that fails must not hide what the others find
            # The text of a foreign error may hold anything, an address with a key in it too.
            found.append(Finding(name, "broken", f"could not be looked at ({type(error).__name__})"))
    return found


# --- the checks -------------------------------------------------------------------------------------------------------


def check_versions(patient: Patient) -> Iterator[Finding]:
    """Python, the engine, and its libraries."""
    from engine.assembly.provenance import versions

    known = versions()
    python = platform.python_version()
    text = f"Python {python}, " + ", ".join(f"{name} {version}" for name, version in known.items())
    old = sys.version_info < (3, 11)
    yield Finding("versions", "broken" if old else "ok", text, "use Python 3.11 or later" if old else "", known)
    for name in patient.registry.broken:
        yield Finding("plugins", "note", f"the plugin {name} could not be loaded", "multitalk plugins says why")


def check_imports(patient: Patient) -> Iterator[Finding]:
    """Whether `engine` and `plugins` are this distribution's, and no other's beside it (docs/decisions/017)."""
    found = {name: spec.origin for name in _PACKAGES if (spec := find_spec(name)) is not None and spec.origin}
    owners = packages_distributions()
    others = sorted({owner for name in _PACKAGES for owner in owners.get(name, ()) if owner != "multitalk-engine"})
    places = {Path(origin).parent.parent for origin in found.values()}
    text = " and ".join(f"{name} is {origin}" for name, origin in found.items())
    if others:
        hint = "install multitalk-engine into an environment of its own"
        what = f"a package called engine or plugins is installed by {', '.join(others)}, too"
        yield Finding("imports", "broken", what, hint, found)
    elif len(found) < len(_PACKAGES) or len(places) > 1:
        hint = "start Python where no folder is called engine or plugins, and look at PYTHONPATH"
        yield Finding("imports", "broken", f"{text}, which are not of one package", hint, found)
    else:
        yield Finding("imports", "ok", text, "", found)


def check_device(patient: Patient) -> Iterator[Finding]:
    """torch's build against the driver."""
    import torch

    build, driver = torch.version.cuda, _driver() or ("unknown" if torch.cuda.is_available() else None)
    built = f"torch {torch.__version__}, built for " + (f"CUDA {build}" if build else "CPUs alone")
    details = {"torch": torch.__version__, "cuda_build": build, "driver": driver, "cards": list(patient.cards)}
    wanted = patient.config.device == "cuda"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        yield Finding("device", "ok", f"{built}; driver {driver}; {name}", "", details)
    elif driver is None:
        hint = "choose a machine with a GPU, start the container with --gpus all, or use device=cpu" if wanted else ""
        yield Finding("device", "broken" if wanted else "ok", f"{built}; no NVIDIA driver, so the CPU", hint, details)
    elif not build:
        hint = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        yield Finding("device", "broken", f"{built}, but driver {driver} and a GPU are here", hint, details)
    else:
        hint = f"update the driver to one for CUDA {build}, or install a torch built for an older CUDA"
        yield Finding("device", "broken", f"{built}; driver {driver} does not serve it", hint, details)


def check_memory(patient: Patient) -> Iterator[Finding]:
    """What a plan needs against what there is."""
    import torch

    found, host = patient.estimates(), free_host_memory()
    if patient.device == "cuda" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        needed = None if found is None else found.device_memory_bytes
        text = f"{free / _GB:.1f} of {total / _GB:.1f} GB are free on the card"
        yield _room("device memory", needed, free, text, found)
    if host is not None:
        needed = None if found is None else found.host_memory_bytes
        yield _room("host memory", needed, host, f"{host / _GB:.1f} GB are free", found)


def check_attention(patient: Patient) -> Iterator[Finding]:
    """Each backend, run once on the device against torch's plain arithmetic."""
    import torch

    device = patient.device
    if device == "cuda" and not torch.cuda.is_available():
        # Said already.
        return
    for name in patient.registry.attention.names():
        chosen = name == patient.config.attention.name
        bad: State = "broken" if chosen else "note"
        try:
            backends = patient.registry.attention
            backend = backends.build(patient.config.attention) if chosen else backends.build_default(name)
            kernel = backend.resolve(device)
            error = try_attention(kernel, device)
        except EngineError as problem:
            yield Finding(f"attention={name}", bad, problem.what, problem.hint if chosen else "")
            continue
        except Exception as problem:  # noqa: BLE001 - a kernel may raise anything
            what = f"its kernel fails ({type(problem).__name__})"
            yield Finding(f"attention={name}", bad, what, "choose attention=sdpa" if chosen else "")
            continue
        what = f"runs as {kernel}, {error:.1e} from plain arithmetic"
        right = error < _WRONG
        hint = "" if right else "its result is wrong: choose another"
        yield Finding(f"attention={name}", "ok" if right else bad, what, hint)


def check_weights(patient: Patient) -> Iterator[Finding]:
    """What the chosen source finds, and whether quantisation and LoRAs go with it."""
    folder = locate_weights(patient.config, patient.registry)
    check_suited(patient.config, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    text = f"{patient.config.model.name}: complete in {folder}, {size / _GB:.2f} GB"
    yield Finding("weights", "ok", text, "", {"folder": str(folder), "bytes": size})


def check_volume(patient: Patient) -> Iterator[Finding]:
    """How fast weights come from where they are, and whether a folder beside them can be written to."""
    try:
        folder = locate_weights(patient.config, patient.registry)
    except EngineError:
        # Said already.
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
    yield Finding("volume", "note" if slow else "ok", text, hint, details)


def check_disk(patient: Patient) -> Iterator[Finding]:
    """Room for a job's files."""
    folder = Path(tempfile.gettempdir())
    try:
        check_room(folder)
    except UnfitError as error:
        what, _, hint = str(error).partition("; ")
        yield Finding("disk", "broken", what, hint)
        return
    free = os.statvfs(folder)
    yield Finding("disk", "ok", f"{free.f_bavail * free.f_frsize / _GB:.1f} GB are free for temporary files")


def check_sink(patient: Patient) -> Iterator[Finding]:
    """Where videos go; a bucket gets an object, which is taken away again."""
    registry = patient.registry
    sinks = {patient.config.sink.name: registry.sinks.build(patient.config.sink)}
    given = any(os.environ.get(name) for name in ("S3_BUCKET", "BUCKET_ENDPOINT_URL"))
    if given and "s3" in registry.sinks.names() and "s3" not in sinks:
        # A job may ask for it, whatever the config's own sink is.
        sinks["s3"] = registry.sinks.build(EngineService([*patient.service.overrides, "sink=s3"]).config.sink)
    for name, sink in sinks.items():
        if isinstance(sink, RehearsingSink):
            sink.rehearse()
            yield Finding("sink", "ok", f"{name}: an object was written, read and removed")
        else:
            sink.check(None)
            yield Finding("sink", "ok", f"{name}: ready")


def check_runpod(patient: Patient) -> Iterator[Finding]:
    """The variables of a worker, by name alone."""
    given = [name for name in _VARIABLES if os.environ.get(name)]
    if not (os.environ.get("RUNPOD_POD_ID") or os.environ.get("RUNPOD_ENDPOINT_ID")):
        yield Finding("runpod", "ok", "not on RunPod", "", {"set": given})
        return
    text = f"on RunPod; set: {', '.join(given)}"
    if os.environ.get("RUNPOD_LOG_LEVEL", "DEBUG").upper() == "DEBUG":
        hint = "set RUNPOD_LOG_LEVEL=INFO: at DEBUG the SDK logs answers, and links to videos with them"
        yield Finding("runpod", "note", text, hint, {"set": given})
    else:
        yield Finding("runpod", "ok", text, "", {"set": given})


CHECKS: tuple[Check, ...] = (
    check_versions,
    check_imports,
    check_device,
    check_memory,
    check_attention,
    check_weights,
    check_volume,
    check_disk,
    check_sink,
    check_runpod,
)


# --- what they measure ------------------------------------------------------------------------------------------------


def try_attention(kernel: str, device: str) -> float:
    """Run a backend of diffusers' once; return how far it is from plain arithmetic, as a share of its largest value."""
    import torch

    from engine.multitalk.compat import AttentionBackendName, dispatch_attention_fn

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 256, 4, 128, generator=random).to(device, dtype) for _ in range(3))
    with torch.no_grad():
        given = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(kernel)).float()
        scores = torch.einsum("blhd,bmhd->bhlm", query.float(), key.float()) / 128**0.5
        plain = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), value.float())
    return float((given - plain).abs().max() / plain.abs().max())


def read_speed(path: Path) -> float:
    """Return bytes a second at which the beginning of a file is read, what the cache has of it dropped before."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, _PROBE, os.POSIX_FADV_DONTNEED)
        began, done = time.monotonic(), 0
        while done < _PROBE and time.monotonic() - began < _PATIENCE:
            part = os.read(handle, 4 * _MIB)
            if not part:
                break
            done += len(part)
        return done / max(time.monotonic() - began, 1e-9)
    finally:
        os.close(handle)


def write_speed(folder: Path) -> float | None:
    """Return bytes a second at which a file is written and synchronised in `folder`, None where that fails."""
    block = os.urandom(4 * _MIB)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".multitalk-doctor-") as file:
            began, done = time.monotonic(), 0
            while done < _PROBE and time.monotonic() - began < _PATIENCE:
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


def _room(name: str, needed: int | None, free: int, text: str, found: Estimates | None) -> Finding:
    details = {"free_bytes": free, "needed_bytes": needed}
    if needed is None:
        return Finding(name, "note", f"{text}; what the model needs is not known", "", details)
    text = f"{text}; a window needs {needed / _GB:.1f} GB"
    if needed <= free:
        return Finding(name, "ok", text, "", details)
    change = next((one.change for one in found.cards if found and one.card == found.card), ()) if found else ()
    hint = f"try {' '.join(change)}" if change else "multitalk plan says what would fit: memory=, quant=, resolution="
    return Finding(name, "broken", text, hint, details)

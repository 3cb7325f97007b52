"""The fastest exact kernel that the card and the installed packages allow, by the card's generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.data import AttentionChoice, AttentionSite
from engine.errors import EngineError
from engine.machine.kernels import Found, find_kernel, installed_version, refusal
from engine.machine.packaged_backend import KernelBackend
from engine.plugin.register import Register


@dataclass
class AutoConfig(ComponentConfig):
    """The fastest exact kernel for the card's generation among the installed ones (docs/attention.md).

    Kernels that compute in 8 or 4 bits are never selected automatically: they change the video.
    """

    name: str = "auto"
    #: Whether kernels may be downloaded from the Hugging Face Hub, which runs their code (needs the package kernels).
    hub: bool = False


@dataclass(frozen=True)
class Generation:
    """Cards of one generation: the kernels to try, best first, and why in this order."""

    name: str
    #: Compute capability: the least, and the first that no longer belongs to it.
    least: tuple[int, int]
    below: tuple[int, int]
    order: tuple[str, ...]
    why: str
    #: What the order is based on.
    source: str


_TORCH_ORDER = "torch 2.13, sdp_utils.cpp: cuDNN first on 9.x and 10.x, FlashAttention 2 first on others"
#: The last of each order always works.
GENERATIONS = (
    Generation(
        *("before Ampere", (0, 0), (8, 0), ("sdpa",)),
        "no FlashAttention for these cards; torch takes its memory-efficient kernel",
        "README of Dao-AILab/flash-attention: Ampere, Ada, or Hopper GPUs",
    ),
    Generation(
        *("Ampere", (8, 0), (8, 9), ("flash", "sdpa")),
        "flash-attn is FlashAttention 2, which torch ships too, in an older version",
        _TORCH_ORDER,
    ),
    Generation(
        *("Ada", (8, 9), (9, 0), ("flash", "sdpa")),
        "flash-attn is FlashAttention 2, which torch ships too, in an older version",
        f"{_TORCH_ORDER}; SageAttention 2 is 2 to 3 times faster here (arXiv 2411.10958), in 8 bits",
    ),
    Generation(
        *("Hopper", (9, 0), (10, 0), ("flash3", "flash3-hub", "sdpa")),
        "FlashAttention 3 is made for Hopper; torch takes cuDNN's kernel, which is faster there than FlashAttention 2",
        f"arXiv 2407.08608, figure 4; {_TORCH_ORDER}; FlashAttention 2 to 3: 1.28 times end to end (Morphic, 8 H100)",
    ),
    Generation(
        *("Blackwell, data centre", (10, 0), (12, 0), ("flash4-hub", "sdpa")),
        "FlashAttention 4 is made for it; torch takes cuDNN's kernel",
        f"README of flash_attn/cute: Hopper and Blackwell GPUs (H100, B200); {_TORCH_ORDER}",
    ),
    Generation(
        *("Blackwell, RTX", (12, 0), (99, 0), ("sdpa",)),
        "FlashAttention 3 and 4 do not run on it; torch takes its FlashAttention 2",
        f"Dao-AILab/flash-attention issue 1987 and sgl-project/sglang discussion 10564; {_TORCH_ORDER}",
    ),
)


def generation_of(capability: tuple[int, int]) -> Generation:
    """Return the generation of cards with this compute capability."""
    return next(one for one in GENERATIONS if one.least <= capability < one.below)


def pick(site: AttentionSite, *, hub: bool = False, found: Found = installed_version) -> tuple[str, str]:
    """Return the name of the kernel for a site, and the reason.

    Depends on nothing but its arguments: `found` returns the versions of packages. `hub` allows downloaded kernels.
    """
    if site.device != "cuda":
        return "sdpa", "on a CPU torch's own kernel is the fastest"
    if site.rocm:
        return "sdpa", "torch is built for ROCm: its own kernel"
    if site.capability is None:
        return "sdpa", "the card's compute capability is not known: torch's own choice"
    generation = generation_of(site.capability)
    passed = []
    for name in generation.order:
        kernel = find_kernel(name)
        if kernel.hub and not hub:
            passed.append(f"{name} needs attention.hub=true")
        elif (problem := refusal(kernel, site, found)) is not None:
            passed.append(problem.what.removeprefix("attention="))
        else:
            major, minor = site.capability
            why = f"{generation.name} ({major}.{minor}): {generation.why}"
            return name, "; ".join([why, *passed])
    raise AssertionError(generation.name)


class Auto:
    """Selects by the card's generation and by installed packages."""

    def __init__(self, config: AutoConfig) -> None:
        self.hub = config.hub

    def resolve(self, device: str) -> str:
        """Return the kernel for "cuda" or "cpu" with the device's usual dtype and a card of unknown generation."""
        return self.choose(AttentionSite(device, "bfloat16" if device == "cuda" else "float32")).kernel

    def choose(self, site: AttentionSite) -> AttentionChoice:
        """Return the first kernel of the generation's order that can be used, with the reason."""
        unfit: list[str] = []
        for name, why in self._candidates(site, unfit):
            try:
                choice = KernelBackend(_Named(name)).choose(site)
            except EngineError as error:
                # Its compiled files are for another CUDA.
                unfit.append(error.what)
                continue
            return AttentionChoice(choice.kernel, "; ".join([why, *unfit]))
        raise AssertionError(site)

    def _candidates(self, site: AttentionSite, unfit: list[str]) -> Iterator[tuple[str, str]]:
        without: set[str] = set()

        def found(package: str, module: str) -> str | None:
            return None if package in without else installed_version(package, module)

        while True:
            name, why = pick(site, hub=self.hub, found=found)
            yield name, why
            without.add(find_kernel(name).package)


@dataclass(frozen=True)
class _Named:
    name: str


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Auto, AutoConfig)

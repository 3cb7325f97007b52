"""The attention kernels of diffusers' dispatch: their names, where they come from, and what they need.

Sources: diffusers 0.42.1, models/attention_dispatch.py (names, versions, checks, repositories on the Hub); READMEs and
setup.py of Dao-AILab/flash-attention (FlashAttention 2, 3 and 4: cards and dtypes) and thu-ml/SageAttention (cards of
each variant, in `sageattn` of sageattention/core.py); torch's sdp_utils.cpp (its own kernels). Read, not run: this
project has not met a card yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from engine.data.attention import AttentionSite
from engine.errors import ConfigError, UnknownComponent

#: Names of diffusers' dispatch that are no component, with the reason.
LEFT_OUT = {
    "_native_npu": "for Ascend devices; the engine runs on CUDA and CPUs",
    "_native_xla": "for XLA devices; the engine runs on CUDA and CPUs",
}
#: pip's name -> what installs it. FlashAttention 3 and SageAttention 2 are not on PyPI (newest there: none, 1.0.6).
INSTALL = {
    "flash-attn": "pip install 'multitalk-engine[flash]'",
    "flash_attn_3": "build it: github.com/Dao-AILab/flash-attention, folder hopper; or choose attention=flash3-hub",
    "sageattention": "build it: github.com/thu-ml/SageAttention (PyPI has only 1.0.6); or choose attention=sage-hub",
    "kernels": "pip install 'multitalk-engine[kernels]'",
    "xformers": "pip install 'multitalk-engine[xformers]'",
}
#: What a note says of kernels that compute in 8 or 4 bits.
LOSSY = "the video differs slightly from that of exact attention"


@dataclass(frozen=True)
class Kernel:
    """One kernel: its name, its origin, and what it needs."""

    #: What users choose: attention=NAME; and its name in diffusers.
    name: str
    dispatch: str
    #: pip's name of the package that brings it, its modules (compiled files; the first is the one to look for), and
    #: the oldest version that diffusers accepts. "": torch itself.
    package: str = ""
    modules: tuple[str, ...] = ()
    least: str = ""
    #: Repository on the Hugging Face Hub from which the package `kernels` downloads it; "": it is not downloaded.
    hub: str = ""
    #: Least compute capability, and major numbers that it is built for (none: all from the least).
    capability: tuple[int, int] = (8, 0)
    majors: tuple[int, ...] = ()
    #: Devices, and dtypes of queries, keys and values (none: all).
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    #: Dtypes on CUDA, if they are fewer.
    cuda_dtypes: tuple[str, ...] = ()
    #: Head dimensions: a divisor, the largest, and the only ones (none: all).
    multiple: int = 8
    largest: int = 256
    heads: tuple[int, ...] = ()
    #: Whether it needs torch for ROCm; all others with a package need CUDA.
    rocm: bool = False
    #: Bits of its products; 16: exact but for rounding.
    bits: int = 16

    def serves_head(self, head_dim: int) -> bool:
        """Return whether it works with heads of this dimension."""
        if self.heads:
            return head_dim in self.heads
        return head_dim % self.multiple == 0 and head_dim <= self.largest

    @property
    def note(self) -> str:
        """The warning for a kernel that is not exact; "" for others."""
        return "" if self.bits == 16 else f"attention={self.name} computes products in {self.bits} bits: {LOSSY}"


_HALVES, _ANY = ("bfloat16", "float16"), ("float32", "bfloat16", "float16")
_TORCH = Kernel("", "", capability=(0, 0), devices=("cuda", "cpu"), dtypes=_ANY, multiple=1, largest=2**20)
_FA2 = Kernel("", "", "flash-attn", ("flash_attn", "flash_attn_2_cuda"), "2.6.3")
_FA3 = Kernel("", "", "flash_attn_3", ("flash_attn_3", "flash_attn_interface"), capability=(9, 0), majors=(9,))
_SAGE = Kernel("", "", "sageattention", ("sageattention",), "2.1.1", multiple=1, largest=128, bits=8)
_HUB = Kernel("", "", "kernels", ("kernels",), "0.12")
_FA2_HUB = replace(_HUB, hub="kernels-community/flash-attn2")
_FA3_HUB = replace(_HUB, hub="kernels-community/flash-attn3", capability=(9, 0), majors=(9,))
_FA4_HUB = replace(
    _HUB, hub="kernels-community/flash-attn4", least="0.12.3", capability=(9, 0), majors=(9, 10), largest=128
)
_AITER_HUB = replace(_HUB, hub="kernels-community/aiter-flash-attn-ck", rocm=True, dtypes=("bfloat16",))
_SAGE_HUB = replace(_HUB, hub="SageAttention/sage-attention", multiple=1, largest=128, bits=8)
_SAGE3_HUB = replace(
    _HUB, hub="SageAttention/sage-blackwell", capability=(10, 0), majors=(10, 12), heads=(64, 128), bits=4
)
_XFORMERS = Kernel(
    "", "", "xformers", ("xformers",), "0.0.29", capability=(5, 0), dtypes=_ANY, multiple=1, largest=2**20
)


def _named(base: Kernel, name: str, dispatch: str) -> Kernel:
    return replace(base, name=name, dispatch=dispatch)


#: Every kernel that can be chosen, by family.
KERNELS = (
    _named(_TORCH, "sdpa", "native"),
    _named(
        replace(_TORCH, capability=(8, 0), devices=("cuda",), dtypes=_HALVES, multiple=8, largest=128),
        *("cudnn", "_native_cudnn"),
    ),
    _named(replace(_TORCH, capability=(5, 0), devices=("cuda",), multiple=4), "efficient", "_native_efficient"),
    _named(replace(_TORCH, capability=(8, 0), cuda_dtypes=_HALVES, largest=256), "sdpa-flash", "_native_flash"),
    _named(_TORCH, "math", "_native_math"),
    _named(_TORCH, "flex", "flex"),
    _named(_FA2, "flash", "flash"),
    _named(_FA2_HUB, "flash-hub", "flash_hub"),
    _named(_FA2, "flash-varlen", "flash_varlen"),
    _named(_FA2_HUB, "flash-varlen-hub", "flash_varlen_hub"),
    _named(_FA3, "flash3", "_flash_3"),
    _named(_FA3_HUB, "flash3-hub", "_flash_3_hub"),
    _named(_FA3, "flash3-varlen", "_flash_varlen_3"),
    _named(_FA3_HUB, "flash3-varlen-hub", "_flash_3_varlen_hub"),
    _named(_FA4_HUB, "flash4-hub", "flash_4_hub"),
    _named(_AITER_HUB, "aiter-hub", "aiter_fa2_hub"),
    _named(_SAGE, "sage", "sage"),
    _named(_SAGE_HUB, "sage-hub", "sage_hub"),
    _named(replace(_SAGE, majors=(8, 9)), "sage-varlen", "sage_varlen"),
    _named(replace(_SAGE, capability=(8, 9), majors=(8, 10, 12)), "sage-fp8", "_sage_qk_int8_pv_fp8_cuda"),
    _named(replace(_SAGE, capability=(9, 0), majors=(9,)), "sage-fp8-sm90", "_sage_qk_int8_pv_fp8_cuda_sm90"),
    _named(_SAGE, "sage-fp16", "_sage_qk_int8_pv_fp16_cuda"),
    _named(replace(_SAGE, majors=(8, 9)), "sage-fp16-triton", "_sage_qk_int8_pv_fp16_triton"),
    _named(_SAGE3_HUB, "sage3-hub", "sage_blackwell_hub"),
    _named(_XFORMERS, "xformers", "xformers"),
)

#: Returns the version of a package if its module can be imported, "" if the version is not known, None if it is not
#: installed: (pip's name, module).
Found = Callable[[str, str], "str | None"]


def find_kernel(name: str) -> Kernel:
    """Return the kernel that users call `name`. Raises UnknownComponent."""
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise UnknownComponent("attention", name, [kernel.name for kernel in KERNELS])


def dispatched(dispatch: str) -> Kernel | None:
    """Return the kernel that diffusers calls `dispatch`; None if it is not in the table."""
    return next((kernel for kernel in KERNELS if kernel.dispatch == dispatch), None)


def installed_version(package: str, module: str) -> str | None:
    """See `Found`. Imports nothing."""
    if find_spec(module) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def refusal(kernel: Kernel, site: AttentionSite, found: Found = installed_version) -> ConfigError | None:
    """Return why a kernel cannot be used at a site, with what would help; None if nothing speaks against it.

    Looks at devices first, then at the package: what cannot run here needs no installation.
    """
    choice = f"attention={kernel.name}"
    if site.device not in kernel.devices:
        return _refused(f"{choice} runs on CUDA, not on {site.device!r}")
    if kernel.rocm != site.rocm and (kernel.rocm or kernel.package):
        return _refused(f"{choice} is built for {'AMD ROCm' if kernel.rocm else 'NVIDIA CUDA'}, torch here is not")
    if site.device == "cuda" and not site.rocm and site.capability is not None:
        major, minor = site.capability
        if site.capability < kernel.capability or (kernel.majors and major not in kernel.majors):
            return _refused(f"{choice} does not run on compute capability {major}.{minor}; it needs {_cards(kernel)}")
    dtypes = (kernel.cuda_dtypes if site.device == "cuda" else ()) or kernel.dtypes
    if site.dtype not in dtypes:
        return _refused(f"{choice} computes in {' or '.join(dtypes)}, not in {site.dtype}", "or dtype=bfloat16")
    if not kernel.package:
        return None
    there = found(kernel.package, kernel.modules[0])
    install = f"or {INSTALL.get(kernel.package, f'pip install {kernel.package}')}"
    if there is None:
        return _refused(
            f"{choice} needs the package {kernel.package!r}, which is not installed", install, "missing_package"
        )
    if there and kernel.least and _numbers(there) < _numbers(kernel.least):
        return _refused(
            f"{choice} needs {kernel.package} {kernel.least} or newer, {there} is installed",
            install,
            "missing_package",
        )
    return None


def head_refusal(kernel: Kernel, head_dim: int) -> ConfigError | None:
    """Return why a kernel cannot attend with heads of this dimension; None if it can."""
    if kernel.serves_head(head_dim):
        return None
    fits = " or ".join(map(str, kernel.heads)) or f"multiples of {kernel.multiple} up to {kernel.largest}"
    return _refused(f"attention={kernel.name} works with heads of {fits}, the model's are {head_dim}")


def _cards(kernel: Kernel) -> str:
    least = f"{kernel.capability[0]}.{kernel.capability[1]}"
    if not kernel.majors:
        return f"{least} or later"
    return " or ".join(least if major == kernel.capability[0] else f"{major}.x" for major in kernel.majors)


def _refused(what: str, hint: str = "", code: str = "") -> ConfigError:
    return ConfigError(what, field="attention", hint=f"choose attention=sdpa{', ' + hint if hint else ''}", code=code)


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "2.7.4.post1" -> (2, 7, 4)."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)

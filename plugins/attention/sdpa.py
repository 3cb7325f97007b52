"""PyTorch's own attention: its choice of kernel, which runs everywhere, and each of its kernels by name."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.machine.packaged_backend import KernelBackend
from engine.plugin.register import Register


@dataclass
class SdpaConfig(ComponentConfig):
    """torch.nn.functional.scaled_dot_product_attention, which picks the fastest kernel PyTorch ships."""

    name: str = "sdpa"


@dataclass
class CudnnConfig(ComponentConfig):
    """cuDNN's kernel, through PyTorch; 16 bits, compute capability 8.0 or later; exact."""

    name: str = "cudnn"


@dataclass
class EfficientConfig(ComponentConfig):
    """PyTorch's memory-efficient kernel, also for float32 and older cards; exact."""

    name: str = "efficient"


@dataclass
class SdpaFlashConfig(ComponentConfig):
    """The FlashAttention 2 that PyTorch ships, on a CPU its own flash kernel; exact."""

    name: str = "sdpa-flash"


@dataclass
class MathConfig(ComponentConfig):
    """PyTorch's plain operations: all scores are in memory at once, to compare other kernels with."""

    name: str = "math"


@dataclass
class FlexConfig(ComponentConfig):
    """PyTorch's flex_attention; exact. Unless it is compiled, all scores are in memory at once."""

    name: str = "flex"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    for config in (SdpaConfig, CudnnConfig, EfficientConfig, SdpaFlashConfig, MathConfig, FlexConfig):
        register(KernelBackend, config)

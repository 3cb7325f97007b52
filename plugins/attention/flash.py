"""FlashAttention 2, 3 and 4 on CUDA, and AMD's: from an installed package, or from the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.machine.packaged_backend import KernelBackend
from engine.plugin.register import Register


@dataclass
class FlashConfig(ComponentConfig):
    """FlashAttention 2 (arXiv 2307.08691), package flash-attn; exact, 16 bits, compute capability 8.0 or later."""

    name: str = "flash"


@dataclass
class FlashHubConfig(ComponentConfig):
    """FlashAttention 2, downloaded by the package kernels; exact, 16 bits, compute capability 8.0 or later."""

    name: str = "flash-hub"


@dataclass
class FlashVarlenConfig(ComponentConfig):
    """FlashAttention 2 for sequences of several lengths, package flash-attn; here there is one length."""

    name: str = "flash-varlen"


@dataclass
class FlashVarlenHubConfig(ComponentConfig):
    """FlashAttention 2 for sequences of several lengths, downloaded by the package kernels."""

    name: str = "flash-varlen-hub"


@dataclass
class Flash3Config(ComponentConfig):
    """FlashAttention 3 (arXiv 2407.08608), built from its source; exact, 16 bits, Hopper (9.0) only."""

    name: str = "flash3"


@dataclass
class Flash3HubConfig(ComponentConfig):
    """FlashAttention 3, downloaded by the package kernels; exact, 16 bits, Hopper (9.0) only."""

    name: str = "flash3-hub"


@dataclass
class Flash3VarlenConfig(ComponentConfig):
    """FlashAttention 3 for sequences of several lengths, built from its source; Hopper (9.0) only."""

    name: str = "flash3-varlen"


@dataclass
class Flash3VarlenHubConfig(ComponentConfig):
    """FlashAttention 3 for sequences of several lengths, downloaded by the package kernels; Hopper (9.0) only."""

    name: str = "flash3-varlen-hub"


@dataclass
class Flash4HubConfig(ComponentConfig):
    """FlashAttention 4, downloaded by the package kernels; exact, 16 bits, Hopper (9.0) and Blackwell (10.x)."""

    name: str = "flash4-hub"


@dataclass
class AiterHubConfig(ComponentConfig):
    """AMD's FlashAttention 2 (aiter), downloaded by the package kernels; exact, bfloat16, torch for ROCm only."""

    name: str = "aiter-hub"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    second = (FlashConfig, FlashHubConfig, FlashVarlenConfig, FlashVarlenHubConfig)
    third = (Flash3Config, Flash3HubConfig, Flash3VarlenConfig, Flash3VarlenHubConfig)
    for config in (*second, *third, Flash4HubConfig, AiterHubConfig):
        register(KernelBackend, config)

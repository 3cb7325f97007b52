"""SageAttention, on CUDA: products in 8 or 4 bits; the fastest kernels, not exact."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.machine.packaged_backend import KernelBackend
from engine.plugin.register import Register


@dataclass
class SageConfig(ComponentConfig):
    """SageAttention 2 (arXiv 2411.10958), which picks its variant by the card; 8 bits: the video differs slightly."""

    name: str = "sage"


@dataclass
class SageHubConfig(ComponentConfig):
    """SageAttention 2, downloaded by the package kernels; 8 bits: the video differs slightly."""

    name: str = "sage-hub"


@dataclass
class SageVarlenConfig(ComponentConfig):
    """SageAttention for sequences of several lengths (Triton); 8 bits: the video differs slightly."""

    name: str = "sage-varlen"


@dataclass
class SageFp8Config(ComponentConfig):
    """SageAttention 2 with int8 scores and fp8 values, for Ada (8.9) and Blackwell; the video differs slightly."""

    name: str = "sage-fp8"


@dataclass
class SageFp8Sm90Config(ComponentConfig):
    """SageAttention 2 with int8 scores and fp8 values, for Hopper (9.0); the video differs slightly."""

    name: str = "sage-fp8-sm90"


@dataclass
class SageFp16Config(ComponentConfig):
    """SageAttention 2 with int8 scores and float16 values, in CUDA; the video differs slightly."""

    name: str = "sage-fp16"


@dataclass
class SageFp16TritonConfig(ComponentConfig):
    """SageAttention with int8 scores and float16 values, in Triton; the video differs slightly."""

    name: str = "sage-fp16-triton"


@dataclass
class Sage3HubConfig(ComponentConfig):
    """SageAttention 3 (arXiv 2505.11594), 4 bits, Blackwell only, downloaded by kernels; the video differs."""

    name: str = "sage3-hub"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    whole = (SageConfig, SageHubConfig, SageVarlenConfig)
    for config in (*whole, SageFp8Config, SageFp8Sm90Config, SageFp16Config, SageFp16TritonConfig, Sage3HubConfig):
        register(KernelBackend, config)

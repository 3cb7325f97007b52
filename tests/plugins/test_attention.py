"""Attention backends: which kernel each resolves to, and what is refused where."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ConfigError, MissingExtra
from engine.multitalk.compat import AttentionBackendName
from plugins.attention.auto import Auto, AutoConfig
from plugins.attention.flash import Flash, FlashConfig
from plugins.attention.sage import Sage, SageConfig
from plugins.attention.sdpa import Sdpa, SdpaConfig
from plugins.attention.xformers import Xformers, XformersConfig

CUDA_ONLY = [
    (Xformers, XformersConfig, "xformers"),
    (Flash, FlashConfig, "flash_attn"),
    (Sage, SageConfig, "sageattention"),
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that exactly the given packages can be imported."""

    def pretend(*packages: str) -> None:
        for module in ("plugins.attention.auto", "engine.machine.packaged_backend"):
            monkeypatch.setattr(f"{module}.find_spec", lambda name: object() if name in packages else None)

    return pretend


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sdpa_is_native_everywhere(device: str) -> None:
    assert Sdpa(SdpaConfig()).resolve(device) == AttentionBackendName.NATIVE.value


@pytest.mark.parametrize(("kind", "config", "package"), CUDA_ONLY)
def test_cuda_kernels_are_refused_on_the_cpu(kind: Any, config: Any, package: str, installed: Any) -> None:
    installed(package)

    with pytest.raises(ConfigError, match=config.name) as caught:
        kind(config()).resolve("cpu")
    assert caught.value.field == "attention"


@pytest.mark.parametrize(("kind", "config", "package"), CUDA_ONLY)
def test_a_missing_package_is_named(kind: Any, config: Any, package: str, installed: Any) -> None:
    installed()

    with pytest.raises(MissingExtra, match="not installed") as caught:
        kind(config()).resolve("cuda")
    assert caught.value.field == "attention"


@pytest.mark.parametrize(("kind", "config", "package"), CUDA_ONLY)
def test_an_installed_kernel_resolves_to_a_name_diffusers_knows(
    kind: Any, config: Any, package: str, installed: Any
) -> None:
    installed(package)

    assert AttentionBackendName(kind(config()).resolve("cuda"))


@pytest.mark.parametrize(
    ("device", "packages", "kernel"),
    [
        ("cpu", ("flash_attn",), "native"),
        ("cuda", ("flash_attn", "sageattention"), "flash"),
        ("cuda", ("sageattention", "xformers"), "native"),
        ("cuda", (), "native"),
    ],
)
def test_auto_takes_the_best_exact_kernel(device: str, packages: tuple[str, ...], kernel: str, installed: Any) -> None:
    installed(*packages)

    assert Auto(AutoConfig()).resolve(device) == kernel

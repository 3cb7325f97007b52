"""Attention backends: which kernel each resolves to, what is refused where, and what `auto` picks on which card."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from engine.components import ChoosingBackend
from engine.data import AttentionSite
from engine.errors import ConfigError
from engine.machine.kernels import KERNELS, LEFT_OUT, Kernel, find_kernel, head_refusal, refusal
from engine.network.compat import AttentionBackendName
from engine.plugin.manager import installed
from plugins.attention.auto import GENERATIONS, Auto, AutoConfig, pick

#: Every card generation that the issue names, and one before.
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
CPU = AttentionSite("cpu", "float32")


def card(major: int, minor: int, dtype: str = "bfloat16") -> AttentionSite:
    return AttentionSite("cuda", dtype, (major, minor))


def suited(kernel: Kernel) -> AttentionSite:
    """Return a site on which nothing but the package can speak against the kernel."""
    capability = max(kernel.capability, (8, 0))
    device = "cuda" if kernel.package or "cpu" not in kernel.devices else "cpu"
    return AttentionSite(device, "bfloat16", capability, rocm=kernel.rocm)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put packages of a name and a version on the path: `package("kernels", "1.0")`."""
    monkeypatch.syspath_prepend(tmp_path)
    for kernel in KERNELS:
        monkeypatch.delitem(sys.modules, kernel.modules[0] if kernel.modules else "", raising=False)
    return tmp_path


def put(folder: Path, kernel: Kernel, version: str) -> None:
    for module in kernel.modules:
        (folder / f"{module}.py").write_text("raise ImportError('only looked for')\n")
    about = folder / f"{kernel.package.replace('-', '_')}-{version}.dist-info" / "METADATA"
    about.parent.mkdir(exist_ok=True)
    about.write_text(f"Metadata-Version: 2.1\nName: {kernel.package}\nVersion: {version}\n")


def test_every_kernel_of_diffusers_can_be_chosen_or_is_left_out_for_a_reason() -> None:
    known = {backend.value for backend in AttentionBackendName}
    assert {kernel.dispatch for kernel in KERNELS} | set(LEFT_OUT) == known
    assert not {kernel.dispatch for kernel in KERNELS} & set(LEFT_OUT)
    assert {kernel.name for kernel in KERNELS} | {"auto", "radial"} == set(installed().attention.names())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_whose_needs_are_met_resolves_to_its_name_in_diffusers(kernel: Kernel, package: Path) -> None:
    if kernel.package:
        put(package, kernel, kernel.least or "3.0")
    backend = installed().attention.build_default(kernel.name)
    assert isinstance(backend, ChoosingBackend)
    choice = backend.choose(suited(kernel))
    assert AttentionBackendName(choice.kernel).value == kernel.dispatch
    # What changes the picture is told.
    assert bool(choice.note) == (kernel.bits < 16)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.package], ids=lambda kernel: kernel.name)
def test_a_missing_or_old_package_is_named_with_what_installs_it(kernel: Kernel, package: Path) -> None:
    backend = installed().attention.build_default(kernel.name)
    assert isinstance(backend, ChoosingBackend)
    with pytest.raises(ConfigError, match=f"needs the package '{kernel.package}', which is not installed") as caught:
        backend.choose(suited(kernel))
    assert (caught.value.field, caught.value.code) == (
        "attention",
        "missing_package" if kernel.name != "xformers" else caught.value.code,
    )
    if kernel.least:
        put(package, kernel, "0.0.1")
        with pytest.raises(ConfigError, match=rf"{kernel.least} or newer, 0\.0\.1 is installed") as caught:
            backend.choose(suited(kernel))
        assert "attention=sdpa" in caught.value.hint


@pytest.mark.parametrize(
    "kernel", [kernel for kernel in KERNELS if "cpu" not in kernel.devices], ids=lambda one: one.name
)
def test_kernels_for_cards_are_refused_on_the_cpu(kernel: Kernel) -> None:
    with pytest.raises(ConfigError, match=f"attention={kernel.name} runs on CUDA") as caught:
        installed().attention.build_default(kernel.name).resolve("cpu")
    assert caught.value.field == "attention"


@pytest.mark.parametrize(
    ("name", "site", "why"),
    [
        ("flash3", card(8, 9), "does not run on compute capability 8.9; it needs 9.0"),
        ("flash3-hub", card(10, 0), "it needs 9.0"),
        ("flash4-hub", card(12, 0), "it needs 9.0 or 10.x"),
        ("flash", card(7, 5), "it needs 8.0 or later"),
        ("sage-fp8-sm90", card(8, 9), "it needs 9.0"),
        ("sage3-hub", card(9, 0), "it needs 10.0 or 12.x"),
        ("flash", card(8, 9, "float32"), "computes in bfloat16 or float16, not in float32"),
        ("cudnn", card(9, 0, "float32"), "not in float32"),
        ("sdpa-flash", card(9, 0, "float32"), "computes in bfloat16 or float16, not in float32"),
        ("aiter-hub", card(9, 0), "built for AMD ROCm"),
        ("flash", AttentionSite("cuda", "bfloat16", (9, 4), rocm=True), "built for NVIDIA CUDA"),
    ],
)
def test_a_card_or_dtype_that_does_not_suit_is_refused_before_the_package(
    name: str, site: AttentionSite, why: str
) -> None:
    problem = refusal(find_kernel(name), site, lambda *_: None)
    assert problem is not None
    assert why in problem.what
    assert (problem.field, "attention=sdpa" in problem.hint) == ("attention", True)


def test_heads_that_do_not_suit_are_refused() -> None:
    # The 14B model's heads suit every kernel; the embedded model's do not suit all.
    assert not [kernel.name for kernel in KERNELS if head_refusal(kernel, 128)]
    assert {kernel.name for kernel in KERNELS if head_refusal(kernel, 40)} == {"sage3-hub"}
    assert "heads of 64 or 128, the model's are 40" in str(head_refusal(find_kernel("sage3-hub"), 40))
    assert "multiples of 8 up to 256, the model's are 264" in str(head_refusal(find_kernel("flash"), 264))


def test_generations_cover_all_cards_without_a_gap() -> None:
    assert GENERATIONS[0].least == (0, 0)
    for before, after in itertools.pairwise(GENERATIONS):
        assert before.below == after.least
    for generation in GENERATIONS:
        assert generation.why
        assert generation.source
        assert generation.order[-1] == "sdpa"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("hub", [False, True])
def test_auto_picks_an_exact_kernel_that_runs_on_the_card(capability: tuple[int, int], hub: bool) -> None:
    site = card(*capability)
    everything = pick(site, hub=hub, found=lambda *_: "99")
    nothing = pick(site, hub=hub, found=lambda *_: None)
    for name, why in (everything, nothing):
        kernel = find_kernel(name)
        assert refusal(kernel, site, lambda *_: "99") is None
        assert kernel.bits == 16
        assert hub or not kernel.hub
        assert f"({capability[0]}.{capability[1]})" in why
    assert nothing[0] == "sdpa"


@pytest.mark.parametrize(
    ("capability", "packages", "hub", "name"),
    [
        ((7, 5), ("flash-attn", "kernels"), True, "sdpa"),
        ((8, 0), ("flash-attn", "sageattention"), False, "flash"),
        ((8, 6), ("flash-attn",), False, "flash"),
        ((8, 9), ("flash-attn", "sageattention", "kernels"), True, "flash"),
        ((8, 9), ("sageattention", "xformers"), False, "sdpa"),
        # FlashAttention 2 is slower on Hopper than what torch picks.
        ((9, 0), ("flash-attn",), True, "sdpa"),
        ((9, 0), ("flash-attn", "flash_attn_3"), False, "flash3"),
        ((9, 0), ("flash-attn", "kernels"), False, "sdpa"),
        ((9, 0), ("flash-attn", "kernels"), True, "flash3-hub"),
        ((10, 0), ("flash_attn_3", "kernels"), True, "flash4-hub"),
        ((10, 3), ("flash-attn",), False, "sdpa"),
        ((12, 0), ("flash-attn", "flash_attn_3", "kernels"), True, "sdpa"),
    ],
)
def test_auto_depends_on_the_generation_and_on_what_is_installed(
    capability: tuple[int, int], packages: tuple[str, ...], hub: bool, name: str
) -> None:
    found, why = pick(card(*capability), hub=hub, found=lambda package, _: "99" if package in packages else None)
    assert found == name
    for passed in GENERATIONS[[one.least <= capability < one.below for one in GENERATIONS].index(True)].order:
        # Each better kernel that is not used is in the reason.
        if passed == name:
            break
        assert f"{passed} needs" in why


def test_auto_leaves_float32_and_unknown_cards_to_torch() -> None:
    assert pick(card(8, 9, "float32"), found=lambda *_: "99")[0] == "sdpa"
    assert pick(AttentionSite("cuda", "bfloat16"), found=lambda *_: "99")[0] == "sdpa"
    assert Auto(AutoConfig()).choose(CPU).kernel == "native"


def test_auto_passes_over_a_package_that_is_compiled_for_another_cuda(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(package, find_kernel("flash"), "2.8.3")
    assert Auto(AutoConfig()).choose(card(8, 9)).kernel == "flash"
    monkeypatch.setattr("engine.machine.libraries.misfit", lambda *_: "flash-attn 2.8.3 is compiled for CUDA 12")
    choice = Auto(AutoConfig()).choose(card(8, 9))
    assert choice.kernel == "native"
    assert choice.reason.endswith("attention=flash: flash-attn 2.8.3 is compiled for CUDA 12")

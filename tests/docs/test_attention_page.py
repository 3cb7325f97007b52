"""docs/attention.md: its tables are written from the code.

MULTITALK_WRITE_DOCS=1 pytest tests/docs/test_attention_page.py writes them anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.machine.kernels import KERNELS, LEFT_OUT, Kernel
from plugins.attention.auto import GENERATIONS

PAGE = Path(__file__).parents[2] / "docs" / "attention.md"


def generations() -> Iterator[str]:
    yield "| cards | compute capability | order | why | source |"
    yield "|---|---|---|---|---|"
    for one in GENERATIONS:
        least, below = (f"{major}.{minor}" for major, minor in (one.least, one.below))
        span = f"{least} or later" if one is GENERATIONS[-1] else f"{least} to below {below}"
        yield f"| {one.name} | {span} | {', '.join(f'`{name}`' for name in one.order)} | {one.why} | {one.source} |"


def kernels() -> Iterator[str]:
    yield "| `attention=` | in diffusers | needs | compute capability | dtypes | heads | bits | from |"
    yield "|---|---|---|---|---|---|---|---|"
    for kernel in KERNELS:
        needs = "hub" if kernel.hub else f"`{kernel.package}`" if kernel.package else "torch"
        least = f"{needs} {kernel.least}".rstrip()
        source = kernel.hub or {"": "PyTorch", "flash_attn_3": "source"}.get(kernel.package, "package")
        bits = "exact" if kernel.bits == 16 else str(kernel.bits)
        dtypes = ", ".join(kernel.dtypes) if len(kernel.dtypes) < 3 else "all"
        dtypes += f"; CUDA: {', '.join(kernel.cuda_dtypes)}" if kernel.cuda_dtypes else ""
        cells = (f"`{kernel.name}`", f"`{kernel.dispatch}`", least, cards(kernel), dtypes, heads(kernel), bits, source)
        yield f"| {' | '.join(cells)} |"


def cards(kernel: Kernel) -> str:
    if kernel.rocm:
        return "AMD ROCm"
    where = ", and CPU" if "cpu" in kernel.devices else ""
    if kernel.majors:
        first = f"from {kernel.capability[0]}.{kernel.capability[1]}: "
        return first + ", ".join(f"{major}.x" for major in kernel.majors) + where
    return (f"{kernel.capability[0]}.{kernel.capability[1]} or later" if kernel.capability > (0, 0) else "all") + where


def heads(kernel: Kernel) -> str:
    if kernel.heads:
        return ", ".join(map(str, kernel.heads))
    most = "" if kernel.largest > 1000 else f"up to {kernel.largest}"
    return ", ".join(filter(None, (most, f"multiples of {kernel.multiple}" if kernel.multiple > 1 else ""))) or "all"


@pytest.mark.parametrize("name", ["generations", "kernels"])
def test_the_page_shows_the_table(name: str) -> None:
    table = "\n".join({"generations": generations, "kernels": kernels}[name]())
    before, mark, rest = PAGE.read_text("utf-8").partition(f"<!-- {name} -->\n")
    shown, end, after = rest.partition(f"<!-- /{name} -->")
    assert mark
    assert end
    if os.environ.get("MULTITALK_WRITE_DOCS"):
        PAGE.write_text(f"{before}{mark}{table}\n{end}{after}", "utf-8")
    else:
        assert shown == f"{table}\n", "MULTITALK_WRITE_DOCS=1 pytest tests/docs/test_attention_page.py writes it anew"


def test_the_page_names_what_is_left_out() -> None:
    text = PAGE.read_text("utf-8")
    assert all(f"`{name}`" in text for name in LEFT_OUT)

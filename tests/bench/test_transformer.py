"""The bench of the network: its bound is exactly the forward's products and attention calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from engine.bench import transformer as bench
from engine.errors import RequestError

SMALL: dict[str, Any] = {"dim": 24, "ffn_dim": 32, "heads": 2, "layers": 2, "grid": (2, 4, 4), "threads": 1, "runs": 2}


class Products(TorchFunctionMode):
    """Notes the shapes and dtypes of every product that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[object, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Linear layers differ in leading dimensions of one (a time is (1, D), tokens are (1, L, D)).
        if func is torch.nn.functional.linear:
            self.seen.append(("linear", args[0].numel(), tuple(args[1].shape), args[0].dtype))
        elif func is torch.nn.functional.scaled_dot_product_attention:
            given = list(args) + [kwargs[name] for name in ("query", "key", "value") if name in (kwargs or {})]
            self.seen.append(("attention", *(tuple(tensor.shape) for tensor in given[:3]), given[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("speakers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bound_is_every_product_of_a_forward_and_no_more(speakers: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    model = bench.build_model(24, 32, 2, 2, dtype, random)
    with torch.no_grad():
        latents, timestep, conditions = bench.build_inputs(model, (2, 4, 4), speakers, random)
        with Products() as forward:
            model(latents, timestep, conditions=conditions)
        calls = list(bench.bare_calls(model, latents, conditions))
        with Products() as bound:
            for call in calls:
                call()

    assert sorted(map(str, forward.seen)) == sorted(map(str, bound.seen))
    assert len(calls) == len(bound.seen) + 1  # the patch convolution


def test_report_is_json_with_ratio_and_memory() -> None:
    report = json.loads(json.dumps(bench.run(**SMALL)))

    assert report["shape"]["tokens"] == 32
    assert report["ratio"] > 0
    assert report["peak_memory_bytes"] > 1 << 20
    assert report["conditions"].startswith("embedded once")


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()

    bench.run(**SMALL | {"threads": before + 1})

    assert torch.get_num_threads() == before


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"heads": 7}, {"runs": 0}])
def test_sizes_that_do_not_fit_are_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        bench.run(**SMALL | change)


def test_command_line_prints_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--dim 24 --ffn-dim 32 --heads 2 --layers 1 --grid 1 2 2 --runs 1 --threads 1 --dtype bfloat16"

    status = bench.main(options.split())

    assert status == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"

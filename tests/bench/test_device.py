"""The bench of a device runs from end to end without a GPU, and keeps what it found whatever a part does to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.bench.device import run as device_run
from engine.bench.device.__main__ import main as print_corrections
from engine.bench.device.kernels import Kernel, kind, longest_kernel, profiled, summary, synchronisations
from engine.bench.device.machine import read_driver
from engine.bench.device.measure import DeviceBench, psnr
from engine.bench.device.parts import PARTS, BenchPart
from engine.bench.device.shapes import FULL, REDUCED
from engine.bench.device.shares import corrections, derive, keep
from engine.bench.device.supervisor import measure
from engine.cli.main import main
from engine.errors import ConfigError
from engine.planning.gpus import cards
from engine.planning.operations import forward_work
from engine.planning.parameters import make_sizes, published_sizes
from engine.planning.rates import assumed, file_of, rates_of
from engine.planning.seconds import forward_seconds

TESTS = Path(__file__).parents[1] / "support"
CPU = {"device": "cpu", "runs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return device_run(device="cpu", runs=1, output=str(folder / "device.json"))


@pytest.fixture
def broken_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[BenchPart]]:
    """Name parts of tests/support/device_parts.py."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))

    def name(*names: str, budget: float = 30) -> list[BenchPart]:
        return [BenchPart(name, f"device_parts:{name}", budget) for name in names]

    return name


def rows(report: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = report["parts"][part]["rows"]
    return result


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# --- the whole run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_in_small_sizes_and_the_report_says_so(report: dict[str, Any]) -> None:
    assert (report["reduced"], report["device"], report["state"]) == (True, "cpu", "complete")
    assert {name: part["state"] for name, part in report["parts"].items()} == {part.name: "done" for part in PARTS}
    assert report["failed"] == []


@pytest.mark.slow
def test_rows_are_measured_or_say_what_they_need(report: dict[str, Any]) -> None:
    skipped = {
        figures["skipped"] for part in PARTS for figures in rows(report, part.name).values() if "skipped" in figures
    }
    # What a machine without a GPU lacks, and what is not installed here.
    assert all("CUDA" in why or "No module" in why or "nvidia-smi" in why for why in skipped)
    for part in ("attention", "other_attention", "offload", "forward", "products", "bandwidth", "codec", "encoders"):
        measured = [figures for figures in rows(report, part).values() if "skipped" not in figures]
        assert measured, part
        assert all(figures["seconds"] > 0 for figures in measured), part


@pytest.mark.slow
def test_the_file_is_the_report(report: dict[str, Any], folder: Path) -> None:
    kept = json.loads((folder / "device.json").read_text("utf-8"))
    assert kept == json.loads(json.dumps(report))
    assert [path.name for path in folder.iterdir()] == ["device.json"]


@pytest.mark.slow
def test_forced_kernels_agree_with_plain_arithmetic(report: dict[str, Any]) -> None:
    result = rows(report, "attention")
    assert result["96, native"]["largest_difference"] < 0.01
    assert result["96, flash"]["largest_difference"] < 0.01
    assert result["96, cudnn"] == {"skipped": "needs CUDA"}
    assert rows(report, "other_attention")["map of speakers, 480p, native"]["largest_difference"] < 1e-5


@pytest.mark.slow
def test_a_forward_says_what_ran_and_what_a_plan_counts(report: dict[str, Any]) -> None:
    result = rows(report, "forward")
    assert list(result) == ["480p, 1 speaker", "480p, 2 speakers", "720p, 2 speakers"]
    figures = result["480p, 2 speakers"]
    assert {"products", "attention", "element-wise", "copies", "gaps"} <= set(figures["kernels"]["groups"])
    assert figures["work"]["products"] > figures["work"]["attention"] > 0
    assert figures["layers"] == 3
    assert result["720p, 2 speakers"]["layers"] == 2


@pytest.mark.slow
def test_offloaded_blocks_give_the_same_and_their_bytes_are_counted(report: dict[str, Any]) -> None:
    pytest.importorskip("torchao")
    result = rows(report, "offload")
    assert result["bfloat16"]["largest_difference"] == result["int8"]["largest_difference"] == 0
    assert 0.4 < result["int8"]["moved_bytes"] / result["bfloat16"]["moved_bytes"] < 0.7


@pytest.mark.slow
def test_narrow_products_have_an_error(report: dict[str, Any]) -> None:
    pytest.importorskip("torchao")
    result = rows(report, "products")
    error = {name: result[f"128 to 128, {name}"]["relative_error"] for name in ("bfloat16", "int8 rows, _int_mm")}
    assert 0 < error["bfloat16"] < error["int8 rows, _int_mm"] < 0.03
    assert error["int8 rows, _int_mm"] < result["128 to 128, fp8 rows, _scaled_mm"]["relative_error"] < 0.06


@pytest.mark.slow
def test_encoders_hold_what_a_plan_counts(report: dict[str, Any]) -> None:
    counts = make_sizes(REDUCED.configs).counts
    result = rows(report, "encoders")
    assert result["text"]["weight_bytes"] == counts["text_encoder"].bytes(2)
    assert result["image"]["weight_bytes"] == counts["image_encoder"].bytes(2)
    assert result["text"]["finite"]
    assert result["image"]["finite"]


@pytest.mark.slow
def test_the_autoencoder_in_bfloat16_is_near_float32(report: dict[str, Any]) -> None:
    result = rows(report, "codec")
    # 8 bits of mantissa through some thirty layers.
    assert 20 < result["bfloat16"]["psnr_to_strict_float32"] < 60
    assert result["float32, strict"]["psnr_to_strict_float32"] is None


@pytest.mark.slow
def test_a_second_size_makes_no_more_graphs(report: dict[str, Any]) -> None:
    result = rows(report, "compile")
    assert result["first call"]["graphs"] == result["second size"]["graphs"] == 1
    # Graphs rotate in real arithmetic, eager code in complex.
    assert result["compiled"]["largest_difference"] < 0.05
    assert result["second size"]["largest_difference"] < 0.05


@pytest.mark.slow
def test_the_engine_makes_a_video_and_the_doctor_looks(report: dict[str, Any]) -> None:
    assert rows(report, "generate")["cpu"]["frames"] == 9
    assert rows(report, "doctor")["weights"]["state"] == "ok"
    assert [*rows(report, "fragments")["expandable_segments:False"]["stages"]] == [
        "text",
        "encode",
        "denoise",
        "decode",
    ]


@pytest.mark.slow
def test_small_sizes_give_no_shares(report: dict[str, Any]) -> None:
    assert report["shares"] == {}
    assert any("they say nothing about a card" in line for line in corrections([("file", report)]))


# --- parts that go wrong ----------------------------------------------------------------------------------------------


def test_failures_do_not_stop_the_others(broken_parts: Callable[..., list[BenchPart]], tmp_path: Path) -> None:
    parts = broken_parts("raises", "rows_fail", "infinite", "impossible", "dies", "environment", "fine")
    os.environ["S3_BUCKET"] = "bucket"
    try:
        result = measure(parts, CPU, seconds=120, output=tmp_path / "found.json")
    finally:
        del os.environ["S3_BUCKET"]

    states = {name: part["state"] for name, part in result["parts"].items()}
    assert states == {
        "raises": "failed",
        "rows_fail": "done",
        "infinite": "done",
        "impossible": "skipped",
        "dies": "failed",
        "environment": "done",
        "fine": "done",
    }
    assert result["parts"]["raises"]["why"] == "RuntimeError: a kernel refused"
    assert result["parts"]["raises"]["where"][-1].endswith(" raises")
    assert rows(result, "raises") == {"before": {"value": 1}}
    assert rows(result, "rows_fail")["bad"]["failed"] == "MemoryError: no room"
    assert rows(result, "rows_fail")["good"] == {"value": 2}
    assert "failed" in rows(result, "infinite")["rate"]
    assert rows(result, "infinite")["other"] == {"value": 3}
    assert result["parts"]["impossible"]["why"] == "needs a card of another planet"
    assert "SIGKILL" in result["parts"]["dies"]["why"]
    assert rows(result, "dies") == {"before": {"value": 5}}
    assert result["failed"] == ["raises", "dies", "rows_fail: bad", "infinite: rate"]
    # A bucket in the environment takes nobody to the network.
    assert rows(result, "environment")["network"] == {"S3_BUCKET": None, "HF_HUB_OFFLINE": "1"}
    assert json.loads((tmp_path / "found.json").read_text("utf-8")) == json.loads(json.dumps(result))


def test_a_part_that_hangs_is_ended_and_its_rows_stay(
    broken_parts: Callable[..., list[BenchPart]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.bench.device.supervisor.GRACE", 1.0)
    result = measure([*broken_parts("hangs", budget=1), *broken_parts("fine")], CPU, seconds=120, output=None)
    assert result["parts"]["hangs"]["state"] == "failed"
    assert result["parts"]["hangs"]["why"] == "ended after 2 s: it did not return"
    assert gone(rows(result, "hangs")["before"]["process"])
    assert result["parts"]["fine"]["state"] == "done"


def test_a_part_stops_in_time_and_one_that_does_not_fit_is_skipped(
    broken_parts: Callable[..., list[BenchPart]],
) -> None:
    parts = [*broken_parts("fine", budget=500), *broken_parts("slow", budget=0.5)]
    result = measure(parts, CPU, seconds=60, output=None)["parts"]
    assert result["fine"]["state"] == "skipped"
    assert result["fine"]["why"].startswith("its 500 s do not fit into the ")
    assert result["slow"]["state"] == "done"
    assert "further rows are missing" in result["slow"]["why"]
    assert 0 < len(result["slow"]["rows"]) < 50


def start(parts: Sequence[BenchPart], output: Path) -> subprocess.Popen[str]:
    """Run a bench in a process of its own."""
    names = [(part.name, part.place, part.budget) for part in parts]
    code = (
        "import json, sys; from pathlib import Path; from engine.bench.device.parts import BenchPart; "
        "from engine.bench.device.supervisor import measure; "
        f"parts = [BenchPart(*part) for part in {names!r}]; "
        f"print(json.dumps(measure(parts, {CPU!r}, seconds=100, output=Path(sys.argv[1]))))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True)


def wait_for_row(output: Path, part: str) -> dict[str, Any]:
    """Wait until the file has a row of `part`."""
    for _ in range(600):
        if output.exists():
            result: dict[str, Any] = json.loads(output.read_text("utf-8"))
            if rows(result, part):
                return result
        time.sleep(0.1)
    raise AssertionError(f"{part} has no row after a minute")


def test_killed_half_way_the_file_holds_what_was_done(
    broken_parts: Callable[..., list[BenchPart]], tmp_path: Path
) -> None:
    output = tmp_path / "found.json"
    bench = start(broken_parts("fine", "hangs", "slow"), output)
    result = wait_for_row(output, "hangs")
    bench.kill()
    bench.communicate()
    result = json.loads(output.read_text("utf-8"))
    assert [part["state"] for part in result["parts"].values()] == ["done", "running", "not reached"]
    assert rows(result, "fine")["sum"]["seconds"] > 0
    worker = rows(result, "hangs")["before"]["process"]
    for _ in range(50):
        if gone(worker):
            break
        time.sleep(0.1)
    assert gone(worker)


def test_asked_to_stop_it_prints_what_was_done(broken_parts: Callable[..., list[BenchPart]], tmp_path: Path) -> None:
    bench = start(broken_parts("fine", "hangs", "slow"), tmp_path / "found.json")
    wait_for_row(tmp_path / "found.json", "hangs")
    bench.send_signal(signal.SIGTERM)
    printed, _ = bench.communicate(timeout=30)
    result = json.loads(printed)
    assert result["state"] == "stopped by SIGTERM"
    assert [part["state"] for part in result["parts"].values()] == ["done", "failed", "skipped"]


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        measure([], {"device": "tpu", "runs": 1}, seconds=60, output=None)


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no part named 'speed'.*offload"):
        device_run(parts="machine, speed")


def test_the_command_prints_one_json_object(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "device", "--device", "cpu", "--reduced", "--parts", "machine,link", "--runs", "1"]) == 0
    printed = capfd.readouterr()
    assert list(json.loads(printed.out)["parts"]) == ["machine", "link"]
    assert "bench device: link: host to host: seconds" in printed.err


# --- sizes and kernels ------------------------------------------------------------------------------------------------


def test_full_sizes_are_those_of_the_published_model() -> None:
    assert FULL.configs == published_sizes("wan-14b").configs
    assert (FULL.heads, FULL.head_dim, FULL.ffn_dim, FULL.configs["transformer"]["num_layers"]) == (40, 128, 13824, 40)


def test_every_part_may_take_its_time_within_the_limit_of_a_run() -> None:
    # Not all of them together: what comes last is skipped on a card that needs all of each.
    assert max(part.budget for part in PARTS) <= 120
    assert sum(part.budget for part in PARTS if part.name not in ("compile", "fragments", "doctor")) <= 600


def test_the_page_lists_the_parts_in_order_with_their_time() -> None:
    page = (TESTS.parents[1] / "docs" / "doctor.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE)
    assert listed == [(part.name, f"{part.budget:.0f}") for part in PARTS]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn", "products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_tn_align8>", "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "products"),
        ("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128, 128, 64, 4>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", "attention"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc", "convolutions"),
        ("Memcpy HtoD (Pageable -> Device)", "copies"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(...)>", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "element-wise"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", "element-wise"),
        ("triton_red_fused__to_copy_addmm_native_layer_norm_3", "element-wise"),
        ("aten::addmm", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::copy_", "copies"),
    ],
)
def test_kernels_are_told_apart_by_name(name: str, wanted: str) -> None:
    assert kind(name) == wanted


def test_gaps_are_the_time_in_which_no_kernel_ran() -> None:
    result = summary(
        [
            Kernel("nvjet_a", 0, 1_000_000),
            # On another stream, half of it beside the first.
            Kernel("Memcpy HtoD (Pinned -> Device)", 500_000, 1_500_000),
            Kernel("nvjet_a", 2_000_000, 3_000_000),
        ]
    )
    assert result["groups"] == {"products": 2.0, "copies": 1.0, "gaps": 0.5}
    assert (result["seconds"], result["launches"]) == (3.0, 3)
    assert result["longest"][0] == {"name": "nvjet_a", "seconds": 2.0, "count": 2}


def test_a_profiler_that_sees_nothing_leaves_an_empty_table() -> None:
    assert summary([]) == {"seconds": 0.0, "launches": 0, "groups": {"gaps": 0.0}, "longest": []}


def test_operators_of_a_cpu_are_profiled() -> None:
    bench, x = DeviceBench("cpu", 1), torch.randn(64, 64)
    result = profiled(bench, lambda: x @ x)
    assert result["groups"]["products"] > 0
    assert longest_kernel(bench, lambda: x @ x) is None
    assert synchronisations(bench, lambda: x @ x) is None


def test_psnr_is_over_the_range_of_the_wanted_values() -> None:
    expected = torch.tensor([0.0, 2.0])
    assert psnr(expected, expected) is None
    # A mean square error of 0.02 over a range of 2.
    assert psnr(expected + torch.tensor([0.2, 0.0]), expected) == pytest.approx(23.01, abs=0.01)


def test_what_the_driver_says_is_read() -> None:
    line = "NVIDIA H200, 580.95.05, P0, 345, 1980, 3201, 76.51, 700.00, 31, 5, 5, 16, 143771\n"
    result = read_driver(line)
    assert (result["name"], result["clocks.max.sm"], result["power.limit"]) == ("NVIDIA H200", 1980, 700)
    assert (result["driver_version"], result["memory.total"]) == ("580.95.05", 143771)
    assert read_driver(line.replace("76.51", "[N/A]"))["power.draw"] == "[N/A]"


# --- shares -----------------------------------------------------------------------------------------------------------

CARD = next(card for card in cards() if card.name == "H100 80 GB")
REACHED = {
    "products": 0.7,
    "attention": 0.75,
    "eight_bit": 0.5,
    "bandwidth": 0.8,
    "convolutions": 0.25,
    "decoding": 0.2,
    "link": 0.8,
}


def made_report(name: str = CARD.driver) -> dict[str, Any]:
    """Return a report of a card that reaches REACHED of its data sheet."""
    tera, giga = 1e12, 1e9
    work = {"products": 863 * tera, "attention": 823 * tera, "moved": 1770 * giga}
    groups = {
        "products": work["products"] / (CARD.bf16_tflops * tera * REACHED["products"]),
        "attention": work["attention"] / (CARD.bf16_tflops * tera * REACHED["attention"]),
        "element-wise": work["moved"] / (CARD.bandwidth_gb * giga * REACHED["bandwidth"]) - 0.1,
        "copies": 0.1,
        "gaps": 0.2,
    }
    forward = {
        "work": work,
        "kernels": {"groups": groups},
        "seconds": 4.0,
        "predicted_seconds": 4.2,
        "peak_bytes": 4_000_000_000,
        "predicted_bytes": 4_200_000_000,
    }
    other = {"work": work, "kernels": {"groups": groups | {"products": 99.0}}}
    tables: dict[str, dict[str, Any]] = {
        "machine": {"card": {"name": name}},
        "forward": {"480p, 1 speaker": other, "480p, 2 speakers": forward, "720p, 2 speakers": other},
        "products": {"a to b, int8 rows, _int_mm": {"tflops": CARD.int8_tops * REACHED["eight_bit"]}},
        "codec": {
            "float32, TF32": {"tflops": CARD.tf32_tflops * REACHED["convolutions"]},
            "bfloat16": {"tflops": CARD.bf16_tflops * REACHED["decoding"]},
        },
        "offload": {"bfloat16": {"link_gb_per_second": CARD.link_gb * REACHED["link"]}},
        "attention": {"30576, native": {"tflops": 1.0}, "30576, cudnn": {"failed": "RuntimeError: no"}},
    }
    parts = {part: {"state": "done", "rows": table} for part, table in tables.items()}
    return {"bench": "device", "state": "complete", "reduced": False, "parts": parts}


def test_shares_are_what_the_card_reached_of_its_data_sheet() -> None:
    result = derive(made_report())
    assert {name: share["measured"] for name, share in result.items()} == pytest.approx(REACHED)
    assert result["products"]["assumed"] == assumed(CARD).products
    assert result["attention"]["assumed"] == CARD.attention
    assert result["products"]["from"] == "forward: 480p, 2 speakers"


def test_without_a_forward_single_kernels_say_the_shares() -> None:
    report = made_report()
    del report["parts"]["forward"], report["parts"]["offload"]
    report["parts"]["attention"]["rows"]["75680, native"] = {"tflops": 3.0}
    report["parts"]["products"] = {"state": "done", "rows": {"a to b, bfloat16": {"tflops": 494.5}}}
    report["parts"]["link"] = {"state": "done", "rows": {"host to device, pinned": {"gb_per_second": 31.5}}}
    result = derive(report)
    assert result["attention"]["rate"] == 2.0
    assert (result["products"]["measured"], result["link"]["measured"]) == (0.5, 0.5)
    assert "bandwidth" not in result


def test_corrections_name_the_constant_and_its_new_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "device-h100.json"
    path.write_text(json.dumps(made_report()))
    assert print_corrections([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "products = 0.6 -> 0.70 (692.3 TFLOP/s, forward: 480p, 2 speakers)" in printed
    assert "attention = 0.6 -> 0.75" in printed
    assert "bandwidth = 0.8 holds" in printed
    assert "forward: 480p, 2 speakers: 4 s, planned 4.2 s (+5%)" in printed
    assert "forward: 480p, 2 speakers: 4 GB, planned 4.2 GB (+5%)" in printed


def test_kept_shares_become_those_of_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = published_sizes("wan-14b").configs["transformer"]
    work = forward_work(config, (21, 56, 112), value=2, speakers=2)
    before = forward_seconds(CARD, work)
    path = keep(made_report() | {"date": "2026-11-30T12:00:00+00:00"}, tmp_path)
    assert path.name == file_of(CARD.driver) == "nvidia-h100-80gb-hbm3.json"
    monkeypatch.setattr("engine.planning.rates.folder", lambda: tmp_path)

    rates = rates_of(CARD)
    assert {name: getattr(rates, name) for name in rates.measured} == pytest.approx(REACHED)
    assert rates.source.startswith("2026-11-30T12:00:00")
    assert forward_seconds(CARD, work) < 0.9 * before
    other = next(card for card in cards() if card.name == "A100 80 GB")
    assert rates_of(other) == assumed(other)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"reduced": True}, "reduced sizes"),
        ({"parts": {"machine": {"rows": {"card": {"name": "NVIDIA B300"}}}}}, "'NVIDIA B300'"),
        ({"parts": {"machine": {"rows": {"card": {"name": CARD.driver}}}}}, "no part was measured"),
    ],
)
def test_a_report_without_shares_of_a_known_card_is_not_kept(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        keep(made_report() | change, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_cpu_says_about_a_card_is_refused_before_it_is_measured() -> None:
    with pytest.raises(ConfigError, match="reduced sizes"):
        device_run(device="cpu", keep=True)


def test_corrections_need_no_torch() -> None:
    code = "import sys, engine.bench.device.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_card_without_a_data_sheet_has_rates_alone() -> None:
    lines = corrections([("file", made_report("NVIDIA B300"))])
    assert any('no card in engine/planning/gpus.json has "driver": "NVIDIA B300"' in line for line in lines)
    assert any("products: reached 692.3 TFLOP/s" in line for line in lines)


def test_a_file_that_is_no_report_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text("{")
    assert print_corrections([str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert corrections([("file", {"bench": "load"})]) == ["file: not a report of multitalk bench device"]

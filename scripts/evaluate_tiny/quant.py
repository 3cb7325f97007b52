"""Compare quantised weights with plain ones on a CPU: errors, lips and bytes of each scheme, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine import EngineService
from engine.assembly.escape import override as quoted
from engine.assembly.location import locate_weights
from engine.data.cancel import CancelToken
from engine.errors import ConfigError, RequestError
from engine.evaluation.metrics import Floats, codec_errors, mean, minus
from engine.loading.fill import find_stored
from engine.loading.key_map import is_audio, to_reference
from engine.network.codec import LatentCodec
from engine.plugin.manager import installed
from plugins.families.multitalk.transformer import TransformerConditions
from scripts.evaluate_tiny import kinds
from scripts.evaluate_tiny.quantised_folder import write_gguf, write_quanto
from scripts.evaluate_tiny.studio import Studio, opened
from scripts.evaluate_tiny.talk import SIZES, machine, read_sizes
from scripts.page_tables import replaced

State = Mapping[str, Tensor]
Writer = Callable[[Path, State, Sequence[str]], None]


@dataclass(frozen=True)
class Scheme:
    """A quantisation scheme: the engine's `quant`, and how to write the file that it reads, if it reads one."""

    quant: str
    write: Writer | None = None


def _quanto(dtype: torch.dtype) -> Writer:
    return lambda folder, state, modules: write_quanto(folder / "quant_models", state, modules, dtype)


def _gguf(kind: str) -> Writer:
    def write(folder: Path, state: State, _modules: Sequence[str]) -> None:
        from safetensors.torch import save_file

        save_file({name: tensor for name, tensor in state.items() if is_audio(name)}, folder / "multitalk.safetensors")
        wan = {name: tensor for name, tensor in state.items() if not is_audio(name)}
        write_gguf(folder / f"wan-{kind}.gguf", wan, kind)

    return write


#: Schemes by name; any other name is passed to the engine as its `quant`.
SCHEMES = {
    "int8": Scheme("int8"),
    "int8-quanto": Scheme("int8-quanto", _quanto(torch.int8)),
    "fp8-quanto": Scheme("fp8-quanto", _quanto(torch.float8_e4m3fn)),
    "int8-dynamic": Scheme("int8-dynamic"),
    "fp8-dynamic": Scheme("fp8-dynamic"),
    "int8-quanto-dynamic": Scheme("int8-quanto-dynamic", _quanto(torch.int8)),
    "fp8-quanto-dynamic": Scheme("fp8-quanto-dynamic", _quanto(torch.float8_e4m3fn)),
    "gguf-q8_0": Scheme("gguf", _gguf("Q8_0")),
    "gguf-q4_0": Scheme("gguf", _gguf("Q4_0")),
}
#: The page, and the reports from which `python -m scripts.evaluate_tiny table` makes its tables.
PAGE = Path("docs/weights.md")
MEASURED = {"quant": Path("docs/measured/quant.json"), "quant-dynamic": Path("docs/measured/quant-dynamic.json")}


def run(
    *,
    clips: int = 4,
    schemes: str = ",".join(SCHEMES),
    seed: int = 5_000_000,
    override: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Generate videos of the same held-out people with plain and with quantised weights, and compare.

    `clips` of one person and as many of two, drawn as by `evaluate_tiny talk` from `seed` on; `schemes` are names of
    SCHEMES. A scheme's file is written from the plain weights. If the engine refuses a scheme, its reason is reported.
    `override` goes to every engine (Hydra's grammar). Needs a checkout and eSpeak NG, as `evaluate_tiny talk` does.
    Raises EngineError.
    """
    names = [name.strip() for name in schemes.split(",") if name.strip()]
    if clips < 1 or not names:
        hint = f"1 clip or more, of {', '.join(SCHEMES)}"
        raise RequestError(f"{clips} clips, {len(names)} schemes", field="evaluate_tiny quant", hint=hint)
    # A LoRA that is attached would be counted with the weights.
    overrides = ("model=tiny", "device=cpu", "model.turbo.loras=[]", *override)
    with opened(
        overrides, clips=clips, long=1, seed=seed, sizes=read_sizes(SIZES), name="evaluate_tiny quant"
    ) as studio:
        weights = locate_weights(studio.service.config, installed())
        plain, recorded = _film(studio, "none")
        report: dict[str, Any] = {
            "bench": "quant",
            "settings": {"seed": seed, "clips": clips, "overrides": list(overrides), **machine(weights)},
            "plain": plain,
            "schemes": {},
            "refused": {},
        }
        studio.service.close()
        for scheme in names:
            try:
                quantised = EngineService((*studio.overrides, *prepare_scheme(scheme, weights, studio.folder)))
                quantised.load()
            except ConfigError as error:
                report["refused"][scheme] = str(error)
                continue
            figures, others = _film(studio.again(quantised), scheme)
            quantised.close()
            report["schemes"][scheme] = _against(plain, figures) | _errors(studio, recorded, others)
    return report


def prepare_scheme(scheme: str, weights: Path, folder: Path) -> tuple[str, ...]:
    """Write a folder of weights for `scheme` and return the overrides to read it. Raises MissingExtra."""
    selected = SCHEMES.get(scheme, Scheme(scheme))
    quant = quoted("quant", selected.quant)
    if selected.write is None:
        return (quant,)
    target = folder / scheme
    target.mkdir()
    for part in weights.iterdir():
        if part.name != "transformer":
            (target / part.name).symlink_to(part.absolute())
    (target / "config.json").write_bytes((weights / "transformer" / "config.json").read_bytes())
    state, modules = _published(weights / "transformer")
    selected.write(target, state, modules)
    return (quant, "source=volume", quoted("source.path", str(folder)), quoted("model.folder", scheme))


def _published(folder: Path) -> tuple[State, list[str]]:
    """Return a transformer's tensors as float32 by the names of published files, and its linear modules."""
    from safetensors.torch import load_file

    files = {stored.file for stored in find_stored(folder).values()}
    state = {to_reference(name): tensor.float() for file in sorted(files) for name, tensor in load_file(file).items()}
    modules = [name.removesuffix(".weight") for name, tensor in state.items() if tensor.ndim == 2]
    return state, modules


# --- recording --------------------------------------------------------------------------------------------------------


@dataclass
class Recorded:
    """Results for one clip: outputs of the first step's forwards, the final latents, the frames."""

    outputs: list[Tensor]
    latents: Tensor
    #: float32 (F, H, W, 3), 0 to 255, before the colours are corrected and anything is encoded.
    frames: Floats


@dataclass
class _Watch:
    """A codec that works like `codec`, and records the results of `model`; each clip is one window."""

    codec: LatentCodec
    steps: int
    recorded: list[Recorded] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spatial, self.temporal, self.channels = self.codec.spatial, self.codec.temporal, self.codec.channels

    def encode(self, pixels: Tensor, *, cancel: CancelToken | None = None) -> Tensor:
        return self.codec.encode(pixels, cancel=cancel)

    def decode(self, latents: Tensor, *, cancel: CancelToken | None = None) -> Tensor:
        pixels = self.codec.decode(latents, cancel=cancel)
        frames = ((pixels + 1) * 127.5).permute(1, 2, 3, 0).cpu().numpy()
        # The first step has the same noise for all; later steps depend on earlier ones.
        self.recorded.append(Recorded(self.outputs[: len(self.outputs) // self.steps], latents.clone(), frames))
        self.outputs.clear()
        return pixels


def _film(studio: Studio, scheme: str) -> tuple[dict[str, Any], list[Recorded]]:
    """Generate the clips of one and of two people; return the figures, and the network's results in that order."""
    model: Any = studio.service.engine.load().model
    watch = _Watch(model.codec, studio.service.config.sampler.steps)
    model.codec = watch
    record_forwards(model.transformer, watch.outputs)
    studio.say(f"{scheme}, {len(studio.one_cases) + len(studio.two_cases)} clips")
    began = perf_counter()
    one, two = kinds.one(studio), kinds.two(studio)
    return {
        "bytes": weight_bytes(model.transformer),
        "seconds": round(perf_counter() - began, 1),
        "one": {name: one[name] for name in ("mean", "worst", "lag_share")},
        "two": {name: two[name] for name in ("own_mean", "own_worst", "cross_mean", "margin")},
    }, watch.recorded


def record_forwards(network: nn.Module, outputs: list[Tensor]) -> None:
    """Make a transformer append the output of each of its forwards to `outputs`, as float32."""

    def hear(_network: nn.Module, _inputs: Any, output: Any) -> None:
        # The network also embeds conditions.
        if not isinstance(output, TransformerConditions):
            outputs.append(output[0].float())

    network.register_forward_hook(hear)


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters in memory, quantised ones with their scales."""
    return sum(map(_bytes, network.parameters()))


def _bytes(tensor: Any) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    # torchao's tensors do not report their size: they consist of other tensors.
    parts, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, part)) for part in parts)


# --- what it costs ----------------------------------------------------------------------------------------------------


def _against(plain: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures, and how much lower they are than those of the plain weights."""
    less = {
        "one": minus(plain["one"]["mean"], figures["one"]["mean"]),
        "two": minus(plain["two"]["own_mean"], figures["two"]["own_mean"]),
        "margin": minus(plain["two"]["margin"], figures["two"]["margin"]),
    }
    return {**figures, "share": round(figures["bytes"] / plain["bytes"], 4), "less": less}


def _errors(studio: Studio, plain: Sequence[Recorded], quantised: Sequence[Recorded]) -> dict[str, Any]:
    """Return relative errors of forwards and latents, and the frames' PSNR to the plain ones in dB."""
    rows = []
    for case, one, other in zip((*studio.one_cases, *studio.two_cases), plain, quantised, strict=True):
        forwards = [relative_error(*pair) for pair in zip(one.outputs, other.outputs, strict=True)]
        # Frame 0 is the source picture, which depends only on the codec.
        original = np.rint(one.frames[1:]).astype(np.uint8)
        frames = codec_errors(original, other.frames[1:], case.mouths[:, 1:])
        rows.append(
            {
                "forward": mean(forwards),
                "latents": relative_error(one.latents, other.latents),
                "psnr": frames["psnr"],
                "psnr_mouth": frames["psnr_mouth"],
            }
        )
    return {"error": {name: mean(row[name] for row in rows) for name in rows[0]}}


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of `expected`."""
    return float((actual - expected).norm() / expected.norm())


# --- the table --------------------------------------------------------------------------------------------------------


def table(report: Mapping[str, Any]) -> str:
    """Return a report as the table of docs/weights.md."""
    plain = report["plain"]
    one, two, bound = plain["one"]["mean"], plain["two"]["own_mean"], plain["two"]["margin"]
    rows = [
        "| scheme | MB | share | forward | latents | frames, dB | mouths, dB | one person | two people | binding |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| `none` | {plain['bytes'] / 1e6:.2f} | 1 | – | – | – | – | {one:.3f} | {two:.3f} | {bound:.3f} |",
    ]
    for name, figures in report["schemes"].items():
        error, less = figures["error"], figures["less"]
        rows.append(
            f"| `{name}` | {figures['bytes'] / 1e6:.2f} | {figures['share']:.2f} | {error['forward']:.2%} "
            f"| {error['latents']:.2%} | {error['psnr']:.1f} | {error['psnr_mouth']:.1f} "
            f"| {-less['one']:+.4f} | {-less['two']:+.4f} | {-less['margin']:+.4f} |"
        )
    return "\n".join(rows)


def write_table(root: Path = Path()) -> None:
    """Write the tables of the measured reports into the page."""
    page = root / PAGE
    tables = {name: table(json.loads((root / path).read_text("utf-8"))) for name, path in MEASURED.items()}
    page.write_text(replaced(page.read_text("utf-8"), tables), "utf-8")

"""What quantised weights cost on a CPU: errors, lips and bytes of each scheme against the plain weights, as JSON."""

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
from engine.errors import ConfigError, RequestError
from engine.evaluation.metrics import Floats, codec_errors, mean, minus
from engine.loading.fill import find_stored
from engine.loading.key_map import is_audio, to_reference
from engine.multitalk.codec import LatentCodec, Withdrawn
from engine.multitalk.transformer import TransformerConditions
from engine.plugin.manager import installed
from scripts.evaluate_tiny import kinds
from scripts.evaluate_tiny.quantised_folder import write_gguf, write_quanto
from scripts.evaluate_tiny.studio import Studio, opened
from scripts.evaluate_tiny.talk import SIZES, machine, read_sizes

State = Mapping[str, Tensor]
Writer = Callable[[Path, State, Sequence[str]], None]


@dataclass(frozen=True)
class Scheme:
    """A way to quantise: the engine's `quant`, and how the file that it reads is written, if it reads one."""

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


#: What a name stands for; any other is handed to the engine as its `quant`.
SCHEMES = {
    "int8": Scheme("int8"),
    "int8-quanto": Scheme("int8-quanto", _quanto(torch.int8)),
    "fp8-quanto": Scheme("fp8-quanto", _quanto(torch.float8_e4m3fn)),
    "gguf-q8_0": Scheme("gguf", _gguf("Q8_0")),
    "gguf-q4_0": Scheme("gguf", _gguf("Q4_0")),
}
#: The page and the report that `python -m scripts.evaluate_tiny table` makes its table of.
PAGE, MEASURED = Path("docs/weights.md"), Path("docs/measured/quant.json")


def run(
    *,
    clips: int = 4,
    schemes: str = ",".join(SCHEMES),
    seed: int = 5_000_000,
    override: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Film the same held-out people with plain and with quantised weights, and compare.

    `clips` of one person and as many of two, drawn as by `evaluate_tiny talk` from `seed` on; `schemes` are names of
    SCHEMES. What a scheme's file would hold is written from the plain weights. A scheme that the engine refuses is
    told with the engine's reason. `override` goes to every engine (Hydra's grammar). Needs a checkout and eSpeak NG,
    as `evaluate_tiny talk` does. Raises EngineError.
    """
    names = [name.strip() for name in schemes.split(",") if name.strip()]
    if clips < 1 or not names:
        hint = f"1 clip or more, of {', '.join(SCHEMES)}"
        raise RequestError(f"{clips} clips, {len(names)} schemes", field="evaluate_tiny quant", hint=hint)
    # A LoRA that waits beside the weights would be counted with them.
    given = ("model=tiny", "device=cpu", "model.turbo.loras=[]", *override)
    with opened(given, clips=clips, long=1, seed=seed, sizes=read_sizes(SIZES), name="evaluate_tiny quant") as studio:
        weights = locate_weights(studio.service.config, installed())
        plain, seen = _film(studio, "none")
        report: dict[str, Any] = {
            "bench": "quant",
            "settings": {"seed": seed, "clips": clips, "overrides": list(given), **machine(weights)},
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
            report["schemes"][scheme] = _against(plain, figures) | _errors(studio, seen, others)
    return report


def prepare_scheme(scheme: str, weights: Path, folder: Path) -> tuple[str, ...]:
    """Write a folder of weights for `scheme` and return what has an engine read it. Raises MissingExtra."""
    chosen = SCHEMES.get(scheme, Scheme(scheme))
    quant = quoted("quant", chosen.quant)
    if chosen.write is None:
        return (quant,)
    target = folder / scheme
    target.mkdir()
    for part in weights.iterdir():
        if part.name != "transformer":
            (target / part.name).symlink_to(part.absolute())
    (target / "config.json").write_bytes((weights / "transformer" / "config.json").read_bytes())
    state, modules = _published(weights / "transformer")
    chosen.write(target, state, modules)
    return (quant, "source=volume", quoted("source.path", str(folder)), quoted("model.folder", scheme))


def _published(folder: Path) -> tuple[State, list[str]]:
    """Return a transformer's tensors as float32 by the names of published files, and its linear modules."""
    from safetensors.torch import load_file

    files = {stored.file for stored in find_stored(folder).values()}
    state = {to_reference(name): tensor.float() for file in sorted(files) for name, tensor in load_file(file).items()}
    modules = [name.removesuffix(".weight") for name, tensor in state.items() if tensor.ndim == 2]
    return state, modules


# --- what is seen -----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the network made of one clip: outputs of the first step's forwards, the final latents, the frames."""

    outputs: list[Tensor]
    latents: Tensor
    #: float32 (F, H, W, 3), 0 to 255, before the colours are corrected and anything is encoded.
    frames: Floats


@dataclass
class _Watch:
    """A codec that works as `codec` does, and keeps what `model` makes; each clip is one window."""

    codec: LatentCodec
    steps: int
    seen: list[Seen] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spatial, self.temporal, self.channels = self.codec.spatial, self.codec.temporal, self.codec.channels

    def encode(self, pixels: Tensor, *, cancel: Withdrawn | None = None) -> Tensor:
        return self.codec.encode(pixels, cancel=cancel)

    def decode(self, latents: Tensor, *, cancel: Withdrawn | None = None) -> Tensor:
        pixels = self.codec.decode(latents, cancel=cancel)
        frames = ((pixels + 1) * 127.5).permute(1, 2, 3, 0).cpu().numpy()
        # All of them see the same noise: what comes later is heard through what came before.
        self.seen.append(Seen(self.outputs[: len(self.outputs) // self.steps], latents.clone(), frames))
        self.outputs.clear()
        return pixels


def _film(studio: Studio, scheme: str) -> tuple[dict[str, Any], list[Seen]]:
    """Film the clips of one and of two people; return the figures, and what the network made in that order."""
    model = studio.service.engine.load().model
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
    }, watch.seen


def record_forwards(network: nn.Module, outputs: list[Tensor]) -> None:
    """Have a transformer append to `outputs` what each of its forwards makes, as float32."""

    def hear(_network: nn.Module, _given: Any, made: Any) -> None:
        # The network embeds conditions as well.
        if not isinstance(made, TransformerConditions):
            outputs.append(made[0].float())

    network.register_forward_hook(hear)


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes that a network's parameters take in memory, quantised ones with their scales."""
    return sum(map(_bytes, network.parameters()))


def _bytes(tensor: Any) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    # What torchao keeps says nothing of itself: it is made of other tensors.
    parts, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, part)) for part in parts)


# --- what it costs ----------------------------------------------------------------------------------------------------


def _against(plain: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures, and by how much they are below those of the plain weights."""
    less = {
        "one": minus(plain["one"]["mean"], figures["one"]["mean"]),
        "two": minus(plain["two"]["own_mean"], figures["two"]["own_mean"]),
        "margin": minus(plain["two"]["margin"], figures["two"]["margin"]),
    }
    return {**figures, "share": round(figures["bytes"] / plain["bytes"], 4), "less": less}


def _errors(studio: Studio, plain: Sequence[Seen], quantised: Sequence[Seen]) -> dict[str, Any]:
    """Return relative errors of forwards and latents, and how far the frames are from the plain ones, in dB."""
    rows = []
    for case, one, other in zip((*studio.one_cases, *studio.two_cases), plain, quantised, strict=True):
        forwards = [relative_error(*pair) for pair in zip(one.outputs, other.outputs, strict=True)]
        # Frame 0 is the given picture, which the codec alone makes.
        given = np.rint(one.frames[1:]).astype(np.uint8)
        frames = codec_errors(given, other.frames[1:], case.mouths[:, 1:])
        rows.append(
            {
                "forward": mean(forwards),
                "latents": relative_error(one.latents, other.latents),
                "psnr": frames["psnr"],
                "psnr_mouth": frames["psnr_mouth"],
            }
        )
    return {"error": {name: mean(row[name] for row in rows) for name in rows[0]}}


def relative_error(wanted: Tensor, given: Tensor) -> float:
    """Return the norm of what differs in parts of the norm of what is wanted."""
    return float((given - wanted).norm() / wanted.norm())


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
    for name, found in report["schemes"].items():
        error, less = found["error"], found["less"]
        rows.append(
            f"| `{name}` | {found['bytes'] / 1e6:.2f} | {found['share']:.2f} | {error['forward']:.2%} "
            f"| {error['latents']:.2%} | {error['psnr']:.1f} | {error['psnr_mouth']:.1f} "
            f"| {-less['one']:+.4f} | {-less['two']:+.4f} | {-less['margin']:+.4f} |"
        )
    return "\n".join(rows)


def write_table(root: Path = Path()) -> None:
    """Write the table of the measured report into the page, between its two marks."""
    page = root / PAGE
    begin, _, rest = page.read_text("utf-8").partition("<!-- quant -->\n")
    _, _, end = rest.partition("<!-- /quant -->")
    told = table(json.loads((root / MEASURED).read_text("utf-8")))
    page.write_text(f"{begin}<!-- quant -->\n{told}\n<!-- /quant -->{end}", "utf-8")

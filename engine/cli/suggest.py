"""What a mistyped word of the command line may have meant: a flag, a key, a group or a command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields

from engine.cli.catalog import groups
from engine.config import Config
from engine.serving.jobs.aliases import find_alias
from engine.text.similar import similar

#: Field of a job -> what sets the same on the command line.
_FIELDS = {
    "reference_image": "--image FILE",
    "reference_video": "--video FILE",
    "audio_1": "--audio FILE",
    "audio_2": "--audio FILE for each person",
    "speakers": "--speakers FILE",
    "prompt": "--prompt TEXT",
    "negative_prompt": "--negative-prompt TEXT",
    "sampling_steps": "sampler.steps=VALUE",
    "guidance_scale": "guidance.text_scale=VALUE",
    "audio_guidance_scale": "guidance.audio_scale=VALUE",
    "num_frames": "--frames VALUE",
    "fps": "--fps VALUE",
    "seed": "--seed VALUE",
    "turbo": "sampler=turbo",
    "audio_type": "--audio-type para|add",
    "fit": "--fit crop|pad",
    "mask": "--speakers FILE with a mask",
    "box": "--speakers FILE with a box",
    "output": "--output FILE",
    "filename": "--output FILE",
    "sink": "sink=VALUE",
}
#: Advice -> names, without dashes, that other tools have and jobs do not, or that mean something else there.
_ADVICE = {
    "resolution=NAME? multitalk plugins lists them; the aspect ratio is the picture's": (
        "width height w h size aspectratio ratio bucket videosize imagesize quality sampleshape"
    ),
    "--frames N: the seconds multiplied by --fps": "duration seconds length_seconds maxduration videolength time",
    "model=VALUE": "modelname modelid modeltype task preset",
    "model.folder=FOLDER": "ckptdir checkpoint ckpt modelpath modeldir weights infinitetalkdir multitalkdir",
    "source.path=FOLDER": "wav2vecdir cachedir hubcache",
    "lora.extra=[{file: FILE, scale: 1}]": "lora loras loraname loradir loraweights lorascale lorapath",
    "sampler=VALUE": "scheduler schedulername solver samplesolver samplername",
    "sampler.shift=VALUE": "shift sampleshift flowshift",
    "cache=teacache": "teacache useteacache stepcache",
    "cache.threshold=VALUE": "teacachethresh teacachethreshold",
    "guidance=apg": "apg useapg",
    "continuation.frames=VALUE": "motionframe motionframes overlap overlapframes",
    "quant=VALUE": "quantize quantise quantization quantdir fp8 int8 loadin8bit",
    "dtype=VALUE": "precision torchdtype bf16 fp16 half",
    "memory=VALUE": "offload offloadmodel cpuoffload sequentialoffload blockswap blockstoswap lowvram vram",
    "memory.tile=VALUE": "tile tiled tiling vaetiling",
    "attention=VALUE": "attentionmode attnmode attn sdpa flashattn sageattn",
    "compile=blocks": "torchcompile compilemode",
    "device=VALUE": "gpu gpuid cuda deviceid",
    "video.crf=VALUE": "crf videoquality bitrate",
    "recipe=VALUE": "profile config",
    "-m with commas, such as -m request.seed=1,2": "batchsize numvideos numoutputs nsamples repeat",
    "leave it out: the video is always an MP4 (H.264)": "outputformat format codec",
}
#: Keys of the top that are values: "resolution", "device", ...
_VALUES = frozenset(field.name for field in fields(Config) if field.type in ("str", "int", "float", "bool"))
_ADVICE_FOR = {name: advice for advice, names in _ADVICE.items() for name in names.split()}


def flag_hint(name: str, value: str, known: Iterable[str], command: str) -> str:
    """Return a hint for an unknown flag `name` ("--steps") that was given with `value` ("": none) to a command."""
    bare = name.lstrip("-")
    flags = sorted(known)
    near = similar(name, flags, cutoff=0.8)
    if near and not _exact(bare):
        return f"did you mean {near[0]}?"
    found = meaning(bare, value)
    if found and found.partition(" ")[0] not in (name, *_absent(found, flags)):
        return _worded(found)
    near = similar(name, flags)
    return f"did you mean {near[0]}?" if near else f"see {command} --help"


def command_hint(name: str, known: Sequence[str], command: str = "multitalk") -> str:
    """Return a hint for an unknown command, which may be the name of a group or key."""
    near = [] if name in groups() else similar(name, sorted(known))
    if not near and (found := meaning(name, "")) and not found.startswith("leave"):
        return f"{_worded(found)} It goes behind a command, such as {command} generate {found.partition(' ')[0]}"
    return f"did you mean {near[0]}?" if near else f"see {command} --help"


def meaning(name: str, value: str) -> str:
    """Return the argument that sets what `name` means here or in other tools, with `value` in it; "": unknown."""
    plain = re.sub(r"[\s_.-]", "", name.lower())
    text = value if re.fullmatch(r"[\w.,:/+-]+", value) else "VALUE"
    own = {field.replace("_", ""): field for field in _FIELDS}
    if plain in own and name not in groups():
        return _FIELDS[own[plain]].replace("VALUE", text)
    number = re.fullmatch(r"[0-9.]+", value)
    if (key := _exact(name)) is not None and not (number and key in groups() and find_alias(name, _FIELDS)[0]):
        return f"{key}={text}"
    if plain in _ADVICE_FOR:
        return _ADVICE_FOR[plain].replace("VALUE", text)
    field, _ = find_alias(name, (*_FIELDS, "resolution"))
    if field == "resolution":
        return f"resolution={text}"
    if field:
        return _FIELDS[field].replace("VALUE", text)
    lasts: dict[str, list[str]] = {}
    for key in _keys():
        lasts.setdefault(re.sub(r"[_-]", "", key.rpartition(".")[2]), []).append(key)
    near = [plain] if plain in lasts else similar(plain, lasts, cutoff=0.8)
    if not near:
        return ""
    return " or ".join(f"{key}={text}" for key in lasts[near[0]][:3])


def _exact(name: str) -> str | None:
    """Return the group or dotted key that `name` is, with dashes or underscores in place of dots too."""
    forms = {re.sub(r"[_.-]", "", key): key for key in reversed(_keys())}
    named = name.replace("-", "_")
    if named in groups() or (named in forms.values() and named in _VALUES):
        return named
    return forms.get(re.sub(r"[_.-]", "", name)) if re.search(r"[._-]", name) else None


def _keys() -> list[str]:
    # Hydra is only imported for a mistake.
    from engine.assembly.compose import keys_of

    found = [key for key in keys_of(()) if not key.startswith(("entrypoint", "launcher", "request.", "hydra"))]
    # Those of the model are the sources of the others.
    return sorted(found, key=lambda key: key.startswith("model."))


def _absent(found: str, flags: Sequence[str]) -> tuple[str, ...]:
    """Return the flag in `found` if the command does not have it."""
    word = found.partition(" ")[0]
    return (word,) if word.startswith("--") and word not in flags else ()


def _worded(found: str) -> str:
    if found.startswith("leave"):
        return found
    return f"did you mean {found}" if "?" in found else f"did you mean {found}?"

"""What a run of a sweep leaves in its folder beside the video: its config and its figures, and nobody's secrets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from engine.assembly.provenance import DECISIVE
from engine.config import Config
from engine.data import Delivery, Request
from engine.errors import EngineError
from engine.files.atomic import write
from engine.redaction import named_secrets, redact, scrub
from engine.service import EngineService
from engine.sweeps.runs import CONFIG, FORMAT, METRICS

#: Groups that are kept whole; of those that say where things lie, only the name.
_WHOLE = ("model", "reader", "attention", "memory", *DECISIVE, "device", "dtype")
_NAMES = ("source", "sink", "entrypoint")
_REQUEST = ("prompt", "negative_prompt", "seed", "frames", "fps", "audio_type", "timing", "fit")
_MEDIA = ("request.image", "request.audio", "request.speakers")


class RunFolder:
    """The folder of one run, made by Hydra."""

    def __init__(self, path: Path, number: int, overrides: Sequence[str], swept: Collection[str]) -> None:
        """Take what the run was started with: `overrides`, of which those of the keys `swept` differ between runs."""
        self.path = path
        self.number = number
        self.overrides = tuple(overrides)
        self._swept = swept

    @property
    def chosen(self) -> list[str]:
        """The overrides in which this run differs from the others, as they were given."""
        return [text for text in self.overrides if text.partition("=")[0] in self._swept]

    def keep_config(self, config: Config) -> None:
        """Write the config, before the work, and that the run is not finished: of one that is killed this is left."""
        text = yaml.safe_dump(shareable(config), sort_keys=False, allow_unicode=True)
        write(self.path / CONFIG, text.encode())
        self._write({"status": "unfinished", "error": None, "video": None})

    def keep_metrics(self, service: EngineService, request: Request, delivery: Delivery) -> None:
        """Measure what was delivered, and write it."""
        from engine.sweeps.measures import measure

        path = None if delivery.address is None else Path(delivery.address)
        here = path is not None and path.parent == self.path.absolute() and path.is_file()
        took = sum(delivery.timings.values())
        self._write(
            {
                "status": "done",
                "error": None,
                # Not the address: it may be a key.
                "video": path.name if here and path else None,
                "frames": delivery.frames,
                "fps": delivery.fps,
                "seconds": delivery.seconds,
                "size": list(delivery.plan.canvas.target),
                "bytes": delivery.bytes,
                "seed": delivery.seed,
                "forwards": delivery.plan.forwards,
                "memory": delivery.memory,
                "weights_reused": service.reused,
                "timings": {
                    **{stage: round(seconds, 3) for stage, seconds in delivery.timings.items()},
                    "total": round(took, 3),
                    "total_without_load": round(took - delivery.timings.get("load", 0.0), 3),
                },
                "measures": measure(path if here else None, request, delivery.plan, service),
                "warnings": [scrub(warning, self._secrets) for warning in delivery.warnings],
            }
        )

    def keep_error(self, error: Exception) -> None:
        """Write why there is no video."""
        known = isinstance(error, EngineError)
        told = {
            "code": error.code if isinstance(error, EngineError) else "internal_error",
            "message": scrub(str(error) if known else f"{type(error).__name__}: {error}", self._secrets),
        }
        self._write({"status": "failed", "error": told, "video": None})

    def discard(self) -> None:
        """Take the folder away again: nothing was to be made."""
        for name in (CONFIG, METRICS):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    @property
    def _secrets(self) -> tuple[str, ...]:
        return named_secrets(os.environ)

    def _write(self, figures: Mapping[str, Any]) -> None:
        told = {"format": FORMAT, "run": self.number, "overrides": self._differing(), **figures}
        text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write(self.path / METRICS, text.encode())

    def _differing(self) -> dict[str, Any]:
        """Return what was chosen for this run, all but where things lie unless the sweep goes over that."""
        told: dict[str, Any] = {}
        for part in OverridesParser.create().parse_overrides(list(self.overrides)):
            key = part.get_key_element()
            if key in self._swept or not key.startswith((*_NAMES, *_MEDIA)):
                value = part.value()
                plain = value if isinstance(value, bool | int | float | None) else str(value)
                told[key] = _shareable(plain, named=key in _MEDIA)
        return told


def shareable(config: Config) -> dict[str, Any]:
    """Return of a config what decides a video, as plain values: no media, no addresses, no folders, no keys."""
    told: dict[str, Any] = {}
    for key in _WHOLE:
        value = getattr(config, key)
        told[key] = _shareable(asdict(value) if hasattr(value, "__dataclass_fields__") else value)
    told |= {key: {"name": getattr(config, key).name} for key in _NAMES}
    # What is to be seen is text, whatever it begins with.
    asked = {key: getattr(config.request, key) for key in _REQUEST}
    secrets = named_secrets(os.environ)
    told["request"] = {k: redact(value, secrets) if isinstance(value, str) else value for k, value in asked.items()}
    return told


def _shareable(value: Any, *, named: bool = False) -> Any:
    """Return `value` without secrets, and of absolute paths the file's name alone; with `named` so of all paths."""
    if isinstance(value, Mapping):
        return {key: _shareable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_shareable(part) for part in value]
    if not isinstance(value, str):
        return value
    text = redact(value, named_secrets(os.environ))
    if named:
        return re.sub(r"[^\s,'\"\[\]]*/", "", text)
    return Path(text).name if text.startswith(("/", "~")) else text

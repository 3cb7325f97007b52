"""The files of a sweep's run next to its video: its config and its figures, without secrets."""

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

#: Groups that are written completely; of the others, which contain places, only the name.
_WHOLE = ("model", "reader", "attention", "memory", *DECISIVE, "windows", "dub", "device", "dtype")
_NAMES = ("source", "sink", "entrypoint")
_REQUEST = ("prompt", "negative_prompt", "seed", "frames", "fps", "audio_type", "timing", "fit")
_MEDIA = ("request.image", "request.images", "request.video", "request.audio", "request.speakers")


class RunFolder:
    """The folder of one run, made by Hydra."""

    def __init__(self, path: Path, number: int, overrides: Sequence[str], swept: Collection[str]) -> None:
        """`overrides` are all overrides of the run; those of the keys `swept` differ between runs."""
        self.path = path
        self.number = number
        self.overrides = tuple(overrides)
        self._swept = swept

    @property
    def chosen(self) -> list[str]:
        """The overrides in which this run differs from the others, unchanged."""
        return [text for text in self.overrides if text.partition("=")[0] in self._swept]

    def keep_config(self, config: Config) -> None:
        """Write the config and the status "unfinished" before the work; both remain if the run is killed."""
        text = yaml.safe_dump(shareable(config), sort_keys=False, allow_unicode=True)
        write(self.path / CONFIG, text.encode())
        self._write({"status": "unfinished", "error": None, "video": None})

    def keep_metrics(self, service: EngineService, request: Request, delivery: Delivery) -> None:
        """Measure the delivered video and write its figures."""
        from engine.sweeps.measures import measure

        path = None if delivery.address is None else Path(delivery.address)
        here = path is not None and path.parent == self.path.absolute() and path.is_file()
        total = sum(delivery.timings.values())
        self._write(
            {
                "status": "done",
                "error": None,
                # Not the address: it may be a secret.
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
                    "total": round(total, 3),
                    "total_without_load": round(total - delivery.timings.get("load", 0.0), 3),
                },
                "measures": measure(path if here else None, request, delivery.plan, service),
                "warnings": [scrub(warning, self._secrets) for warning in delivery.warnings],
            }
        )

    def keep_error(self, error: Exception) -> None:
        """Write why the run made no video."""
        message = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        report = {
            "code": error.code if isinstance(error, EngineError) else "internal_error",
            "message": scrub(message, self._secrets),
        }
        self._write({"status": "failed", "error": report, "video": None})

    def discard(self) -> None:
        """Remove the folder: the run was not meant to make a video."""
        for name in (CONFIG, METRICS):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    @property
    def _secrets(self) -> tuple[str, ...]:
        return named_secrets(os.environ)

    def _write(self, figures: Mapping[str, Any]) -> None:
        content = {"format": FORMAT, "run": self.number, "overrides": self._differing(), **figures}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write(self.path / METRICS, text.encode())

    def _differing(self) -> dict[str, Any]:
        """Return the run's overrides by key, without places unless the sweep varies them."""
        values: dict[str, Any] = {}
        for part in OverridesParser.create().parse_overrides(list(self.overrides)):
            key = part.get_key_element()
            if key in self._swept or not key.startswith((*_NAMES, *_MEDIA)):
                value = part.value()
                plain = value if isinstance(value, bool | int | float | None) else str(value)
                values[key] = _shareable(plain, named=key in _MEDIA)
        return values


def shareable(config: Config) -> dict[str, Any]:
    """Return the settings that decide a video, as plain values: no media, no addresses, no folders, no keys."""
    settings: dict[str, Any] = {}
    for key in _WHOLE:
        value = getattr(config, key)
        settings[key] = _shareable(asdict(value) if hasattr(value, "__dataclass_fields__") else value)
    settings |= {key: {"name": getattr(config, key).name} for key in _NAMES}
    # A prompt is text even if it looks like a path.
    request = {key: getattr(config.request, key) for key in _REQUEST}
    secrets = named_secrets(os.environ)
    settings["request"] = {k: redact(v, secrets) if isinstance(v, str) else v for k, v in request.items()}
    return settings


def _shareable(value: Any, *, named: bool = False) -> Any:
    """Return `value` without secrets; absolute paths, or with `named` all paths, are cut to the file's name."""
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

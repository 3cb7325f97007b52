"""Flags of all commands: how much is logged and how, and whose settings hold."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from engine.errors import ConfigError
from engine.serving.worker.logs import FORMATS, LEVELS, LogContext, install

#: Names of flags, and what argparse is told of them.
COMMON: tuple[tuple[str, dict[str, Any]], ...] = (
    ("-v --verbose", {"action": "count", "dest": "common.verbose", "help": "log what is done; -vv: in detail"}),
    ("--log-level", {"dest": "common.log_level", "metavar": "LEVEL", "help": f"log from {', '.join(LEVELS)} on"}),
    (
        "--log-format",
        {"dest": "common.log_format", "metavar": "FORMAT", "help": "text, json, or auto: text on a terminal (auto)"},
    ),
    (
        "-c --config",
        {"dest": "common.config", "metavar": "FILE", "help": "settings of your own in place of config.yaml's"},
    ),
    ("--no-config", {"action": "store_true", "dest": "common.no_config", "help": "without settings of your own"}),
)


def apply(values: argparse.Namespace) -> None:
    """Act on the common flags in `values` and remove them. Raises ConfigError.

    Settings are told to this process and those that it starts by MULTITALK_CONFIG, logs by MULTITALK_LOG_FORMAT.
    """
    found = {name: vars(values).pop(name) for name in list(vars(values)) if name.startswith("common.")}
    if found.get("common.config") is not None and found.get("common.no_config"):
        raise ConfigError("--config and --no-config are both given", field="command line", hint="give one of them")
    if (file := found.get("common.config")) is not None:
        if not file:
            raise ConfigError("no file", field="--config", hint="give a YAML file, or --no-config")
        os.environ["MULTITALK_CONFIG"] = os.path.abspath(os.path.expanduser(file))  # noqa: PTH100, PTH111 - symlinks stay
    if found.get("common.no_config"):
        os.environ["MULTITALK_CONFIG"] = ""
    if (form := found.get("common.log_format")) is not None:
        if form not in FORMATS:
            raise ConfigError(f"no log format {form!r}", field="--log-format", hint=", ".join(FORMATS))
        os.environ["MULTITALK_LOG_FORMAT"] = form
    level = (found.get("common.log_level") or "").upper()
    if level and level not in LEVELS:
        raise ConfigError(f"no log level {level!r}", field="--log-level", hint=", ".join(LEVELS))
    if verbose := found.get("common.verbose") or 0:
        level = level or ("DEBUG" if verbose > 1 else "INFO")
    if level:
        log(level)


def log(level: str) -> None:
    """Let the engine's and the plugins' loggers write to stderr, from `level` on; libraries only their warnings."""
    install("WARNING" if level != "ERROR" else level, LogContext())
    for name in ("engine", "plugins", "__main__"):
        logging.getLogger(name).setLevel(level)

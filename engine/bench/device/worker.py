"""The measuring process. It receives one part at a time and reports each row at once."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from engine.bench.device.measure import DeviceBench, DeviceLost, Rows, Skipped, failure, first_line
from engine.errors import EngineError

#: Environment variables that would make a part use the network.
_NETWORK = ("S3_BUCKET", "BUCKET_ENDPOINT_URL")
_DIE_WITH_PARENT = 1


def main(settings: str, handle: str) -> int:
    """Serve the parent on the connection of file descriptor `handle` until it closes; `settings` are Bench's."""
    import torch

    if sys.platform == "linux":
        # If the parent is killed, nothing must stay on the device.
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    for name in _NETWORK:
        os.environ.pop(name, None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    parent = Connection(int(handle))
    try:
        bench = DeviceBench(**json.loads(settings))
    except EngineError as error:
        _send(parent, {"refused": [error.what, error.field, error.hint]})
        return 2
    _send(parent, {"device": bench.device, "reduced": bench.shapes.reduced, "runs": bench.runs})
    torch.manual_seed(0)
    with torch.no_grad():
        while True:
            try:
                part = json.loads(parent.recv_bytes())
            except EOFError:
                return 0
            if not _serve(parent, bench, part):
                return 1


def _serve(parent: Connection, bench: DeviceBench, part: dict[str, Any]) -> bool:
    """Measure a part; return whether the process can still be used."""
    bench.begin(part["budget"])
    end: dict[str, Any] = {"state": "done"}
    usable = True
    try:
        module, _, name = part["place"].partition(":")
        measure: Callable[[DeviceBench], Rows] = getattr(importlib.import_module(module), name)
        for row, figures in measure(bench):
            _send(parent, {"row": row, "figures": figures})
            if bench.seconds_left() <= 0:
                end["why"] = f"stopped after {part['budget']:.0f} s; further rows are missing"
                break
        bench.free()
    except Skipped as error:
        end = {"state": "skipped", "why": str(error)}
    except DeviceLost as error:
        end, usable = {"state": "failed", "why": f"the device is lost: {error}"}, False
    except Exception as error:  # noqa: BLE001 - the next parts must still be measured
        row_ = failure(error)
        end = {"state": "failed", "why": row_["failed"], "where": row_["where"]}
    if usable and end["state"] == "failed":
        try:
            bench.free()
        except DeviceLost as error:
            end["why"] += f"; the device is lost: {error}"
            usable = False
    _send(parent, {"end": end})
    return usable


def _send(parent: Connection, message: dict[str, Any]) -> None:
    try:
        text = json.dumps(message, allow_nan=False)
    except (TypeError, ValueError) as error:
        text = json.dumps({"row": message.get("row"), "figures": {"failed": first_line(error), "where": []}})
    parent.send_bytes(text.encode())


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:3]))

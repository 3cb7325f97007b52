"""What changes a result is in its answer: each warning that goes to a log has a reason why the log is enough."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: File -> beginning of a warning of its log, and why no answer needs it.
REASONS: dict[str, dict[str, str]] = {
    "engine/serving/studio/studio.py": {
        "an entry of the history": "of no video; the page shows it until the studio ends"
    },
    "engine/serving/endpoint/worker_api.py": {
        "job %s: a progress update arrived": "the job's state and result are as the worker sent them"
    },
    "engine/serving/endpoint/server.py": {"worker %s did not let go": "the job answers CANCELLED or TIMED_OUT"},
    "engine/serving/endpoint/webhook.py": {"job %s: the webhook": "the job's own status says the same to whoever asks"},
    "engine/serving/endpoint/worker_processes.py": {
        "worker %s asked for no job": "of no job; jobs wait in the queue",
        "%s; the next try is in": "of no job; jobs wait in the queue",
        "worker %s %s and is killed": "the job that it had is told by its own error",
    },
    "engine/net/retry.py": {
        "attempt %d of %d": "the video that arrives is the same; the last one that fails is the answer's error",
    },
    "engine/loading/pinned_memory.py": {"weights are not pinned": "a matter of speed: the frames are the same"},
    "engine/loading/model.py": {"": "in the answer as well, by engine.assembly.compatibility.with_loras"},
    "engine/serving/worker/handler.py": {"job failed": "the answer is that error"},
    "engine/serving/worker/warm_engine.py": {
        "the device's memory ran out": "in the answer as well, by Handler._make",
        "the warm-up videos failed": "of no job; a job that cannot work is told by its own error",
    },
    "engine/serving/worker/progress_sender.py": {
        "a progress update could not be sent": "the answer comes by another way"
    },
    "engine/files/undelivered.py": {
        "%s was uploaded but cannot be removed": "of the worker's disk; the caller has the video"
    },
    "plugins/sinks/s3.py": {
        "%s; trying once more without": "in the answer as well, by the upload's own warning",
    },
}


def test_each_warning_of_a_log_has_a_reason_or_is_in_the_answer() -> None:
    found: dict[str, list[str]] = {}
    for path in sorted([*(ROOT / "engine").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            to_log = (
                node.func.attr == "warning"
                and isinstance(owner, ast.Name)
                and owner.id.lower().startswith(("log", "_log"))
            )
            by_python = node.func.attr == "warn" and isinstance(owner, ast.Name) and owner.id == "warnings"
            if to_log or by_python:
                text = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
                found.setdefault(path.relative_to(ROOT).as_posix(), []).append(str(text))
    for name, texts in found.items():
        for text in texts:
            known = [start for start in REASONS.get(name, {}) if text.startswith(start)]
            assert known, f"{name} warns {text!r} in a log: put it into the answer, or say here why not"

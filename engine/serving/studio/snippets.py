"""The code of a job: for curl, Python and the command line. Media are named as files beside the code."""

from __future__ import annotations

import json
import pprint
import secrets
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

#: Field of a job -> config key, for the command line.
_KEYS = {
    "resolution": "resolution",
    "sampling_steps": "sampler.steps",
    "guidance_scale": "guidance.text_scale",
    "audio_guidance_scale": "guidance.audio_scale",
}
_FLAGS = {"negative_prompt": "--negative-prompt", "num_frames": "--frames", "fps": "--fps", "seed": "--seed"}


def snippets(job: Mapping[str, Any], overrides: Sequence[str], endpoint: str | None) -> dict[str, str]:
    """Return title -> code of a job whose media are names of files. `endpoint` is URL and id of a worker, no key.

    Without one, the code is for `multitalk endpoint` on the same machine. `overrides` are those of the engine.
    """
    base, _, name = (endpoint or "http://127.0.0.1:8000/v2/local").rpartition("/")
    return {
        "curl": _curl(job, f"{base}/{name}"),
        "Python": _python(job, base, name),
        "Command line": _command(job, overrides),
    }


def _curl(job: Mapping[str, Any], url: str) -> str:
    # Random, so that no text of the job has it.
    marks = {name: f"{secrets.token_hex(8)}" for name in _files(job)}
    text = json.dumps({"input": _replaced(job, marks)}, ensure_ascii=False, indent=2)
    # The quotes end before each file and begin after it.
    text = text.replace("'", "'\\''")
    for name, mark in marks.items():
        text = text.replace(mark, f"'\"$(base64 < {shlex.quote(name)} | tr -d '\\n')\"'")
    # Through stdin: media are longer than an argument may be.
    return (
        f"printf '%s' '{text}' |\n"
        f"  curl -s {shlex.quote(url + '/run')} -H 'Content-Type: application/json' \\\n"
        f'    -H "Authorization: Bearer $MULTITALK_KEY" --data-binary @-\n'
        f"# then: curl -s {shlex.quote(url)}/status/ID"
    )


class _File(str):
    """A file in a job, as Python code."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"file({str(self)!r})"


def _python(job: Mapping[str, Any], base: str, name: str) -> str:
    text = pprint.pformat(_replaced(job, {file: _File(file) for file in _files(job)}), width=100, sort_dicts=False)
    return (
        "import os\n\n"
        "from engine.client import Client, file\n\n"
        f"job_input = {text}\n"
        f'with Client({name!r}, api_key=os.environ.get("MULTITALK_KEY"), base_url={base!r}) as client:\n'
        '    print(client.submit(job_input).download("talk.mp4").path)'
    )


def _command(job: Mapping[str, Any], overrides: Sequence[str]) -> str:
    words = ["multitalk", "generate", "--image", str(job["reference_image"]), *_voices(job)]
    words += ["--prompt", str(job["prompt"])]
    for name, flag in _FLAGS.items():
        if name in job:
            words += [flag, str(job[name])]
    if job.get("audio_type") == "add":
        words += ["--audio-type", "add"]
    words += [*overrides, f"sampler={'turbo' if job.get('turbo') else 'standard'}"]
    words += [f"{key}={job[name]}" for name, key in _KEYS.items() if name in job]
    return shlex.join([*words, *job.get("overrides", ())])


def _voices(job: Mapping[str, Any]) -> list[str]:
    """Return the words about who speaks."""
    if "script" in job:
        # With a line break it is the text itself, and no file.
        return ["--script", str(job["script"]).rstrip() + "\n"]
    if "voices" in job:
        words = ["--voices", str(job["voices"]), "--people", str(job["people"])]
        return [*words, *(["--boxes", json.dumps(job["boxes"])] if "boxes" in job else [])]
    speakers = job["speakers"]
    if all(set(one) <= {"audio", "silence"} for one in speakers):
        return [word for one in speakers for word in ("--audio", str(one.get("audio", "silence")))]
    return ["--speakers", json.dumps({"speakers": speakers}, ensure_ascii=False)]


def _files(job: Mapping[str, Any]) -> list[str]:
    voices = [one["audio"] for one in job.get("speakers", ()) if "audio" in one]
    recording = [str(job["voices"])] if "voices" in job else []
    return list(dict.fromkeys([str(job["reference_image"]), *recording, *voices]))


def _replaced(job: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    replaced = {**job, "reference_image": names[str(job["reference_image"])]}
    if "voices" in job:
        replaced["voices"] = names[str(job["voices"])]
    if "speakers" in job:
        replaced["speakers"] = [
            {**one, "audio": names[one["audio"]]} if "audio" in one else dict(one) for one in job["speakers"]
        ]
    return replaced

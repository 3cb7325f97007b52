"""Writes docs/api.md from the schema: `python -m engine.serving.jobs.document > docs/api.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from engine.serving.jobs.schema import describe_accepted, job_schema

_HEAD = """\
# The job API

<!-- Written by `python -m engine.serving.jobs.document > docs/api.md` from schema.json: edit that. -->

A worker takes jobs as JSON and answers with JSON. Callers of the older MultiTalk worker can send the same fields as
before; all further fields are optional. [defaults.md](defaults.md) compares the defaults of jobs, the command line and
Python.

```json
{example}
```

Jobs are checked against one JSON Schema (draft 2020-12), `engine/serving/jobs/schema.json`. An unknown field is
rejected, and the message suggests the most similar name. Integers may be written as `100` or `100.0`. Text is never
read as a number, nor `true` as 1."""

_VOICES = """\
For two people use `audio_1` and `audio_2`, with `region_1` and `region_2` for their places. For silent people, and for
more than two, use the list `speakers`. Its entries have the format of a speakers file of the
[command line](cli.md#speakers), so you can paste such a list into a job. Regions have the same format in both.

The address of any voice may end in a part of the file: `#left`, `#right`, `#channel=3`, `#track=2`,
`#start=12.5,duration=8,delay=1`. So one recording with a person on each channel is enough for two people: `audio_1` is
`https://example.org/call.wav#left` and `audio_2` is `https://example.org/call.wav#right`. For base64 text without
`data:` use the fields of `speakers` instead. [cli.md](cli.md#unusual-audio-files) describes damaged files, several
tracks and similar cases. Anything that changes the result is in `warnings`."""

_TIMELINE = """\
The lists `prompts` and `reference_images` change the prompt and the picture in the course of a video. Their entries are
sorted by time and the first begins at 0. Each window of the video has one prompt and one picture, so each entry begins
with the window that begins nearest to its time. An entry for which no window is left is an error.
[timeline.md](timeline.md) has the rules and examples."""

_MEDIA = """\
Pictures and voices can be given as:

| form | example |
|---|---|
| URL | `https://example.org/anna.jpg` |
| object of a bucket, with the keys of `s3Config` or the worker's | `s3://media/anna.wav` |
| `data:` URL | `data:image/png;base64,iVBORw0KGgo…` |
| base64 text | `iVBORw0KGgo…`, in the standard or the URL-safe alphabet, with or without padding and line breaks |
| path on the worker | `/runpod-volume/inputs/anna.jpg`, only if the worker allows the folder |

The format is determined by the file's content; names and types do not matter. RunPod accepts 10 MB per job (20 MB at
`/runsync`), and base64 adds a third: send larger files by URL."""

_TURBO = """\
`turbo: true` takes steps and both scales from the model's turbo bundle, because its LoRA was distilled for them. If a
job sets `sampling_steps`, `guidance_scale` or `audio_guidance_scale`, its own values apply. `overrides` take precedence
over both."""

_ANSWER = """\
The answer of a finished job has the video in one of the first three fields, and how it was made."""

_ERRORS = """\
A failed job answers four fields. `error` contains everything in one line, because many tools show only this field. If
several fields are wrong, the first is described in full and the others by name. No answer contains a traceback, a path
of the worker, a key or an internal host name."""

#: One for each example of the schema.
_TITLES = (
    "One person",
    "Two people, one after the other",
    "Turbo",
    "Two people with regions",
    "One speaks, one listens",
    "Two prompts, one after the other",
    "Media from a bucket, and the video into it",
    "A self-test of the worker",
    "The worker's health",
)


def document() -> str:
    """Return the whole page."""
    return "\n\n".join(_sections(job_schema())) + "\n"


def _sections(schema: Mapping[str, Any]) -> Iterator[str]:
    parts = schema["$defs"]
    yield _HEAD.replace("{example}", _json(schema["examples"][0]))
    yield "## Fields of `input`"
    yield parts["input"]["description"]
    yield _fields(parts["input"], parts)
    yield "### Who speaks where"
    yield _VOICES
    yield _fields(parts["speaker"], parts)
    yield f"A region is {parts['region']['description']}"
    yield _fields(parts["region"]["else"], parts)
    yield "### Prompts and pictures by time"
    yield _TIMELINE
    yield _fields(parts["timed_prompt"], parts)
    yield "An entry of `reference_images` has `image` in place of `text`."
    yield "### Media"
    yield _MEDIA
    yield "### Steps, scales and turbo"
    yield _TURBO
    yield "### `output`"
    yield _fields(parts["output"], parts)
    yield "## Next to `input`"
    yield schema["description"]
    yield _fields(schema, parts, leave_out=("input",))
    yield "### `s3Config`"
    yield parts["s3Config"]["description"]
    yield _fields(parts["s3Config"], parts)
    yield "## Examples"
    for title, example in zip(_TITLES, schema["examples"], strict=True):
        yield f"{title}:\n\n```json\n{_json(example)}\n```"
    yield "## Answers"
    yield _ANSWER
    yield _answer_fields(parts["answer"])
    yield from (f"```json\n{_json(example)}\n```" for example in parts["answer"]["examples"])
    yield "## Errors"
    yield _ERRORS
    yield _answer_fields(parts["error"])
    yield from (f"```json\n{_json(example)}\n```" for example in parts["error"]["examples"])
    yield _codes(parts["error"]["properties"]["error_code"]["anyOf"])


def _fields(part: Mapping[str, Any], parts: Mapping[str, Any], leave_out: tuple[str, ...] = ()) -> str:
    rows = ["| field | value | default | meaning |", "|---|---|---|---|"]
    for name, own in part["properties"].items():
        if name in leave_out:
            continue
        shared = parts[own["$ref"].rpartition("/")[2]] if "$ref" in own else {}
        field = {**shared, **own}
        default = f"`{_plain(field['default'])}`" if "default" in field else _absent(name, part)
        rows.append(f"| `{name}` | {_cell(describe_accepted(field))} | {default} | {_cell(field['description'])} |")
    return "\n".join(rows)


def _absent(name: str, part: Mapping[str, Any]) -> str:
    return "required" if name in _needed(part) else ""


def _needed(part: Mapping[str, Any]) -> set[str]:
    """Return the fields that an ordinary job needs: no health check, no speakers, no timeline."""
    needed = {*part.get("required", ())}
    for rule in (*part.get("allOf", ()), *([part["else"]] if "else" in part else [])):
        needed |= _needed(rule)
    return needed


def _answer_fields(part: Mapping[str, Any]) -> str:
    rows = ["| field | value | meaning |", "|---|---|---|"]
    for name, field in part["properties"].items():
        rows.append(f"| `{name}` | {_cell(describe_accepted(field))} | {_cell(field['description'])} |")
    return "\n".join(rows)


def _codes(codes: list[Mapping[str, str]]) -> str:
    rows = ["| `error_code` | meaning |", "|---|---|"]
    rows += [f"| `{code['const']}` | {_cell(code['description'])} |" for code in codes if "const" in code]
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json(value: Any, indent: str = "") -> str:
    """Return `value` as JSON with one entry per line; what fits is kept on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or (len(indent) + len(flat) <= 100 and indent):
        return flat
    inner = indent + "  "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key)}: {_json(item, inner)}" for key, item in value.items()]
    else:
        lines = [f"{inner}{_json(item, inner)}" for item in value]
    ends = "{}" if isinstance(value, dict) else "[]"
    return f"{ends[0]}\n" + ",\n".join(lines) + f"\n{indent}{ends[1]}"


if __name__ == "__main__":
    print(document(), end="")

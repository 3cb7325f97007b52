"""Puts local files into a job, and a job's video into a local file."""

from __future__ import annotations

import base64
import binascii
import hashlib
import mimetypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from engine.client.answers import ClientError, Download
from engine.files.atomic import Part, part_in, sweep

MB = 1_000_000
#: Base64 in a job of 10 MB holds three quarters of that, less the space for its other fields.
FILE_BYTES = 7 * MB


def file(path: str | os.PathLike[str], *, most: int = FILE_BYTES) -> str:
    """Return a file as a data: URL for a job. Raises ClientError if it cannot be read or has more than `most` bytes."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > most:
            raise ClientError(
                f"{path} has {size / MB:.1f} MB, but a job has room for {most / MB:g} MB",
                code="too_large",
                hint="upload it to a place that the worker can reach, and send its URL",
            )
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ClientError(f"cannot read {path}: {reason}", code="bad_file") from error
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def talk(
    image: str | os.PathLike[str], *voices: str | os.PathLike[str] | None, prompt: str | None = None, **fields: Any
) -> dict[str, Any]:
    """Return the input of a job for a video of a picture and one voice per person, from left to right.

    Each is a local file or an address that the worker opens (`https://`, `s3://`, `data:`); None is a silent person.
    The video is as long as its voices, unless `fields`, further fields of the job API, set `num_frames`. Without
    `prompt` they have `prompts`. Raises ClientError as `file` does, and if there is no voice.
    """
    if not any(voice is not None for voice in voices):
        raise ClientError("there is no voice", code="no_voice", hint="give an audio file for each speaking person")
    job_input: dict[str, Any] = {"reference_image": _address(image), "num_frames": "auto"}
    if prompt is not None:
        job_input["prompt"] = prompt
    if len(voices) <= 2 and None not in voices:
        job_input |= {
            f"audio_{index}": _address(voice) for index, voice in enumerate(voices, start=1) if voice is not None
        }
    else:
        job_input["speakers"] = [{"silence": True} if voice is None else {"audio": _address(voice)} for voice in voices]
    return job_input | fields


def dub(
    video: str | os.PathLike[str], *voices: str | os.PathLike[str] | None, prompt: str | None = None, **fields: Any
) -> dict[str, Any]:
    """Return the input of a job for a source video whose people speak anew; everything else as in `talk`.

    `overrides=["dub.mode=keep"]` among the `fields` keeps everything round the people who speak. Raises ClientError.
    """
    job_input = talk(video, *voices, prompt=prompt, **fields)
    return {"reference_video": job_input.pop("reference_image"), **job_input}


def _address(media: str | os.PathLike[str]) -> str:
    address = isinstance(media, str) and (media.startswith("data:") or "://" in media)
    return str(media) if address else file(media)


def address_of(output: Any) -> str | None:
    """Return the URL of a finished job's video, or None if the answer holds the video. Raises ClientError."""
    fields = output if isinstance(output, dict) else {}
    if isinstance(url := fields.get("video_url"), str):
        return url
    if isinstance(fields.get("video_base64"), str):
        return None
    if path := fields.get("video_path"):
        hint = "copy it from there, or ask for another sink (output.sink)"
        raise ClientError(f"the video is on the worker's volume, as {path}", code="no_video", hint=hint)
    raise ClientError("the job's answer holds no video", code="no_video")


def content_of(output: Mapping[str, Any]) -> bytes:
    """Return the video inside the answer. Raises ClientError if its base64 text is damaged."""
    try:
        return base64.b64decode(output["video_base64"], validate=True)
    except binascii.Error as error:
        raise ClientError(f"the video in the answer is damaged: {error}", code="damaged") from error


class VideoWriter(Protocol):
    """Writes a video in pieces."""

    def write(self, piece: bytes, /) -> None:
        """Write the next piece."""
        ...

    def done(self, length: int | None = None) -> Download:
        """Check the video, move it to its path and return it. Raises ClientError."""
        ...


@contextmanager
def save_video(path: str | os.PathLike[str], output: Mapping[str, Any]) -> Iterator[VideoWriter]:
    """Write a video to a temporary file beside `path` and move it there when it is complete."""
    target = Path(path)
    try:
        # Remove temporary files of downloads that were killed.
        sweep(target.parent, target.name)
        with part_in(target.parent, target.name) as part:
            yield _VideoWriter(part, target, output)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ClientError(f"cannot write {target}: {reason}", code="bad_file") from error


class _VideoWriter:
    def __init__(self, part: Part, target: Path, output: Mapping[str, Any]) -> None:
        self._part, self._target, self._output = part, target, output
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, piece: bytes, /) -> None:
        self._hash.update(piece)
        self._size += len(piece)
        self._part.file.write(piece)

    def done(self, length: int | None = None) -> Download:
        digest, expected_digest = self._hash.hexdigest(), self._output.get("sha256")
        if isinstance(expected_digest, str) and expected_digest.lower() != digest:
            raise ClientError(
                f"the video's SHA-256 is {digest}, but the worker's answer has {expected_digest}",
                code="damaged",
                hint="download it again",
            )
        for expected in (length, self._output.get("bytes")):
            if isinstance(expected, int) and expected != self._size:
                raise ClientError(
                    f"received {self._size} of {expected} bytes of the video", code="damaged", hint="download it again"
                )
        self._part.name(self._target, replace=True)
        return Download(self._target, digest, self._size)

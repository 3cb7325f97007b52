"""Jobs that are broken or mean harm, by what is wrong with them; test_hostile_jobs.py gives each to a worker."""

from __future__ import annotations

import base64
import gzip
import io
import math
import struct
import wave
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from loopback import Script, reply, trickle
from PIL import Image

#: Stands in for a server on the public internet; the worker of these tests may fetch from it, and from nowhere else.
PUBLIC = "127.0.0.2"
#: In queries, keys and bodies; no answer may hold it.
SECRET = "s3cr3tsentinel"
QUERY = f"/media?X-Amz-Signature={SECRET}"
#: What the worker of these tests lets an address bring.
MOST_BYTES, MOST_PIXELS, MOST_SECONDS = 2_000_000, 1_000_000, 60.0


@dataclass(frozen=True)
class Case:
    """One job, as the difference to a good one."""

    what: str
    #: Fields of `input`; None takes one away.
    changes: Mapping[str, Any] = field(default_factory=dict)
    #: Fields beside `input`.
    beside: Mapping[str, Any] = field(default_factory=dict)
    #: What a server answers whose URL stands for `{url}` in the fields, and for `{port}` its port.
    script: Script | None = None
    #: The worker allows little time.
    hasty: bool = False
    #: The whole job, in place of all the above.
    job: Mapping[str, Any] | None = None


def data(content: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture(size: tuple[int, int] = (64, 64), form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 128).save(stream, form, **options)
    return stream.getvalue()


def voice(seconds: float = 0.2, rate: int = 16_000) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(int(seconds * rate)) / 9) * 9000).astype("<i2").tobytes())
    return stream.getvalue()


def good() -> dict[str, Any]:
    return {
        "reference_image": data(picture(), "image/png"),
        "audio_1": data(voice(), "audio/wav"),
        "prompt": "a woman speaks",
        "num_frames": 5,
    }


def image(what: str, content: bytes) -> Case:
    return Case(what, {"reference_image": data(content)})


def sound(what: str, content: bytes) -> Case:
    return Case(what, {"audio_1": data(content)})


def planned(what: str, content: bytes) -> Case:
    return Case(what, {"audio_1": data(content), "action": "plan"})


def url(what: str, address: str, script: Script | None = None, **more: Any) -> Case:
    return Case(what, {"reference_image": address}, script=script, **more)


def served(what: str, script: Script, **more: Any) -> Case:
    return url(what, "{url}", script, **more)


def moved(what: str, location: str) -> Case:
    return served(what, reply(b"", f"Location: {location}", status="302 Found"))


def _store(**changes: Any) -> dict[str, Any]:
    store = {"accessId": f"id-{SECRET}", "accessSecret": SECRET, "bucketName": "films"}
    return {"s3Config": {name: value for name, value in {**store, **changes}.items() if value is not None}}


def _bomb() -> bytes:
    """A PNG of few bytes that claims 60000 x 60000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _wav(kind: int, channels: int, rate: int, bits: int, samples: bytes) -> bytes:
    frame = channels * bits // 8
    header = struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits)
    body = b"fmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def _pages() -> bytes:
    stream = io.BytesIO()
    pages = [Image.new("RGB", (8, 8)) for _ in range(20)]
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    return stream.getvalue()


def _icon(inner: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def _animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def _numbers() -> Iterator[Case]:
    for value, said in (
        ("100", 'text, `"100"`'),
        (True, "`true`"),
        (0, "0"),
        (-1, "-1"),
        (202, "202, one more than allowed"),
        (2.5, "2.5"),
        (1e308, "1e308"),
        (math.nan, "NaN"),
        (math.inf, "infinity"),
        (10**400, "a number of 401 digits"),
        ([5], "a list"),
    ):
        yield Case(f"`num_frames` is {said}", {"num_frames": value})
    for name, value, said in (
        ("seed", -2, "-2"),
        ("seed", 2**63, "2^63"),
        ("fps", 0, "0"),
        ("fps", 1e-300, "1e-300"),
        ("fps", 0.5, "0.5"),
        ("fps", math.nan, "NaN"),
        ("fps", 1e9, "1e9"),
        ("sampling_steps", 1, "1"),
        ("guidance_scale", -math.inf, "minus infinity"),
        ("guidance_scale", 1e6, "1e6"),
        ("turbo", "yes", 'text, `"yes"`'),
    ):
        yield Case(f"`{name}` is {said}", {name: value})


def _private() -> Iterator[Case]:
    for host, said in (
        ("127.0.0.1", "this machine"),
        ("2130706433", "this machine as a decimal number"),
        ("0177.0.0.1", "this machine in octal"),
        ("0x7f000001", "this machine in hexadecimal"),
        ("127.1", "this machine, shortened"),
        ("0.0.0.0", "any address of this machine"),
        ("localhost", "this machine by name"),
        ("[::1]", "this machine by IPv6"),
        ("[::ffff:127.0.0.1]", "IPv4 mapped into IPv6"),
        ("[64:ff9b::7f00:1]", "IPv4 translated to IPv6"),
        ("[2002:7f00:1::]", "IPv4 within 6to4"),
        ("10.0.0.1", "a private network"),
        ("169.254.169.254", "a cloud's metadata"),
        ("100.64.0.1", "a carrier's network"),
        ("[fd00:ec2::254]", "a cloud's metadata by IPv6"),
        ("224.0.0.1", "multicast"),
    ):
        yield url(f"a URL of {said}: `{host}`", f"http://{host}{QUERY}")


def _overrides() -> Iterator[Case]:
    for override in (
        "model=multitalk",
        "sink.folder=/etc",
        "hydra.run.dir=/etc",
        "access.schemes=[path]",
        "+secret=1",
        "~sampler",
        "sampler.steps=${oc.env:HOME}",
        "sampler=standard,turbo",
        "sampler@x=turbo",
        "sampler.steps=0",
        "sampler.steps=1e9",
        "sampler.steps=1000",
        "sampler.shift=inf",
        "sampler.shift=1e-308",
        "guidance.text_scale=1e308",
        "guidance.audio_scale=nan",
        "continuation.frames=77",
        "resolution=huge",
        "guidance=[",
        "cache={}",
    ):
        yield Case(f"`overrides` holds `{override}`", {"overrides": [override]})
    yield Case("`overrides` has 33 entries", {"overrides": ["sampler=turbo"] * 33})
    yield Case("an override of 201 letters", {"overrides": ["a" * 201]})


def _names() -> Iterator[Case]:
    for name, said in (
        ("../../etc/passwd.mp4", "folders above, `../../etc/passwd.mp4`"),
        ("/etc/passwd.mp4", "an absolute path"),
        ("..\\windows.mp4", "a backslash"),
        (".hidden.mp4", "a dot in front"),
        ("a\nb.mp4", "a line break"),
        ("a\x00b.mp4", "a NUL"),
        ("a\u202eb.mp4", "a mark that turns the direction of writing"),
        ("a\ud800.mp4", "half of a letter"),
        ("a.exe", "another ending"),
        ("ä" * 150 + ".mp4", "304 bytes in 154 letters"),
        ("a" * 300 + ".mp4", "304 letters"),
        (7, "a number"),
    ):
        yield Case(f"a file name: {said}", {"output": {"filename": name}})


def _regions() -> Iterator[Case]:
    for box, said in (
        ([0, 0, 1], "three numbers"),
        ([0, 0, 1, math.nan], "NaN in it"),
        ([0.5, 0, 0.5, 1], "no width"),
        ([0.9, 0, 0.1, 1], "its edges exchanged"),
        ([100, 100, 200, 200], "all of it outside of the picture"),
        ([-50, -50, -10, -10], "negative pixels only"),
        (["0", "0", "1", "1"], "text for numbers"),
    ):
        yield Case(f"a box with {said}", {"region_1": {"box": box}})
    yield Case("a box with edges of 1e300", {"region_1": {"box": [0, 0, 1e300, 1e300]}, "action": "plan"})
    yield Case("a region with box and mask", {"region_1": {"box": [0, 0, 1, 1], "mask": data(picture())}})
    yield Case("a mask of another size", {"region_1": {"mask": data(picture((32, 32)))}})
    yield Case("a mask that is black all over", {"region_1": {"mask": data(_black())}})
    yield Case("a mask that is no picture", {"region_1": {"mask": data(b"mask" * 30)}})
    overlapping = {"region_1": {"box": [0, 0, 0.7, 1]}, "region_2": {"box": [0.3, 0, 1, 1]}}
    yield Case("two boxes that overlap", {"audio_2": data(voice()), **overlapping, "action": "plan"})


def _timelines() -> Iterator[Case]:
    first = {"from": 0, "text": "a woman speaks"}
    for entries, said in (
        ([], "no entries"),
        ([first] * 65, "65 entries"),
        ([{"from": 1, "text": "a"}], "nothing at 0"),
        ([first, {"from": 3, "text": "a"}, {"from": 2, "text": "b"}], "entries that are not sorted"),
        ([first, {"from": 0, "text": "a"}], "the same time twice"),
        ([first, {"from": -1, "text": "a"}], "a negative time"),
        ([first, {"from": 3000, "text": "a"}], "a time after the end"),
        ([first, {"from": 0.1, "text": "a"}], "two entries for one window"),
        ([first, {"from": 1, "from_frame": 8, "text": "a"}], "seconds and a frame"),
        ([first, {"from": math.nan, "text": "a"}], "NaN as a time"),
        ([first, {"from": 1, "text": " "}], "an empty text"),
        ([first, {"from": 1, "txt": "a"}], "an unknown key"),
    ):
        yield Case(f"prompts by time with {said}", {"prompt": None, "prompts": entries})
    yield Case("prompts by time beside `prompt`", {"prompts": [first]})
    pictures = [{"from": 0, "image": data(picture())}, {"from": 0.1, "image": data(b"picture" * 20)}]
    yield Case("a picture by time that is no picture", {"reference_image": None, "reference_images": pictures})
    other_style = ["continuation.style=multitalk"]
    yield Case(
        "pictures by time for windows that do not see them",
        {"reference_image": None, "reference_images": pictures[:1], "overrides": other_style},
    )


def _black() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (64, 64), 0).save(stream, "PNG")
    return stream.getvalue()


def _complaint(code: str, status: str) -> bytes:
    return reply(f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode(), status=status)


def _endless(connection: Any) -> None:
    connection.sendall(reply(length=None))
    while True:
        connection.sendall(bytes(100_000))


#: Left and right of 0.2 s, one the other's negative.
OPPOSITE = (8000 * np.sin(np.arange(3200) / 20)[:, None] * [1, -1]).astype("<i2").tobytes()
WAV, PNG = voice(), picture()
NOISE = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
HTML = f"<!doctype html><title>Sign in</title>{SECRET}".encode() * 3
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n" * 3
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
NAN = np.full(4000, np.nan, "<f4").tobytes()


def _deep(levels: int) -> Any:
    value: Any = "a woman speaks"
    for _ in range(levels):
        value = [value]
    return value


def _wrapped(content: bytes) -> str:
    text = base64.urlsafe_b64encode(content).decode().rstrip("=")
    return "\n".join(text[start : start + 76] for start in range(0, len(text), 76))


#: Heading -> its cases.
def _dialogues() -> Iterator[Case]:
    alone: dict[str, Any] = {"audio_1": None}
    for script, said in (
        (7, "a number"),
        (" \n", "blanks"),
        ("a: " + "b" * 20_001, "20001 letters and more"),
        ("Hello there", "a line without a name"),
        ("anna: Hello.\n(pause 99999)", "a pause of a day"),
        ("@anna pitch=3\nanna: Hello.", "an unknown key of a person"),
        ("@anna box=0,0,9\nanna: Hello.", "a box of three numbers"),
        ("@anna voice=../../etc\nanna: Hello.", "a voice that leads elsewhere"),
        ("@anna language=xx\nanna: Hello.", "a language that nobody speaks"),
        ("# nobody", "a comment only"),
    ):
        yield Case(f"a script of {said}", {**alone, "script": script})
    yield Case("a script beside a voice", {"script": "anna: Hello."})
    call = data(voice(), "audio/wav")
    yield Case("a recording that is a number", {**alone, "voices": 7})
    yield Case("a recording that is a path", {**alone, "voices": "call.wav"})
    by_channel = {"overrides": ["diariser=channels"]}
    yield Case("a recording that is no sound", {**alone, "voices": data(b"sound" * 20), **by_channel})
    yield Case("a recording beside a voice", {"voices": call})
    yield Case("a recording beside a script", {**alone, "voices": call, "script": "anna: Hello."})
    for people in (0, 9, 1.5, "two", True):
        yield Case(f"a recording of {people!r} people", {**alone, "voices": call, "people": people})
    yield Case("two people of one channel", {**alone, "voices": call, **by_channel})
    yield Case("an unknown diariser", {**alone, "voices": call, "overrides": ["diariser=ears"]})
    yield Case("an unknown filter of voices", {"overrides": ["vocals=karaoke"]})
    yield Case("an unknown finder of people", {"overrides": ["regions=noses"]})
    two = {"audio_2": call, "overrides": ["regions=drawn"]}
    yield Case("two voices, and nobody in the picture", two)
    yield Case("a region that is a word", {"region_1": "left"})
    yield Case("a soundtrack that is a number", {"soundtrack": 7})
    yield Case("a soundtrack that is a path", {"soundtrack": "music.wav"})
    yield Case("a soundtrack that is no sound", {"soundtrack": data(b"sound" * 20)})
    yield Case("a soundtrack that is too long", {"soundtrack": data(voice(61, 8_000))})


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "The job itself": lambda: iter(
        [
            Case("nothing", job={}),
            Case("no `input`", job={"id": "job-1"}),
            Case("`input` is text", job={"id": "job-1", "input": "generate"}),
            Case("`input` is a list", job={"id": "job-1", "input": [1]}),
            Case("`input` is JSON text", job={"id": "job-1", "input": '{"prompt": "a woman speaks"}'}),
            Case("`input` within `input`", job={"id": "job-1", "input": {"input": {"prompt": "a woman speaks"}}}),
            Case("a field of another worker, `image_url`", {"image_url": "https://example.org/a.png"}),
            Case("a field of another worker, `num_inference_steps`", {"num_inference_steps": 20}),
            Case("a field of another worker, `width`", {"width": 832}),
            Case("a field of another worker, `duration`", {"duration": 5}),
            Case("a prompt of lists, 200 deep", {"prompt": _deep(200)}),
            Case("20000 speakers", {"audio_1": None, "speakers": [{"silence": True}] * 20_000}),
            Case("a box of 300000 numbers", {"region_1": {"box": [1] * 300_000}}),
            Case("a million values", {"prompt": [[1] * 999] * 999}),
            Case("an id that leads elsewhere, `../../etc`", beside={"id": "../../etc"}),
            Case("a misspelt field, `refrence_image`", {"refrence_image": "a"}),
            Case("a field that is like none, `foo`", {"foo": 1}),
            Case("a field of the letters `__proto__`", {"__proto__": {"admin": True}}),
            Case("a field whose name holds a line break", {"a\nb": 1}),
            Case("a field beside `input`", beside={"prompt": "a woman speaks"}),
            Case("`s3Config` within `input`", {"s3Config": {"accessSecret": SECRET}}),
            Case("a key in the place of a name in `s3Config`", beside={"s3Config": {SECRET: SECRET}}),
            Case("no picture", {"reference_image": None}),
            Case("no voice", {"audio_1": None}),
            Case("no prompt", {"prompt": None}),
            Case("an empty prompt", {"prompt": ""}),
            Case("a prompt of blanks", {"prompt": " \n\t "}),
            Case("a prompt of 10001 letters", {"prompt": "a" * 10_001}),
            Case("a prompt that is a number", {"prompt": 7}),
            Case("a prompt with half of a letter", {"prompt": "a \ud800 b"}),
            Case("an unknown choice near a known one, `audio_type: parallel`", {"audio_type": "parallel"}),
            Case("an unknown action", {"action": "delete"}),
            Case("`health_check` beside another action", {"health_check": True, "action": "plan"}),
            Case("an unknown resolution", {"resolution": "9000p"}),
            Case("a resolution that is an override, `small model=x`", {"resolution": "small model=x"}),
        ]
    ),
    "Numbers": _numbers,
    "Scripts, recordings and people": _dialogues,
    "Prompts and pictures by time": _timelines,
    "Who speaks": lambda: iter(
        [
            Case("`speakers` beside `audio_1`", {"speakers": [{"silence": True}]}),
            Case("no speakers", {"audio_1": None, "speakers": []}),
            Case("nine speakers", {"audio_1": None, "speakers": [{"silence": True}] * 9}),
            Case("a speaker with voice and silence", {"audio_1": None, "speakers": [{"audio": "a", "silence": True}]}),
            Case("a speaker with neither", {"audio_1": None, "speakers": [{}]}),
            Case("a region without its voice", {"region_2": {"box": [0, 0, 1, 1]}}),
            Case("a duration of 0", {"audio_1": None, "speakers": [{"audio": data(voice()), "duration": 0}]}),
            Case("a delay of two hours", {"audio_1": None, "speakers": [{"audio": data(voice()), "delay": 7200}]}),
            Case(
                "a channel that has no such name", {"audio_1": None, "speakers": [{"audio": "a", "channel": "middle"}]}
            ),
            Case("a start of a silent person", {"audio_1": None, "speakers": [{"silence": True, "start": 1}]}),
            Case(
                "both speakers silent",
                {"audio_1": None, "speakers": [{"silence": True}] * 2, "action": "plan"},
            ),
        ]
    ),
    "Regions": _regions,
    "Overrides": _overrides,
    "Where the video goes": lambda: iter(
        [
            *_names(),
            Case("a sink that the worker does not offer, `disk`", {"output": {"sink": "disk"}}),
            Case("a sink that is a path", {"output": {"sink": "../disk"}}),
            Case("`s3Config` without its secret", beside=_store(accessSecret=None)),
            Case("`s3Config` with an empty secret", beside=_store(accessSecret="")),
            Case("an endpoint with a password", beside=_store(endpointUrl=f"https://user:{SECRET}@s3.example.com")),
            Case("an endpoint by FTP", beside=_store(endpointUrl="ftp://s3.example.com")),
            Case("an endpoint on this machine", beside=_store(endpointUrl="http://127.0.0.1:9000")),
            Case("an endpoint on this machine, in decimal", beside=_store(endpointUrl="http://2130706433:9000")),
            Case("an endpoint at a cloud's metadata", beside=_store(endpointUrl="http://169.254.169.254")),
            Case(
                "a bucket's name that cannot be one",
                beside=_store(bucketName="a b/..", endpointUrl="{url}"),
                script=b"",
            ),
            Case(
                "a store that does not know the key",
                beside=_store(endpointUrl="{url}"),
                script=_complaint("InvalidAccessKeyId", "403 Forbidden"),
            ),
        ]
    ),
    "Addresses": lambda: iter(
        [
            url("a path", "/etc/passwd"),
            url("a file URL", "file:///etc/passwd"),
            url("a path of Windows", "C:\\secret\\a.png"),
            url("FTP", "ftp://example.com/a.png"),
            url("another protocol", "gopher://127.0.0.1:6379/_INFO"),
            *_private(),
            url("user and password in a URL", f"https://user:{SECRET}@example.com/a.png"),
            url("port 0", "http://example.com:0/a.png"),
            url("port 99999", "http://example.com:99999/a.png"),
            url("no host", "http:///a.png"),
            url("a line break in a URL", "http://example.com/a\r\nHost: b"),
            url("a URL of 9000 letters", "http://example.com/" + "a" * 9000),
            moved("a redirect to this machine", "http://127.0.0.1/"),
            moved("a redirect to a cloud's metadata", "http://169.254.169.254/latest/meta-data/"),
            moved("a redirect to a file", "file:///etc/passwd"),
            moved("a redirect with a password", f"http://user:{SECRET}@{PUBLIC}/"),
            moved("redirects without end", QUERY),
            Case("`s3://` of a bucket that the worker does not open", {"audio_1": f"s3://payroll/{SECRET}.wav"}),
            Case("`s3://` with a key in it", {"audio_1": f"s3://id:{SECRET}@films/a.wav"}),
            Case("`s3://` without a file", {"audio_1": "s3://films/"}),
            Case(
                "`s3://` with folders above, `s3://films/../../etc/passwd`",
                {"audio_1": "s3://films/../../etc/passwd"},
                _store(endpointUrl="{url}"),
                _complaint("NoSuchKey", "404 Not Found"),
            ),
            Case(
                "`s3://` that the job's own keys may not read",
                {"audio_1": "s3://films/a.wav"},
                _store(endpointUrl="{url}"),
                _complaint("AccessDenied", "403 Forbidden"),
            ),
        ]
    ),
    "Servers": lambda: iter(
        [
            served("404", reply(HTML, status=f"404 {SECRET}")),
            served("403, as of a presigned URL that has run out", reply(HTML, status="403 Forbidden")),
            served("500", reply(HTML, status="500 Internal Server Error")),
            served("no HTTP", f"220 mail.example ESMTP {SECRET}\r\n".encode()),
            served("an empty body", reply(b"")),
            served("a body that ends too early", reply(PNG, length=len(PNG) + 1)),
            served("a body that is longer than announced", reply(PNG, length=len(PNG) - 1)),
            served("two lengths", reply(PNG, "Content-Length: 5")),
            served("a length that is none", reply(PNG, "Content-Length: many", length=None)),
            served("a file that is announced as too large", reply(b"x", length=10**12)),
            served("a file without end", _endless),
            served("a gzip bomb", reply(gzip.compress(bytes(20_000_000)), "Content-Encoding: gzip")),
            served("broken gzip", reply(PNG, "Content-Encoding: gzip")),
            served("an encoding that was not asked for", reply(PNG, "Content-Encoding: br")),
            served("a server that sends a byte now and then", trickle(reply(b"x", length=9999), b"x"), hasty=True),
            served("a page for signing in, called a picture", reply(HTML, "Content-Type: image/png")),
        ]
    ),
    "Texts in the place of files": lambda: iter(
        [
            url("an empty address", ""),
            url("a `data:` URL without base64", "data:image/png,abc"),
            url("a `data:` URL of broken base64", "data:image/png;base64,abc!"),
            url("a `data:` URL of nothing", "data:image/png;base64,"),
            url("a `data:` URL of HTML", data(HTML, "text/html")),
            url("base64 that was cut off", base64.b64encode(NOISE[:9000]).decode()[:-3]),
            url("base64 of another alphabet", base64.urlsafe_b64encode(NOISE[:9000]).decode()),
            url("base64 with another character in it", base64.b64encode(NOISE[:9000]).decode() + "!"),
            url("base64 of twelve letters", "iVBORw0KGgoA"),
            url("a URL without its scheme", "www.example.org/anna.png"),
            url("nothing but blanks", " \n "),
            Case(
                "a picture as base64 of the URL-safe alphabet, unpadded, in broken lines",
                {"reference_image": _wrapped(picture()), "action": "plan"},
            ),
            url("base64 of three million bytes", base64.b64encode(NOISE).decode()),
        ]
    ),
    "Pictures": lambda: iter(
        [
            image("a picture bomb: 60000 x 60000 pixels in a few hundred bytes", _bomb()),
            image("more pixels than allowed", picture((1200, 1000))),
            image("a PNG that ends too early", picture((400, 400), compress_level=0)[:5000]),
            image("a JPEG that ends too early", picture((400, 400), "JPEG")[:300]),
            image("half a JPEG", picture((400, 400), "JPEG")[:1500]),
            Case(
                "a JPEG without its last two bytes",
                {"reference_image": data(picture((400, 400), "JPEG")[:-2]), "action": "plan"},
            ),
            image("a TIFF of twenty pages", _pages()),
            image("an icon with 1200 x 1200 pixels inside", _icon(picture((1200, 1200)))),
            image("a web page", HTML),
            image("an animated GIF", _animated()),
            image("an SVG that reads a file", SVG),
            image("a PDF", picture((64, 64), "PDF")),
            image("floating-point pixels", picture((64, 64), "TIFF", "F")),
            image("a voice for a picture", WAV),
            image("noise", NOISE[:5000]),
            Case("a picture of 1 x 1 pixel", {"reference_image": data(picture((1, 1))), "action": "plan"}),
            Case("a picture of 4000 x 1 pixels", {"reference_image": data(picture((4000, 1))), "action": "plan"}),
        ]
    ),
    "Voices": lambda: iter(
        [
            sound("a picture for a voice", PNG),
            sound("text for a voice", b"no voice at all " * 9),
            sound("a WAV without samples", _wav(1, 1, 16_000, 16, b"")),
            sound("a WAV of 0 Hz", _wav(1, 1, 0, 16, bytes(3200))),
            sound("a WAV of 0 channels", _wav(1, 0, 16_000, 16, bytes(3200))),
            sound("a WAV of samples that are no numbers", _wav(3, 1, 16_000, 32, NAN)),
            sound("a voice of 61 seconds where 60 are allowed", voice(61, 8000)),
            sound("a FLAC that is noise", b"fLaC" + NOISE[:5000]),
            sound("an MP4 that ends too early", b"\0\0\0\x20ftypisom" + bytes(20) + b"\0\0\x10\0moov" + NOISE[:300]),
            sound("a playlist that reads a file", PLAYLIST),
            sound("a list of files for FFmpeg", CONCAT),
            Case("a voice that begins behind its end", {"audio_1": data(voice()) + "#start=9"}),
            Case("the right channel of a mono voice", {"audio_1": data(voice()) + "#right"}),
            Case("the second track of a file with one", {"audio_1": data(voice()) + "#track=2"}),
            Case("a duration that is no number behind the address", {"audio_1": data(voice()) + "#duration=long"}),
            planned("a WAV that ends too early", voice(1.0)[:20_000]),
            planned("a WAV of 1 Hz", _wav(1, 1, 1, 16, bytes(40))),
            planned("a stereo voice of opposite phase", _wav(1, 2, 16_000, 16, OPPOSITE)),
            planned("a stereo voice of 44.1 kHz", _wav(1, 2, 44_100, 16, bytes(40_000))),
            planned("a voice of silence", _wav(1, 1, 16_000, 16, bytes(3200))),
        ]
    ),
}

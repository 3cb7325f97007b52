"""eSpeak NG: offline, in many languages, and clearly a robot. Run as a separate program, because it is under GPL-3."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from engine import hookimpl
from engine.cancel import check
from engine.components import CancelToken, Samples, Speech
from engine.config import SpeechConfig, within
from engine.data import Voice
from engine.errors import ConfigError, RequestError
from engine.machine import espeak_library
from engine.plugin.register import Register

#: Variants of a language's voice, one for each person.
_VARIANTS = ("f3", "m3", "f2", "m7", "f4", "m1", "f5", "m5")
#: Maximum seconds for one turn.
_LONGEST = 120.0
#: What programs print about a voice that they do not know is not repeated: it has paths.
_UNKNOWN = "eSpeak NG has no voice {!r}"


@dataclass
class EspeakConfig(SpeechConfig):
    """eSpeak NG, a robot's voice in many languages: the extra [speech] or the program `espeak-ng`; GPL-3, run apart."""

    name: str = "espeak"
    #: Language of people without one in the script: "en", "en-us", "de", "cmn" ... (`espeak-ng --voices` lists them).
    language: str = "en"
    #: Words per minute at speed 1.
    words: int = field(default=160, metadata=within(80, 400))


class Espeak:
    """Speaks with eSpeak NG: the library of the package `espeakng-loader` if installed, else the program `espeak-ng`.

    The library runs in a process of its own, so that the engine loads no code under GPL.
    """

    def __init__(self, config: EspeakConfig) -> None:
        self._language = config.language
        self._words = config.words

    def check(self) -> None:
        """Raise ConfigError if there is neither the package nor the program."""
        if not _packaged() and shutil.which("espeak-ng") is None:
            raise ConfigError(
                "speech=espeak needs eSpeak NG, which is not installed",
                field="speech",
                hint="pip install 'multitalk-engine[speech]', or apt-get install espeak-ng",
            )

    def say(self, text: str, voice: Voice, *, cancel: CancelToken | None = None) -> tuple[Samples, int]:
        """Return `text` as samples at 22050 Hz. Raises RequestError for an unknown language or voice, and Cancelled."""
        import numpy as np

        language = (voice.language or self._language).lower()
        self.check()
        name = voice.name or _VARIANTS[voice.number % len(_VARIANTS)]
        if name not in _variants():
            hint = "`espeak-ng --voices=variant` lists the voices, such as f3 and m3"
            raise RequestError(_UNKNOWN.format(name), field="voice", hint=hint)
        # Between a language and its variant is a plus sign, so neither contains one.
        language = language.replace("+", " ")
        words = str(min(450, max(80, round(self._words * voice.speed))))
        full = f"{language}+{name}"
        if _packaged():
            code, out = _run([sys.executable, "-I", str(Path(espeak_library.__file__)), full, words], text, cancel)
            head, _, data = out.partition(b"\n")
            rate = int(head) if code == 0 else 0
        else:
            code, out = _run(["espeak-ng", "-b", "1", "-v", full, "-s", words, "--stdin", "--stdout"], text, cancel)
            # The header of a stream does not know its length: 44 bytes, with the rate at byte 24.
            rate, data = int.from_bytes(out[24:28], "little"), out[44:]
        if code != 0 or not data:
            hint = "`espeak-ng --voices` lists the languages, such as en, en-us, de and cmn"
            raise RequestError(f"eSpeak NG does not speak {language!r}", field="language", hint=hint)
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / np.float32(32768)
        return samples, rate


def _packaged() -> bool:
    return find_spec("espeakng_loader") is not None


@functools.cache
def _variants() -> frozenset[str]:
    """Return the names of all variants; eSpeak NG speaks with its usual voice if it does not know one."""
    if (package := find_spec("espeakng_loader")) is not None and package.origin is not None:
        return frozenset(path.name for path in (Path(package.origin).parent / "espeak-ng-data/voices/!v").iterdir())
    _, out = _run(["espeak-ng", "--voices=variant"], "", None)
    return frozenset(re.findall(r"!v/(\S+)", out.decode("utf-8", "replace")))


def _run(command: list[str], text: str, cancel: CancelToken | None) -> tuple[int, bytes]:
    """Return the exit status and stdout of a program that reads `text`."""
    check(cancel, "speak")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    until = time.monotonic() + _LONGEST
    pending: bytes | None = text.encode()
    try:
        while True:
            try:
                out, _ = process.communicate(pending, timeout=0.1)
                return process.returncode, out
            except subprocess.TimeoutExpired:
                pending = None
                check(cancel, "speak")
                if time.monotonic() > until:
                    raise ConfigError("eSpeak NG does not answer", field="speech", hint="shorten the line") from None
    finally:
        process.kill()
        process.communicate()


@hookimpl
def register_speech(register: Register[Speech]) -> None:
    register(Espeak, EspeakConfig)

"""Speaks with the eSpeak NG library of the package `espeakng-loader`: a program of its own, run by `speech=espeak`.

`python engine/machine/espeak_library.py VOICE SPEED` reads UTF-8 text from stdin and writes raw samples, int16 mono, to
stdout after one line with their rate. eSpeak NG is under GPL-3, so the engine never loads it into its own process.
"""

from __future__ import annotations

import ctypes
import sys

#: Constants of speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, espeakINITIALIZE_DONT_EXIT, espeakRATE, POS_CHARACTER and
#: espeakCHARS_UTF8.
_SYNCHRONOUS, _DONT_EXIT, _RATE, _CHARACTER, _UTF8 = 2, 0x8000, 1, 1, 1


def main(voice: str, speed: int, text: bytes) -> int:
    """Write `text`, spoken by `voice`; return 1 if the library does not know the voice, 2 if it does not start."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _DONT_EXIT)
    if rate <= 0:
        return 2
    found: list[bytes] = []

    def keep(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if samples and count > 0:
            found.append(ctypes.string_at(samples, 2 * count))
        return 0

    # Kept in a variable as long as the library calls it.
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(keep)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        return 1
    # Breath is noise, which it would seed by the clock.
    library.espeak_ng_SetRandSeed(1)
    library.espeak_SetParameter(_RATE, speed, 0)
    library.espeak_Synth(text + b"\0", ctypes.c_size_t(len(text) + 1), 0, _CHARACTER, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    sys.stdout.buffer.write(f"{rate}\n".encode() + b"".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer.read()))

"""Files in the format of compiled libraries, with nothing in them but what they need."""

from __future__ import annotations

import struct
from pathlib import Path


def library(path: Path, *needs: str) -> Path:
    """Write an ELF file that needs libraries of these names, and is nothing else: headers, names, a dynamic section."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needs)
    place = {name: names.index(name.encode()) for name in needs}
    code, address = 64 + 2 * 56, 0x10000
    entries = [(1, place[name]) for name in needs] + [(5, address + code), (10, len(names)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    whole = code + len(names) + len(dynamic)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, address, address, whole, whole, 4096)
    start = code + len(names)
    table = struct.pack("<IIQQQQQQ", 2, 4, start, address + start, 0, len(dynamic), len(dynamic), 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + load + table + names + dynamic)
    return path

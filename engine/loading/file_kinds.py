"""The first bytes of a file -> its kind if it is not weights, and a hint."""

from __future__ import annotations

from pathlib import Path

#: First bytes (text in lower case), the kind of the file, and a hint.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer: the repository was cloned without its large files",
        "run 'git lfs pull' there, or download the file itself",
    ),
    (
        b"<!doctype",
        "a web page, perhaps a login or an error page",
        "download the file itself, with a token if it needs one",
    ),
    (
        b"<html",
        "a web page, perhaps a login or an error page",
        "download the file itself, with a token if it needs one",
    ),
    (b"<?xml", "an XML document, perhaps a server's error", "download the file itself"),
    (b"gguf", "a GGUF file", "name it .gguf and choose quant=gguf"),
    (b"\x1f\x8b", "an archive (gzip)", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "an archive (7z)", "unpack it"),
    (b"rar!", "an archive (rar)", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "an archive (zstd)", "unpack it"),
    (b"\xfd7zxz\x00", "an archive (xz)", "unpack it"),
    (b"\x89hdf", "an HDF5 file, a format of TensorFlow", "use the safetensors file of the same model"),
    (b"\x08\x07", "an ONNX model", "use the safetensors file of the same model"),
    (b"\x08\x08", "an ONNX model", "use the safetensors file of the same model"),
    (b"\x80\x02", "a PyTorch pickle (.pt, .pth, .ckpt)", "use the safetensors file of the same model"),
    (b"\x80\x03", "a PyTorch pickle (.pt, .pth, .ckpt)", "use the safetensors file of the same model"),
    (b"\x80\x04", "a PyTorch pickle (.pt, .pth, .ckpt)", "use the safetensors file of the same model"),
    (b"\x80\x05", "a PyTorch pickle (.pt, .pth, .ckpt)", "use the safetensors file of the same model"),
    (b'{"error"', "a server's error", "download the file itself, with a token if it needs one"),
    (b"invalid username or password", "a server's error", "download the file with a token that has access"),
    (b"entry not found", "a server's error", "check the file's name, and download it again"),
    (b"access to model", "a server's error", "accept the model's terms, and download the file with a token"),
)


def what_is(path: Path) -> tuple[str, str] | None:
    """Return a file's kind by its first bytes, and a hint; None if it may be weights or cannot be read.

    Zip archives by PyTorch are recognised as such.
    """
    try:
        with path.open("rb") as file:
            # Enough for the first entry's name in a PyTorch archive, which begins with the file's name.
            head = file.read(512)
            size = path.stat().st_size
    except OSError:
        return None
    if head[:4] == b"PK\x03\x04":
        if b"/data.pkl" in head or b"/.format_version" in head or b"/.data/" in head or b"/byteorder" in head:
            return "a PyTorch archive (.pt, .pth, .bin)", "use the safetensors file of the same model"
        return "a zip archive", "unpack it"
    if head and size > len(head) and not head.strip(b"\0"):
        return "only zeros: a download that reserved space and did not finish", "download it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(((what, hint) for begin, what, hint in _BEGINNINGS if text.startswith(begin)), None)

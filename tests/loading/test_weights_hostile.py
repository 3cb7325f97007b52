"""Files of weights that are made to harm: code beside a tokenizer, headers with counts that no file has."""

from __future__ import annotations

import ast
import json
import shutil
import struct
import time
from pathlib import Path

import pytest

from engine.errors import SourceError
from engine.loading.gguf_header import read_header
from engine.loading.layout import gguf_names
from engine.loading.model import load_tokenizer

ROOT = Path(__file__).parents[2]
TINY = ROOT / "engine" / "weights" / "tiny"
EVIL = "import os\nopen(os.environ['PWNED'], 'w').close()\nclass Evil:\n    pass\n"


@pytest.mark.parametrize("known", [True, False], ids=["beside a known class", "alone"])
def test_code_beside_a_tokenizer_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(TINY / "tokenizer", folder)
    (folder / "evil.py").write_text(EVIL)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    if not known:
        told["tokenizer_class"] = "Evil"
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    monkeypatch.setenv("PWNED", str(tmp_path / "pwned"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    if known:
        assert load_tokenizer(folder)("hello").input_ids
    else:
        with pytest.raises(SourceError, match="cannot be loaded as a tokenizer"):
            load_tokenizer(folder)
    assert not (tmp_path / "pwned").exists()


def test_every_class_that_is_chosen_by_a_file_is_told_to_run_no_code_of_it() -> None:
    wrong = []
    for path in [
        *(ROOT / "engine").rglob("*.py"),
        *(ROOT / "plugins").rglob("*.py"),
        *(ROOT / "scripts").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
                "from_pretrained",
                "pipeline",
            ):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                auto = ast.unparse(node.func).partition(".")[0].startswith("Auto") and "Autoencoder" not in ast.unparse(
                    node.func
                )
                if auto and said.get("trust_remote_code") != "False":
                    wrong.append(f"{path}:{node.lineno}")
                assert said.get("trust_remote_code", "False") == "False"
    assert not wrong


def header(tensors: int = 0, entries: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def entry(kind: int, rest: bytes) -> bytes:
    return text(b"a") + struct.pack("<I", kind) + rest


def tensor(*shape: int, kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return text(b"w") + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


HOSTILE = {
    "a list of 2^40 bytes": header(entries=1, rest=entry(9, struct.pack("<IQ", 0, 2**40))),
    "a list of 2^40 texts": header(entries=1, rest=entry(9, struct.pack("<IQ", 8, 2**40))),
    "a list of lists": header(entries=1, rest=entry(9, struct.pack("<IQIQ", 9, 2**16, 9, 2**16))),
    "lists that are there": header(entries=1, rest=entry(9, struct.pack("<IQ", 0, 2**22) + bytes(2**22))),
    "2^63 entries": header(entries=2**63),
    "2^63 tensors": header(tensors=2**63),
    "2^17 entries": header(entries=2**17, rest=bytes(64)),
    "a name of 2^62 bytes": header(entries=1, rest=text(b"", 2**62)),
    "a text of 2^62 bytes": header(entries=1, rest=entry(8, text(b"", 2**62))),
    "2^32 dimensions": header(tensors=1, rest=tensor(dimensions=2**32 - 1)),
    "a tensor of 2^126 values": header(tensors=1, rest=tensor(2**63, 2**63)),
    "a tensor behind the end": header(tensors=1, rest=tensor(4, offset=2**63)),
    "a tensor of an unknown kind": header(tensors=1, rest=tensor(4, kind=999)),
    "no alignment": header(entries=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "an unknown kind": header(entries=1, rest=entry(99, b"")),
    "another version": header(version=99),
    "another byte order": header(version=3 << 24),
    "nothing": b"",
    "no header": b"GGUF",
    "another file": b"PK\x03\x04" + bytes(50),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_gguf_header_that_states_what_no_file_has_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    began = time.process_time()
    with pytest.raises(SourceError, match=r"x\.gguf is (damaged: |a zip archive)"):
        gguf_names(path)
    # CPU seconds; a walk through the counts takes minutes.
    assert time.process_time() - began < 2


def test_what_the_package_writes_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    import torch

    from scripts.evaluate_tiny.quantised_folder import write_gguf

    gguf = pytest.importorskip("gguf")
    path = tmp_path / "x.gguf"
    state = {"blocks.0.ffn.0.weight": torch.randn(8, 64), "a.bias": torch.randn(5), "p": torch.randn(4, 3, 1, 2, 2)}
    write_gguf(path, state)
    expected = {
        told.name: (int(told.tensor_type), tuple(int(side) for side in told.shape[::-1]))
        for told in gguf.GGUFReader(path).tensors
    }
    assert {name: (packed.kind, packed.shape) for name, packed in read_header(path).items()} == expected
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match="damaged"):
            read_header(path)

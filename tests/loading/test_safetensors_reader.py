"""Bringing tensors from their files to their places: all of them, cast, read ahead within bounds, errors named."""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.components import Reader, Stored
from engine.errors import MissingExtra, SourceError
from engine.loading import safetensors_reader as module
from engine.loading.safetensors_reader import AheadReader, stored_tensors
from engine.plugin.manager import installed

#: Pieces so small that even these tensors are read in many, and in several spans of them.
PIECE = 64
SPAN = 3 * PIECE


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", PIECE)
    monkeypatch.setattr(module, "_SPAN", SPAN)


def content() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "wide": torch.randn(40, 7, generator=random),
        "half": torch.randn(5, 5, 3, generator=random).bfloat16(),
        "tiny": torch.randn(6, 6, generator=random).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5),
        "whole": torch.arange(33),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "exact": torch.randn(2, PIECE // 4, generator=random),
    }


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    given = content()
    paths = [tmp_path / "two.safetensors", tmp_path / "one.safetensors"]
    save_file(dict(list(given.items())[:4]), paths[0])
    save_file(dict(list(given.items())[4:]), paths[1])
    return paths


def found(files: list[Path]) -> list[Stored]:
    return [stored for file in files for stored in stored_tensors(file).values()]


def staying(files: list[Path]) -> list[Stored]:
    return [replace(stored, stays=True) for stored in found(files)]


def as_stored(stored: Stored) -> Tensor:
    return torch.empty(stored.shape, dtype=stored.dtype)


def reader_named(name: str) -> Reader:
    register = installed().readers
    return register.build(register.config(name)())


def test_headers_say_where_each_tensor_lies(files: list[Path]) -> None:
    wide = stored_tensors(files[0])["wide"]

    assert (wide.dtype, wide.shape, wide.size) == (torch.float32, (40, 7), 1120)
    assert files[0].read_bytes()[wide.offset :][: wide.size] == content()["wide"].numpy().tobytes()


@pytest.mark.parametrize("name", ["ahead", "runai", "fastsafetensors"])
def test_every_reader_brings_the_very_bytes(name: str, files: list[Path]) -> None:
    package = {"runai": "runai_model_streamer", "fastsafetensors": "fastsafetensors"}.get(name)
    if package and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    actual = content()
    expected = [stored for stored in found(files) if stored.name not in ("empty", "exact")]

    read = {stored.name: tensor for stored, tensor in reader_named(name).read(expected, as_stored)}

    assert read.keys() == actual.keys() - {"empty", "exact"}
    for key, tensor in read.items():
        assert tensor.dtype == actual[key].dtype
        assert torch.equal(tensor.view(-1).view(torch.uint8), actual[key].view(-1).view(torch.uint8)), key


@pytest.mark.parametrize("mapped", [True, False])
def test_all_sizes_and_files_come_in_the_order_in_which_they_lie(mapped: bool, files: list[Path]) -> None:
    places: dict[str, Tensor] = {}

    def into(stored: Stored) -> Tensor:
        places[stored.name] = as_stored(stored)
        return places[stored.name]

    order = []
    for stored, tensor in AheadReader(mapped=mapped).read(staying(files), into):
        order.append((str(stored.file), stored.offset))
        assert (tensor is places.get(stored.name)) != (mapped and stored.size >= PIECE)
        assert torch.equal(tensor.float(), content()[stored.name].float())
    assert order == sorted(order)
    assert len(order) == len(content())


def test_who_writes_to_a_tensor_that_was_left_in_its_file_does_not_change_the_file(files: list[Path]) -> None:
    before = files[0].read_bytes()
    (wide,) = (tensor for stored, tensor in AheadReader().read(staying(files), as_stored) if stored.name == "wide")

    wide += 1

    assert torch.equal(wide, content()["wide"] + 1)
    assert files[0].read_bytes() == before


@pytest.mark.parametrize("lacking", ["mapping", "advice", "alignment"])
def test_what_cannot_be_left_in_its_file_is_read(
    lacking: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_given: Any, **_named: Any) -> Any:
        raise OSError(errno.ENODEV, "no such thing on this file system")

    expected = staying(files)
    if lacking == "mapping":
        monkeypatch.setattr(mmap, "mmap", refuse)
    elif lacking == "advice":
        monkeypatch.setattr(module, "advise", lambda *_given: errno.EINVAL)
    else:
        raw = files[0].read_bytes()
        length = int.from_bytes(raw[:8], "little")
        files[0].write_bytes((length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :])
        expected = staying(files)

    for stored, tensor in AheadReader().read(expected, as_stored):
        assert torch.equal(tensor.float(), content()[stored.name].float()), stored.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_on_the_way_is_casting_afterwards(dtype: torch.dtype, files: list[Path]) -> None:
    expected = [stored for stored in found(files) if stored.dtype.is_floating_point]

    for stored, tensor in AheadReader().read(expected, lambda stored: torch.empty(stored.shape, dtype=dtype)):
        assert torch.equal(tensor, content()[stored.name].to(dtype)), stored.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tensor_of_several_spans_comes_whole(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert module._SPAN >= module.PIECE >= 2**20
    given = torch.randn(5 * module._SPAN // 8 + 3)
    path = tmp_path / "large.safetensors"
    save_file({"before": torch.ones(3), "large": given}, path)

    read = {
        stored.name: tensor
        for stored, tensor in AheadReader().read(found([path]), lambda stored: torch.empty(stored.shape, dtype=dtype))
    }

    assert torch.equal(read["large"], given.to(dtype))


def test_reading_is_ahead_but_no_further_than_the_buffer(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    save_file({f"t{index:03}": torch.full((PIECE // 4,), 1.0 + index) for index in range(100)}, path)
    places: list[Tensor] = []

    def into(stored: Stored) -> Tensor:
        places.append(torch.zeros(stored.shape, dtype=torch.bfloat16))
        return places[-1]

    walk = AheadReader().read(found([path]), into)
    next(walk)

    patience = time.monotonic() + 30
    while not all(place.all() for place in places) and time.monotonic() < patience:
        time.sleep(0.005)
    assert [float(place[0]) for place in places] == [1.0 + index for index in range(module.PIECES)]
    assert len(list(walk)) == 99


def test_threads_leave_the_order_and_each_tensor_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "uneven.safetensors"
    given = {f"t{index:02}": torch.randn((index * 37) % 50 + 1, 9) for index in range(40)}
    save_file(given, path)
    read = module._Piece.read

    def unevenly(piece: Any) -> None:
        time.sleep(0.002 * (piece.begin % 3 == 0))
        read(piece)

    monkeypatch.setattr(module._Piece, "read", unevenly)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    walk = AheadReader().read(found([path]), lambda stored: torch.empty(stored.shape, dtype=torch.float64))
    offsets = []
    for stored, tensor in walk:
        offsets.append(stored.offset)
        assert torch.equal(tensor, given[stored.name].double())
    assert offsets == sorted(offsets)
    assert len(offsets) == len(given)


def test_who_stops_taking_ends_the_reading(files: list[Path]) -> None:
    walk = AheadReader().read(found(files), as_stored)
    next(walk)

    walk.close()  # type: ignore[attr-defined]

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("multitalk-read")]


def test_files_stay_open_until_the_last_thread_has_read(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read, closing = module._Piece.read, threading.Event()
    expected = found(files)
    first = min(expected, key=lambda stored: (stored.file, stored.offset))
    ended: list[bool] = []

    def late(piece: Any) -> None:
        if piece.stored is not first:
            assert closing.wait(60)
        read(piece)
        ended.append(Path(f"/proc/self/fd/{piece.descriptor}").exists())

    monkeypatch.setattr(module._Piece, "read", late)
    walk = AheadReader().read(expected, as_stored)
    next(walk)
    before = len(ended)

    threading.Timer(0.2, closing.set).start()
    walk.close()  # type: ignore[attr-defined]

    assert len(ended) > before
    assert all(ended)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def garble(path: Path) -> None:
    path.write_bytes(b"nothing of the kind")


def foreign(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"xx")


@pytest.mark.parametrize(("harm", "told"), [(cut, "damaged"), (garble, "damaged"), (foreign, "F8_E8M0")])
def test_a_file_that_cannot_be_read_is_named(harm: Callable[[Path], None], told: str, files: list[Path]) -> None:
    harm(files[0])

    with pytest.raises(SourceError, match=rf"two\.safetensors .*{told}"):
        stored_tensors(files[0])


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_becomes_shorter_while_it_is_read_is_named(mapped: bool, files: list[Path]) -> None:
    expected = staying(files)
    files[0].write_bytes(files[0].read_bytes()[:600])

    with pytest.raises(SourceError, match=r"two\.safetensors is damaged: it ends within"):
        list(AheadReader(mapped=mapped).read(expected, as_stored))


@pytest.mark.skipif(sys.platform != "linux", reason="what is asked is Linux' own")
def test_a_file_that_becomes_shorter_after_it_was_mapped_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.safetensors"
    save_file({"large": torch.ones(2**16)}, path)
    expected, mapped = staying([path]), module._mapped

    def then_cut(descriptor: int, stored: Stored) -> Tensor | None:
        tensor: Tensor | None = mapped(descriptor, stored)
        os.truncate(path, 2**12)
        return tensor

    monkeypatch.setattr(module, "_mapped", then_cut)
    with pytest.raises(SourceError, match=r"large\.safetensors is damaged: it ends within large"):
        list(AheadReader().read(expected, as_stored))


def test_a_file_that_is_gone_is_named(files: list[Path]) -> None:
    expected = found(files)
    files[0].unlink()

    with pytest.raises(SourceError, match=r"two\.safetensors is damaged: No such file"):
        list(AheadReader().read(expected, as_stored))


def test_what_goes_wrong_with_a_place_comes_out_where_tensors_are_taken(files: list[Path]) -> None:
    def full(_stored: Stored) -> Tensor:
        raise torch.OutOfMemoryError("the card is full")

    with pytest.raises(torch.OutOfMemoryError, match="the card is full"):
        list(AheadReader().read(found(files), full))


@pytest.mark.parametrize(
    ("name", "package"), [("runai", "runai-model-streamer"), ("fastsafetensors", "fastsafetensors")]
)
def test_a_reader_without_its_package_is_refused(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import plugins.readers.fastsafetensors
    import plugins.readers.runai

    def absent(_name: str) -> Any:
        return None

    monkeypatch.setattr(plugins.readers.runai, "find_spec", absent)
    monkeypatch.setattr(plugins.readers.fastsafetensors, "find_spec", absent)

    with pytest.raises(MissingExtra, match=rf"reader=.* needs the package '{package}'.*\[{name}\]"):
        reader_named(name)

"""Pictures and sounds as Python has them -> addresses of files that hold exactly these values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.data import Region, Speaker
from engine.errors import RequestError

#: Most channels of a sound: of two dimensions, the one that is not longer is the channels'.
_CHANNELS = 8
_PICTURE = "a path or address, a PIL picture, an array (height, width, 3) or a tensor (3, height, width)"
_SOUND = "a path or address, (samples, rate), {'array': …, 'sampling_rate': …}, a Speaker, or None for silence"


class Files:
    """The files of one call, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def picture(self, value: Any, name: str) -> str:
        """Return the address of a picture.

        Arrays are uint8, or floating-point numbers in 0 .. 1; so are tensors, whose first dimension is the colours'.
        Raises TypeError for another type, and RequestError for values that are no picture; both name the argument
        `name`.
        """
        if (address := _address(value)) is not None:
            return address
        path = self._new("png")
        _as_pil(value, name).save(path)
        return str(path)

    def speaker(self, value: Any, region: Any, name: str, where: str) -> Speaker:
        """Return a speaker with the voice `value` at `region`, a box or a mask; None: found by itself.

        A voice of two dimensions has channels, which are mixed. Raises as `picture`.
        """
        place = self._region(region, where)
        if isinstance(value, Speaker):
            return value if region is None else Speaker(**{**vars(value), "region": place})
        return Speaker(None if value is None else self.sound(value, name), place)

    def sound(self, value: Any, name: str) -> str:
        """Return the address of a sound. Raises as `picture`."""
        if (address := _address(value)) is not None:
            return address
        samples, rate = _samples(value, name)
        path = self._new("wav")
        from scipy.io import wavfile

        wavfile.write(path, rate, samples)
        return str(path)

    def _region(self, value: Any, name: str) -> Region:
        if value is None or isinstance(value, Region):
            return value or Region()
        if _is_box(value):
            x0, y0, x1, y1 = map(float, value)
            return Region(box=(x0, y0, x1, y1))
        if isinstance(value, (list, tuple)):
            raise TypeError(f"{name}: a box has four numbers, x0, y0, x1, y1, and this is {_kind(value)}")
        return Region(mask=self.picture(value, name))

    def _new(self, ending: str) -> Path:
        self._count += 1
        return self._folder / f"{self._count}.{ending}"


def voices_of(audio: Any) -> list[Any]:
    """Return the voices in an argument that is one voice, or a list or tuple of several."""
    if isinstance(audio, tuple) and not _is_pair(audio):
        return list(audio)
    return list(audio) if isinstance(audio, list) and not _is_numbers(audio) else [audio]


def regions_of(regions: Any, voices: int) -> list[Any]:
    """Return one region for each voice. Raises RequestError unless there are as many, or none."""
    if regions is None:
        return [None] * voices
    several = [regions] if voices == 1 and (_is_box(regions) or not isinstance(regions, (list, tuple))) else regions
    if not isinstance(several, (list, tuple)):
        raise TypeError(f"regions: a list with one region for each voice is needed, this is {_kind(regions)}")
    if len(several) != voices:
        raise RequestError(
            f"{len(several)} regions for {voices} voices",
            field="regions",
            hint="give one for each voice; None leaves one to the engine",
        )
    return list(several)


def _address(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return str(Path(value)) if isinstance(value, os.PathLike) else None


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, (list, tuple, np.ndarray)) and len(value) == 4
    return numbers and all(isinstance(part, (int, float, np.number)) for part in value)


def _is_pair(value: Sequence[Any]) -> bool:
    # (samples, rate); also (rate, samples), as some libraries have it.
    return len(value) == 2 and any(isinstance(part, (int, np.integer)) for part in value)


def _is_numbers(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(part, (int, float)) for part in value)


def _kind(value: Any) -> str:
    return type(value).__name__


def _as_pil(value: Any, name: str) -> Any:
    from PIL import Image, ImageOps

    if isinstance(value, Image.Image):
        upright = ImageOps.exif_transpose(value)
        # The modes that PNG has; all values of the others would not survive.
        return upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else upright.convert("RGB")
    array = _array(value)
    if array is None:
        raise TypeError(f"{name}: {_PICTURE} is needed, this is {_kind(value)}")
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if _is_tensor(value) and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    shape = "x".join(map(str, np.shape(value)))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise RequestError(f"an array of {shape} is no picture", field=name, hint=f"give {_PICTURE}")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise RequestError(
                f"values of {array.dtype}", field=name, hint="give uint8, or floating-point numbers in 0 .. 1"
            )
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise RequestError("values outside 0 .. 1", field=name, hint="divide by 255, or give uint8")
        array = np.rint(array * 255).astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _samples(value: Any, name: str) -> tuple[npt.NDArray[np.float32], int]:
    """Return samples, float32 (n,) or (n, channels), and their rate."""
    if isinstance(value, Mapping) and {"array", "sampling_rate"} <= value.keys():
        pair: Sequence[Any] = (value["array"], value["sampling_rate"])
    elif isinstance(value, (tuple, list)) and _is_pair(value):
        pair = value
    elif _array(value) is not None:
        raise TypeError(f"{name}: samples need their rate: (samples, rate)")
    else:
        raise TypeError(f"{name}: {_SOUND} is needed, this is {_kind(value)}")
    given, rate = pair if isinstance(pair[1], (int, np.integer)) else (pair[1], pair[0])
    array = _array(given)
    if array is None:
        raise TypeError(f"{name}: samples must be an array or a tensor, these are {_kind(given)}")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    if array.ndim not in (1, 2) or not array.size or (array.ndim == 2 and array.shape[1] > _CHANNELS):
        shape = "x".join(map(str, np.shape(given)))
        hint = f"give (samples,) or (samples, channels) with at most {_CHANNELS} channels"
        raise RequestError(f"an array of {shape} is no sound", field=name, hint=hint)
    if np.issubdtype(array.dtype, np.signedinteger):
        array = array / -float(np.iinfo(array.dtype).min)
    elif not np.issubdtype(array.dtype, np.floating):
        raise RequestError(
            f"samples of {array.dtype}", field=name, hint="give floating-point numbers in -1 .. 1, or signed integers"
        )
    if not np.isfinite(array).all():
        raise RequestError("samples that are not finite", field=name, hint="replace NaN and infinite values")
    if not 1000 <= rate <= 768_000:
        raise RequestError(f"a rate of {rate}", field=name, hint="give (samples, samples per second)")
    return np.ascontiguousarray(array, np.float32), int(rate)


def _is_tensor(value: Any) -> bool:
    # Without an import of torch, for those who do not use it.
    return type(value).__module__.partition(".")[0] == "torch"


def _array(value: Any) -> npt.NDArray[Any] | None:
    """Return an array or a tensor as an array; None: it is neither."""
    if isinstance(value, np.ndarray):
        return value
    if _is_tensor(value) and hasattr(value, "detach"):
        tensor = value.detach().cpu()
        # NumPy has no bfloat16.
        array: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return array
    return None

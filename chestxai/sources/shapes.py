"""Boxes and masks as data sets write them: numbers as text, run-length masks, and connected parts of an outline."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field, TypeAdapter
from scipy import ndimage

from chestxai.runs import InputError
from chestxai.studies import Box

#: A number of json, neither text nor a truth value. Nothing is drawn at 1e300, and integers may have any size.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e7, le=1e7)]
_BOX = TypeAdapter(tuple[Number, Number, Number, Number])
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def parse_box(values: Any, *, corners: bool = False) -> Box:
    """A box from four numbers, or from their text in a csv; InputError for anything else, or without an area.

    ``values``, a tuple or list, are x, y, w, h, or with ``corners`` x0, y0, x1, y1. Text is a decimal number of ASCII
    digits: ``float`` would also read 1_0 and full-width digits.
    """
    try:
        texts = values if isinstance(values, list | tuple) and all(isinstance(v, str) for v in values) else ()
        x, y, w, h = _BOX.validate_python([float(v) if _DECIMAL.fullmatch(v) else v for v in texts] or values)
        return Box(x, y, w - x, h - y) if corners else Box(x, y, w, h)
    except ValueError as error:
        raise InputError(f"not a box ({', '.join(texts)[:80] or str(values)[:80]})") from error


def boxes_of(mask: np.ndarray) -> tuple[Box, ...]:
    """The tight box of each connected part (also over corners) of a bool ``(h, w)`` mask, from top to bottom."""
    parts = ndimage.find_objects(ndimage.label(mask, np.ones((3, 3)))[0])
    return tuple(Box(*map(float, (x.start, y.start, x.stop - x.start, y.stop - y.start))) for y, x in parts)


def smaller_mask(mask: np.ndarray, longest: int) -> np.ndarray:
    """A bool ``(h, w)`` mask reduced to at most ``longest`` pixels on its longer side, if it is longer; not for 0.

    A pixel is set if half of it is covered; a mask too small for that keeps the pixels it falls in.
    """
    height, width = mask.shape
    if not longest or max(height, width) <= longest:
        return mask
    share = longest / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    covered = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX))
    return covered >= 0.5 if (covered >= 0.5).any() else covered > 0


def decode_mask(rle: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Decode a mask of COCO, ``rle = {"size": [h, w], "counts": …}``, packed (text) or plain, into bool of ``size``.

    Our own decoder, because pycocotools does not check the runs: damaged ones leave memory uninitialised or end the
    process. Here they are an InputError, and so is a mask of another size.
    """
    if rle.get("size") != [*size]:
        raise InputError(f"mask in another frame than the image's {size[0]} × {size[1]}")
    runs = rle.get("counts")
    runs = _unpacked(runs) if isinstance(runs, str) else runs
    valid = isinstance(runs, list) and all(type(n) is int and n >= 0 for n in runs)
    if not valid or sum(runs) != size[0] * size[1]:
        raise InputError("mask whose runs do not fill its frame")
    # Runs alternate between background and mask, and go down the columns.
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _unpacked(text: str) -> list[int] | None:
    """The runs of a packed mask, None if it is damaged."""
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        # Five bits are part of a number, least significant first; the sixth says that it goes on.
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (1 << shift) * bool(bits & 16)
            # From the fourth on, a run is stored as its difference to the last but one.
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return None if shift else runs

"""The one record that every data set becomes, and the exact geometry between an original image and a model's frame.

Conventions: image space is (row, column) from the top left; a box is (x, y, w, h) in pixels of the *original* image;
the patient's right is on the image's left. A continuous coordinate ``x`` runs from 0 at the left edge of the first
pixel to ``width`` at the right edge of the last one, so a box of ``w`` pixels covers ``[x, x + w)``.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from chestxai.runs import InputError

#: The eight findings of MS-CXR (Boecking et al. 2022), in alphabetical order: the label space of the book.
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity", "Pleural Effusion", "Pneumonia",
    "Pneumothorax",
)  # fmt: skip

Side = Literal["left", "right", "bilateral"]
Fit = Literal["crop", "letterbox"]


@dataclass(frozen=True)
class Box:
    """A box in pixels of the original image: top-left corner ``(x, y)``, width ``w``, height ``h`` (floats)."""

    x: float
    y: float
    w: float
    h: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.x, self.y, self.w, self.h))) or self.w <= 0 or self.h <= 0:
            raise InputError(f"a box needs finite x, y and positive w, h: got {self.x}, {self.y}, {self.w}, {self.h}")

    @property
    def area(self) -> float:
        """Area in pixels squared."""
        return self.w * self.h

    def clipped(self, height: float, width: float) -> Box | None:
        """The part of the box inside a ``height × width`` image, or None if nothing is left."""
        x0, y0 = max(self.x, 0.0), max(self.y, 0.0)
        x1, y1 = min(self.x + self.w, width), min(self.y + self.h, height)
        return Box(x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


@dataclass(frozen=True)
class Finding:
    """One finding of a study: its name, the passage of the report that states it, and where it is.

    ``present=False`` marks a negated finding ("no pneumothorax"). ``mask`` is bool ``(height, width)`` in the original
    frame for data with outlines or exact truth (phantoms), and None for data with boxes only.
    """

    name: str
    phrase: str = ""
    present: bool = True
    side: Side | None = None
    zone: str | None = None
    severity: str | None = None
    boxes: tuple[Box, ...] = ()
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)
    where: str = field(default="", repr=False, compare=False)  #: file and line that state it, for messages


@dataclass(frozen=True)
class Study:
    """One image with its report and findings.

    ``id`` is unique within a source; ``patient`` groups studies that must stay in one split. ``size`` is the
    ``(height, width)`` of the frame of the boxes, which may differ from the file's (NIH's boxes live in a frame of
    1024²). The image is in memory (``array``, uint8 ``(height, width)``) or read from ``path`` on demand.
    """

    id: str
    patient: str
    source: str
    split: str
    report: str
    size: tuple[int, int]
    findings: tuple[Finding, ...] = ()
    path: Path | None = None
    array: np.ndarray | None = field(default=None, repr=False, compare=False)
    attributes: dict[str, str | float] = field(default_factory=dict, compare=False)

    def pixels(self) -> np.ndarray:
        """The image as stored, uint8 ``(h, w)``, 0 black to 255 white; see `read_image`."""
        if self.array is not None:
            return self.array
        if self.path is None:
            raise InputError(f"study {self.id} has neither pixels nor a file")
        return read_image(self.path)

    def change_token(self) -> list[Any]:
        """Cheap change token of the image: content hash for arrays, size and mtime for files; can be stored as JSON."""
        image: list[Any] = []
        if self.array is not None:
            image = [list(self.array.shape), hashlib.sha256(np.ascontiguousarray(self.array)).hexdigest()]
        elif self.path is not None and self.path.is_file():
            about = self.path.stat()
            image = [about.st_size, about.st_mtime_ns]
        return [self.id, list(self.size), *image]

    def present(self) -> tuple[Finding, ...]:
        """The findings that are present; negated ones are left out."""
        return tuple(f for f in self.findings if f.present)

    def labels(self) -> np.ndarray:
        """Multi-hot labels over `FINDINGS`, float32 ``(8,)``."""
        names = {f.name for f in self.present()}
        return np.array([name in names for name in FINDINGS], dtype=np.float32)


@dataclass(frozen=True)
class GroundTruth:
    """A phrase to ground: a finding with its boxes or mask, and the study it belongs to."""

    study: Study
    finding: Finding

    @property
    def key(self) -> str:
        """Unique name of this row of a grounding table, ``study/finding/phrase``."""
        return f"{self.study.id}/{self.finding.name}/{self.finding.phrase}"

    def about(self) -> dict[str, str]:
        """The columns that name it in a table of scores."""
        study, finding = self.study, self.finding
        return {"study": study.id, "patient": study.patient, "finding": finding.name, "phrase": finding.phrase}


def phrases(studies: Iterable[Study]) -> list[GroundTruth]:
    """Every present finding that has a box or a mask, in the order of the studies."""
    return [GroundTruth(s, f) for s in studies for f in s.present() if f.boxes or (f.mask is not None and f.mask.any())]


#: What Pillow may read, by content: some of its other formats start programs, as PostScript does.
FORMATS = ("PNG", "JPEG")
LARGEST = 2**29  #: bytes of an image's file
#: What to do about DICOM files whose compression no installed package knows.
UNPACK = "'python -m pip install pylibjpeg[all]' installs what reads it"
_BLANK = 3  # grey levels between the darkest and the brightest pixel, of which JPEG makes up one or two


def read_image(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or DICOM file, recognised by its content, as grey uint8 ``(h, w)``.

    It is turned as its EXIF data say. More than 8 bits are scaled by their `value_range`. In DICOM the modality LUT and
    the first VOI LUT or window that shows anything come before that; MONOCHROME1 is inverted, so that bone is white in
    every image; film loops and colour are refused.

    Raises:
        InputError: The file is not a readable image (truncated, empty, blank, another format).
        ModuleNotFoundError: The file is DICOM and pydicom is not installed.
    """
    try:
        pixels, advice = (_read_dicom(path), "") if is_dicom(path) else _read_picture(path)
        if int(pixels.max()) - int(pixels.min()) < _BLANK:
            raise InputError(f"blank: all pixels are alike{advice}")
        return pixels
    # A damaged header may announce gigapixels, which Pillow refuses with an exception of its own.
    except (OSError, SyntaxError, ValueError, AssertionError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError) and str(path) in str(error):
            raise
        what = " ".join(str(error).split()) or "damaged"
        raise InputError(f"{path}: not a readable image ({what}); PNG, JPEG and DICOM are read") from error


def _read_picture(path: Path) -> tuple[np.ndarray, str]:
    with Image.open(path, formats=FORMATS) as image:
        turn = orientation(image)  # Pillow's exif_transpose would write damaged EXIF data anew
        whole = image.transpose((0, 3, 1, 5, 4, 6, 2)[turn - 2]) if turn > 1 else image
        deep = image.mode in ("I;16", "I;16B", "I", "F")
        if not deep and ";16" in str(image.tile):  # Pillow would drop the low byte
            raise InputError("several channels of 16 bits: save it as grey")
        pixels = to_bytes(np.asarray(whole, dtype=np.float32)) if deep else np.asarray(whole.convert("L"))
        return pixels, "; the picture may be in its alpha channel: save it as grey" if "A" in image.getbands() else ""


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened image, 1 (upright) to 8; from 5 on, height and width change places."""
    # Pillow would decode a PNG's pixels to look for EXIF data behind them.
    there = image.format != "PNG" or {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & {*image.info}
    value = image.getexif().get(0x0112, 1) if there else 1
    return value if value in range(2, 9) else 1


def value_range(values: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest of ``values`` (any shape, finite) without those far from the others.

    Hot pixels, burnt-in marks and padding would leave the anatomy a few grey levels. Values are left out beyond an
    eighth of the whole range that (nearly) no pixel has, on the side with far fewer different values.
    """
    some, bins = values.ravel()[:: max(1, values.size >> 20)], 256
    low, high = float(values.min()), float(values.max())
    while high > low:
        counts, edges = np.histogram(some, bins, (low, high))
        filled = np.flatnonzero(counts > 1e-4 * some.size)
        runs = np.split(filled, np.flatnonzero(np.diff(filled) > bins // 8) + 1)
        parts = [some[(some >= edges[run[0]]) & (some <= edges[run[-1] + 1])] for run in runs]
        levels = [np.unique(part).size for part in parts]
        kept = [i for i, number in enumerate(levels) if 8 * number >= max(levels)]
        ends = runs[kept[0]][0] >= bins // 8, runs[kept[-1]][-1] < bins - bins // 8
        if max(levels) < 8 or not any(ends):
            break
        low, high = (
            (float(parts[kept[0]].min()) if ends[0] else low),
            (float(parts[kept[-1]].max()) if ends[1] else high),
        )
    return low, high


def to_bytes(values: np.ndarray) -> np.ndarray:
    """``values`` (finite) as uint8, their `value_range` from 0 to 255."""
    if not np.isfinite(values).all():
        raise InputError("pixels that are not finite")
    low, high = value_range(values)
    return ((np.clip(values, low, high) - low) * (255.0 / max(high - low, 1e-6))).round().astype(np.uint8)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content (``DICM`` after 128 bytes, or a data set without that preamble).

    InputError if it is no file but a folder or a pipe, which may never end, or larger than `LARGEST`.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise InputError(f"{path}: not a readable image (a folder, a pipe or a device, no file)")
    if Path(path).exists() and (size := Path(path).stat().st_size) > LARGEST:
        raise InputError(f"{path}: not a readable image ({size:,} bytes, more than the {LARGEST:,} that are read)")
    with suppress(OSError), open(path, "rb") as file:
        head = file.read(132)
        # Without it, the data set begins: group 2 or 8 in either order of bytes, an element below 0x0100.
        bare = (head[:2] in (b"\x08\0", b"\x02\0") and head[3:4] == b"\0") or head[:3] == b"\0\x08\0"
        return head[128:] == b"DICM" or bare
    return False


def read_dicom(path: Path, *, header: bool = False) -> Any:
    """Read the DICOM file ``path`` as a pydicom ``Dataset``; with ``header``, only its size, which is much faster.

    Raises InputError if it is damaged, too large, without square pixels, or packed in a way no installed package reads.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import get_decoder
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
    except ModuleNotFoundError as error:
        advice = "reading those needs pydicom; install it with 'python -m pip install pydicom'"
        raise ModuleNotFoundError(f"{path} is a DICOM file: {advice}") from error
    try:
        tags = ["Rows", "Columns", "BitsStored", "PixelAspectRatio", *_WINDOW] if header else None
        elements = dcmread(path, stop_before_pixels=header, specific_tags=tags, force=True)
        height, width = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
        down, right = map(int, elements.get("PixelAspectRatio") or (1, 1))
        if "TransferSyntaxUID" not in elements.file_meta:
            implicit, little = elements.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            elements.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        syntax = elements.file_meta.TransferSyntaxUID
        plugins = get_decoder(syntax).available_plugins if syntax.is_compressed else ("none needed",)
        # Pillow decodes this kind with 8 bits only.
        deep = syntax.name.startswith("JPEG Extended") and elements.get("BitsStored", 8) > 8
        decodes = {*plugins} - ({"pillow"} if deep else set())
    # A damaged element may raise nearly anything, from struct.error to AttributeError.
    except Exception as error:
        raise InputError(f"{path}: not a readable DICOM file ({error})") from error
    if not decodes:
        raise InputError(f"{path}: not a readable image (packed as {syntax.name}; {UNPACK})")
    if not 0 < height * width <= 2 * (Image.MAX_IMAGE_PIXELS or height * width):
        raise InputError(f"{path}: not a readable DICOM file ({height} × {width} pixels: no image, cut off, or a bomb)")
    if down != right:
        raise InputError(f"{path}: pixels that are not square ({down}:{right}); resample them and save as PNG")
    return elements


def _read_dicom(path: Path) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    elements = read_dicom(path)
    # pydicom leaves decoding to several libraries, each of which raises its own errors.
    try:
        kind = str(elements.PhotometricInterpretation)
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise InputError(f"a grey image is needed, this one is {kind}")
        if elements.get("VOILUTFunction", "LINEAR") not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            del elements.VOILUTFunction
        stored = apply_modality_lut(elements.pixel_array, elements)
        if stored.ndim != 2:
            raise InputError(f"one frame is needed, this one has the shape {stored.shape}")
        shown = (apply_voi_lut(stored, elements, i) for i in windows(elements))
        values = next((v for v in shown if v.max() > v.min()), stored).astype(np.float64)
    except Exception as error:
        raise InputError(str(error)) from error
    return to_bytes(-values if kind == "MONOCHROME1" else values)


_WINDOW = ("VOILUTSequence", "VOILUTFunction", "WindowWidth", "WindowCenter")


def windows(elements: Any) -> list[int]:
    """Numbers of the VOI LUTs of a DICOM data set, or of its windows that have a centre and a width."""
    if "VOILUTSequence" in elements:
        return [*range(len(elements.VOILUTSequence))]
    centres, widths = (np.atleast_1d(elements.get(f"Window{key}") or []) for key in ("Center", "Width"))
    least = 1 if elements.get("VOILUTFunction", "LINEAR") == "LINEAR" else 1e-9
    return [i for i, (_, width) in enumerate(zip(centres, widths, strict=False)) if float(width) >= least]


@dataclass(frozen=True)
class Frame:
    """The affine map from an original image of ``height × width`` into a model's ``size × size`` square.

    ``fit="crop"`` keeps the central square of the shorter side (as the paper's preprocessing does); ``fit="letterbox"``
    keeps everything and pads with black. `kept` tells how much of a box survives.
    """

    height: int
    width: int
    size: int
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "letterbox"):
            raise InputError(f"fit must be 'crop' or 'letterbox', not {self.fit!r}")
        if min(self.height, self.width, self.size) < 1:
            raise InputError(f"a frame needs at least one pixel: got {self.height} × {self.width} into {self.size}²")

    @cached_property
    def scale(self) -> float:
        """Model pixels per original pixel."""
        side = min(self.height, self.width) if self.fit == "crop" else max(self.height, self.width)
        return self.size / side

    @cached_property
    def offset(self) -> tuple[float, float]:
        """``(x, y)`` of the original's top-left corner in model pixels; negative where it is cropped."""
        return (self.size - self.width * self.scale) / 2, (self.size - self.height * self.scale) / 2

    def box(self, box: Box) -> Box | None:
        """The box in model pixels, clipped to the frame; None if it lies entirely outside."""
        (dx, dy), s = self.offset, self.scale
        return Box(box.x * s + dx, box.y * s + dy, box.w * s, box.h * s).clipped(self.size, self.size)

    def kept(self, box: Box) -> float:
        """Fraction in [0, 1] of the box's area that the frame keeps."""
        inside = self.box(box)
        return 0.0 if inside is None else min(1.0, inside.area / (box.area * self.scale**2))

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """``pixels`` (uint8 ``(h, w)``, any resolution of the original frame) as uint8 ``(size, size)``.

        Bicubic with antialiasing; ``pixels`` itself if it already is ``(size, size)``. InputError if it is not a grey
        uint8 image, or has another aspect ratio than the frame.
        """
        if pixels.ndim != 2 or pixels.dtype != np.uint8:
            raise InputError(f"expected a grey image uint8 (h, w), got {pixels.dtype} of shape {pixels.shape}")
        h, w = pixels.shape
        if abs(h * self.width - w * self.height) > max(h, w, self.height, self.width):
            raise InputError(f"image is {h} × {w}, another shape than its frame {self.height} × {self.width}")
        if (h, w) == (self.size, self.size):
            return pixels
        side = min(h, w) if self.fit == "crop" else max(h, w)
        # The square's corner lies half a pixel off the grid if the sides differ by an odd number. Pillow crops there
        # exactly, but only inside the image: a letterbox is first padded with its own edge, which darkens nothing.
        padding = [math.ceil(max(side - n, 0) / 2) for n in (h, w)]
        padded = Image.fromarray(np.pad(pixels, [(n, n) for n in padding], mode="edge"))
        top, left = (n + (length - side) / 2 for n, length in zip(padding, (h, w), strict=True))
        corners = (left, top, left + side, top + side)
        square = padded.resize((self.size, self.size), Image.Resampling.BICUBIC, box=corners)
        if not any(padding):
            return np.asarray(square)
        rows, columns = (_covered(length * self.size / side, self.size) for length in (h, w))
        return (np.asarray(square) * (rows[:, None] * columns) + 0.5).astype(np.uint8)

    def mask(self, finding: Finding) -> np.ndarray:
        """The finding's exact mask if it has one, otherwise the union of its boxes; bool ``(size, size)``.

        A pixel belongs to a mask if half of it is covered, and to a box if its centre lies inside. A mask or box too
        small for that keeps the pixels it falls in, so nothing inside the frame vanishes.
        """
        boxes = finding.boxes
        if finding.mask is not None:
            out = self.image(finding.mask.astype(np.uint8) * 255) >= 128
            if out.any() or (speck := box_of(finding.mask)) is None:
                return out
            down, right = self.height / finding.mask.shape[0], self.width / finding.mask.shape[1]
            boxes = (Box(speck.x * right, speck.y * down, speck.w * right, speck.h * down),)
        out = np.zeros((self.size, self.size), dtype=bool)
        for inside in filter(None, map(self.box, boxes)):
            x0, x1 = _pixels(inside.x, inside.x + inside.w, self.size)
            y0, y1 = _pixels(inside.y, inside.y + inside.h, self.size)
            out[y0:y1, x0:x1] = True
        return out


def _covered(length: float, size: int) -> np.ndarray:
    """Share of each of ``size`` pixels, in [0, 1], that a centred interval of ``length`` pixels covers."""
    start = (size - length) / 2
    return np.diff(np.clip(np.arange(size + 1), start, start + length))


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """The first pixel, and the one after the last, whose centres lie in [low, high)."""
    first, last = math.ceil(low - 0.5), math.ceil(high - 0.5)
    if last <= first:
        first = min(int((low + high) / 2), size - 1)
        last = first + 1
    return max(first, 0), min(last, size)


def box_of(mask: np.ndarray) -> Box | None:
    """The tight box of a bool ``(h, w)`` mask; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1))


def to_images(
    studies: Iterable[Study], size: int, fit: Fit = "crop", *, allow_none: bool = False
) -> tuple[np.ndarray, list[Study], list[str]]:
    """Read the images of ``studies`` into a model's frame; those that cannot be read are left out.

    Args:
        studies: Any iterable, for example with a progress bar around it.
        size: Side of the model's frame in pixels.
        fit: How an image that is not square fits into it, see `Frame`.
        allow_none: Accept that no image can be read, as in a chunk of a longer list, instead of raising InputError.

    Returns:
        The images, uint8 ``(n, size, size)``; the ``n`` studies they belong to; and one line for each study left out.
    """
    images, kept, skipped = [], [], []
    for study in studies:
        try:
            images.append(Frame(*study.size, size, fit).image(study.pixels()))
            kept.append(study)
        except InputError as error:
            skipped.append(f"{study.id}: {error}")
    if skipped and not images and not allow_none:
        raise InputError(f"none of {len(skipped)} images could be read; the first: {skipped[0]}")
    if len(skipped) > len(images) / 10:
        total = len(skipped) + len(images)
        warnings.warn(f"{len(skipped)} of {total} images cannot be read and are left out", stacklevel=2)
    return np.stack(images) if images else np.zeros((0, size, size), np.uint8), kept, skipped

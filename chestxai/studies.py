"""The one record every data set becomes, and the exact geometry between an original image and a model's frame.

Conventions: image-space is (row, column) from the top left; a box is (x, y, w, h) in pixels of the *original* image;
the patient's right is on the image's left. A continuous coordinate ``x`` runs from 0 at the left edge of the first
pixel to ``width`` at the right edge of the last one, so a box of ``w`` pixels covers ``[x, x + w)``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

#: The eight findings of MS-CXR (Boecking et al. 2022), in alphabetical order: the label space of the book.
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)

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
            raise ValueError(f"a box needs finite x, y and positive w, h: got {self.x}, {self.y}, {self.w}, {self.h}")

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
    """One finding of a study: what it is called, what the report says of it, and where it is.

    ``phrase`` is the passage of the report that states the finding (the unit MS-CXR annotates), ``present=False`` a
    negated one ("no pneumothorax"). ``mask`` is bool ``(height, width)`` in the original frame where exact truth is
    known (phantoms); data sets with boxes only leave it None.
    """

    name: str
    phrase: str = ""
    present: bool = True
    side: Side | None = None
    zone: str | None = None
    severity: str | None = None
    boxes: tuple[Box, ...] = ()
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Study:
    """One image with its report and findings.

    ``id`` is unique within a source, ``patient`` groups studies that must stay in one split. ``size`` is
    ``(height, width)`` of the frame the boxes live in, which may differ from the stored file's (NIH boxes live in a
    1024² frame whatever the file's size). The image is either in memory (``array``, uint8 ``(height, width)``) or
    read from ``path`` when asked for.
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
        """The image, uint8 ``(h, w)``, 0 black to 255 white, as stored (``h, w`` may differ from ``size``).

        Raises:
            ValueError: the file cannot be read as an image; the message names it.
        """
        if self.array is not None:
            return self.array
        if self.path is None:
            raise ValueError(f"study {self.id} has neither pixels nor a file")
        return read_image(self.path)

    def present(self) -> tuple[Finding, ...]:
        """Findings the study has (negated ones left out)."""
        return tuple(f for f in self.findings if f.present)

    def labels(self) -> np.ndarray:
        """Multi-hot float32 ``(8,)`` over `FINDINGS`."""
        names = {f.name for f in self.present()}
        return np.array([name in names for name in FINDINGS], dtype=np.float32)

    def change_token(self):
        image = []
        if self.array is not None:
            image = [list(self.array.shape), hashlib.sha256(np.ascontiguousarray(self.array)).hexdigest()]
        elif self.path is not None and self.path.is_file():
            about = self.path.stat()
            image = [about.st_size, about.st_mtime_ns]
        return [self.id, list(self.size), *image]


@dataclass(frozen=True)
class GroundTruth:
    """A phrase to ground: the study, the finding, and its target in the original frame."""

    study: Study
    finding: Finding

    @property
    def key(self) -> str:
        """Unique name of the row, ``study/finding/phrase``."""
        return f"{self.study.id}/{self.finding.name}/{self.finding.phrase}"


def phrases(studies: Iterable[Study]) -> list[GroundTruth]:
    """Every present finding with a box or mask, in the order of the studies: the rows of a grounding table."""
    return [GroundTruth(s, f) for s in studies for f in s.present() if f.boxes or (f.mask is not None and f.mask.any())]


def read_image(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or DICOM file as uint8 grey ``(h, w)``.

    More than 8 bits are scaled by the image's own range, lowest value black and highest white. Of a DICOM file (told by
    its content, not its name) the modality LUT and the first VOI LUT or window are applied before that, and MONOCHROME1
    is inverted, so that bone is white in every image; one grey frame is read, a film loop or a colour image refused.

    Raises:
        ValueError: not a readable image (truncated, empty, another format); names the file.
        ModuleNotFoundError: a DICOM file, and pydicom is not installed; says how to install it.
    """
    if is_dicom(path):
        return _read_dicom(path)
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode in ("I;16", "I;16B", "I", "F"):
                return _to_bytes(np.asarray(image, dtype=np.float32))
            return np.asarray(image.convert("L"))
    # A damaged header may also announce gigapixels, which Pillow refuses with an exception of its own.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def _to_bytes(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255.0 / max(high - low, 1e-6))).round().astype(np.uint8)


def is_dicom(path: Path) -> bool:
    """Whether a file's content says that it is DICOM: ``DICM`` after 128 bytes; False for one that cannot be opened."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: Path, *, header: bool = False) -> Any:
    """The elements of a DICOM file as a pydicom ``Dataset``; ``header=True``: its rows and columns only, much faster.

    Raises:
        ValueError: the file is damaged, or its frame is none or larger than Pillow allows an image; names the file.
        ModuleNotFoundError: pydicom is not installed; says how to install it.
    """
    try:
        from pydicom import dcmread
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is a DICOM file: reading those needs pydicom; install it with 'python -m pip install pydicom'"
        ) from error
    try:
        found = dcmread(path, stop_before_pixels=header, specific_tags=["Rows", "Columns"] if header else None)
        height, width = int(found.Rows), int(found.Columns)
    # A damaged element may raise nearly anything, from struct.error to AttributeError.
    except Exception as error:
        raise ValueError(f"{path}: not a readable DICOM file ({error})") from error
    if not 0 < height * width <= 2 * (Image.MAX_IMAGE_PIXELS or height * width):
        raise ValueError(f"{path}: not a readable DICOM file ({height} × {width} pixels)")
    return found


def _read_dicom(path: Path) -> np.ndarray:
    found = read_dicom(path)
    try:
        from pydicom.pixels import apply_modality_lut, apply_voi_lut

        kind = str(found.PhotometricInterpretation)
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise ValueError(f"a grey image is needed, this one is {kind}")
        values = apply_voi_lut(apply_modality_lut(found.pixel_array, found), found).astype(np.float64)
        if values.ndim != 2:
            raise ValueError(f"one frame is needed, this one has the shape {values.shape}")
        return _to_bytes(-values if kind == "MONOCHROME1" else values)
    # The same for pixels: pydicom leaves decoding to several libraries, each with its own errors.
    except Exception as error:
        raise ValueError(f"{path}: not a readable image ({' '.join(str(error).split())})") from error


@dataclass(frozen=True)
class Frame:
    """The affine map from an original image of ``height × width`` into a model's ``size × size`` square.

    ``fit="crop"`` keeps the central square of the shorter side (what the paper's preprocessing does);
    ``fit="letterbox"`` keeps everything and pads with black. Nothing is lost silently: see `kept`.

    Raises:
        ValueError: another fit; a height, width or size below 1.
    """

    height: int
    width: int
    size: int
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "letterbox"):
            raise ValueError(f"fit must be 'crop' or 'letterbox', not {self.fit!r}")
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"a frame needs at least one pixel: got {self.height} × {self.width} into {self.size}²")

    @cached_property
    def scale(self) -> float:
        """Model pixels per original pixel."""
        side = min(self.height, self.width) if self.fit == "crop" else max(self.height, self.width)
        return self.size / side

    @cached_property
    def offset(self) -> tuple[float, float]:
        """``(x, y)`` of the original's top-left corner in model pixels (negative when cropped)."""
        return (self.size - self.width * self.scale) / 2, (self.size - self.height * self.scale) / 2

    def box(self, box: Box) -> Box | None:
        """The box in model pixels, clipped to the frame; None if it lies wholly outside."""
        dx, dy = self.offset
        s = self.scale
        return Box(box.x * s + dx, box.y * s + dy, box.w * s, box.h * s).clipped(self.size, self.size)

    def kept(self, box: Box) -> float:
        """Fraction in [0, 1] of the box's area that the frame keeps."""
        inside = self.box(box)
        return 0.0 if inside is None else min(1.0, inside.area / (box.area * self.scale**2))

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """``pixels`` (uint8 ``(h, w)``, any resolution of the original frame) as uint8 ``(size, size)``.

        Bicubic with antialiasing; equal to ``pixels`` when it is already ``(size, size)``.

        Raises:
            ValueError: not a grey uint8 image, or one of another shape than the frame.
        """
        if pixels.ndim != 2 or pixels.dtype != np.uint8:
            raise ValueError(f"expected a grey image uint8 (h, w), got {pixels.dtype} of shape {pixels.shape}")
        h, w = pixels.shape
        if abs(h * self.width - w * self.height) > max(h, w, self.height, self.width):
            raise ValueError(f"image is {h} × {w}, another shape than its frame {self.height} × {self.width}")
        if (h, w) == (self.size, self.size):
            return pixels
        side = min(h, w) if self.fit == "crop" else max(h, w)
        # The square's corner lies half a pixel off the grid when the sides differ by an odd number. Pillow cuts it out
        # exactly, but only of what is there: a letterbox is grown first, by its own edge, which darkens nothing.
        grow = [math.ceil(max(side - n, 0) / 2) for n in (h, w)]
        grown = Image.fromarray(np.pad(pixels, [(n, n) for n in grow], mode="edge"))
        top, left = (n + (length - side) / 2 for n, length in zip(grow, (h, w), strict=True))
        square = grown.resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        if not any(grow):
            return np.asarray(square)
        rows, columns = (_covered(length * self.size / side, self.size) for length in (h, w))
        return (np.asarray(square) * (rows[:, None] * columns) + 0.5).astype(np.uint8)

    def mask(self, finding: Finding) -> np.ndarray:
        """Bool ``(size, size)``: the finding's exact mask where it has one, else the union of its boxes.

        A pixel belongs to a mask when half of it is covered, to a box when its centre lies inside; a mask or box too
        small for that keeps the pixels it falls in, so that what is inside the frame never vanishes.
        """
        boxes = finding.boxes
        if finding.mask is not None:
            out = self.image(finding.mask.astype(np.uint8) * 255) >= 128
            speck = None if out.any() else box_of(finding.mask)
            if speck is None:
                return out
            boxes = (_resized(speck, finding.mask.shape, (self.height, self.width)),)
        out = np.zeros((self.size, self.size), dtype=bool)
        for box in boxes:
            inside = self.box(box)
            if inside is None:
                continue
            x0, x1 = _pixels(inside.x, inside.x + inside.w, self.size)
            y0, y1 = _pixels(inside.y, inside.y + inside.h, self.size)
            out[y0:y1, x0:x1] = True
        return out


def _covered(length: float, size: int) -> np.ndarray:
    """How much of each of ``size`` pixels a centred interval of ``length`` pixels covers, in [0, 1]."""
    start = (size - length) / 2
    pixel = np.arange(size)
    return np.clip(np.minimum(pixel + 1, start + length) - np.maximum(pixel, start), 0, 1)


def _resized(box: Box, shape: tuple[int, int], frame: tuple[int, int]) -> Box:
    """A box of an image of ``shape`` in the frame of another resolution."""
    down, right = frame[0] / shape[0], frame[1] / shape[1]
    return Box(box.x * right, box.y * down, box.w * right, box.h * down)


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    first = math.ceil(low - 0.5)
    last = math.ceil(high - 0.5)
    if last <= first:
        first = min(int((low + high) / 2), size - 1)
        last = first + 1
    return max(first, 0), min(last, size)


def box_of(mask: np.ndarray) -> Box | None:
    """The tight box of a bool ``(h, w)`` mask, None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1))


def to_images(
    studies: Sequence[Study],
    size: int,
    fit: Fit = "crop",
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    allow_none: bool = False,
) -> tuple[np.ndarray, list[Study], list[str]]:
    """All images of ``studies`` in a model's frame.

    Returns:
        uint8 ``(n, size, size)``, the studies they belong to, and one line for every study left out because its file
        cannot be read. One bad image among thousands is not fatal; a whole unreadable list is.

    Raises:
        ValueError: no image at all could be read.
    """
    images, kept, skipped = [], [], []
    for study in progress(studies):
        try:
            images.append(Frame(*study.size, size, fit).image(study.pixels()))
            kept.append(study)
        except ValueError as error:
            skipped.append(f"{study.id}: {error}")
    if studies and not images and not allow_none:
        raise ValueError(f"none of {len(studies)} images could be read; the first: {skipped[0]}")
    return np.stack(images) if images else np.zeros((0, size, size), np.uint8), kept, skipped


def split_by_patient(studies: Sequence[Study], fractions: dict[str, float], seed: int = 0) -> list[Study]:
    """Give each study a split so that no patient straddles two; ``fractions`` sum to 1, in the order given.

    The split of a patient depends only on its identifier and the seed, not on who else is in the list.

    Raises:
        ValueError: fractions below 0, or that do not sum to 1.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) < 0:
        raise ValueError(f"split fractions must be at least 0 and sum to 1, got {fractions}")
    names, edges = list(fractions), np.cumsum(list(fractions.values()))

    def split(patient: str) -> str:
        digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
        return names[min(int(np.searchsorted(edges, int.from_bytes(digest[:8]) / 2**64, "right")), len(names) - 1)]

    return [replace(s, split=split(s.patient)) for s in studies]

"""Pictures: radiographs with heatmaps and outlines over them.

A `Picture` is the one description of what is drawn. Here it becomes pixels, for grids (`chestxai.plots.grids`),
widgets and the README.

Row 0 is on top; pixel ``(row, column)`` covers ``[column, column + 1) × [row, row + 1)``; the patient's right is left.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from plotly.colors import sample_colorscale
from skimage.measure import find_contours

from chestxai.plots.style import COLORS, FINDING_COLORS, INK, text_width
from chestxai.postprocess import min_max as normalize
from chestxai.runs import InputError
from chestxai.studies import Box, Frame, Study

Images = np.ndarray | Sequence[np.ndarray]
Masks = Sequence[np.ndarray | None] | None
Boxes = Sequence[Sequence[tuple[str, Box]] | None] | None
Texts = Sequence[str | None] | None

#: Opacity of the hottest pixel of an overlay; the coldest is clear.
OPACITY = 0.75
COLORSCALE = "Viridis"
#: The colour scale as uint8 ``(256, 3)``.
PALETTE = np.array(sample_colorscale(COLORSCALE, np.linspace(0, 1, 256), colortype="tuple"))
PALETTE = (PALETTE * 255).round().astype(np.uint8)


class Scale(NamedTuple):
    """What the colours of heatmaps mean: the name of the values, and the values at the two ends of the colours.

    ``limits=None`` scales each map by its own minimum and maximum.
    """

    name: str = "attention"
    limits: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        """What a colour bar is called."""
        return self.name + ("" if self.limits else ", min–max per map")


class Outline(NamedTuple):
    """Lines around a target: float ``(k, 2)`` arrays of ``(x, y)`` in pixels of the image, first point equal to last.

    The name is in the data of a figure, and beside the line if ``labelled``.
    """

    loops: Sequence[np.ndarray]
    color: str = "white"
    name: str = "target"
    labelled: bool = False


@dataclass(frozen=True)
class Picture:
    """A radiograph, uint8 ``(H, W)``, with a heatmap, float ``(h, w)`` of any resolution, and outlines over it."""

    image: np.ndarray
    heatmap: np.ndarray | None = None
    outlines: Sequence[Outline] = ()

    def __post_init__(self) -> None:
        image = np.asarray(self.image)
        if image.dtype != np.uint8 or image.ndim != 2:
            raise InputError(f"an image must be uint8 (height, width), got {image.dtype} {image.shape}")
        if self.heatmap is not None:
            normalize(self.heatmap)  # raises here, not where the picture is shown


def as_pictures(
    images: Images, heatmaps: Sequence | None = None, masks: Masks = None, boxes: Boxes = None
) -> list[Picture]:
    """Combine images with heatmaps, masks (outlined in white) and labelled boxes.

    Args:
        images: uint8 ``(n, H, W)``.
        heatmaps, masks: Per image a float or a mask ``(h, w)`` of any resolution, or None.
        boxes: Per image a list of ``(label, Box)`` in pixels of that image, or None.

    Raises:
        InputError: No image, one image instead of several, lists of another length, or another dtype or shape.
    """
    if isinstance(images, np.ndarray) and images.ndim == 2:
        raise InputError("expected several images (n, height, width), got one: pass image[None]")
    n = len(images)
    if not n:
        raise InputError("there is no image to show")
    lists = listed(heatmaps, n, "heatmaps"), listed(masks, n, "masks"), listed(boxes, n, "lists of boxes")
    return [
        Picture(image, heatmap, [*_mask_outlines(mask, np.shape(image)), *_box_outlines(of or ())])
        for image, heatmap, mask, of in zip(images, *lists, strict=True)
    ]


def study_picture(study: Study, size: int) -> Picture:
    """A study letterboxed to ``size × size`` pixels, each of its findings outlined and labelled in its colour."""
    frame, outlines = Frame(*study.size, size, "letterbox"), []
    for finding in study.present():
        if finding.mask is None:
            outlines += _box_outlines([(finding.name, box) for box in map(frame.box, finding.boxes) if box])
        else:
            color = FINDING_COLORS.get(finding.name, "white")
            outlines += _mask_outlines(frame.mask(finding), (size, size), color, finding.name, True)
    return Picture(frame.image(study.pixels()), outlines=outlines)


def listed(values: Sequence | None, n: int, what: str) -> list:
    """``values`` as a list of ``n``, None as ``n`` times None; ``what`` they are is for the error message."""
    if values is not None and len(values) != n:
        raise InputError(f"{n} images but {len(values)} {what}")
    return [None] * n if values is None else list(values)


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a bool ``(h, w)`` mask along the edges of its pixels, its holes too; none of an empty mask.

    Each is a float ``(k, 2)`` array of ``(x, y)`` corners, first equal to last: of the mask of a box, the box.
    """
    loops = []
    for contour in find_contours(np.pad(np.asarray(mask, dtype=float), 1), 0.5, positive_orientation="low"):
        # A contour visits the middle of each pixel edge between inside and outside. A vertical edge has a whole x, a
        # horizontal one a whole y; where one follows the other, the corner between them has both.
        here = contour[:-1, ::-1] - 0.5
        after, vertical = np.roll(here, -1, axis=0), here[:, 0] % 1 == 0
        turns = vertical != np.roll(vertical, -1)
        corners = np.where(vertical, (here[:, 0], after[:, 1]), (after[:, 0], here[:, 1])).T[turns]
        loops.append(np.vstack([corners, corners[:1]]))
    return loops


def _mask_outlines(mask: np.ndarray | None, shape: tuple[int, int], *look: object) -> list[Outline]:
    """The outline of a mask of any resolution in an image of ``shape``; nothing for None or an empty mask."""
    if mask is None:
        return []
    if np.ndim(mask) != 2:
        raise InputError(f"a mask must be (height, width), got shape {np.shape(mask)}")
    loops = [loop * shape[::-1] / np.shape(mask)[::-1] for loop in outline(np.asarray(mask) > 0)]
    return [Outline(loops, *look)] if loops else []


def _box_outlines(boxes: Sequence[tuple[str, Box]]) -> list[Outline]:
    outlines = []
    for i, (label, box) in enumerate(boxes):
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * (box.w, box.h) + (box.x, box.y)
        color = FINDING_COLORS.get(label, COLORS[(i + 4) % len(COLORS)])
        outlines.append(Outline([corners], color, label, bool(label)))
    return outlines


def labels(picture: Picture, width: float, marker: str, line: float = 18) -> list[tuple[str, float, float, str]]:
    """Text, x and y of the top left corner, and colour of each label in a ``picture`` that is ``width`` pixels wide.

    A label (``line`` pixels high) is above its outline where there is room, off the side ``marker`` and other labels.
    """
    placed: list[tuple[str, float, float, str]] = []
    for mark in picture.outlines:
        if not mark.labelled:
            continue
        text = textwrap.shorten(mark.name, int(2.5 * width / line), placeholder="…")
        left, top = np.vstack(mark.loops).min(axis=0) * width / picture.image.shape[1]
        x, y = max(0, min(left, width - text_width(text, line / 1.5))), top - line
        if y < line:
            y = max(top, 0) + 2
        if marker and x < line + 2 and y < line:
            x = line + 2
        while any(abs(y - v) < line and abs(x - u) < 100 for _, u, v, _ in placed):
            y += line
        placed.append((text, x, y, mark.color))
    return placed


def enlarged(values: np.ndarray, least: int) -> np.ndarray:
    """Enlarge a small map to ``least`` pixels bilinearly: a browser would blend its colours instead of its values."""
    factor = max(1, -(-least // max(values.shape)))
    size = values.shape[1] * factor, values.shape[0] * factor
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def data_uri(image: Image.Image) -> str:
    """An ``image`` as a data URI (WebP): exact where it may be transparent (RGBA)."""
    buffer = io.BytesIO()
    image.save(buffer, "webp", lossless=image.mode == "RGBA", quality=70, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw(
    picture: Picture, size: int = 400, marker: str = "R", limits: tuple[float, float] | None = None, density: int = 1
) -> Image.Image:
    """A ``picture`` as pixels (RGB), ``size`` wide: image, overlay, outlines, labels, side ``marker`` ("" for none).

    A heatmap is normalised by ``limits`` to ``v`` in [0, 1] and laid over the image with opacity ``OPACITY · v``: where
    the model does not look, the radiograph stays as it is. For fine screens, ``density`` times as many pixels are drawn
    in width and height, of the image, lines and letters alike.
    """
    scale, thick = density * size / picture.image.shape[1], density * max(2, round(size / 140))
    extent = density * size, round(scale * len(picture.image))
    pixels = np.asarray(Image.fromarray(picture.image).resize(extent, Image.Resampling.BICUBIC))[..., None]
    if picture.heatmap is not None:
        v = np.asarray(Image.fromarray(normalize(picture.heatmap, limits)).resize(extent, Image.Resampling.BILINEAR))
        alpha = OPACITY * v[..., None]
        pixels = pixels * (1 - alpha) + PALETTE[(v * 255).round().astype(np.uint8)] * alpha
    canvas = Image.fromarray(np.broadcast_to(pixels.round().astype(np.uint8), (*extent[::-1], 3)))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(density * max(12, round(size / 22)))
    for mark in picture.outlines:
        for loop in mark.loops:
            for color, width in (("#111111", thick + 2 * density), (mark.color, thick)):
                pen.line([tuple(point) for point in loop * scale], color, width, joint="curve")
    line = font.size * 1.25
    for text, *corner, color in labels(picture, size, marker, line / density + 2):
        x, y = (density * place for place in corner)
        pen.rectangle((x, y, x + font.getlength(text) + 4, y + line), INK)
        pen.text((x + 2, y + line / 2), text, color, font, anchor="lm")
    if marker:
        pen.text((5 * density, 3 * density), marker, "white", font, stroke_width=density, stroke_fill="black")
    return canvas


def contact_sheet(
    images: Images,
    columns: int = 4,
    titles: Texts = None,
    heatmaps: Sequence[np.ndarray | None] | None = None,
    masks: Masks = None,
    size: int = 240,
) -> Image.Image:
    """A still picture (RGB) of radiographs, overlays and outlines: for a README, where no script runs.

    ``images``, ``heatmaps`` and ``masks`` are those of `as_pictures`; ``columns`` images in a row, each drawn ``size``
    pixels wide; ``titles``: a caption above each (shortened to one line), or None.
    """
    drawn = [draw(picture, size) for picture in as_pictures(images, heatmaps, masks)]
    columns, gap = min(columns, len(drawn)), 10
    font = ImageFont.load_default(max(12, round(size / 16)))
    caption = round(font.size * 1.5) if any(titles or ()) else 0
    step = caption + drawn[0].height + gap
    canvas = Image.new("RGB", (gap + columns * (size + gap), gap + -(-len(drawn) // columns) * step), "white")
    for i, (picture, title) in enumerate(zip(drawn, listed(titles, len(drawn), "titles"), strict=True)):
        x, y = gap + (i % columns) * (size + gap), gap + (i // columns) * step + caption
        canvas.paste(picture, (x, y))
        text = title or ""
        while len(text) > 1 and font.getlength(text) > size:
            text = text[:-2] + "…"
        ImageDraw.Draw(canvas).text((x, y - 5), text, INK, font, anchor="ls")
    return canvas

"""Grids of pictures: radiographs, overlays, studies; variants side by side.

They are HTML that needs neither script nor style to make sense, as an untrusted notebook has none.
"""

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chestxai.plots import page, pictures
from chestxai.plots.pictures import Boxes, Images, Masks, Picture, Scale, Texts, as_pictures, listed, study_picture
from chestxai.plots.style import WIDTH
from chestxai.runs import InputError
from chestxai.studies import Study

_GAP = 12  # pixels between pictures


@dataclass(frozen=True, repr=False)
class Grid:
    """Equally large pictures, row by row, and the plain text around them. A notebook shows it as HTML."""

    pictures: Sequence[Picture]
    columns: int = 4
    title: str = ""
    captions: Sequence[str | None] = ()  #: above each picture
    headers: Sequence[str] = ()  #: above each column
    row_titles: Sequence[str | None] = ()  #: above each row, as wide as the grid
    footers: Sequence[str | None] = ()  #: below each picture
    scale: Scale | None = None  #: limits and colours of the heatmaps; adds a colour bar
    largest: float = 340  #: largest width of a picture in pixels
    marker: str = "R"  #: the side marker of each picture

    def __repr__(self) -> str:
        return f"<{len(self.pictures)} pictures>"

    def _repr_html_(self) -> str:
        columns = max(1, min(self.columns, len(self.pictures)))
        width = int(max(100, min(self.largest, (WIDTH + _GAP) / columns - _GAP)))
        about = [self._words(i, columns) for i in range(len(self.pictures))]
        parts = []
        for i, (picture, words) in enumerate(zip(self.pictures, about, strict=True)):
            if words["row"] and i % columns == 0:
                parts.append(f"<div class='cx-row'>{html.escape(words['row'])}</div>")
            parts.append(f"<div class='cx-cell'>{self._cell(picture, words, i < columns, width)}</div>")
        share = f"calc((100% - {_GAP * (columns - 1)}px)/{columns})"
        tracks = f"{columns},minmax(0,1fr)" if self.headers else f"auto-fill,minmax(max(150px,{share}),1fr)"
        level = "start" if any(self.footers) else "end"  # pictures of a row stand on one line
        style = f"max-width:{columns * (width + _GAP) - _GAP}px;grid-template-columns:repeat({tracks})"
        body = f"<div class='cx-grid' style='{style};align-items:{level}'>{''.join(parts)}</div>{self._bar()}"
        above = "; ".join(dict.fromkeys(" ".join(text.split()) for text in (*self.captions, *self.row_titles) if text))
        caption = "" if self.title else textwrap.shorten(above, 160, placeholder=" …") or "Pictures"
        table = pd.DataFrame([{k: v for k, v in words.items() if v} for words in about]).fillna("")
        return page.framed(self.title, caption, body, table)

    def _words(self, i: int, columns: int) -> dict[str, str | None]:
        """The words around picture ``i``, and what is outlined in it."""
        places = {"row": (self.row_titles, i // columns), "column": (self.headers, i % columns)}
        places |= {"caption": (self.captions, i), "note": (self.footers, i)}
        corners = [(mark.name, np.vstack(mark.loops)) for mark in self.pictures[i].outlines]
        boxes = [
            "{} ({:.0f}, {:.0f}, {:.0f}, {:.0f})".format(n, *c.min(axis=0), *np.ptp(c, axis=0)) for n, c in corners
        ]
        words = {name: texts[k] if k < len(texts) else None for name, (texts, k) in places.items()}
        tall, wide = self.pictures[i].image.shape
        words |= {} if any(words.values()) or boxes else {"picture": str(i + 1)}
        return words | {f"outlined (x, y, w, h) in {wide} × {tall} pixels": "; ".join(boxes)}

    def _cell(self, picture: Picture, words: dict[str, str | None], first: bool, width: int) -> str:
        """A ``picture``, ``width`` pixels wide, with the ``words`` around it, the column's in the ``first`` row."""
        limits = self.scale.limits if self.scale else None
        source = pictures.data_uri(pictures.draw(picture, width, self.marker, limits, density=2))
        above = f"<p><b>{html.escape(words['column'])}</b></p>" if words["column"] and first else ""
        if words["caption"]:
            above += f"<p>{html.escape(words['caption']).replace(chr(10), '<br>')}</p>"
        below = f"<p>{html.escape(words['note'])}</p>" if words["note"] else ""
        alt = html.escape("; ".join(f"{name}: {text}" for name, text in words.items() if text), quote=True)
        return f"{above}<img alt='{alt}' src='{source}' width='{width}'>{below}"

    def _bar(self) -> str:
        """The colours of the heatmaps, with the values at their ends."""
        if self.scale is None:
            return ""
        low, high = (f"{end:.3g}" for end in self.scale.limits) if self.scale.limits else ("min", "max")
        ramp = ",".join("#{:02x}{:02x}{:02x}".format(*color) for color in pictures.PALETTE[::51])
        bar = f"<span class='cx-bar' style='background:linear-gradient(90deg,{ramp})'></span>"
        return f"<p>{html.escape(self.scale.title)}: <nobr>{low}{bar}{high}</nobr></p>"


def images(
    images: Images,
    titles: Texts = None,
    columns: int = 4,
    boxes: Boxes = None,
    masks: Masks = None,
    title: str = "",
    marker: str = "R",
) -> Grid:
    """A grid of radiographs.

    Args:
        images, boxes, masks: As in `as_pictures`; all images of one shape.
        titles: A caption above each image (plain text, wrapped), or None.
        columns, title: Images per row, and title of the figure.
        marker: The side marker at the image's left; "" for none.
    """
    shown = as_pictures(images, masks=masks, boxes=boxes)
    return Grid(shown, columns, title, listed(titles, len(shown), "titles"), marker=marker)


def study_sheet(studies: Sequence[Study], titles: Texts = None, size: int = 256, title: str = "") -> Grid:
    """A grid of studies with readable images, letterboxed to ``size`` pixels, each finding outlined in its colour.

    ``titles`` (a caption each) and ``title`` are as in `images`.
    """
    if not studies:
        raise InputError("there is no study to show")
    shown = [study_picture(study, size) for study in studies]
    return Grid(shown, title=title, captions=listed(titles, len(shown), "titles"))


def overlays(
    images: Images,
    heatmaps: Images,
    masks: Masks = None,
    titles: Texts = None,
    columns: int = 4,
    boxes: Boxes = None,
    title: str = "",
    scale: str | Scale = "attention",
) -> Grid:
    """A grid of heatmaps over their radiographs; opacity grows with the value, the targets are outlined in white.

    Args:
        images, heatmaps, masks, boxes: As in `as_pictures`; all images of one shape.
        titles, columns, title: As in `images`.
        scale: What the values are; or a `Scale`, which also gives the values at the ends of the colours.
    """
    shown, scale = as_pictures(images, heatmaps, masks, boxes), Scale(scale) if isinstance(scale, str) else scale
    return Grid(shown, columns, title, listed(titles, len(shown), "titles"), scale=scale)


def overlay(image: np.ndarray, heatmap: np.ndarray, mask: np.ndarray | None = None, title: str = "") -> Grid:
    """One ``heatmap`` over its ``image``, with the outline of a ``mask`` and a ``title``; see `overlays`."""
    return overlays([image], [heatmap], [mask], columns=1, title=title)


def overlay_grid(
    images: Images,
    heatmaps: Mapping[str, Sequence[np.ndarray]],
    masks: Masks = None,
    titles: Texts = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> Grid:
    """Studies in rows, variants or training steps in columns, the plain radiograph first.

    ``images`` and ``masks`` are as in `as_pictures`, one for each row; ``heatmaps``: name of the column → a heatmap for
    each row, in the order of the columns; ``captions``: name of the column → a short text below each of its overlays,
    such as its score. ``titles`` stand above the rows, such as the phrase that is grounded; ``title`` is the figure's.
    """
    n = len(images)
    columns = [as_pictures(images, None, masks)]
    columns += [as_pictures(images, listed(maps, n, f"heatmaps of {name}"), masks) for name, maps in heatmaps.items()]
    below = [[None] * n, *(listed((captions or {}).get(name), n, f"captions of {name}") for name in heatmaps)]
    shown, footers = ([item for row in zip(*lists, strict=True) for item in row] for lists in (columns, below))
    return Grid(
        shown, len(columns), title, headers=["image", *heatmaps], row_titles=listed(titles, n, "titles"),
        footers=footers, scale=Scale(), largest=220,
    )  # fmt: skip

"""The book's two diagrams, ``_static/model.svg`` and ``_static/map.svg``: boxes and arrows, with a text alternative.

Run once, from the project: ``python tools/make_diagrams.py``.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

STATIC = Path(__file__).parents[1] / "_static"
#: How a part is treated in training → colours of its box, and the dashes of its frame.
STYLES = {
    "data": ("#ffffff", "#555555", ""),
    "fixed": ("#e4e7eb", "#555555", ""),
    "learns": ("#cfe3f5", "#0b5394", ""),
    "recipe": ("#fdebd0", "#b45f06", "6 4"),
}


class Box(NamedTuple):
    """A box by the centre of its left edge."""

    x: float
    y: float
    text: str
    style: str = "data"
    width: float = 132
    height: float = 56

    def svg(self) -> str:
        fill, line, dashes = STYLES[self.style]
        lines = self.text.split("\n")
        middle, top = self.x + self.width / 2, self.y + 5 - 9 * (len(lines) - 1)
        rows = "".join(f'<tspan x="{middle}" y="{top + 18 * i}">{escape(text)}</tspan>' for i, text in enumerate(lines))
        frame = f'fill="{fill}" stroke="{line}" stroke-width="1.5" stroke-dasharray="{dashes}"'
        place = f'x="{self.x}" y="{self.y - self.height / 2}" width="{self.width}" height="{self.height}" rx="8"'
        return f'<rect {place} {frame}/><text text-anchor="middle">{rows}</text>'


def arrow(*points: tuple[float, float], label: str = "", at: tuple[float, float] = (0, 0)) -> str:
    """A line through ``points`` with a head at its end, and a ``label`` that starts at a point."""
    path = " ".join(f"{x},{y}" for x, y in points)
    line = f'<polyline points="{path}" fill="none" stroke="#333333" stroke-width="1.5" marker-end="url(#head)"/>'
    return line + (f'<text x="{at[0]}" y="{at[1]}" font-style="italic">{escape(label)}</text>' if label else "")


def diagram(name: str, size: tuple[int, int], title: str, text: str, parts: list[Box | str]) -> None:
    """Write ``_static/<name>.svg``.

    Args:
        name: of the file.
        size: width and height.
        title, text: what a screen reader says.
        parts: boxes, and SVG.
    """
    width, height = size
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    head = f'<defs>{head}<path d="M0,0 L8,4 L0,8 z" fill="#333333"/></marker></defs>'
    drawn = "\n".join(part.svg() if isinstance(part, Box) else part for part in parts)
    (STATIC / f"{name}.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="14" fill="#222222">\n<title>{escape(title)}</title>\n'
        f'<desc>{escape(text)}</desc>\n{head}\n<rect width="{width}" height="{height}" rx="10" fill="#fafafa"/>\n'
        f"{drawn}\n</svg>\n",
        encoding="utf-8",
    )


def legend(y: float) -> list[Box | str]:
    """What the boxes' colours mean."""
    names = {"fixed": "never learns", "learns": "always learns", "recipe": "learns as the recipe says"}
    return [Box(24 + 230 * i, y, text, style, 200, 30) for i, (style, text) in enumerate(names.items())]


def model() -> None:
    """Image and prompt meet in the U-Net."""
    diagram(
        "model",
        (860, 340),
        "The model",
        "An image becomes a latent through the autoencoder; noise is added. A prompt becomes one state for each token "
        "through the text encoder. The U-Net reads the noisy latent and, by cross-attention, the states, and predicts "
        "the noise.",
        [
            Box(24, 60, "image"), arrow((156, 60), (190, 60)),
            Box(192, 60, "autoencoder\n(VAE)", "fixed"), arrow((324, 60), (358, 60)),
            Box(360, 60, "latent x₀\n+ noise ε"), arrow((492, 60), (526, 60), label="xₜ", at=(496, 50)),
            Box(528, 110, "U-Net", "learns", 132, 156), arrow((660, 110), (694, 110)),
            Box(696, 110, "predicted\nnoise"),
            Box(24, 220, "prompt"), arrow((156, 220), (190, 220)),
            Box(192, 220, "text encoder", "recipe"), arrow((324, 220), (358, 220)),
            Box(360, 220, "a state for\neach token"),
            arrow((492, 220), (594, 220), (594, 190), label="cross-attention", at=(604, 224)),
            *legend(304),
        ],
    )  # fmt: skip


def heatmap() -> None:
    """From a held-out image and a phrase to a heatmap and its score."""
    diagram(
        "map",
        (860, 300),
        "How a map is made",
        "A held-out image becomes a latent. Noise of several timesteps is added to it, and the U-Net reads each noisy "
        "latent with the prompt once. The attention probabilities of the phrase's tokens are averaged over tokens, "
        "heads, layers and timesteps. The mean is the heatmap, which is enlarged and compared with the mask of the "
        "finding.",
        [
            Box(24, 60, "held-out\nimage"), arrow((156, 60), (190, 60)),
            Box(192, 60, "latent, with noise\nof timestep t", width=148), arrow((340, 60), (372, 60)),
            Box(374, 60, "U-Net,\none pass each", "fixed"), arrow((506, 60), (540, 60)),
            Box(542, 60, "attention probabilities:\ntimestep × layer × head\n× token × position", width=206, height=72),
            Box(374, 150, "states of\nthe prompt", "fixed"), arrow((440, 122), (440, 91)),
            arrow((645, 96), (645, 118), label="tokens of the phrase only", at=(655, 112)),
            Box(542, 150, "mean over tokens,\nheads, layers, timesteps", width=206),
            arrow((645, 178), (645, 208)),
            Box(542, 240, "heatmap,\nenlarged to the image", width=206), arrow((542, 240), (508, 240)),
            Box(374, 240, "score"), arrow((340, 240), (372, 240)),
            Box(192, 240, "mask of\nthe finding", width=148),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    model()
    heatmap()

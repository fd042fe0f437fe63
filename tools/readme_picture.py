"""Draws data/overview.png, the picture of the README: where each variant looks, with the finding and without it, and
how the runs of ``data/results/recipes-final.csv`` generate and point; and data/overview-dark.png, the same for dark
pages.

    for variant in frozen learnable fifth; do python -m chestxai.finetune --profile recipes --variant $variant; done
    python tools/readme_picture.py --profile recipes --variants frozen,learnable,fifth --seeds 0

The options are those of finished runs on phantoms. Nothing is picked by hand: of every other finding it shows the first
test phrase. The image without the finding is the same patient on the same day, and the noise is the same.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from chestxai import batch, grounding, models, plots, profiles, runs
from chestxai.batch import Node
from chestxai.book import guard
from chestxai.grounding import dataset, passes
from chestxai.profiles import ROOT, Profile
from chestxai.runs import InputError, Run
from chestxai.sources import phantom
from chestxai.studies import FINDINGS, Frame, GroundTruth, phrases

_SIZE, _GAP = 170, 10  #: pixels of a radiograph, and between two


def maps_of(profile: Profile, run: Run, truths: Sequence[GroundTruth], images: np.ndarray) -> np.ndarray:
    """Heatmaps of the run's last checkpoint on ``images``, under the noise of the images as they are.

    Args:
        profile: of the run.
        run: finished.
        truths: the phrases, each with its image.
        images: uint8 ``(n, s, s)``, one for each phrase.
    """
    settings, pipeline = profile.grounding, models.load_pipeline(run.model)
    own = [Frame(*t.study.size, profile.data.size, profile.data.fit).image(t.study.pixels()) for t in truths]
    times = grounding.paper_timesteps(pipeline.scheduler, settings.steps, settings.last, settings.stride)
    return grounding.ground_many(
        pipeline, images, [t.finding.phrase for t in truths],
        [dataset.target_span(t.finding, settings.target) for t in truths],
        keys=[passes.image_key(image) for image in own], timesteps=times, draws=settings.draws, batch=settings.batch,
    )  # fmt: skip


def draw(profile: Profile, nodes: Sequence[Node], path: Path, data: str = "") -> Path:
    """Draw the picture: in each row an image with the finding outlined and the heatmap of every variant, then the same
    without the finding.

    Args:
        profile: of the runs.
        nodes: of `batch.plan`; of each variant the first seed is shown.
        path: PNG to write.
        data: folder that holds one sub-folder per source.

    Raises:
        InputError: the data are credentialed, and their images may not be passed on; or they are no phantoms, from
            which alone a finding can be taken.
    """
    closed = guard.closed(profile)
    if closed:
        raise InputError(f"the README's picture may not show {', '.join(closed)}: its images are passed on to no one")
    folders = list(dict.fromkeys(node.folder for node in nodes if "grounding.csv" in node.makes))
    first: dict[str, Run] = {}
    for folder in folders:
        first.setdefault(folder.parent.name, Run(folder))
    return draw_runs(profile, first, path, data)


def draw_runs(profile: Profile, chosen: dict[str, Run], path: Path, data: str = "") -> Path:
    """As `draw`, of these runs.

    Args:
        profile: of the runs.
        chosen: variant -> run.
        path, data: as in `draw`.
    """
    every = phrases(profiles.studies(profile, "test", data, boxes=True))
    truths = [next((t for t in every if t.finding.name == name), None) for name in FINDINGS[1::2]]
    truths = [truth for truth in truths if truth is not None]
    frames = [Frame(*t.study.size, profile.data.size, profile.data.fit) for t in truths]
    pairs = [
        [t.study.pixels() for t in truths],
        [phantom.counterfactual(t.study, t.finding.name, "without")[0] for t in truths],
    ]
    pairs = [np.stack([f.image(image) for f, image in zip(frames, some, strict=True)]) for some in pairs]
    maps = [[maps_of(profile, run, truths, images) for run in chosen.values()] for images in pairs]
    cells = []
    for i, truth in enumerate(truths):
        mask = frames[i].mask(truth.finding)
        for images, of, title in zip(pairs, maps, (truth.finding.name, "the same without"), strict=True):
            cells.append((images[i], None, mask if of is maps[0] else None, title))
            cells += [(images[i], heat[i], mask, name) for name, heat in zip(chosen, of, strict=True)]
    images, heatmaps, masks, titles = zip(*cells, strict=True)
    picture = plots.contact_sheet(list(images), 2 * (1 + len(chosen)), titles, heatmaps, masks, size=_SIZE)
    below = planes(profile, list(chosen), picture.width)
    whole = Image.new("RGB", (picture.width, picture.height + below.height), "white")
    whole.paste(picture, (0, 0))
    whole.paste(below, (0, picture.height))
    with runs.replacing(path) as part:
        # Median cut would lose the few pixels of the marks.
        whole.quantize(256, Image.Quantize.FASTOCTREE).save(part, "png", optimize=True)
    with runs.replacing(path.with_stem(f"{path.stem}-dark")) as part:
        dark = darkened(whole, picture.height, len(truths), 2 * (1 + len(chosen)))
        dark.quantize(256, Image.Quantize.FASTOCTREE).save(part, "png", optimize=True)
    return path


def darkened(whole: Image.Image, height: int, rows: int, columns: int) -> Image.Image:
    """The picture for a dark page: light and dark changed, hues kept, radiographs and maps as they are.

    Args:
        whole: RGB; above the contact sheet, below the planes.
        height: of the sheet in pixels.
        rows, columns: of the sheet.
    """
    pixels = np.asarray(whole).astype(int)
    ends = pixels.max(axis=2, keepdims=True) + pixels.min(axis=2, keepdims=True)
    dark = (np.array([20, 24, 30]) + (pixels + 255 - ends) * 0.88).round().astype(np.uint8)
    step, across = (height - _GAP) / rows, (whole.width - _GAP) // columns
    for row in range(1, rows + 1):
        bottom = round(row * step)
        for left in range(_GAP, whole.width - _GAP, across):
            cell = np.s_[bottom - _SIZE : bottom, left : left + _SIZE]
            dark[cell] = pixels[cell]
    return Image.fromarray(dark)


def planes(profile: Profile, variants: Sequence[str], width: int) -> Image.Image:
    """The planes of fidelity and each test of the primary endpoint, side by side, as Chromium draws them.

    Args:
        profile: whose endpoint it is.
        variants: those that are shown.
        width: in pixels.

    Raises:
        InputError: there is no Chromium.
    """
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise InputError("the planes are drawn by Chromium, which is not installed (apt-get install chromium)")
    table = pd.read_csv(profiles.DATA / "results" / "recipes-final.csv")
    table = table.query("base == @profile.base and variant in @variants").drop(columns="base")
    size = {"width": width // len(profile.statistics.endpoint), "height": 340, "showlegend": False}
    figures = [plots.recipes_plane(table, [name]).update_layout(**size) for name in profile.statistics.endpoint]
    options = {"full_html": False, "config": {"displayModeBar": False}}
    parts = [figure.to_html(include_plotlyjs=not i, **options) for i, figure in enumerate(figures)]
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        page.write_text(f"<body style='margin:0;display:flex'>{''.join(parts)}</body>", "utf-8")
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=60000"]
        options = [f"--window-size={width},{size['height']}", f"--screenshot={shot}", f"--user-data-dir={folder}/home"]
        subprocess.run([program, *flags, *options, page.as_uri()], check=True, capture_output=True)
        return Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python tools/readme_picture.py``."""
    parser = argparse.ArgumentParser(description="Draw the README's picture, data/overview.png.")
    batch.add_options(parser)
    options = parser.parse_args(arguments)
    profile, nodes = batch.planned(options)
    print(draw(profile, nodes, ROOT / "data" / "overview.png", options.data))
    return 0


if __name__ == "__main__":
    runs.command(main)

"""Draws data/overview.png, the picture of the README: test radiographs, and where each variant looks.

    python tools/readme_picture.py --profile demo

The options are those of a finished batch. Nothing is picked by hand: of each finding it shows the first test phrase.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from chestxai import batch, plots, profiles, runs
from chestxai.batch import Node
from chestxai.book import guard
from chestxai.profiles import ROOT, Profile
from chestxai.runs import InputError, Run
from chestxai.studies import FINDINGS, Frame, phrases


def draw(profile: Profile, nodes: Sequence[Node], path: Path, data: str = "") -> Path:
    """Draw the picture: in each row an image with the finding outlined, then the heatmap of every variant.

    Args:
        profile: of the runs.
        nodes: of `batch.plan`; of each variant the first seed is shown.
        path: PNG to write.
        data: folder that holds one sub-folder per source.

    Raises:
        InputError: the data are credentialed, and their images may not be passed on.
    """
    closed = guard.closed(profile)
    if closed:
        raise InputError(f"the README's picture may not show {', '.join(closed)}: its images are passed on to no one")
    folders = list(dict.fromkeys(node.folder for node in nodes if "grounding.csv" in node.makes))
    first = {folder.parent.name: Run(folder) for folder in reversed(folders)}
    truths = phrases(profiles.studies(profile, "test", data, boxes=True))
    heatmaps = {}
    for variant in profile.variants:
        stored = first[variant].maps(max(first[variant].steps()))
        heatmaps[variant] = dict(zip(stored["rows"].tolist(), stored["maps"].numpy(), strict=True))
    rows = [next((i for i, t in enumerate(truths) if t.finding.name == name), None) for name in FINDINGS]
    rows = [i for i in rows if i is not None and all(i in maps for maps in heatmaps.values())]
    images, masks, maps, titles = [], [], [], []
    for i in rows:
        frame = Frame(*truths[i].study.size, profile.data.size, profile.data.fit)
        images += [frame.image(truths[i].study.pixels())] * (1 + len(heatmaps))
        masks += [frame.mask(truths[i].finding)] * (1 + len(heatmaps))
        maps += [None, *(stored[i] for stored in heatmaps.values())]
        titles += [truths[i].finding.name, *heatmaps]
    picture = plots.contact_sheet(images, 2 * (1 + len(heatmaps)), titles, maps, masks, size=170)
    with runs.replacing(path) as part:
        picture.save(part, "png", optimize=True)
    return path


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

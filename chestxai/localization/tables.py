"""Tables of scores, a row per phrase: from maps in memory, or again from what a run has stored.

``python -m chestxai.localization runs/demo/frozen/seed-0 --protocol vilouras2024`` needs neither model nor images.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from chestxai import runs
from chestxai.localization.maps import EIGHT, CachedMap, CachedMask, as_mask
from chestxai.localization.protocols import PROTOCOLS, Protocol, get_protocol, score
from chestxai.localization.references import chance, field
from chestxai.localization.scores import auc_roc_weighted, average_precision
from chestxai.runs import InputError, MissingError, Run
from chestxai.studies import Finding, Fit, Frame, GroundTruth


def score_truths(
    heatmaps: Sequence[np.ndarray],
    truths: Sequence[GroundTruth],
    priors: Mapping[str, np.ndarray],
    size: int,
    fit: Fit = "crop",
    text_prior: Callable[[Finding], np.ndarray] | None = None,
) -> pd.DataFrame:
    """What a row of ``grounding.csv`` says of a phrase, its mask (``kept`` by the crop, ``target`` area) and its map.

    `book_scores`, and the same with ``prior_``, ``text_prior_`` and ``chance_``. ``heatmaps``, float ``(h, w)``, belong
    to ``truths`` in a frame of ``size`` and ``fit``; ``priors`` and ``text_prior`` (None leaves its columns out) are of
    `location_priors` and `text_priors`.
    """
    rows, where = [], field(priors)
    for heatmap, truth in zip(heatmaps, truths, strict=True):
        finding, frame = truth.finding, Frame(*truth.study.size, size, fit)
        maps = {"": heatmap, "prior_": priors[finding.name]}
        if text_prior is not None:
            maps["text_prior_"] = text_prior(finding)
        try:
            mask = CachedMask(frame.mask(finding))
            row = truth.about() | {"kept": kept(finding, frame), "target": float(mask.mask.mean())}
            for prefix, some in maps.items():
                row |= _prefixed(prefix, book_scores(some, mask, priors[finding.name], where))
            exact = {"auc_roc_shuffled": 0.5, "auc_roc_field": 0.5, "average_precision": row["target"]}
            rows.append(row | _prefixed("chance_", chance(mask, np.shape(heatmap)) | exact))
        except InputError as error:
            raise InputError(f"{truth.key}: {error}") from error
    return pd.DataFrame(rows)


def book_scores(
    heatmap: np.ndarray, mask: np.ndarray | CachedMask, prior: np.ndarray, where: np.ndarray
) -> dict[str, float]:
    """The scores of the book of a ``heatmap`` on a ``mask``, and three that ask more than AUC-ROC.

    They are average precision, the shuffled AUC by the finding's ``prior``, and the AUC within the `field`, bool
    ``where``; see `auc_roc_weighted`.
    """
    heatmap, mask = CachedMap(heatmap), as_mask(mask)
    return score(heatmap, mask) | {
        "auc_roc_shuffled": auc_roc_weighted(heatmap, mask, prior),
        "auc_roc_field": auc_roc_weighted(heatmap, mask, where),
        "average_precision": average_precision(heatmap, mask),
    }


def _prefixed(prefix: str, row: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in row.items()}


def box_labels(finding: Finding, frame: Frame) -> np.ndarray:
    """The mask of a ``finding`` in a ``frame`` with its boxes told apart: uint8 ``(size, size)``, 0 outside.

    Boxes are labelled in their order, a pixel of several by the first; an exact mask by its 8-connected parts. Parts
    from the 255th on share a label.
    """
    mask = frame.mask(finding)
    if finding.mask is not None:
        return np.minimum(ndimage.label(mask, structure=EIGHT)[0], 255).astype(np.uint8)
    labels = np.zeros(mask.shape, dtype=np.uint8)
    for i, box in enumerate(finding.boxes, start=1):
        labels[(labels == 0) & frame.mask(replace(finding, boxes=(box,)))] = min(i, 255)
    return labels


def kept(finding: Finding, frame: Frame) -> float:
    """Share of a ``finding``'s area, its exact mask's or the sum of its boxes', that the ``frame`` keeps, in [0, 1]."""
    if finding.mask is None:
        area = sum(box.area for box in finding.boxes)
        return sum(frame.kept(box) * box.area for box in finding.boxes) / area
    inside = True
    sizes = zip(finding.mask.shape, (frame.height, frame.width), frame.offset[::-1], strict=True)
    for index, (stored, length, offset) in zip(np.nonzero(finding.mask), sizes, strict=True):
        place = (index + 0.5) * length / stored * frame.scale + offset
        inside = inside & (place > 0) & (place < frame.size)
    return float(inside.mean())


def save_masks(path: Path, truths: Sequence[GroundTruth], size: int, fit: Fit = "crop") -> Path:
    """Write the masks of a data set beside the maps of a run, for `rescore`.

    Row i of the safetensors file ``path`` is ``truths[i]`` in a frame of ``size`` and ``fit``: ``masks`` uint8 ``(n,
    size, size)`` (`box_labels`), ``kept`` float32 ``(n,)``, and in the metadata ``keys``, a JSON list. ``rows`` of a
    file of maps refers to these numbers.
    """
    masks, share = torch.zeros((len(truths), size, size), dtype=torch.uint8), torch.zeros(len(truths))
    for i, truth in enumerate(truths):
        frame = Frame(*truth.study.size, size, fit)
        masks[i] = torch.from_numpy(box_labels(truth.finding, frame))
        share[i] = kept(truth.finding, frame)
    return runs.save_tensors(path, {"masks": masks, "kept": share}, {"keys": json.dumps([t.key for t in truths])})


def rescore(folder: Path, protocol: str | Protocol = "book", random: int = 32) -> tuple[pd.DataFrame, list[str]]:
    """Score the stored maps of a run again under any ``protocol``: a table, and a line for each row left out.

    Columns: ``study, patient, finding, phrase, step``; ``target``, the area of the mask; ``kept``, the share of the
    finding that the crop left; the scores; and with ``chance_`` those of as many ``random`` maps, if any. InputError
    where a file in ``folder`` is missing, damaged or of other data than the table, or no row can be scored.
    """
    run, protocol = Run(folder), get_protocol(protocol)
    about = run.grounding()[[*runs.TEXT_COLUMNS, "step"]]
    rows, skipped, random_rows = [], [], {}
    for row, number, heatmap, labels in runs.progress(_stored(run, about), "scoring", len(about)):
        try:
            mask = CachedMask(labels)
            row |= {"target": float(mask.mask.mean()), "kept": row.pop("kept")} | score(heatmap, mask, protocol)
            if random and number not in random_rows:
                values = chance(mask, heatmap.shape, random, protocol=protocol)
                random_rows[number] = _prefixed("chance_", values)
            rows.append(row | random_rows.get(number, {}))
        except InputError as error:
            skipped.append(f"step {row['step']}, {row['study']}/{row['finding']}/{row['phrase']}: {error}")
    if not rows:
        raise InputError(f"{run.folder}: none of {len(about)} rows could be scored; the first: {skipped[0]}")
    return pd.DataFrame(rows), skipped


def _stored(run: Run, about: pd.DataFrame) -> Iterator[tuple[dict, int, np.ndarray, np.ndarray]]:
    """For each row of the table: its text with ``step`` and ``kept``, the number of its mask, its map and its mask."""
    path, again = run.masks_file, f"delete {run.masks_file.parent} and {run.remedy()}"
    if not path.is_file():
        raise MissingError(f"{path} is missing: {run.remedy()}")
    # Mapped from the file, and checked against its checksum once.
    content, keys = runs.load_tensors(path), json.loads(runs.tensor_metadata(path).get("keys", "[]"))
    if lacking := {"masks", "kept"} - content.keys():
        raise InputError(f"{path}: holds no {' and no '.join(sorted(lacking))}; {again}")
    masks, share = content["masks"].numpy(), content["kept"].tolist()
    for step, group in about.groupby("step", sort=False):
        stored = run.maps(step)
        numbers = stored["rows"].tolist()
        names = (group["study"] + "/" + group["finding"] + "/" + group["phrase"]).tolist()
        if names != [keys[i] if 0 <= i < len(keys) else None for i in numbers]:
            counts = f"its {len(numbers)} maps and masks are not of the {len(group)} rows of step {step}"
            raise InputError(f"{run.maps_file(step)}: {counts} in {run.grounding_file}; {again}")
        for row, number, heatmap in zip(group.to_dict("records"), numbers, stored["maps"].numpy(), strict=True):
            yield row | {"kept": share[number]}, number, heatmap, masks[number]


def averages(scores: pd.DataFrame, protocol: str | Protocol = "book") -> pd.DataFrame:
    """Means of ``scores``, of `rescore`, as the ``protocol`` takes them: a row per step and kind ("map", "chance")."""
    protocol, parts = get_protocol(protocol), {}
    for kind, prefix in (("map", ""), ("chance", "chance_")):
        columns = {prefix + name: name for name in protocol.scores}
        if set(columns) <= set(scores):
            keys = ["step", "finding"] if protocol.average == "findings" else ["step"]
            means = scores.groupby(keys)[list(columns)].mean().groupby("step").mean()
            parts[kind] = means.rename(columns=columns)
    return pd.concat(parts, names=["kind"]).swaplevel().sort_index(level="step", sort_remaining=False, kind="stable")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.localization``."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.localization",
        description="Score the stored heatmaps of a run again, under another protocol.",
        epilog="protocols: " + "; ".join(f"{name}: {p.about}" for name, p in PROTOCOLS.items()),
    )
    parser.add_argument("run", type=Path, help="folder of a run, or its grounding.csv")
    parser.add_argument("--protocol", default="book", help=f"{', '.join(PROTOCOLS)} (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="table to write (default: grounding-<protocol>.csv beside the first)")
    parser.add_argument(
        "--random", type=runs.whole(0, 100_000), default=32, help="random maps for chance (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    run = Run(options.run.parent if options.run.name == "grounding.csv" else options.run)
    protocol = get_protocol(options.protocol)
    out = options.out or run.folder / f"grounding-{options.protocol}.csv"
    if out.resolve() == run.grounding_file.resolve():
        raise InputError(f"--out {out} is the table to read: choose another name")
    scores, skipped = rescore(run.folder, protocol, options.random)
    runs.write_atomic(out, scores.to_csv(index=False))
    print(f"{options.protocol} ({protocol.about}), mean over {protocol.average}:")
    print(averages(scores, protocol).to_string(float_format="{:.3f}".format))
    lines = [f"  {line}" for line in skipped[:10]] + [f"  and {len(skipped) - 10} more"] * (len(skipped) > 10)
    print(f"{len(scores)} rows in {out}" + (f"; {len(skipped)} left out:" if skipped else "."), *lines, sep="\n")
    return 0

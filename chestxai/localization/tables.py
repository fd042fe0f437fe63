"""Tables of scores, a row per phrase: from maps in memory, or again from what a run has stored.

    python -m chestxai.localization runs/demo/frozen/seed-0 --protocol vilouras2024

needs neither the model nor the images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from chestxai import runs
from chestxai.localization.maps import EIGHT, CachedMask
from chestxai.localization.protocols import PROTOCOLS, Protocol, get_protocol, score
from chestxai.localization.references import chance
from chestxai.localization.scores import auc_roc_weighted, average_precision
from chestxai.runs import InputError, MissingError, Run
from chestxai.studies import Finding, Fit, Frame, GroundTruth


def score_table(
    heatmaps: Iterable[np.ndarray],
    masks: Sequence[np.ndarray],
    priors: Sequence[np.ndarray] | None = None,
    protocol: str | Protocol = "book",
    random: int = 32,
) -> list[dict[str, float]]:
    """One row per phrase: ``target`` (area of the mask), the scores, and the same with ``prior_`` and ``chance_``.

    Args:
        heatmaps: Float ``(h, w)`` each; may be a generator, nothing is kept.
        masks: Bool or integer labels ``(H, W)``, one for each heatmap.
        priors: `location_prior` of each row's finding; without them there are no ``prior_`` keys.
        protocol: A name in `PROTOCOLS`, or a `Protocol`.
        random: Number of random maps for ``chance_``, see `chance`; 0 leaves these keys out.

    Raises:
        InputError: A heatmap or mask cannot be scored (names the row, from 0), or the lengths differ.
    """
    rows = []
    for i, heatmap in enumerate(heatmaps):
        if i >= len(masks) or (priors is not None and i >= len(priors)):
            raise InputError(f"there is no mask or prior for heatmap {i}")
        try:
            mask = CachedMask(masks[i])
            row = {"target": float(np.mean(mask.mask)), **score(heatmap, mask, protocol)}
            if priors is not None:
                row |= _prefixed("prior_", score(priors[i], mask, protocol))
            if random:
                row |= _prefixed("chance_", chance(mask, np.shape(heatmap), random, protocol=protocol))
        except InputError as error:
            raise InputError(f"row {i}: {error}") from error
        rows.append(row)
    if len(rows) != len(masks):
        raise InputError(f"{len(rows)} heatmaps for {len(masks)} masks")
    return rows


def score_truths(
    heatmaps: Sequence[np.ndarray],
    truths: Sequence[GroundTruth],
    priors: Mapping[str, np.ndarray],
    size: int,
    fit: Fit = "crop",
    text_prior: Callable[[Finding], np.ndarray] | None = None,
) -> pd.DataFrame:
    """`score_table` with what a row of ``grounding.csv`` says of its phrase: study, patient, finding, phrase, kept.

    Average precision, shuffled AUC and the AUC within the field where findings can lie stand beside the scores of the
    book, as they ask more of a map than AUC-ROC does (see `auc_roc_weighted`).

    Args:
        heatmaps: Float ``(h, w)`` each.
        truths: The phrases, one for each heatmap.
        priors: Finding → location prior, see `location_priors`.
        size, fit: Side of the model's frame in pixels, and how an image is fitted into it, see `studies.Frame`.
        text_prior: Of `text_priors`, for columns ``text_prior_<score>``.
    """
    frames = [Frame(*t.study.size, size, fit) for t in truths]
    masks = [frame.mask(t.finding) for t, frame in zip(truths, frames, strict=True)]
    about = [
        {
            "study": t.study.id,
            "patient": t.study.patient,
            "finding": t.finding.name,
            "phrase": t.finding.phrase,
            "kept": kept(t.finding, frame),
        }
        for t, frame in zip(truths, frames, strict=True)
    ]
    known = {"": heatmaps, "prior_": [priors[t.finding.name] for t in truths]}
    scores = score_table(heatmaps, masks, known["prior_"])
    if text_prior is not None:
        known["text_prior_"] = [text_prior(t.finding) for t in truths]
    field = np.sum(list(priors.values()), axis=0) > 0
    for i, (row, mask, truth) in enumerate(zip(scores, masks, truths, strict=True)):
        for prefix, maps in known.items():
            row[f"{prefix}auc_roc_shuffled"] = auc_roc_weighted(maps[i], mask, priors[truth.finding.name])
            row[f"{prefix}auc_roc_field"] = auc_roc_weighted(maps[i], mask, field)
            row[f"{prefix}average_precision"] = average_precision(maps[i], mask)
        if text_prior is not None:
            row |= _prefixed("text_prior_", score(known["text_prior_"][i], mask))
    return pd.concat([pd.DataFrame(about), pd.DataFrame(scores)], axis=1)


def _prefixed(prefix: str, row: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in row.items()}


def box_labels(finding: Finding, frame: Frame) -> np.ndarray:
    """The mask of a finding with its boxes told apart: uint8 ``(size, size)``, 0 outside of ``frame.mask(finding)``.

    Args:
        finding: With an exact mask, whose 8-connected parts are labelled, or with boxes, labelled in their order; a
            pixel of several boxes belongs to the first. Parts from the 255th on share a label.
        frame: The frame of the model.
    """
    mask = frame.mask(finding)
    if finding.mask is not None:
        return np.minimum(ndimage.label(mask, structure=EIGHT)[0], 255).astype(np.uint8)
    labels = np.zeros(mask.shape, dtype=np.uint8)
    for i, box in enumerate(finding.boxes, start=1):
        labels[(labels == 0) & frame.mask(replace(finding, boxes=(box,)))] = min(i, 255)
    return labels


def kept(finding: Finding, frame: Frame) -> float:
    """Fraction of a finding's area that the frame keeps, in [0, 1].

    Args:
        finding: With an exact mask, or with boxes, whose areas add up.
        frame: The frame of the model.
    """
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

    Args:
        path: Safetensors file of ``masks`` uint8 ``(n, size, size)`` (`box_labels`) and ``kept`` float32 ``(n,)``
            (`kept`); its metadata has ``keys``, a JSON list with the key of each row.
        truths: Row i of the file is ``truths[i]``; ``rows`` of a file of maps refers to these numbers.
        size, fit: Side of the model's frame in pixels, and how an image is fitted into it, see `studies.Frame`.
    """
    masks, share = torch.zeros((len(truths), size, size), dtype=torch.uint8), torch.zeros(len(truths))
    for i, truth in enumerate(truths):
        frame = Frame(*truth.study.size, size, fit)
        masks[i] = torch.from_numpy(box_labels(truth.finding, frame))
        share[i] = kept(truth.finding, frame)
    return runs.save_tensors(path, {"masks": masks, "kept": share}, {"keys": json.dumps([t.key for t in truths])})


def rescore(folder: Path, protocol: str | Protocol = "book", random: int = 32) -> tuple[pd.DataFrame, list[str]]:
    """Score the stored maps of a run again, under any protocol.

    Args:
        folder: The folder of the run, or its ``grounding.csv``. Its maps are read a checkpoint at a time, and the masks
            of `save_masks` one by one.
        protocol: A name in `PROTOCOLS`, or a `Protocol`.
        random: Number of random maps for ``chance_``; 0 leaves these columns out.

    Returns:
        A table with the columns ``study, patient, finding, phrase, step``; ``target``, the area of the mask in [0, 1];
        ``kept``, the share of the area that the crop left; the scores; and each once more with ``chance_``. Second, a
        line for each row that could not be scored.

    Raises:
        InputError: A file is missing, damaged or of other data than the table, or no row could be scored.
    """
    run, protocol = _run(folder), get_protocol(protocol)
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


def _run(path: Path) -> Run:
    return Run(Path(path).parent if Path(path).name == "grounding.csv" else path)


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
    """Means per step, as the protocol takes them, without NaN: a row per step and kind (``map``, ``chance``).

    Args:
        scores: Table of `rescore`.
        protocol: The protocol it was scored under.
    """
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
    parser.add_argument("--random", type=int, default=32, help="random maps for chance (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.random < 0:
        raise InputError(f"--random must be at least 0, got {options.random}")
    run, protocol = _run(options.run), get_protocol(options.protocol)
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

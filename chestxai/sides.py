"""The mirror test where nobody drew a box: does a map lie on the side that the report names?

Few X-rays have boxes, many have reports that name a side. The prompt of `sided` names none; the truth is half an image.
`side_score` is balanced, so that a map that always leans to one side, as to the heart, gets 0.5.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from accelerate import PartialState

from chestxai import faithfulness, finetune, grounding, models, reports, stats
from chestxai.profiles import Profile
from chestxai.runs import InputError, Run
from chestxai.stats import Interval
from chestxai.studies import Fit, GroundTruth, Study


def sided(studies: Iterable[Study]) -> list[GroundTruth]:
    """Findings that a report places on one side only, as phrases that do not name it: the first mention in each study.

    An attribute "side" of ``studies``, where a source has one (Open-i's indexers), must not contradict the report.
    """
    out = []
    for study in studies:
        found: dict[str, list] = {}
        for finding in study.present():
            found.setdefault(finding.name, []).append(finding)
        for mentions in found.values():
            first, sides = mentions[0], {finding.side for finding in mentions}
            if sides in ({"left"}, {"right"}) and study.attributes.get("side", first.side) == first.side:
                phrase = faithfulness.without_side(first.phrase)
                # A phrase whose words for the finding went with the side's ("left-sided opacity") would be read whole;
                # others still name the side ("lingula").
                if reports.name_span(phrase, first.name) and not any(f.side for f in reports.find(phrase)):
                    # Only the side is asked for, so its place does not count.
                    out.append(GroundTruth(study, replace(first, phrase=phrase, mask=None, boxes=())))
    return out


def half(study: Study, side: str, size: int, fit: Fit = "crop") -> np.ndarray:
    """The half of the model's frame that shows the patient's ``side``, "left" or "right": bool ``(size, size)``.

    `faithfulness.midline` of the ``study`` in a frame of that ``fit`` divides the halves. The patient faces the reader.
    """
    left = np.arange(size) + 0.5 > faithfulness.midline(study, size, fit) * size
    return np.tile(left if side == "left" else ~left, (size, 1))


def score_run(profile: Profile, run: Run, studies: Sequence[Study], pool: Sequence[Study], step: int) -> pd.DataFrame:
    """Map and score `sided` with a checkpoint of a finished run; the maps are kept in its ``maps/`` and resumed.

    A row for each finding: ``study, patient, finding, phrase, side, step``; ``mirror``, 1 where the mean attention is
    greater on the finding's side of the image than on the other; ``swap_mirror``, the same on the image of another
    patient without the finding, from the ``pool``, another split than that of ``studies``
    (`faithfulness.swap_images`). ``run`` is of ``profile``, and ``step`` a checkpoint. InputError where no report names
    a side.
    """
    identity, size, fit = run.check_finished().record()["identity"], profile.data.size, profile.data.fit
    pipeline = models.load_base(profile, device=PartialState().device)
    truths, _ = grounding.groundable(pipeline, sided(studies), profile.grounding.target)
    if not truths:
        raise InputError(f"profile {profile.name}: no report of this split places a finding on one side")
    finetune.load_checkpoint(pipeline, run, step)
    about = {"fit": fit, "identity": f"{identity}-{step}", "description": f"step {step}, sides"}
    # All timesteps are read, on the swapped image as well.
    settings = profile.grounding.model_copy(update={"swap_every": 1, "swaps": 1})
    probes = faithfulness.probe_truths(pipeline, truths, pool, settings, run.probes_file(step, "sides"), **about)
    rows = []
    for truth, own, swapped in zip(truths, probes["own"], probes["swap"][:, 0], strict=True):
        side = truth.finding.side
        mask, centre = half(truth.study, side, size, fit), faithfulness.midline(truth.study, size, fit)
        mirror, swap = (faithfulness.mirror_test(heatmap, mask, centre) for heatmap in (own, swapped))
        scores = {"mirror": mirror, "swap_mirror": swap}
        rows.append(truth.about() | {"side": side, "step": step} | scores)
    return pd.DataFrame(rows)


def side_score(table: pd.DataFrame, column: str = "mirror", n: int = 2000) -> Interval:
    """Mean over sides of the mean of ``column`` ("mirror" or "swap_mirror") of one step in a ``table`` of `score_run`.

    Chance is 0.5, also of a map that always leans to one side; NaN if all findings are on one. ``n`` resamples of the
    patients give the interval.
    """
    known = table.dropna(subset=column)
    if known["side"].nunique() < 2:
        return Interval(np.nan, np.nan, np.nan)

    def balanced(values: np.ndarray, sides: np.ndarray) -> float:
        return np.mean([values[sides == side].mean() if side in sides else np.nan for side in ("left", "right")])

    return stats.bootstrap_statistic([known[column], known["side"]], balanced, known["patient"], n=n)


def scores_by_step(profile: Profile, run: Run, studies: Iterable[Study], pool: Iterable[Study]) -> pd.DataFrame:
    """`side_score` of every checkpoint of a finished ``run`` of ``profile``, as columns of a study (`batch.study`).

    ``studies`` and ``pool`` are those of `score_run`. Columns: ``step`` and, where any report names a side, ``side``,
    ``side_low``, ``side_high``, the share of findings whose map prefers it, ``swap_side``, on swapped images, and the
    numbers of ``side_findings`` and their ``side_patients``.
    """
    studies, pool, rows = list(studies), list(pool), []
    if not sided(studies):
        return pd.DataFrame({"step": run.steps()})
    for step in run.steps():
        table = score_run(profile, run, studies, pool, step)
        own, swap = (side_score(table, name, profile.statistics.resamples) for name in ("mirror", "swap_mirror"))
        bounds = {"side": own.estimate, "side_low": own.low, "side_high": own.high}
        known = table.dropna(subset="mirror")
        counts = {"side_findings": len(known), "side_patients": known["patient"].nunique()}
        rows.append({"step": step} | bounds | {"swap_side": swap.estimate} | counts)
    return pd.DataFrame(rows)

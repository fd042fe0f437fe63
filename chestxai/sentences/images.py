"""Chapter 1: reports and images."""

from collections.abc import Mapping, Sequence

import pandas as pd

from chestxai.sentences.words import Templates, bullets, escaped

_say = Templates(__file__)


def source(reports: str, boxes: str) -> str:
    """Where images and reports (data set ``reports``) and the places of findings (``boxes``) come from."""
    return _say("phantoms" if reports == "phantom" else "source", reports=reports, boxes=boxes, other=boxes != reports)


def contrast(finding: float, other: float) -> str:
    """Mean change of a pixel, in grey levels, by a ``finding`` and by ``other``, harmless variation."""
    return _say("contrast", finding=finding, other=other, smaller=finding < other)


def rules(scores: pd.DataFrame, speed: float, least: float = 0.85) -> str:
    """How well, and at which ``speed`` (reports per second), the rules read the test reports.

    ``scores`` are rows of `knowledge.rule_scores`; findings with an F1 below ``least`` are named.
    """
    sided, right = scores["sided"].sum(), (scores["sided"] * scores["side_right"]).sum()
    poor = scores[scores["f1"] < least]
    named = "; ".join(_say("poor", name=escaped(row.Index), row=row) for row in poor.itertuples())
    about = {"findings": len(scores), "f1": scores["f1"].mean(), "speed": round(speed, -2), "least": least}
    doubted = poor["hedged"].sum() > poor["wrong"].sum() / 2
    about |= {"right": right, "sided": sided, "share": right / max(1, sided), "doubted": doubted}
    return _say("rules", named=named, **about)


def splits(shared: Mapping[str, int], left_out: Sequence[tuple[str, str, int, str]]) -> str:
    """Number of patients ``shared`` by pairs of splits; data set, split, number and reason of records ``left_out``."""
    pairs = ", ".join(f"{pair}: {n} shared" for pair, n in shared.items())
    lines = bullets(f"`{name}`, {split}: {count:,} × {escaped(reason)}" for name, split, count, reason in left_out)
    text = _say("splits", straddle=any(shared.values()), pairs=pairs, lines=lines)
    return f"{text}\n\n{lines}" if lines else text

"""Chapter 1: reports and images."""

from collections.abc import Mapping, Sequence

import pandas as pd

from chestxai.sentences.words import bullets, counted, escaped


def source(reports: str, boxes: str) -> str:
    """Where images and reports (data set ``reports``) and the places of findings (``boxes``) come from."""
    if reports == "phantom":
        return (
            "The images of this run are **digital phantoms**: simulated X-rays of simulated patients. They are simpler "
            "than real ones, but the exact extent of every finding is known."
        )
    places = "" if boxes == reports else f", places of findings from `{boxes}`"
    return f"The images of this run are real: reports come from `{reports}`{places}."


def contrast(finding: float, other: float) -> str:
    """Mean change of a pixel, in grey levels, by a ``finding`` and by ``other``, harmless variation."""
    change = f"{finding:.1f} of 255 grey levels on average, the harmless variations above by {other:.1f}"
    return f"A finding changes a pixel by {change}. Disease is{'' if finding < other else ' not'} the smaller change."


def rules(scores: pd.DataFrame, speed: float, least: float = 0.85) -> str:
    """How well, and at which ``speed`` (reports per second), the rules read the test reports.

    ``scores`` are rows of `knowledge.rule_scores`; findings with an F1 below ``least`` are named.
    """
    sided, right = scores["sided"].sum(), (scores["sided"] * scores["side_right"]).sum()
    poor = scores[scores["f1"] < least]
    named = [
        f"{escaped(row.Index)} {row.f1:.3f} ({row.there:.0f} reports; falsely in {row.wrong:.0f}, {row.hedged:.0f} in "
        "doubt)"
        for row in poor.itertuples()
    ]
    text = (
        f"Macro-F1 over {counted(len(scores), 'finding')} is **{scores['f1'].mean():.3f}** on test reports; "
        f"{right:.0f} of {sided:.0f} sides are read correctly (**{right / max(1, sided):.0%}**). One core reads "
        f"{round(speed, -2):,.0f} reports a second. {'Below' if named else 'No finding is below'} {least:g}"
        f"{': ' if named else ''}{'; '.join(named)}."
    )
    if poor["hedged"].sum() > poor["wrong"].sum() / 2:
        text += " The rules count doubt as present, as the book's labels do; indexers mostly do not."
    return text


def splits(shared: Mapping[str, int], left_out: Sequence[tuple[str, str, int, str]]) -> str:
    """Number of patients ``shared`` by pairs of splits; data set, split, number and reason of records ``left_out``."""
    pairs = ", ".join(f"{pair}: {n} shared" for pair, n in shared.items())
    lines = bullets(f"`{name}`, {split}: {count:,} × {escaped(reason)}" for name, split, count, reason in left_out)
    start = "Patients straddle splits" if any(shared.values()) else "No patient is in two splits"
    return f"{start} ({pairs}). " + (f"Records left out:\n\n{lines}" if lines else "No record was left out.")

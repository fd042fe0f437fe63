"""Chapter 9: why treatments differ."""

from collections.abc import Iterable, Mapping

import pandas as pd

from chestxai.localization import LABELS
from chestxai.sentences.words import Templates, bullets, direction
from chestxai.stats import Interval

_say = Templates(__file__)
#: Evidence → how it is printed.
EVIDENCE: dict[str, str] = _say["evidence"]


def _examined(evidence: Mapping[str, Interval]) -> Iterable[tuple[str, str, list[str], bool]]:
    """Each hypothesis, what would show it, the evidence it is judged by, and whether it is shown."""
    for name, rule in _say["hypotheses"].items():
        used = list(dict.fromkeys(key for signs in rule["signs"] for key in signs))
        # 1, −1 or 0, by whether the interval excludes zero.
        seen = {key: direction(evidence[key]) for key in used}
        yield name, rule["test"], used, any(expected.items() <= seen.items() for expected in rule["signs"])


def table(evidence: Mapping[str, Interval]) -> pd.DataFrame:
    """Each hypothesis, what would have shown it, and what was seen; ``evidence`` of one variant, by `EVIDENCE`."""
    rows = []
    for name, test, used, shown in _examined(evidence):
        seen = "; ".join(f"{EVIDENCE[key]} {evidence[key]:+.3f}" for key in used)
        seen = f"{'shown' if shown else 'not shown'}: {seen}"
        rows.append({"hypothesis": name, "what would have shown it": test, "what was seen": seen})
    return pd.DataFrame(rows).set_index("hypothesis")


def answer(name: str, reference: str, evidence: Mapping[str, Interval], points: Mapping[str, Interval]) -> str:
    """Whether variant ``name`` loses against ``reference``, and which hypotheses its ``evidence`` shows.

    ``points``: column of the endpoint → variant minus reference. A loss in one of them is a loss.
    """
    shown = [hypothesis.split(":")[0] for hypothesis, _, _, seen in _examined(evidence) if seen]
    said = [_say("point", label=LABELS[column], d=d) for column, d in points.items()]
    ending = _say("loss" if -1 in map(direction, points.values()) else "no loss", shown=shown)
    return _say("answer", name=name, reference=reference, points=said, ending=ending)


def tokens(gaps: Mapping[str, Mapping[str, Interval]]) -> str:
    """Which tokens point better than the finding's own words.

    ``gaps``: variant → kind of token → AUC-ROC of its map minus that of the finding's words, on the same phrases.
    """
    said = {name: [_say("tokens", kind=kind, d=d) for kind, d in kinds.items()] for name, kinds in gaps.items()}
    return bullets(f"`{name}`, against the finding's words: {'; '.join(parts)}" for name, parts in said.items())


def begin(cosines: Mapping[str, float], reach: float = 0.999) -> str:
    """Whether the begin token has read the text: ``cosines`` of its state with the empty prompt's, by variant.

    ``reach``: cosine from which on the two count as the same.
    """
    return bullets(_say("begin", name=name, some=cosine < reach, cosine=cosine) for name, cosine in cosines.items())


def swapped(name: str, reference: str, changes: Mapping[str, Interval]) -> str:
    """How the U-Net of ``name`` points with states of ``reference``: ``changes`` of AUC-ROC by what is exchanged."""
    said = [_say("swapped", d=d, part=part, reference=reference) for part, d in changes.items()]
    return f"The U-Net of `{name}` points {'; '.join(said)}."


def drifted(measured: pd.DataFrame) -> str:
    """Whether states still resemble the reference's: rows of `causes.compare_states`, indexed by (variant, kind)."""
    lines = []
    for (name, kind), row in measured.iterrows():
        alike = "as they were" if row["drift"] < 1e-6 else "related" if row["cka"] > row["cka_null"] else "unrelated"
        lines.append(_say("drifted", name=name, kind=kind, alike=alike, row=row))
    return bullets(lines)

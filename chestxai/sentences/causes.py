"""Chapter 9: why treatments differ."""

from collections.abc import Iterable, Mapping

import pandas as pd

from chestxai.localization import LABELS
from chestxai.sentences.words import Templates, bullets, direction, filled
from chestxai.stats import Interval

_say = Templates(__file__)
#: Evidence → how it is printed.
EVIDENCE: dict[str, str] = _say["evidence"]


def _examined(evidence: Mapping[str, Interval]) -> Iterable[tuple[str, str, dict[str, Interval], list[bool]]]:
    """Each hypothesis, what would show it, what it is judged by, and whether that, and AUC-ROC alone, shows it."""
    for name, rule in _say["hypotheses"].items():
        signs = [expected for expected in rule["signs"] if expected.keys() <= evidence.keys()]
        judged = {key: evidence.get(f"{key} gain", evidence[key]) for expected in signs for key in expected}
        # 1, −1 or 0, by whether the interval excludes zero.
        seen = [{key: direction(some[key]) for key in judged} for some in (judged, evidence)]
        yield name, rule["test"], judged, [any(e.items() <= signed.items() for e in signs) for signed in seen]


def table(evidence: Mapping[str, Interval]) -> pd.DataFrame:
    """Each hypothesis, what would have shown it, and what was seen; ``evidence`` of one variant, by `EVIDENCE`.

    Where it also has "<name> gain", that is judged, and the table says where AUC-ROC alone would decide otherwise.
    """
    rows = {}
    for name, test, judged, (shown, by_auc) in _examined(evidence):
        scores = {key: "gain" if f"{key} gain" in evidence else "AUC-ROC" for key in judged}
        seen = "; ".join(f"{filled(EVIDENCE[key], score=scores[key])} {d:+.3f}" for key, d in judged.items())
        seen = _say("seen", shown=shown, seen=seen, apart=shown != by_auc, by_auc=by_auc)
        rows[name] = test, seen if judged else _say("unmeasured")
    columns = ["what would have shown it", "what was seen"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("hypothesis")


def constancy(found: Mapping[str, Mapping[str, Interval]], margin: float = 0.01) -> str:
    """Whether constant states without meaning are enough for pointing, by all scores but the classifier AUC.

    ``found``: base → column → random, fixed encoder minus frozen one. Above −``margin`` it is no worse.
    """
    said, points = [], [d for scores in found.values() for c, d in scores.items() if c != "classifier_auc"]
    for base, scores in found.items():
        told = {LABELS[c]: {"d": d, "kept": d.low > -margin, "lost": d.high < 0} for c, d in scores.items()}
        said.append(f"in `{base}` " + ", ".join(_say("constant", label=c, **about) for c, about in told.items()))
    kept, lost = all(d.low > -margin for d in points), any(d.high < 0 for d in points)
    return _say("constancy", kept=kept, lost=lost, said="; ".join(said)) if points else _say("unmeasured")


def answer(name: str, reference: str, evidence: Mapping[str, Interval], points: Mapping[str, Interval]) -> str:
    """Whether variant ``name`` loses against ``reference``, and which hypotheses its ``evidence`` shows.

    ``points``: column of the endpoint → variant minus reference. A loss in one of them is a loss.
    """
    shown = [hypothesis.split(":")[0] for hypothesis, _, _, (seen, _) in _examined(evidence) if seen]
    said = [_say("point", label=LABELS[column], d=d) for column, d in points.items()]
    ending = _say("loss" if -1 in map(direction, points.values()) else "no loss", shown=shown)
    return _say("answer", name=name, reference=reference, points=said, ending=ending)


def tokens(gaps: Mapping[str, Mapping[str, Interval]]) -> str:
    """Which tokens point better: variant → kind → its map's gain minus that of the finding's words, ``gaps``."""
    said = {name: [_say("tokens", kind=kind, d=d) for kind, d in kinds.items()] for name, kinds in gaps.items()}
    return bullets(f"`{name}`, minus the finding's words: {'; '.join(parts)}" for name, parts in said.items())


def begin(cosines: Mapping[str, float], reach: float = 0.999) -> str:
    """Whether the begin token has read the text: by variant, ``cosines`` with the empty prompt's, below ``reach``."""
    return bullets(_say("begin", name=name, some=cosine < reach, cosine=cosine) for name, cosine in cosines.items())


def swapped(name: str, reference: str, changes: Mapping[str, Interval]) -> str:
    """How the U-Net of ``name`` points with states of ``reference``, by ``changes`` of the gain; "other": reversed."""
    own = {part: d for part, d in changes.items() if not part.startswith("other")}
    said = [_say("swapped", d=d, part=part, reference=reference) for part, d in own.items()]
    back = [_say("swapped back", d=d, name=name, reference=reference) for part, d in changes.items() if part not in own]
    return f"The U-Net of `{name}` points {'; '.join(said)}.{''.join(back)}"


def drifted(measured: pd.DataFrame) -> str:
    """Whether states still resemble the reference's: rows of `causes.compare_states`, indexed by (variant, kind)."""
    lines = []
    for (name, kind), row in measured.iterrows():
        alike = "related" if row["cka"] > row["cka_null"] else "not clearly related"
        alike = "as they were" if row["drift"] < 1e-6 else alike
        lines.append(_say("drifted", name=name, kind=kind, alike=alike, row=row))
    return bullets(lines)

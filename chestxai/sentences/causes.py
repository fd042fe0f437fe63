"""Chapter 9: why treatments differ."""

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from chestxai.sentences.words import bullets, direction, listed, verb
from chestxai.stats import Interval

#: Evidence → how it is printed. All of it is variant minus reference, except ``lag`` and ``keys``.
EVIDENCE = {
    "finding": "AUC-ROC of the finding's words",
    "begin": "AUC-ROC of the begin token",
    "end": "AUC-ROC of the end token",
    "lag": "AUC-ROC with the states of the checkpoint before, minus its own",
    "keys": "AUC-ROC with the reference's keys, minus its own",
    "alike": "cosine of a phrase's tokens",
    "named": "share of findings that a probe reads off the finding's words",
    "words": "share of the attention that words get",
}
#: Hypothesis → what would show it, the evidence for it, and whether signs of that evidence show it.
HYPOTHESES: dict[str, tuple[str, tuple[str, ...], Callable[[Mapping[str, int]], bool]]] = {
    "moving target: keys drift faster than the U-Net follows": (
        "the U-Net points better with older states, or with the reference's keys",
        ("lag", "keys"),
        lambda sign: 1 in (sign["lag"], sign["keys"]),
    ),
    "relocation: content moves to begin or end": (
        "begin or end points better than in the reference, and the finding's words point worse",
        ("finding", "begin", "end"),
        lambda sign: sign["finding"] < 0 and 1 in (sign["begin"], sign["end"]),
    ),
    "homogenisation: all states say the same": (
        "the tokens of a phrase are more alike",
        ("alike",),
        lambda sign: sign["alike"] > 0,
    ),
    "forgetting: the encoder loses the word": (
        "a probe reads the finding less often off its words",
        ("named",),
        lambda sign: sign["named"] < 0,
    ),
    "dilution: attention goes to a sink": (
        "words get a smaller share of the attention",
        ("words",),
        lambda sign: sign["words"] < 0,
    ),
}


def table(evidence: Mapping[str, Interval]) -> pd.DataFrame:
    """Each hypothesis, what would have shown it, and what was seen; ``evidence`` of one variant, by `EVIDENCE`."""
    rows = []
    for name, (test, used, shows) in HYPOTHESES.items():
        seen = "; ".join(f"{EVIDENCE[key]} {evidence[key]:+.3f}" for key in used)
        verdict = "shown" if shows(signs(evidence, used)) else "not shown"
        rows.append({"hypothesis": name, "what would have shown it": test, "what was seen": f"{verdict}: {seen}"})
    return pd.DataFrame(rows).set_index("hypothesis")


def signs(evidence: Mapping[str, Interval], used: Iterable[str]) -> dict[str, int]:
    """1, −1 or 0 for each piece ``used`` of the ``evidence``, by whether its interval excludes zero."""
    return {key: direction(evidence[key]) for key in used}


def answer(name: str, reference: str, evidence: Mapping[str, Interval]) -> str:
    """Whether there is anything to explain in variant ``name``, and which hypotheses its ``evidence`` shows.

    ``reference``: the variant with which it is compared.
    """
    points = verb(evidence["finding"], "points better than", "points worse than", "does not clearly differ from")
    shown = [h.split(":")[0] for h, (_, used, shows) in HYPOTHESES.items() if shows(signs(evidence, used))]
    text = f"By the map of the finding's words, `{name}` {points} `{reference}` ({evidence['finding']:+.3f})."
    if direction(evidence["finding"]) < 0:
        return (
            f"{text} Of the explanations, {listed(shown)} can be seen." if shown else f"{text} No explanation is seen."
        )
    return f"{text} So there is no loss to explain" + (f", although {listed(shown)} can be seen." if shown else ".")


def tokens(gaps: Mapping[str, Mapping[str, Interval]]) -> str:
    """Which tokens point better than the finding's own words.

    ``gaps``: variant → kind of token → AUC-ROC of its map minus that of the finding's words, on the same phrases.
    """
    lines = []
    for name, kinds in gaps.items():
        said = [
            f"*{kind}* {verb(d, 'better', 'worse', 'not clearly otherwise')} ({d:+.3f})" for kind, d in kinds.items()
        ]
        lines.append(f"`{name}`, against the finding's words: {'; '.join(said)}")
    return bullets(lines)


def begin(cosines: Mapping[str, float], reach: float = 0.999) -> str:
    """Whether the begin token has read the text: ``cosines`` of its state with the empty prompt's, by variant.

    ``reach``: cosine from which on the two count as the same.
    """
    lines = []
    for name, cosine in cosines.items():
        read = (
            "has read no text" if cosine >= reach else "has read the text, so subtracting its map subtracts words, too"
        )
        lines.append(f"`{name}`: the begin token {read} (cosine with the empty prompt's {cosine:.3f})")
    return bullets(lines)


def swapped(name: str, reference: str, changes: Mapping[str, Interval]) -> str:
    """How the U-Net of ``name`` points with states of ``reference``: ``changes`` of AUC-ROC by what is exchanged."""
    said = [
        f"{verb(d, 'better', 'worse', 'not clearly otherwise')} with the {part} of `{reference}` ({d:+.3f})"
        for part, d in changes.items()
    ]
    return f"The U-Net of `{name}` points {'; '.join(said)}."


def drifted(measured: pd.DataFrame) -> str:
    """Whether states still resemble the reference's: rows of `causes.compare_states`, indexed by (variant, kind)."""
    lines = []
    for (name, kind), row in measured.iterrows():
        alike = "as they were" if row["drift"] < 1e-6 else "related" if row["cka"] > row["cka_null"] else "unrelated"
        lines.append(
            f"`{name}`, {kind}: {alike} (CKA {row['cka']:.3f}, by chance up to {row['cka_null']:.3f}; "
            f"Procrustes {row['procrustes']:.3f}; 1 − cosine {row['drift']:.3f})"
        )
    return bullets(lines)

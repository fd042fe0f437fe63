"""Reference labels that no reader has learned from the words of a report, and the findings they suffice to evaluate."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from chestxai.knowledge.descriptions import WORDS
from chestxai.studies import FINDINGS, Side, Study

#: MeSH headings, with the qualifiers they need, that mean a finding; the same conventions as `reports.SYNONYMS`.
MESH: dict[str, str] = WORDS["mesh"]
_MESH = {name: re.compile(rf"(?:{headings})(?:/|$)") for name, headings in MESH.items()}


def mesh_labels(terms: str) -> np.ndarray | None:
    """Findings that Open-i's indexers assigned to a report, as multi-hot float32 ``(8,)``.

    ``terms`` is ``attributes["mesh_major"]``, e.g. "Opacity/lung/base/left; Cardiomegaly/mild". None for a report that
    was not indexed ("No Indexing", or no terms).
    """
    headings = [term.strip() for term in terms.split(";") if term.strip()]
    if not headings or "No Indexing" in headings:
        return None
    return np.array([any(map(_MESH[name].match, headings)) for name in FINDINGS], dtype=np.float32)


def mesh_sides(terms: str) -> dict[str, Side]:
    """Side of each finding of `mesh_labels` whose terms name one; terms for both sides make it bilateral."""
    sides: dict[str, set[str]] = {}
    for term in map(str.strip, terms.split(";")):
        named = {"left", "right", "bilateral"} & {*term.lower().split("/")}
        for name in FINDINGS:
            if named and _MESH[name].match(term):
                sides.setdefault(name, set()).update(named)
    return {name: joined_side(named) for name, named in sides.items()}


def joined_side(sides: Iterable[Side]) -> Side | None:
    """The one side that covers all of ``sides``; None for none."""
    different = set(sides)
    return "bilateral" if "bilateral" in different or len(different) == 2 else next(iter(different), None)


def true_side(study: Study, name: str) -> Side | None:
    """Side of the finding ``name`` of a study, by the authority of `truth`; None where it is not recorded."""
    if "mesh_major" in study.attributes:
        return mesh_sides(str(study.attributes["mesh_major"])).get(name)
    return joined_side(f.side for f in study.present() if f.name == name and f.side)


def truth(studies: Sequence[Study]) -> tuple[np.ndarray, list[int]]:
    """Reference labels: the indexers' terms where a study has them (Open-i), else its findings (exact for phantoms).

    Float32 ``(n, 8)``, 0 or 1, and the positions of these ``n`` in ``studies``, without those not indexed.
    """
    labels = [
        mesh_labels(str(s.attributes["mesh_major"])) if "mesh_major" in s.attributes else s.labels() for s in studies
    ]
    kept = [i for i, row in enumerate(labels) if row is not None]
    return np.array([labels[i] for i in kept], dtype=np.float32).reshape(-1, len(FINDINGS)), kept


def judgeable(labels: Sequence[np.ndarray], least: int = 5) -> list[str]:
    """Evaluable findings: ``least`` studies with and without them in every split, whose ``labels`` are ``(n, 8)``."""
    counts = [(part.sum(axis=0), (part < 0.5).sum(axis=0)) for part in labels]
    return [name for i, name in enumerate(FINDINGS) if all(min(w[i], wo[i]) >= least for w, wo in counts)]


def columns(findings: Sequence[str]) -> list[int]:
    """Positions of ``findings`` in `FINDINGS`."""
    return [FINDINGS.index(name) for name in findings]

"""What a model knows of the findings: read off its text encoder, and off its errors when it denoises an image.

- A *report* is read by attention pooling over the token states of a text encoder whose weights stay as they are (after
  Yang et al. 2016, "Hierarchical Attention Networks", eq. 5–7, one query for each finding), by TF-IDF with logistic
  regression, and by the rules of `reports`.
- An *image* is classified by the diffusion model itself: the class whose prompt lets it predict the noise best (Li et
  al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier", https://arxiv.org/abs/2303.16203).
- `change` rewrites a report without changing what it says, to see how much of the reading hangs on its form.

Labels and probabilities are ``(n, 8)`` over `FINDINGS`, or ``(n, k)`` over the ``k`` of them that can be judged.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from chestxai import models, reports
from chestxai.fidelity import asked
from chestxai.stats import Interval, bootstrap_statistic
from chestxai.studies import FINDINGS, Side, Study

# ---------------------------------------------------------------------------------------------------------------------
# The truth
# ---------------------------------------------------------------------------------------------------------------------

#: MeSH headings, with the qualifiers they need, that mean a finding; the same conventions as `reports.SYNONYMS`.
MESH: dict[str, str] = {
    "Atelectasis": r"Pulmonary Atelectasis|Volume Loss",
    "Cardiomegaly": r"Cardiomegaly|Cardiac Shadow/(?:.*/)?enlarged",
    "Consolidation": r"Consolidation",
    "Edema": r"Pulmonary Edema|Pulmonary Congestion|Heart Failure",
    "Lung Opacity": r"Opacity|Infiltrate|Airspace Disease",
    "Pleural Effusion": r"Pleural Effusion|Costophrenic Angle/(?:.*/)?blunted|(?:Hydropneumo|Hemopneumo|Hemo)thorax",
    "Pneumonia": r"Pneumonia",
    "Pneumothorax": r"(?:Hydro|Hemo)?[Pp]neumothorax",
}
_MESH = {name: re.compile(rf"(?:{headings})(?:/|$)") for name, headings in MESH.items()}


def mesh_labels(terms: str) -> np.ndarray | None:
    """Findings that Open-i's indexers gave a report: multi-hot float32 ``(8,)``.

    Args:
        terms: ``attributes["mesh_major"]``, "Opacity/lung/base/left; Cardiomegaly/mild".

    Returns:
        None for a report that was not indexed ("No Indexing", or no term at all): nothing is known of it.
    """
    given = [term.strip() for term in terms.split(";") if term.strip()]
    if not given or "No Indexing" in given:
        return None
    return np.array([any(map(_MESH[name].match, given)) for name in FINDINGS], dtype=np.float32)


def mesh_sides(terms: str) -> dict[str, Side]:
    """The side of each finding of `mesh_labels` that the indexers gave one: "Opacity/lung/base/left" is left.

    Terms for both sides make it bilateral, as one term with both does.
    """
    given: dict[str, set[str]] = {}
    for term in map(str.strip, terms.split(";")):
        said = {"left", "right", "bilateral"} & {*term.lower().split("/")}
        for name in FINDINGS:
            if said and _MESH[name].match(term):
                given.setdefault(name, set()).update(said)
    return {name: _joined_side(said) for name, said in given.items()}


def _joined_side(said: set[Side]) -> Side | None:
    return "bilateral" if "bilateral" in said or len(said) == 2 else next(iter(said), None)


def truth(studies: Sequence[Study]) -> tuple[np.ndarray, list[int]]:
    """What the studies show, by an authority that no reader here has learned from the words.

    The indexers' terms where a study has them (Open-i), else the study's findings (exact for phantoms).

    Returns:
        float32 ``(n, 8)``, 0 or 1, and the positions in ``studies`` of those ``n``: one that was not indexed is left
        out.
    """
    found = [
        mesh_labels(str(s.attributes["mesh_major"])) if "mesh_major" in s.attributes else s.labels() for s in studies
    ]
    kept = [i for i, labels in enumerate(found) if labels is not None]
    return np.array([found[i] for i in kept], dtype=np.float32).reshape(-1, len(FINDINGS)), kept


def judgeable(labels: Sequence[np.ndarray], least: int = 5) -> list[str]:
    """The findings that enough studies of every split have, and have not: of the others a score would be chance.

    Args:
        labels: ``(n, 8)`` of each split.
        least: studies with, and studies without.
    """
    counts = [(part.sum(axis=0), (part < 0.5).sum(axis=0)) for part in labels]
    return [name for i, name in enumerate(FINDINGS) if all(min(w[i], wo[i]) >= least for w, wo in counts)]


def columns(findings: Sequence[str]) -> list[int]:
    """Positions of ``findings`` in `FINDINGS`."""
    return [FINDINGS.index(name) for name in findings]


# ---------------------------------------------------------------------------------------------------------------------
# Reading a report
# ---------------------------------------------------------------------------------------------------------------------

# The sections of `reports.sections` whose words are about this image.
_SAYS = ("preamble", "findings", "impression", "addendum")
# Full stop and white space, a blank line, or a new item of a list; "Dr. Smith" stays whole.
_STOP = re.compile(r"(?<!\b[Dd]r\.)(?<!\bvs\.)(?<=[.!?])\s+|\n[ \t\r]*\n\s*|\n(?=[ \t]*(?:\d{1,2}[.)]|[-*•])\s)")
# A template numbers its items with or without a word ("2.", "Finding 2:"), whatever word it is. It says nothing, and
# left in, it cost readers of encoder states one to two points of macro-F1 on Open-i reports that were reformatted.
_NUMBER = re.compile(r"\A\s*(?:\(?\d{1,2}[.)]|[-*•]|[^\W\d_]+ \d{1,2}:)(?:\s+|$)")


def sentences(text: str) -> list[str]:
    """Sentences and list items of ``text``, verbatim but for the numbers, marks and labels ("Item 2:") of a list."""
    parts = (_NUMBER.sub("", part, count=1).strip() for part in _STOP.split(text))
    return [part for part in parts if any(map(str.isalnum, part))]


def passages(report: str) -> list[str]:
    """The sentences in which a report describes the image, as a model reads them (`reports.clean`).

    Every one ends with a mark, so that an item of a list is read like a sentence. A report without any section that
    describes the image is read as a whole: its headers must have been misread.
    """
    found = reports.sections(report)
    said = [part for key, part in found.items() if key in _SAYS] or list(found.values())
    cleaned = (reports.clean(sentence) for part in said for sentence in sentences(part))
    return [_closed(sentence) for sentence in cleaned if any(map(str.isalnum, sentence))]


@dataclass(frozen=True)
class Passage:
    """A passage as a text encoder sees it.

    ``spans`` are the characters ``(start, end)`` of ``text`` that each token stands for, ``states`` float32
    ``(tokens, width)``. Padding and special tokens are left out: they stand for no word.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    states: Tensor


Reading = list[Passage]


def read(
    pipeline: StableDiffusionPipeline,
    texts: Sequence[str],
    cache: dict[tuple[int, ...], Tensor] | None = None,
    batch: int = 64,
) -> list[Reading]:
    """The token states of every report, sentence by sentence.

    Sentence by sentence, because a text-to-image model's encoder reads few tokens (the tiny base 32, CLIP 77): no word
    of a long report is cut off, and the order of sentences makes no difference. A sentence that is still too long is
    read in several pieces. Equal sentences are encoded once.

    Args:
        pipeline: whose tokenizer and text encoder read.
        texts: reports.
        cache: states by token ids, filled on the way; give the same one for the same encoder again.
        batch: sentences of one pass.

    Raises:
        ValueError: a report that says nothing of the image; names its position.
    """
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    cache = {} if cache is None else cache
    said = [passages(text) for text in texts]
    empty = [i for i, found in enumerate(said) if not found]
    if empty:
        raise ValueError(f"report {empty[0]} says nothing of the image: leave it out ({texts[empty[0]][:80]!r})")
    unique = list(dict.fromkeys(sentence for found in said for sentence in found))
    encoded = tokenizer(
        unique,
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
    )
    pieces: dict[str, list[tuple[tuple[int, ...], list[int], list[tuple[int, int]]]]] = {s: [] for s in unique}
    for ids, special, offsets, row in zip(
        encoded["input_ids"],
        encoded["special_tokens_mask"],
        encoded["offset_mapping"],
        encoded["overflow_to_sample_mapping"],
        strict=True,
    ):
        real = [i for i, s in enumerate(special) if not s]
        if real:
            pieces[unique[row]].append((tuple(ids), real, [tuple(offsets[i]) for i in real]))
    # Sentences of one length together: padding costs as much as words.
    missing = {ids: real for found in pieces.values() for ids, real, _ in found if ids not in cache}
    waiting = sorted(missing, key=len)
    for start in range(0, len(waiting), batch):
        some = waiting[start : start + batch]
        states = _states(tokenizer, encoder, some)
        for ids, own in zip(some, states, strict=True):
            cache[ids] = own[missing[ids]].clone()
    known = {
        text: [Passage(text, tuple(spans), cache[ids]) for ids, _, spans in found] for text, found in pieces.items()
    }
    return [[passage for sentence in found for passage in known[sentence]] for found in said]


@torch.no_grad()
def _states(tokenizer, encoder: nn.Module, some: Sequence[tuple[int, ...]]) -> Tensor:
    length = max(map(len, some))
    ids = torch.full((len(some), length), tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(some):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = 1
    tokens = {"input_ids": ids.to(encoder.device), "attention_mask": mask.to(encoder.device)}
    return models.text_states(encoder, tokens).float().cpu()


class AttentionPool(nn.Module):
    """One attention-pooled logistic regression for each finding, over token states ``(n, tokens, width)``.

    With ``z`` the states in units of their spread over the training tokens: attention ``a = softmax(z·q)`` over the
    real tokens, logit ``(Σ a z)·w + b``. ``2·width + 1`` weights for each finding.
    """

    def __init__(self, width: int, findings: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(findings, width) * 1e-3)
        self.weight = nn.Parameter(torch.randn(findings, width) * 1e-3)
        self.bias = nn.Parameter(torch.zeros(findings))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def forward(self, states: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(n, findings)`` and attention ``(n, findings, tokens)``; ``real`` bool ``(n, tokens)``."""
        # Both products are linear in the state: scaling the few weights is the same as scaling every token, pooling
        # the products the same as pooling first, and a constant added to all scores makes no difference to a softmax.
        scaled = torch.cat([self.query, self.weight]) / self.spread
        scores, values = (states @ scaled.T).chunk(2, dim=-1)
        attention = scores.masked_fill(~real[..., None], -math.inf).softmax(dim=1)
        offset = self.bias - scaled[len(self.query) :] @ self.mean
        return (attention * values).sum(dim=1) + offset, attention.transpose(1, 2)


def train_pool(
    readings: Sequence[Reading],
    labels: np.ndarray,
    *,
    epochs: int = 20,
    batch: int = 32,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.1,
    seed: int = 0,
) -> AttentionPool:
    """Train the head on states that stay as they are: AdamW on the binary cross-entropy, one-cycle schedule.

    Args:
        readings: of `read`.
        labels: ``(n, k)``, 0 or 1.
        epochs, batch, learning_rate, weight_decay: the defaults suit some hundred to some thousand reports.
        seed: of initial weights and order; the same seed gives the same weights on the same machine.

    Raises:
        ValueError: not one row of labels for each report.
    """
    labels = torch.as_tensor(np.asarray(labels, dtype=np.float32))
    if labels.ndim != 2 or len(labels) != len(readings) or not len(readings):
        raise ValueError(f"{len(readings)} reports need labels ({len(readings)}, k), got {tuple(labels.shape)}")
    everything = [_joined(reading) for reading in readings]
    tokens = torch.cat(everything)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pool = AttentionPool(tokens.shape[1], labels.shape[1])
    pool.mean.copy_(tokens.mean(dim=0))
    pool.spread.copy_(tokens.std(dim=0).clamp_min(1e-6) if len(tokens) > 1 else torch.ones(tokens.shape[1]))
    del tokens
    rng = np.random.default_rng(seed)
    steps = math.ceil(len(readings) / batch)
    optimizer = torch.optim.AdamW(pool.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(readings)), steps):
            states, real = _padded([everything[i] for i in rows])
            loss = F.binary_cross_entropy_with_logits(pool(states, real)[0], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return pool.eval().requires_grad_(False)


@torch.no_grad()
def pool_probabilities(pool: AttentionPool, readings: Sequence[Reading], batch: int = 64) -> np.ndarray:
    """Probability of each finding in each report, float32 ``(n, k)``."""
    out = []
    for start in range(0, len(readings), batch):
        states, real = _padded([_joined(reading) for reading in readings[start : start + batch]])
        out.append(pool(states, real)[0].sigmoid().numpy())
    return np.concatenate(out)


@torch.no_grad()
def attended(pool: AttentionPool, reading: Reading) -> list[tuple[str, np.ndarray]]:
    """Every word of a report with the attention each finding pays to it.

    Returns:
        ``(word, float32 (k,))`` in the order of the report; the pieces of a word are added up, so that the attention of
        a finding sums to 1. Punctuation is a word of its own.
    """
    _, attention = pool(*_padded([_joined(reading)]))
    weights = iter(attention[0].T.numpy())
    words: list[tuple[str, np.ndarray]] = []
    for passage in reading:
        last = -1
        for start, end in passage.spans:
            weight = next(weights)
            piece = passage.text[start:end]
            if start == last and piece[:1].isalnum() and words[-1][0][-1:].isalnum():
                words[-1] = (words[-1][0] + piece, words[-1][1] + weight)
            else:
                words.append((piece.strip(), weight))
            last = end
    return words


def _joined(reading: Reading) -> Tensor:
    return torch.cat([passage.states for passage in reading])


def _padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    real = pad_sequence([torch.ones(len(s), dtype=torch.bool) for s in states], batch_first=True)
    return pad_sequence(list(states), batch_first=True), real


def train_tfidf(texts: Sequence[str], labels: np.ndarray, seed: int = 0) -> Pipeline:
    """The baseline: a logistic regression for each finding on the TF-IDF of words and pairs of words.

    Pairs, so that "no effusion" and "large effusion" can be told apart. Reads the same words as `read`.

    Args:
        texts: reports.
        labels: ``(n, k)``, each column with both classes.
        seed: of the solver.

    Returns:
        a scikit-learn pipeline: ``predict_proba(texts)`` is ``(n, k)``.
    """
    labels = np.asarray(labels)
    single = [i for i in range(labels.shape[1]) if np.ptp(labels[:, i]) == 0]
    if single:
        raise ValueError(f"label column {single[0]} has one class only: leave it out (see judgeable)")
    regression = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000, random_state=seed)
    return make_pipeline(
        TfidfVectorizer(preprocessor=_words, ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        OneVsRestClassifier(regression),
    ).fit(list(texts), labels.astype(int))


def _words(report: str) -> str:
    return " ".join(passages(report)).lower()


def rules(texts: Sequence[str], findings: Sequence[str] = FINDINGS) -> np.ndarray:
    """What the rules find present (`reports.find`): bool ``(n, k)``."""
    return asked(list(texts))[:, columns(findings)] > 0.5


def rule_scores(studies: Sequence[Study]) -> pd.DataFrame:
    """How well `reports` reads what the studies show, by the authority of `truth`; each report once.

    Returns:
        a row for each finding, and "normal" where indexers say of a report that it is: ``there`` (reports with it),
        ``precision``, ``recall``, ``f1``; ``wrong`` (reports that are said to have it and have not) and ``hedged``,
        those of them in which it is named only in doubt ("may represent"), which `reports` takes for present; ``sided``
        (findings read whose true side is known) and ``side_right``, the share of them read with that side. NaN where
        there is nothing to divide by.
    """
    different = [*{(s.patient, s.report): s for s in studies}.values()]
    known, kept = truth(different)
    unique = [different[i] for i in kept]
    read = [[m for m in reports.mentions(s.report) if m.present] for s in unique]
    rows = []
    for name, labels in zip(FINDINGS, known.T > 0.5, strict=True):
        own = [[m for m in found if m.name == name] for found in read]
        said = np.array([bool(found) for found in own], dtype=bool)
        wrong = [found for found, there in zip(own, labels, strict=True) if found and not there]
        sides = [
            (_joined_side({m.side for m in found if m.side}), side)
            for s, found in zip(unique, own, strict=True)
            if found and (side := _true_side(s, name))
        ]
        rows.append(_scores(name, said, labels))
        rows[-1] |= {"hedged": sum(all(m.uncertain for m in found) for found in wrong)}
        rows[-1] |= {"sided": len(sides), "side_right": np.mean([a == b for a, b in sides]) if sides else math.nan}
    if all("mesh_major" in s.attributes for s in unique) and unique:
        normal = np.array([str(s.attributes["mesh_major"]).strip().lower() == "normal" for s in unique])
        rows.append(_scores("normal", np.array([not found for found in read]), normal))
    return pd.DataFrame(rows).set_index("finding")


def _true_side(study: Study, name: str) -> Side | None:
    if "mesh_major" in study.attributes:
        return mesh_sides(str(study.attributes["mesh_major"])).get(name)
    return _joined_side({f.side for f in study.present() if f.name == name and f.side})


def _scores(name: str, said: np.ndarray, there: np.ndarray) -> dict[str, Any]:
    both = int((said & there).sum())
    # NaN, not a warning, where nobody said it or nobody has it.
    share = [both / n if n else math.nan for n in (int(said.sum()), int(there.sum()))]
    return {
        "finding": name,
        "there": int(there.sum()),
        "precision": share[0],
        "recall": share[1],
        "f1": float(f1(said[:, None], there[:, None])[0]),
        "wrong": int(said.sum()) - both,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Scores of a reader
# ---------------------------------------------------------------------------------------------------------------------


def thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each finding the threshold of the highest F1, half-way to the next lower probability: float ``(k,)``.

    Choose them on validation reports. Of several equally good ones the highest; of a finding that no report has, 0.5.
    """
    out = np.full(probabilities.shape[1], 0.5)
    for i, (p, y) in enumerate(
        zip(np.asarray(probabilities, dtype=np.float64).T, np.asarray(labels).T > 0.5, strict=True)
    ):
        if not y.any():
            continue
        # Only the last of equal probabilities ends a group that a threshold can cut off.
        order = np.argsort(-p, kind="stable")
        cut = np.flatnonzero(np.append(np.diff(p[order]) < 0, True))
        hits = np.cumsum(y[order])[cut]
        best = int(np.argmax(2 * hits / (cut + 1 + y.sum())))
        lowest = p[order][cut[best]]
        below = p[order][cut[best] + 1] if cut[best] + 1 < len(p) else 0.0 if lowest > 0 else lowest - 1
        out[i] = (lowest + below) / 2
    return out


def f1(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F1 of each finding, float ``(k,)``; NaN for one that is neither there nor predicted."""
    predicted, labels = np.asarray(predicted) > 0.5, np.asarray(labels) > 0.5
    both, either = (predicted & labels).sum(axis=0), predicted.sum(axis=0) + labels.sum(axis=0)
    return 2 * both / np.where(either > 0, either, np.nan)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `f1` over the findings where it is defined; NaN if it is nowhere."""
    values = f1(predicted, labels)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def scored(
    predicted: np.ndarray, labels: np.ndarray, groups: Sequence[Hashable] | None = None, n: int = 500, seed: int = 0
) -> Interval:
    """`macro_f1` with an interval that resamples ``groups`` (patients)."""
    return bootstrap_statistic((predicted, labels), macro_f1, groups, n=n, seed=seed)


def difference(
    a: np.ndarray,
    b: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    score: Callable[[np.ndarray, np.ndarray], float] = macro_f1,
    n: int = 500,
    seed: int = 0,
) -> Interval:
    """Score of ``a`` minus that of ``b``, both ``(n, k)`` on the same rows, with a paired interval over ``groups``."""
    return bootstrap_statistic((a, b, labels), lambda x, y, z: score(x, z) - score(y, z), groups, n=n, seed=seed)


def macro_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean AUC over the findings of which both classes are there; NaN if there is none.

    Of a finding: how probable it is that a row with it has the higher score, a tie counting one half.
    """
    values = []
    for s, y in zip(np.asarray(scores).T, np.asarray(labels).T > 0.5, strict=True):
        yes, no = s[y], np.sort(s[~y])
        if yes.size and no.size:
            below = np.searchsorted(no, yes, "left").sum() + np.searchsorted(no, yes, "right").sum()
            values.append(below / 2 / yes.size / no.size)
    return float(np.mean(values)) if values else math.nan


def robustness(
    readers: Mapping[str, Callable[[Sequence[str]], np.ndarray]],
    texts: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[Hashable],
    changes: Mapping[str, Sequence[str]],
    strengths: Sequence[float] = (0.0, 0.5, 1.0),
    *,
    n: int = 500,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> pd.DataFrame:
    """Macro-F1 of every reader on the same reports, changed more and more.

    Args:
        readers: name → reports to bool ``(n, k)``, thresholds applied.
        texts: reports.
        labels: ``(n, k)``.
        groups: patient of each.
        changes: name of a curve → the kinds of `change` that are made together.
        strengths: in [0, 1]; 0 is the report as it is.
        n: bootstrap resamples.
        seed: of changes and bootstraps.
        progress: wraps the list of (curve, strength).

    Returns:
        columns ``reader, change, strength, mean, low, high`` and ``lost, lost_low, lost_high``: points (hundredths) of
        macro-F1 lost against the unchanged reports, paired.
    """
    plain = {name: np.asarray(reader(texts)) for name, reader in readers.items()}
    rows = []
    for curve, strength in progress([(c, s) for c in changes for s in strengths]):
        altered = [change(text, changes[curve], strength, [seed, i]) for i, text in enumerate(texts)]
        for name, reader in readers.items():
            now = plain[name] if altered == list(texts) else np.asarray(reader(altered))
            f, lost = scored(now, labels, groups, n, seed), difference(plain[name], now, labels, groups, n=n, seed=seed)
            row = {"reader": name, "change": curve, "strength": strength}
            row |= {"mean": f.estimate, "low": f.low, "high": f.high}
            rows.append(row | {"lost": 100 * lost.estimate, "lost_low": 100 * lost.low, "lost_high": 100 * lost.high})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------------------------
# The same report in another form
# ---------------------------------------------------------------------------------------------------------------------

_BLANK = r"\b[Xx]-?X{3,}\b|\bX{2,}\b|_{2,}"
_LINE = re.compile(r"((?<=[.!?])\s+|\n+)")
_CASED = re.compile(rf"(?P<blank>{_BLANK})|[^\W\d_]+(?:'[^\W\d_]+)?")
# What de-identification takes for a name or a date, and articles: words that no statement hangs on. Open-i's took many.
_NAMELIKE = re.compile(
    r"\b(?:the|an?|patients?|examinations?|exam|study|radiographs?|x-?rays?|films?|today|dated?|views?|years?|old"
    r"|male|female|man|woman|hospital|clinic|technologist|pa|ap)\b",
    re.IGNORECASE,
)
_WORD = re.compile(rf"(?P<blank>{_BLANK})|[^\W\d_]{{5,}}")
# A typing error must not hide a denial, or turn a side or a place into nothing.
_NEVER_MISTYPED = frozenset(
    "without neither never absence absent negative clear resolved resolution cleared clearing unlikely excluded "
    "excludes denies denied right lower upper middle".split()
)
#: How radiologists shorten words, the longer ones first.
ABBREVIATIONS: dict[str, str] = {
    "right lower lobe": "RLL",
    "left lower lobe": "LLL",
    "right upper lobe": "RUL",
    "left upper lobe": "LUL",
    "right middle lobe": "RML",
    "congestive heart failure": "CHF",
    "within normal limits": "WNL",
    "no evidence of": "no e/o",
    "pleural effusions": "pl effs",
    "pleural effusion": "pl eff",
    "costophrenic": "CP",
    "pneumothorax": "PTX",
    "pneumonia": "PNA",
    "atelectasis": "atx",
    "cardiomegaly": "CMG",
    "consolidation": "consol",
    "effusions": "effs",
    "effusion": "eff",
    "opacities": "opacs",
    "opacity": "opac",
    "pulmonary": "pulm",
    "bilateral": "bilat",
    "moderate": "mod",
    "without": "w/o",
    "with": "w/",
    "right": "R",
    "left": "L",
    "small": "sm",
}
_SHORTENED = re.compile(rf"\b(?:{'|'.join(ABBREVIATIONS)})\b", re.IGNORECASE)


def _case(text: str, strength: float, rng: np.random.Generator) -> str:
    """Sentences in upper case, lower case, or With A Capital For Each Word; blanks stay as they are."""
    kinds = (str.upper, str.lower, str.capitalize)
    parts = _LINE.split(text)
    for i in range(0, len(parts), 2):
        if rng.random() < strength:
            kind = kinds[rng.integers(3)]
            parts[i] = _CASED.sub(lambda m, kind=kind: m[0] if m["blank"] else kind(m[0]), parts[i])
    return "".join(parts)


def _headers(text: str, strength: float, rng: np.random.Generator) -> str:
    """No headers: only what the report says of the image, for an indication without its header would be a statement."""
    if rng.random() >= strength:
        return text
    # Paragraphs stay apart: without its header, a section that ends in no full stop would run into the next.
    return "\n\n".join(part for key, part in reports.sections(text).items() if key in _SAYS) or text


def _lines(text: str, strength: float, rng: np.random.Generator) -> str:
    """Lines broken at a margin and indented by a blank, as MIMIC-CXR has them."""
    if rng.random() >= strength:
        return text
    margin = int(rng.integers(30, 80))
    return _within(text, lambda part: "\n ".join(line for own in part.split("\n") for line in _broken(own, margin)))


def _broken(line: str, margin: int) -> list[str]:
    # An empty line has to stay: it ends a paragraph.
    return textwrap.wrap(line, margin, break_on_hyphens=False, break_long_words=False) or [""]


def _order(text: str, strength: float, rng: np.random.Generator) -> str:
    """Sentences of a section in another order."""

    def shuffled(part: str) -> str:
        own = sentences(part)
        moved = np.flatnonzero(rng.random(len(own)) < strength)
        if len(moved) < 2:
            return part
        order = np.arange(len(own))
        order[moved] = rng.permutation(moved)
        return " ".join(_closed(own[i]) for i in order)

    return _within(text, shuffled)


def _template(text: str, strength: float, rng: np.random.Generator) -> str:
    """A section as a numbered list, as items on lines of their own without full stops, or with a label and a colon."""

    def listed(part: str) -> str:
        own = sentences(part)
        if rng.random() >= strength:
            return part
        style = rng.integers(3)
        if style == 0:
            return " ".join(f"{i}. {_closed(s)}" for i, s in enumerate(own, 1))
        if style == 1:
            return "\n" + "\n".join(f"- {s.rstrip('.')}" for s in own)
        return "\n" + "\n".join(f"Observation {i}: {s}" for i, s in enumerate(own, 1))

    return _within(text, listed)


def _blanks(text: str, strength: float, rng: np.random.Generator) -> str:
    """De-identification that takes too much: articles and words of the examination become XXXX."""
    return _within(text, lambda part: _NAMELIKE.sub(lambda m: "XXXX" if rng.random() < strength else m[0], part))


def _typos(text: str, strength: float, rng: np.random.Generator) -> str:
    """One typing error in words of five letters or more, never in the first letter or in a word that denies."""

    def mistyped(m: re.Match[str]) -> str:
        word = m[0]
        if m["blank"] or word.lower() in _NEVER_MISTYPED or rng.random() >= strength:
            return word
        i, kind = int(rng.integers(1, len(word) - 1)), rng.integers(3)
        if kind == 0:
            return word[:i] + word[i + 1 :]
        if kind == 1:
            return word[:i] + word[i] + word[i:]
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]

    return _within(text, lambda part: _WORD.sub(mistyped, part))


def _abbreviations(text: str, strength: float, rng: np.random.Generator) -> str:
    """Words and phrases in the short form that radiologists use."""

    def shortened(m: re.Match[str]) -> str:
        return ABBREVIATIONS[m[0].lower()] if rng.random() < strength else m[0]

    return _within(text, lambda part: _SHORTENED.sub(shortened, part))


#: Every kind of `change`, in the order in which several are made.
CHANGES: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    "abbreviations": _abbreviations,
    "typos": _typos,
    "blanks": _blanks,
    "order": _order,
    "template": _template,
    "headers": _headers,
    "case": _case,
    "lines": _lines,
}
#: The kinds that keep every word a statement hangs on.
FORMATTING = ("blanks", "order", "template", "headers", "case", "lines")


def change(report: str, kinds: str | Sequence[str], strength: float, seed: int | Sequence[int] = 0) -> str:
    """The same report in another form; what it says of the image stays true.

    ``case``, ``headers`` (missing), ``order`` (of sentences), ``template`` (numbered lists, items, labels with colons),
    ``lines`` (broken at a margin) and ``blanks`` (XXXX for words that no statement hangs on) are formatting; ``typos``
    and ``abbreviations`` change the words themselves. Words that deny are never touched, but for "without", which may
    become "w/o".

    Args:
        report: any report.
        kinds: one or several of `CHANGES`.
        strength: in [0, 1], the share of words, sentences or sections (for headers and lines: of reports) that is
            changed; 0 changes nothing.
        seed: of the draws. A report is changed in the same way each time.

    Raises:
        ValueError: unknown kind, or a strength outside [0, 1].
    """
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    unknown = [kind for kind in wanted if kind not in CHANGES]
    if unknown:
        raise ValueError(f"unknown change {unknown[0]!r}: choose from {', '.join(CHANGES)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    rng = np.random.default_rng(seed)
    for kind, make in CHANGES.items():
        if kind in wanted and strength:
            report = make(report, strength, rng)
    return report


def _within(text: str, rewrite: Callable[[str], str]) -> str:
    """Rewrite the sections that describe the image where they stand; the rest of the report stays as it is."""
    start = 0
    for key, part in reports.sections(text).items():
        at = text.find(part, start)
        # A section that occurs twice was joined, and is nowhere in one piece.
        if key in _SAYS and at >= 0:
            new = rewrite(part)
            text = text[:at] + new + text[at + len(part) :]
            start = at + len(new)
    return text


def _closed(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


# ---------------------------------------------------------------------------------------------------------------------
# Asking the diffusion model
# ---------------------------------------------------------------------------------------------------------------------

#: What the model is told of each class, worded as an impression is.
PROMPTS: dict[str, str] = {name: f"{name.capitalize()}." for name in FINDINGS}
#: And of an image without any of them.
NORMAL = "No acute cardiopulmonary abnormality."


@torch.inference_mode()
def denoising_errors(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    timesteps: Sequence[int],
    *,
    draws: int = 1,
    seed: int = 0,
    batch: int = 64,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> np.ndarray:
    """How badly the model predicts an image's noise when told each of the prompts: float32 ``(n, prompts, timesteps)``.

    The mean squared error of Li et al. 2023 (section 3.2), in the terms the model was trained in (noise or velocity),
    without guidance. All prompts of an image see the same noise at the same timesteps (their section 3.3), so that what
    noise and image contribute cancels in a difference. The noise of image ``i`` depends on ``seed``, ``i``, the
    timestep and the draw alone: not on the batch or the weights.

    Args:
        pipeline: of `models.load_pipeline`.
        images: uint8 ``(n, s, s)``.
        prompts: a text for each class.
        timesteps: of the noise schedule, 0 (no noise) to ``num_train_timesteps - 1``.
        draws: noises for each timestep, averaged.
        seed: of the noise.
        batch: rows of one pass through the U-Net.
        progress: wraps the passes.

    Raises:
        ValueError: images of another size or type, no prompt, a timestep outside the schedule.
        FloatingPointError: the model's output is not finite.
    """
    size = models.image_size(pipeline)
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
        raise ValueError(f"expected uint8 images (n, {size}, {size}), got {images.dtype} {images.shape}")
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    last = schedule.config.num_train_timesteps - 1
    outside = [t for t in timesteps if not 0 <= t <= last]
    if not prompts or not len(timesteps) or outside:
        raise ValueError(f"needs prompts, and timesteps from 0 to {last}: got {len(prompts)} and {list(timesteps)}")
    unet = pipeline.unet
    text = models.encode_text(pipeline, list(prompts)).to(unet.dtype)
    latents = models.encode_images(pipeline, images).cpu()
    plan = [(i, k, d) for i in range(len(images)) for k in range(len(timesteps)) for d in range(draws)]
    some = max(1, batch // len(prompts))
    errors = np.zeros((len(images), len(prompts), len(timesteps)))
    for start in progress(range(0, len(plan), some)):
        rows = plan[start : start + some]
        x = latents[[i for i, _, _ in rows]]
        times = torch.tensor([timesteps[k] for _, k, _ in rows])
        noise = torch.stack([_noise(x.shape[1:], seed, i, int(timesteps[k]), d) for i, k, d in rows])
        target = schedule.get_velocity(x, noise, times) if _velocity(schedule) else noise
        noisy = schedule.add_noise(x, noise, times).repeat_interleave(len(prompts), dim=0).to(text)
        predicted = (
            unet(
                noisy,
                times.repeat_interleave(len(prompts)).to(text.device),
                text.repeat(len(rows), 1, 1),
                return_dict=False,
            )[0]
            .float()
            .cpu()
        )
        squared = (predicted.unflatten(0, (len(rows), len(prompts))) - target[:, None]).square().mean(dim=(2, 3, 4))
        for (i, k, _), error in zip(rows, squared.numpy(), strict=True):
            errors[i, :, k] += error / draws
    if not np.isfinite(errors).all():
        raise FloatingPointError("the denoising error is not finite: the model's weights have diverged")
    return errors.astype(np.float32)


def evidence(errors: np.ndarray) -> np.ndarray:
    """How much better the model denoises when told of a class than when told the last prompt, the normal one.

    Args:
        errors: ``(n, classes + 1, timesteps)`` of `denoising_errors`.

    Returns:
        float32 ``(n, classes)``: the paired difference, averaged over timesteps; more is more of that class.
    """
    return (errors[:, -1:] - errors[:, :-1]).mean(axis=2)


def _velocity(schedule: DDPMScheduler) -> bool:
    kind = schedule.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"the scheduler predicts {kind!r}: expected 'epsilon' or 'v_prediction'")
    return kind == "v_prediction"


def _noise(shape: Sequence[int], seed: int, i: int, timestep: int, draw: int) -> Tensor:
    rng = np.random.default_rng([seed, i, timestep, draw])
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))

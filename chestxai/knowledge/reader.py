"""Readers of reports: attention over a frozen encoder's token states, TF-IDF, and rules.

The pooling follows Yang et al. 2016, "Hierarchical Attention Networks", eq. 5–7, with one query for each finding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from chestxai import models, reports
from chestxai.fidelity import asked
from chestxai.knowledge.descriptions import passages
from chestxai.knowledge.labels import columns, joined_side, true_side, truth
from chestxai.knowledge.scores import f1
from chestxai.models.small import fit
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Study


@dataclass(frozen=True)
class Passage:
    """A passage as a text encoder sees it, without padding and special tokens.

    ``spans`` are the characters ``(start, end)`` of ``text`` of each token, ``states`` float32 ``(tokens, width)``.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    states: Tensor


Reading = list[Passage]


@torch.no_grad()
def read(
    pipeline: StableDiffusionPipeline,
    texts: Sequence[str],
    cache: dict[tuple[int, ...], Tensor] | None = None,
    batch: int = 64,
) -> list[Reading]:
    """Token states of every report, sentence by sentence, as an encoder reads few tokens (the tiny base 32, CLIP 77).

    So no word is cut off and the order of sentences is irrelevant. A sentence that is still too long is split into
    several passages; equal sentences are encoded once, ``batch`` at a time. ``texts`` must describe the image (else
    InputError). ``cache`` holds states by token ids, filled in place; reuse it for the encoder of one ``pipeline``.
    """
    tokenizer, encoder, cache = pipeline.tokenizer, pipeline.text_encoder, {} if cache is None else cache
    by_report = [passages(text) for text in texts]
    empty = [i for i, sentences in enumerate(by_report) if not sentences]
    if empty:
        raise InputError(f"report {empty[0]} does not describe the image: leave it out ({texts[empty[0]][:80]!r})")
    pieces = _pieces(tokenizer, list(dict.fromkeys(sentence for report in by_report for sentence in report)))
    missing = {ids: words for found in pieces.values() for ids, words, _ in found if ids not in cache}
    # Sentences of similar length share a batch: padding costs as much as words.
    queue = sorted(missing, key=len)
    for start in range(0, len(queue), batch):
        some = queue[start : start + batch]
        ids, real = _padded([torch.tensor(piece) for piece in some], tokenizer.pad_token_id or 0)
        tokens = {"input_ids": ids.to(encoder.device), "attention_mask": real.long().to(encoder.device)}
        for piece, states in zip(some, models.text_states(encoder, tokens).float().cpu(), strict=True):
            cache[piece] = states[missing[piece]].clone()
    encoded = {s: [Passage(s, spans, cache[ids]) for ids, _, spans in found] for s, found in pieces.items()}
    return [[passage for sentence in report for passage in encoded[sentence]] for report in by_report]


def _pieces(tokenizer: Any, sentences: list[str]) -> dict[str, list[tuple[tuple[int, ...], list[int], tuple]]]:
    """For each sentence its pieces: token ids, positions of the word tokens, and their character spans."""
    encoded = tokenizer(
        sentences,
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
    )
    names = ("overflow_to_sample_mapping", "input_ids", "special_tokens_mask", "offset_mapping")
    out: dict[str, list] = {sentence: [] for sentence in sentences}
    for sentence, ids, special, offsets in zip(*(encoded[name] for name in names), strict=True):
        words = [i for i, flag in enumerate(special) if not flag]
        if words:
            out[sentences[sentence]].append((tuple(ids), words, tuple(tuple(offsets[i]) for i in words)))
    return out


class AttentionPool(nn.Module):
    """One attention-pooled logistic regression for each of ``findings``, over token states of ``width`` numbers.

    With ``z`` the states standardised over the training tokens: attention ``a = softmax(z·q)`` over the real tokens,
    logit ``(Σ a z)·w + b``. ``2·width + 1`` parameters per finding.
    """

    def __init__(self, width: int, findings: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(findings, width) * 1e-3)
        self.weight = nn.Parameter(torch.randn(findings, width) * 1e-3)
        self.bias = nn.Parameter(torch.zeros(findings))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def forward(self, states: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(n, findings)`` and attention ``(n, findings, tokens)``.

        ``states`` is float32 ``(n, tokens, width)``, ``real`` bool ``(n, tokens)``, False for padding.
        """
        # Scaling the few weights equals scaling every token, pooling the products equals pooling the states, and a
        # softmax ignores a constant.
        scaled = torch.cat([self.query, self.weight]) / self.spread
        scores, values = (states @ scaled.T).chunk(2, dim=-1)
        attention = scores.masked_fill(~real[..., None], -math.inf).softmax(dim=1)
        offset = self.bias - scaled[len(self.query) :] @ self.mean
        return (attention * values).sum(dim=1) + offset, attention.transpose(1, 2)


def train_pool(readings: Sequence[Reading], labels: np.ndarray, epochs: int = 20, seed: int = 0) -> AttentionPool:
    """Train the head on frozen states: AdamW on the binary cross-entropy, batches of 32, one-cycle schedule.

    Suits some hundred to some thousand reports. The same ``seed`` gives the same weights on the same machine.
    ``readings`` are of `read`, ``labels`` ``(n, k)``, 0 or 1, and ``epochs`` passes over them.
    """
    labels = torch.as_tensor(np.asarray(labels, dtype=np.float32))
    if labels.ndim != 2 or len(labels) != len(readings) or not len(readings):
        raise ValueError(f"{len(readings)} reports need labels ({len(readings)}, k), got {tuple(labels.shape)}")
    by_report = [_joined(reading) for reading in readings]
    tokens = torch.cat(by_report)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pool = AttentionPool(tokens.shape[1], labels.shape[1])
    pool.mean.copy_(tokens.mean(dim=0))
    pool.spread.copy_(tokens.std(dim=0).clamp_min(1e-6) if len(tokens) > 1 else torch.ones(tokens.shape[1]))

    def loss(rows: np.ndarray) -> Tensor:
        logits, _ = pool(*_padded([by_report[i] for i in rows]))
        return F.binary_cross_entropy_with_logits(logits, labels[rows])

    optimizer = torch.optim.AdamW(pool.parameters(), lr=1e-2, weight_decay=0.1)
    fit(optimizer, len(readings), loss, epochs, np.random.default_rng(seed), batch=32)
    return pool.eval().requires_grad_(False)


@torch.no_grad()
def pool_probabilities(pool: AttentionPool, readings: Sequence[Reading]) -> np.ndarray:
    """Probability of each finding by ``pool`` of `train_pool` on ``readings`` of `read`: float32 ``(n, k)``."""
    parts = [readings[start : start + 64] for start in range(0, len(readings), 64)]
    return np.concatenate([pool(*_padded(list(map(_joined, part))))[0].sigmoid().numpy() for part in parts])


@torch.no_grad()
def attended(pool: AttentionPool, reading: Reading) -> list[tuple[str, np.ndarray]]:
    """Every word of a ``reading`` with the attention that each finding of ``pool`` pays to it, float32 ``(k,)``.

    The pieces of a word are summed, so the attention of a finding sums to 1; punctuation marks are words of their own.
    """
    _, attention = pool(*_padded([_joined(reading)]))
    weights = iter(attention[0].T.numpy())
    words: list[tuple[str, np.ndarray]] = []
    for passage in reading:
        last = -1
        for start, end in passage.spans:
            weight, piece = next(weights), passage.text[start:end]
            if start == last and piece[:1].isalnum() and words[-1][0][-1:].isalnum():
                words[-1] = (words[-1][0] + piece, words[-1][1] + weight)
            else:
                words.append((piece.strip(), weight))
            last = end
    return words


def _joined(reading: Reading) -> Tensor:
    return torch.cat([passage.states for passage in reading])


def _padded(rows: Sequence[Tensor], value: float = 0) -> tuple[Tensor, Tensor]:
    real = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True, padding_value=value), real


class _OneVsRest(OneVsRestClassifier):
    """scikit-learn's, with one column of probabilities for a single label, too."""

    def predict_proba(self, X: Any) -> np.ndarray:
        probabilities = super().predict_proba(X)
        return probabilities if self.multilabel_ else probabilities[:, 1:]


def train_tfidf(texts: Sequence[str], labels: np.ndarray) -> Pipeline:
    """Baseline: a logistic regression per finding on the TF-IDF of words and pairs of words ("no effusion") of `read`.

    From ``texts`` and ``labels`` ``(n, k)`` with both classes; the ``predict_proba`` of the result is ``(n, k)``.
    """
    labels = np.asarray(labels)
    single = [i for i in range(labels.shape[1]) if np.ptp(labels[:, i]) == 0]
    if single:
        raise InputError(f"label column {single[0]} has one class only: leave it out (see judgeable)")
    regression = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000)
    clean = lambda report: " ".join(passages(report)).lower()  # noqa: E731
    words = TfidfVectorizer(preprocessor=clean, ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    return make_pipeline(words, _OneVsRest(regression)).fit(list(texts), labels.astype(int))


def rules(texts: Sequence[str], findings: Sequence[str] = FINDINGS) -> np.ndarray:
    """Which of ``k`` ``findings`` the rules (`reports.find`) read as present in ``texts``: bool ``(n, k)``."""
    return asked(list(texts))[:, columns(findings)] > 0.5


def rule_scores(studies: Sequence[Study]) -> pd.DataFrame:
    """How well `reports` reads what the ``studies`` show, against `truth`; each report counts once.

    Returns:
        a row for each finding, and "normal" where indexers record that. Columns: ``there`` (reports with it),
        ``precision``, ``recall``, ``f1``; ``wrong`` (false positives) and ``hedged`` (those mentioned only in doubt,
        which `reports` counts as present); ``sided`` (findings read whose true side is recorded) and ``side_right``
        (share of them read with that side). NaN where a ratio is undefined.
    """
    different = [*{(s.patient, s.report): s for s in studies}.values()]
    labels, kept = truth(different)
    unique = [different[i] for i in kept]
    mentions = [[m for m in reports.mentions(s.report) if m.present] for s in unique]
    by_name = {name: [[m for m in found if m.name == name] for found in mentions] for name in FINDINGS}
    named = {name: np.array([bool(found) for found in rows], dtype=bool) for name, rows in by_name.items()}
    there = dict(zip(FINDINGS, labels.T > 0.5, strict=True))
    if unique and all("mesh_major" in s.attributes for s in unique):
        named["normal"] = np.array([not found for found in mentions])
        there["normal"] = np.array([str(s.attributes["mesh_major"]).strip().lower() == "normal" for s in unique])
    named, there = pd.DataFrame(named), pd.DataFrame(there)
    right = (named & there).sum()
    table = pd.DataFrame({"there": there.sum(), "precision": right / named.sum(), "recall": right / there.sum()})
    table = table.assign(f1=f1(named, there), wrong=named.sum() - right).rename_axis("finding")
    for name, rows in by_name.items():
        wrong = [rows[i] for i in np.flatnonzero(named[name] & ~there[name])]
        sides = [
            joined_side(m.side for m in found if m.side) == side
            for study, found in zip(unique, rows, strict=True)
            if found and (side := true_side(study, name))
        ]
        hedged, right = sum(all(m.uncertain for m in found) for found in wrong), np.mean(sides) if sides else math.nan
        table.loc[name, ["hedged", "sided", "side_right"]] = hedged, len(sides), right
    return table

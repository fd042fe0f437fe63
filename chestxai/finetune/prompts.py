"""From a study to the prompt it is trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from chestxai import reports
from chestxai.recipes import NO_FINDING, Recipe
from chestxai.sources.phantom.texts import paraphrase
from chestxai.studies import FINDINGS, Study


def study_prompts(
    studies: Sequence[Study], recipe: Recipe | None = None, seed: int = 0
) -> tuple[list[Study], list[str], list[str]]:
    """The studies that have a prompt, their prompts, and one line for each study that has none.

    Args:
        studies: in any order; what is random of a prompt depends on ``seed`` and the study's id alone.
        recipe: says what a prompt is; default: the impression.
        seed: of the run.
    """
    recipe = recipe or Recipe()
    usable, prompts, skipped = [], [], []
    for study in studies:
        rng = np.random.default_rng([seed, 3, int.from_bytes(hashlib.sha256(study.id.encode()).digest()[:8])])
        try:
            text = _RULES[recipe.prompts](study, rng)
        except ValueError as error:
            skipped.append(f"{study.id}: {error}")
            continue
        text = drop_words(text, recipe.word_dropout, rng) if recipe.word_dropout else text
        prompts.append(" ".join([text, *denials(study, recipe.denied, rng)]))
        usable.append(study)
    return usable, prompts, skipped


def labels(study: Study, rng: np.random.Generator) -> str:
    """Names of the findings of ``study`` in an order drawn by ``rng``, or "No Finding"."""
    names = [*dict.fromkeys(finding.name for finding in study.present())]
    return ", ".join(map(str, rng.permutation(names))) if names else NO_FINDING


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """``text`` without a ``share`` of its words, in [0, 1), drawn by ``rng``; one word at least is left."""
    words = text.split()
    kept = rng.random(len(words)) >= share
    kept[rng.integers(len(words))] = True
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)


def denials(study: Study, count: int, rng: np.random.Generator) -> list[str]:
    """Sentences that deny ``count`` of the findings, drawn by ``rng``, that ``study`` does not have, or all of them."""
    absent = [name for name in FINDINGS if name not in {finding.name for finding in study.present()}]
    return [f"No {name.lower()}." for name in rng.permutation(absent)[:count]]


def _impression(study: Study, _: np.random.Generator) -> str:
    return reports.prompt(study.report)


_RULES: dict[str, Callable[[Study, np.random.Generator], str]] = {
    "impression": _impression,
    "labels": labels,
    "labels+impression": lambda study, rng: f"{labels(study, rng)}. {_impression(study, rng)}",
    # One written by hand, where the data have it, comes first.
    "paraphrases": lambda study, rng: str(study.attributes.get("paraphrase") or paraphrase(study.findings, rng)),
}

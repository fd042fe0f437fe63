"""From a study to the prompt it is trained with."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from chestxai import reports
from chestxai.recipes import NO_FINDING, Recipe
from chestxai.runs import InputError
from chestxai.sources.phantom.texts import paraphrase
from chestxai.sources.tables import csv_rows
from chestxai.studies import FINDINGS, Study


def study_prompts(
    studies: Sequence[Study], recipe: Recipe | None = None, seed: int = 0
) -> tuple[list[Study], list[str], list[str]]:
    """The ``studies`` that have a prompt, their prompts, and one line for each study that has none.

    ``recipe`` says what a prompt is, by default the impression. What is random of it depends on ``seed`` and the
    study's id alone. InputError if the csv of paraphrases is missing or damaged, or has none of the studies.
    """
    recipe = recipe or Recipe()
    usable, prompts, skipped = [], [], []
    rule = _from_csv(recipe, studies) if recipe.paraphrases else _RULES[recipe.prompts]
    for study in studies:
        rng = np.random.default_rng([seed, 3, int.from_bytes(hashlib.sha256(study.id.encode()).digest()[:8])])
        try:
            text = rule(study, rng)
        except ValueError as error:
            skipped.append(f"{study.id}: {error}")
            continue
        text = drop_words(text, recipe.word_dropout, rng) if recipe.word_dropout else text
        denied = denials(study, recipe.denied, rng)
        text += "" if not denied or text.endswith((".", "!", "?")) else "."
        prompts.append(" ".join([text, *denied]))
        usable.append(study)
    return usable, prompts, skipped


def labels(study: Study, rng: np.random.Generator) -> str:
    """Names of the findings of ``study`` in an order drawn by ``rng``, or "No Finding"."""
    names = [*dict.fromkeys(finding.name for finding in study.present())]
    return ", ".join(map(str, rng.permutation(names))) if names else NO_FINDING


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """``text`` without a ``share`` of its words, in [0, 1), drawn by ``rng``; one, drawn as well, always stays."""
    words = text.split()
    kept = rng.random(len(words)) >= share
    kept[rng.integers(len(words))] = True
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)


def denials(study: Study, count: int, rng: np.random.Generator) -> list[str]:
    """Sentences that deny ``count`` of the findings, drawn by ``rng``, that ``study`` does not have, or all of them."""
    absent = [name for name in FINDINGS if name not in {finding.name for finding in study.present()}]
    return [f"No {name.lower()}." for name in rng.permutation(absent)[:count]]


def _from_csv(recipe: Recipe, studies: Sequence[Study]) -> Callable[[Study, np.random.Generator], str]:
    """The rule that draws one of the texts that the recipe's csv has for a study."""
    path, texts = recipe.files(Path())["paraphrases"], defaultdict(list)
    advice = "It needs the columns study and text."
    if not path.is_file():
        raise InputError(f"paraphrases: there is no file {path}. {advice}")
    for where, (study, text) in csv_rows(path, ("study", "text"), advice):
        if not text:
            raise InputError(f"{where}: study {study!r} has an empty text. {advice}")
        texts[study].append(text)
    if not any(study.id in texts for study in studies):
        ids = f"it has {next(iter(texts), '')!r}, they are {studies[0].id!r}, …" if studies else ""
        raise InputError(f"{path}: has none of the {len(studies)} studies; {ids}")

    def one(study: Study, rng: np.random.Generator) -> str:
        if study.id not in texts:
            raise ValueError(f"no paraphrase in {path.name}")
        return str(rng.choice(texts[study.id]))

    return one


def _impression(study: Study, _: np.random.Generator) -> str:
    return reports.prompt(study.report)


_RULES: dict[str, Callable[[Study, np.random.Generator], str]] = {
    "impression": _impression,
    "labels": labels,
    "finding tokens": labels,
    "labels+impression": lambda study, rng: f"{labels(study, rng)}. {_impression(study, rng)}",
    # One written by hand, where the data have it, comes first.
    "paraphrases": lambda study, rng: str(study.attributes.get("paraphrase") or paraphrase(study.findings, rng)),
}

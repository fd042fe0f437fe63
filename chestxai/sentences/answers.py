"""Each chapter's answer in one sentence, where its other sentences are longer: the heads of chapters 1 to 7."""

from collections.abc import Mapping

import pandas as pd

from chestxai.profiles import StatisticsSettings
from chestxai.sentences.localization import looks
from chestxai.sentences.words import counted, independent, listed, verb
from chestxai.stats import Interval


def images(phrases: int, studies: int, prior: float, chance: float) -> str:
    """Chapter 1: ``phrases`` of test ``studies`` have a place; Top-1 of the location ``prior``, and by ``chance``."""
    return (
        f"{counted(phrases, 'phrase')} of {counted(studies, 'test report')} can be grounded, as the finding's place is "
        f"known; without a look at the image the location prior hits {prior:.0%} of them (chance {chance:.0%})."
    )


def finetuning(name: str, parameters: Mapping[str, int], moved: float) -> str:
    """Chapter 2: trained ``parameters`` by network of variant ``name``, and how far its text states ``moved``.

    ``moved`` is the mean of 1 − cosine.
    """
    parts = listed(f"{counted(n, 'parameter')} of the {network}" for network, n in parameters.items())
    if moved < 1e-6:
        return f"In `{name}` {parts} are trained, and the states of the words stay where they were."
    return f"In `{name}` {parts} are trained, and the states of the words move by {moved:.3f} (1 − cosine)."


def maps(name: str, prior: Interval, rows: pd.DataFrame, settings: StatisticsSettings) -> str:
    """Chapters 3 and 4: AUC-ROC minus that of the location ``prior``, and whether the maps pass `looks`.

    ``name`` is the variant's; ``rows`` and ``settings`` are those of `looks`.
    """
    fit = verb(prior, "fit the findings better than", "fit the findings worse than", "do not clearly fit better than")
    passed = looks(name, rows, settings).endswith("both matter.")
    tests = f"they {'pass' if passed else 'do not pass'} the tests of image and word"
    return f"The maps of `{name}` {fit} the location prior (AUC-ROC {prior:+.3f}), and {tests}."


def scores(skill: pd.DataFrame, share: float = 0.9) -> str:
    """Chapter 5: how many wrong maps get ``share`` or more of the perfect map's ``skill`` (measures × wrong maps)."""
    accepted = (skill >= share).sum(axis=1)
    none, worst = list(accepted.index[accepted == 0]), accepted.idxmax()
    tried = counted(len(skill.columns), "wrong map")
    start = f"{len(none)} of {len(skill)} scores accept none of the {tried} tried" if none else ""
    start = start or f"Each of {len(skill)} scores accepts some of the {tried} tried"
    return start + (f"; {worst} accepts the most, {accepted[worst]} of them." if accepted[worst] else ".")


def fidelity(name: str, fid: tuple[Interval, Interval], floor: Interval, auc: Interval) -> str:
    """Chapter 6: ``fid`` of the base and of variant ``name``, ``floor`` of held-out images, classifier ``auc``."""
    real = verb(independent(fid[1], fid[0]), "less real than", "more real than", "not clearly more or less real than")
    shown = "show" if auc.low > 0.5 else "do not clearly show"
    return (
        f"The images of `{name}` are {real} the base's (FID {fid[1].estimate:.2f} against {fid[0].estimate:.2f}; of "
        f"held-out images {floor.estimate:.2f}) and {shown} the findings that prompts name (AUC {auc.estimate:.2f})."
    )


def blind_spots(change: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Chapter 7: which measures overlook most: ``change`` and ``names`` of `chestxai.sentences.fidelity.unnoticed`."""
    missed = (change[list(names)] > -1).sum()
    least, most = missed.idxmin(), missed.idxmax()
    start = "Every score overlooks something" if missed[least] else f"{names[least]} overlooks nothing"
    each = f"{names[most]} misses {missed[most]}, {names[least]} {missed[least]}"
    return f"{start}: of {counted(len(change), 'failing')}, {each}."

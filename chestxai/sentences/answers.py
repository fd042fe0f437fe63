"""Each chapter's answer in one sentence, where its other sentences are longer: the heads of chapters 1 to 7."""

from collections.abc import Mapping, Sequence

import pandas as pd

from chestxai.profiles import StatisticsSettings
from chestxai.sentences.localization import tested
from chestxai.sentences.words import Templates, counted
from chestxai.stats import Interval, bootstrap_ci

_say = Templates(__file__)


def images(phrases: int, located: int, studies: int, prior: float, chance: float) -> str:
    """Chapter 1: ``phrases`` in ``located`` of ``studies`` have a place; pointing game of ``prior`` and ``chance``."""
    return _say("images", phrases=phrases, located=located, studies=studies, prior=prior, chance=chance)


def finetuning(name: str, parameters: Mapping[str, int], moved: float) -> str:
    """Chapter 2: trained ``parameters`` by network of variant ``name``, the mean 1 − cosine its states ``moved``."""
    parts = [f"{counted(n, 'parameter')} of the {network}" for network, n in parameters.items()]
    return _say("finetuning", name=name, parts=parts, moved=moved, moves=moved >= 1e-6)


def maps(name: str, prior: Interval, rows: pd.DataFrame, settings: StatisticsSettings) -> str:
    """Chapters 3, 4: ``name``, ``rows``, ``settings`` of `localization.looks`; ``prior``: AUC-ROC minus the prior's."""
    passed = all(tested(rows, settings).values())
    part = rows.dropna(subset="gain_word") if passed and "gain_word" in rows else rows[:0]
    image = len(part) and bootstrap_ci(part["gain_word"], part["patient"], n=settings.resamples).low > 0
    words = _say("words", image=image) if len(part) else ""
    return _say("maps", name=name, prior=prior, passed=passed, words=words)


def scores(skill: pd.DataFrame, share: float = 0.9) -> str:
    """Chapter 5: how many wrong maps get ``share`` or more of the perfect map's ``skill`` (measures × wrong maps)."""
    accepted = (skill >= share).sum(axis=1)
    none, worst, (total, tried) = sum(accepted == 0), accepted.idxmax(), skill.shape
    return _say("scores", none=none, total=total, tried=tried, worst=worst, most=accepted[worst])


def fidelity(name: str, fid: Sequence[Interval], moved: Interval, floor: Interval, auc: Interval) -> str:
    """Chapter 6: ``fid`` of base and variant ``name``, ``moved`` paired; ``floor`` of held-out; classifier ``auc``."""
    return _say("fidelity", name=name, fid=fid, moved=moved, floor=floor, shown=auc.low > 0.5, auc=auc)


def blind_spots(change: pd.DataFrame, names: Mapping[str, str], alarms: Sequence[str] = ()) -> str:
    """Chapter 7: what overlooks most: ``change``, ``names`` of `fidelity.unnoticed`; ``alarms`` are false alarms."""
    missed = (~(change[[m for m in names if change[m].notna().any()]] <= -1)).sum().rename(names)  # NaN notices nothing
    if missed.empty:
        return "Too few images for any score."
    least, most = missed.idxmin(), missed.idxmax()
    counts = {"lowest": missed[least], "highest": missed[most], "failings": len(change), "alarms": alarms}
    return _say("blind spots", every=missed[least], least=least, most=most, **counts)

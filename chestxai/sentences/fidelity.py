"""Chapters 6 and 7: fidelity, and what it cannot see."""

from collections.abc import Mapping, Sequence

import pandas as pd

from chestxai.sentences.words import Templates, bullets, independent
from chestxai.stats import Interval

_say = Templates(__file__)


def sample_size(counts: Sequence[int], fids: Sequence[float], kids: Sequence[float]) -> str:
    """``fids`` and ``kids`` of real images against others, for two numbers of images, ``counts``."""
    return _say("sample size", counts=counts, fids=fids, kids=kids, fewer=fids[0] > fids[1])


def teaching(generated: Interval, real: Interval) -> str:
    """AUC on real images of a classifier that learnt from ``generated`` images, and from as many ``real`` ones."""
    some, gap = generated.low > 0.5, independent(generated, real)
    return _say("teaching", some=some, gap=gap, generated=generated, real=real)


def answer(
    fid: Sequence[Interval],
    floor: Interval,
    similar: Sequence[Interval],
    auc: Sequence[Interval],
    precise: Sequence[Interval],
    changes: Mapping[str, Interval],
) -> str:
    """What fine-tuning did to the images, as bullets.

    ``fid``, ``auc`` (classifier) and ``precise`` (precision) are of the base and of the last checkpoint, the latter of
    other real images, too; ``floor``: FID of real images; ``similar``: MS-SSIM within a prompt at the last checkpoint,
    and of real images with equal findings; ``changes``: "fid" and "auc", paired by prompt and noise, last minus base.
    """
    gaps = {"left": independent(fid[1], floor), "vary": independent(*similar), "near": independent(*precise[1:])}
    gaps |= {"obey": auc[1].low > 0.5, "moved": changes["fid"], "than": changes["auc"]}
    return _say("answer", fid=fid, floor=floor, similar=similar, auc=auc, precise=precise, **gaps)


def as_asked(generated: Mapping[str, Interval], real: Mapping[str, Interval], above: Mapping[str, Interval]) -> str:
    """Shares of findings with side, zone and severity as asked, in ``generated`` and ``real`` images.

    ``above`` are those of the generated images minus chance.
    """
    lines = []
    for name, share in generated.items():
        gap, by_chance = independent(share, real[name]), share.estimate - above[name].estimate
        about = {"name": name, "share": share, "real": real[name], "chance": by_chance}
        lines.append(_say("as asked", more=above[name].low > 0, gap=gap, weak=real[name].low <= by_chance, **about))
    return bullets(lines) or _say("not asked")


def memory(closer: Interval, found: float) -> str:
    """Share of generated images ``closer`` to training images than 95 % of unseen ones are, and of copies ``found``."""
    return _say("memory", closer=closer, found=found, more=closer.low > 0.05)


def unnoticed(change: pd.DataFrame, names: Mapping[str, str]) -> str:
    """What each measure (``names``: measure → printed name) overlooks, as bullets.

    That is where ``change``, spoiled sets × measures in half-widths, is above −1, or NaN.
    """
    missed = {n: "; ".join(change.index[~(change[m] <= -1)]) for m, n in names.items() if change[m].notna().any()}
    return bullets(f"**{name}** does not notice: {sets or 'nothing'}." for name, sets in missed.items())

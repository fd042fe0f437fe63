"""Chapters 6 and 7: fidelity, and what it cannot see."""

from collections.abc import Mapping, Sequence

import pandas as pd

from chestxai.sentences.words import bullets, independent, verb
from chestxai.stats import Interval


def sample_size(counts: Sequence[int], fids: Sequence[float], kids: Sequence[float]) -> str:
    """``fids`` and ``kids`` of real images against others, for two numbers of images, ``counts``."""
    more = ": they did not become more real, only more numerous" if fids[0] > fids[1] else ""
    return (
        f"Real against real, {counts[0]} images have an FID of {fids[0]:.2f} and {counts[1]} of {fids[1]:.2f}{more}. "
        f"The KID is {kids[0]:.3f} and {kids[1]:.3f}. Do not compare FIDs of different numbers of images."
    )


def teaching(generated: Interval, real: Interval) -> str:
    """AUC on real images of a classifier that learnt from ``generated`` images, and from as many ``real`` ones."""
    gap = independent(generated, real)
    text = "The generated images do not clearly teach anything"
    if generated.low > 0.5:
        text = f"The generated images teach {verb(gap, 'more than', 'less than', 'not clearly less than')} real ones"
    return f"{text}: AUC **{generated}**, learnt from real images **{real}**; difference {gap:+.3f}."


def answer(fid: Sequence[Interval], floor: Interval, similar: Sequence[Interval], auc: Sequence[Interval]) -> str:
    """What fine-tuning did to the images, as bullets.

    Args:
        fid, auc: FID and classifier AUC, each of the base and of the last checkpoint.
        floor: FID of real images.
        similar: MS-SSIM within a prompt at the last checkpoint, and of real images with equal findings.
    """
    real = verb(independent(fid[1], fid[0]), "less real", "more real", "neither clearly more nor less real")
    left = verb(independent(fid[1], floor), "less real than", "closer than", "not clearly less real than")
    vary = verb(
        independent(*similar), "less varied than", "more varied (or noisier) than", "not clearly less varied than"
    )
    than = verb(independent(auc[1], auc[0]), "better than", "worse than", "not clearly better than")
    obey = f"show its findings, {than} the base's" if auc[1].low > 0.5 else "do not clearly show its findings"
    return bullets(
        [
            f"The images have become {real}: FID {fid[1]:.2f}, against {fid[0]:.2f} of the base.",
            f"They are {left} other real images, whose FID is {floor:.2f}.",
            f"For a prompt they are {vary} real images of equal findings: MS-SSIM {similar[0]}, against {similar[1]}.",
            f"They {obey}: classifier AUC {auc[1]}, against {auc[0]}.",
        ]
    )


def as_asked(generated: Mapping[str, Interval], real: Mapping[str, Interval], chance: Mapping[str, float]) -> str:
    """Shares of findings with side, zone and severity as asked: in ``generated`` and ``real`` images, by ``chance``."""
    lines = []
    for name, share in generated.items():
        level = "more often than" if share.low > chance[name] else "not clearly more often than"
        lines.append(
            f"The {name} is as asked in {share:.0%}, {level} by chance ({chance[name]:.0%}). In real images the same "
            f"measurement finds {real[name]:.0%}: the difference is {independent(share, real[name]):+.2f}."
        )
    return bullets(lines) or "No prompt asks for a side, a zone or a severity that could be measured."


def memory(closer: Interval, found: float) -> str:
    """Share of generated images ``closer`` to training images than 95 % of unseen ones are, and of copies ``found``."""
    text = "no more than chance: no sign of copying"
    if closer.low > 0.05:
        text = "more than chance. It need not be copying, as smooth, typical chests are near to many"
    return (
        f"{closer:.0%} of the generated images are nearer to a training image than 95 % of unseen real images are, "
        f"{text}. Of the planted copies {found:.0%} are that near."
    )


def unnoticed(change: pd.DataFrame, names: Mapping[str, str]) -> str:
    """What each measure overlooks, as bullets.

    ``change`` (spoiled sets × measures, in half-widths of the interval) above −1 is not worse than real images;
    ``names``: measure → printed name.
    """
    missed = {name: "; ".join(change.index[change[m] > -1]) for m, name in names.items()}
    return bullets(f"**{name}** does not notice: {sets or 'nothing'}." for name, sets in missed.items())

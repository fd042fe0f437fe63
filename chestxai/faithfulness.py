"""Does a map depend on the image, and on the word? Tests that a map of where findings usually are cannot pass.

- `image_swap` shows the model images of other patients without the finding, under the same prompt, tokens and noise.
  What the score loses is what the image itself contributed: the *gain*.
- `mirror_test`: is the attention inside a finding on one side greater than inside its mirror image, for a prompt that
  names no side?
- `conflict`: which does the map follow when the prompt names the other side?
- `word_test`: of two findings in one image, is each word's map higher in its own mask, against the other word's?
- `random_weights`: maps must break with the weights (Adebayo et al. 2018, arXiv:1810.03292).

`probe_truths` runs the passes of a whole data set, at fewer timesteps than the maps, and `faithfulness_scores` turns
them into columns of ``grounding.csv``. Chance is 0.5 for every test and 0 for every gain. From a shell, on one process
or, through ``accelerate launch -m``, on many:

    python -m chestxai.faithfulness --profile paper --variant learnable --data /path/to/folder

leaves maps and probes of a run's checkpoints where chapter 3 finds them finished.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline

from chestxai import grounding, localization, models, profiles, recipes, runs
from chestxai.grounding.passes import image_key, paper_timesteps
from chestxai.profiles import GroundingSettings, Profile
from chestxai.runs import InputError, Run
from chestxai.studies import Fit, Frame, GroundTruth, Study, phrases

#: Kinds of passes of `probe_truths`: the image as it is, swapped images, and prompts without and with the wrong side.
KINDS = ("own", "swap", "no_side", "other_side")
_OTHER = {"left": "right", "right": "left"}
_SIDE = re.compile(r"\b(left|right)\b(-sided)?", re.IGNORECASE)


def without_side(phrase: str) -> str:
    """``phrase`` without words for a side: "small left effusion" → "small effusion"."""
    return " ".join(_SIDE.sub("", phrase).split())


def other_side(phrase: str) -> str:
    """``phrase`` with left and right exchanged."""

    def exchange(match: re.Match[str]) -> str:
        word = _OTHER[match[1].lower()]
        cased = word.upper() if match[1].isupper() else word.capitalize() if match[1][0].isupper() else word
        return cased + (match[2] or "")

    return _SIDE.sub(exchange, phrase)


def swap_images(study: Study, pool: Sequence[Study], count: int, seed: int = 0) -> list[int]:
    """Positions in ``pool`` of studies to show in place of ``study``: other patients without any of its findings.

    Args:
        study: of the test split.
        pool: of another split.
        count: how many; fewer where the pool has fewer.
        seed: of the choice, which depends on nothing else but the study.
    """
    names = {finding.name for finding in study.present()}
    fitting = [
        i for i, s in enumerate(pool) if s.patient != study.patient and not names & {f.name for f in s.present()}
    ]
    key = int.from_bytes(hashlib.sha256(study.id.encode()).digest()[:8])
    return np.random.default_rng([seed, key]).permutation(fitting)[:count].tolist()


def probe_truths(
    pipeline: StableDiffusionPipeline,
    truths: Sequence[GroundTruth],
    pool: Sequence[Study],
    settings: GroundingSettings,
    path: Path,
    *,
    fit: Fit = "crop",
    identity: str = "",
    description: str = "swapped images and words",
) -> dict[str, np.ndarray]:
    """Maps of all phrases on their own and on swapped images, and for prompts without and with the wrong side.

    Every row sees the noise of its own image. Kept in ``path`` and resumed as `runs.resumable` says.

    Args:
        pipeline: of `models.load_pipeline`, with the checkpoint's weights.
        truths: phrases that `grounding.ground_truths` could ground.
        pool: studies of the val split, see `swap_images`.
        settings: every ``swap_every``-th of its timesteps is read, on ``swaps`` swapped images.
        path: the ``.safetensors`` file of the maps.
        fit: how an image becomes a square.
        identity: names the weights, by default their fingerprint.
        description: of the progress bar.

    Returns:
        float32 ``(n, h, w)`` of each of `KINDS`, ``(n, swaps, h, w)`` of "swap"; NaN where a phrase names no side, or
        the pool has no further image.

    Raises:
        InputError, DivergedError: as `grounding.ground_truths`.
    """
    name = runs.fingerprint(
        identity or models.fingerprint(pipeline),
        settings.model_dump(),
        fit,
        [[t.key, t.study.change_token()] for t in truths],
        [s.change_token() for s in pool],
        runs.code_fingerprint("chestxai.faithfulness"),
    )
    size = models.image_size(pipeline)
    timesteps = paper_timesteps(pipeline.scheduler, settings.steps, settings.last, settings.stride)
    options = {"timesteps": timesteps[:: settings.swap_every], "draws": settings.draws, "batch": settings.batch}

    def image(study: Study) -> np.ndarray:
        return Frame(*study.size, size, fit).image(study.pixels())

    def compute(rows: range) -> tuple[dict[str, torch.Tensor], list[str]]:
        jobs: list[tuple[int, str, int, np.ndarray, str]] = []
        for i, truth in enumerate(truths[rows.start : rows.stop]):
            own, phrase = image(truth.study), truth.finding.phrase
            jobs.append((i, "own", 0, own, phrase))
            chosen = swap_images(truth.study, pool, settings.swaps)
            jobs += [(i, "swap", k, image(pool[j]), phrase) for k, j in enumerate(chosen)]
            if truth.finding.side in _OTHER and _SIDE.search(phrase):
                jobs.append((i, "no_side", 0, own, without_side(phrase)))
                jobs.append((i, "other_side", 0, own, other_side(phrase)))
        own_keys = {i: image_key(own) for i, kind, _, own, _ in jobs if kind == "own"}
        words = [
            grounding.target_span(replace(t.finding, phrase=prompt), settings.target)
            for t, prompt in ((truths[rows.start + i], prompt) for i, _, _, _, prompt in jobs)
        ]
        keys = [own_keys[i] for i, *_ in jobs]
        images, prompts = np.stack([job[3] for job in jobs]), [job[4] for job in jobs]
        maps = grounding.ground_many(pipeline, images, prompts, words, keys, **options)
        out = {kind: np.full((len(rows), settings.swaps, *maps.shape[1:]), np.nan, np.float32) for kind in KINDS}
        for (i, kind, k, *_), heatmap in zip(jobs, maps, strict=True):
            out[kind][i, k] = heatmap
        return {k: torch.from_numpy(v if k == "swap" else v[:, 0].copy()) for k, v in out.items()}, []

    stored, _ = runs.resumable(Path(path), name, len(truths), compute, chunk=grounding.CHUNK, description=description)
    return {kind: values.numpy() for kind, values in stored.items()}


@dataclass(frozen=True)
class ScoredStep:
    """One checkpoint of a run: its ``table`` of scores, a row per phrase, and what they were taken from.

    ``maps`` float32 ``(n, h, w)``, ``truths`` the ``n`` phrases, ``skipped`` a line for each phrase left out.
    """

    step: int
    table: pd.DataFrame
    maps: np.ndarray
    truths: list[GroundTruth]
    skipped: list[str]


def score_run(
    profile: Profile,
    run: Run,
    truths: Sequence[GroundTruth],
    train: Sequence[GroundTruth],
    pool: Sequence[Study],
    steps: Sequence[int] | None = None,
) -> Iterator[ScoredStep]:
    """Ground, probe and score the checkpoints of a finished run; maps and probes are kept in ``maps/``.

    Args:
        profile: the one the run was made with.
        run: a finished run.
        truths: the phrases to ground.
        train: phrases of other patients, for the priors.
        pool: studies of the val split, see `swap_images`.
        steps: checkpoints; default: all, and 0 for the base.

    Yields:
        Rows of ``grounding.csv``: the scores of `localization.score_truths` and of `faithfulness_scores`.
    """
    size, fit = profile.data.size, profile.data.fit
    identity = run.check_finished().record()["identity"]
    priors = localization.location_priors(train, size, fit)
    text_prior = localization.text_priors(train, size, fit)
    pipeline = models.load_base(profile, device=PartialState().device)
    for step, maps, rows, skipped in grounding.ground_run(profile, run, truths, pipeline, steps):
        about = {"fit": fit, "identity": f"{identity}-{step}", "description": f"step {step}, swapped"}
        probes = probe_truths(pipeline, rows, pool, profile.grounding, run.probes_file(step), **about)
        references = {
            "prior_": [priors[t.finding.name] for t in rows],
            "text_prior_": [text_prior(t.finding) for t in rows],
        }
        parts = [
            localization.score_truths(maps, rows, priors, size, fit, text_prior),
            faithfulness_scores(maps, probes, rows, references, size, fit),
        ]
        yield ScoredStep(step, pd.concat(parts, axis=1).assign(step=step), maps, rows, skipped)


def mirrored(mask: np.ndarray, midline: float = 0.5) -> np.ndarray:
    """The mirror image of a mask, bool ``(H, W)``.

    Args:
        mask: Bool ``(H, W)``.
        midline: Column of the patient's midline, as a share of the width from the left.
    """
    rows, columns = np.nonzero(mask)
    columns = np.rint(2 * midline * mask.shape[1] - 1 - columns).astype(int)
    inside = (columns >= 0) & (columns < mask.shape[1])
    out = np.zeros_like(mask, dtype=bool)
    out[rows[inside], columns[inside]] = True
    return out


def mirror_test(heatmap: np.ndarray, mask: np.ndarray, midline: float = 0.5) -> float:
    """1 if the mean of the heatmap is greater inside the mask than inside its mirror image, else 0; a tie is 0.5.

    Pixels that both share do not count.

    Args:
        heatmap: Float ``(h, w)``.
        mask: Bool ``(H, W)``, on one side.
        midline: See `mirrored`.

    Returns:
        NaN where nothing remains of the mask or of its mirror image.
    """
    return _prefers(heatmap, mask, mirrored(mask, midline))


def word_test(heatmap: np.ndarray, other: np.ndarray, mask: np.ndarray, other_mask: np.ndarray) -> float:
    """Of two findings in one image: is each word's map, against the other word's, higher in its own mask?

    Args:
        heatmap, other: Maps float ``(h, w)`` of the two words on the same image.
        mask, other_mask: Bool ``(H, W)`` of the two findings.

    Returns:
        1 or 0, a tie is 0.5; the same with the two exchanged. NaN unless half of each mask lies outside of the other.
    """
    if min((mask & ~other_mask).sum() / mask.sum(), (other_mask & ~mask).sum() / other_mask.sum()) < 0.5:
        return float("nan")
    return _prefers(heatmap / heatmap.mean() - other / other.mean(), mask, other_mask)


def _prefers(heatmap: np.ndarray, mask: np.ndarray, other: np.ndarray) -> float:
    a, b = mask & ~other, other & ~mask
    if not a.any() or not b.any() or not np.isfinite(heatmap).all():
        return float("nan")
    values = localization.resize(heatmap, mask.shape)
    difference = float(values[a].mean(dtype=np.float64) - values[b].mean(dtype=np.float64))
    return (np.sign(difference) + 1) / 2


def faithfulness_scores(
    maps: np.ndarray,
    probes: Mapping[str, np.ndarray],
    truths: Sequence[GroundTruth],
    references: Mapping[str, Sequence[np.ndarray]],
    size: int,
    fit: Fit = "crop",
) -> pd.DataFrame:
    """Columns of ``grounding.csv`` that say whether a map depends on the image and on the word, a row per phrase.

    Args:
        maps: Float32 ``(n, h, w)`` of `grounding.ground_truths`.
        probes: Of `probe_truths`.
        truths: The ``n`` phrases.
        references: Prefix of a column ("prior_") → a map for each phrase that knows no image, for ``word``.
        size, fit: Side of the model's frame in pixels, and how an image is fitted into it, see `studies.Frame`.

    Returns:
        ``swap_<score>`` and ``gain_<score>`` for each score of the book (own minus swapped, at the same timesteps);
        ``peer_auc_roc`` (the maps of up to four other patients with the same finding, side and zone); ``presence`` (the
        share of swapped images on which the map peaks lower); ``mirror`` (no side in the prompt), ``mirror_sided`` (the
        prompt as it is) and ``conflict`` (the prompt names the other side; 1 follows the image); ``word``,
        ``swap_word`` and ``<prefix>word``. NaN where a test does not apply.
    """
    masks = [Frame(*t.study.size, size, fit).mask(t.finding) for t in truths]
    rows = []
    for i, (truth, mask) in enumerate(zip(truths, masks, strict=True)):
        centre = midline(truth.study, size, fit)
        row = image_swap(probes["own"][i], probes["swap"][i], mask)
        peers = [localization.auc_roc(maps[j], mask) for j in _peers(truths, i)[:4]]
        row["peer_auc_roc"] = float(np.mean(peers)) if peers else float("nan")
        row |= {"mirror": mirror_test(probes["no_side"][i], mask, centre)}
        row |= {"conflict": mirror_test(probes["other_side"][i], mask, centre)}
        sided = truth.finding.side in _OTHER
        row["mirror_sided"] = mirror_test(maps[i], mask, centre) if sided else float("nan")
        rows.append(row)
    table = pd.DataFrame(rows)
    swapped = [[probes["swap"][i, k] for i in range(len(truths))] for k in range(probes["swap"].shape[1])]
    for prefix, by_phrase in {"": [maps], "swap_": swapped, **{p: [m] for p, m in references.items()}}.items():
        table[f"{prefix}word"] = _mean([_words(some, masks, truths) for some in by_phrase])
    table["gain_word"] = table["word"] - table["swap_word"]
    chance = {f"chance_{name}": 0.0 if name.startswith("gain_") else 0.5 for name in localization.FAITHFULNESS}
    return table.assign(**chance)


def image_swap(own: np.ndarray, swapped: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """``swap_<score>`` and ``gain_<score>`` for each score of the book, and ``presence``.

    Args:
        own: Float ``(h, w)``, the map of the image itself.
        swapped: ``(k, h, w)``, those of other images under the same prompt and noise; NaN where there is none.
        mask: Bool ``(H, W)`` of the finding.
    """
    mine = localization.score(own, mask)
    others = [localization.score(m, mask) for m in swapped if np.isfinite(m).all()]
    means = {name: float(np.mean([o[name] for o in others])) if others else float("nan") for name in mine}
    peaks = [float(np.sign(own.max() - m.max()) + 1) / 2 for m in swapped if np.isfinite(m).all()]
    return {
        **{f"swap_{name}": value for name, value in means.items()},
        **{f"gain_{name}": mine[name] - value for name, value in means.items()},
        "presence": float(np.mean(peaks)) if peaks else float("nan"),
    }


def _words(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], truths: Sequence[GroundTruth]) -> np.ndarray:
    """Mean `word_test` of each phrase against the other findings of its image."""
    by_study = defaultdict(list)
    for i, truth in enumerate(truths):
        by_study[truth.study.id].append(i)
    out = np.full(len(truths), np.nan)
    for i, truth in enumerate(truths):
        others = [j for j in by_study[truth.study.id] if truths[j].finding.name != truth.finding.name]
        out[i] = _mean([word_test(maps[i], maps[j], masks[i], masks[j]) for j in others])
    return out


def _mean(values: Sequence[np.ndarray] | Sequence[float]) -> np.ndarray | float:
    """Mean over the first axis without NaN; NaN where nothing remains."""
    values = np.asarray(values, dtype=float)
    count = np.isfinite(values).sum(axis=0)
    return np.where(count, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)[()]


def _peers(truths: Sequence[GroundTruth], i: int) -> list[int]:
    def kind(t: GroundTruth) -> tuple:
        return t.finding.name, t.finding.side, t.finding.zone

    own = truths[i]
    return [j for j, t in enumerate(truths) if kind(t) == kind(own) and t.study.patient != own.study.patient]


def midline(study: Study, size: int, fit: Fit) -> float:
    """The patient's midline in the model's frame, as a share of its width; the middle of the image if it is unknown.

    Args:
        study: its attribute "midline" is a share of the image's width.
        size: side of the frame in pixels.
        fit: how the image fits into it.
    """
    frame = Frame(*study.size, size, fit)
    column = float(study.attributes.get("midline", 0.5)) * study.size[1]
    return (column * frame.scale + frame.offset[0]) / size


def random_weights(pipeline: StableDiffusionPipeline, parts: Sequence[str], seed: int = 0) -> None:
    """Replace the weights of ``parts`` ("unet", "text_encoder") by those the architecture starts with.

    Args:
        pipeline: changed in place.
        parts: names of networks.
        seed: of the new weights.

    Raises:
        InputError: another name.
    """
    unknown = set(parts) - {"unet", "text_encoder"}
    if unknown:
        raise InputError(f"random weights for 'unet' and 'text_encoder', not for {', '.join(sorted(unknown))}")
    for part in parts:
        recipes.randomise(getattr(pipeline, part), seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.faithfulness``: maps and probes of all checkpoints of a run.

    Args:
        arguments: of the command line; default: ``sys.argv``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.faithfulness",
        description="Ground all test phrases with every checkpoint of a run, also on swapped images and other prompts.",
    )
    profiles.add_options(parser)
    options = parser.parse_args(arguments)
    profile, _, run = profiles.chosen(options)
    runs.processes()
    splits = {s: profiles.studies(profile, s, options.data, boxes=True) for s in ("train", "val", "test")}
    train = phrases(splits["train"]) or phrases(splits["val"])
    for found in score_run(profile, run, phrases(splits["test"]), train, list(splits["val"])):
        if PartialState().is_main_process:
            print(f"{run.folder}: step {found.step}, {len(found.maps)} maps, {len(found.skipped)} phrases left out")
    return 0


if __name__ == "__main__":
    runs.command(main)

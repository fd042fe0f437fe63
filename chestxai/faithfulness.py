"""Does a map depend on the image, and on the word? Tests that a map of where findings usually are cannot pass.

- `image_swap` shows the model images of other patients without the finding, under the same prompt, tokens and noise.
  What the score loses is what the image itself contributed: the *gain*.
- `mirror_test`: is the attention inside a finding on one side greater than inside its mirror image, for a prompt that
  names no side? In `score_maps` also for one that names the other side: which does the map follow (conflict)?
- `word_test`: of two findings in one image, is each word's map higher in its own mask, against the other word's?
- `reworded`: what does the map lose if the same phrase names another finding (*renamed*), or denies it (*denied*)?
- A phantom is X-rayed again without its finding, and with it on the other side: what does the map lose at the old place
  (*removed*), and gain at the new one (*moved*)?
- `random_weights`: maps must break with the weights (Adebayo et al. 2018, arXiv:1810.03292).

Chance is 0.5 for every test, and 0 for every gain and loss. From a shell, or on many processes by
``accelerate launch -m``,

    python -m chestxai.faithfulness --profile paper --variant learnable --data /path/to/folder

leaves maps and probes of a run's checkpoints where chapter 3 finds them finished.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline

from chestxai import grounding, localization, models, profiles, recipes, reports, runs
from chestxai.grounding.passes import image_key, paper_timesteps
from chestxai.localization.maps import CachedMask
from chestxai.localization.references import place
from chestxai.profiles import GroundingSettings, Profile
from chestxai.runs import InputError, Run
from chestxai.sources import phantom
from chestxai.studies import FINDINGS, Finding, Fit, Frame, GroundTruth, Study, phrases, to_images

#: Kinds of passes of `probe_truths`: the image as it is, swapped images, prompts that deny the finding, name another,
#: no side or the wrong side, and a phantom without its finding or with it on the other side.
KINDS = ("own", "swap", "denied", "renamed", "no_side", "other_side", "removed", "moved")
_OTHER = {"left": "right", "right": "left"}
_OPACITIES = {"Atelectasis", "Consolidation", "Edema", "Lung Opacity", "Pneumonia"}
_DENIED = re.compile(r"\b(no|not|cannot|without)\b", re.IGNORECASE)
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


def swap_images(study: Study, pool: Sequence[Study], count: int) -> list[int]:
    """Positions in ``pool`` of ``count`` studies (or fewer) of other patients without any finding of ``study``.

    The pool is of another split than the study. The choice depends on nothing else but the study.
    """
    names = {finding.name for finding in study.present()}
    fitting = [
        i for i, s in enumerate(pool) if s.patient != study.patient and not names & {f.name for f in s.present()}
    ]
    return np.random.default_rng([0, _key(study)]).permutation(fitting)[:count].tolist()


def _key(study: Study) -> int:
    return int.from_bytes(hashlib.sha256(study.id.encode()).digest()[:8])


def reworded(truth: GroundTruth) -> dict[str, Finding]:
    """The finding of ``truth`` with a phrase that denies it ("No small effusion"), and one that names another.

    Kinds "denied" and "renamed" of `probes`. Left out where the report reader would not understand the phrase so, as
    with two names or a negation. The other finding is one that the study does not show, and no opacity if it shows one,
    as these have several names. For a finding on one side it is one that can lie on one side, too.
    """
    study, finding = truth.study, truth.finding
    span = reports.name_span(finding.phrase, finding.name, finding.side)
    if not span or _DENIED.search(finding.phrase):
        return {}
    shown = {f.name for f in study.present()}
    shown |= _OPACITIES if shown & _OPACITIES else set()
    shown |= {"Cardiomegaly", "Edema"} if finding.side in _OTHER else set()
    absent = [name for name in FINDINGS if name not in shown] or [finding.name]
    name = absent[_key(study) % len(absent)]
    exchanged = finding.phrase[: span[0]] + name.lower() + finding.phrase[span[1] :]
    out = {"denied": replace(finding, phrase=f"No {finding.phrase}")}
    if name != finding.name:
        out["renamed"] = replace(finding, name=name, phrase=exchanged)
    understood = {k: [(m.name, m.present) for m in reports.find(f.phrase)] for k, f in out.items()}
    return {k: f for k, f in out.items() if understood[k] == [(f.name, k == "renamed")]}


def probes(truth: GroundTruth, pool: Sequence[Study], swaps: int) -> list[tuple[str, int, Study, Finding]]:
    """What a phrase is probed with: kind, number within the kind, study whose image is shown, and finding with prompt.

    Every ``truth`` has the kinds "own" and "swap", for up to ``swaps`` studies of the ``pool`` (`swap_images`), and if
    it has a place, those of `reworded`. If its phrase has a word for its side and others, it also has "no_side" and
    "other_side", and on a phantom "removed" and "moved", unless its finding has no mask. (Other findings cannot be
    taken away: an enlarged heart leaves a heart, and edema fills both lungs.)
    """
    study, finding = truth.study, truth.finding
    plain = without_side(finding.phrase) if finding.side in _OTHER and _SIDE.search(finding.phrase) else ""
    some = [("own", 0, study, finding)]
    some += [("swap", k, pool[j], finding) for k, j in enumerate(swap_images(study, pool, swaps))]
    placed = finding.mask is not None or finding.boxes
    some += [(kind, 0, study, other) for kind, other in reworded(truth).items() if placed]
    sideless = replace(finding, phrase=plain)
    if plain:
        wrong = replace(finding, phrase=other_side(finding.phrase))
        some += [("no_side", 0, study, sideless), ("other_side", 0, study, wrong)]
    if plain and study.source == "phantom" and finding.mask is not None:
        for kind, change, asked in (("removed", "without", finding), ("moved", "other side", sideless)):
            image, _ = _changed(study.id, study.size, finding.name, change)
            some.append((kind, 0, replace(study, array=image), asked))
    return some


@lru_cache(maxsize=512)  # the same for all checkpoints
def _changed(study: str, size: tuple[int, int], finding: str, change: str) -> tuple[np.ndarray, np.ndarray]:
    return phantom.counterfactual(Study(study, "", "phantom", "", "", size), finding, change)


def by_kind(probed: Sequence[tuple], maps: Sequence[np.ndarray], n: int, swaps: int) -> dict[str, np.ndarray]:
    """Maps of each of `KINDS`, float32 ``(n, h, w)``, and ``(n, swaps, h, w)`` of "swap"; NaN where there is none.

    ``probed`` has ``(i, kind, number, …)`` of each of the ``maps``, with ``i`` one of ``n`` phrases, see `probes`.
    """
    out = {kind: np.full((n, swaps, *maps[0].shape), np.nan, np.float32) for kind in KINDS}
    for (i, kind, k, *_), heatmap in zip(probed, maps, strict=True):
        out[kind][i, k] = heatmap
    return {kind: some if kind == "swap" else some[:, 0].copy() for kind, some in out.items()}


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
    """Maps `by_kind` of all phrases: on their own and on other images, and for changed prompts.

    Every row sees the noise of its own image. Errors are those of `grounding.ground_truths`.

    Args:
        pipeline, identity: with the checkpoint's weights, and what names these, else their fingerprint.
        truths, pool: phrases that `grounding.ground_truths` could ground, and studies of the val split (`swap_images`).
        settings: its timesteps, every ``swap_every``-th from the least noisy on, and the number of ``swaps``.
        path, description: the ``.safetensors`` file of the maps, resumed as by `runs.resumable`, and its progress bar.
        fit: how an image becomes a square.
    """
    name = runs.fingerprint(
        identity or [models.fingerprint(pipeline), reports.text_length(pipeline.tokenizer)],
        settings.model_dump(),
        fit,
        [[t.key, [(s.change_token(), f.phrase) for *_, s, f in probes(t, pool, settings.swaps)]] for t in truths],
        runs.code_fingerprint("chestxai.faithfulness"),
    )
    size = models.image_size(pipeline)
    timesteps = paper_timesteps(pipeline.scheduler, settings.steps, settings.last, settings.stride)
    timesteps = timesteps[:: -settings.swap_every]  # the image shows in the least noisy ones
    options = {"timesteps": timesteps, "draws": settings.draws, "batch": settings.batch}

    def compute(rows: range) -> tuple[dict[str, torch.Tensor], list[str]]:
        some = truths[rows.start : rows.stop]
        probed = [(i, *probe) for i, truth in enumerate(some) for probe in probes(truth, pool, settings.swaps)]
        shown = {id(study): study for *_, study, _ in probed}
        read, kept, _ = to_images(shown.values(), size, fit, allow_none=True)
        images = dict.fromkeys(shown, np.zeros((size, size), np.uint8)) | dict(zip(map(id, kept), read, strict=True))
        # A reworded phrase may be longer than the tokenizer takes; read whole, a denied one has a word more.
        probed = [p for p in probed if not grounding.unreadable(pipeline, p[4], settings.target)]
        probed = [p for p in probed if p[1] != "denied" or settings.target == "finding"]
        maps = grounding.ground_many(
            pipeline,
            np.stack([images[id(study)] for *_, study, _ in probed]),
            [finding.phrase for *_, finding in probed],
            [grounding.target_span(finding, settings.target) for *_, finding in probed],
            [image_key(images[id(some[i].study)]) for i, *_ in probed],
            **options,
        )
        for (i, _, _, study, _), heatmap in zip(probed, maps, strict=True):
            if not {id(study), id(some[i].study)} <= set(map(id, kept)):
                heatmap[:] = np.nan
        kinds = by_kind(probed, maps, len(some), settings.swaps)
        return {kind: torch.from_numpy(found) for kind, found in kinds.items()}, []

    stored, _ = runs.resumable(Path(path), name, len(truths), compute, chunk=grounding.CHUNK, description=description)
    return {kind: values.numpy() for kind, values in stored.items()}


class ScoredStep(NamedTuple):
    """One checkpoint: a ``table`` with a row per phrase, and the ``maps`` float32 ``(n, h, w)`` of its ``truths``."""

    step: int
    table: pd.DataFrame
    maps: np.ndarray
    truths: list[GroundTruth]
    skipped: list[str]  #: a line for each phrase left out


def score_run(
    profile: Profile,
    run: Run,
    truths: Sequence[GroundTruth],
    train: Sequence[GroundTruth],
    pool: Sequence[Study],
    steps: Sequence[int] | None = None,
) -> Iterator[ScoredStep]:
    """Ground, probe and score checkpoints of a finished ``run`` of a ``profile``: ``steps``, or all and 0, the base.

    Maps and probes are kept in ``maps/``. Tables are of `score_maps` for ``truths``, with priors from ``train``,
    phrases of other patients, and a ``pool`` of the val split (`swap_images`).
    """
    size, fit = profile.data.size, profile.data.fit
    identity = run.check_finished().record()["identity"]
    priors = localization.location_priors(train, size, fit)
    text_prior = localization.text_priors(train, size, fit)
    pipeline = models.load_base(profile, device=PartialState().device)
    for step, maps, rows, skipped in grounding.ground_run(profile, run, truths, pipeline, steps):
        about = {"fit": fit, "identity": f"{identity}-{step}" if step else "", "description": f"step {step}, swapped"}
        probes = probe_truths(pipeline, rows, pool, profile.grounding, run.probes_file(step), **about)
        table = score_maps(maps, probes, rows, priors, size, fit, text_prior).assign(step=step)
        yield ScoredStep(step, table, maps, rows, skipped)


def mirrored(mask: np.ndarray, midline: float = 0.5) -> np.ndarray:
    """The mirror image of ``mask``, bool ``(H, W)``, at the column ``midline``, a share of the width from the left."""
    rows, columns = np.nonzero(mask)
    columns = np.rint(2 * midline * mask.shape[1] - 1 - columns).astype(int)
    inside = (columns >= 0) & (columns < mask.shape[1])
    out = np.zeros_like(mask, dtype=bool)
    out[rows[inside], columns[inside]] = True
    return out


def mirror_test(heatmap: np.ndarray, mask: np.ndarray, midline: float = 0.5) -> float:
    """1 if the mean of ``heatmap`` is greater inside ``mask`` than inside its mirror image, else 0; a tie is 0.5.

    Pixels that both share do not count; NaN where nothing remains of either. ``midline`` as of `mirrored`.
    """
    return _prefers(heatmap, mask, mirrored(mask, midline))


def word_test(heatmap: np.ndarray, other: np.ndarray, mask: np.ndarray, other_mask: np.ndarray) -> float:
    """Of two findings in one image: is each word's map, against the other word's, higher in its own mask?

    1 or 0, a tie is 0.5; the same with the two exchanged. NaN unless half of each mask lies outside of the other.
    ``heatmap`` and ``other`` are the words' maps float ``(h, w)``, ``mask`` and ``other_mask`` bool ``(H, W)``.
    """
    if min((mask & ~other_mask).sum() / mask.sum(), (other_mask & ~mask).sum() / other_mask.sum()) < 0.5:
        return math.nan
    return _prefers(heatmap / heatmap.mean() - other / other.mean(), mask, other_mask)


def _prefers(heatmap: np.ndarray, mask: np.ndarray, other: np.ndarray) -> float:
    a, b = mask & ~other, other & ~mask
    if not a.any() or not b.any() or not np.isfinite(heatmap).all():
        return math.nan
    values = localization.resize(heatmap, mask.shape)
    difference = float(values[a].mean(dtype=np.float64) - values[b].mean(dtype=np.float64))
    return (np.sign(difference) + 1) / 2


def score_maps(
    maps: np.ndarray,
    probes: Mapping[str, np.ndarray],
    truths: Sequence[GroundTruth],
    priors: Mapping[str, np.ndarray],
    size: int,
    fit: Fit = "crop",
    text_prior: Callable[[Finding], np.ndarray] | None = None,
) -> pd.DataFrame:
    """A row of ``grounding.csv`` per phrase: `localization.score_truths`, and whether a map depends on image and word.

    ``swap_<score>``, ``gain_<score>`` and ``presence`` of `image_swap`; ``peer_auc_roc`` (the maps of up to four other
    patients with the same finding, side and zone); ``mirror`` (no side in the prompt), ``mirror_sided`` (the prompt as
    it is) and ``conflict`` (the prompt names the other side; 1 follows the image); ``renamed`` and ``denied`` (AUC-ROC
    minus that of the phrase `reworded`), ``prior_renamed``; ``removed`` (minus that without the finding), ``moved``
    (AUC-ROC at its place on the other side, with the finding moved there minus where it was); ``word``, also with
    ``swap_``, ``gain_`` (with the timesteps of the swapped images), ``prior_`` and ``text_prior_``. NaN where a test
    does not apply.

    ``maps``, float32 ``(n, h, w)``, are of `grounding.ground_truths` for ``truths``, and ``probes`` of `probe_truths`;
    ``priors, size, fit, text_prior`` as of `localization.score_truths`.
    """
    known = set(priors)
    scores = localization.score_truths(maps, truths, priors, size, fit, text_prior)
    masks = [Frame(*t.study.size, size, fit).mask(t.finding) for t in truths]
    rows, field = [], localization.field(priors)
    for i, (truth, mask) in enumerate(zip(truths, masks, strict=True)):
        centre, where = midline(truth.study, size, fit), place(truth.finding)
        others = (j for j, t in enumerate(truths) if t.study.patient != truth.study.patient)
        peers = [j for j in others if place(truths[j].finding) == where]
        row = image_swap(probes["own"][i], probes["swap"][i], mask, priors[truth.finding.name], field)
        row["peer_auc_roc"] = _mean([localization.auc_roc(maps[j], mask) for j in peers[:4]])
        row["mirror"] = mirror_test(probes["no_side"][i], mask, centre)
        row["conflict"] = mirror_test(probes["other_side"][i], mask, centre)
        row["mirror_sided"] = mirror_test(maps[i], mask, centre) if truth.finding.side in _OTHER else math.nan
        for kind in ("renamed", "denied", "removed"):
            row[kind] = _minus(probes["own"][i], probes[kind][i], mask)
        other = reworded(truth).get("renamed")
        if other and other.name in known and np.isfinite(row["renamed"]):
            row["prior_renamed"] = _minus(priors[truth.finding.name], priors[other.name], mask)
        there, study = mask, truth.study
        if np.isfinite(probes["moved"][i]).all():
            moved = _changed(study.id, study.size, truth.finding.name, "other side")[1]
            there = Frame(*study.size, size, fit).mask(replace(truth.finding, mask=moved, boxes=()))
        row["moved"] = _minus(probes["moved"][i], probes["no_side"][i], there)
        rows.append(row)
    table = pd.DataFrame(rows)
    sources = {"": [maps], "swap_": probes["swap"].swapaxes(0, 1)}
    sources["prior_"] = [[priors[t.finding.name] for t in truths]]
    sources["text_prior_"] = [[text_prior(t.finding) for t in truths]] if text_prior else []
    for prefix, some in sources.items():
        if len(some):
            table[f"{prefix}word"] = _mean([_words(one, masks, truths) for one in some])
    table["gain_word"] = _words(probes["own"], masks, truths) - table["swap_word"]
    differences = "gain_auc_roc", "gain_word", "renamed", "denied", "removed", "moved"
    chance = {f"chance_{name}": 0.0 if name in differences else 0.5 for name in localization.FAITHFULNESS}
    return pd.concat([scores, table.assign(**chance)], axis=1)


def _minus(own: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
    """AUC-ROC of one map minus that of another; NaN where one of them is missing."""
    one, two = (localization.auc_roc(m, mask) if np.isfinite(m).all() else math.nan for m in (own, other))
    return one - two


def image_swap(
    own: np.ndarray, swapped: np.ndarray, mask: np.ndarray, prior: np.ndarray, field: np.ndarray
) -> dict[str, float]:
    """``swap_<score>``, ``gain_<score>`` (own minus swapped) for each of `localization.book_scores`, and ``presence``.

    Presence is the share of swapped images on which the map peaks lower. ``own`` is the image's map, and ``swapped``
    those of other images, ``(k, h, w)``, NaN where there is none; ``mask, prior, field`` are as there.
    """
    mask = CachedMask(mask)
    there = [m for m in swapped if np.isfinite(m).all()]
    mine, *others = (localization.book_scores(m, mask, prior, field) for m in (own, *there))
    means = {name: _mean([o[name] for o in others]) for name in mine}
    return {
        **{f"swap_{name}": value for name, value in means.items()},
        **{f"gain_{name}": mine[name] - value for name, value in means.items()},
        "presence": _mean([(np.sign(own.max() - m.max()) + 1) / 2 for m in there]),
    }


def _words(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], truths: Sequence[GroundTruth]) -> np.ndarray:
    """Mean `word_test` of each phrase against the other findings of its image."""
    names = np.array([(truth.study.id, truth.finding.name) for truth in truths])
    others = [np.flatnonzero((names[:, 0] == study) & (names[:, 1] != name)) for study, name in names]
    return np.array(
        [_mean([word_test(maps[i], maps[j], masks[i], masks[j]) for j in js]) for i, js in enumerate(others)]
    )


def _mean(values: Sequence) -> np.ndarray | float:
    """Mean over the first axis without NaN; NaN where nothing remains."""
    known = ~np.isnan(values := np.asarray(values, dtype=float))
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)


def midline(study: Study, size: int, fit: Fit) -> float:
    """The midline of the patient of ``study`` in a frame of ``size`` and ``fit``, as a share of its width.

    It is the middle of the image unless the study's attribute "midline", a share of the image's width, is known.
    """
    frame = Frame(*study.size, size, fit)
    column = float(study.attributes.get("midline", 0.5)) * study.size[1]
    return (column * frame.scale + frame.offset[0]) / size


def random_weights(pipeline: StableDiffusionPipeline, parts: Sequence[str]) -> None:
    """Replace the weights of ``parts`` of ``pipeline`` ("unet", "text_encoder", else InputError) by random ones.

    They are those that the architecture starts with.
    """
    unknown = set(parts) - {"unet", "text_encoder"}
    if unknown:
        raise InputError(f"random weights for 'unet' and 'text_encoder', not for {', '.join(sorted(unknown))}")
    for part in parts:
        recipes.randomise(getattr(pipeline, part), 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.faithfulness``: maps and probes of all checkpoints of a run."""
    parser = profiles.run_parser("faithfulness", "Ground all test phrases, also on swapped images and for other words.")
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

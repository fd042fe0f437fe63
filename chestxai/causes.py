"""Why do treatments of the text encoder differ? Measurements that tell explanations apart.

Everything starts from `read`: the noised passes of `chestxai.grounding`, with *any* text states in place of the
prompt's own. `swap` reads each U-Net with the keys and the values of each encoder, `ablate` replaces states by those of
the empty prompt, `attention_mass` says where the attention goes. States themselves are compared by `compare_states`,
`likeness` and `probe`, and drawn by `lens`.

A BERT is bidirectional: its begin token has read the whole text. CLIP is causal, and its begin token has read nothing.
So "minus the map of the begin token" removes what the image draws anyway under CLIP only; for a BERT, read the states
of the empty prompt (`empty_states`) instead.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from chestxai import attention, faithfulness, grounding, localization, models, recipes, reports
from chestxai.grounding.passes import image_key
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Finding, Fit, Frame, GroundTruth, Study

#: Kinds of tokens of a phrase; the first three are words, all but the last are real.
KINDS = ("finding", "side", "other words", "begin", "end", "padding")
WORDS, REAL = KINDS[:3], KINDS[:5]
#: Kinds whose states are replaced together. Under CLIP the padding repeats what the text says, so it counts as special.
ABLATIONS = {"the finding": KINDS[:1], "all words": WORDS, "begin, end and padding": KINDS[3:]}
_SIDE = re.compile(r"\b(?:left|right|bilateral)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Sample:
    """Phrases on their images, prepared once for all runs of a profile, which share autoencoder and tokenizer."""

    truths: list[GroundTruth]
    prompts: list[str]
    patients: list[str]
    kinds: list[dict[str, list[int]]]  #: kind of token → positions, see `token_kinds`
    masks: list[np.ndarray]  #: bool ``(s, s)`` in the model's frame
    keys: list[int]  #: of the images' noise
    latents: Tensor  #: float32 ``(n, c, h, w)`` of the images
    swapped: Tensor  #: of another patient's image without the finding; NaN where there is none
    skipped: list[str]  #: a line for each phrase left out

    def real(self, i: int) -> list[int]:
        """Positions of the tokens of phrase ``i`` that are no padding."""
        return [p for kind in REAL for p in self.kinds[i].get(kind, [])]


@dataclass(frozen=True)
class Reading:
    """What `read` saw of ``n`` phrases."""

    loss: np.ndarray  #: float64 ``(n,)``, mean squared error of the prediction
    #: Float32 ``(n, length + 1, h, w)``, mean attention to each token, last to all padding; NaN where there is none.
    maps: np.ndarray

    def of(self, kind: str, sample: Sample) -> np.ndarray:
        """Maps float32 ``(n, h, w)`` of one ``kind`` of token of the ``sample``; NaN where a phrase has none."""
        places = [[-1] if kind == "padding" and kind in groups else groups.get(kind, []) for groups in sample.kinds]
        gap = np.full(self.maps.shape[2:], np.nan, np.float32)
        return np.stack([m[p].mean(axis=0) if p else gap for m, p in zip(self.maps, places, strict=True)])


def token_kinds(tokenizer: object, finding: Finding) -> dict[str, list[int]]:
    """Positions of each kind of token in the phrase of a ``finding``; a kind without tokens is left out.

    ``tokenizer`` is a fast one of Hugging Face; InputError as of `reports.token_positions`.
    """
    named = {"finding": grounding.target_span(finding)}
    if side := _SIDE.search(finding.phrase):
        named["side"] = side.span()
    kinds = reports.token_groups(tokenizer, finding.phrase, named)
    kinds["finding"] = [p for p in kinds["finding"] if p not in kinds.get("side", [])] or kinds["finding"]
    known = {position for positions in kinds.values() for position in positions}
    kinds["other words"] = [p for p in range(reports.text_length(tokenizer)) if p not in known]
    return {kind: kinds[kind] for kind in KINDS if kinds.get(kind)}


def prepare(
    pipeline: StableDiffusionPipeline, truths: Sequence[GroundTruth], pool: Sequence[Study], fit: Fit = "crop"
) -> Sample:
    """Encode the images of ``truths``, whose phrases are the prompts, and for each that of another patient in ``pool``.

    Only tokenizer and autoencoder of ``pipeline`` are used; ``fit`` is how an image becomes a square. What cannot be
    read is left out, and InputError where nothing can.
    """
    size, kept, skipped = models.image_size(pipeline), [], []
    for truth in truths:
        try:
            studies = [truth.study, *(pool[j] for j in faithfulness.swap_images(truth.study, pool, 1))]
            kinds = token_kinds(pipeline.tokenizer, truth.finding)
            frames = [Frame(*study.size, size, fit) for study in studies]
            images = [frame.image(study.pixels()) for frame, study in zip(frames, studies, strict=True)]
            kept.append((truth, kinds, frames[0].mask(truth.finding), images))
        except InputError as error:
            skipped.append(" ".join(f"{truth.key}: {error}".split()))
    if not kept:
        raise InputError(f"none of {len(truths)} phrases can be read; the first: {(skipped or ['no phrases'])[0]}")
    rows, kinds, masks, images = (list(column) for column in zip(*kept, strict=True))
    # Where there is no other image the own one fills the place.
    own, other = (models.encode_images(pipeline, np.stack([i[k] for i in images])).cpu() for k in (0, -1))
    other[[len(i) == 1 for i in images]] = torch.nan
    prompts, patients = [t.finding.phrase for t in rows], [t.study.patient for t in rows]
    return Sample(rows, prompts, patients, kinds, masks, [image_key(i[0]) for i in images], own, other, skipped)


@torch.inference_mode()
def read(
    pipeline: StableDiffusionPipeline,
    sample: Sample,
    states: Tensor,
    timesteps: Sequence[int],
    latents: Tensor | None = None,
    batch: int = 64,
) -> Reading:
    """Denoise each image given ``states``, under the noise of `grounding.ground_many`.

    Of ``pipeline`` the text encoder is not used; ``sample`` is of `prepare`. ``states`` are ``(n, length, width)``, or
    ``(n, length, 2 * width)``: keys of the first half of each, values of the other. ``timesteps`` of the noise schedule
    are averaged, ``batch`` rows a pass. ``latents`` are of the images, if not the sample's own; ``sample.swapped``
    keeps the noise of the own ones.
    """
    unet, states = pipeline.unet, states.to(pipeline.unet.device, pipeline.unet.dtype)
    width = unet.config.cross_attention_dim
    latents = sample.latents if latents is None else latents
    slots = [{"padding": groups["padding"]} if "padding" in groups else {} for groups in sample.kinds]
    slots = [slot | {str(p): [p] for p in sample.real(i)} for i, slot in enumerate(slots)]
    schedule = models.noising(pipeline.scheduler)
    plan, loss = list(product(range(len(latents)), timesteps)), np.zeros(len(latents))
    with ExitStack() as stack:
        for hook in recipes.split(unet, width):
            stack.callback(hook.remove)
        seen = stack.enter_context(attention.capture(unet, slots))
        for start in range(0, len(plan), batch):
            part = plan[start : start + batch]
            rows, t = [i for i, _ in part], torch.tensor([t for _, t in part])
            noise = torch.stack([models.seeded_noise(latents.shape[1:], 0, sample.keys[i], t, 0) for i, t in part])
            seen.rows(rows)
            noisy = schedule.add_noise(latents[rows], noise, t).to(states)
            predicted = models.denoise(unet, noisy, t.to(states.device), states[rows]).float().cpu()
            error = predicted - models.prediction_target(schedule, latents[rows], noise, t)
            np.add.at(loss, rows, error.square().mean(dim=(1, 2, 3)).double().numpy() / len(timesteps))
    found = seen.heatmap().cpu().numpy()
    maps = np.full((len(latents), states.shape[1] + 1, *found.shape[2:]), np.nan, np.float32)
    maps[:, [-1 if name == "padding" else int(name) for name in seen.groups]] = found
    return Reading(loss, maps)


def auc(maps: np.ndarray, sample: Sample) -> np.ndarray:
    """AUC-ROC of each of ``maps`` ``(n, h, w)`` on the mask of the ``sample``; NaN where there is no map or no mask."""
    valid = [np.isfinite(m).all() and 0 < k.mean() < 1 for m, k in zip(maps, sample.masks, strict=True)]
    triples = zip(maps, sample.masks, valid, strict=True)
    return np.array([localization.auc_roc(m, k) if good else np.nan for m, k, good in triples])


def attention_mass(reading: Reading, sample: Sample) -> pd.DataFrame:
    """Share of the attention by kind of token in a ``reading`` of the ``sample``, a row per phrase.

    Columns are `KINDS`, which add up to 1; ``words``, the sum of `WORDS`; ``tokens``, the number of real tokens; and
    ``entropy`` of the attention among those as a share of its maximum: 1 if all get the same. A padding of zeros is a
    sink whose mass depends on its length, so compare the same prompts, or see `at_length`.
    """
    rows = []
    for i, groups in enumerate(sample.kinds):
        mean, real = reading.maps[i].mean(axis=(1, 2), dtype=np.float64), sample.real(i)
        row = {kind: mean[groups.get(kind, [])].sum() for kind in REAL}
        row["padding"] = mean[-1] * len(groups["padding"]) if "padding" in groups else 0.0
        share = mean[real] / mean[real].sum()
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum() / np.log(max(len(real), 2))
        rows.append(row | {"words": sum(row[kind] for kind in WORDS), "tokens": len(real), "entropy": entropy})
    return pd.DataFrame(rows)


def at_length(values: Sequence[float], tokens: Sequence[int], length: int) -> float:
    """Mean of ``values`` for prompts of ``length`` tokens, by least squares on each prompt's number of ``tokens``."""
    centred = np.asarray(tokens, float) - np.mean(tokens)
    slope = (centred * np.asarray(values)).sum() / max((centred**2).sum(), 1e-12)
    return float(np.mean(values) + slope * (length - np.mean(tokens)))


def swap(
    pipelines: Mapping[str, StableDiffusionPipeline], sample: Sample, *passes: Any
) -> dict[tuple[str, str, str], Reading]:
    """Each U-Net with the keys of each text encoder and the values of each: (U-Net, keys, values) → what was read.

    ``pipelines`` have names; ``sample`` and ``passes`` (timesteps and latents) as of `read`.
    """
    states = {name: models.encode_text(pipeline, sample.prompts).cpu() for name, pipeline in pipelines.items()}
    out = {}
    for unet, keys, values in product(pipelines, repeat=3):
        width = pipelines[unet].unet.config.cross_attention_dim
        mixed = torch.cat([states[keys][..., :width], states[values][..., -width:]], dim=-1)
        out[unet, keys, values] = read(pipelines[unet], sample, mixed, *passes)
    return out


def empty_states(pipeline: StableDiffusionPipeline) -> tuple[Tensor, int]:
    """States of the empty prompt, ``(length, width)``, and the number of its real tokens."""
    return models.encode_text(pipeline, [""])[0], len(pipeline.tokenizer("")["input_ids"])


def ablate(states: Tensor, empty: tuple[Tensor, int], sample: Sample, kinds: Sequence[str]) -> Tensor:
    """``states`` with those of some ``kinds`` of tokens of the ``sample`` replaced by the ``empty`` prompt's.

    Both are ``(n, length, width)``. Its begin replaces begin, its end replaces end, and its padding replaces words.
    """
    (blank, used), out = empty, states.clone()
    for i, groups in enumerate(sample.kinds):
        for kind in kinds:
            for p in groups.get(kind, []):
                out[i, p] = blank[{"begin": 0, "end": used - 1}.get(kind, min(max(p, used), len(blank) - 1))]
    return out


def states_of(states: Tensor, sample: Sample, kind: str) -> np.ndarray:
    """Mean state of one ``kind`` of token in each distinct phrase of the ``sample`` that has one: ``(m, width)``.

    ``states`` are ``(n, length, width)``.
    """
    first = {prompt: i for i, prompt in reversed(list(enumerate(sample.prompts)))}
    rows = [states[i, sample.kinds[i][kind]].mean(dim=0) for i in sorted(first.values()) if kind in sample.kinds[i]]
    return torch.stack(rows).double().cpu().numpy() if rows else np.zeros((0, states.shape[-1]))


def compare_states(x: np.ndarray, y: np.ndarray, permutations: int = 200, seed: int = 0) -> dict[str, float]:
    """How far two encoders' states ``x`` and ``y`` ``(m, width)`` of the same texts are apart, by three measures.

    ``cka``: linear (Kornblith et al. 2019, eq. 3), 1 for states equal up to rotation and scale; ``cka_null``, the 95th
    percentile of its null from ``permutations`` of the texts (by ``seed``), far above 0 where they are few.
    ``procrustes``: what is left after the best rotation, 0 to 1 (Ding et al. 2021). ``drift``: mean of 1 − cosine,
    which rotation changes.
    """
    cosine = (x * y).sum(axis=1) / np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1), 1e-12)
    a, b = (z - z.mean(axis=0) for z in (x, y))
    a, b = (z / max(np.linalg.norm(z), 1e-12) for z in (a, b))
    k, m = a @ a.T, b @ b.T
    norm, rng = max(np.linalg.norm(k) * np.linalg.norm(m), 1e-12), np.random.default_rng(seed)
    orders = [rng.permutation(len(m)) for _ in range(permutations)]
    return {
        "cka": float((k * m).sum() / norm),
        "cka_null": float(np.quantile([(k * m[np.ix_(order, order)]).sum() / norm for order in orders], 0.95)),
        "procrustes": float(max(0.0, 1 - np.linalg.norm(a.T @ b, "nuc"))),
        "drift": float((1 - cosine).mean()),
    }


def likeness(states: Tensor, sample: Sample) -> np.ndarray:
    """Mean cosine of ``states`` of different real tokens in each phrase of the ``sample``, ``(n,)``: 1 if all agree."""
    out = []
    for i, state in enumerate(states.double().cpu()):
        unit = F.normalize(state[sample.real(i)], dim=-1)
        out.append(float(((unit @ unit.T).sum() - len(unit)) / max(len(unit) * (len(unit) - 1), 1)))
    return np.array(out)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of each map of ``a`` with that of ``b``, both ``(n, h, w)``: ``(n,)``."""
    return np.array([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)])


def statements(tokenizer: object, studies: Sequence[Study]) -> list[Finding]:
    """Each distinct phrase of ``studies`` that states or denies a finding and fits the ``tokenizer``.

    Of the eight, those of the reports; others are those that their source names.
    """
    own = (f for s in studies for f in s.findings if f.name not in FINDINGS and reports.name_in(f.phrase, f.name))
    found = {f.phrase.lower(): f for f in (*(f for s in studies for f in reports.find(s.report)), *own)}
    fits = models.readable(tokenizer, list(found))
    return [finding for (phrase, finding), left in zip(found.items(), fits, strict=True) if left == phrase]


def position_states(pipeline: StableDiffusionPipeline, findings: Sequence[Finding]) -> dict[str, np.ndarray]:
    """States that ``pipeline`` gives the phrases of ``findings``, at begin, finding and end: ``(n, width)`` each."""
    if not findings:
        return {}
    prompts = [finding.phrase for finding in findings]
    states = models.encode_text(pipeline, prompts, read=models.encoder_states).cpu().numpy()
    kinds = [token_kinds(pipeline.tokenizer, finding) for finding in findings]
    return {
        kind: np.stack([state[groups[kind]].mean(axis=0) for state, groups in zip(states, kinds, strict=True)])
        for kind in ("begin", "finding", "end")
        if all(kind in groups for groups in kinds)
    }


def probe(train: np.ndarray, answers: Sequence[str], test: np.ndarray) -> np.ndarray:
    """Answers ``(m,)`` of a linear probe on ``test`` ``(m, width)``: a logistic regression on standardised states.

    ``train`` ``(n, width)`` has the known ``answers``, of which at least two are different.
    """
    if len(set(answers)) < 2:
        raise InputError(f"a probe needs two different answers to learn, got {sorted(set(answers))}")
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(train, answers).predict(test)


def layer_states(pipeline: StableDiffusionPipeline, prompt: str) -> Tensor:
    """States of a ``prompt`` after the embeddings and after each layer of ``pipeline``'s encoder, normalised.

    Float32 ``(layers + 1, length, width)``. CLIP's last layer norm is applied to all of them (Toker et al. 2024); a
    BERT's layers end in their own.
    """
    encoder, seen = pipeline.text_encoder, []
    layers = [encoder.get_submodule(name) for name in recipes.layer_names(encoder)]

    def first(_: object, given: tuple, options: dict) -> None:
        seen.append(given[0] if given else options["hidden_states"])

    def each(_: object, __: object, output: Tensor | tuple) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    with ExitStack() as stack:
        stack.callback(layers[0].register_forward_pre_hook(first, with_kwargs=True).remove)
        for layer in layers:
            stack.callback(layer.register_forward_hook(each).remove)
        length = models.encode_text(pipeline, [prompt]).shape[1]
    norms = [module for name, module in encoder.named_modules() if name.endswith("final_layer_norm")]
    with torch.no_grad():
        states = [norms[0](x) if norms else x for x in seen]
    # A BERT computes real tokens only.
    return torch.cat([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in states]).float()


@torch.inference_mode()
def generate(
    pipeline: StableDiffusionPipeline, states: Tensor, guidance: float = 2.0, steps: int = 20, keys: Sequence[int] = ()
) -> np.ndarray:
    """Images of ``pipeline``, uint8 ``(n, s, s)``, from ``states`` ``(n, length, width)`` in place of a prompt's.

    ``guidance`` away from the empty prompt in ``steps`` of DDIM; the noise of each by its key, without ``keys`` equal.
    """
    empty, config = empty_states(pipeline)[0].to(pipeline.unet.dtype), pipeline.unet.config
    # Twice as wide where keys and values differ.
    states = states.repeat(1, 1, empty.shape[-1] // states.shape[-1]).to(empty)
    shape = (config.in_channels, config.sample_size, config.sample_size)
    noise = torch.stack([models.seeded_noise(shape, 0, key) for key in keys or [0] * len(states)]).to(states)
    latents = models.draw(pipeline, noise, states, empty[None], steps=steps, guidance=guidance)
    return models.decode_latents(pipeline, latents.float())


def lens(pipeline: StableDiffusionPipeline, prompt: str, guidance: float = 2.0, steps: int = 20) -> np.ndarray:
    """Diffusion Lens (Toker et al. 2024): an image from each of `layer_states` by `generate`, ``(layers + 1, s, s)``.

    ``pipeline, prompt`` as of the former, ``guidance, steps`` as of the latter.
    """
    return generate(pipeline, layer_states(pipeline, prompt), guidance, steps)

"""A scale to read scores on: two models that point without diffusion, beside chance and the location prior.

- `Contrastive`: a small CNN aligned with the frozen all-MiniLM-L6-v2 on the images and prompts that the diffusion model
  learns from. Its map is the cosine of every patch with the phrase (BioViL, Boecking et al. 2022, arXiv:2204.09817).
- `Ceiling`: a small U-Net (Ronneberger et al. 2015, arXiv:1505.04597) trained on the masks: what supervision reaches.

`contrastive` and `ceiling` train them once per profile, `score` tests the maps of any model as chapters 3 and 4 test
those of the diffusion model, and `as_asked` reads side, zone and severity of generated findings off the ceiling.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from chestxai import faithfulness, models, profiles, reports, runs
from chestxai.models.small import conv, fit
from chestxai.profiles import Profile
from chestxai.runs import InputError, Run
from chestxai.studies import FINDINGS, Finding, Fit, Frame, GroundTruth, Study, to_images

#: What the ceiling tells of a finding besides its place, and `as_asked` compares with the prompt.
ATTRIBUTES = {"side": ("right", "left"), "zone": ("upper", "mid", "lower"), "severity": ("mild", "moderate", "severe")}
_PARTS = {"side": slice(0, 2), "zone": slice(2, 5), "severity": slice(5, 8)}  # their values, one after the other
_SYNONYMS = {"apical": "upper", "basal": "lower", "small": "mild", "large": "severe"}
_LIMIT = 5_000  # training images

#: A model as `score` takes it: images uint8 ``(n, s, s)`` and a finding for each → maps float32 ``(n, h, w)``.
Pointer = Callable[[np.ndarray, Sequence[Finding]], np.ndarray]
Out = str | Path | None
Loss = Callable[[np.ndarray], Tensor]


class Contrastive(nn.Module):
    """A CNN whose patches of 4 pixels share a space with the sentences of a frozen MiniLM; images become ``size``²."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.size = size
        convolutions = conv(3, 24, 5, 2), conv(24, 48, 3, 2), conv(48, 64), conv(64, 64)
        self.patches = nn.Sequential(*convolutions, nn.Conv2d(64, 64, 1))
        self.words = nn.Linear(384, 64)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def image_patches(self, images: np.ndarray) -> Tensor:
        """Embeddings float32 ``(n, 64, size / 4, size / 4)`` of the patches of ``images``, uint8 ``(n, s, s)``."""
        return self.patches(_scaled(images, self.size).to(self.log_scale.device))

    def text(self, phrases: Sequence[str]) -> Tensor:
        """Embeddings float32 ``(n, 64)`` of ``phrases``."""
        return self.words(sentences(phrases).to(self.log_scale.device))


class Ceiling(nn.Module):
    """A U-Net: images uint8 ``(n, s, s)``, which become ``size``² → logits float32 ``(n, k + 8, size / 2, size / 2)``.

    The first ``k`` channels are the findings ``names``; the others tell the `ATTRIBUTES` of the finding at a place.
    ``varied``, bool ``(k, 3)``: which attributes of which findings differed among the training phrases.
    """

    def __init__(self, size: int = 64, names: Sequence[str] = FINDINGS) -> None:
        super().__init__()
        self.size, self.names, w = size, list(names), 16
        quarter = nn.Sequential(conv(w, 2 * w, 3, 2), conv(2 * w, 2 * w))
        eighth = nn.Sequential(conv(2 * w, 4 * w, 3, 2), conv(4 * w, 4 * w), conv(4 * w, 4 * w))
        self.down = nn.ModuleList([conv(3, w, 5, 2), quarter, eighth])
        self.up = nn.ModuleList([conv(6 * w, 2 * w), conv(3 * w, 2 * w)])
        self.head = nn.Conv2d(2 * w, len(self.names) + 8, 1)
        self.register_buffer("varied", torch.zeros(len(self.names), 3, dtype=torch.bool))

    def forward(self, images: np.ndarray) -> Tensor:
        half = self.down[0](_scaled(images, self.size).to(self.varied.device))
        quarter = self.down[1](half)
        x = self.up[0](torch.cat([F.interpolate(self.down[2](quarter), scale_factor=2.0), quarter], dim=1))
        return self.head(self.up[1](torch.cat([F.interpolate(x, scale_factor=2.0), half], dim=1)))

    @torch.inference_mode()
    def maps(self, images: np.ndarray, findings: Sequence[Finding]) -> np.ndarray:
        """A `Pointer`: where in each of the ``images`` its one of ``findings`` is, if it is there, as probabilities.

        The same everywhere for a finding that the training phrases did not have.
        """
        known = [self.names.index(f.name) if f.name in self.names else -1 for f in findings]
        logits = self(images)[range(len(known)), known]
        logits[[i for i, channel in enumerate(known) if channel < 0]] = 0
        return logits.flatten(1).softmax(1).view_as(logits).cpu().numpy()


def _scaled(images: np.ndarray, size: int) -> Tensor:
    """Float32 ``(n, 3, size, size)``: the image in about [-2, 2], and each pixel's row and column in [-1, 1]."""
    x = torch.from_numpy(np.array(images))[:, None].float()
    if x.shape[-1] != size:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    axis = torch.linspace(-1, 1, size).expand(len(x), 1, size, size)
    return torch.cat([(x - 127.5) / 64, axis.mT, axis], dim=1)


_minilm = cache(models.minilm)


@torch.no_grad()
def sentences(phrases: Sequence[str]) -> Tensor:
    """Mean states float32 ``(n, 384)`` of ``phrases`` in the frozen all-MiniLM-L6-v2, 64 texts at a time."""
    tokenizer, encoder = _minilm()
    unique, parts = sorted(set(phrases), key=lambda phrase: (len(phrase), phrase)), []
    for i in range(0, len(unique), 64):
        tokens = tokenizer(unique[i : i + 64], padding=True, truncation=True, return_tensors="pt")
        # The states of padding are zero (`models.SilentPadBert`).
        parts.append(models.text_states(encoder, dict(tokens)).sum(1) / tokens["attention_mask"].sum(1, keepdim=True))
    places = {phrase: i for i, phrase in enumerate(unique)}
    return torch.cat(parts)[[places[phrase] for phrase in phrases]]


@torch.inference_mode()
def similarity(model: Any, images: np.ndarray, findings: Sequence[Finding]) -> np.ndarray:
    """Cosine of every patch of ``images`` and the phrase of ``findings``, from 0 to 1: float32 ``(n, h, w)``.

    With a ``model`` it is a `Pointer`: `Contrastive`, or any object with ``image_patches(images)``, which returns float
    ``(n, d, h, w)``, and ``text(phrases)``, which returns ``(n, d)``. Of hi-ml-multimodal's BioViL, these are
    ``get_patchwise_projected_embeddings`` and ``get_embeddings_from_prompt``.
    """
    texts = model.text([finding.phrase for finding in findings])[:, :, None, None]
    cosines = F.cosine_similarity(model.image_patches(images), texts, dim=1)
    return ((cosines + 1) / 2).float().cpu().numpy()


def contrastive_loss(patches: Tensor, texts: Tensor, same: Tensor, scale: Tensor | float) -> Tensor:
    """InfoNCE between images and texts: the mean of a global and a patch-wise one, in both directions.

    Globally, an image is its mean patch. Patch-wise, its similarity with a text is the mean cosine of its patches,
    weighted towards the closest ones (after GLoRIA, Huang et al., ICCV 2021). ``patches`` are float ``(n, d, h, w)``,
    ``texts`` ``(n, d)``, and many reports say the ``same``, bool ``(n, n)``; ``scale`` is the inverse temperature.
    """
    patches, texts = patches.flatten(2), F.normalize(texts, dim=1)
    whole = F.normalize(patches.mean(2), dim=1) @ texts.T
    cosines = torch.einsum("idp,jd->ijp", F.normalize(patches, dim=1), texts)
    local = (cosines * (cosines * scale).softmax(-1)).sum(-1)
    target = same / same.sum(1, keepdim=True)
    return sum(F.cross_entropy(scale * s, target) for one in (whole, local) for s in (one, one.T)) / 4


def contrastive(profile: Profile, studies: Sequence[Study], out: Out = None, epochs: int = 8) -> Contrastive:
    """The contrastive model of a ``profile``, trained first if there is none for these data, settings and code.

    It learns in as many ``epochs`` from ``studies`` of the train split of the diffusion model's source, without those
    that have no prompt or readable image (fewer than two are an InputError), and is kept below ``out``.
    """
    size, chosen = min(profile.data.size, 128), profiles.sample(studies, _LIMIT)

    def prepare(model: Contrastive) -> tuple[int, Loss]:
        texts: dict[int, str] = {}
        images, kept, _ = to_images(chosen, size, profile.data.fit)
        for i, study in enumerate(kept):
            with suppress(InputError):
                texts[i] = reports.prompt(study.report)
        images, prompts = images[list(texts)], np.array(list(texts.values()))
        states = sentences(prompts.tolist()) if len(texts) else torch.zeros(0, 384)

        def loss(rows: np.ndarray) -> Tensor:
            scale = model.log_scale.exp().clamp(max=100)
            same = torch.from_numpy(prompts[rows][:, None] == prompts[rows]).to(scale.device)
            words = model.words(states[rows].to(scale.device))
            return contrastive_loss(model.image_patches(images[rows]), words, same, scale)

        return len(images), loss

    tokens = [[*study.change_token(), study.report] for study in chosen]
    return _cached(profile, out, "contrastive", epochs, tokens, partial(Contrastive, size), prepare)


def ceiling(profile: Profile, truths: Sequence[GroundTruth], out: Out = None, epochs: int = 8) -> Ceiling:
    """The supervised ceiling of a ``profile``, trained first if there is none for these data, settings and code.

    It learns in as many ``epochs`` from ``truths``, phrases with masks or boxes of patients that are not scored (fewer
    than two images are an InputError), and is kept below ``out``, the root of the runs.
    """
    size, fit = min(profile.data.size, 128), profile.data.fit
    findings: dict[str, list[Finding]] = defaultdict(list)
    for truth in truths:
        findings[truth.study.id].append(truth.finding)
    names = [*FINDINGS, *sorted({truth.finding.name for truth in truths} - {*FINDINGS})]
    chosen = profiles.sample(list({truth.study.id: truth.study for truth in truths}.values()), _LIMIT)

    def prepare(model: Ceiling) -> tuple[int, Loss]:
        images, kept, _ = to_images(chosen, size, fit)
        shape = len(kept), len(names)
        masks, values = torch.zeros(*shape, size, size, dtype=torch.bool), torch.zeros(*shape, 8)
        for i, study in enumerate(kept):
            for finding in findings[study.id]:
                f = names.index(finding.name)
                masks[i, f] |= torch.from_numpy(Frame(*study.size, size, fit).mask(finding))
                values[i, f] = torch.cat([_one_hot(finding, name) for name in ATTRIBUTES])
        for k, part in enumerate(_PARTS.values()):
            model.varied[:, k] = values[:, :, part].amax(0).sum(-1) > 1 if len(kept) else False
        return len(images), lambda rows: _mask_loss(model(images[rows]), masks[rows], values[rows])

    tokens = [[t.key, t.finding.side, t.finding.zone, t.finding.severity, t.study.change_token()] for t in truths]
    return _cached(profile, out, "supervised", epochs, tokens, partial(Ceiling, size, names), prepare)


def _one_hot(finding: Finding, attribute: str) -> Tensor:
    """Which of `ATTRIBUTES` it is, float32 ``(values,)``; all 0 if none or unknown."""
    value = getattr(finding, attribute)
    return torch.tensor([float(v == _SYNONYMS.get(value, value)) for v in ATTRIBUTES[attribute]])


def _mask_loss(logits: Tensor, masks: Tensor, values: Tensor) -> Tensor:
    """Cross-entropy of the places of findings, ``masks (n, k, s, s)``, and their attributes, ``values (n, k, 8)``."""
    target, value = F.avg_pool2d(masks.to(logits.device).float(), 2), values.to(logits.device)
    share = target / target.sum((2, 3), keepdim=True).clamp(min=1e-6)
    loss = F.cross_entropy(logits[:, :-8].flatten(0, 1).flatten(1), share.flatten(0, 1).flatten(1), reduction="sum")
    loss = loss / target.any(3).any(2).sum().clamp(min=1)
    inside = torch.einsum("nfhw,nfc->nchw", target, value)
    for part in _PARTS.values():
        truth = inside[:, part]
        loss = loss - (truth * logits[:, -8:][:, part].log_softmax(1)).sum() / truth.sum().clamp(min=1)
    return loss


def _cached(
    profile: Profile, out: Out, name: str, epochs: int, tokens: list, build: Callable, prepare: Callable
) -> Any:
    """The model in its file; of several processes the first trains it if need be, and the others wait."""
    path = _folder(profile, out) / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = profile.data.size, profile.data.fit, epochs, tokens
    identity = runs.fingerprint(*about, runs.code_fingerprint(__name__))
    with torch.random.fork_rng(devices=[]), FileLock(path.with_name(f".{path.name}.lock")):
        torch.manual_seed(0)
        model = build()
        with suppress(InputError):  # a damaged file is made again
            if runs.is_current(path, identity):
                model.load_state_dict(runs.load_tensors(path))
                return model.eval()
        (n, loss), name = prepare(model), type(model).__name__.lower()
        if n < 2:
            raise InputError(f"the {name} baseline has {n} images to learn from and needs two: add training data")
        model.to(runs.device(), memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
        fit(optimizer, n, loss, epochs, np.random.default_rng(0), description=f"training the {name} baseline")
        runs.save_tensors(path, model.state_dict(), {"identity": identity})
    return model.cpu().eval()


def _folder(profile: Profile, out: Out) -> Path:
    return profiles.profile_folder(profile, out) / "baselines"


def score(
    point: Pointer,
    truths: Sequence[GroundTruth],
    pool: Sequence[Study],
    priors: Mapping[str, np.ndarray],
    size: int,
    fit: Fit = "crop",
    swaps: int = 4,
) -> pd.DataFrame:
    """Rows as of ``grounding.csv``, see `faithfulness.score_maps`, with ``priors`` of `localization.location_priors`.

    ``point`` reads the images of ``truths`` and, for each, ``swaps`` of the ``pool`` (`faithfulness.swap_images`;
    unreadable ones are left out) in a frame of ``size`` and ``fit``.
    """
    probed, maps = [], []
    for i, truth in enumerate(runs.progress(truths, "pointing")):
        some = [(i, *probe) for probe in faithfulness.probes(truth, pool, swaps)]
        shown = [to_images([study], size, fit, allow_none=study is not truth.study)[0] for *_, study, _ in some]
        probed += (some := [probe for probe, image in zip(some, shown, strict=True) if len(image)])
        maps += [*point(np.concatenate(shown), [finding for *_, finding in some])]
    arrays = faithfulness.by_kind(probed, maps, len(truths), swaps)
    return faithfulness.score_maps(arrays["own"], arrays, truths, priors, size, fit).assign(step=0)


def save_scores(profile: Profile, scores: Mapping[str, pd.DataFrame], out: Out = None) -> None:
    """Keep tables of `score`, ``scores`` by the name of the baseline, in the folder of ``profile`` below ``out``."""
    for name, table in scores.items():
        runs.write_atomic(Run(_folder(profile, out) / name).grounding_file, table.to_csv(index=False))


def load_scores(profile: Profile, out: Out = None) -> dict[str, pd.DataFrame]:
    """What `save_scores` has kept of ``profile`` below ``out``; nothing where chapter 4 has not run."""
    files = sorted(_folder(profile, out).glob("*/grounding.csv"))
    return {file.parent.name: Run(file.parent).grounding() for file in files}


@torch.inference_mode()
def as_asked(images: np.ndarray, prompts: Sequence[str], model: Ceiling) -> pd.DataFrame:
    """Whether ``images`` show the side, zone and severity of the findings that their ``prompts`` name.

    The ceiling, ``model``, tells them at each place, and a place counts by the probability that the finding is there.
    It errs, too: measure real images and their own prompts beside the generated ones. A row per image and finding asked
    for: ``image`` (its number), ``prompt``, ``finding``, and ``side``, ``zone``, ``severity``: 1 as asked, 0 not, NaN
    where the prompt does not say or where it never varied in training. ``chance_side``, … is the mean if the prompts of
    the finding were exchanged between its images: where a finding is usually on one side, so will be most guesses.
    """
    rows, seen = [], {name: [] for name in _PARTS}
    for i in range(len(images)):
        if i % 64 == 0:
            logits = model(images[i : i + 64]).cpu()
        for finding in reports.find(prompts[i]):
            if not finding.present or finding.name not in FINDINGS:
                continue
            row, f = {"image": i, "prompt": prompts[i], "finding": finding.name}, model.names.index(finding.name)
            for k, (name, part) in enumerate(_PARTS.items()):
                one, wanted = logits[i % 64], _one_hot(finding, name)
                evidence = (one[f].flatten().softmax(0).view_as(one[f]) * one[-8:][part].log_softmax(0)).sum((1, 2))
                seen[name].append(int(evidence.argmax()))
                row[name] = int(wanted.argmax()) if wanted.any() and model.varied[f, k] else math.nan
            rows.append(row)
    table = pd.DataFrame(rows, columns=["image", "prompt", "finding", *ATTRIBUTES])
    for name, found in seen.items():
        shares = table.groupby("finding")[name].value_counts(normalize=True)
        guessed = [shares.get(key, 0.0) for key in zip(table["finding"], found, strict=True)]
        table[f"chance_{name}"] = pd.Series(guessed, table.index, dtype=float).where(table[name].notna())
        table[name] = (table[name] == found).astype(float).where(table[name].notna())
    return table

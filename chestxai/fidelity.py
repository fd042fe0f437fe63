"""Drawing images from a model, and their scores against real ones in the feature space of a small findings classifier.

FID, KID and MS-SSIM are torchmetrics'. Inception features say little about grey 64-pixel radiographs; here the
features are the penultimate layer of `FindingsClassifier`, trained on the same data source. Numbers from different
feature spaces cannot be compared: store `FindingsClassifier.description` beside them.

Images are uint8 ``(n, s, s)`` everywhere, 0 black to 255 white. The network itself scales them, and refuses floats, so
they cannot be normalised twice.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import shutil
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from filelock import FileLock
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm.std import tqdm

from chestxai import models, reports, runs, sources
from chestxai.profiles import SamplingSettings
from chestxai.stats import Interval, bootstrap_ci, bootstrap_statistic
from chestxai.studies import FINDINGS, Study, to_images

#: The classifier that ships, trained on phantoms.
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "classifier"

# Wang, Simoncelli & Bovik 2003: exponents of the scales, finest first.
_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# torchmetrics' Gaussian window (sigma 1.5) in pixels.
_WINDOW = 11


def requests(
    studies: Sequence[Study], settings: SamplingSettings, seed: int = 0
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """What each of ``settings.images`` images is asked to show: the report prompts of some held-out studies.

    Studies are drawn without replacement (and again from the first if there are too few), ``per_prompt`` images in a
    row for each. Studies, not texts, so that prompts are as frequent as among the real images; two studies may have
    the same text, and the prompts are the groups that every score resamples or compares within. More images only
    append.

    Args:
        studies: held out from training; one without a report is left out.
        settings: ``images`` and ``per_prompt``.
        seed: of the choice.

    Returns:
        ``images`` prompts, their labels (see `asked`), and for each the position int ``(images,)`` in ``studies`` of
        the one whose report it is.

    Raises:
        ValueError: no study has a report.
    """
    texts = {}
    for i, study in enumerate(studies):
        with suppress(ValueError):
            texts[i] = reports.prompt(study.report)
    if not texts:
        raise ValueError(f"nothing to ask for: none of {len(studies)} studies has a report")
    order = np.random.default_rng(seed).permutation(list(texts))
    origins = order[np.arange(settings.images) // settings.per_prompt % len(order)]
    prompts = [texts[i] for i in origins.tolist()]
    return prompts, asked(prompts), origins


def asked(prompts: Sequence[str]) -> np.ndarray:
    """The findings that prompts name and do not deny: float32 ``(n, 8)``, 0 or 1, over `FINDINGS`.

    Not the labels of the study that the prompt comes from: an impression leaves out some of them, and what a model was
    not told of it cannot be expected to draw.
    """
    rows = {}
    for prompt in dict.fromkeys(prompts):
        names = {finding.name for finding in reports.find(prompt) if finding.present}
        rows[prompt] = [name in names for name in FINDINGS]
    return np.array([rows[prompt] for prompt in prompts], dtype=np.float32).reshape(-1, len(FINDINGS))


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    settings: SamplingSettings,
    path: Path,
    *,
    seed: int = 0,
    precision: str = "no",
    bar: tqdm | None = None,
) -> np.ndarray:
    """Draw one image for each prompt and keep them in ``path``; finished images are read, unfinished ones gone on with.

    DDIM without added noise (Song et al. 2021) from ``settings.steps`` steps, with classifier-free guidance (Ho &
    Salimans 2022) away from the empty prompt. The noise that image ``i`` starts from depends on ``seed`` and ``i``
    alone: not on the batch, the other prompts or the weights, so that two models are compared from the same noise.

    The file (safetensors: ``images``; its metadata hold the prompts) is named by everything that it depends on, the
    pipeline's weights included: whatever changes, it is drawn again. Each batch is written in one step, so that a
    killed run loses at most one.

    Args:
        pipeline: of `models.load_pipeline`, with a checkpoint's weights; its own scheduler is left alone.
        prompts: a text for each image.
        settings: ``guidance``, ``steps`` and ``batch``.
        path: the ``.safetensors`` file of the images.
        seed: of the noise.
        precision: "no", "fp16" or "bf16": what the U-Net computes in on a GPU; a CPU always takes float32.
        bar: of `runs.progress`, advanced by one for each image.

    Returns:
        uint8 ``(n, s, s)``, in the order of the prompts.

    Raises:
        ValueError: no prompts.
        FloatingPointError: the model's output is not finite.
        OSError: ``path`` cannot be written.
    """
    prompts, path = list(prompts), Path(path)
    if not prompts:
        raise ValueError("no prompts to draw images for")
    advance = bar.update if bar is not None else lambda n: None
    device = pipeline.unet.device
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision) if device.type == "cuda" else None
    schedule = {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    name = runs.fingerprint(_weights(pipeline), schedule, settings.model_dump(), prompts, seed, str(kind))
    if _drawn(path, name):
        advance(len(prompts))
        return runs.load_tensors(path)["images"].numpy()
    parts = path.with_suffix(".parts")
    # Latents are not confined to [-1, 1], which a configuration without this entry would assume.
    ddim = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    sampler = type(pipeline)(**{**pipeline.components, "scheduler": ddim}, requires_safety_checker=False)
    sampler.set_progress_bar_config(disable=True)
    unique = [*dict.fromkeys(prompts), ""]
    text = models.encode_text(pipeline, unique).to(pipeline.unet.dtype)
    side = models.image_size(pipeline) // pipeline.vae_scale_factor
    shape = (pipeline.unet.config.in_channels, side, side)
    files = []
    for number, start in enumerate(range(0, len(prompts), settings.batch)):
        rows = range(start, min(start + settings.batch, len(prompts)))
        files.append(parts / f"{number:05d}.safetensors")
        if not _drawn(files[-1], name):
            noise = torch.stack([_start(shape, seed, i) for i in rows]).to(device, pipeline.unet.dtype)
            with torch.inference_mode(), torch.autocast(device.type, kind, enabled=kind is not None):
                latents = sampler(
                    prompt_embeds=text[[unique.index(prompts[i]) for i in rows]],
                    negative_prompt_embeds=text[-1:].expand(len(rows), -1, -1),
                    latents=noise,
                    guidance_scale=settings.guidance,
                    num_inference_steps=settings.steps,
                    output_type="latent",
                ).images
            if not torch.isfinite(latents).all():
                raise FloatingPointError(
                    f"{path}: the model draws values that are not finite (first prompt: {prompts[start]!r}); "
                    "its training has diverged, or fp16 overflows: try bf16"
                )
            images = torch.from_numpy(models.decode_latents(pipeline, latents.float()))
            runs.save_tensors(files[-1], {"images": images}, {"identity": name})
        advance(len(rows))
    whole = torch.cat([runs.load_tensors(file)["images"] for file in files])
    about = {"prompts": json.dumps(prompts), "settings": settings.model_dump_json(), "seed": str(seed)}
    runs.save_tensors(path, {"images": whole}, {"identity": name} | about)
    shutil.rmtree(parts)
    return whole.numpy()


def _drawn(path: Path, identity: str) -> bool:
    return path.is_file() and runs.tensor_metadata(path).get("identity") == identity


def _start(shape: Sequence[int], seed: int, i: int) -> torch.Tensor:
    key = int(np.random.default_rng([seed, i]).integers(2**63))
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(key))


def _weights(pipeline: StableDiffusionPipeline) -> str:
    """Hex SHA-256 of all weights, names included."""
    digest = hashlib.sha256()
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FindingsClassifier(nn.Module):
    """A small convolutional network that names the findings of a radiograph; its 128 features are our feature space.

    Input: uint8 ``(n, s, s)`` or ``(n, 1, s, s)``; resized to ``size`` when ``s`` differs and scaled to about [-2, 2]
    inside. Output: logits float32 ``(n, 8)`` over `FINDINGS`.

    Attributes:
        num_features: 128; with `features` this is what torchmetrics asks of a feature extractor.
        description: what was trained on what, one line.
    """

    num_features = 128

    def __init__(self, size: int = 64, widths: Sequence[int] = (24, 48, 80), description: str = "untrained") -> None:
        super().__init__()
        self.size, self.widths, self.description = int(size), tuple(widths), description
        a, b, c = self.widths
        self.trunk = nn.Sequential(
            _conv(1, a, 5, 2), _conv(a, b, 3, 2), _conv(b, b), _conv(b, c, 3, 2), _conv(c, c), _conv(c, 128)
        )
        self.head = nn.Linear(self.num_features, len(FINDINGS))

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images as float32 ``(n, 1, size, size)``, the one place where pixels are normalised."""
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 (0 to 255), got {images.dtype}: the network scales them itself")
        x = images.reshape(images.shape[0], 1, *images.shape[-2:]).float()
        if x.shape[-1] != self.size or x.shape[-2] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return (x - 127.5) / 64

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 ``(n, 128)``: the trunk, averaged over the image."""
        return self.trunk(self.scaled(images)).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)
    )


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    out: Path,
    *,
    epochs: int = 12,
    seed: int = 0,
    val: tuple[np.ndarray, np.ndarray] | None = None,
    source: str = "phantom",
    data: str = "",
    batch: int = 64,
    learning_rate: float = 3e-3,
    device: str | torch.device | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> Path:
    """Train a `FindingsClassifier` and save it as ``out/model.safetensors`` and, last, ``out/classifier.json``.

    AdamW with a one-cycle schedule; augmented by shifts of up to a sixteenth of the image, contrast and brightness.
    Images are not mirrored: that would put the heart on the right.

    Args:
        images: uint8 ``(n, s, s)``.
        labels: float ``(n, 8)``, 0 or 1, over `FINDINGS`.
        out: folder to write.
        epochs: passes over the images.
        seed: of weights, order and augmentation; the same seed gives the same file on the same machine.
        val: images and labels whose AUC is recorded.
        source: name of the data source, recorded.
        data: fingerprint of the training images, recorded.
        batch: images a step.
        learning_rate: peak of the schedule.
        device: default: the GPU when there is one.
        progress: wraps the loop over epochs.

    Returns:
        ``out``.

    Raises:
        ValueError: images that are not uint8 or labels that do not fit them.
        OSError: ``out`` cannot be written; nothing half-written is left.
    """
    images, labels = _images(images), np.asarray(labels, dtype=np.float32)
    if labels.shape != (len(images), len(FINDINGS)) or len(images) < 2:
        raise ValueError(f"{len(images)} images need labels {(len(images), len(FINDINGS))}, got {labels.shape}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = images.shape[-1]
    steps = math.ceil(len(images) / batch)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FindingsClassifier(size).to(device, memory_format=torch.channels_last)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    model.train()
    for _ in progress(range(epochs)):
        # array_split evens the batches out: a last batch of one image would break batch normalisation.
        for chosen in np.array_split(rng.permutation(len(images)), steps):
            x = model.scaled(torch.from_numpy(_shifted(images[chosen], rng)).to(device))
            jitter = torch.from_numpy(rng.normal(0, 0.1, (2, len(chosen), 1, 1, 1)).astype(np.float32)).to(device)
            x = (x * (1 + jitter[0]) + jitter[1]).contiguous(memory_format=torch.channels_last)
            logits = model.head(model.trunk(x).mean(dim=(2, 3)))
            loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels[chosen]).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    out = Path(out)
    weights = runs.save_tensors(out / "model.safetensors", model.state_dict())
    digest = runs.sha256(weights)
    auc = {} if val is None else classifier_auc(predict(model.eval(), val[0]), val[1])
    runs.write_json(
        out / "classifier.json",
        {
            "size": size,
            "widths": list(model.widths),
            "findings": list(FINDINGS),
            "source": source,
            "data": data,
            "images": len(images),
            "epochs": epochs,
            "batch": batch,
            "learning_rate": learning_rate,
            "seed": seed,
            "val_images": 0 if val is None else len(val[0]),
            "val_auc": {name: _json(asdict(interval)) for name, interval in auc.items()},
            "sha256": digest,
        },
    )
    return out


def load_classifier(folder: Path, device: str | torch.device | None = None) -> FindingsClassifier:
    """Load what `train_classifier` saved, in evaluation mode.

    Raises:
        FileNotFoundError: no classifier there; the message says how to make one.
        ValueError: the weights are not those the JSON file describes.
    """
    folder = Path(folder)
    config, weights = folder / "classifier.json", folder / "model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: make it with 'python -m chestxai.fidelity train --source phantom --out {folder}'"
            )
    about = runs.read_json(config)
    try:
        expected, size, widths = about["sha256"], about["size"], about["widths"]
        findings, source, n, seed = about["findings"], about["source"], about["images"], about["seed"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{config}: {error} is missing; train the classifier again") from error
    if runs.sha256(weights) != expected:
        raise ValueError(f"{weights}: not the file that {config.name} describes (sha256 differs); train it again")
    if tuple(findings) != FINDINGS:
        raise ValueError(f"{config}: was trained on other findings ({', '.join(findings)}); train it again")
    description = (
        f"findings classifier, {FindingsClassifier.num_features} features at {size} px, "
        f"trained on {n} images of {source} (seed {seed}, sha256 {expected[:12]})"
    )
    model = FindingsClassifier(size, widths, description)
    try:
        model.load_state_dict(runs.load_tensors(weights))
    except RuntimeError as error:
        raise ValueError(f"{weights}: does not fit the network that {config.name} describes ({error})") from error
    return model.eval().to(device or "cpu", memory_format=torch.channels_last)


def feature_space(source: str = "phantom", folder: Path = SHIPPED) -> FindingsClassifier:
    """The classifier whose features the scores of a data source use: the one that ships, if it was trained on it.

    Raises:
        ValueError: no classifier ships for this source; the message says how to train one.
    """
    model = load_classifier(folder)
    trained = runs.read_json(Path(folder) / "classifier.json")["source"]
    if trained != source:
        raise ValueError(
            f"{folder} was trained on {trained!r}, not on {source!r}: train one with train_classifier(), or with "
            f"'python -m chestxai.fidelity train --source {source} --root FOLDER --out FOLDER'"
        )
    return model


def shared_classifier(
    source: str,
    folder: Path,
    load: Callable[[str], tuple[np.ndarray, np.ndarray]],
    *,
    data: str = "",
    epochs: int = 12,
    seed: int = 0,
    shipped: Path = SHIPPED,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> FindingsClassifier:
    """The one classifier that all runs on a data source are scored with.

    The one that ships if it was trained on ``source``; else the one in ``folder``, which is trained on the spot if it
    is missing, damaged, or made from other data or settings. A file lock lets only the first of several notebooks
    train; the others wait for it. The classifier's ``description`` says which it is.

    Args:
        source: name of the data source.
        folder: where the runs of a profile keep theirs.
        load: "train" or "val" -> images uint8 ``(n, s, s)`` and labels ``(n, 8)``; called only to train.
        data: fingerprint of the training studies; another one means another classifier.
        epochs: of the training.
        seed: of the training.
        shipped: folder of the one that ships.
        progress: wraps the loop over epochs.
    """
    shipped, folder = Path(shipped), Path(folder)
    if (shipped / "classifier.json").is_file() and runs.read_json(shipped / "classifier.json").get("source") == source:
        return feature_space(source, shipped)
    wanted = {"source": source, "data": data, "epochs": epochs, "seed": seed}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        try:
            about = runs.read_json(folder / "classifier.json")
            if {key: about.get(key) for key in wanted} == wanted:
                return load_classifier(folder)
        except (FileNotFoundError, ValueError, AttributeError):
            pass  # missing or damaged: trained below
        train_classifier(*load("train"), folder, val=load("val"), progress=progress, **wanted)
        return load_classifier(folder)


def features(classifier: nn.Module, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Features of images, float32 ``(n, d)``, computed ``batch`` at a time.

    Args:
        classifier: a `FindingsClassifier`, or any module whose call maps uint8 ``(n, 1, s, s)`` to ``(n, d)``.
        images: uint8 ``(n, s, s)``.
        batch: images at a time.
    """
    return _batched(classifier, getattr(classifier, "features", classifier), images, batch)


def predict(classifier: FindingsClassifier, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Probability of each finding, float32 ``(n, 8)`` in [0, 1]."""
    return _batched(classifier, lambda x: classifier(x).sigmoid(), images, batch)


def fid(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance of two feature sets (Heusel et al. 2017), ≥ 0, lower is better.

    ``|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)`` in float64 by torchmetrics. It is biased upwards by small samples, so
    compare only numbers from the same numbers of images.

    Args:
        real: features float ``(n, d)``, ``n ≥ 2``.
        fake: features float ``(m, d)``, ``m ≥ 2``.
    """
    real, fake = _pair(real, fake)
    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1]), normalize=True)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    # Rounding leaves equal sets at about -1e-12.
    return max(0.0, float(metric.compute()))


def fid_interval(
    real: np.ndarray,
    fake: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    n: int = 100,
    level: float = 0.95,
    seed: int = 0,
    real_groups: Sequence[Hashable] | None = None,
) -> Interval:
    """FID with a bootstrap interval over both image sets: generated images by prompt, real ones by patient.

    A resample has fewer distinct images, hence a larger FID than the sample it is drawn from; only its *spread* is
    used: the bounds are the quantiles of the resampled FIDs, moved so that their mean lies on the estimate.

    Args:
        real: features float ``(n, d)``.
        fake: features float ``(m, d)``.
        groups: prompt of each generated image, resampled together; None makes every image its own.
        n: resamples.
        level: confidence level.
        seed: of the resampling.
        real_groups: patient of each real image, likewise.
    """
    real, fake = _pair(real, fake)
    rng = np.random.default_rng(seed)
    members = [_members(real_groups, len(real), "real"), _members(groups, len(fake), "generated")]

    def resampled(values: np.ndarray, of: list[np.ndarray]) -> np.ndarray:
        return values[np.concatenate([of[g] for g in rng.integers(len(of), size=len(of))])]

    drawn = [fid(resampled(real, members[0]), resampled(fake, members[1])) for _ in range(n)]
    estimate, tail = fid(real, fake), (1 - level) / 2
    low, high = estimate + np.quantile(drawn, [tail, 1 - tail]) - np.mean(drawn)
    return Interval(estimate, max(0.0, float(low)), float(high))


def _members(groups: Sequence[Hashable] | None, n: int, what: str) -> list[np.ndarray]:
    """Rows of each group."""
    if groups is None:
        return list(np.arange(n)[:, None])
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    if labels.shape != (n,):
        raise ValueError(f"there must be one group for each of {n} {what} images, got {len(labels)}")
    return [np.flatnonzero(labels == g) for g in range(labels.max() + 1)]


def kid(
    real: np.ndarray, fake: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance of two feature sets (Bińkowski et al. 2018): mean and standard deviation over random subsets.

    The unbiased squared MMD with the kernel ``(x·y / d + 1)³``, by torchmetrics; unlike FID it does not depend on the
    number of images on average, and may be slightly negative.

    Args:
        real: features float ``(n, d)``.
        fake: features float ``(m, d)``.
        subsets: how many.
        subset_size: images in each; at most half of the smaller set (else the subsets would all be the same).
        seed: of the subsets.
    """
    real, fake = _pair(real, fake)
    size = max(2, min(subset_size, min(len(real), len(fake)) // 2))
    with torch.random.fork_rng(), warnings.catch_warnings():
        # torchmetrics warns that it keeps all features, which we hold anyway.
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_Identity(real.shape[1]), subsets=subsets, subset_size=size)
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(fake), real=False)
        mean, std = metric.compute()
    return float(mean), float(std)


def ms_ssim(images: np.ndarray, groups: Sequence[Hashable] | None = None, pairs: int = 100, seed: int = 0) -> float:
    """Mean multi-scale structural similarity of images of one prompt: the higher, the less diverse; in [0, 1].

    Each group (prompt) counts the same, however many images it has. For real images the same function gives the
    similarity to aim at: near 1 is mode collapse, but below the real images' is noise.

    Args:
        images: uint8 ``(n, s, s)``, ``s ≥ 11``.
        groups: prompt of each image; None takes all images as one group.
        pairs: at most this many pairs of a group, drawn at random when it has more.
        seed: of the pairs.

    Raises:
        ValueError: no group has two images.
    """
    return float(np.mean(list(ms_ssim_by_group(images, groups, pairs, seed).values())))


def ms_ssim_by_group(
    images: np.ndarray, groups: Sequence[Hashable] | None = None, pairs: int = 100, seed: int = 0, batch: int = 256
) -> dict[Hashable, float]:
    """`ms_ssim` of each group with two or more images.

    torchmetrics' MS-SSIM (Wang et al. 2003: Gaussian window of 11 pixels, sigma 1.5) on a fixed range of 255. Its five
    scales need 176 pixels; smaller images use as many of the finest as fit (64 px: 3, 128 px: 4), with the published
    exponents scaled to sum to 1. Compare only images of one size.
    """
    images = _images(images)
    labels = [0] * len(images) if groups is None else list(groups)
    if len(labels) != len(images):
        raise ValueError(f"there must be one group for each of {len(images)} images, got {len(labels)}")
    members: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    rng = np.random.default_rng(seed)
    chosen = {label: _pairs(len(m), pairs, rng) for label, m in members.items() if len(m) > 1}
    if not chosen:
        raise ValueError("MS-SSIM needs at least two images of one prompt: sample several per prompt")
    betas = _scales(min(images.shape[1:]))
    # `batch` is for 64 pixels: as much memory whatever the size.
    batch = max(1, batch * 64**2 // (images.shape[1] * images.shape[2]))
    # Checked above: every group has a pair.
    left = np.concatenate([np.array(members[k])[p[:, 0]] for k, p in chosen.items()])
    right = np.concatenate([np.array(members[k])[p[:, 1]] for k, p in chosen.items()])
    tensors = torch.from_numpy(images)[:, None]
    values = torch.cat(
        [
            multiscale_structural_similarity_index_measure(
                tensors[left[i : i + batch]].float(),
                tensors[right[i : i + batch]].float(),
                data_range=255.0,
                betas=betas,
                reduction="none",
            )
            for i in range(0, len(left), batch)
        ]
    ).numpy()
    ends = np.cumsum([len(p) for p in chosen.values()])[:-1]
    return {label: float(v.mean(dtype=np.float64)) for label, v in zip(chosen, np.split(values, ends), strict=True)}


def classifier_auc(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    n: int = 300,
    seed: int = 0,
) -> dict[str, Interval]:
    """AUC of the classifier per finding, and their mean under ``"macro"``: do the images show what was asked for?

    Args:
        probabilities: float ``(m, 8)`` of `predict`.
        labels: ``(m, 8)``, 0 or 1: the findings that are there (real images) or that the prompt asked for (generated).
        groups: patient or prompt of each image, resampled together.
        n: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        an interval for each finding; NaN where only one class is present, and such findings are left out of the macro.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels) > 0.5
    if probabilities.shape != labels.shape or labels.ndim != 2 or labels.shape[1] != len(FINDINGS):
        raise ValueError(
            f"probabilities and labels must both be (n, {len(FINDINGS)}), got {probabilities.shape} and {labels.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("some probabilities are NaN: the images or the classifier are broken")
    undefined = Interval(math.nan, math.nan, math.nan)
    known = [i for i in range(len(FINDINGS)) if 0 < labels[:, i].sum() < len(labels)]
    out = {name: undefined for name in (*FINDINGS, "macro")}
    for i in known:
        out[FINDINGS[i]] = bootstrap_statistic((probabilities[:, i], labels[:, i]), _auc, groups, n=n, seed=seed)
    if known:
        columns = (probabilities[:, known], labels[:, known])
        out["macro"] = bootstrap_statistic(columns, _macro_auc, groups, n=n, seed=seed)
    return out


def evaluate(
    real_images: np.ndarray,
    fake_images: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable],
    classifier: FindingsClassifier,
    *,
    patients: Sequence[Hashable] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Every fidelity number of one checkpoint, ready for JSON (None where undefined).

    Args:
        real_images: uint8 ``(n, s, s)``, held out from training.
        fake_images: uint8 ``(m, s, s)``.
        labels: ``(m, 8)``: the findings each generated image's prompt asks for.
        groups: prompt of each generated image; equal texts are one group.
        classifier: the feature space.
        patients: of the real images, resampled together.
        resamples: of the FID's bootstrap.
        seed: of subsets, pairs and bootstraps.

    Returns:
        ``fid``, ``ms_ssim``, ``classifier_auc`` (macro), each with ``_low`` and ``_high``, and ``kid`` with ``kid_std``
        (over subsets); ``classifier_auc_by_finding`` ``{finding: {estimate, low, high}}``; ``images_real``,
        ``images_fake``.
    """
    real, fake = features(classifier, real_images), features(classifier, fake_images)
    mean, std = kid(real, fake, seed=seed)
    auc = classifier_auc(predict(classifier, fake_images), labels, groups, seed=seed)
    numbers = {
        "fid": fid_interval(real, fake, groups, n=resamples, seed=seed, real_groups=patients),
        "ms_ssim": bootstrap_ci(list(ms_ssim_by_group(fake_images, groups, seed=seed).values()), seed=seed),
        "classifier_auc": auc.pop("macro"),
    }
    counts = {"images_real": len(real), "images_fake": len(fake)}
    return _flat(numbers, {"kid": mean, "kid_std": std} | counts, {"classifier_auc_by_finding": auc})


def reference(
    real_images: np.ndarray,
    labels: np.ndarray,
    classifier: FindingsClassifier,
    *,
    others: np.ndarray | None = None,
    patients: Sequence[Hashable] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """What real images score themselves, ready for JSON: the floor and the ceilings of `evaluate`'s numbers.

    Args:
        real_images: the same as in `evaluate`.
        labels: ``(n, 8)``, the findings that they show.
        classifier: the feature space.
        others: uint8 ``(m, s, s)``, real images of other patients, as many as are generated: the floor of FID and KID,
            which a model can reach but for chance only by being right.
        patients: of the real images, resampled together.
        resamples: of the FID's bootstrap.
        seed: of subsets, pairs and bootstraps.

    Returns:
        ``ms_ssim_real`` of two images with the same findings (of any two, where no two have the same),
        ``classifier_auc_real`` (macro) and, with ``others``, ``fid_real``, each with ``_low`` and ``_high``;
        ``kid_real`` with ``kid_real_std``; ``classifier_auc_real_by_finding``.
    """
    labels = np.asarray(labels)
    auc = classifier_auc(predict(classifier, real_images), labels, patients, seed=seed)
    findings = [tuple(row) for row in labels.tolist()]
    same = findings if len(set(findings)) < len(findings) else None
    alike = ms_ssim_by_group(real_images, same, seed=seed)
    numbers = {"ms_ssim_real": bootstrap_ci(list(alike.values()), seed=seed), "classifier_auc_real": auc.pop("macro")}
    plain: dict[str, float] = {}
    if others is not None:
        real, other = features(classifier, real_images), features(classifier, others)
        numbers["fid_real"] = fid_interval(real, other, n=resamples, seed=seed, real_groups=patients)
        plain = dict(zip(("kid_real", "kid_real_std"), kid(real, other, seed=seed), strict=True))
    return _flat(numbers, plain, {"classifier_auc_real_by_finding": auc})


def _flat(
    numbers: dict[str, Interval], plain: dict[str, float], nested: dict[str, dict[str, Interval]]
) -> dict[str, Any]:
    out: dict[str, Any] = dict(plain)
    for name, interval in numbers.items():
        out |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return _json(out) | {name: {k: _json(asdict(v)) for k, v in group.items()} for name, group in nested.items()}


class _Identity(nn.Module):
    """Lets torchmetrics take features where it asks for images and a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 3 or images.dtype != np.uint8 or not images.size:
        raise ValueError(f"images must be uint8 (n, s, s) with n ≥ 1, got {images.dtype} {images.shape}")
    return images


def _pair(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, fake = np.asarray(real, dtype=np.float64), np.asarray(fake, dtype=np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        raise ValueError(f"features must be (n, d) and (m, d) with n, m ≥ 2, got {real.shape} and {fake.shape}")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise ValueError("some features are NaN or infinite: the images or the network are broken")
    return real, fake


@torch.inference_mode()
def _batched(
    model: nn.Module, call: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray, batch: int
) -> np.ndarray:
    images, training = _images(images), model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        parts = [
            call(torch.from_numpy(images[i : i + batch, None]).to(device)).float().cpu().numpy()
            for i in range(0, len(images), batch)
        ]
    finally:
        model.train(training)
    return np.concatenate(parts)


def _shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, height, width = images.shape
    reach = max(1, height // 16)
    offsets = rng.integers(-reach, reach + 1, size=(2, n, 1))
    rows = np.clip(np.arange(height) + offsets[0], 0, height - 1)
    columns = np.clip(np.arange(width) + offsets[1], 0, width - 1)
    return images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _scales(size: int) -> tuple[float, ...]:
    """The exponents of as many scales as images of ``size`` pixels have room for, renormalised."""
    if size < _WINDOW:
        raise ValueError(f"MS-SSIM needs images of at least {_WINDOW} pixels, got {size}")
    # The first condition is torchmetrics' own; at two scales it would accept images smaller than the window.
    fits = [k for k in range(1, 6) if size // max(1, k - 1) ** 2 >= _WINDOW and size // 2 ** (k - 1) >= _WINDOW]
    count = max(fits)
    total = sum(_BETAS[:count])
    return tuple(beta / total for beta in _BETAS[:count])


def _pairs(n: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct pairs ``(i, j)``, ``i < j``, of ``n`` items: all, or ``most`` of them at random."""
    count = n * (n - 1) // 2
    if count <= most:
        return np.array(list(itertools.combinations(range(n), 2)))
    j_of = np.arange(n) * (np.arange(n) - 1) // 2
    flat = rng.choice(count, size=most, replace=False)
    j = np.searchsorted(j_of, flat, side="right") - 1
    return np.stack([flat - j_of[j], j], axis=1)


def _auc(scores: np.ndarray, positive: np.ndarray) -> float:
    yes, no = scores[positive], np.sort(scores[~positive])
    if not yes.size or not no.size:
        return math.nan
    # Mann–Whitney U, a tie counting one half; ten times as fast as ranking, which a bootstrap feels.
    below = np.searchsorted(no, yes, "left").sum() + np.searchsorted(no, yes, "right").sum()
    return float(below / 2 / yes.size / no.size)


def _macro_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    values = [_auc(scores[:, i], positive[:, i]) for i in range(scores.shape[1])]
    defined = [v for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def _json(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.fidelity train``: train the classifier of a feature space and print its AUC."""
    parser = argparse.ArgumentParser(prog="python -m chestxai.fidelity", description="Scores of generated images.")
    train = parser.add_subparsers(dest="command", required=True).add_parser("train", help="train a findings classifier")
    train.add_argument("--source", default="phantom", help="data source (default: phantom)")
    train.add_argument("--root", help="folder of the data source, where it needs one")
    train.add_argument("--out", type=Path, default=SHIPPED, help="folder to write (default: data/classifier)")
    train.add_argument("--images", type=int, default=6000, help="training images (default: 6000)")
    train.add_argument("--val", type=int, default=1000, help="validation images (default: 1000)")
    train.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
    train.add_argument("--epochs", type=int, default=12)
    train.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def data(split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        made = {"n": n, "size": options.size} if options.source == "phantom" else {}
        studies = sources.load(options.source, root=options.root, split=split, **made)[:n]
        if not studies:
            raise ValueError(f"source {options.source!r} has no studies in split {split!r}")
        images, kept, skipped = to_images(studies, options.size)
        for line in skipped:
            print(f"left out: {line}")
        return images, np.stack([study.labels() for study in kept])

    images, labels = data("train", options.images)
    val = data("val", options.val)
    train_classifier(
        images,
        labels,
        options.out,
        epochs=options.epochs,
        seed=options.seed,
        val=val,
        source=options.source,
        progress=lambda epochs: runs.progress(epochs, "training the classifier"),
    )
    for name, auc in runs.read_json(options.out / "classifier.json")["val_auc"].items():
        print(f"{name:18s}", "one class only" if auc["estimate"] is None else Interval(**auc))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    runs.command(main)

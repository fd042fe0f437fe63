"""Drawing images from a model, and their scores against real ones in a feature space.

FID, KID and MS-SSIM are torchmetrics'; precision, recall, density and coverage stand on scikit-learn's neighbours.

A *feature space* is any ``nn.Module`` that maps uint8 ``(n, 1, s, s)`` to float ``(n, d)`` by its ``features`` method
or, without one, by its call. Two attributes are optional: ``description``, one line that names network, weights and
preprocessing, and ``size``, the pixels it was made for. `feature_space` has three: a small findings classifier trained
on the same data source (Inception features say little about grey 64-pixel radiographs), ``"inception"`` and ``"xrv"``.
Numbers from different feature spaces cannot be compared: store `describe` beside them.

Images are uint8 ``(n, s, s)`` everywhere, 0 black to 255 white. The network itself scales them, and refuses floats, so
they cannot be normalised twice.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import itertools
import json
import math
import shutil
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, StableDiffusionPipeline
from filelock import FileLock
from scipy import stats
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm.std import tqdm

from chestxai import finetune, models, profiles, reports, runs, sources
from chestxai.profiles import Profile, SamplingSettings
from chestxai.stats import Interval, bootstrap_ci, bootstrap_statistic
from chestxai.studies import FINDINGS, Fit, Frame, Study, read_image, to_images

#: The classifier that ships, trained on phantoms.
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "classifier"

# Wang, Simoncelli & Bovik 2003: exponents of the scales, finest first.
_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# torchmetrics' Gaussian window (sigma 1.5) in pixels.
_WINDOW = 11

# The weights of the published FID (TensorFlow's, converted); a name in torch.hub ends in the start of its SHA-256.
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_INCEPTION}"
_XRV = "densenet121-res224-all"
_SUFFIXES = (".png", ".jpg", ".jpeg")


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
    killed run loses at most one. Under ``accelerate launch`` each process draws its share of them; all get the whole.

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
    weights = _weights(pipeline.unet, pipeline.text_encoder, pipeline.vae)
    name = runs.fingerprint(weights, schedule, settings.model_dump(), prompts, seed, str(kind))
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
    starts = range(0, len(prompts), settings.batch)
    files = [parts / f"{number:05d}.safetensors" for number in range(len(starts))]
    left = [number for number, file in enumerate(files) if not _drawn(file, name)]
    state = PartialState()
    state.wait_for_everyone()  # all have looked before one writes
    mine = set(left[state.process_index :: state.num_processes])
    for number, start in enumerate(starts):
        rows = range(start, min(start + settings.batch, len(prompts)))
        if number in mine:
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
            runs.save_tensors(files[number], {"images": images}, {"identity": name})
        advance(len(rows))
    state.wait_for_everyone()
    whole = torch.cat([runs.load_tensors(file)["images"] for file in files])
    if state.is_main_process:
        about = {"prompts": json.dumps(prompts), "settings": settings.model_dump_json(), "seed": str(seed)}
        runs.save_tensors(path, {"images": whole}, {"identity": name} | about)
    state.wait_for_everyone()  # all have read the parts
    if state.is_main_process:
        shutil.rmtree(parts)
    return whole.numpy()


def sample_run(
    pipeline: StableDiffusionPipeline, profile: Profile, run: Path, prompts: Sequence[str], bar: tqdm | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """`sample` of the base, which is step 0, and of every checkpoint of a run, all from the same noise.

    The images are kept in ``run/samples/step-<k>.safetensors``.

    Args:
        pipeline: the profile's base; at the end it has the last checkpoint's weights.
        profile: the one the run was made with.
        run: a folder of `finetune.finetune`.
        prompts: of `requests`.
        bar: of `runs.progress`, advanced by one for each image.

    Yields:
        The step, and its images, as `sample` returns them.
    """
    for step in (0, *finetune.checkpoints(run)):
        if step:
            finetune.load_checkpoint(pipeline, run, step)
        path = Path(run) / "samples" / f"step-{step}.safetensors"
        precision = profile.finetune.precision
        yield step, sample(pipeline, prompts, profile.sampling, path, precision=precision, bar=bar)


def _drawn(path: Path, identity: str) -> bool:
    return path.is_file() and runs.tensor_metadata(path).get("identity") == identity


def _start(shape: Sequence[int], seed: int, i: int) -> torch.Tensor:
    key = int(np.random.default_rng([seed, i]).integers(2**63))
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(key))


def _weights(*modules: nn.Module) -> str:
    """Hex SHA-256 of all weights, names included."""
    digest = hashlib.sha256()
    for part in modules:
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
        return (_resized(_grey(images).float(), self.size) - 127.5) / 64

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 ``(n, 128)``: the trunk, averaged over the image."""
        return self.trunk(self.scaled(images)).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def _grey(images: torch.Tensor) -> torch.Tensor:
    """uint8 ``(n, s, s)`` or ``(n, 1, s, s)`` as ``(n, 1, s, s)``."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (0 to 255), got {images.dtype}: the network scales them itself")
    return images.reshape(images.shape[0], 1, *images.shape[-2:])


def _resized(x: torch.Tensor, size: int) -> torch.Tensor:
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True)


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
        f"findings classifier, {FindingsClassifier.num_features} features at {size} px (grey, resized bilinearly, "
        f"(pixel − 127.5) / 64), trained on {n} images of {source} (seed {seed}, sha256 {expected[:12]})"
    )
    model = FindingsClassifier(size, widths, description)
    try:
        model.load_state_dict(runs.load_tensors(weights))
    except RuntimeError as error:
        raise ValueError(f"{weights}: does not fit the network that {config.name} describes ({error})") from error
    return model.eval().to(device or "cpu", memory_format=torch.channels_last)


class InceptionSpace(nn.Module):
    """The feature space of the published FID (Heusel et al. 2017): 2048 features of Inception-v3.

    Args:
        network: torch-fidelity's ``FeatureExtractorInceptionV3`` for the feature "2048", which takes uint8 RGB,
            resizes it to 299 pixels as TensorFlow 1 did (bilinear, no antialiasing) and scales it by
            ``(pixel − 128) / 128``. Images that are 299 pixels already are not resized.
    """

    size, num_features = 299, 2048
    description = (
        "Inception-v3 with the weights of the published FID (2015-12-05), 2048 features at 299 px (grey as RGB, "
        "resized bilinearly as by TensorFlow 1, (pixel − 128) / 128)"
    )

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(_grey(images).expand(-1, 3, -1, -1))[0]


class XrvSpace(nn.Module):
    """The feature space of FID-XRV: 1024 features of TorchXRayVision's DenseNet-121 (Cohen et al. 2022).

    What enters its classifier: the trunk's output, rectified and averaged over the image.

    Args:
        trunk: ``torchxrayvision.models.DenseNet(...).features``; it wants grey images in [-1024, 1024] at 224 pixels.
    """

    size, num_features = 224, 1024
    description = (
        f"TorchXRayVision DenseNet-121 ({_XRV}), 1024 features at 224 px (grey, resized bilinearly with antialiasing, "
        "black −1024 to white 1024)"
    )

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = _resized(_grey(images).float(), self.size)
        return self.trunk((2 * (x / 255) - 1) * 1024).relu().mean(dim=(2, 3))


def feature_space(source: str = "phantom", folder: Path | None = None) -> nn.Module:
    """The network in whose features images are compared.

    Args:
        source: ``"inception"`` (the published FID's), ``"xrv"`` (FID-XRV's), or the name of the data source that a
            `FindingsClassifier` was trained on.
        folder: where its weights lie. Default: the classifier that ships; for ``"inception"`` where torch.hub keeps
            its files, for ``"xrv"`` ``~/.torchxrayvision/models_data``.

    Raises:
        ValueError: no classifier ships for this source, or damaged weights; the message says what to do.
        FileNotFoundError: weights or the package that has the network are missing; the message says how to get them.
    """
    if source == "inception":
        return _inception(Path(folder or Path(torch.hub.get_dir()) / "checkpoints"))
    if source == "xrv":
        return _xrv(Path(folder or Path.home() / ".torchxrayvision" / "models_data"))
    folder = Path(folder or SHIPPED)
    model = load_classifier(folder)
    trained = runs.read_json(folder / "classifier.json")["source"]
    if trained != source:
        raise ValueError(
            f"{folder} was trained on {trained!r}, not on {source!r}: train one with train_classifier(), or with "
            f"'python -m chestxai.fidelity train --source {source} --root FOLDER --out FOLDER'"
        )
    return model


def _inception(folder: Path) -> InceptionSpace:
    path = folder / _INCEPTION
    network = _package(
        "torch_fidelity.feature_extractor_inceptionv3", path, f"the feature space 'inception' needs {path}: "
        f"'pip install torch-fidelity', and download {_INCEPTION_URL} to it"
    )  # fmt: skip
    if not runs.sha256(path).startswith(expected := path.stem.rpartition("-")[2]):
        raise ValueError(f"{path}: damaged, its SHA-256 does not start with {expected}; get it from {_INCEPTION_URL}")
    # torch-fidelity would unpickle the file, which may run code: it gets a copy of the bare tensors that it holds.
    copy = io.BytesIO()
    torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
    copy.seek(0)
    return InceptionSpace(network.FeatureExtractorInceptionV3("inception", ["2048"], copy)).eval()


def _xrv(folder: Path) -> XrvSpace:
    path = folder / f"{_XRV}.safetensors"
    # Its own file is a pickle, which this package does not open: who trusts it turns it into plain tensors once.
    convert = (
        f"import pathlib, safetensors.torch, torchxrayvision as xrv; path = pathlib.Path({path.as_posix()!r}); "
        "path.parent.mkdir(parents=True, exist_ok=True); "
        f"safetensors.torch.save_file(xrv.models.DenseNet(weights='{_XRV}').state_dict(), path)"
    )
    advice = (
        f"the feature space 'xrv' needs {path}: 'pip install torchxrayvision', then download the weights and turn "
        f'them into safetensors, once, by: python -c "{convert}"'
    )
    network = _package("torchxrayvision", path, advice).models.DenseNet(weights=None).features
    prefix = "features."
    tensors = {k.removeprefix(prefix): v for k, v in runs.load_tensors(path).items() if k.startswith(prefix)}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of TorchXRayVision's DenseNet-121 ({error}); {advice}") from error
    return XrvSpace(network).eval()


def _package(name: str, weights: Path, advice: str) -> Any:
    """An optional package that is useless without a file of weights."""
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing; {advice}")
    try:
        # One of them turns all warnings off when it is imported.
        with warnings.catch_warnings():
            return importlib.import_module(name)
    except ImportError as error:
        raise FileNotFoundError(f"{error}; {advice}") from error


def describe(space: nn.Module) -> str:
    """One line that names a feature space: its ``description``, else its class and the hash of its weights."""
    given = getattr(space, "description", "")
    return given or f"{type(space).__qualname__} (weights sha256 {_weights(space)[:12]})"


def shared_classifier(
    source: str,
    folder: Path,
    load: Callable[[str], tuple[np.ndarray, np.ndarray]],
    *,
    data: str = "",
    epochs: int = 12,
    batch: int = 64,
    seed: int = 0,
    shipped: Path | None = SHIPPED,
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
        batch: of the training.
        seed: of the training.
        shipped: folder of the one that ships; None where none can.
        progress: wraps the loop over epochs.
    """
    folder = Path(folder)
    about = Path(shipped) / "classifier.json" if shipped is not None else None
    if about and about.is_file() and runs.read_json(about).get("source") == source:
        return feature_space(source, about.parent)
    wanted = {"source": source, "data": data, "epochs": epochs, "batch": batch, "seed": seed}
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
    """Features of images, float32 ``(n, d)``, computed ``batch`` at a time. For files or a stream, see `extract`.

    Args:
        classifier: a `FindingsClassifier`, or any module whose call maps uint8 ``(n, 1, s, s)`` to ``(n, d)``.
        images: uint8 ``(n, s, s)``.
        batch: images at a time.
    """
    return _batched(classifier, getattr(classifier, "features", classifier), images, batch)


@dataclass(frozen=True)
class Features:
    """What `extract` makes of many images.

    Attributes:
        values: float32 ``(n, d)``, ready for `fid`, `kid`, `precision_recall`, …
        names: of each row: the file (inside its folder), the study, or its number in a list or stream.
        skipped: one line for each image left out because it cannot be read.
        space: `describe` of the feature space.
    """

    values: np.ndarray
    names: tuple[str, ...]
    skipped: tuple[str, ...]
    space: str


def extract(
    space: nn.Module,
    images: str | Path | Iterable[np.ndarray | str | Path | Study],
    *,
    size: int | None = None,
    fit: Fit = "crop",
    batch: int = 64,
    cache: Path | None = None,
    identity: str | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> Features:
    """Features of any number of images in bounded memory: only ``batch`` images are held at a time, and the features.

    Each image is brought to ``size`` pixels by `Frame.image` (bicubic with antialiasing, as Parmar et al. 2022 advise:
    without it, FID measures aliasing), both sets alike; what the network does after is in its description.

    Args:
        space: the feature space (see the module).
        images: a folder, searched for PNG and JPEG files at any depth, in the order of their names; or a list,
            array or generator of uint8 ``(h, w)``, image files and `Study`, in any mixture.
        size: pixels; default: the space's own ``size``, else the images' if all are one square size.
        fit: "crop" or "letterbox", for images that are not square.
        batch: images at a time.
        cache: folder for the features, one safetensors file for each set of images, space and framing. A repeated call
            reads it and does not touch the network. It is keyed by the images' content (files are read in full).
        identity: what the images are, in place of their content: a fingerprint of a data set, say. To cache a
            generator or studies this is needed, for their content is known only when they have been read.
        progress: wraps the loop over images, e.g. `chestxai.runs.progress`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no image, or none that can be read; an array that is not uint8 ``(h, w)``; a cache for a generator
            without ``identity``; features that are not finite.
    """
    root = None
    if isinstance(images, str | Path):
        root = Path(images)
        images = image_files(root)
    size = size or getattr(space, "size", None)
    target = None
    if cache is not None:
        what = identity if identity is not None else _content(images, root)
        name = runs.fingerprint(what, describe(space), _weights(space), size, fit)
        target = Path(cache) / f"{name}.safetensors"
        # A damaged file is made again.
        with suppress(FileNotFoundError, ValueError, KeyError):
            about = runs.tensor_metadata(target)
            names, skipped = (tuple(json.loads(about[key])) for key in ("names", "skipped"))
            return Features(runs.load_tensors(target)["values"].numpy(), names, skipped, about["space"])
    names, skipped, parts, waiting, given = [], [], [], [], size is not None
    for i, item in enumerate(progress(images)):
        try:
            label, shape, pixels = _read(item, i, root)
        except _Unreadable as error:
            skipped.append(str(error))
            continue
        size = size or shape[0]
        if not given and shape != (size, size):
            raise ValueError(
                f"image {label} is {shape[0]} × {shape[1]}, not {size} × {size} as others: say size= to resize all"
            )
        try:
            waiting.append(Frame(*shape, size, fit).image(pixels))
        except ValueError as error:
            # A study's file that is not of the size its data set says.
            skipped.append(f"{label}: {error}")
            continue
        names.append(label)
        if len(waiting) == batch:
            parts.append(features(space, np.stack(waiting), batch))
            waiting.clear()
    if waiting:
        parts.append(features(space, np.stack(waiting), batch))
    if not parts:
        raise ValueError(
            f"none of {len(skipped)} images could be read; the first: {skipped[0]}"
            if skipped
            else "there are no images"
        )
    found = Features(np.concatenate(parts), tuple(names), tuple(skipped), describe(space))
    if not np.isfinite(found.values).all():
        raise ValueError("some features are NaN or infinite: the images or the network are broken")
    if target is not None:
        about = {"names": json.dumps(names), "skipped": json.dumps(skipped), "space": found.space}
        runs.save_tensors(target, {"values": torch.from_numpy(found.values)}, about)
    return found


def image_files(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, at any depth, sorted by their path; hidden ones are left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no such file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the one that holds the images")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(_SUFFIXES)})")
    return found


class _Unreadable(OSError):
    """One record of many that cannot be read; an array of a wrong kind is a ValueError, and fatal."""


def _read(item: np.ndarray | str | Path | Study, i: int, root: Path | None) -> tuple[str, tuple[int, int], np.ndarray]:
    """Name, original height and width, and pixels uint8 ``(h, w)``."""
    if isinstance(item, np.ndarray):
        if item.ndim != 2 or item.dtype != np.uint8 or not item.size:
            raise ValueError(f"image {i}: must be uint8 (h, w), got {item.dtype} {item.shape}")
        return str(i), item.shape, item
    study = isinstance(item, Study)
    try:
        pixels = item.pixels() if study else read_image(Path(item))
    except ValueError as error:
        raise _Unreadable(f"{item.id}: {error}" if study else str(error)) from error
    if study:
        return item.id, item.size, pixels
    return _name(item, root), pixels.shape, pixels


def _name(path: str | Path, root: Path | None) -> str:
    return Path(path).relative_to(root).as_posix() if root else str(path)


def _content(images: Any, root: Path | None = None) -> str:
    """Hex SHA-256 of images that can be read twice: arrays and files, with the names of files in a folder."""
    if isinstance(images, np.ndarray):
        digest = hashlib.sha256(f"{images.dtype} {images.shape}".encode())
        digest.update(np.ascontiguousarray(images).reshape(-1).view(np.uint8))
        return digest.hexdigest()
    if not isinstance(images, Sequence) or any(isinstance(item, Study) for item in images):
        raise ValueError(
            "a cache for a generator or for studies needs identity=: their content is not known in advance"
        )
    digest = hashlib.sha256()
    for item in images:
        if isinstance(item, np.ndarray):
            digest.update(_content(item).encode())
        else:
            # What cannot be opened is skipped later.
            held = runs.sha256(Path(item)) if Path(item).is_file() else "no file"
            digest.update(f"{_name(item, root)}\0{held}\n".encode())
    return digest.hexdigest()


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
        n: resamples; 0 leaves the bounds NaN.
        level: confidence level.
        seed: of the resampling.
        real_groups: patient of each real image, likewise.
    """
    real, fake = _pair(real, fake)
    rng = np.random.default_rng(seed)
    members = [_members(real_groups, len(real), "real"), _members(groups, len(fake), "generated")]

    drawn = [fid(_resampled(real, members[0], rng), _resampled(fake, members[1], rng)) for _ in range(n)]
    estimate, tail = fid(real, fake), (1 - level) / 2
    if not n:
        return Interval(estimate, math.nan, math.nan)
    low, high = estimate + np.quantile(drawn, [tail, 1 - tail]) - np.mean(drawn)
    return Interval(estimate, max(0.0, float(low)), float(high))


def _resampled(values: np.ndarray, members: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The rows of as many groups as there are, drawn with replacement."""
    return values[np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])]


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


@dataclass(frozen=True)
class Extrapolation:
    """FID against the number of generated images, and where it goes.

    Attributes:
        sizes: int ``(k,)``, numbers of generated images.
        fids: float ``(k,)``, the FID of a random subset of each size (the mean over draws).
        estimate: FID∞, the fitted line's value at 1/N = 0; chance may bring it below 0.
        slope: of the line ``FID = estimate + slope / N``.
    """

    sizes: np.ndarray
    fids: np.ndarray
    estimate: float
    slope: float


def fid_infinity(
    real: np.ndarray, fake: np.ndarray, points: int = 15, smallest: int | None = None, draws: int = 1, seed: int = 0
) -> Extrapolation:
    """The FID that infinitely many generated images would have (Chong & Forsyth 2020, FID∞).

    The bias of an FID is about linear in 1/N. So the FID of ``points`` random subsets, of evenly spaced sizes up to
    all, is extrapolated by least squares to 1/N = 0. The real set is all of it every time, as in the paper: its own
    bias remains, so compare only values against the same real set. No interval: the subsets share their images.

    Linear it is only where N is well above the number of features; with fewer images FID∞ is a rough guess, which
    more ``draws`` make less noisy, not less wrong.

    Args:
        real: features float ``(n, d)``.
        fake: features float ``(m, d)``, ``m ≥ 4``.
        points: subset sizes, at least 2.
        smallest: of them; default: a tenth of the images (the paper's 5,000 of 50,000), but at least twice the number
            of features where half of the images allow it.
        draws: random subsets of each size.
        seed: of the subsets.

    Raises:
        ValueError: too few images or points.
    """
    real, fake = _pair(real, fake)
    most, d = len(fake), real.shape[1]
    smallest = max(most // 10, min(2 * d, most // 2), 2) if smallest is None else smallest
    sizes = np.unique(np.linspace(smallest, most, points).round().astype(int)) if smallest < most else np.array([])
    if len(sizes) < 2 or smallest < 2 or draws < 1:
        raise ValueError(f"FID∞ needs subsets of two or more sizes, each of 2 or more of {most} images, got {sizes}")
    rng = np.random.default_rng(seed)
    fids = np.array([np.mean([fid(real, fake[rng.permutation(most)[:n]]) for _ in range(draws)]) for n in sizes])
    line = stats.linregress(1 / sizes, fids)
    return Extrapolation(sizes, fids, float(line.intercept), float(line.slope))


def precision_recall(
    real: np.ndarray,
    fake: np.ndarray,
    k: int = 3,
    groups: Sequence[Hashable] | None = None,
    real_groups: Sequence[Hashable] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2): realism and variety as two numbers.

    Around each image of a set lies a closed ball that reaches to its ``k``-th nearest neighbour in the set. Precision
    is the share of generated images in any ball of the real set; recall the share of real images in any ball of the
    generated set. Both depend on the numbers of images: compare only equal ones. A single outlier has a large ball;
    `density_coverage` feels it less.

    Args:
        real: features float ``(n, d)``, ``n > k``.
        fake: features float ``(m, d)``, ``m > k``.
        k: neighbours.
        groups: prompt of each generated image, resampled together.
        real_groups: patient of each real image, likewise.
        n: bootstrap resamples. Only the images whose share it is are resampled; the balls stay as they are, so the
            interval does not cover another set of balls.
        seed: of the bootstrap.

    Returns:
        precision and recall in [0, 1].
    """
    real, fake = _pair(real, fake)
    inside, _ = _balls(real, _radii(real, k), fake, closed=True)
    covered, _ = _balls(fake, _radii(fake, k), real, closed=True)
    return (
        bootstrap_ci((inside > 0).astype(float), groups, n=n, seed=seed),
        bootstrap_ci((covered > 0).astype(float), real_groups, n=n, seed=seed),
    )


def density_coverage(
    real: np.ndarray,
    fake: np.ndarray,
    k: int = 5,
    groups: Sequence[Hashable] | None = None,
    real_groups: Sequence[Hashable] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Density and coverage (Naeem et al. 2020), from balls around the real images only.

    Density counts in how many real balls a generated image lies, over ``k``: about 1 for real images of other
    patients, and above 1 where generated images crowd in the middle. Coverage is the share of real balls with a
    generated image inside. The balls are open, as in the authors' code, so that a set against itself has exactly 1.

    Args:
        real: features float ``(n, d)``, ``n > k``.
        fake: features float ``(m, d)``.
        k: neighbours.
        groups: prompt of each generated image, resampled together.
        real_groups: patient of each real image, likewise.
        n: bootstrap resamples, as in `precision_recall`: density over generated images, coverage over real ones.
        seed: of the bootstrap.

    Returns:
        density ≥ 0 and coverage in [0, 1].
    """
    real, fake = _pair(real, fake)
    inside, held = _balls(real, _radii(real, k), fake, closed=False)
    return (
        bootstrap_ci(inside / k, groups, n=n, seed=seed),
        bootstrap_ci((held > 0).astype(float), real_groups, n=n, seed=seed),
    )


def _radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point to its ``k``-th nearest neighbour, itself not counted."""
    if not 1 <= k < len(points):
        raise ValueError(f"k = {k} neighbours need more than {k} images (and k ≥ 1), got {len(points)}")
    # About their middle, for scikit-learn loses digits of distances far from the origin.
    return NearestNeighbors(n_neighbors=k).fit(points - points.mean(axis=0)).kneighbors()[0][:, -1]


def _balls(centres: np.ndarray, radii: np.ndarray, points: np.ndarray, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """In how many balls each point lies, int ``(m,)``, and how many points each ball holds, int ``(n,)``."""
    middle = centres.mean(axis=0)
    centres, points = centres - middle, points - middle
    # A distance that is computed twice differs in its last bits, and must not decide on a tie.
    slack = 1e-12 * float((centres**2).sum(axis=1).mean())
    limits = radii**2 + (slack if closed else -slack)
    inside, held, start = np.zeros(len(points), int), [], 0
    for squared in pairwise_distances_chunked(centres, points, metric="sqeuclidean", working_memory=64):
        within = squared <= limits[start : start + len(squared), None]
        inside += within.sum(axis=0)
        held.append(within.sum(axis=1))
        start += len(squared)
    return inside, np.concatenate(held)


@dataclass(frozen=True)
class Memory:
    """What `memorisation` finds.

    Attributes:
        distance: float ``(m,)``, of each generated image to the nearest training image.
        nearest: int ``(m,)``, the row of that training image.
        unseen: float ``(u,)``, the same distance for unseen real images.
        threshold: distance below which the share ``quantile`` of the unseen real images lies.
        closer: share of the generated images that are closer than that; chance is ``quantile``.
        found: share of the planted copies that are; None where none were planted.
        quantile: chance.
    """

    distance: np.ndarray
    nearest: np.ndarray
    unseen: np.ndarray
    threshold: float
    closer: Interval
    found: float | None
    quantile: float

    @property
    def suspects(self) -> np.ndarray:
        """Rows of the generated images that are closer than the threshold, the closest first."""
        order = np.argsort(self.distance, kind="stable")
        return order[self.distance[order] < self.threshold]


def memorisation(
    train: np.ndarray,
    fake: np.ndarray,
    unseen: np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    unseen_groups: Sequence[Hashable] | None = None,
    planted: np.ndarray | None = None,
    quantile: float = 0.05,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Memory:
    """How many generated images are closer to a training image than unseen real images are.

    A model that copies has an excellent FID. How close an image may come by chance is what real images of patients that
    were not trained on do (the idea of Meehan et al. 2020). A close image need not be a copy: look at the pairs.

    Args:
        train: features float ``(n, d)`` of training images.
        fake: features float ``(m, d)``.
        unseen: features float ``(u, d)`` of real images not trained on.
        groups: prompt of each generated image, resampled together.
        unseen_groups: patient of each unseen image, likewise.
        planted: features float ``(p, d)`` of copies that should be found, see `copies`: a feature space that does not
            find them cannot acquit the model either.
        quantile: share of the unseen images that count as close.
        n: bootstrap resamples, of generated and unseen images both, for the threshold is an estimate, too.
        level: confidence level.
        seed: of the bootstrap.

    Raises:
        ValueError: features that do not fit each other; ``quantile`` outside (0, 1); unseen images that were seen.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be in (0, 1), got {quantile}")
    pairs = [_pair(train, points)[1] for points in (fake, unseen)]
    index = NearestNeighbors(n_neighbors=1).fit(np.asarray(train, dtype=np.float64))
    (distance, nearest), (away, _) = ([a[:, 0] for a in index.kneighbors(points)] for points in pairs)
    threshold = float(np.quantile(away, quantile))
    if threshold <= 1e-5 * float(np.sqrt((np.asarray(train, dtype=np.float64) ** 2).sum(axis=1).mean())):
        raise ValueError(
            f"{quantile:.0%} or more of the unseen real images are training images: give real images of other patients"
        )
    rng = np.random.default_rng(seed)
    members = _members(groups, len(distance), "generated"), _members(unseen_groups, len(away), "unseen")
    drawn = []
    for _ in range(n):
        some, others = _resampled(distance, members[0], rng), _resampled(away, members[1], rng)
        drawn.append((some < np.quantile(others, quantile)).mean())
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if n else (math.nan, math.nan)
    closer = Interval(float((distance < threshold).mean()), float(low), float(high))
    found = None
    if planted is not None:
        found = float((index.kneighbors(np.asarray(planted, dtype=np.float64))[0] < threshold).mean())
    return Memory(distance, nearest, away, threshold, closer, found, quantile)


def copies(images: np.ndarray, n: int = 32, noise: float = 4.0, seed: int = 0) -> np.ndarray:
    """The first ``n`` images with a little noise, as a model that memorises would draw them, to test `memorisation`.

    Args:
        images: uint8 ``(m, s, s)``, training images.
        n: how many.
        noise: standard deviation in grey values of 255.
        seed: of the noise.

    Returns:
        uint8 ``(n, s, s)``.
    """
    some = _images(images)[:n]
    return (some + np.random.default_rng(seed).normal(0, noise, some.shape)).round().clip(0, 255).astype(np.uint8)


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


def transfer_auc(
    images: np.ndarray,
    labels: np.ndarray,
    real_images: np.ndarray,
    real_labels: np.ndarray,
    folder: Path,
    *,
    patients: Sequence[Hashable] | None = None,
    source: str = "generated",
    epochs: int = 12,
    n: int = 300,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> dict[str, Interval]:
    """A classifier trained on generated images and tested on real ones: are they good for teaching?

    The counterpart of `classifier_auc`, which asks a classifier of real images about generated ones and does not notice
    that they are all alike (train on synthetic, test on real: Ravuri & Vinyals 2019). Compare with the same number of
    *real* training images, given as ``images``: a small number teaches little, whoever drew it.

    Args:
        images: uint8 ``(m, s, s)`` to train on.
        labels: ``(m, 8)``: what their prompts ask for (`asked`).
        real_images: uint8 ``(n, s, s)``, of patients that neither model has seen.
        real_labels: ``(n, 8)``, what they show.
        folder: where the classifier is kept; a second call with the same images, labels and settings reads it.
        patients: of the real images, resampled together.
        source: what the training images are, recorded.
        epochs: passes over them, in batches of an eighth of them, 8 to 64: few images must make some steps, too. A few
            hundred need more than the default to be learnt.
        n: bootstrap resamples. They cover other patients, not another training.
        seed: of training and bootstrap.
        progress: wraps the loop over epochs.

    Returns:
        an interval for each finding, and ``"macro"``; NaN, and not in the macro, where only one class is present among
        the training labels or the real ones.
    """
    images, labels = _images(images), np.asarray(labels, dtype=np.float32)
    real_labels = np.array(real_labels, dtype=np.float32)
    classifier = shared_classifier(
        source,
        folder,
        lambda split: (images, labels) if split == "train" else (real_images, real_labels),
        data=runs.fingerprint(_content(images), _content(labels)),
        epochs=epochs,
        batch=min(64, max(8, len(images) // 8)),
        seed=seed,
        shipped=None,
        progress=progress,
    )
    taught = (labels > 0.5).any(axis=0) & (labels <= 0.5).any(axis=0)
    return classifier_auc(predict(classifier, real_images), np.where(taught, real_labels, 0), patients, n=n, seed=seed)


def scores(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    real_groups: Sequence[Hashable] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Interval]:
    """``fid``, ``precision``, ``recall``, ``density`` and ``coverage`` of two feature sets, with their default ``k``.

    Args:
        real: features float ``(n, d)``, ``n > 5``.
        fake: features float ``(m, d)``, ``m > 3``.
        groups: prompt of each generated image, resampled together.
        real_groups: patient of each real image, likewise.
        resamples: of the FID's bootstrap, the only one that takes time; 0 leaves its bounds NaN.
        seed: of all bootstraps.
    """
    groups = {"groups": groups, "real_groups": real_groups, "seed": seed}
    names = ("precision", "recall", "density", "coverage")
    others = (*precision_recall(real, fake, **groups), *density_coverage(real, fake, **groups))
    return {"fid": fid_interval(real, fake, n=resamples, **groups)} | dict(zip(names, others, strict=True))


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
        `scores`, ``ms_ssim``, ``classifier_auc`` (macro), each with ``_low`` and ``_high``, and ``kid`` with
        ``kid_std`` (over subsets); ``classifier_auc_by_finding`` ``{finding: {estimate, low, high}}``; ``images_real``,
        ``images_fake``.
    """
    real, fake = features(classifier, real_images), features(classifier, fake_images)
    mean, std = kid(real, fake, seed=seed)
    auc = classifier_auc(predict(classifier, fake_images), labels, groups, seed=seed)
    numbers = {
        **scores(real, fake, groups=groups, real_groups=patients, resamples=resamples, seed=seed),
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
        ``classifier_auc_real`` (macro) and, with ``others``, ``fid_real``, ``precision_real``, ``recall_real``,
        ``density_real`` and ``coverage_real``, each with ``_low`` and ``_high``; ``kid_real`` with ``kid_real_std``;
        ``classifier_auc_real_by_finding``.
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
        floor = scores(real, other, real_groups=patients, resamples=resamples, seed=seed)
        numbers |= {f"{name}_real": interval for name, interval in floor.items()}
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
    """Two folders' scores as a table; with ``train`` the training of a feature space's classifier, with ``draw`` the
    images of a run of a profile."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.fidelity",
        description="Scores of a folder of generated images against one of real ones (PNG or JPEG, at any depth). "
        "Images that share a sub-folder are one group (a patient's; a prompt's) and are resampled together.",
    )
    parser.add_argument("--real", type=Path, help="folder of real images, not trained on")
    parser.add_argument("--generated", type=Path, help="folder of generated images")
    parser.add_argument("--training", type=Path, help="folder of training images: are any of them copied?")
    parser.add_argument(
        "--features", default="phantom", help="phantom (default), inception, xrv, or the folder of a trained classifier"
    )
    parser.add_argument("--weights", type=Path, help="folder of the weights of inception or xrv")
    parser.add_argument("--size", type=int, help="pixels to bring all images to (default: the feature space's)")
    parser.add_argument("--fit", choices=("crop", "letterbox"), default="crop", help="of images that are not square")
    parser.add_argument("--cache", type=Path, help="folder to keep the features in")
    parser.add_argument("--resamples", type=int, default=100, help="of the FID's interval; 0: none (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", title="commands")
    train = commands.add_parser("train", help="train a findings classifier, a feature space of its own")
    train.add_argument("--source", default="phantom", help="data source (default: phantom)")
    train.add_argument("--root", help="folder of the data source, where it needs one")
    train.add_argument("--out", type=Path, default=SHIPPED, help="folder to write (default: data/classifier)")
    train.add_argument("--images", type=int, default=6000, help="training images (default: 6000)")
    train.add_argument("--val", type=int, default=1000, help="validation images (default: 1000)")
    train.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
    train.add_argument("--epochs", type=int, default=12)
    train.add_argument("--seed", type=int, default=0)
    draw = commands.add_parser("draw", help="draw the images of a fine-tuned run that chapter 5 scores")
    profiles.add_options(draw)
    options = parser.parse_args(arguments)
    if options.command == "train":
        return _train(options)
    if options.command == "draw":
        return _draw(options)
    if options.real is None or options.generated is None:
        parser.error("--real and --generated are both needed")
    return _score(options)


def _score(options: argparse.Namespace) -> int:
    own = Path(options.features)
    space = load_classifier(own) if own.is_dir() else feature_space(options.features, options.weights)
    space = space.to("cuda" if torch.cuda.is_available() else "cpu")
    size = options.size or space.size
    folders = {"real": options.real, "generated": options.generated, "training": options.training}
    found = {}
    for kind, folder in folders.items():
        if folder is not None:
            bar = lambda items, kind=kind: runs.progress(items, f"features · {kind}")  # noqa: E731
            found[kind] = extract(space, folder, size=size, fit=options.fit, cache=options.cache, progress=bar)
            for line in found[kind].skipped:
                print(f"left out: {line}")
    real, fake = found["real"], found["generated"]
    groups, patients = _folders(fake.names), _folders(real.names)
    common = {"groups": groups, "seed": options.seed}
    table: dict[str, str] = {}
    numbers = scores(real.values, fake.values, real_groups=patients, resamples=options.resamples, **common)
    table["FID ↓"] = _cell(numbers.pop("fid"))
    table["FID∞ ↓"] = f"{fid_infinity(real.values, fake.values, seed=options.seed).estimate:.3f}"
    table["KID ↓ (± over subsets)"] = "{:.4f} ± {:.4f}".format(*kid(real.values, fake.values, seed=options.seed))
    table |= {f"{name} ↑": _cell(interval) for name, interval in numbers.items()}
    pairs = {
        "MS-SSIM of two real": (real, options.real, None),
        "MS-SSIM of two generated": (fake, options.generated, None),
    }
    if groups is not None:
        pairs["MS-SSIM of two generated, one sub-folder"] = (fake, options.generated, groups)
    for name, (images, folder, of) in pairs.items():
        chosen = _pairs_within(of, len(images.names), np.random.default_rng(options.seed))
        if not chosen.size:
            continue
        # Read again, a few of them: no more images are ever held than these.
        pixels = (read_image(folder / images.names[i]) for i in chosen.ravel())
        square = np.stack([Frame(*p.shape, size, options.fit).image(p) for p in pixels])
        alike = ms_ssim_by_group(square, np.repeat(np.arange(len(chosen)), 2).tolist())
        table[name] = _cell(bootstrap_ci(list(alike.values()), seed=options.seed))
    if "training" in found:
        memory = memorisation(found["training"].values, fake.values, real.values, unseen_groups=patients, **common)
        table["closer to a training image than 95 % of the real"] = f"{memory.closer:.1%} (chance: 5 %)"
    print(f"feature space: {describe(space)}")
    for kind, seen in found.items():
        print(f"{kind}: {len(seen.names)} images of {folders[kind]} at {size} px, {len(seen.skipped)} left out")
    print(pd.Series(table).to_string())
    return 0


def _cell(interval: Interval) -> str:
    return str(interval) if math.isfinite(interval.low) else f"{interval.estimate:.3f}"


def _folders(names: Sequence[str]) -> list[str] | None:
    """The sub-folder of each image, or the image itself outside of any; None where that would be one group."""
    groups = [name.rpartition("/")[0] or name for name in names]
    return groups if len(set(groups)) > 1 else None


def _pairs_within(groups: Sequence[Hashable] | None, n: int, rng: np.random.Generator, most: int = 100) -> np.ndarray:
    """Pairs of images int ``(p, 2)``: of any two of all, or one pair of each group that has two; ``most`` at random."""
    if groups is None:
        return _pairs(n, most, rng)
    members = [m for m in _members(groups, n, "generated") if len(m) > 1]
    return np.array([rng.choice(members[i], 2, replace=False) for i in rng.permutation(len(members))[:most]])


def _train(options: argparse.Namespace) -> int:
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


def _draw(options: argparse.Namespace) -> int:
    profile = profiles.load(options.profile)
    run = finetune.check_finished(profiles.run_folder(profile, options.variant, options.seed, options.out))
    main = runs.processes().is_main_process
    pipeline = models.load_pipeline(profile.base, device=PartialState().device)
    studies = profiles.studies(profile, "test", options.data)
    _, kept, _ = to_images(studies, models.image_size(pipeline), profile.data.fit)
    prompts, *_ = requests(kept, profile.sampling)
    steps = (0, *finetune.checkpoints(run))
    with runs.progress(total=len(steps) * len(prompts), description="draw", disable=not main) as bar:
        for step, images in sample_run(pipeline, profile, run, prompts, bar):
            if main:
                bar.write(f"{run}: step {step}, {len(images)} images")
    return 0


if __name__ == "__main__":
    # Under its own name, not as __main__, so that what it saves names this module.
    from chestxai import fidelity as module

    runs.command(module.main)

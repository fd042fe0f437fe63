"""Feature spaces, and the features of images in memory or in a folder.

A *feature space* is any ``nn.Module`` that maps uint8 ``(n, 1, s, s)`` to float ``(n, d)`` by its ``features`` method
or, without one, by its call. Two attributes are optional: ``description``, one line that names network, weights and
preprocessing, and ``size``, the pixels it was made for.
"""

import importlib
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chestxai import runs
from chestxai.fidelity.arrays import Array, Progress, batched, grey, resize
from chestxai.fidelity.classifier import SHIPPED, load_classifier
from chestxai.profiles import SamplingSettings
from chestxai.runs import InputError, MissingError
from chestxai.studies import Fit, Frame, read_image

# The weights of the published FID (TensorFlow's, converted); a name in torch.hub ends in the start of its SHA-256.
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_INCEPTION}"
_XRV = "densenet121-res224-all"
_SUFFIXES = (".png", ".jpg", ".jpeg")


class InceptionSpace(nn.Module):
    """The feature space of the published FID (Heusel et al. 2017): 2048 features of Inception-v3.

    ``network`` is torch-fidelity's ``FeatureExtractorInceptionV3`` for the feature "2048". It takes uint8 RGB; images
    that are not 299 pixels wide are resized as TensorFlow 1 did (bilinear, no antialiasing).
    """

    size, num_features = 299, 2048
    description = (
        "Inception-v3 with the weights of the published FID (2015-12-05), 2048 features at 299 px (grey as RGB, "
        "resized bilinearly as by TensorFlow 1, (pixel − 128) / 128)"
    )

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(grey(images).expand(-1, 3, -1, -1))[0]


class TwiceScaledSpace(InceptionSpace):
    """`InceptionSpace` as the published numbers of Dombrowski et al. and their successors have it ("inception-cd").

    Their code hands pixels in [-1, 1] to a network that expects [0, 1] and scales once more, to [-3, 1]. It is here so
    that their scale can be compared, and wrong for anything else. Images are resized with antialiasing, as there.
    """

    description = (
        "Inception-v3 with the weights of the published FID (2015-12-05), 2048 features at 299 px (grey as RGB, "
        "resized bilinearly with antialiasing, scaled twice: 2 (pixel / 127.5 − 1) − 1, as by chest-distillation)"
    )

    def forward(self, images: Tensor) -> Tensor:
        x = resize(grey(images).float(), self.size)
        x = (4 / 255 * x - 3).expand(-1, 3, -1, -1)
        # The network's own call would scale for a third time, so its layers are called one by one.
        for name, layer in self.network.named_children():
            x = layer(x)
            if name == "AvgPool":
                break
        return x.flatten(1)


class XrvSpace(nn.Module):
    """The feature space of FID-XRV: the 1024 inputs of the classifier of TorchXRayVision's DenseNet-121 (Cohen et al.
    2022), the output of ``trunk``, rectified and averaged over the image. That is
    ``torchxrayvision.models.DenseNet(...).features``, for grey images in [-1024, 1024] at 224 pixels.
    """

    size, num_features = 224, 1024
    description = (
        f"TorchXRayVision DenseNet-121 ({_XRV}), 1024 features at 224 px (grey, resized bilinearly with antialiasing, "
        "black −1024 to white 1024)"
    )

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        x = resize(grey(images).float(), self.size)
        return self.trunk((2 * (x / 255) - 1) * 1024).relu().mean(dim=(2, 3))


def feature_space(source: str = "phantom", folder: Path | None = None) -> nn.Module:
    """The network in whose features images are compared.

    Args:
        source: ``"inception"`` (the published FID's), ``"inception-cd"`` (`TwiceScaledSpace`), ``"xrv"`` (FID-XRV's),
            or the data source of a classifier. A classifier of another one is an InputError.
        folder: of its weights, or their file. Default: the classifier that ships, torch.hub's folder,
            ``~/.torchxrayvision``. Damaged weights are an InputError, missing ones, or a missing package, a
            MissingError that says how to get them.
    """
    if source in ("inception", "inception-cd"):
        network = _inception(_file(folder or Path(torch.hub.get_dir()) / "checkpoints", _INCEPTION))
        return (InceptionSpace if source == "inception" else TwiceScaledSpace)(network).eval()
    if source == "xrv":
        return _xrv(_file(folder or Path.home() / ".torchxrayvision" / "models_data", f"{_XRV}.safetensors"))
    folder = Path(folder or SHIPPED)
    model = load_classifier(folder)
    trained = runs.read_json(folder / "classifier.json")["source"]
    if trained != source:
        raise InputError(
            f"{folder} was trained on {trained!r}, not on {source!r}: train one with train_classifier(), or with "
            f"'python tools/make_classifier.py --source {source} --root FOLDER --out FOLDER'"
        )
    return model


def feature_spaces(settings: SamplingSettings) -> dict[str, nn.Module]:
    """The feature spaces of ``settings.spaces`` besides the findings classifier, by name, on a GPU if there is one.

    Call it before a long run: what is missing is said here, by the errors of `feature_space`.
    """
    names = [name for name in dict.fromkeys(settings.spaces) if name != "findings"]
    files = {name: settings.weights.get(name.removesuffix("-cd")) for name in names}
    return {name: feature_space(name, file and Path(file)).to(runs.device()) for name, file in files.items()}


def _file(place: Path, name: str) -> Path:
    """The file itself, or the one of that name in a folder."""
    place = Path(place)
    return place / name if place.is_dir() or not place.suffix else place


def _inception(path: Path) -> nn.Module:
    advice = (
        f"'pip install torch-fidelity', and download {_INCEPTION_URL} to it, or say in the profile where it is: "
        "sampling: {weights: {inception: /path/to/the/file}}"
    )
    module = _package("torch_fidelity.feature_extractor_inceptionv3", path, "inception", advice)
    if not runs.sha256(path).startswith(expected := Path(_INCEPTION).stem.rpartition("-")[2]):
        raise InputError(f"{path}: damaged, its SHA-256 does not start with {expected}; get it from {_INCEPTION_URL}")
    # torch-fidelity would unpickle the file, which may run code: it gets a copy of the bare tensors in it.
    copy = io.BytesIO()
    torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
    copy.seek(0)
    return module.FeatureExtractorInceptionV3("inception", ["2048"], copy)


def _xrv(path: Path) -> XrvSpace:
    # The published file is a pickle, which this package does not open: the user converts it to plain tensors once.
    convert = (
        f"import pathlib, safetensors.torch, torchxrayvision as xrv; path = pathlib.Path({path.as_posix()!r}); "
        "path.parent.mkdir(parents=True, exist_ok=True); "
        f"safetensors.torch.save_file(xrv.models.DenseNet(weights='{_XRV}').state_dict(), path)"
    )
    advice = f"'pip install torchxrayvision', then download and convert the weights, once, by: python -c \"{convert}\""
    trunk = _package("torchxrayvision", path, "xrv", advice).models.DenseNet(weights=None).features
    prefix = "features."
    tensors = {k.removeprefix(prefix): v for k, v in runs.load_tensors(path).items() if k.startswith(prefix)}
    try:
        trunk.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: not the weights of TorchXRayVision's DenseNet-121 ({error}); {advice}") from error
    return XrvSpace(trunk).eval()


def _package(name: str, weights: Path, space: str, advice: str) -> Any:
    """Import the optional package of a feature space, which needs a file of weights."""
    try:
        if not weights.is_file():
            raise ImportError(f"{weights} is missing")
        # torchxrayvision turns all warnings off when it is imported.
        with warnings.catch_warnings():
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"{error}; the feature space {space!r} needs {weights}: {advice}") from error


def describe(space: nn.Module) -> str:
    """One line that names a feature space: its ``description``, else its class and the hash of its weights."""
    description = getattr(space, "description", "")
    return description or f"{type(space).__qualname__} (weights sha256 {runs.hash_tensors(space.state_dict())[:12]})"


def features(space: nn.Module, images: Array, batch: int = 256) -> Array:
    """Features float32 ``(n, d)`` in a ``space`` of ``images`` uint8 ``(n, s, s)`` in memory, ``batch`` at a time."""
    return batched(space, getattr(space, "features", space), images, batch)


@dataclass(frozen=True)
class Features:
    """The result of `extract`."""

    values: Array  #: float32 ``(n, d)``, for `fid`, `kid`, `precision_recall`, …
    names: tuple[str, ...]  #: the file of each row, relative to the folder
    skipped: tuple[str, ...]  #: one line for each image that cannot be read


def extract(
    space: nn.Module,
    folder: Path,
    size: int,
    *,
    fit: Fit = "crop",
    cache: Path | None = None,
    progress: Progress = iter,
) -> Features:
    """Features of the images in a folder, in bounded memory: only one batch of 64 images and all features are held.

    Each is brought to ``size`` pixels with antialiasing, without which FID measures aliasing (Parmar et al. 2022).

    Args:
        space, size, fit: the feature space, pixels, and "crop" or "letterbox" for images that are not square.
        folder: searched for PNG and JPEG files at any depth; hidden ones are left out. MissingError where there is no
            such folder, InputError where no image can be read or features are not finite.
        cache: folder for the features, in a file for each space, framing and content of the images (read in full).
        progress: wraps the loop over images, e.g. `chestxai.runs.progress`.
    """
    files = _image_files(folder)
    if cache is None:
        return _extract(space, files, size, fit, progress)
    code = describe(space), runs.hash_tensors(space.state_dict()), runs.code_fingerprint(__name__)
    content = ((name, runs.sha256(file)) for name, file in files.items())
    path = Path(cache) / f"{runs.fingerprint(content, code, size, fit)}.safetensors"
    with suppress(FileNotFoundError, InputError):  # a missing or damaged file is made again
        names, skipped = map(tuple, json.loads(runs.tensor_metadata(path)["rows"]))
        return Features(runs.load_tensors(path)["values"].numpy(), names, skipped)
    result = _extract(space, files, size, fit, progress)
    about = {"rows": json.dumps([result.names, result.skipped])}
    runs.save_tensors(path, {"values": torch.from_numpy(result.values)}, about)
    return result


def _extract(space: nn.Module, files: dict[str, Path], size: int, fit: Fit, progress: Progress) -> Features:
    names, skipped, parts = [], [], []

    def frames() -> Iterator[tuple[str, Array]]:
        for name in progress(list(files)):
            try:
                pixels = read_image(files[name])
                yield name, Frame(*pixels.shape, size, fit).image(pixels)
            except InputError as error:
                skipped.append(str(error))

    waiting = frames()
    while some := list(islice(waiting, 64)):
        names += [name for name, _ in some]
        parts.append(features(space, np.stack([image for _, image in some])))
        some.clear()  # not held while the next batch is read
    if not parts:
        raise InputError(f"none of {len(skipped)} images could be read; the first: {skipped[0]}")
    values = np.concatenate(parts)
    if not np.isfinite(values).all():
        raise InputError("some features are NaN or infinite: the images or the network are broken")
    return Features(values, tuple(names), tuple(skipped))


def _image_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise MissingError(f"{folder} is not a folder: give the one that holds the images")
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    files = {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}
    if not files:
        raise InputError(f"{folder} holds no image ({', '.join(_SUFFIXES)})")
    return files

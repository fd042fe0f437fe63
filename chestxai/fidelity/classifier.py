"""A small findings classifier: the default feature space, and the judge of whether an image shows a finding."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from chestxai import profiles, runs
from chestxai.fidelity.arrays import Array, Groups, batched, check_images, grey, resize, to_json
from chestxai.models.small import conv, fit
from chestxai.profiles import DATA, Profile
from chestxai.stats import Interval, bootstrap_statistic
from chestxai.studies import FINDINGS, to_images

#: The classifier that ships, trained on phantoms by ``tools/make_classifier.py``.
SHIPPED = DATA / "classifier"
#: Images uint8 ``(n, s, s)`` and labels ``(n, 8)``, 0 or 1, over `FINDINGS`.
Labelled = tuple[Array, Array]


class FindingsClassifier(nn.Module):
    """uint8 images ``(n, s, s)`` or ``(n, 1, s, s)`` → logits float32 ``(n, 8)`` over `FINDINGS`.

    Images are resized to ``size`` pixels; ``description`` is one line that names training data and weights.
    """

    num_features = 128

    def __init__(self, size: int = 64, description: str = "untrained") -> None:
        super().__init__()
        self.size, self.description = size, description
        first = conv(1, 24, 5, 2), conv(24, 48, 3, 2), conv(48, 48)
        self.trunk = nn.Sequential(*first, conv(48, 80, 3, 2), conv(80, 80), conv(80, 128))
        self.head = nn.Linear(self.num_features, len(FINDINGS))

    def scaled(self, images: Tensor) -> Tensor:
        """Float32 ``(n, 1, size, size)`` in about [-2, 2]; the only place where pixels are normalised."""
        return (resize(grey(images).float(), self.size) - 127.5) / 64

    def features(self, images: Tensor) -> Tensor:
        """Float32 ``(n, 128)``: the trunk's output averaged over the image."""
        return self.trunk(self.scaled(images)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@dataclass(frozen=True)
class Training:
    """What a classifier is trained on and how, as recorded in its ``classifier.json``."""

    source: str = "phantom"
    data: str = ""  #: fingerprint of the training images
    epochs: int = 12
    batch: int = 64
    learning_rate: float = 3e-3  #: peak of the one-cycle schedule
    seed: int = 0  #: of weights, order and augmentation; it gives the same file on the same machine


def train_classifier(
    images: Array, labels: Array, out: Path, training: Training = Training(), val: Labelled | None = None
) -> Path:
    """Train a `FindingsClassifier` and save it as ``out/model.safetensors`` and, last, ``out/classifier.json``.

    AdamW with a one-cycle schedule, on a GPU if there is one; augmented by shifts of up to a sixteenth of the image,
    contrast and brightness, but not mirrored, which would put the heart on the right. ``images`` are uint8 ``(n, s,
    s)``, two at least, and ``labels`` float ``(n, 8)``, 0 or 1, over `FINDINGS`, else InputError; ``training`` has an
    epoch at least; ``val`` are images and labels on which the AUC is recorded.
    """
    images, labels, out = check_images(images), np.asarray(labels, dtype=np.float32), Path(out)
    if labels.shape != (len(images), len(FINDINGS)) or len(images) < 2:
        raise runs.InputError(f"{len(images)} images need labels {(len(images), len(FINDINGS))}, got {labels.shape}")
    if training.epochs < 1:
        raise runs.InputError(f"epochs must be at least 1, got {training.epochs}")
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = FindingsClassifier(images.shape[-1])
    _fit(model, images, labels, training)
    weights = runs.save_tensors(out / "model.safetensors", model.state_dict())
    about = asdict(training) | {
        "code": runs.code_fingerprint(__name__),
        "size": model.size,
        "findings": FINDINGS,
        "images": len(images),
        "val_images": len(val[0]) if val else 0,
        "val_auc": {} if not val or not len(val[0]) else to_json(classifier_auc(predict(model, val[0]), val[1])),
        "sha256": runs.sha256(weights),
    }
    runs.write_json(out / "classifier.json", about)
    return out


def _fit(model: FindingsClassifier, images: Array, labels: Array, training: Training) -> None:
    device, rng = torch.device(runs.device()), np.random.default_rng(training.seed)
    model.to(device, memory_format=torch.channels_last).train()

    def loss(rows: Array) -> Tensor:
        x = model.scaled(torch.from_numpy(_shifted(images[rows], rng)).to(device))
        jitter = torch.from_numpy(rng.normal(0, 0.1, (2, len(rows), 1, 1, 1)).astype(np.float32)).to(device)
        x = (x * (1 + jitter[0]) + jitter[1]).contiguous(memory_format=torch.channels_last)
        logits = model.head(model.trunk(x).mean(dim=(2, 3)))
        return F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels[rows]).to(device))

    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.05)
    description = f"training the classifier · {training.source}"
    fit(optimizer, len(images), loss, training.epochs, rng, training.batch, description)


def _shifted(images: Array, rng: np.random.Generator) -> Array:
    n, height, width = images.shape
    reach = max(1, height // 16)
    offsets = rng.integers(-reach, reach + 1, size=(2, n, 1))
    rows = np.clip(np.arange(height) + offsets[0], 0, height - 1)
    columns = np.clip(np.arange(width) + offsets[1], 0, width - 1)
    return images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def load_classifier(folder: Path) -> FindingsClassifier:
    """Load what `train_classifier` saved in ``folder``, in evaluation mode on the CPU.

    MissingError where there is none, InputError where the weights are not those that ``classifier.json`` describes.
    """
    config, weights = Path(folder) / "classifier.json", Path(folder) / "model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise runs.MissingError(f"{path} is missing: make it with 'python tools/make_classifier.py --out {folder}'")
    about = runs.read_json(config, dict)
    try:
        digest, size, findings = about["sha256"], about["size"], about["findings"]
        origin = f"{about['images']} images of {about['source']} (seed {about['seed']}, sha256 {digest[:12]})"
    except KeyError as error:
        raise runs.InputError(f"{config}: {error} is missing; train the classifier again") from error
    if runs.sha256(weights) != digest:
        raise runs.InputError(f"{weights}: not the file that {config.name} describes (sha256 differs); train it again")
    if tuple(findings) != FINDINGS:
        raise runs.InputError(f"{config}: trained on other findings ({', '.join(findings)}); train it again")
    form = f"{FindingsClassifier.num_features} features at {size} px (grey, resized bilinearly, (pixel − 127.5) / 64)"
    model = FindingsClassifier(size, f"findings classifier, {form}, trained on {origin}")
    model.load_state_dict(runs.load_tensors(weights))
    return model.eval().to(memory_format=torch.channels_last)


def profile_classifier(profile: Profile, data: str | Path = "", out: str | Path | None = None) -> FindingsClassifier:
    """The one classifier that scores all runs on the source of a ``profile``, so that their numbers can be compared.

    It is the one that ships if that was trained on the source; else it is trained on the profile's own training images,
    below ``data``, and kept in its folder below ``out``, the root of the runs.
    """
    if runs.read_json(SHIPPED / "classifier.json", dict)["source"] == profile.data.source:
        return load_classifier(SHIPPED)
    train = profiles.studies(profile, "train", data)

    def labelled(split: str) -> Labelled:
        studies = train if split == "train" else profiles.studies(profile, split, data)
        chosen = profiles.sample(studies, 20_000)
        images, readable, _ = to_images(chosen, min(profile.data.size, 128), profile.data.fit)
        return images, np.array([study.labels() for study in readable]).reshape(-1, len(FINDINGS))

    folder = profiles.profile_folder(profile, out) / "classifier"
    return cached_classifier(folder, labelled, Training(profile.data.source, f"{train.fingerprint}-{profile.data.fit}"))


def cached_classifier(folder: Path, load: Callable[[str], Labelled], training: Training) -> FindingsClassifier:
    """The classifier in ``folder``, trained first if it is missing, damaged, or of another ``training``.

    ``load`` maps "train" and "val" to images and labels, to train only. A file lock lets only the first of several
    processes train; the others wait for its result.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = asdict(training) | {"code": runs.code_fingerprint(__name__)}
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        with suppress(FileNotFoundError, runs.InputError):
            if runs.read_json(folder / "classifier.json", dict).items() >= wanted.items():
                return load_classifier(folder)
        train_classifier(*load("train"), folder, training, val=load("val"))
        return load_classifier(folder)


def predict(classifier: FindingsClassifier, images: Array) -> Array:
    """Probability of each finding by ``classifier``, float32 ``(n, 8)``, for ``images`` uint8 ``(n, s, s)``."""
    return batched(classifier, lambda x: classifier(x).sigmoid(), images)


def macro_auc(scores: Array, labels: Array) -> float:
    """Mean AUC-ROC of ``scores`` and ``labels`` ``(n, k)`` over findings with both classes; NaN if there are none."""
    # Mann–Whitney U of all findings at once, a tie counting one half. scikit-learn's roc_auc_score agrees to rounding
    # (1e-15), but takes 20 to 40 times as long, which a bootstrap of 300 resamples feels.
    positive = np.asarray(labels) > 0.5
    evaluable = positive.any(axis=0) & ~positive.all(axis=0)
    if not evaluable.any():
        return math.nan
    positive, ranks = positive[:, evaluable], stats.rankdata(np.asarray(scores)[:, evaluable], axis=0)
    yes = positive.sum(axis=0)
    u = (ranks * positive).sum(axis=0) - yes * (yes + 1) / 2
    return float(np.mean(u / yes / (len(positive) - yes)))


def classifier_auc(
    probabilities: Array, labels: Array, groups: Groups = None, n: int = 300, seed: int = 0
) -> dict[str, Interval]:
    """AUC of the classifier for each finding, and their mean under ``"macro"``: do images show what was asked for?

    A finding of which only one class is present has NaN, and is left out of the macro. ``probabilities``, float ``(m,
    8)``, are of `predict`; ``labels``, 0 or 1, are the findings that are there (real images) or that the prompt names
    (generated); ``groups`` are patients or prompts, resampled together ``n`` times from ``seed``.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels) > 0.5
    if probabilities.shape != labels.shape or labels.shape[1:] != (len(FINDINGS),):
        shapes = f"(n, {len(FINDINGS)}), got {probabilities.shape} and {labels.shape}"
        raise runs.InputError(f"probabilities and labels must both be {shapes}")
    if not np.isfinite(probabilities).all():
        raise runs.InputError("some probabilities are NaN: the images or the classifier are broken")
    columns = {name: [i] for i, name in enumerate(FINDINGS)} | {"macro": list(range(len(FINDINGS)))}
    pairs = {name: (probabilities[:, some], labels[:, some]) for name, some in columns.items()}
    return {name: bootstrap_statistic(pair, macro_auc, groups, n=n, seed=seed) for name, pair in pairs.items()}

"""The typed, validated settings of the book: one YAML file a profile in ``data/profiles``.

A profile names every number of an experiment, so that the same notebooks run on a laptop in minutes (``demo``), in
continuous integration (``smoke``), on real public X-rays (``open``), and with the paper's own protocol (``paper``).
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chestxai import runs, sources
from chestxai.studies import Fit, Study, phrases

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
RUNS = ROOT / "runs"

#: How the text encoder is treated while the U-Net is fine-tuned.
VARIANTS = ("frozen", "learnable")
Variant = Literal["frozen", "learnable"]
#: How the U-Net runs while its attention is read (see `chestxai.grounding`).
Method = Literal["noised", "inversion", "generation"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(_Settings):
    """Which studies: ``source`` trains the model and gives the real images and prompts of the fidelity scores,
    ``boxes`` (by default the same) gives the phrases that are grounded. The counts cap each split.

    ``options`` are those of a source's ``load``, by the name of the source: ``{vindr: {agree: 3}}``. ``credentialed``
    says whether pages go through `chestxai.guard`; by default the terms of the sources decide (`sources.terms`); only
    ``folder``, one's own data, can be set free."""

    source: str
    boxes: str | None = None
    train: int | None = Field(None, gt=0)
    val: int | None = Field(None, gt=0)
    test: int | None = Field(None, gt=0)
    size: int = Field(64, ge=32, multiple_of=8)
    fit: Fit = "crop"
    options: dict[str, dict[str, Any]] = {}
    credentialed: bool | None = None

    @model_validator(mode="after")
    def _known(self) -> DataSettings:
        used = [*dict.fromkeys((self.source, self.boxes or self.source))]
        unknown = [name for name in used if name not in sources.SOURCES]
        if unknown:
            raise ValueError(f"unknown source {unknown[0]!r}: choose one of {', '.join(sources.SOURCES)}")
        for name, given in self.options.items():
            if name not in used:
                raise ValueError(f"options of {name!r}, which is not read here: the sources are {', '.join(used)}")
            sources.check_options(name, given)
        closed = [name for name in used if sources.terms(name).credentialed and name != "folder"]
        if closed and self.credentialed is False:
            raise ValueError(f"credentialed cannot be false: the terms of {', '.join(closed)} bind each user")
        return self


class FinetuneSettings(_Settings):
    """The training loop. ``batch_size`` is the global one: every process takes an equal share of it.

    ``ucg`` is the share of prompts replaced by the empty one (for classifier-free guidance), ``ema_decay`` the decay
    of the exponential moving average that is saved and scored.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    accumulate: int = Field(1, gt=0)
    learning_rate: float = Field(gt=0)
    text_learning_rate: float = Field(gt=0)
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ucg: float = Field(0.1, ge=0, le=1)
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    checkpoint_every: int = Field(gt=0)
    precision: Literal["no", "fp16", "bf16"] = "no"

    @model_validator(mode="after")
    def _divides(self) -> FinetuneSettings:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        return self


class GroundingSettings(_Settings):
    """The paper's protocol: of ``steps`` denoising steps the ``last`` ones (least noise) are read, every
    ``stride``-th of them; ``target`` says which tokens are read: those naming the finding, or the whole phrase;
    ``method`` how the U-Net runs, ``guidance`` with which scale when it generates."""

    method: Method = "noised"
    guidance: float = Field(4.0, ge=1)
    steps: int = Field(50, gt=0)
    last: int = Field(40, gt=0)
    stride: int = Field(1, gt=0)
    draws: int = Field(1, gt=0)
    target: Literal["finding", "phrase"] = "finding"
    batch: int = Field(64, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> GroundingSettings:
        if self.last > self.steps:
            raise ValueError(f"last {self.last} exceeds steps {self.steps}")
        return self


class SamplingSettings(_Settings):
    """Generated images: how many, with which guidance scale and number of steps, how many for one prompt."""

    images: int = Field(gt=1)
    guidance: float = Field(4.0, ge=1)
    steps: int = Field(75, gt=0)
    per_prompt: int = Field(4, ge=2)
    batch: int = Field(32, gt=0)


class StatisticsSettings(_Settings):
    """Intervals: ``resamples`` patient-clustered bootstrap resamples."""

    resamples: int = Field(2000, ge=100)


class Profile(_Settings):
    """All settings of the book under one name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str
    data: DataSettings
    base: str = "tiny"
    finetune: FinetuneSettings
    grounding: GroundingSettings
    sampling: SamplingSettings
    statistics: StatisticsSettings = StatisticsSettings()
    variants: tuple[Variant, ...] = VARIANTS
    seeds: tuple[int, ...] = (0,)

    @property
    def boxes(self) -> str:
        """Name of the source whose phrases are grounded."""
        return self.data.boxes or self.data.source


def names() -> list[str]:
    """Names of the profiles that ship."""
    return sorted(path.stem for path in (DATA / "profiles").glob("*.yaml"))


def load(name: str | Path) -> Profile:
    """Load a shipped profile by name, or one's own by the path of its YAML file.

    Raises:
        ValueError: unknown name, or a setting that is unknown, missing or out of range; names file and setting.
    """
    own = str(name).endswith((".yaml", ".yml"))
    path = Path(name) if own else DATA / "profiles" / f"{name}.yaml"
    if not (path.is_file() if own else name in names()):
        raise ValueError(
            f"unknown profile {str(name)!r}: choose one of {', '.join(names())}, or give the path of a .yaml file"
        )
    try:
        content: Any = yaml.safe_load(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected settings, found {type(content).__name__}")
        return Profile.model_validate({"name": path.stem, **content})
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {told(error)}") from error


def told(error: ValidationError, whole: str = "profile") -> str:
    """What is wrong with which setting, in one line; ``whole`` is what to call all of them together."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or whole}: {e['msg']} (got {e['input']!r})" for e in error.errors()
    )


def profile_folder(profile: Profile, out: str | Path | None = None) -> Path:
    """``runs/<profile>``, where everything that a profile's runs share is kept (``out`` replaces ``runs/``)."""
    return Path(out or RUNS) / profile.name


def run_folder(profile: Profile, variant: str, seed: int, out: str | Path | None = None) -> Path:
    """``runs/<profile>/<variant>/seed-<n>``, the folder of one run."""
    return profile_folder(profile, out) / check_variant(variant) / f"seed-{seed}"


def about(profile: Profile, data: str | Path = "") -> dict[str, Any]:
    """What a run's record must say of its settings to be repeated: the whole profile, and the folder of the data."""
    return {"profile": profile.model_dump(mode="json"), "data_root": str(Path(data).resolve()) if data else ""}


def add_options(parser: ArgumentParser) -> None:
    """The options of a command about one run: profile, variant, seed, data and out."""
    parser.add_argument("--profile", default="demo", help="a name in data/profiles or a .yaml file (default: demo)")
    parser.add_argument("--variant", default="frozen", help="treatment of the text encoder (default: frozen)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--data", default="", help="folder that holds one sub-folder per source (openi/, nih/)")
    parser.add_argument("--out", type=Path, help="root of the runs (default: runs/)")


def check_variant(name: str) -> str:
    """``name`` if it is a known text-encoder treatment.

    Raises:
        ValueError: listing the known ones.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}: choose one of {', '.join(VARIANTS)}")
    return name


def studies(profile: Profile, split: str, data: str | Path = "", *, boxes: bool = False) -> sources.Studies:
    """The profile's studies of one split: of its training source, or with ``boxes=True`` of its grounding source.

    ``data`` is the folder that holds one sub-folder per source (``openi/``, ``nih/``); phantoms need none. Options of
    the source are part of the fingerprint: some change what a study does not say, such as the fineness of its masks.
    """
    name = profile.boxes if boxes else profile.data.source
    options = profile.data.options.get(name, {})
    count = getattr(profile.data, split, None)
    if name == "phantom":
        return sources.load(name, split=split, n=count or 1000, size=profile.data.size, **options)
    if not data:
        raise ValueError(
            f"profile {profile.name!r} reads {name!r} from disk: say where, as in "
            f"'make book PROFILE={profile.name} DATA=/path/to/folder', the folder that holds {name}/"
        )
    found = sources.load(name, root=Path(data) / name, split=split, **options)
    if options:
        found.fingerprint = runs.fingerprint(found.fingerprint, options)
    # Of a source that is scored, only studies with something to point at count.
    chosen = [s for s in found if phrases([s])] if boxes else list(found)
    if count is None or len(chosen) <= count:
        return sources.Studies(chosen, skipped=found.skipped, fingerprint=found.fingerprint)
    return sources.Studies(chosen[:count], skipped=found.skipped, fingerprint=f"{found.fingerprint}-{count}")


def check_data(profile: Profile, data: str | Path = "", known: dict[Any, Any] | None = None) -> dict[str, str]:
    """Look before a long run whether the profile's data are there, and what they are.

    Args:
        profile: the settings.
        data: folder that holds one sub-folder per source.
        known: what other profiles of the same batch have found; each split of a source is loaded once.

    Returns:
        split ("train", …, "boxes test") → fingerprint of what its source holds. Nothing for phantoms: they are made, by
        code and settings.

    Raises:
        ValueError, FileNotFoundError: as `studies`; no test image has a box to be scored against.
    """
    known = {} if known is None else known
    found: dict[str, str] = {}
    for name, boxes in ((profile.data.source, False), (profile.boxes, True)):
        source = name, runs.fingerprint(profile.data.options.get(name, {}))
        for split in ("test", "train", "val") if name != "phantom" else ():
            if (source, split, boxes) not in known:
                loaded = studies(profile.model_copy(update={"data": _whole(profile.data)}), split, data, boxes=boxes)
                if split == "test" and not loaded:
                    what = "box" if boxes else "image"
                    reasons = "; ".join(f"{n} × {reason}" for reason, n in list(loaded.reasons().items())[:3])
                    raise ValueError(f"{Path(data) / name}: no study of the test split has a usable {what} ({reasons})")
                known[source, split, boxes] = loaded.fingerprint
                # Of one source, the same studies are looked at for their boxes in the test split alone.
                if not boxes and split != "test":
                    known[source, split, True] = loaded.fingerprint
            found[f"boxes {split}" if boxes else split] = known[source, split, boxes]
    return found


def _whole(settings: DataSettings) -> DataSettings:
    return settings.model_copy(update={"train": None, "val": None, "test": None})


def sample(items: list[Study], n: int, seed: int = 0) -> list[Study]:
    """``n`` of ``items``, spread evenly by a seeded shuffle; all of them when there are fewer."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(items))[:n]
    return [items[i] for i in sorted(order)]

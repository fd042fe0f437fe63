"""The typed, validated settings of the book: one YAML file a profile in ``data/profiles``.

A profile names every number of an experiment, so that the same notebooks run on a laptop in minutes (``demo``), in
continuous integration (``smoke``), on real public X-rays (``open``), and with the paper's own protocol (``paper``).
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, field_validator, model_validator

from chestxai import runs, sources
from chestxai.recipes import Recipe, Settings
from chestxai.runs import InputError, MissingError, Run
from chestxai.studies import Fit, Study, phrases

ROOT = runs.ROOT
DATA = ROOT / "data"
#: The bases that ship, and their folders: see `models.load_pipeline`.
SHIPPED = {"tiny": DATA / "tiny", "tiny-code": DATA / "tiny", "tiny-velocity": DATA / "tiny-velocity"}
RUNS = (ROOT if runs.CHECKOUT else Path.cwd()) / "runs"

#: Name of a profile or variant: it becomes the name of a folder.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
# What a name must be, in words, by its pattern.
_FORMS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "use letters, digits, '.', '_' and '-' alone, for it becomes the name of a folder",
    r"\w": "it must name something",
}
#: How the U-Net runs while its attention is read (see `chestxai.grounding`).
Method = Literal["noised", "inversion", "generation"]
#: Whole numbers of things, and learning rates; more is a slip, of which nobody wants to wait for the end.
Count = Annotated[int, Field(gt=0, le=10**7)]
Rate = Annotated[float, Field(gt=0, le=10)]
#: What an endpoint may be: scores with a chance, of which more is better.
Points = Literal[
    "gain_auc_roc", "word", "mirror", "mirror_sided", "conflict", "presence", "gain_word", "auc_roc", "pointing_game",
    "cnr", "iou", "dice", "miou", "bbox_iou",
]  # fmt: skip
_Thousand = Annotated[int, Field(gt=0, le=1000)]


def _from_noise(steps: Any) -> Any:
    """DDIM's timesteps are multiples of a whole number, so with many steps it may begin where an image is left."""
    if isinstance(steps, int) and steps > 100 and (first := (steps - 1) * (1000 // steps)) < 890:
        raise ValueError(f"{steps} steps would begin at timestep {first} of 1,000: 125, 200, 250 and 500 do not")
    return steps


_Steps = Annotated[_Thousand, BeforeValidator(_from_noise)]
_Batch = Annotated[int, Field(gt=0, le=100_000)]


class DataSettings(Settings):
    """The studies."""

    source: str  #: trains the model, and supplies the real images and the prompts of the fidelity scores
    boxes: str | None = None  #: supplies the phrases that are grounded; default: ``source``
    train: Count | None = Field(None, gt=1)  #: at most so many studies of the split
    val: Count | None = None
    test: Count | None = Field(None, gt=1)
    size: int = Field(64, ge=32, le=2048, multiple_of=8)  #: side of the images in pixels
    fit: Fit = "crop"  #: how an image becomes a square
    options: dict[str, dict[str, Any]] = Field({})  #: of each source's ``load``, by its name: ``{vindr: {agree: 3}}``
    #: Whether pages are guarded (`chestxai.book.guard`); default: the terms of the sources decide (`sources.terms`).
    #: Only ``folder``, the user's own data, can be set to false.
    credentialed: bool | None = None

    @model_validator(mode="after")
    def _known(self) -> DataSettings:
        used = [*dict.fromkeys((self.source, self.boxes or self.source))]
        closed = [name for name in used if sources.terms(name).credentialed and name != "folder"]
        for name, options in self.options.items():
            if name not in used:
                raise ValueError(f"options of {name!r}, which is not read here: the sources are {', '.join(used)}")
            sources.check_options(name, options)
        if closed and self.credentialed is False:
            raise ValueError(f"credentialed cannot be false: the terms of {', '.join(closed)} bind each user")
        return self


class FinetuneSettings(Settings):
    """The training loop."""

    steps: Count  #: optimiser steps
    batch_size: _Batch  #: images per step over all processes, each of which takes an equal share
    accumulate: Count = 1  #: parts into which a process splits its share, to save memory
    learning_rate: Rate  #: of the U-Net
    text_learning_rate: Rate  #: of what learns of the text encoder
    warmup: int = Field(0, ge=0, le=10**7)  #: steps of linear warm-up
    weight_decay: float = Field(0.01, ge=0, le=10)  #: of AdamW
    max_grad_norm: float = Field(1.0, gt=0)  #: of gradient clipping
    ucg: float = Field(0.1, ge=0, le=1)  #: share of prompts replaced by the empty one, for classifier-free guidance
    #: γ of the min-SNR weighting of timesteps (Hang et al. 2023); default: all weigh the same.
    min_snr: float | None = Field(None, gt=0)
    ema_decay: float = Field(0.9999, ge=0, lt=1)  #: of the moving average of the weights, which is saved and scored
    checkpoint_every: Count  #: steps between checkpoints
    precision: Literal["no", "fp16", "bf16"] = "no"  #: of the computation on a GPU
    #: Compute activations again in the backward pass instead of keeping them: the same numbers in a third more time.
    gradient_checkpointing: bool = False
    #: ``adamw8bit`` has moments of a byte each (Dettmers et al. 2022); it needs the package bitsandbytes and a GPU.
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    #: Type of what learns, its gradients and moments. With ``bf16``, which needs ``precision: bf16``, a change of less
    #: than 1/256 of a weight is lost. What is saved are the averages.
    weights: Literal["fp32", "bf16"] = "fp32"
    averages: Literal["device", "cpu"] = "device"  #: where the float32 averages of the weights are kept

    @model_validator(mode="after")
    def _divides(self) -> FinetuneSettings:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.weights == "bf16" != self.precision:
            raise ValueError(f"weights bf16 need precision bf16, not {self.precision!r}")
        return self


class GroundingSettings(Settings):
    """How heatmaps are read: at every ``stride``-th of the ``last`` (least noisy) of ``steps`` denoising steps."""

    method: Method = "noised"  #: how the U-Net runs
    guidance: float = Field(4.0, ge=1, le=1000)  #: scale of classifier-free guidance, for ``generation``
    steps: _Steps = 50
    last: Count = 40
    stride: Count = 1
    draws: _Thousand = 1  #: noises per timestep
    target: Literal["finding", "phrase"] = "finding"  #: tokens that are read: those naming the finding, or all
    batch: _Batch = 64  #: rows of one pass through the U-Net
    swaps: _Thousand = 4  #: images of other patients on which each phrase is read again (`chestxai.faithfulness`)
    swap_every: Count = 4  #: … at every so-manieth of the timesteps, from the least noisy on

    @model_validator(mode="after")
    def _fits(self) -> GroundingSettings:
        if self.last > self.steps:
            raise ValueError(f"last {self.last} exceeds steps {self.steps}")
        return self


class SamplingSettings(Settings):
    """Generated images."""

    images: int = Field(gt=1, le=10**6)  #: number of images
    guidance: float = Field(4.0, ge=1, le=1000)  #: scale of classifier-free guidance
    steps: _Steps = 75  #: steps of the sampler
    sampler: Literal["ddim", "plms"] = "ddim"  #: PLMS (Liu et al. 2022) needs one pass more
    per_prompt: int = Field(4, ge=2, le=1000)  #: images for each prompt
    #: Of which texts: the reports of held-out studies as often as they occur, or evenly, the same number of phrases of
    #: each finding (see `chestxai.fidelity.requests`).
    prompts: Literal["reports", "evenly"] = "reports"
    batch: _Batch = 32  #: images generated together
    #: Feature spaces of FID, KID and their kind, always ``findings``; scores of others have its name: ``fid_xrv``.
    spaces: tuple[Literal["findings", "inception", "inception-cd", "xrv"], ...] = ("findings",)
    #: Files of weights that cannot be fetched by themselves, by the name of the space.
    weights: dict[Literal["inception", "xrv"], str] = Field(default_factory=dict)


class StatisticsSettings(Settings):
    """Intervals and the endpoint."""

    resamples: int = Field(2000, ge=100, le=10**6)  #: number of patient-clustered bootstrap resamples
    #: Columns of ``grounding.csv`` that decide the verdict, declared before any map is scored: a variant points if it
    #: passes all of them (what the image adds, and what the word adds).
    endpoint: tuple[Points, ...] = Field(("gain_auc_roc", "word"), min_length=1)
    #: Further columns of it that chapter 8 compares; their p-values are adjusted for their number (Holm).
    secondary: tuple[str, ...] = (
        *("mirror", "mirror_sided", "conflict", "gain_word", "auc_roc", "auc_roc_shuffled", "auc_roc_field"),
        *("average_precision", "pointing_game", "cnr", "iou", "miou", "bbox_iou"),
    )

    @field_validator("endpoint", "secondary")
    @classmethod
    def _is_scored(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        scores = [*runs.read_yaml(DATA / "words" / "scores.yaml")]
        if unknown := {*names} - {*scores[scores.index("gain_auc_roc") :]}:  # those before it are of sets of images
            what = "no score of a phrase is called {}; data/words/scores.yaml lists them, from gain_auc_roc on"
            raise ValueError(what.format(", ".join(sorted(unknown))))
        return tuple(dict.fromkeys(names))


def _by_name(value: Any) -> Any:
    """A list of variants as a mapping; each must be a ``text`` of a recipe."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(set(map(str, value))) != len(value):
        raise ValueError(f"{list(value)} repeats a variant")
    return {name: name for name in value}


class Profile(Settings):
    """All settings of the book under one name.

    A *variant* is a name for a recipe. ``variants`` maps names to recipes; the first one is the reference that the
    others are compared with. ``text_encoder`` names one that takes the place of the base's own (`models.load_base`).
    ``long_prompts``: what does not fit the text encoder is cut off, or every prompt is read in windows side by side
    (CLIP alone; see `models.read_in_windows`), in training, maps and images alike.
    A recipe may be written as its ``text`` alone, and ``[frozen, learnable]`` stands for
    ``{frozen: {text: frozen}, learnable: {text: learnable}}``.
    """

    name: Name
    description: str
    data: DataSettings
    base: str = Field("tiny", pattern=r"\w", max_length=1000)
    text_encoder: str | None = Field(None, pattern=r"\w", max_length=1000)
    long_prompts: Literal["cut", "chunked"] = "cut"
    finetune: FinetuneSettings
    grounding: GroundingSettings
    sampling: SamplingSettings
    statistics: StatisticsSettings = StatisticsSettings()
    variants: Annotated[dict[Name, Recipe], BeforeValidator(_by_name)] = Field(
        {"frozen": Recipe(), "learnable": Recipe(text="learnable")}, min_length=1
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32, strict=True)], ...] = Field((0,), min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _distinct(self) -> Profile:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} repeats a seed")
        folders = [name.lower() for name in self.variants]
        for name in self.variants:
            # These are the folders of what runs share. Not every file system tells capitals apart.
            if folders.count(name.lower()) > 1 or name.lower() in ("cache", "classifier", "baselines"):
                raise ValueError(f"variants: the folder of {name!r} would be that of something else; use another name")
        return self

    def recipe(self, variant: str) -> Recipe:
        """The recipe of a variant; InputError lists those that the profile has if there is none of that name."""
        if variant not in self.variants:
            names = ", ".join(self.variants)
            raise InputError(f"profile {self.name!r} has no variant {variant!r}: choose one of {names}")
        return self.variants[variant]

    @property
    def boxes(self) -> str:
        """Name of the source whose phrases are grounded."""
        return self.data.boxes or self.data.source


def names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in (DATA / "profiles").glob("*.yaml"))


def load(name: str | Path) -> Profile:
    """Load a shipped profile by name, or any by the path of its YAML file; InputError names file and wrong setting."""
    own = str(name).endswith((".yaml", ".yml"))
    path = Path(name) if own else DATA / "profiles" / f"{name}.yaml"
    if not (path.is_file() if own else name in names()):
        raise InputError(
            f"unknown profile {str(name)[:200]!r}: choose one of {', '.join(names())}, or give the path of a .yaml file"
        )
    try:
        return Profile.model_validate({"name": path.stem, **runs.read_yaml(path)})
    except ValidationError as error:
        raise InputError(f"{path}: {describe_errors(error)}") from error


def describe_errors(error: ValidationError, whole: str = "profile") -> str:
    """Validation errors on one line. ``whole`` names the object when an error belongs to no single field."""

    def words(e: Any) -> str:
        form = _FORMS.get(e.get("ctx", {}).get("pattern", ""), e["msg"][:400])
        return f"{'.'.join(map(str, e['loc']))[:200] or whole}: {form} (got {repr(e['input'])[:80]})"

    return "; ".join(map(words, error.errors()[:10]))


def profile_folder(profile: Profile, out: str | Path | None = None) -> Path:
    """``runs/<profile>``, where everything that a profile's runs share is kept (``out`` replaces ``runs/``)."""
    return Path(out or RUNS) / profile.name


def run(profile: Profile, variant: str, seed: int, out: str | Path | None = None) -> Run:
    """The run ``<out>/<profile>/<variant>/seed-<n>`` (``out`` replaces ``runs/``), whether it exists or not.

    InputError where the profile has no such variant, or no seed can have that number.
    """
    profile.recipe(variant)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is negative" if seed < 0 else f"seed {str(seed)[:40]} is not below 2**32")
    return Run(profile_folder(profile, out) / variant / f"seed-{seed}")


def about(profile: Profile, variant: str, data: str | Path = "") -> dict[str, Any]:
    """What ``run.json`` needs so that the run can be repeated: the profile, the variant and the data's folder."""
    root = str(Path(data).resolve()) if data else ""
    return {"variant": variant, "profile": profile.model_dump(mode="json"), "data_root": root}


def add_options(parser: ArgumentParser) -> None:
    """Add the options of a command that concerns one run: profile, variant, seed, data and out."""
    parser.add_argument("--profile", default="demo", help="a name in data/profiles or a .yaml file (default: demo)")
    parser.add_argument("--variant", help="a variant of the profile (default: its first)")
    parser.add_argument("--seed", type=runs.whole(0, 2**32 - 1), default=0, help="(default: 0)")
    parser.add_argument("--data", default="", help="folder that holds one sub-folder per source (openi/, nih/)")
    parser.add_argument("--out", type=Path, help="root of the runs (default: runs/)")


def run_parser(name: str, description: str) -> ArgumentParser:
    """The parser of ``python -m chestxai.<name>``, a command with a ``description`` that has `add_options`."""
    parser = ArgumentParser(prog=f"python -m chestxai.{name}", description=description)
    add_options(parser)
    return parser


def chosen(options: Namespace) -> tuple[Profile, str, Run]:
    """The profile, variant and run that the ``options`` of `add_options` name; raises as `load` and `run`."""
    profile = load(options.profile)
    variant = options.variant or next(iter(profile.variants))
    return profile, variant, run(profile, variant, options.seed, options.out)


def studies(profile: Profile, split: str, data: str | Path = "", *, boxes: bool = False) -> sources.Studies:
    """The studies of one ``split`` ("train", "val" or "test") of a ``profile``.

    ``data`` is the folder that holds one sub-folder per source (``openi/``, ``nih/``); phantoms need none. InputError
    or MissingError where it is needed, or cannot be used. With ``boxes`` the source whose phrases are grounded is read
    instead of the training source.
    """
    name = profile.boxes if boxes else profile.data.source
    options = profile.data.options.get(name, {})
    count = getattr(profile.data, split, None)
    if name == "phantom":
        return sources.load(name, split=split, n=count or 1000, size=profile.data.size, **options)
    if not data:
        raise InputError(
            f"profile {profile.name!r} reads {name!r} from disk: say where, as in "
            f"'make book PROFILE={profile.name} DATA=/path/to/folder', the folder that holds {name}/"
        )
    loaded = sources.load(name, root=Path(data) / name, split=split, **options)
    if options:
        # Some options change what a study does not say, such as the resolution of its masks.
        loaded.fingerprint = runs.fingerprint(loaded.fingerprint, options)
    # In a source that is scored, only studies with something to point at count.
    chosen = [s for s in loaded if phrases([s])] if boxes else list(loaded)
    some = "" if count is None or len(chosen) <= count else f"-{count}"
    return sources.Studies(chosen[:count], skipped=loaded.skipped, fingerprint=f"{loaded.fingerprint}{some}")


def check_packages(settings: FinetuneSettings) -> None:
    """Raise a `MissingError` that names what the ``settings`` need and is not installed."""
    if settings.optimizer == "adamw8bit" and not find_spec("bitsandbytes"):
        raise MissingError(
            "finetune.optimizer adamw8bit needs bitsandbytes: '.venv/bin/python -m pip install bitsandbytes'"
        )


def check_data(profile: Profile, data: str | Path = "", cache: dict[Any, Any] | None = None) -> dict[str, str]:
    """Check before a long run whether the data of a profile can be used; ``profile`` and ``data`` as in `studies`.

    Returns the fingerprint of each split ("train", …, "boxes test"); phantoms have none: code and settings make them.
    ``cache`` is shared by the profiles of one batch, so that each split of a source is loaded once. InputError or
    MissingError: as `studies`; a split has no image; no test image has a box to be scored against, or no other a box; a
    package that the settings need is missing.
    """
    check_packages(profile.finetune)
    cache, prints, lacking = {} if cache is None else cache, {}, []
    all_studies = profile.data.model_copy(update={"train": None, "val": None, "test": None})
    whole = profile.model_copy(update={"data": all_studies})
    for name, boxes in ((profile.data.source, False), (profile.boxes, True)):
        if name == "phantom":
            continue
        source, pointing = (name, runs.fingerprint(profile.data.options.get(name, {}))), False
        for split in ("test", "train", "val"):
            if (source, split, boxes) not in cache:
                loaded = studies(whole, split, data, boxes=boxes)
                # What is scored is one patient against another.
                if len({study.patient for study in loaded}) < 2 - boxes and (split == "test" or not boxes):
                    reasons = "; ".join(f"{n} × {reason}" for reason, n in list(loaded.reasons().items())[:3])
                    number = "only one patient" if loaded else "no study"
                    what = f"{number} of the {split} split has a usable {'box' if boxes else 'image'}"
                    lacking.append(f"{Path(data) / name}: {what} ({reasons or 'none is listed'})")
                # Of one source, boxes are a further condition in the test split alone.
                for kind in {boxes, boxes or split != "test"}:
                    cache[source, split, kind] = loaded.fingerprint, any(phrases([study]) for study in loaded)
            prints[f"boxes {split}" if boxes else split], boxed = cache[source, split, boxes]
            pointing |= boxed and split != "test"
        if boxes and not pointing:
            what = "no study of train or val has a box, of which location priors are made"
            lacking.append(f"{Path(data) / name}: {what}")
    if lacking:
        raise InputError(f"{'; '.join(lacking)}. The chapters need train, val and test, of two patients each at least")
    return prints


def base_folder(base: str | Path) -> Path | None:
    """Folder of a ``base``: one of `SHIPPED`, or one in diffusers format; None for a hub id.

    MissingError says what a base may be where it is none of these.
    """
    folder = SHIPPED.get(str(base), Path(base))
    remedy = "Give 'tiny', a folder in diffusers format (model_index.json, unet/, vae/, … as safetensors), or a hub id"
    if not folder.is_dir():
        if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(base)):
            return None
        raise MissingError(f"cannot load the base model {str(base)!r}: there is no such folder. {remedy}")
    if not (folder / "model_index.json").is_file():
        raise MissingError(f"cannot load the base model {str(base)!r}: no model_index.json in it. {remedy}")
    return folder


def sample(items: Sequence[Study], n: int, seed: int = 0) -> list[Study]:
    """``n`` of ``items`` in their order, chosen by a shuffle with this ``seed``; all of them when there are fewer."""
    order = np.random.default_rng(seed).permutation(len(items))[:n]
    return [items[i] for i in sorted(order)]

"""Loading and saving: what a base is, is asked here, so that nothing later meets a part that does not fit."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from tokenizers import normalizers
from transformers.utils import logging as transformers_logging

from chestxai import encoders, recipes, runs
from chestxai.encoders import CONVERT, adopt_encoder, hub_reason, minilm, scramble_words
from chestxai.encoders import text_encoder as load_text_encoder
from chestxai.models.kinds import Kind, kind_of, text_width
from chestxai.models.schedules import trained_with
from chestxai.models.text import WINDOWS, read_in_windows
from chestxai.profiles import SHIPPED, Profile, base_folder
from chestxai.runs import DivergedError, InputError, MissingError

TINY = SHIPPED["tiny"]
# Beside a pipeline whose recipe plain diffusers does not know.
_RECIPE, _REFERENCE = "recipe.json", "text_encoder_before"

# diffusers asks for a safety checker of natural images and for a CLIP text encoder where we have a BERT: noise to a
# reader of the book.
for _name in ("stable_diffusion.pipeline_stable_diffusion", "pipeline_utils", "pipeline_loading_utils"):
    logging.getLogger(f"diffusers.pipelines.{_name}").setLevel(logging.ERROR)
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_pipeline(
    base: str | Path = "tiny",
    text_encoder: str | Path | None = None,
    device: str | torch.device | None = None,
    text_projection: Literal["none", "linear"] = "none",
    long_prompts: Literal["cut", "chunked"] | None = None,
) -> DiffusionPipeline:
    """Load a latent diffusion pipeline in float32, in eval mode, on ``device``.

    Its denoiser is ``pipeline.unet`` whatever its kind, also that of a transformer.

    Args:
        base: "tiny" (ships in ``data/tiny``), "tiny-code" (the same, but its text encoder does not know the language,
            see `scramble_words`), "tiny-velocity" (of its own training: predicts the velocity, knows left from right),
            a local folder in diffusers format, or a hub id, of a class in `KINDS`. A folder without a text encoder of
            its own, like the tiny bases, gets all-MiniLM-L6-v2.
        text_encoder: another Hugging Face text encoder (see `encoders.text_encoder`), local folder or hub id, for a
            base with one.
        device: default: a GPU if there is one, else the CPU.
        text_projection: "linear" puts a linear layer, drawn with seed 0, between a text encoder and a U-Net of
            different widths; it learns with the U-Net. With "none" their widths must be equal.
        long_prompts: see `read_in_windows`; default: as the pipeline was saved.

    Raises:
        FileNotFoundError: the base or the text encoder is not there; says how to get it.
        ValueError: the parts do not fit together, or a file's checksum is not the recorded one.
    """
    name = str(base)
    if name in SHIPPED:
        _verify(SHIPPED[name])
    folder = base_folder(base)
    kind, pipeline = _read(name, folder, text_encoder)
    _check_weights(pipeline, name, folder, [p for p in kind.networks if text_encoder is None or p != "text_encoder"])
    adopt_pipeline(pipeline)
    if text_projection == "linear":
        recipes.add_projection(pipeline)
    _check_fit(pipeline, name, kind)
    if name == "tiny-code":
        scramble_words(pipeline.text_encoder, pipeline.tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    if folder and (folder / _RECIPE).is_file():
        _attach(pipeline, folder)
    if long_prompts:
        read_in_windows(pipeline, long_prompts)
    for part in kind.networks:
        getattr(pipeline, part).eval().requires_grad_(False)
    return pipeline.to(device or runs.device())


def load_base(profile: Profile, device: str | torch.device | None = None) -> DiffusionPipeline:
    """`load_pipeline`, on ``device``, of what the runs of a ``profile`` start from.

    The profile names the base, a text encoder for it, and how long prompts are read; its recipes say whether there is a
    layer between base and encoder.
    """
    linear = any(recipe.text_projection == "linear" for recipe in profile.variants.values())
    projection = "linear" if linear else "none"
    return load_pipeline(profile.base, profile.text_encoder, device, projection, profile.long_prompts)


def _read(base: str, folder: Path | None, text_encoder: str | Path | None) -> tuple[Kind, DiffusionPipeline]:
    """The kind of a base, and its pipeline as diffusers reads it."""
    parts: dict[str, Any] = {}
    try:
        name = str(DiffusionPipeline.load_config(str(folder or base)).get("_class_name"))
        try:
            kind = kind_of(name)
        except InputError as error:
            raise InputError(f"{folder or base} {error}") from None
        if text_encoder is not None and len(kind.encoders) > 1:
            raise InputError(f"{folder or base}: of a {name}, which has two text encoders, none can be replaced")
        if text_encoder is not None or (folder and not (folder / "text_encoder").is_dir()):
            both = minilm() if text_encoder is None else load_text_encoder(text_encoder)
            parts = dict(zip(("tokenizer", "text_encoder"), both, strict=True))
        if name == "StableDiffusionPipeline":
            parts |= {"safety_checker": None, "requires_safety_checker": False}
        variant = _variant(folder, [part for part in kind.networks if part not in parts]) if folder else None
        pipeline = getattr(diffusers, name).from_pretrained(
            str(folder or base), use_safetensors=True, dtype=torch.float32, variant=variant, **parts
        )
    except InputError:
        raise
    except OSError as error:
        needed = ("unet", "vae", "scheduler") if folder else ()
        absent = [part for part in needed if not (folder / part).is_dir() and not (folder / "transformer").is_dir()]
        reason = f"missing: {', '.join(absent)}" if absent else hub_reason(error)
        raise MissingError(f"cannot load the base model {base!r}: {reason}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot load the base model {base!r}: damaged, or of another kind ({reason})") from error
    return kind, pipeline


def adopt_pipeline(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Make a pipeline of any kind what the book expects: its denoiser is ``unet``, its tokenizer reads as it does.

    It is changed in place. InputError for a class that is not read.
    """
    kind = kind_of(pipeline)
    pipeline.unet = getattr(pipeline, kind.denoiser)
    pipeline.unet.latent_pixels = int(pipeline.vae_scale_factor)
    for name in kind.encoders:
        adopt_encoder(getattr(pipeline, name))
    tokenizer = pipeline.tokenizer
    tokenizer.windows = WINDOWS if getattr(pipeline.text_encoder.config, "window", None) else 1
    if len(kind.encoders) > 1:
        pipeline.tokenizer_2.model_max_length = tokenizer.model_max_length
    if kind.length:
        tokenizer.model_max_length, tokenizer.padding_side = min(tokenizer.model_max_length, kind.length), "right"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if kind.length and backend is not None and "Lowercase" not in str(backend.normalizer):
        both = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(both)
    side = pipeline.unet.config.sample_size
    if isinstance(side, (list, tuple)) and len(set(side)) == 1:
        pipeline.unet.register_to_config(sample_size=int(side[0]))
    return pipeline


def _attach(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Make a loaded pipeline read texts as the recipe beside it says."""
    path = folder / _RECIPE
    try:
        recipe = recipes.Recipe.model_validate_json(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path}: a recipe of another class; load its base and use finetune.load_checkpoint with recipe=…"
        ) from error
    reference = None
    if recipe.splits:
        kind = type(pipeline.text_encoder)
        try:
            reference = kind.from_pretrained(folder / _REFERENCE, use_safetensors=True, dtype=torch.float32)
        except OSError as error:
            raise MissingError(f"{folder / _REFERENCE}: damaged or missing; fine-tune the run again") from error
        adopt_encoder(reference)
    recipes.attach(pipeline, recipe, reference)


def _weights(folder: Path, variant: str = "") -> list[Path]:
    """The safetensors of a part, in one file or several."""
    return [
        p for p in folder.glob("*.safetensors") if re.fullmatch(rf"[\w-]+?{re.escape(variant)}(-\d+-of-\d+)?", p.stem)
    ]


def _variant(folder: Path, parts: Sequence[str]) -> str | None:
    """ "fp16" where a part has its weights in half precision alone, which become float32; InputError for pickles."""
    without = [part for part in parts if (folder / part).is_dir() and not _weights(folder / part)]
    for part in without:
        if not _weights(folder / part, ".fp16") and any((folder / part).glob("*.bin")):
            raise InputError(f"the base model '{folder}' has {part} as a pickle (.bin) only: {CONVERT.format(folder)}")
    return "fp16" if any(_weights(folder / part, ".fp16") for part in without) else None


def _check_fit(pipeline: DiffusionPipeline, base: str, kind: Kind) -> None:
    """Raise InputError unless the parts fit together."""
    unet, vae = pipeline.unet.config, pipeline.vae.config
    try:
        trained_with(pipeline.scheduler)
    except InputError as error:
        raise InputError(f"the base model {base!r} cannot be used: {error}") from None
    given, wanted = sum(getattr(pipeline, e).config.hidden_size for e in kind.encoders), text_width(pipeline.unet)
    vae_class, side = type(pipeline.vae).__name__, unet.sample_size
    problems = {
        f"its autoencoder is a {vae_class}, {kind.autoencoder} is needed": vae_class != kind.autoencoder,
        f"its U-Net reads {unet.in_channels} channels, which is no text-to-image model of its autoencoder": (
            unet.in_channels != vae.get("latent_channels")
        ),
        f"sample_size in {kind.denoiser}/config.json is {side}: one number is needed, the side of its square latents, "
        "such as 64 for images of 512 pixels": not isinstance(side, int),
        f"the text encoder is {given} wide, the U-Net of {base!r} expects {wanted}; text_projection: linear learns a "
        "layer between them": given != wanted,
    }
    for problem, found in problems.items():
        if found:
            raise InputError(f"the base model {base!r} cannot be used: {problem}")


def _check_weights(pipeline: DiffusionPipeline, base: str, folder: Path | None, parts: Sequence[str]) -> None:
    """Raise InputError unless the ``parts`` have all of their weights and no others, and these are finite."""
    for part in parts:
        state, stored = getattr(pipeline, part).state_dict(), set()
        for path in (_weights(folder / part) or _weights(folder / part, ".fp16")) if folder else []:
            with safe_open(path, "pt") as file:
                stored |= {*file.keys()}
        needed = {name for name, _ in getattr(pipeline, part).named_parameters()} if stored else set()
        unknown, missing = stored - state.keys(), needed - stored
        if part == "vae":
            # Old ones name the weights of their attention otherwise.
            unknown, missing = ({key for key in keys if ".attentions." not in key} for keys in (unknown, missing))
        elif part.startswith("text_encoder"):
            unknown, missing = set(), encoders.missing_weights(needed, stored)
        missing |= {key for key, value in state.items() if value.is_meta}
        where = folder / part if folder else f"the {part} of {base!r}"
        for keys, problem in (
            (missing, "lacks {}, which would be random"),
            (unknown, "has {}, which its network has not"),
        ):
            if keys:
                raise InputError(f"{where} " + problem.format(f"{len(keys)} weights, such as {min(keys)}"))
        if bad := [key for key, value in state.items() if not torch.isfinite(value).all()]:
            raise DivergedError(
                f"the {part} of {base!r} has NaN or infinite weights ({bad[0]}): it has diverged or is damaged"
            )


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> Path:
    """Save a complete pipeline (safetensors) that `load_pipeline` and stock diffusers load.

    What stock diffusers does not know of a recipe lies beside it: ``recipe.json``, and the text encoder as it was. The
    folder is there in full or not at all; a pipeline that was there before is replaced. InputError if the folder holds
    something else, which would be lost.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "model_index.json").is_file() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds something else than a pipeline; choose a folder that is new or empty")
    part = folder.with_name(f".{folder.name}.model.part")
    runs.remove(part)
    part.mkdir(parents=True)
    for name, component in pipeline.components.items():
        if hasattr(component, "save_pretrained"):
            whole = recipes.merge_adapters(component) if isinstance(component, torch.nn.Module) else component
            whole.save_pretrained(part / name)
    encoder = pipeline.text_encoder
    recipe = getattr(encoder, "recipe", None)
    if recipe is not None and not recipe.stock:
        runs.write_json(part / _RECIPE, recipe.model_dump(mode="json"))
        if recipe.splits:
            encoder.reference[0].save_pretrained(part / _REFERENCE)
    pipeline.save_config(part)
    runs.remove(folder)
    part.rename(folder)
    return folder


def _verify(folder: Path) -> None:
    sums, listed = folder / "SHA256SUMS", {}
    remedy = "restore the tiny base with 'git checkout -- {}' or remake it with 'python tools/make_base.py'"
    if not sums.is_file():
        raise MissingError(f"{folder} has no SHA256SUMS: the tiny base is missing; {remedy.format(folder.as_posix())}")
    for number, line in enumerate(sums.read_text().splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if not match:
            where = f"{sums}, line {number}"
            raise InputError(f"{where}: expected a checksum and a file name; {remedy.format(sums.as_posix())}")
        listed[match[2]] = match[1]
    weights = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")}
    for name in sorted(listed.keys() | weights):
        path = folder / name
        if name not in listed or not path.is_file() or runs.sha256(path) != listed[name]:
            state = "not listed in SHA256SUMS" if name not in listed else "changed" if path.is_file() else "missing"
            raise InputError(f"{path}: {state}; {remedy.format(path.as_posix())}")
    if not weights:
        raise InputError(f"{folder}: no weights; {remedy.format(folder.as_posix())}")


def fingerprint(pipeline: DiffusionPipeline, parts: Sequence[str] | None = None) -> str:
    """A name of 16 hex digits for the weights of ``parts`` of ``pipeline``, by default all; see `runs.hash_tensors`."""
    parts = parts or ("unet", *kind_of(pipeline).encoders, "vae")
    return runs.hash_tensors(
        {f"{part}/{name}": value for part in parts for name, value in getattr(pipeline, part).state_dict().items()}
    )[:16]


def architecture(part: Any) -> dict[str, Any]:
    """Configuration of a network, tokenizer or scheduler, without where it was loaded from and by which version."""
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    ignored = ("transformers_version", "architectures", "dtype")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in ignored}

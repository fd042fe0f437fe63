"""Building, loading and saving a text-to-image latent diffusion pipeline.

Every model is a stock `diffusers.StableDiffusionPipeline`: Stable Diffusion itself, any local folder or hub id in
that format, or the tiny base in ``data/tiny`` whose text encoder is all-MiniLM-L6-v2 (a BERT). Nothing below this
line knows which one it is: image size, channels, token length and text width are read off the parts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import Tensor
from transformers import (
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from chestxai import recipes, runs
from chestxai.encoders import MINILM as MINILM
from chestxai.encoders import SilentPadBert as SilentPadBert
from chestxai.encoders import adopt_encoder, hub_reason, minilm, scramble_words
from chestxai.encoders import text_encoder as load_text_encoder
from chestxai.profiles import DATA, base_folder
from chestxai.runs import DivergedError, InputError, MissingError

TINY = DATA / "tiny"
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
    base: str | Path = "tiny", text_encoder: str | Path | None = None, device: str | torch.device | None = None
) -> StableDiffusionPipeline:
    """Load a latent diffusion pipeline in float32, in eval mode, on ``device``.

    Args:
        base: "tiny" (ships in ``data/tiny``), "tiny-code" (the same, but its text encoder does not know the language,
            see `scramble_words`), a local folder in diffusers format, or a hub id. A folder without a text encoder of
            its own, like the tiny base, gets all-MiniLM-L6-v2.
        text_encoder: another Hugging Face text encoder (CLIP or BERT type), local folder or hub id. Its width must
            be the U-Net's ``cross_attention_dim``.
        device: default: a GPU if there is one, else the CPU.

    Raises:
        FileNotFoundError: the base or the text encoder is not there; says how to get it.
        ValueError: the parts do not fit together, or a file's checksum is not the recorded one.
    """
    if str(base) in ("tiny", "tiny-code"):
        _verify(TINY)
    folder = base_folder(base)
    if text_encoder is not None:
        tokenizer, encoder = load_text_encoder(text_encoder)
        parts = {"tokenizer": tokenizer, "text_encoder": encoder}
    elif folder and not (folder / "text_encoder").is_dir():
        tokenizer, encoder = minilm()
        parts = {"tokenizer": tokenizer, "text_encoder": encoder}
    else:
        parts = {}
    if folder and (kind := runs.read_json(folder / "model_index.json", dict).get("_class_name")) != _CLASS:
        raise InputError(f"{folder} holds a {str(kind)[:80]}; a {_CLASS} is needed")
    variant = "fp16" if folder and not _weights(folder / "unet") and _weights(folder / "unet", ".fp16") else None
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(folder or base),
            safety_checker=None,
            requires_safety_checker=False,
            use_safetensors=True,
            dtype=torch.float32,
            variant=variant,
            **parts,
        )
    except OSError as error:
        absent = [name for name in ("unet", "vae", "scheduler") if folder and not (folder / name).is_dir()]
        reason = f"missing: {', '.join(absent)}" if absent else hub_reason(error)
        raise MissingError(f"cannot load the base model {str(base)!r}: {reason}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"cannot load the base model {str(base)!r}: damaged, or of another kind ({reason})") from error
    adopt_encoder(pipeline.text_encoder)
    _check(pipeline, str(base), folder, variant)
    if str(base) == "tiny-code":
        scramble_words(pipeline.text_encoder, pipeline.tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    if folder and (folder / _RECIPE).is_file():
        _attach(pipeline, folder)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    return pipeline.to(device or runs.device())


def _attach(pipeline: StableDiffusionPipeline, folder: Path) -> None:
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


_CLASS = "StableDiffusionPipeline"


def _weights(folder: Path, variant: str = "") -> list[Path]:
    """The safetensors of a part, in one file or several."""
    return [
        p for p in folder.glob("*.safetensors") if re.fullmatch(rf"[\w-]+?{re.escape(variant)}(-\d+-of-\d+)?", p.stem)
    ]


def _check(pipeline: StableDiffusionPipeline, base: str, folder: Path | None, variant: str | None) -> None:
    """Raise InputError unless the parts fit together, and have all of their weights, which are finite."""
    unet, vae, encoder = pipeline.unet.config, pipeline.vae.config, pipeline.text_encoder.config
    schedule = pipeline.scheduler.config
    silent = schedule.get("rescale_betas_zero_snr") and schedule.get("prediction_type") == "epsilon"
    for wrong, problem in (
        (type(pipeline.vae).__name__ != "AutoencoderKL", f"its autoencoder is a {type(pipeline.vae).__name__}"),
        (
            unet.in_channels != vae.get("latent_channels"),
            f"its U-Net reads {unet.in_channels} channels, which is no text-to-image model of its autoencoder",
        ),
        (
            encoder.hidden_size != unet.cross_attention_dim,
            f"the text encoder is {encoder.hidden_size} wide, the U-Net of {base!r} expects {unet.cross_attention_dim}",
        ),
        (
            silent,
            "its schedule ends in pure noise (rescale_betas_zero_snr), of which no noise can be predicted (epsilon)",
        ),
    ):
        if wrong:
            raise InputError(f"the base model {base!r} cannot be used: {problem}")
    for name in ("unet", "vae", "text_encoder"):
        state = getattr(pipeline, name).state_dict()
        if bad := [key for key, value in state.items() if not torch.isfinite(value).all()]:
            raise DivergedError(
                f"the {name} of {base!r} has NaN or infinite weights ({bad[0]}): it has diverged or is damaged"
            )
        stored: set[str] = set()
        # The libraries rename what old text encoders, and the attention of old autoencoders, are stored as.
        read = folder and name != "text_encoder"
        for path in _weights(folder / name, f".{variant}" if variant else "") if read else ():
            with safe_open(path, "pt") as file:
                stored |= {*file.keys()}
        needed = {key for key in state if name == "unet" or ".attentions." not in key}
        if stored and (missing := sorted(needed - stored)):
            raise InputError(
                f"{folder / name} lacks {len(missing)} weights, such as {missing[0]}, which would be random"
            )


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> Path:
    """Save a complete pipeline (safetensors) that `load_pipeline` and stock diffusers load.

    What stock diffusers does not know of a recipe lies beside it: ``recipe.json``, and the text encoder as it was.

    The folder is there in full or not at all; a pipeline that was there before is replaced.

    Raises:
        ValueError: the folder holds something else, which would be lost.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "model_index.json").is_file() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds something else than a pipeline; choose a folder that is new or empty")
    part = folder.with_name(f".{folder.name}.model.part")
    runs.remove(part)
    part.mkdir(parents=True)
    for name in ("vae", "tokenizer", "scheduler"):
        getattr(pipeline, name).save_pretrained(part / name)
    recipes.merge_adapters(pipeline.unet).save_pretrained(part / "unet")
    encoder = pipeline.text_encoder
    recipes.merge_adapters(encoder).save_pretrained(part / "text_encoder")
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
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        raise MissingError(f"{folder} has no SHA256SUMS: the tiny base is missing; {_restore(folder)}")
    listed = {}
    for number, line in enumerate(sums.read_text().splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if not match:
            raise InputError(f"{sums}, line {number}: expected a checksum and a file name; {_restore(sums)}")
        listed[match[2]] = match[1]
    weights = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")}
    for name in sorted(listed.keys() | weights):
        path = folder / name
        if name not in listed or not path.is_file() or runs.sha256(path) != listed[name]:
            state = "not listed in SHA256SUMS" if name not in listed else "changed" if path.is_file() else "missing"
            raise InputError(f"{path}: {state}; {_restore(path)}")
    if not weights:
        raise InputError(f"{folder}: no weights; {_restore(folder)}")


def _restore(path: Path) -> str:
    return f"restore the tiny base with 'git checkout -- {path.as_posix()}' or remake it with {_REMAKE!r}"


_REMAKE = "python tools/make_base.py"


def fingerprint(pipeline: StableDiffusionPipeline, parts: Sequence[str] = ("unet", "text_encoder", "vae")) -> str:
    """A name of 16 hex digits for the weights of the ``parts`` of ``pipeline``; see `runs.hash_tensors`."""
    return runs.hash_tensors(
        {f"{part}/{name}": value for part in parts for name, value in getattr(pipeline, part).state_dict().items()}
    )[:16]


def architecture(part: Any) -> dict[str, Any]:
    """Configuration of a network, tokenizer or scheduler, without where it was loaded from and by which version."""
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    ignored = ("transformers_version", "architectures", "dtype")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in ignored}


def seeded_noise(shape: Sequence[int], *key: int) -> Tensor:
    """Standard normal noise float32 ``shape`` that depends on the integers ``key`` alone, on every device."""
    seed = int(np.random.default_rng(key).integers(2**63))
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def prediction_target(schedule: DDPMScheduler, x: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the U-Net is trained to predict: the noise, or the velocity (Salimans & Ho 2022).

    Args:
        schedule: of the pipeline.
        x: clean latents ``(n, c, h, w)``.
        noise: of the same shape.
        times: timesteps int64 ``(n,)``.

    Raises:
        InputError: the schedule predicts something else.
    """
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return schedule.get_velocity(x, noise, times)
    raise InputError(f"the scheduler predicts {kind!r}; 'epsilon' and 'v_prediction' models are supported")


def image_size(pipeline: StableDiffusionPipeline) -> int:
    """Side in pixels of the square images the pipeline draws."""
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)


def readable(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """What is left of ``prompts`` after a fast ``tokenizer``'s cut: the text that the model reads."""
    length, texts = tokenizer.model_max_length, list(dict.fromkeys(prompts))
    whole = tokenizer(texts, return_offsets_mapping=True)
    special = tokenizer.num_special_tokens_to_add()
    left = {}
    for text, ids, places in zip(texts, whole["input_ids"], whole["offset_mapping"], strict=True):
        words = [end for start, end in places if end > start]
        left[text] = text if len(ids) <= length else text[: words[: length - special][-1]]
    return [left[prompt] for prompt in prompts]


def tokenize(pipeline: StableDiffusionPipeline, prompts: Sequence[str], **options: Any) -> dict[str, Tensor]:
    """Token ids and attention mask of ``prompts``, int64 ``(n, length)`` each, padded and cut as ``pipeline`` does.

    ``options`` of the tokenizer add to them.
    """
    tokenizer = pipeline.tokenizer
    return dict(
        tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_attention_mask=True,
            return_tensors="pt",
            **options,
        )
    )


def text_states(encoder: PreTrainedModel, tokens: dict[str, Tensor]) -> Tensor:
    """What the U-Net reads: `encoder_states`, changed as the recipe says.

    Differentiable, ``(n, length, width)``; twice as wide where keys and values differ (`recipes.attach`).

    Args:
        encoder: of a pipeline.
        tokens: of `tokenize`.
    """
    return context(encoder, encoder_states(encoder, tokens), tokens)


def encoder_states(encoder: PreTrainedModel, tokens: dict[str, Tensor]) -> Tensor:
    """Last hidden states of ``encoder``, ``(n, length, width)``, differentiable.

    Like `diffusers.StableDiffusionPipeline.encode_prompt`: CLIP sees no padding mask unless its config asks for one
    (Stable Diffusion was trained without, and its padding positions are handed on to the U-Net); a BERT always does, as
    in its own pre-training, and its padding is zero (`SilentPadBert`). A recipe may limit what tokens see.

    Args:
        encoder: of a pipeline.
        tokens: of `tokenize`.
    """
    return _states(encoder, tokens, getattr(getattr(encoder, "module", encoder), "recipe", None))


def reference_states(encoder: PreTrainedModel, tokens: dict[str, Tensor]) -> Tensor:
    """As `encoder_states`, those of the text encoder as it was: of the copy that `recipes.attach` made.

    Args:
        encoder: of a pipeline; without a copy its own states, which is the same before the first step.
        tokens: of `tokenize`.
    """
    (encoder,) = getattr(encoder, "reference", (encoder,))
    with torch.no_grad():
        return _states(encoder.to(tokens["input_ids"].device), tokens, None)


def _states(encoder: PreTrainedModel, tokens: dict[str, Tensor], recipe: recipes.Recipe | None) -> Tensor:
    config = getattr(encoder, "module", encoder).config  # distributed training wraps the encoder
    causal = config.model_type == "clip_text_model"
    masked = getattr(config, "use_attention_mask", False) or not causal
    mask = tokens["attention_mask"] if masked else None
    seen = recipe and recipe.sees(torch.ones_like(tokens["input_ids"]) if mask is None else mask, causal)
    states = encoder(tokens["input_ids"], attention_mask=mask if seen is None else seen)[0]
    # As `SilentPadBert` does: the padding of a RoBERTa must not speak either.
    return states if causal else states * tokens["attention_mask"][..., None]


def context(encoder: PreTrainedModel, states: Tensor, tokens: dict[str, Tensor]) -> Tensor:
    """What the U-Net reads, given the ``encoder``'s ``states`` of ``tokens``; see `Recipe.context`.

    Args:
        encoder: of a pipeline, to which a recipe may be attached.
        states: of `encoder_states`.
        tokens: of `tokenize`; may hold ``reference``, the states of the text encoder as it was, to save their time.
    """
    module = getattr(encoder, "module", encoder)
    recipe, reference = getattr(module, "recipe", None), tokens.get("reference")
    if recipe is None:
        return states
    if recipe.splits and reference is None:
        reference = reference_states(module, tokens)
    return recipe.context(states, tokens["attention_mask"], reference)


@torch.no_grad()
def encode_text(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    batch: int = 64,
    read: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor] = text_states,
    chunked: bool = False,
) -> Tensor:
    """What the U-Net of ``pipeline`` reads of ``prompts``, float32 ``(n, length, width)``, ``batch`` at a time.

    ``read=encoder_states`` gives the states before the recipe changes them. ``chunked`` cuts nothing: what is longer
    than the tokenizer takes is read in windows of that length, side by side (CLIP only).

    Raises:
        InputError: ``chunked`` with another text encoder than CLIP.
    """
    tokens, owners = tokenize(pipeline, prompts), None
    if chunked:
        kind = pipeline.text_encoder.config.model_type
        if kind != "clip_text_model":
            raise InputError(f"long_prompts: chunked is for CLIP text encoders, and this one is a {kind}: set cut")
        # A window of the empty prompt fills up those that have fewer.
        tokens = tokenize(pipeline, [*prompts, ""], return_overflowing_tokens=True)
        owners = tokens.pop("overflow_to_sample_mapping").tolist()
    states = [
        read(pipeline.text_encoder, {k: v[i : i + batch].to(pipeline.text_encoder.device) for k, v in tokens.items()})
        for i in range(0, len(tokens["input_ids"]), batch)
    ]
    states = torch.cat(states).float()
    if owners is None:
        return states
    windows = [[w for w, owner in enumerate(owners) if owner == i] for i in range(len(prompts))]
    most = max(map(len, windows))
    return torch.stack([states[w + [-1] * (most - len(w))].flatten(0, 1) for w in windows])


def to_tensor(images: np.ndarray, channels: int) -> Tensor:
    """uint8 ``images`` ``(n, h, w)`` as float32 ``(n, channels, h, w)`` in [-1, 1]; ``channels`` repeat the grey."""
    if images.dtype != np.uint8 or images.ndim != 3:
        raise InputError(f"expected uint8 images (n, h, w), got {images.dtype} {images.shape}")
    return (torch.from_numpy(np.array(images)).float() / 127.5 - 1)[:, None].expand(-1, channels, -1, -1)


def to_uint8(images: Tensor) -> np.ndarray:
    """float ``(n, c, h, w)`` in [-1, 1] to grey uint8 ``(n, h, w)``, the mean over channels, clipped.

    Raises:
        FloatingPointError: NaN or infinite values, which would pass for black or white.
    """
    grey = images.float().mean(dim=1)
    if not torch.isfinite(grey).all():
        raise DivergedError("images with NaN or infinite pixels: the model that made them has diverged")
    return ((grey.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


@torch.no_grad()
def encode_images(pipeline: StableDiffusionPipeline, images: np.ndarray, batch: int = 32) -> Tensor:
    """Latents of uint8 ``(n, s, s)`` ``images``, float32 ``(n, c, h, w)``, already times the scaling factor.

    The mode of the posterior of the ``pipeline``'s autoencoder, so that encoding is deterministic and can be cached; it
    encodes ``batch`` images at a time.
    """
    vae = pipeline.vae
    latents = []
    for i in range(0, len(images), batch):
        x = to_tensor(images[i : i + batch], vae.config.in_channels).to(vae.device, vae.dtype)
        latents.append(vae.encode(x).latent_dist.mode())
    return torch.cat(latents).float() * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(pipeline: StableDiffusionPipeline, latents: Tensor, batch: int = 32) -> np.ndarray:
    """Images uint8 ``(n, s, s)`` of ``latents`` ``(n, c, h, w)``, decoded by ``pipeline``, ``batch`` at a time."""
    vae = pipeline.vae
    out = [
        to_uint8(vae.decode((latents[i : i + batch] / vae.config.scaling_factor).to(vae.dtype)).sample)
        for i in range(0, len(latents), batch)
    ]
    return np.concatenate(out)

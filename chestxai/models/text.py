"""From prompts to what the denoiser reads of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedModel

from chestxai import recipes
from chestxai.models.kinds import needs_pooled, pack
from chestxai.runs import InputError


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


def tokenize(pipeline: DiffusionPipeline, prompts: Sequence[str], **options: Any) -> dict[str, Tensor]:
    """Token ids and attention mask of ``prompts``, int64 ``(n, length)`` each, padded and cut as ``pipeline`` does.

    Of a pipeline with two tokenizers also ``input_ids_2`` and ``attention_mask_2``. What ``options`` of the tokenizer
    add is there, too.
    """
    tokens: dict[str, Tensor] = {}
    for name in ("tokenizer", "tokenizer_2"):
        if (tokenizer := getattr(pipeline, name, None)) is not None:
            read = tokenizer(
                list(prompts),
                padding="max_length",
                truncation=True,
                max_length=pipeline.tokenizer.model_max_length,
                return_attention_mask=True,
                return_tensors="pt",
                **options,
            )
            read.pop("token_type_ids", None)
            tokens |= {f"{key}{name[9:]}": value for key, value in read.items()}
    return tokens


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
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    batch: int = 64,
    read: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor] = text_states,
    chunked: bool = False,
) -> Tensor:
    """What the denoiser of ``pipeline`` reads of ``prompts``, float32 ``(n, length, width)``, ``batch`` at a time.

    ``read=encoder_states`` gives the states before the recipe changes them. ``chunked`` cuts nothing: what is longer
    than the tokenizer takes is read in windows of that length, side by side (one CLIP text encoder only).

    Raises:
        InputError: ``chunked`` with another text encoder than CLIP, or with two.
    """
    tokens, owners, device = tokenize(pipeline, prompts), None, pipeline.text_encoder.device
    if chunked:
        kind = pipeline.text_encoder.config.model_type
        if kind != "clip_text_model" or needs_pooled(pipeline.unet):
            raise InputError(
                f"long_prompts: chunked is for CLIP text encoders alone, and this one is a {kind}: set cut"
            )
        # A window of the empty prompt fills up those that have fewer.
        tokens = tokenize(pipeline, [*prompts, ""], return_overflowing_tokens=True)
        owners = tokens.pop("overflow_to_sample_mapping").tolist()
    states = [
        pipeline_states(pipeline, {k: v[i : i + batch].to(device) for k, v in tokens.items()}, read)
        for i in range(0, len(tokens["input_ids"]), batch)
    ]
    states = torch.cat(states).float()
    if owners is None:
        return states
    windows = [[w for w, owner in enumerate(owners) if owner == i] for i in range(len(prompts))]
    most = max(map(len, windows))
    return torch.stack([states[w + [-1] * (most - len(w))].flatten(0, 1) for w in windows])


def pipeline_states(
    pipeline: DiffusionPipeline,
    tokens: dict[str, Tensor],
    read: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor] = text_states,
) -> Tensor:
    """What the denoiser of ``pipeline`` reads: ``read`` of its text encoder, or the states of SDXL's two.

    Args:
        pipeline: of `load_pipeline`.
        tokens: of `tokenize`, on the encoder's device.
        read: what is read of a single text encoder.

    Returns:
        ``(n, length, width)``; of SDXL with the rows of `kinds.pack` behind those of the tokens.
    """
    if not needs_pooled(pipeline.unet):
        return read(pipeline.text_encoder, tokens)
    one = pipeline.text_encoder(tokens["input_ids"], output_hidden_states=True)
    two = pipeline.text_encoder_2(tokens["input_ids_2"], output_hidden_states=True)
    packed = pack(torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two[0])
    # Of a prompt that has no tokens but begin and end, all is zero.
    zero = pipeline.config.force_zeros_for_empty_prompt & (tokens["attention_mask"].sum(dim=1) <= 2)
    return packed.masked_fill(zero[:, None, None], 0.0)

"""From prompts to what the denoiser reads of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedModel

from chestxai import recipes, reports
from chestxai.models.kinds import needs_pooled, pack
from chestxai.runs import InputError

#: Windows of ``long_prompts: chunked``: 225 tokens of CLIP, as the trainers of its community offer.
WINDOWS = 3


def read_in_windows(pipeline: DiffusionPipeline, long_prompts: str = "chunked") -> None:
    """Choose how ``pipeline`` reads a prompt that is longer than its text encoder takes; it is saved with the encoder.

    The pipeline is changed in place: whatever reads a prompt of it does so in this way. ``long_prompts`` is "cut", or
    "chunked": every prompt is read in `WINDOWS` windows of the encoder's length, side by side, of which short prompts
    leave some empty; what is longer still is cut. InputError for "chunked" with another encoder than CLIP, or with two.
    """
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    kind, chunked = encoder.config.model_type, long_prompts == "chunked"
    if chunked and (kind != "clip_text_model" or needs_pooled(pipeline.unet)):
        raise InputError(f"long_prompts: chunked is for one CLIP text encoder, and this is a {kind}: set cut")
    vars(encoder.config).pop("window", None)
    if chunked:
        encoder.config.window = tokenizer.model_max_length
    tokenizer.windows = WINDOWS if chunked else 1


def readable(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """What is left of ``prompts`` after a fast ``tokenizer``'s cut: the text that the model reads."""
    texts = list(dict.fromkeys(prompts))
    whole = tokenizer(texts, return_offsets_mapping=True)
    special, windows = tokenizer.num_special_tokens_to_add(), getattr(tokenizer, "windows", 1)
    room = (tokenizer.model_max_length - special) * windows
    left = {}
    for text, ids, places in zip(texts, whole["input_ids"], whole["offset_mapping"], strict=True):
        words = [end for start, end in places if end > start]
        left[text] = text if len(ids) - special <= room else text[: words[:room][-1]]
    return [left[prompt] for prompt in prompts]


def cut_prompts(tokenizer: Any, prompts: Sequence[str]) -> int:
    """How many of ``prompts`` a fast ``tokenizer`` cuts."""
    return sum(left != prompt for left, prompt in zip(readable(tokenizer, prompts), prompts, strict=True))


def tokenize(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and attention mask of ``prompts``, int64 ``(n, length)`` each, padded and cut as ``pipeline`` does.

    Of a pipeline with two tokenizers also ``input_ids_2`` and ``attention_mask_2``.
    """
    tokens: dict[str, Tensor] = {}
    for name in ("tokenizer", "tokenizer_2"):
        if (tokenizer := getattr(pipeline, name, None)) is not None:
            read = reports.encode(tokenizer, prompts)
            tokens |= {f"{key}{name[9:]}": torch.tensor(read[key]) for key in ("input_ids", "attention_mask")}
    return tokens


def _windows(encoder: PreTrainedModel, values: Tensor) -> Tensor:
    """``values`` ``(n, length, …)`` of tokens with each of their windows as a row of its own."""
    length = getattr(encoder.config, "window", None) or values.shape[1]
    return values if values.shape[1] <= length else values.unflatten(1, (-1, length)).flatten(0, 1)


def text_states(encoder: PreTrainedModel, tokens: dict[str, Tensor]) -> Tensor:
    """What the U-Net reads: `encoder_states` of ``encoder`` and ``tokens``, changed as the recipe says.

    Differentiable, ``(n, length, width)``; twice as wide where keys and values differ (`recipes.attach`).
    """
    return context(encoder, encoder_states(encoder, tokens), tokens)


def encoder_states(encoder: PreTrainedModel, tokens: dict[str, Tensor]) -> Tensor:
    """Last hidden states of ``encoder``, ``(n, length, width)``, differentiable.

    Like `diffusers.StableDiffusionPipeline.encode_prompt`: CLIP sees no padding mask unless its config asks for one
    (Stable Diffusion was trained without, and its padding positions are handed on to the U-Net); a BERT always does, as
    in its own pre-training, and its padding is zero (`SilentPadBert`). A recipe may limit what ``tokens`` see.
    """
    return _states(encoder, tokens, getattr(getattr(encoder, "module", encoder), "recipe", None))


def reference_states(encoder: PreTrainedModel, tokens: dict[str, Tensor]) -> Tensor:
    """As `encoder_states` of ``tokens``, those of ``encoder`` as it was: of the copy that `recipes.attach` made.

    Without a copy its own states, which is the same before the first step.
    """
    (encoder,) = getattr(encoder, "reference", (encoder,))
    with torch.no_grad():
        return _states(encoder.to(tokens["input_ids"].device), tokens, None)


def _states(encoder: PreTrainedModel, tokens: dict[str, Tensor], recipe: recipes.Recipe | None) -> Tensor:
    module = getattr(encoder, "module", encoder)  # distributed training wraps the encoder
    causal = module.config.model_type == "clip_text_model"
    masked = getattr(module.config, "use_attention_mask", False) or not causal
    ids, real = (_windows(module, tokens[name]) for name in ("input_ids", "attention_mask"))
    mask = real if masked else None
    seen = recipe and recipe.sees(torch.ones_like(ids) if mask is None else mask, causal)
    states = encoder(ids, attention_mask=mask if seen is None else seen)[0]
    # As `SilentPadBert` does: the padding of a RoBERTa must not speak either.
    states = states if causal else states * real[..., None]
    return states.reshape(*tokens["input_ids"].shape, -1)


def context(encoder: PreTrainedModel, states: Tensor, tokens: dict[str, Tensor]) -> Tensor:
    """What the U-Net reads, given the ``encoder``'s ``states`` of ``tokens``; see `Recipe.context`.

    A recipe may be attached to the encoder. The states are those of `encoder_states`; the tokens, of `tokenize`, may
    hold ``reference``, the states of the text encoder as it was, to save their time.
    """
    module = getattr(encoder, "module", encoder)
    recipe, reference = getattr(module, "recipe", None), tokens.get("reference")
    if recipe is None:
        return states
    if recipe.splits and reference is None:
        reference = reference_states(module, tokens)
    split = [None if x is None else _windows(module, x) for x in (states, tokens["attention_mask"], reference)]
    return recipe.context(*split).reshape(*states.shape[:2], -1)


@torch.no_grad()
def encode_text(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    batch: int = 64,
    read: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor] = text_states,
) -> Tensor:
    """What the denoiser of ``pipeline`` reads of ``prompts``, float32 ``(n, length, width)``, ``batch`` at a time.

    ``read=encoder_states`` gives the states before the recipe changes them.
    """
    tokens, device = tokenize(pipeline, prompts), pipeline.text_encoder.device
    states = [
        pipeline_states(pipeline, {k: v[i : i + batch].to(device) for k, v in tokens.items()}, read)
        for i in range(0, len(tokens["input_ids"]), batch)
    ]
    return torch.cat(states).float()


def pipeline_states(
    pipeline: DiffusionPipeline,
    tokens: dict[str, Tensor],
    read: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor] = text_states,
) -> Tensor:
    """What the denoiser of ``pipeline`` reads of ``tokens``, which are on the text encoder's device.

    That is ``read`` of its text encoder, or the states of SDXL's two: ``(n, length, width)``, of SDXL with the rows of
    `kinds.pack` behind those of the tokens.
    """
    if not needs_pooled(pipeline.unet):
        return read(pipeline.text_encoder, tokens)
    one = pipeline.text_encoder(tokens["input_ids"], output_hidden_states=True)
    two = pipeline.text_encoder_2(tokens["input_ids_2"], output_hidden_states=True)
    packed = pack(torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two[0])
    # Of a prompt that has no tokens but begin and end, all is zero.
    zero = pipeline.config.force_zeros_for_empty_prompt & (tokens["attention_mask"].sum(dim=1) <= 2)
    return packed.masked_fill(zero[:, None, None], 0.0)

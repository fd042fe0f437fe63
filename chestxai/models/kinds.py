"""The kinds of pipelines that are read: what is the denoiser, who encodes the prompt, what a pass needs besides.

Everywhere else a denoiser is a function of noisy latents, timesteps and one tensor of text: `denoise`. What a kind
needs besides (SDXL's pooled text) is carried in rows behind those of the tokens; which tokens are
padding is known by their states, which are zero.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from chestxai.runs import InputError


@dataclass(frozen=True)
class Kind:
    """What sets a class of pipelines apart."""

    denoiser: str = "unet"  #: name of its part
    encoders: tuple[str, ...] = ("text_encoder",)  #: names of the text encoders, whose states stand side by side
    autoencoder: str = "AutoencoderKL"  #: its class
    #: Tokens read of a prompt, which is read in lower case, as the pipeline itself does; default: what the tokenizer
    #: says, as it is written.
    length: int | None = None

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of all parts that have weights, as files and attributes are called."""
        return self.denoiser, *self.encoders, "vae"


KINDS = {
    "StableDiffusionPipeline": Kind(),
    "StableDiffusionXLPipeline": Kind(encoders=("text_encoder", "text_encoder_2")),
    "PixArtAlphaPipeline": Kind("transformer", length=120),
    "PixArtSigmaPipeline": Kind("transformer", length=300),
    "SanaPipeline": Kind("transformer", autoencoder="AutoencoderDC", length=300),
}
#: Text and image attend to each other in one sequence: `attention.capture` reads them, nothing else here does.
JOINT = ("StableDiffusion3Pipeline", "FluxPipeline")


def kind_of(pipeline: DiffusionPipeline | str) -> Kind:
    """The kind of a pipeline, or of a class's name; InputError names one that is not read, and what is."""
    name = pipeline if isinstance(pipeline, str) else type(pipeline).__name__
    if name not in KINDS:
        only = "; of its joint attention attention.capture can read the transformer alone" if name in JOINT else ""
        raise InputError(f"holds a {name[:80]}; one of {', '.join(KINDS)} is needed{only}")
    return KINDS[name]


def text_width(denoiser: nn.Module) -> int:
    """Width of the states that a denoiser reads."""
    config = denoiser.config
    return config.get("encoder_hid_dim") or config.get("caption_channels") or config.cross_attention_dim


def needs_pooled(denoiser: nn.Module) -> bool:
    """Whether a denoiser reads a pooled text and the image's size, as SDXL's does."""
    return denoiser.config.get("addition_embed_type") == "text_time"


def pack(states: Tensor, pooled: Tensor) -> Tensor:
    """``states`` ``(n, length, width)`` with further rows that hold SDXL's ``pooled`` text ``(n, m)``."""
    n, _, width = states.shape
    rows = math.ceil(pooled.shape[1] / width)
    pooled = nn.functional.pad(pooled, (0, rows * width - pooled.shape[1]))
    return torch.cat([states, pooled.view(n, rows, width)], dim=1)


def denoise(denoiser: nn.Module, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
    """What a ``denoiser`` of any kind predicts of noisy latents ``x``: noise, velocity or flow ``(n, c, h, w)``.

    ``times`` are timesteps, ``(n,)`` or one for all; ``text`` is of `encode_text`, ``(n, length, width)``.
    """
    config, n = denoiser.config, len(x)
    # Images are neither scaled nor cut.
    size = x.new_tensor(x.shape[-2:]).expand(n, 2) * getattr(denoiser, "latent_pixels", 8)
    if "caption_channels" not in config:
        added = None
        if needs_pooled(denoiser):
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            rows = math.ceil(pooled / text.shape[-1])
            added = {"text_embeds": text[:, -rows:].flatten(1)[:, :pooled]}
            added["time_ids"] = torch.cat([size, torch.zeros_like(size), size], dim=1)
            text = text[:, :-rows]
        return denoiser(x, times, text, added_cond_kwargs=added, return_dict=False)[0]
    times = times.to(x.device).expand(n) * config.get("timestep_scale", 1)
    options = {"encoder_attention_mask": text.abs().amax(dim=-1).gt(0).to(text.dtype), "return_dict": False}
    if "timestep_scale" not in config:  # PixArt, whose first large model reads the image's size, too
        sized = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
        options["added_cond_kwargs"] = sized if denoiser.use_additional_conditions else dict.fromkeys(sized)
    predicted = denoiser(x, encoder_hidden_states=text, timestep=times, **options)[0]
    return predicted.chunk(2, dim=1)[0] if config.out_channels == 2 * x.shape[1] else predicted  # or a variance


@contextmanager
def text_read_once(denoiser: nn.Module) -> Iterator[None]:
    """Within the block, passes in a row that read the same tensor of text compute its keys and values once.

    Without gradients only. They are a tenth of the time of a ``denoiser`` as small as that of the tiny base.
    """
    attentions = [part for part in denoiser.modules() if isinstance(part, Attention) and part.is_cross_attention]
    layers = [layer for attention in attentions for layer in (attention.to_k, attention.to_v)]
    before = [vars(layer).get("forward") for layer in layers]  # of others' hooks
    try:
        for layer in layers:
            layer.forward = lru_cache(maxsize=1)(layer.forward)  # tells tensors apart by identity
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            vars(layer).update({"forward": own} if own else {})

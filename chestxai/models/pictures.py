"""From pixels to latents and back."""

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from chestxai.runs import DivergedError, InputError


def image_size(pipeline: DiffusionPipeline) -> int:
    """Side in pixels of the square images the pipeline draws."""
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)


def to_tensor(images: np.ndarray, channels: int) -> Tensor:
    """uint8 ``images`` ``(n, h, w)`` as float32 ``(n, channels, h, w)`` in [-1, 1]; ``channels`` repeat the grey."""
    if images.dtype != np.uint8 or images.ndim != 3:
        raise InputError(f"expected uint8 images (n, h, w), got {images.dtype} {images.shape}")
    return (torch.from_numpy(np.array(images)).float() / 127.5 - 1)[:, None].expand(-1, channels, -1, -1)


def to_uint8(images: Tensor) -> np.ndarray:
    """float ``(n, c, h, w)`` in [-1, 1] to grey uint8 ``(n, h, w)``, the mean over channels, clipped.

    DivergedError for NaN or infinite values, which would pass for black or white.
    """
    grey = images.float().mean(dim=1)
    if not torch.isfinite(grey).all():
        raise DivergedError("images with NaN or infinite pixels: the model that made them has diverged")
    return ((grey.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def _batch(pipeline: DiffusionPipeline) -> int:
    """Images that the autoencoder takes at once: of 512 pixels two, which need 1.6 GB in Stable Diffusion."""
    return min(32, max(1, 2**19 // image_size(pipeline) ** 2))


@torch.no_grad()
def encode_images(pipeline: DiffusionPipeline, images: np.ndarray) -> Tensor:
    """Latents of uint8 ``(n, s, s)`` ``images``, float32 ``(n, c, h, w)``, already times the scaling factor.

    The mode of the posterior of the ``pipeline``'s autoencoder, so that encoding is deterministic and can be cached.
    """
    vae, batch = pipeline.vae, _batch(pipeline)
    latents = []
    for i in range(0, len(images), batch):
        x = to_tensor(images[i : i + batch], vae.config.in_channels).to(vae.device, vae.dtype)
        encoded = vae.encode(x)
        latents.append(encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent)
    return torch.cat(latents).float() * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(pipeline: DiffusionPipeline, latents: Tensor) -> np.ndarray:
    """Images uint8 ``(n, s, s)`` of ``latents`` ``(n, c, h, w)``, decoded by the autoencoder of ``pipeline``."""
    vae, batch = pipeline.vae, _batch(pipeline)
    out = [
        to_uint8(vae.decode((latents[i : i + batch] / vae.config.scaling_factor).to(vae.dtype)).sample)
        for i in range(0, len(latents), batch)
    ]
    return np.concatenate(out)

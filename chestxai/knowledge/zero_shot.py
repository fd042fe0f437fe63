"""The diffusion model as a classifier: which prompt lets it predict an image's noise best?

Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier", https://arxiv.org/abs/2303.16203.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from chestxai import models
from chestxai.runs import DivergedError, InputError
from chestxai.studies import FINDINGS

#: The prompt of each class, worded like an impression.
PROMPTS: dict[str, str] = {name: f"{name.capitalize()}." for name in FINDINGS}
#: The prompt of an image without findings.
NORMAL = "No acute cardiopulmonary abnormality."


@torch.inference_mode()
def denoising_errors(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    timesteps: Sequence[int],
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> np.ndarray:
    """Mean squared error of the predicted noise under each prompt: float32 ``(n, prompts, timesteps)``.

    Li et al. 2023, section 3.2, for the target the model was trained on (noise or velocity), without guidance. All
    ``prompts`` of ``images``, uint8 ``(n, s, s)``, see the same noise (section 3.3), which depends only on the image's
    number and the timestep, from 0 (no noise) to ``num_train_timesteps - 1``. ``progress`` wraps the passes.
    InputError for what ``pipeline`` cannot take, or ``timesteps`` outside; DivergedError for output that is not finite.
    """
    size, images = models.image_size(pipeline), np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
        raise InputError(f"expected uint8 images (n, {size}, {size}), got {images.dtype} {images.shape}")
    schedule = models.noising(pipeline.scheduler)
    last = schedule.config.num_train_timesteps - 1
    if not prompts or not len(timesteps) or not all(0 <= t <= last for t in timesteps):
        raise InputError(f"needs prompts, and timesteps from 0 to {last}: got {len(prompts)} and {list(timesteps)}")
    text = models.encode_text(pipeline, list(prompts)).to(pipeline.unet.dtype)
    latents = models.encode_images(pipeline, images).cpu()
    plan = [(i, k) for i in range(len(images)) for k in range(len(timesteps))]
    some = max(1, 64 // len(prompts))
    errors = np.zeros((len(images), len(prompts), len(timesteps)))
    for start in progress(range(0, len(plan), some)):
        rows = plan[start : start + some]
        x, times = latents[[i for i, _ in rows]], torch.tensor([timesteps[k] for _, k in rows])
        # Not `models.seeded_noise`: its other draws would change the published numbers.
        draw = [np.random.default_rng([0, i, int(timesteps[k]), 0]) for i, k in rows]
        noise = torch.from_numpy(np.stack([rng.standard_normal(x.shape[1:], dtype=np.float32) for rng in draw]))
        target = models.prediction_target(schedule, x, noise, times)
        # Every row is repeated for every prompt.
        noisy = schedule.add_noise(x, noise, times).repeat_interleave(len(prompts), dim=0).to(text)
        at = times.repeat_interleave(len(prompts)).to(text.device)
        predicted = models.denoise(pipeline.unet, noisy, at, text.repeat(len(rows), 1, 1)).float().cpu()
        squared = (predicted.unflatten(0, (len(rows), len(prompts))) - target[:, None]).square().mean(dim=(2, 3, 4))
        for (i, k), error in zip(rows, squared.numpy(), strict=True):
            errors[i, :, k] = error
    if not np.isfinite(errors).all():
        raise DivergedError("the denoising error is not finite: the model's weights have diverged; train it again")
    return errors.astype(np.float32)


def evidence(errors: np.ndarray) -> np.ndarray:
    """How much smaller the error is under the prompt of a class than under the last, normal one: ``(n, classes)``.

    The mean over timesteps of ``errors``, ``(n, classes + 1, timesteps)`` of `denoising_errors`.
    """
    return (errors[:, -1:] - errors[:, :-1]).mean(axis=2)

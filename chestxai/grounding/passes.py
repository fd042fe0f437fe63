"""The passes of the U-Net in which its attention is read: noised, along DDIM inversion, or while it generates."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from diffusers import SchedulerMixin, StableDiffusionPipeline

from chestxai import attention, models, reports
from chestxai.profiles import Method
from chestxai.runs import InputError


@dataclass(frozen=True)
class Passes:
    """How the U-Net runs while it is read."""

    #: Timesteps of the noise schedule that are read; default: the last four fifths of ``steps``, as `paper_timesteps`.
    #: For "inversion" and "generation" they must be among the ``steps``.
    timesteps: Sequence[int] | None = None
    method: Method = "noised"  #: or "inversion", or "generation"
    seed: int = 0  #: of the noise
    draws: int = 1  #: independent noises: for each timestep of "noised", or starting points of "generation"
    steps: int = 50  #: of the whole path of "inversion" or "generation", in the scheduler's own spacing
    guidance: float = 1.0  #: scale of classifier-free guidance for "generation", whose conditional half is read
    layers: attention.Layers = "all"  #: see `attention.select_layers`
    batch: int = 64  #: rows of one pass through the U-Net; bounds its memory

    def chosen(self, pipeline: StableDiffusionPipeline) -> list[int]:
        """The timesteps that are read."""
        if self.timesteps is not None:
            return [int(t) for t in self.timesteps]
        return paper_timesteps(pipeline.scheduler, self.steps, max(1, round(self.steps * 0.8)))


def paper_timesteps(scheduler: SchedulerMixin, steps: int = 50, last: int = 40, stride: int = 1) -> list[int]:
    """Every ``stride``-th of the ``last`` (least noisy) of ``steps`` denoising timesteps, falling.

    The steps are DDIM's on the noise schedule of a ``scheduler`` of any class. InputError for ``last`` or ``stride``
    out of range, or more steps than the schedule has.
    """
    if not 1 <= last <= steps or stride < 1:
        raise InputError(
            f"of {steps} steps the last 1 to {steps} can be read, with a stride from 1: got {last}, {stride}"
        )
    ddim = models.ddim(scheduler)
    try:
        ddim.set_timesteps(steps)
    except ValueError as error:
        raise InputError(str(error)) from error
    return [int(t) for t in ddim.timesteps[-last:]][::stride]


@torch.inference_mode()
def read_attention(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray | None,
    prompts: Sequence[str],
    phrases: Sequence[str | None],
    passes: Passes,
    *,
    times: attention.Times = "mean",
    others: bool = False,
    keys: Sequence[int] | None = None,
) -> tuple[attention.Capture, torch.Tensor | None]:
    """Run the U-Net of a ``pipeline`` and read its attention, one slot per phrase.

    ``images`` are uint8 ``(n, s, s)``, None for "generation"; ``prompts`` are ``n`` texts, ``phrases`` parts of them.
    ``passes`` say how, ``times`` as in `attention.capture`. With ``others`` the tokens that are no words are read as
    further groups, and a phrase may be None. ``keys`` name the noise of each row; default: `image_key` of its image.
    InputError as `ground`, with the row.

    Returns:
        What was captured, and the latents of generated images, None for the other methods.
    """
    timesteps = passes.chosen(pipeline)
    rows = _check(pipeline, images, prompts, phrases, passes, timesteps)
    tokens = []
    for i, (prompt, phrase) in enumerate(zip(prompts, phrases, strict=True)):
        try:
            groups = {} if phrase is None else {"phrase": reports.token_positions(pipeline.tokenizer, prompt, phrase)}
            tokens.append(groups | (reports.token_groups(pipeline.tokenizer, prompt) if others else {}))
        except ValueError as error:
            raise InputError(f"row {i}: {error}") from error
    generates = passes.method == "generation"
    unique = {prompt: i for i, prompt in enumerate(dict.fromkeys([*prompts, *([""] * generates)]))}
    states = models.encode_text(pipeline, list(unique)).to(pipeline.unet.dtype)
    text = states[[unique[prompt] for prompt in prompts]]
    with attention.capture(pipeline.unet, tokens, passes.layers, times=times) as seen:
        if generates:
            size = max(1, passes.batch // (2 if passes.guidance > 1 else 1))
            latents = [
                _generate(pipeline, seen, part, text, states[unique[""], None], timesteps, passes, draw)
                for draw in range(passes.draws)
                for part in torch.arange(rows).split(size)
            ]
            return seen, torch.cat(latents)
        # One image may carry several phrases: encode it once.
        pixels = [image_key(image) for image in images]
        first = {key: i for i, key in reversed(list(enumerate(pixels)))}
        latents = models.encode_images(pipeline, images[list(first.values())]).cpu()
        place = {key: i for i, key in enumerate(first)}
        latents = latents[[place[key] for key in pixels]]
        with models.text_read_once(pipeline.unet):
            if passes.method == "inversion":
                for part in torch.arange(rows).split(passes.batch):
                    _invert(pipeline, seen, part, latents, text, timesteps, passes.steps)
            else:
                _noised(pipeline, seen, keys or pixels, latents, text, timesteps, passes)
    return seen, None


def _check(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray | None,
    prompts: Sequence[str],
    phrases: Sequence[str | None],
    passes: Passes,
    timesteps: Sequence[int],
) -> int:
    """The number of rows, if all of them can be run."""
    method = passes.method
    if method not in get_args(Method):
        raise InputError(f"unknown method {method!r}: choose one of {', '.join(get_args(Method))}")
    if (images is None) != (method == "generation"):
        raise InputError("'generation' reads no image: give None" if images is not None else f"{method!r} needs images")
    if images is not None:
        size = models.image_size(pipeline)
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
            raise InputError(
                f"expected uint8 images (n, {size}, {size}), got {images.dtype} {images.shape}; use studies.Frame"
            )
    rows = len(prompts if images is None else images)
    if not rows or {rows, len(prompts), len(phrases)} != {rows}:
        raise InputError(f"one prompt and phrase per image: got {rows}, {len(prompts)} and {len(phrases)}")
    last = pipeline.scheduler.config.num_train_timesteps - 1
    outside = [t for t in timesteps if not 0 <= t <= last]
    if outside or not timesteps:
        raise InputError(f"timesteps must be 0 to {last}, got {outside or 'none'}")
    if method != "noised":
        path = paper_timesteps(pipeline.scheduler, passes.steps, passes.steps)
        off = sorted(set(timesteps) - set(path))
        if off:
            raise InputError(f"timesteps {off} are not among the {passes.steps} of the path, {path[-1]} to {path[0]}")
    return rows


def _noised(
    pipeline: StableDiffusionPipeline,
    seen: attention.Capture,
    keys: Sequence[int],
    latents: torch.Tensor,
    text: torch.Tensor,
    timesteps: Sequence[int],
    passes: Passes,
) -> None:
    schedule = models.noising(pipeline.scheduler)
    moments = [(t, draw) for t in timesteps for draw in range(passes.draws)]
    for rows in torch.arange(len(latents)).split(passes.batch):
        at_once = max(1, passes.batch // len(rows))
        whole = text[rows.repeat(at_once)]
        for start in range(0, len(moments), at_once):
            part = [(i, t, draw) for t, draw in moments[start : start + at_once] for i in rows.tolist()]
            # The same tensor from pass to pass, so that its keys and values are computed once.
            states = whole if len(part) == len(whole) else whole[: len(part)]
            noise = [models.seeded_noise(latents.shape[1:], passes.seed, keys[i], t, draw) for i, t, draw in part]
            read, times = [i for i, _, _ in part], torch.tensor([t for _, t, _ in part])
            seen.rows(read)
            seen.run(
                schedule.add_noise(latents[read], torch.stack(noise), times).to(text), times.to(text.device), states
            )


def _invert(
    pipeline: StableDiffusionPipeline,
    seen: attention.Capture,
    rows: torch.Tensor,
    latents: torch.Tensor,
    text: torch.Tensor,
    timesteps: Sequence[int],
    steps: int,
) -> None:
    schedule = models.inversion(pipeline.scheduler)
    schedule.set_timesteps(steps)
    x, states = latents[rows].to(text), text[rows]
    for t in schedule.timesteps:
        seen.rows(rows if t in timesteps else torch.full_like(rows, -1))
        if t == max(timesteps):
            seen.run(x, t, states)
            break
        x = schedule.step(models.denoise(pipeline.unet, x, t, states), t, x).prev_sample


def _generate(
    pipeline: StableDiffusionPipeline,
    seen: attention.Capture,
    rows: torch.Tensor,
    text: torch.Tensor,
    empty: torch.Tensor,
    timesteps: Sequence[int],
    passes: Passes,
    draw: int,
) -> torch.Tensor:
    side = pipeline.unet.config.sample_size
    shape = (pipeline.unet.config.in_channels, side, side)
    noise = torch.stack([models.seeded_noise(shape, passes.seed, int(row), draw) for row in rows]).to(text)
    guided, none = passes.guidance > 1, torch.full_like(rows, -1)

    def read(t: int) -> None:
        wanted = rows if t in timesteps else none
        seen.rows(torch.cat([none, wanted]) if guided else wanted)

    return models.draw(
        pipeline, noise, text[rows], empty, steps=passes.steps, guidance=passes.guidance, before=read
    ).float()


def image_key(image: np.ndarray) -> int:
    """A number for the pixels of an image: 63 bits of SHA-256, so that no two images share it."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(image)).digest()[:8]) >> 1


def make_passes(options: dict[str, Any]) -> Passes:
    """`Passes` of keyword arguments; InputError for one that does not exist."""
    try:
        return Passes(**options)
    except TypeError as error:
        raise InputError(f"{error}; the options are {', '.join(Passes.__dataclass_fields__)}") from error

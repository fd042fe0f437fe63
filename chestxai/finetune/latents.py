"""Latents of the training images: encoded once, kept in a file, shared by all processes and runs on the same data."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline
from filelock import FileLock
from torch import Tensor

from chestxai import models, runs
from chestxai.finetune.prompts import study_prompts
from chestxai.recipes import Recipe
from chestxai.runs import InputError
from chestxai.studies import Fit, Study, to_images

# Images in memory at a time while latents are made.
_CHUNK = 256


def training_pairs(
    pipeline: StableDiffusionPipeline,
    studies: Sequence[Study],
    fit: Fit = "crop",
    recipe: Recipe | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, list[str], list[str]]:
    """Training images of ``studies``, made square as ``fit`` says and as large as those of ``pipeline``, with prompts.

    ``recipe`` and ``seed`` as of `study_prompts`.

    Returns:
        Images uint8 ``(n, s, s)``, their prompts, and one line for each study that was left out.

    Raises:
        InputError: no study can be used.
    """
    usable, prompts, skipped = study_prompts(studies, recipe, seed)
    images, kept, unreadable = to_images(usable, models.image_size(pipeline), fit, allow_none=True)
    _check_any(len(images), studies, skipped + unreadable)
    place = {id(study): i for i, study in enumerate(usable)}
    return images, [prompts[place[id(study)]] for study in kept], skipped + unreadable


def training_latents(
    pipeline: StableDiffusionPipeline,
    studies: Sequence[Study],
    fit: Fit,
    folder: Path,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> tuple[Tensor, list[Study], list[str], list[str]]:
    """As `training_pairs`, errors included, with latents instead of images, kept in ``folder``.

    At most `_CHUNK` images are in memory. Of several processes each encodes its share once. The latents are mapped from
    the file, so that processes on one machine share the memory. The autoencoder of ``pipeline`` encodes the training
    ``studies``; ``fit`` says how an image becomes a square, ``recipe`` what a prompt is (default: the impression), and
    ``seed`` is of what is random in prompts. The name of the file says what it was made of.

    Returns:
        Latents float32 ``(n, c, h, w)``, their studies and prompts, and one line for each study that was left out.
    """
    usable, prompts, skipped = study_prompts(studies, recipe, seed)
    size = models.image_size(pipeline)

    def encode(rows: range) -> tuple[dict[str, Tensor], list[str]]:
        some = usable[rows.start : rows.stop]
        images, kept, lines = to_images(some, size, fit, allow_none=True)
        if not len(images):
            return {}, lines
        place = {id(study): i for i, study in enumerate(some)}
        numbers = torch.tensor([rows.start + place[id(study)] for study in kept])
        return {"latents": models.encode_images(pipeline, images).cpu(), "rows": numbers}, lines

    name = runs.fingerprint(
        models.fingerprint(pipeline, ["vae"]),
        models.architecture(pipeline.vae),
        size,
        fit,
        [study.change_token() for study in usable],
        runs.code_fingerprint("chestxai.finetune.latents"),
    )
    path = Path(folder) / f"latents-{name}.safetensors"
    shown = "encoding images" if len(usable) >= 20 * _CHUNK else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Runs that start together wait for the first; processes of one run share the work instead.
    alone = PartialState().num_processes == 1
    with FileLock(path.with_suffix(".lock")) if alone else nullcontext():
        stored, unreadable = runs.resumable(path, name, len(usable), encode, chunk=_CHUNK, description=shown)
    _check_any(len(stored.get("rows", ())), studies, skipped + unreadable)
    rows = stored["rows"].tolist()
    return stored["latents"], [usable[row] for row in rows], [prompts[row] for row in rows], skipped + unreadable


def _check_any(count: int, studies: Sequence[Study], lines: Sequence[str]) -> None:
    if not count:
        first = f"the first: {lines[0]}" if lines else "the list is empty"
        raise InputError(f"no study to train on: {len(studies)} given, {first}")

"""Grounding: from a real image and a phrase to a heatmap, by the cross-attention of a text-to-image model.

The paper's way (Dombrowski et al. 2024; Vilouras et al. 2024 call it the noised one): the clean latent is noised
afresh at each chosen timestep and passed through the U-Net once, conditional on the prompt only, without guidance. The
attention to the tokens of the phrase is averaged over timesteps, heads and layers. As no trajectory is kept, images,
phrases and timesteps share a batch.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin, StableDiffusionPipeline

from chestxai import attention, models, reports, runs
from chestxai.profiles import GroundingSettings
from chestxai.studies import Fit, Frame, GroundTruth, Study

#: Phrases whose maps are written together: what a kill can cost.
CHUNK = 64


@dataclass(frozen=True)
class Heatmap:
    """Where a model sees a phrase, and how that was found.

    Attributes:
        values: float32 ``(h, w)``, mean attention probability before any normalisation; rows from the top.
        prompt: what the model was given.
        phrase: the words whose tokens were read.
        tokens: their positions in the tokenized prompt.
        layers: names of the layers averaged.
        timesteps: of the noise schedule, averaged.
        seed: of the noise.
    """

    values: np.ndarray
    prompt: str
    phrase: str
    tokens: tuple[int, ...]
    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    seed: int


def paper_timesteps(scheduler: SchedulerMixin, steps: int = 50, last: int = 40, stride: int = 1) -> list[int]:
    """Every ``stride``-th of the ``last`` of ``steps`` denoising timesteps, falling: little noise, not the most.

    The steps are DDIM's (Song et al. 2021) in the scheduler's own spacing, whatever its kind: some solvers list a
    timestep twice.

    Raises:
        ValueError: ``last`` is not between 1 and ``steps``, or there are more steps than the schedule has.
    """
    if not 1 <= last <= steps or stride < 1:
        raise ValueError(
            f"of {steps} steps the last 1 to {steps} can be read, with a stride from 1: got {last}, {stride}"
        )
    # set_timesteps would change the pipeline's own scheduler.
    own = DDIMScheduler.from_config(scheduler.config)
    own.set_timesteps(steps)
    return [int(t) for t in own.timesteps[-last:]][::stride]


def ground(
    pipeline: StableDiffusionPipeline,
    image: np.ndarray,
    prompt: str,
    phrase: str | None = None,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    layers: str | Sequence[str] = "all",
) -> Heatmap:
    """Where in ``image`` the model sees ``phrase`` of ``prompt`` (default: the whole prompt).

    Args:
        pipeline: of `models.load_pipeline`.
        image: uint8 ``(s, s)``, ``s = models.image_size(pipeline)``.
        prompt: text the model is given.
        phrase: the words of it to read; case and spacing are free.
        timesteps: of the noise schedule; default: `paper_timesteps`.
        seed: of the noise.
        layers: see `attention.select_layers`.

    Raises:
        ValueError: an image of another size or type, a phrase that is not in the prompt or cut off by the tokenizer,
            a timestep outside the schedule.
        FloatingPointError: the map has NaN: the model has diverged or overflows in its precision.
    """
    timesteps = paper_timesteps(pipeline.scheduler) if timesteps is None else list(timesteps)
    phrase = prompt if phrase is None else phrase
    values = ground_many(
        pipeline, np.asarray(image)[None], [prompt], [phrase], timesteps=timesteps, seed=seed, layers=layers
    )
    return Heatmap(
        values[0],
        prompt,
        phrase,
        tuple(reports.token_positions(pipeline.tokenizer, prompt, phrase)),
        tuple(attention.select_layers(pipeline.unet, layers)),
        tuple(timesteps),
        seed,
    )


def ground_many(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    phrases: Sequence[str],
    *,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    draws: int = 1,
    batch: int = 64,
    layers: str | Sequence[str] = "all",
) -> np.ndarray:
    """Heatmaps of many (image, prompt, phrase) at once: float32 ``(n, h, w)``, ``h`` the largest map's resolution.

    The noise of an image depends on the image, the timestep, the draw and the seed only: not on its neighbours, the
    batch size, or the model. So two models are compared under the same noise.

    Args:
        images: uint8 ``(n, s, s)``.
        prompts: ``n`` texts.
        phrases: ``n`` passages of them.
        timesteps: of the noise schedule; default: `paper_timesteps`.
        seed: of the noise.
        draws: independent noises for each timestep.
        batch: rows of one pass through the U-Net.
        layers: see `attention.select_layers`.

    Raises:
        ValueError, FloatingPointError: as `ground`, naming the row.
    """
    timesteps = paper_timesteps(pipeline.scheduler) if timesteps is None else list(timesteps)
    plan = [(i, i, t, d) for i in range(len(images)) for t in timesteps for d in range(draws)]
    with torch.inference_mode():
        maps = _passes(pipeline, images, prompts, phrases, plan, seed, batch, layers).heatmap()[:, 0].cpu().numpy()
    broken = np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))
    if len(broken):
        raise FloatingPointError(
            f"row {broken[0]} ({phrases[broken[0]]!r}): the attention is not finite; "
            "the model's weights have diverged, or overflow in half precision"
        )
    return maps


def ground_layers(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    phrases: Sequence[str],
    *,
    timesteps: Sequence[int],
    seed: int = 0,
    batch: int = 64,
) -> dict[str, np.ndarray]:
    """The same before averaging: by layer, float32 ``(n, timesteps, h, w)`` at the layer's own resolution.

    All of it is in memory: for some images, not for a data set.
    """
    plan = [(i, i * len(timesteps) + j, t, 0) for i in range(len(images)) for j, t in enumerate(timesteps)]
    with torch.inference_mode():
        maps = _passes(pipeline, images, prompts, phrases, plan, seed, batch, "all").maps()
    return {name: m[:, 0].reshape(len(images), len(timesteps), *m.shape[-2:]).cpu().numpy() for name, m in maps.items()}


def _passes(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    phrases: Sequence[str],
    plan: Sequence[tuple[int, int, int, int]],
    seed: int,
    batch: int,
    layers: str | Sequence[str],
) -> attention.Capture:
    """Run the U-Net over ``plan``, rows of (item, slot, timestep, draw), and return what was captured."""
    size = models.image_size(pipeline)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
        raise ValueError(
            f"expected uint8 images (n, {size}, {size}), got {images.dtype} {images.shape}; use studies.Frame"
        )
    if not len(images) or len({len(images), len(prompts), len(phrases)}) != 1:
        raise ValueError(f"one prompt and phrase per image: got {len(images)}, {len(prompts)} and {len(phrases)}")
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    outside = [t for _, _, t, _ in plan if not 0 <= t < schedule.config.num_train_timesteps]
    if outside or not plan:
        raise ValueError(f"timesteps must be 0 to {schedule.config.num_train_timesteps - 1}, got {outside or 'none'}")
    positions = []
    for i, (prompt, phrase) in enumerate(zip(prompts, phrases, strict=True)):
        try:
            positions.append(reports.token_positions(pipeline.tokenizer, prompt, phrase))
        except ValueError as error:
            raise ValueError(f"row {i}: {error}") from error
    unique_prompts = list(dict.fromkeys(prompts))
    states = models.encode_text(pipeline, unique_prompts)
    state_of = {prompt: i for i, prompt in enumerate(unique_prompts)}
    # One image may carry several phrases: encode it once.
    prints = [_print(image) for image in images]
    first = {p: i for i, p in reversed(list(enumerate(prints)))}
    order = list(first)
    latents = models.encode_images(pipeline, images[[first[p] for p in order]]).cpu()
    latent_of = {p: i for i, p in enumerate(order)}

    slots = 1 + max(slot for _, slot, _, _ in plan)
    tokens: list[list[int]] = [[]] * slots
    for item, slot, _, _ in plan:
        tokens[slot] = positions[item]
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    with attention.capture(pipeline.unet, tokens, layers) as seen:
        for start in range(0, len(plan), batch):
            rows = plan[start : start + batch]
            x = latents[[latent_of[prints[item]] for item, _, _, _ in rows]]
            noise = torch.stack([_noise(x.shape[1:], seed, prints[item], t, d) for item, _, t, d in rows])
            times = torch.tensor([t for _, _, t, _ in rows])
            noisy = schedule.add_noise(x, noise, times).to(device, dtype)
            text = states[[state_of[prompts[item]] for item, _, _, _ in rows]].to(device, dtype)
            seen.rows([slot for _, slot, _, _ in rows])
            pipeline.unet(noisy, times.to(device), text, return_dict=False)
    return seen


def _print(image: np.ndarray) -> int:
    """A number for the very pixels: 63 bits of SHA-256, so that no two images ever share it."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(image)).digest()[:8]) >> 1


def _noise(shape: Sequence[int], *key: int) -> torch.Tensor:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(state) >> 1))


def target_words(truth: GroundTruth, target: str = "finding") -> str:
    """The words of a row's phrase that are read: those that name the finding, else (or if there are none) all."""
    named = reports.name_in(truth.finding.phrase, truth.finding.name) if target == "finding" else ""
    return named or truth.finding.phrase


def ground_truths(
    pipeline: StableDiffusionPipeline,
    truths: Sequence[GroundTruth],
    settings: GroundingSettings,
    path: Path,
    *,
    seed: int = 0,
    fit: Fit = "crop",
    identity: str = "",
    description: str = "grounding",
) -> tuple[np.ndarray, list[GroundTruth], list[str]]:
    """Heatmaps of a whole data set, kept in ``path``; a finished file is read, an unfinished one gone on with.

    The prompt of a row is its phrase, as MS-CXR's are. Rows are done in chunks of `CHUNK`, each written in one step,
    so that a killed run loses at most one; beside the maps themselves, memory does not grow with the data.

    Args:
        pipeline: of `models.load_pipeline`, with the checkpoint's weights.
        truths: of `studies.phrases`.
        settings: timesteps, tokens and batch.
        path: the ``.safetensors`` file of the maps.
        seed: of the noise.
        fit: how an image becomes a square.
        identity: names the model's weights, by default a fingerprint of them; maps of another model are replaced.
        description: of the progress bar.

    Returns:
        maps float32 ``(n, h, w)``, the rows they belong to, and one line for each row left out (unreadable image,
        phrase too long for the tokenizer).

    Raises:
        ValueError: no row at all could be grounded; a damaged file of maps, named.
        FloatingPointError: the attention of a phrase is not finite.
    """
    path = Path(path)
    identity = identity or models.fingerprint(pipeline)
    name = runs.fingerprint(identity, settings.model_dump(), seed, fit, [[t.key, _content(t.study)] for t in truths])
    parts = path.with_suffix(".parts")
    chunks = [truths[i : i + CHUNK] for i in range(0, len(truths), CHUNK)]
    if path.is_file() and runs.tensor_metadata(path).get("identity") == name:
        shutil.rmtree(parts, ignore_errors=True)  # a kill after the last write leaves it
        stored = runs.load_tensors(path)
        return _kept(truths, stored["maps"].numpy(), stored["rows"].tolist(), runs.tensor_metadata(path))
    for stray in path.parent.glob(f".{path.name}.*.part"):
        stray.unlink()
    parts.mkdir(parents=True, exist_ok=True)
    timesteps = paper_timesteps(pipeline.scheduler, settings.steps, settings.last, settings.stride)
    size = models.image_size(pipeline)
    maps, rows, skipped = [], [], []
    bar = runs.progress(total=len(truths), description=description)
    for number, chunk in enumerate(chunks):
        part = parts / f"{number:05d}.safetensors"
        if not (part.is_file() and runs.tensor_metadata(part).get("identity") == name):
            keep, lines = [], []
            for i, truth in enumerate(chunk, start=number * CHUNK):
                try:
                    words = target_words(truth, settings.target)
                    reports.token_positions(pipeline.tokenizer, truth.finding.phrase, words)
                    image = Frame(*truth.study.size, size, fit).image(truth.study.pixels())
                    keep.append((i, image, truth.finding.phrase, words))
                except ValueError as error:
                    lines.append(" ".join(f"{truth.key}: {error}".split()))
            found = np.zeros((0, 1, 1), np.float32)
            if keep:
                try:
                    found = ground_many(
                        pipeline,
                        np.stack([image for _, image, _, _ in keep]),
                        [prompt for _, _, prompt, _ in keep],
                        [words for _, _, _, words in keep],
                        timesteps=timesteps,
                        seed=seed,
                        draws=settings.draws,
                        batch=settings.batch,
                    )
                except FloatingPointError as error:
                    raise FloatingPointError(f"{path}, rows from {keep[0][0]}: {error}") from error
            runs.save_tensors(
                part,
                {"maps": torch.from_numpy(found), "rows": torch.tensor([i for i, *_ in keep], dtype=torch.long)},
                {"identity": name, "skipped": "\n".join(lines)},
            )
        stored = runs.load_tensors(part)
        if len(stored["rows"]):
            maps.append(stored["maps"])
            rows.append(stored["rows"])
        skipped += [line for line in runs.tensor_metadata(part).get("skipped", "").split("\n") if line]
        bar.update(len(chunk))
    bar.close()
    if not maps:
        shutil.rmtree(parts)  # or the next call, the images put right, would find nothing to do
        raise ValueError(
            f"none of {len(truths)} phrases could be grounded; the first: {(skipped or ['no phrases'])[0]}"
        )
    runs.save_tensors(
        path, {"maps": torch.cat(maps), "rows": torch.cat(rows)}, {"identity": name, "skipped": "\n".join(skipped)}
    )
    shutil.rmtree(parts)
    return _kept(truths, torch.cat(maps).numpy(), torch.cat(rows).tolist(), runs.tensor_metadata(path))


def _content(study: Study) -> str | int | None:
    """What tells, without reading a file, that an image is another (or has been put right)."""
    if study.array is not None:
        return hashlib.sha256(np.ascontiguousarray(study.array)).hexdigest()
    return study.path.stat().st_size if study.path is not None and study.path.is_file() else None


def _kept(
    truths: Sequence[GroundTruth], maps: np.ndarray, rows: Sequence[int], metadata: dict[str, str]
) -> tuple[np.ndarray, list[GroundTruth], list[str]]:
    skipped = [line for line in metadata.get("skipped", "").split("\n") if line]
    return maps, [truths[i] for i in rows], skipped

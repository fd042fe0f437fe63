"""Grounding: from a real image and a phrase to a heatmap, by the cross-attention of a text-to-image model.

The attention to the tokens of the phrase is averaged over timesteps, heads and layers, while the U-Net runs in one of
three ways:

- ``noised``, the paper's (Dombrowski et al. 2024): the clean latent is noised afresh at each chosen timestep and passed
  through the U-Net once, conditional on the prompt only, without guidance. As no trajectory is kept, images, phrases
  and timesteps share a batch.
- ``inversion`` (as Vilouras et al. 2024 do): the latent is taken along the deterministic path of DDIM inversion (Song
  et al. 2021), conditional on the prompt, and read at the chosen timesteps on it.
- ``generation``: the model draws an image for the prompt and is read while it does; no real image is looked at, so its
  map says where the model would put the finding.

From a shell, on one process or, through ``accelerate launch -m``, on many GPUs and machines:

    python -m chestxai.grounding --profile paper --variant learnable --data /path/to/folder

leaves the maps of a fine-tuned run's checkpoints where chapter 3 of the book finds them finished.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from accelerate import PartialState
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, SchedulerMixin, StableDiffusionPipeline

from chestxai import attention, finetune, models, profiles, reports, runs
from chestxai.profiles import GroundingSettings, Method, Profile
from chestxai.studies import Fit, Frame, GroundTruth, Study, phrases

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
        method: "noised", "inversion" or "generation".
        image: uint8 ``(s, s)``, what the map is about: the image that was given or, of "generation", drawn.
    """

    values: np.ndarray
    prompt: str
    phrase: str
    tokens: tuple[int, ...]
    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    seed: int
    method: Method
    image: np.ndarray


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
    image: np.ndarray | None,
    prompt: str,
    phrase: str | None = None,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    layers: attention.Layers = "all",
    method: Method = "noised",
    steps: int = 50,
    guidance: float = 1.0,
) -> Heatmap:
    """Where in ``image`` the model sees ``phrase`` of ``prompt`` (default: the whole prompt).

    Args:
        pipeline: of `models.load_pipeline`.
        image: uint8 ``(s, s)``, ``s = models.image_size(pipeline)``; None for "generation", which reads none.
        prompt: text the model is given.
        phrase: the words of it to read; case and spacing are free.
        timesteps: of the noise schedule, to be read; default: `paper_timesteps`. On a path of "inversion" or
            "generation" they must be among its ``steps``.
        seed: of the noise.
        layers: see `attention.select_layers`.
        method: how the U-Net runs, see the module.
        steps: of the whole path of "inversion" or "generation", in the scheduler's own spacing.
        guidance: classifier-free guidance scale of "generation", whose conditional half is read.

    Raises:
        ValueError: an image of another size or type, a phrase that is not in the prompt or cut off by the tokenizer,
            a timestep outside the schedule or off the path, an unknown method.
        FloatingPointError: the map has NaN: the model has diverged or overflows in its precision.
    """
    phrase = prompt if phrase is None else phrase
    images = None if image is None else np.asarray(image)[None]
    timesteps = _chosen(pipeline, timesteps, steps)
    seen, drawn = _run(
        pipeline, images, [prompt], [phrase], timesteps, seed, 1, 64, layers, method, steps, guidance, decode=True
    )
    values = _maps(seen, [phrase])[0]
    return Heatmap(
        values,
        prompt,
        phrase,
        tuple(reports.token_positions(pipeline.tokenizer, prompt, phrase)),
        tuple(attention.select_layers(pipeline.unet, layers)),
        tuple(timesteps),
        seed,
        method,
        np.asarray(image) if drawn is None else drawn[0],
    )


def ground_many(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray | None,
    prompts: Sequence[str],
    phrases: Sequence[str],
    *,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    draws: int = 1,
    batch: int = 64,
    layers: attention.Layers = "all",
    method: Method = "noised",
    steps: int = 50,
    guidance: float = 1.0,
) -> np.ndarray:
    """Heatmaps of many (image, prompt, phrase) at once: float32 ``(n, h, w)``, ``h`` the largest map's resolution.

    The noise of an image depends on the image, the timestep, the draw and the seed only: not on its neighbours, the
    batch size, or the model. So two models are compared under the same noise.

    Args:
        images: uint8 ``(n, s, s)``; None for "generation".
        prompts: ``n`` texts.
        phrases: ``n`` passages of them.
        timesteps: as `ground`.
        seed: of the noise.
        draws: independent noises, for each timestep of "noised", or to begin "generation" with; "inversion" has none.
        batch: rows of one pass through the U-Net: what bounds its memory.
        layers, method, steps, guidance: as `ground`.

    Raises:
        ValueError, FloatingPointError: as `ground`, naming the row.
    """
    timesteps = _chosen(pipeline, timesteps, steps)
    seen, _ = _run(pipeline, images, prompts, phrases, timesteps, seed, draws, batch, layers, method, steps, guidance)
    return _maps(seen, phrases)


def ground_groups(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    phrases: Sequence[str],
    *,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    batch: int = 64,
) -> dict[str, np.ndarray]:
    """As `ground_many`, of the "phrase" and, from the same passes, of the tokens that are no words.

    Returns:
        float32 ``(n, h, w)`` of "phrase", "begin", "end" and "padding" (see `reports.token_groups`); NaN for a prompt
        that has no such token.
    """
    seen, _ = _run(pipeline, images, prompts, phrases, _chosen(pipeline, timesteps, 50), seed, 1, batch, others=True)
    return {name: maps.cpu().numpy() for name, maps in zip(seen.groups, seen.heatmap().unbind(dim=1), strict=True)}


def _maps(seen: attention.Capture, phrases: Sequence[str]) -> np.ndarray:
    maps = seen.heatmap()[:, 0].cpu().numpy()
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
    seen, _ = _run(pipeline, images, prompts, phrases, list(timesteps), seed, 1, batch, times="keep")
    found = seen.times.index
    order = [found(t) for t in timesteps]
    return {name: m[order, :, 0].transpose(0, 1).cpu().numpy() for name, m in seen.maps().items()}


def _chosen(pipeline: StableDiffusionPipeline, timesteps: Sequence[int] | None, steps: int) -> list[int]:
    if timesteps is not None:
        return [int(t) for t in timesteps]
    return paper_timesteps(pipeline.scheduler, steps, max(1, round(steps * 0.8)))


@torch.inference_mode()
def _run(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray | None,
    prompts: Sequence[str],
    phrases: Sequence[str],
    timesteps: list[int],
    seed: int,
    draws: int,
    batch: int,
    layers: attention.Layers = "all",
    method: Method = "noised",
    steps: int = 50,
    guidance: float = 1.0,
    times: attention.Times = "mean",
    decode: bool = False,
    others: bool = False,
) -> tuple[attention.Capture, np.ndarray | None]:
    """Run the U-Net and return what was captured, a slot for each phrase, and the images that were drawn, if any."""
    rows = _checked(pipeline, images, prompts, phrases, timesteps, method, steps)
    tokens = []
    for i, (prompt, phrase) in enumerate(zip(prompts, phrases, strict=True)):
        try:
            read = {"phrase": reports.token_positions(pipeline.tokenizer, prompt, phrase)}
            tokens.append(read | (reports.token_groups(pipeline.tokenizer, prompt) if others else {}))
        except ValueError as error:
            raise ValueError(f"row {i}: {error}") from error
    unique = {prompt: i for i, prompt in enumerate(dict.fromkeys([*prompts, *([""] * (method == "generation"))]))}
    states = models.encode_text(pipeline, list(unique)).to(pipeline.unet.dtype)
    text = states[[unique[prompt] for prompt in prompts]]
    with attention.capture(pipeline.unet, tokens, layers, times=times) as seen:
        if method == "generation":
            drawn = []
            for draw in range(draws):
                for part in torch.arange(rows).split(max(1, batch // (2 if guidance > 1 else 1))):
                    drawn.append(
                        _draw(
                            pipeline, seen, part, text, states[unique[""], None], timesteps, seed, draw, steps, guidance
                        )
                    )
            return seen, models.decode_latents(pipeline, torch.cat(drawn)) if decode else None
        # One image may carry several phrases: encode it once.
        prints = [_print(image) for image in images]
        first = {p: i for i, p in reversed(list(enumerate(prints)))}
        latents = models.encode_images(pipeline, images[list(first.values())]).cpu()
        place = {p: i for i, p in enumerate(first)}
        latents = latents[[place[p] for p in prints]]
        if method == "inversion":
            for part in torch.arange(rows).split(batch):
                _invert(pipeline, seen, part, latents, text, timesteps, steps)
        else:
            _noised(pipeline, seen, prints, latents, text, timesteps, seed, draws, batch)
    return seen, None


def _checked(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray | None,
    prompts: Sequence[str],
    phrases: Sequence[str],
    timesteps: Sequence[int],
    method: Method,
    steps: int,
) -> int:
    """The number of rows, if all of it can be run."""
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(get_args(Method))}")
    if (images is None) != (method == "generation"):
        raise ValueError("'generation' reads no image: give None" if images is not None else f"{method!r} needs images")
    if images is not None:
        size = models.image_size(pipeline)
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
            raise ValueError(
                f"expected uint8 images (n, {size}, {size}), got {images.dtype} {images.shape}; use studies.Frame"
            )
    rows = len(prompts if images is None else images)
    if not rows or {rows, len(prompts), len(phrases)} != {rows}:
        raise ValueError(f"one prompt and phrase per image: got {rows}, {len(prompts)} and {len(phrases)}")
    last = pipeline.scheduler.config.num_train_timesteps - 1
    outside = [t for t in timesteps if not 0 <= t <= last]
    if outside or not timesteps:
        raise ValueError(f"timesteps must be 0 to {last}, got {outside or 'none'}")
    if method != "noised":
        path = paper_timesteps(pipeline.scheduler, steps, steps)
        off = sorted(set(timesteps) - set(path))
        if off:
            raise ValueError(f"timesteps {off} are not among the {steps} of the path, {path[-1]} to {path[0]}")
    return rows


def _noised(
    pipeline: StableDiffusionPipeline,
    seen: attention.Capture,
    prints: Sequence[int],
    latents: torch.Tensor,
    text: torch.Tensor,
    timesteps: Sequence[int],
    seed: int,
    draws: int,
    batch: int,
) -> None:
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    plan = [(i, t, d) for i in range(len(latents)) for t in timesteps for d in range(draws)]
    for start in range(0, len(plan), batch):
        part = plan[start : start + batch]
        rows = [i for i, _, _ in part]
        noise = torch.stack([_noise(latents.shape[1:], seed, prints[i], t, d) for i, t, d in part])
        times = torch.tensor([t for _, t, _ in part])
        noisy = schedule.add_noise(latents[rows], noise, times).to(text)
        seen.rows(rows)
        seen.run(noisy, times.to(text.device), text[rows])


def _invert(
    pipeline: StableDiffusionPipeline,
    seen: attention.Capture,
    rows: torch.Tensor,
    latents: torch.Tensor,
    text: torch.Tensor,
    timesteps: Sequence[int],
    steps: int,
) -> None:
    schedule = DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    schedule.set_timesteps(steps)
    x, states = latents[rows].to(text), text[rows]
    for t in schedule.timesteps:
        seen.rows(rows if t in timesteps else torch.full_like(rows, -1))
        if t == max(timesteps):
            seen.run(x, t, states)
            break
        x = schedule.step(pipeline.unet(x, t, states, return_dict=False)[0], t, x).prev_sample


def _draw(
    pipeline: StableDiffusionPipeline,
    seen: attention.Capture,
    rows: torch.Tensor,
    text: torch.Tensor,
    empty: torch.Tensor,
    timesteps: Sequence[int],
    seed: int,
    draw: int,
    steps: int,
    guidance: float,
) -> torch.Tensor:
    schedule = DDIMScheduler.from_config(pipeline.scheduler.config)
    schedule.set_timesteps(steps)
    side = pipeline.unet.config.sample_size
    shape = (pipeline.unet.config.in_channels, side, side)
    x = torch.stack([_noise(shape, seed, int(row), draw) for row in rows]).to(text)
    twice = guidance > 1
    states = torch.cat([empty.expand(len(rows), -1, -1), text[rows]]) if twice else text[rows]
    nothing = torch.full_like(rows, -1)
    for t in schedule.timesteps:
        read = rows if t in timesteps else nothing
        seen.rows(torch.cat([nothing, read]) if twice else read)
        found = pipeline.unet(torch.cat([x, x]) if twice else x, t, states, return_dict=False)[0]
        if twice:
            without, given = found.chunk(2)
            found = without + guidance * (given - without)
        x = schedule.step(found, t, x).prev_sample
    return x.float()


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
    so that a killed run loses at most one; beside the maps themselves, memory does not grow with the data. Of several
    processes (``accelerate launch``; all call this with the same arguments and see the same ``path``) each does its
    share of the chunks, the main one joins them, and all return the same.

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
    if _is_named(path, name):
        shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)  # a kill after the last write leaves it
        stored, about = runs.load_tensors(path), runs.tensor_metadata(path)
        return stored["maps"].numpy(), [truths[i] for i in stored["rows"].tolist()], _skipped(about)
    chunks = [truths[i : i + CHUNK] for i in range(0, len(truths), CHUNK)]
    parts = [path.with_suffix(".parts") / f"{number:05d}.safetensors" for number in range(len(chunks))]
    left = [number for number, part in enumerate(parts) if not _is_named(part, name)]
    state = PartialState()
    state.wait_for_everyone()  # all have looked before one writes
    if state.is_main_process:
        runs.tidy(path.parent, path.name)
    mine = left[state.process_index :: state.num_processes]
    bar = runs.progress(
        total=sum(len(chunks[number]) for number in mine),
        description=description,
        disable=not state.is_main_process,
    )
    for number in mine:
        try:
            found, rows, lines = _ground_chunk(pipeline, chunks[number], settings, seed, fit)
        except FloatingPointError as error:
            raise FloatingPointError(f"{path}, rows from {number * CHUNK}: {error}") from error
        rows = torch.tensor([number * CHUNK + i for i in rows], dtype=torch.long)
        tensors = {"maps": torch.from_numpy(found), "rows": rows}
        runs.save_tensors(parts[number], tensors, {"identity": name, "skipped": "\n".join(lines)})
        bar.update(len(chunks[number]))
    bar.close()
    state.wait_for_everyone()
    maps, rows, skipped = [], [], []
    for part in parts:
        stored = runs.load_tensors(part)
        if len(stored["rows"]):
            maps.append(stored["maps"])
            rows += stored["rows"].tolist()
        skipped += _skipped(runs.tensor_metadata(part))
    if maps and state.is_main_process:
        tensors = {"maps": torch.cat(maps), "rows": torch.tensor(rows)}
        runs.save_tensors(path, tensors, {"identity": name, "skipped": "\n".join(skipped)})
    state.wait_for_everyone()  # all have read the parts
    if state.is_main_process:
        # Also where there are no maps, or the next call, the images put right, would find nothing to do.
        shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)
    if not maps:
        raise ValueError(
            f"none of {len(truths)} phrases could be grounded; the first: {(skipped or ['no phrases'])[0]}"
        )
    return torch.cat(maps).numpy(), [truths[i] for i in rows], skipped


def _ground_chunk(
    pipeline: StableDiffusionPipeline, chunk: Sequence[GroundTruth], settings: GroundingSettings, seed: int, fit: Fit
) -> tuple[np.ndarray, list[int], list[str]]:
    """Maps float32 ``(n, h, w)``, the positions in the chunk that they belong to, and a line for each one left out."""
    size = models.image_size(pipeline)
    keep, lines = [], []
    for i, truth in enumerate(chunk):
        try:
            words = target_words(truth, settings.target)
            reports.token_positions(pipeline.tokenizer, truth.finding.phrase, words)
            image = Frame(*truth.study.size, size, fit).image(truth.study.pixels())
            keep.append((i, image, truth.finding.phrase, words))
        except ValueError as error:
            lines.append(" ".join(f"{truth.key}: {error}".split()))
    if not keep:
        return np.zeros((0, 1, 1), np.float32), [], lines
    rows, images, prompts, words = zip(*keep, strict=True)
    maps = ground_many(
        pipeline,
        None if settings.method == "generation" else np.stack(images),
        prompts,
        words,
        timesteps=paper_timesteps(pipeline.scheduler, settings.steps, settings.last, settings.stride),
        seed=seed,
        draws=settings.draws,
        batch=settings.batch,
        method=settings.method,
        steps=settings.steps,
        guidance=settings.guidance,
    )
    return maps, list(rows), lines


def ground_run(
    profile: Profile, run: Path, truths: Sequence[GroundTruth]
) -> Iterator[tuple[int, np.ndarray, list[GroundTruth], list[str]]]:
    """`ground_truths` of the base, which is step 0, and of every checkpoint of a finished run.

    The maps are kept in ``run/maps/step-<k>.safetensors``. Their noise is that of seed 0 in every run, so that runs
    differ in their weights only.

    Args:
        profile: the one the run was made with.
        run: a folder that `finetune.finetune` has finished.
        truths: of the profile's test split.

    Yields:
        The step, and what `ground_truths` returns.

    Raises:
        FileNotFoundError: the run is not finished; says how to make it.
        ValueError, FloatingPointError: as `ground_truths`.
    """
    run = finetune.check_finished(run)
    identity = runs.read_json(run / "run.json")["identity"]
    pipeline = models.load_pipeline(profile.base, device=PartialState().device)
    for step in (0, *finetune.checkpoints(run)):
        if step:
            finetune.load_checkpoint(pipeline, run, step)
        yield (
            step,
            *ground_truths(
                pipeline,
                truths,
                profile.grounding,
                run / "maps" / f"step-{step}.safetensors",
                seed=0,
                fit=profile.data.fit,
                identity=f"{identity}-{step}",
                description=f"step {step}",
            ),
        )


def _is_named(path: Path, name: str) -> bool:
    return path.is_file() and runs.tensor_metadata(path).get("identity") == name


def _skipped(metadata: dict[str, str]) -> list[str]:
    return [line for line in metadata.get("skipped", "").split("\n") if line]


def _content(study: Study) -> str | int | None:
    """What tells, without reading a file, that an image is another (or has been put right)."""
    if study.array is not None:
        return hashlib.sha256(np.ascontiguousarray(study.array)).hexdigest()
    return study.path.stat().st_size if study.path is not None and study.path.is_file() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.grounding``: the maps of one run of a profile."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.grounding",
        description="Ground all test phrases with every checkpoint of a fine-tuned run; finished maps are left alone.",
    )
    profiles.add_options(parser)
    given = parser.parse_args(arguments)
    profile = profiles.load(given.profile)
    run = profiles.run_folder(profile, given.variant, given.seed, given.out)
    runs.processes()
    test = phrases(profiles.studies(profile, "test", given.data, boxes=True))
    for step, maps, _, skipped in ground_run(profile, run, test):
        if PartialState().is_main_process:
            print(f"{run}: step {step}, {len(maps)} maps, {len(skipped)} phrases left out")
    return 0


if __name__ == "__main__":
    # Under its own name, not as __main__, so that what it saves names this module.
    from chestxai import grounding as module

    runs.command(module.main)

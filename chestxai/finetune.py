"""Fine-tuning a latent diffusion pipeline with the text encoder frozen or learnable.

The two treatments see the same images in the same order with the same noise, timesteps and dropped prompts: all of
these depend on the seed and the step alone. So a run resumed at any step equals an undisturbed one, and the global
batch is the same on one process or on many.

From a shell, on one process or, through ``accelerate launch -m``, on many GPUs and machines:

    python -m chestxai.finetune --profile paper --variant learnable --data /path/to/folder

leaves the run where chapter 2 of the book finds it finished.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from chestxai import models, profiles, reports, runs
from chestxai.profiles import FinetuneSettings, check_variant
from chestxai.studies import Fit, Frame, Study

_LOG = ["step", "loss", "grad_norm", "lr", "seconds", "images_per_second"]
# What the later chapters leave in a run's folder: worth nothing once the model is another.
_RESULTS = ("grounding.csv", "fidelity.json", "maps", "samples")
# Images in memory at a time while latents are made.
_CHUNK = 256
# Bytes of text embeddings kept; those of a hundred thousand prompts of Stable Diffusion would be 30 GB.
_TEXT_CACHE = 4e9


def finetune(
    pipeline: StableDiffusionPipeline,
    studies: Sequence[Study],
    settings: FinetuneSettings,
    out: Path,
    *,
    variant: str = "frozen",
    seed: int = 0,
    fit: Fit = "crop",
    data_fingerprint: str = "",
    cache: Path | None = None,
    about: dict[str, Any] | None = None,
) -> Path:
    """Fine-tune ``pipeline`` on the images and report prompts of ``studies`` and leave a finished run in ``out``.

    The loss is the mean squared error of the predicted noise (Ho et al. 2020, eq. 14) or of the velocity, as the
    pipeline's scheduler says. Latents are encoded once (the posterior's mode); with a frozen text encoder the
    embeddings are too, where memory allows. The text encoder runs without dropout in both treatments, so that they
    differ in nothing but whether its weights learn.

    A finished and unchanged run is returned at once; an unfinished one is resumed from its last checkpoint; one made
    with other settings, data or base weights is replaced. An interrupted call leaves ``pipeline`` as it was given.
    A resumed run equals an undisturbed one, but for the loss scale under fp16, which starts afresh.

    Args:
        pipeline: trained in place; at the end, also of a run that was finished before, it holds the averaged (EMA)
            weights.
        studies: training studies; one whose image cannot be read or whose report is empty is skipped and listed.
        settings: see `FinetuneSettings`.
        out: ``runs/<profile>/<variant>/seed-<n>``.
        variant: "frozen" or "learnable", the treatment of the text encoder.
        seed: of everything drawn.
        fit: how an image becomes a square.
        data_fingerprint: names the data; part of what makes a run the same, with the studies' ids and reports.
        cache: folder for encoded latents, shared between runs on the same data.
        about: goes into ``run.json`` as it is: `profiles.about`, from which the run can be repeated.

    Returns:
        ``out``, with ``run.json`` (written last), ``model/``, ``checkpoints/step-<k>/`` and ``train.csv``, whose
        columns are step, loss (mean over the global batch), grad_norm (before clipping), lr (of the U-Net, in this
        step), seconds (spent in steps since the first one, over all starts) and images_per_second.

    Raises:
        ValueError: unknown variant, no usable study, a checkpoint that does not fit the model, a batch that cannot be
            shared equally, a way of being distributed that the loop does not know.
        OSError: too little disk space, told before the first step.
        FloatingPointError: the loss is no longer finite.
    """
    check_variant(variant)
    out = Path(out)
    recipe = runs.fingerprint(
        settings.model_dump(),
        variant,
        seed,
        fit,
        data_fingerprint,
        [[s.id, s.report] for s in studies],
        _architecture(pipeline),
    )
    weights = models.fingerprint(pipeline)
    identity = f"{recipe}-{weights}"
    learnable = variant == "learnable"
    trained = {"unet": pipeline.unet} | ({"text_encoder": pipeline.text_encoder} if learnable else {})
    if is_finished(out):
        before = runs.read_json(out / "run.json")
        # In a notebook the cell is run again with the pipeline that it trained the first time.
        again = before.get("model") == weights and str(before.get("identity")).startswith(f"{recipe}-")
        if again or before.get("identity") == identity:
            shutil.rmtree(out / "resume", ignore_errors=True)  # of many processes, all try
            if not again:
                finished = models.load_pipeline(out / "model", device="cpu")
                for name, part in trained.items():
                    part.load_state_dict(getattr(finished, name).state_dict())
            return out

    accelerator = _accelerator(settings)
    world = accelerator.num_processes
    if settings.batch_size % (world * settings.accumulate):
        raise ValueError(
            f"batch_size {settings.batch_size} is not a multiple of {world} processes × "
            f"{settings.accumulate} accumulated steps"
        )
    pipeline.to(accelerator.device)
    _check_space(out, pipeline, trained, settings)
    latents, prompts, skipped = _training_latents(pipeline, studies, fit, cache)
    if accelerator.is_main_process:
        _tidy(out, identity)
    accelerator.wait_for_everyone()

    started = time.perf_counter()
    with _put_back(trained, out / "resume" / f"base-{accelerator.process_index}.safetensors"):
        _train(accelerator, pipeline, trained, latents, prompts, settings, out, identity, seed)
        if accelerator.is_main_process:
            models.save_pipeline(pipeline, out / "model")
            trace = pd.read_csv(out / "train.csv")
            runs.write_json(
                out / "run.json",
                {
                    "finished": True,
                    "identity": identity,
                    "model": models.fingerprint(pipeline),
                    "variant": variant,
                    "seed": seed,
                    "settings": settings.model_dump(),
                    "data": {"fingerprint": data_fingerprint, "studies": len(prompts), "skipped": skipped},
                    "processes": world,
                    "seconds": round(float(trace["seconds"].iloc[-1]), 2),
                    "wall_seconds_last_start": round(time.perf_counter() - started, 2),
                    "final_loss": round(float(trace["loss"].tail(50).mean()), 6),
                    **runs.record(),
                    **(about or {}),
                },
            )
    accelerator.wait_for_everyone()  # each has a file of its own there
    # Last, so that a kill in between costs no more than writing the model again.
    if accelerator.is_main_process:
        runs.remove(out / "resume")
    accelerator.wait_for_everyone()
    return out


def _accelerator(settings: FinetuneSettings) -> Accelerator:
    # accelerate keeps the precision of the first run of a process and refuses another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != settings.precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
        step_scheduler_with_optimizer=False,
    )
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate passes over this wish on CPUs, though torch can shard there as well.
        # Said to PartialState, which every AcceleratorState takes it from again.
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    other = state.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if other or (state.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise ValueError(
            f"fine-tuning knows DDP and version 2 of FSDP, not {state.distributed_type.value}"
            f"{'' if other else ' version 1'}: use data/accelerate/ddp.yaml or data/accelerate/fsdp.yaml"
        )
    if accelerator.is_fsdp2:
        # accelerate's own outlives the run, and with it which blocks of the first model are gathered at a time.
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # autocast chooses the precision of each operation, as it does everywhere else; gradients stay in float32.
        state.fsdp_plugin.mixed_precision_policy = None
    return accelerator


class _Model(torch.nn.Module):
    """The modules that learn as one, which is what DDP and FSDP take; ``text`` holds states, or tokens to encode."""

    def __init__(self, unet: torch.nn.Module, text_encoder: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        # FSDP gathers the weights of one of these blocks at a time.
        blocks = {name for part in self.children() for name in getattr(part, "_no_split_modules", None) or ()}
        self._no_split_modules = sorted(blocks & {type(module).__name__ for module in self.modules()})

    def forward(self, noisy: Tensor, times: Tensor, text: dict[str, Tensor]) -> Tensor:
        states = text["states"] if "states" in text else models.text_states(self.text_encoder, text).float()
        return self.unet(noisy, times, states, return_dict=False)[0]


def _whole(value: Tensor) -> Tensor:
    """A tensor that FSDP has spread over the processes, which must all ask, in full; any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(whole: Tensor, other: Tensor) -> Tensor:
    """The inverse: ``whole`` spread as ``other`` is, and where it is."""
    whole = whole.to(other.device)
    return distribute_tensor(whole, other.device_mesh, other.placements) if isinstance(other, DTensor) else whole


def _train(
    accelerator: Accelerator,
    pipeline: StableDiffusionPipeline,
    trained: dict[str, torch.nn.Module],
    latents: Tensor,
    prompts: list[str],
    settings: FinetuneSettings,
    out: Path,
    identity: str,
    seed: int,
) -> None:
    """All steps from the last checkpoint on; at the end the modules ``trained`` hold their averages."""
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    micro = settings.batch_size // (world * settings.accumulate)
    learnable = "text_encoder" in trained
    unique = sorted(set(prompts) | {""})
    row_of = {prompt: i for i, prompt in enumerate(unique)}
    text_rows, empty = torch.tensor([row_of[p] for p in prompts]), row_of[""]
    tokens = models.tokenize(pipeline, unique)
    text = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    pipeline.text_encoder.eval()  # no dropout, in both treatments
    if not learnable and text["input_ids"].numel() * pipeline.text_encoder.config.hidden_size * 4 <= _TEXT_CACHE:
        with accelerator.autocast():  # in the precision in which the learnable one runs
            text = {"states": models.encode_text(pipeline, unique).cpu()}

    for part in trained.values():
        part.requires_grad_(True)
    pipeline.unet.train()
    rates = {"unet": settings.learning_rate, "text_encoder": settings.text_learning_rate}
    # What FSDP has sharded cannot be made whole again: it gets a copy, and the pipeline stays as it is, off the device.
    model = _Model(**(copy.deepcopy(trained) if accelerator.is_fsdp2 else trained))
    if accelerator.is_fsdp2:
        for part in trained.values():
            part.to("cpu")
    groups = [{"params": list(getattr(model, name).parameters()), "lr": rates[name]} for name in trained]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    own = {name: list(getattr(model, name).parameters()) for name in trained}  # to list them takes 2 % of a step
    parameters = [p for name in trained for p in own[name]]
    averages = {
        name: _Average(own[name], decay=settings.ema_decay, use_ema_warmup=True, power=0.75) for name in trained
    }
    first = _resume(out, identity, trained, own, optimizer.optimizer, averages)
    warmup = _warmup(optimizer.optimizer, settings.warmup, first)
    log = _Log(out / "train.csv", first, accelerator.is_main_process)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    timesteps = schedule.config.num_train_timesteps
    bar = runs.progress(
        range(first, settings.steps),
        total=settings.steps,
        initial=first,
        description=f"fine-tune · {'learnable' if learnable else 'frozen'} · seed {seed}",
        disable=not accelerator.is_main_process,
    )
    for step in bar:
        began = time.perf_counter()
        batch = draw(step, seed, len(latents), settings, latents.shape[1:], timesteps)
        total = torch.zeros((), device=device)
        for part in range(settings.accumulate):
            mine = slice((part * world + rank) * micro, (part * world + rank + 1) * micro)
            rows, noise, times, dropped = (value[mine] for value in batch)
            x, noise, times = latents[rows].to(device), noise.to(device), times.to(device)
            chosen = torch.where(dropped, empty, text_rows[rows])
            given = {name: values[chosen].to(device) for name, values in text.items()}
            with accelerator.accumulate(prepared), accelerator.autocast():
                if not learnable and "states" not in given:
                    given = {"states": models.text_states(pipeline.text_encoder, given).float()}
                predicted = prepared(schedule.add_noise(x, noise, times), times, given)
                loss = F.mse_loss(predicted.float(), _target(schedule, x, noise, times))
                accelerator.backward(loss)
                total += loss.detach() / settings.accumulate
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        for name, average in averages.items():
            average.step(own[name])
        rate = optimizer.param_groups[0]["lr"]
        warmup.step()
        # One read from the device a step, for every read waits for it.
        value, length = torch.stack([accelerator.reduce(total, "mean"), _whole(norm).float()]).tolist()
        if not np.isfinite(value):
            raise FloatingPointError(
                f"{out}: the loss is {value} at step {step + 1}; lower the learning rate or use bf16 instead of fp16"
            )
        log.add(step + 1, value, length, rate, time.perf_counter() - began, settings.batch_size)
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            log.flush()
            if accelerator.is_main_process or accelerator.is_fsdp2:
                writes = accelerator.is_main_process
                _checkpoint(out, step + 1, identity, trained, own, optimizer.optimizer, averages, writes)
            accelerator.wait_for_everyone()
    for name, average in averages.items():
        average.shadow_params = [_whole(value) for value in average.shadow_params]
        average.copy_to(trained[name].parameters())


class _Average(EMAModel):
    """diffusers' average with its warm-up, updated in one pass over memory and without a temporary copy."""

    @torch.no_grad()
    def step(self, parameters: list[torch.nn.Parameter]) -> None:
        self.optimization_step += 1
        get_ema_multi_avg_fn(self.get_decay(self.optimization_step))(self.shadow_params, parameters, None)


@contextmanager
def _put_back(trained: dict[str, torch.nn.Module], kept: Path) -> Iterator[None]:
    """Leave the modules as plain ones in eval mode; after an exception, Ctrl-C included, with the weights they had.

    Else a second call in the same notebook would take half-trained weights for the base. The weights wait in the file
    ``kept``: in memory they would be one more copy beside the average and the moments.
    """
    before = {f"{name}/{key}": value for name, part in trained.items() for key, value in part.state_dict().items()}
    runs.save_tensors(kept, before)
    del before
    device = trained["unet"].device
    try:
        yield
    except BaseException:
        before = runs.load_tensors(kept)
        for name, part in trained.items():
            part.load_state_dict({key: before[f"{name}/{key}"] for key in part.state_dict()})
        raise
    finally:
        runs.remove(kept)
        for part in trained.values():
            part.zero_grad()
            part.to(device).eval().requires_grad_(False)


def _warmup(optimizer: torch.optim.Optimizer, steps: int, done: int) -> torch.optim.lr_scheduler.LRScheduler:
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=steps, last_epoch=done - 1)


def is_finished(out: Path, identity: str | None = None) -> bool:
    """Whether ``out`` holds a finished run (made with these very settings, if an ``identity`` is given)."""
    path = Path(out) / "run.json"
    if not path.is_file():
        return False
    found = runs.read_json(path)
    return bool(found.get("finished")) and (identity is None or found.get("identity") == identity)


def check_finished(run: Path) -> Path:
    """``run`` if it is finished.

    Raises:
        FileNotFoundError: it is not; says how to make it.
    """
    if not is_finished(run):
        raise FileNotFoundError(f"{run}: not a finished run; fine-tune first, with python -m chestxai.finetune")
    return Path(run)


def checkpoints(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run, by step."""
    folders = (Path(run) / "checkpoints").glob("step-*")
    found = {int(p.name[5:]): p for p in folders if p.name[5:].isdigit()}
    return dict(sorted(found.items()))


def load_checkpoint(pipeline: StableDiffusionPipeline, run: Path, step: int) -> StableDiffusionPipeline:
    """Put the averaged weights of ``step`` into ``pipeline``; a frozen run's checkpoint has no text encoder.

    Raises:
        FileNotFoundError: no such checkpoint; lists those there are.
        ValueError: the checkpoint is damaged, or does not fit the pipeline.
    """
    available = checkpoints(run)
    if step not in available:
        raise FileNotFoundError(f"{run}: no checkpoint of step {step}; there are {list(available) or 'none'}")
    for name in ("text_encoder", "unet"):
        path = available[step] / f"{name}.safetensors"
        if name == "unet" or path.is_file():
            try:
                tensors = runs.load_tensors(path)
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"{path}: damaged or missing; remove {run} and fine-tune again, or use another checkpoint"
                ) from error
            _load(getattr(pipeline, name), tensors, path)
    return pipeline


def training_pairs(
    pipeline: StableDiffusionPipeline, studies: Sequence[Study], fit: Fit = "crop"
) -> tuple[np.ndarray, list[str], list[str]]:
    """Images uint8 ``(n, s, s)``, their prompts, and one line for each study that was left out."""
    usable, prompts, skipped = _prompts(studies)
    images, rows, unreadable = _images(usable, models.image_size(pipeline), fit)
    _check_any(rows, studies, skipped + unreadable)
    return np.stack(images), [prompts[i] for i in rows], skipped + unreadable


def _prompts(studies: Sequence[Study]) -> tuple[list[Study], list[str], list[str]]:
    usable, prompts, skipped = [], [], []
    for study in studies:
        try:
            prompts.append(reports.prompt(study.report))
            usable.append(study)
        except ValueError as error:
            skipped.append(f"{study.id}: {error}")
    return usable, prompts, skipped


def _images(studies: Sequence[Study], size: int, fit: Fit) -> tuple[list[np.ndarray], list[int], list[str]]:
    images, rows, unreadable = [], [], []
    for row, study in enumerate(studies):
        try:
            images.append(Frame(*study.size, size, fit).image(study.pixels()))
            rows.append(row)
        except ValueError as error:
            unreadable.append(f"{study.id}: {error}")
    return images, rows, unreadable


def _check_any(rows: Sequence[int], studies: Sequence[Study], lines: Sequence[str]) -> None:
    if not rows:
        first = f"the first: {lines[0]}" if lines else "the list is empty"
        raise ValueError(f"no study to train on: {len(studies)} given, {first}")


def _training_latents(
    pipeline: StableDiffusionPipeline, studies: Sequence[Study], fit: Fit, cache: Path | None
) -> tuple[Tensor, list[str], list[str]]:
    """As `training_pairs` with latents float32 ``(n, c, h, w)``; never more than `_CHUNK` images are in memory."""
    usable, prompts, skipped = _prompts(studies)
    size = models.image_size(pipeline)
    path = None
    if cache is not None:
        name = runs.fingerprint(
            models.fingerprint(pipeline, ["vae"]), _settings_of(pipeline.vae), size, fit, [_origin(s) for s in usable]
        )
        path = Path(cache) / f"latents-{name}.safetensors"
    if path is not None and path.is_file():
        stored, unreadable = runs.load_tensors(path), json.loads(runs.tensor_metadata(path)["unreadable"])
        latents, rows = stored["latents"], stored["rows"].tolist()
    else:
        parts, rows, unreadable = [], [], []
        bar = runs.progress(total=len(usable), description="encoding images", disable=len(usable) < 20 * _CHUNK)
        for start in range(0, len(usable), _CHUNK):
            images, found, lines = _images(usable[start : start + _CHUNK], size, fit)
            if images:
                parts.append(models.encode_images(pipeline, np.stack(images)).cpu())
            rows += [start + row for row in found]
            unreadable += lines
            bar.update(len(found) + len(lines))
        bar.close()
        _check_any(rows, studies, skipped + unreadable)
        latents = torch.cat(parts)
        if path is not None:
            runs.save_tensors(
                path, {"latents": latents, "rows": torch.tensor(rows)}, {"unreadable": json.dumps(unreadable)}
            )
    return latents, [prompts[row] for row in rows], skipped + unreadable


def _origin(study: Study) -> list[Any]:
    """What tells whether a study's image has changed, without reading the file."""
    if study.array is not None:
        return [study.size, study.array.shape, hashlib.sha256(np.ascontiguousarray(study.array)).hexdigest()]
    if study.path is not None and study.path.is_file():
        about = study.path.stat()
        return [study.size, str(study.path), about.st_size, about.st_mtime_ns]
    return [study.id]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(n)


def draw(
    step: int, seed: int, n: int, settings: FinetuneSettings, shape: Sequence[int], timesteps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All that is random in one step, from the seed and the step alone.

    Returns:
        indices int64 ``(batch,)`` into the ``n`` studies (each epoch a new permutation), noise float32
        ``(batch, *shape)``, timesteps int64 ``(batch,)``, dropped prompts bool ``(batch,)``.
    """
    size = settings.batch_size
    positions = np.arange(step * size, (step + 1) * size)
    indices = np.empty(size, dtype=np.int64)
    for epoch in np.unique(positions // n):
        mine = positions // n == epoch
        indices[mine] = _order(seed, int(epoch), n)[positions[mine] % n]
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, 2, step]).integers(2**63)))
    noise = torch.randn((size, *shape), generator=generator)
    times = torch.randint(0, timesteps, (size,), generator=generator)
    dropped = torch.rand(size, generator=generator) < settings.ucg
    return torch.from_numpy(indices), noise, times, dropped


def _target(schedule: DDPMScheduler, x: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return schedule.get_velocity(x, noise, times)
    raise ValueError(f"the scheduler predicts {kind!r}; this loop trains 'epsilon' and 'v_prediction' models")


def _architecture(pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    parts = {name: _settings_of(getattr(pipeline, name)) for name in ("unet", "text_encoder", "vae", "scheduler")}
    return parts | {"tokens": pipeline.tokenizer.model_max_length}


def _settings_of(part: Any) -> dict[str, Any]:
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    # Where it came from and by which version makes no difference to what it computes; saving adds the last two.
    no_matter = ("transformers_version", "architectures", "dtype")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in no_matter}


def _check_space(
    out: Path, pipeline: StableDiffusionPipeline, trained: dict[str, torch.nn.Module], settings: FinetuneSettings
) -> None:
    def size(*parts: torch.nn.Module) -> int:
        return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())

    weights = size(*trained.values())
    checkpoints = -(-settings.steps // settings.checkpoint_every)
    # The resumable state is weights, average and two moments; two are kept while a third is written; and the base.
    needed = weights * (checkpoints + 13) + size(pipeline.unet, pipeline.text_encoder, pipeline.vae)
    out.mkdir(parents=True, exist_ok=True)
    # An unfinished run has some of it already, another run is replaced.
    needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            f"{out}: fine-tuning needs about {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
            "free some space, or raise finetune.checkpoint_every in the profile"
        )


def _tidy(out: Path, identity: str) -> None:
    """Remove what a kill left half-written, and all of a run with another ``identity``."""
    runs.tidy(out)
    for path in out.glob("checkpoints/*.part"):
        runs.remove(path)
    marker = out / "identity.txt"
    if marker.is_file() and marker.read_text().strip() == identity:
        return
    for name in ("run.json", "train.csv", "resume", "checkpoints", "model", *_RESULTS):
        runs.remove(out / name)
    runs.write_atomic(marker, identity + "\n")


class _Log:
    """``train.csv``: rows are kept in memory between checkpoints, so that file and checkpoint never disagree."""

    def __init__(self, path: Path, first: int, writes: bool) -> None:
        self.path, self.writes, self.rows = path, writes, []
        if path.is_file():
            kept = pd.read_csv(path)
            self.rows = kept[kept["step"] <= first].values.tolist()

    def add(self, step: int, loss: float, norm: float, rate: float, spent: float, images: int) -> None:
        before = self.rows[-1][_LOG.index("seconds")] if self.rows else 0.0
        self.rows.append([step, loss, norm, rate, before + spent, images / spent])

    def flush(self) -> None:
        if self.writes:
            table = pd.DataFrame(self.rows, columns=_LOG).astype({"step": int})
            runs.write_atomic(self.path, table.to_csv(index=False, float_format="%.6g"))


def _checkpoint(
    out: Path,
    step: int,
    identity: str,
    trained: dict[str, torch.nn.Module],
    own: dict[str, list[torch.nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    averages: dict[str, EMAModel],
    writes: bool,
) -> None:
    def gathered(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        # One at a time, and kept by the process that writes only.
        return {key: whole.cpu() for key, whole in ((key, _whole(value)) for key, value in named) if writes}

    folder = out / "checkpoints" / f"step-{step}"
    part = folder.with_suffix(".part")
    state, shadows = {}, {}
    for name, module in trained.items():
        names = [key for key, _ in module.named_parameters()]
        shadows[name] = gathered(zip(names, averages[name].shadow_params, strict=True))
        state |= {f"{name}/{key}": value for key, value in gathered(zip(names, own[name], strict=True)).items()}
        state |= {f"{name}/average/{key}": value for key, value in shadows[name].items()}
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        # A parameter that never had a gradient has no moments.
        moments = gathered(optimizer.state.get(parameter, {}).items())
        state |= {f"optimizer/{i}/{key}": value for key, value in moments.items()}
    if not writes:
        return
    shutil.rmtree(part, ignore_errors=True)
    for name, shadow in shadows.items():
        runs.save_tensors(part / f"{name}.safetensors", shadow)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    # Written after the folder: a resume never starts beyond what can be scored.
    runs.save_tensors(out / "resume" / f"step-{step}.safetensors", state, {"identity": identity})
    for old in list(_states(out))[2:]:
        runs.remove(old)


def _states(out: Path) -> dict[Path, int]:
    """What a run can be resumed from, the latest first: the last two, for the case that the last is damaged."""
    found = {path: int(path.stem[5:]) for path in (out / "resume").glob("step-*.safetensors")}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _resume(
    out: Path,
    identity: str,
    trained: dict[str, torch.nn.Module],
    own: dict[str, list[torch.nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    averages: dict[str, EMAModel],
) -> int:
    state, step = _last_state(out, identity)
    if not step:
        return 0
    for name, module in trained.items():
        mine = {k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/")}
        average = {k.removeprefix("average/"): mine.pop(k) for k in list(mine) if k.startswith("average/")}
        _load(module, mine, out / "resume")
        shadows = []
        for (key, loaded), p in zip(module.named_parameters(), own[name], strict=True):
            if isinstance(p, DTensor):
                p.data.copy_(_like(loaded.detach(), p))
            shadows.append(_like(average[key], p))
        averages[name].shadow_params = shadows
        averages[name].optimization_step = step
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(everything):
        prefix = f"optimizer/{i}/"
        moments = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if moments:
            # AdamW's fused step counts on the parameter's device.
            optimizer.state[parameter] = {
                k: _like(v, parameter) if v.shape == parameter.shape else v.to(parameter.device)
                for k, v in moments.items()
            }
    return step


def _last_state(out: Path, identity: str) -> tuple[dict[str, Tensor], int]:
    """The latest state that is whole, and its step; a damaged one is told. ({}, 0) if there is none."""
    for path, step in _states(out).items():
        try:
            if runs.tensor_metadata(path).get("identity") == identity:
                return runs.load_tensors(path), step
        except ValueError as error:
            warnings.warn(f"{error}. Going on from an earlier state", stacklevel=2)
    return {}, 0


def _load(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    expected, found = dict(module.named_parameters()), tensors
    for name in sorted(expected.keys() | found.keys()):
        here, there = (tuple(side[name].shape) if name in side else None for side in (expected, found))
        if here != there:
            raise ValueError(
                f"{path}: does not fit the model ({name!r} is {there or 'missing'} in the file, {here or 'missing'} in "
                "the model); was it made with another base model?"
            )
    module.load_state_dict(tensors, strict=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.finetune``: one run of a profile."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.finetune",
        description="Fine-tune one variant of a profile; a finished run is left alone, an unfinished one gone on with.",
    )
    profiles.add_options(parser)
    given = parser.parse_args(arguments)
    profile = profiles.load(given.profile)
    check_variant(given.variant)
    studies = profiles.studies(profile, "train", given.data)
    run = finetune(
        models.load_pipeline(profile.base, device="cpu"),  # each process has its own GPU, known later
        studies,
        profile.finetune,
        profiles.run_folder(profile, given.variant, given.seed, given.out),
        variant=given.variant,
        seed=given.seed,
        fit=profile.data.fit,
        data_fingerprint=studies.fingerprint,
        cache=profiles.profile_folder(profile, given.out) / "cache",
        about=profiles.about(profile, given.data),
    )
    if PartialState().is_main_process:
        print(f"{run}: finished")
    return 0


if __name__ == "__main__":
    # Under its own name, not as __main__, so that what it saves names this module.
    from chestxai import finetune as module

    runs.command(module.main)

"""Fine-tuning a latent diffusion pipeline with the text encoder frozen or learnable.

The two treatments see the same images in the same order with the same noise, timesteps and dropped prompts: all of
these depend on the seed and the step alone. So a run resumed at any step equals an undisturbed one, and the global
batch is the same on one process or on many.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from chestxai import models, reports, runs
from chestxai.profiles import FinetuneSettings, check_variant
from chestxai.studies import Fit, Study, to_images

_LOG = ["step", "loss", "grad_norm", "learning_rate", "seconds", "images_per_second"]


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
) -> Path:
    """Fine-tune ``pipeline`` on the images and report prompts of ``studies`` and leave a finished run in ``out``.

    The loss is the mean squared error of the predicted noise (Ho et al. 2020, eq. 14) or of the velocity, as the
    pipeline's scheduler says. Latents are encoded once (the posterior's mode); with a frozen text encoder the
    embeddings are too. The text encoder runs without dropout in both treatments, so that they differ in nothing but
    whether its weights learn.

    A finished and unchanged run is returned at once; an unfinished one is resumed from its last checkpoint; one made
    with other settings is replaced.

    Args:
        pipeline: trained in place; at the end it holds the averaged (EMA) weights.
        studies: training studies; one whose image cannot be read or whose report is empty is skipped and listed.
        settings: see `FinetuneSettings`.
        out: ``runs/<profile>/<variant>/seed-<n>``.
        variant: "frozen" or "learnable", the treatment of the text encoder.
        seed: of everything drawn.
        fit: how an image becomes a square.
        data_fingerprint: names the data; part of what makes a run the same.
        cache: folder for encoded latents, shared between runs on the same data.

    Returns:
        ``out``, with ``run.json`` (written last), ``model/``, ``checkpoints/step-<k>/`` and ``train.csv``.

    Raises:
        ValueError: unknown variant, no usable study, a checkpoint that does not fit the model.
        OSError: too little disk space, told before the first step.
        FloatingPointError: the loss is no longer finite.
    """
    check_variant(variant)
    out = Path(out)
    identity = runs.fingerprint(
        settings.model_dump(), variant, seed, fit, data_fingerprint, [s.id for s in studies], _architecture(pipeline)
    )
    if is_finished(out, identity):
        return out
    images, prompts, skipped = training_pairs(pipeline, studies, fit)

    accelerator = Accelerator(
        mixed_precision=settings.precision, gradient_accumulation_steps=settings.accumulate, step_scheduler_with_optimizer=False
    )
    world, rank = accelerator.num_processes, accelerator.process_index
    if settings.batch_size % (world * settings.accumulate):
        raise ValueError(
            f"batch_size {settings.batch_size} is not a multiple of {world} processes × {settings.accumulate} accumulated steps"
        )
    pipeline.to(accelerator.device)
    learnable = variant == "learnable"
    trained = {"unet": pipeline.unet} | ({"text_encoder": pipeline.text_encoder} if learnable else {})
    _check_space(out, trained, settings)
    if accelerator.is_main_process:
        _discard_other(out, identity)
    accelerator.wait_for_everyone()

    latents = _cached_latents(pipeline, images, cache, data_fingerprint)
    unique = sorted(set(prompts) | {""})
    row_of = {prompt: i for i, prompt in enumerate(unique)}
    text_rows = torch.tensor([row_of[p] for p in prompts])
    empty = row_of[""]
    if learnable:
        text = models.tokenize(pipeline, unique)
    else:
        text = {"states": models.encode_text(pipeline, unique).cpu()}

    unet, encoder = pipeline.unet.requires_grad_(True).train(), pipeline.text_encoder.eval().requires_grad_(learnable)
    groups = [{"params": list(unet.parameters()), "lr": settings.learning_rate}]
    if learnable:
        groups.append({"params": list(encoder.parameters()), "lr": settings.text_learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    warmup = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=settings.warmup)
    averages = {
        name: EMAModel(part.parameters(), decay=settings.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
        for name, part in trained.items()
    }
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    first = _resume(out, identity, trained, optimizer, warmup, averages)
    if learnable:
        unet, encoder, optimizer = accelerator.prepare(unet, encoder, optimizer)
    else:
        unet, optimizer = accelerator.prepare(unet, optimizer)
    parameters = [p for group in groups for p in group["params"]]

    started, log = time.perf_counter(), _Log(out / "train.csv", first, accelerator.is_main_process)
    micro = settings.batch_size // (world * settings.accumulate)
    bar = runs.progress(
        total=settings.steps,
        initial=first,
        description=f"fine-tune · {variant} · seed {seed}",
        disable=not accelerator.is_main_process,
    )
    for step in range(first, settings.steps):
        began = time.perf_counter()
        batch = draw(step, seed, len(latents), settings, latents.shape[1:], schedule.config.num_train_timesteps)
        losses = torch.zeros((), device=accelerator.device)
        for part in range(settings.accumulate):
            mine = slice((part * world + rank) * micro, (part * world + rank + 1) * micro)
            rows, noise, times, dropped = (value[mine] for value in batch)
            x = latents[rows].to(accelerator.device)
            noise, times = noise.to(accelerator.device), times.to(accelerator.device)
            chosen = torch.where(dropped, empty, text_rows[rows])
            with accelerator.accumulate(unet), accelerator.autocast():
                if learnable:
                    tokens = {k: v[chosen].to(accelerator.device) for k, v in text.items()}
                    states = models.text_states(encoder, tokens)
                else:
                    states = text["states"][chosen].to(accelerator.device)
                predicted = unet(schedule.add_noise(x, noise, times), times, states, return_dict=False)[0]
                loss = F.mse_loss(predicted.float(), _target(schedule, x, noise, times))
                accelerator.backward(loss)
                losses += loss.detach() / settings.accumulate
                norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm) if accelerator.sync_gradients else None
                optimizer.step()
                optimizer.zero_grad()
        warmup.step()
        for name, average in averages.items():
            average.step(trained[name].parameters())
        value = float(accelerator.reduce(losses, "mean"))
        if not np.isfinite(value):
            raise FloatingPointError(
                f"{out}: the loss is {value} at step {step + 1}; lower the learning rate or use bf16 instead of fp16"
            )
        seconds = time.perf_counter() - began
        log.add(step + 1, value, float(norm), optimizer.param_groups[0]["lr"], seconds, settings.batch_size / seconds)
        bar.update()
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            log.flush()
            if accelerator.is_main_process:
                _checkpoint(out, step + 1, identity, trained, optimizer, warmup, averages)
            accelerator.wait_for_everyone()
    bar.close()

    for name, average in averages.items():
        average.copy_to(trained[name].parameters())
    pipeline.unet.eval().requires_grad_(False)
    pipeline.text_encoder.eval().requires_grad_(False)
    if accelerator.is_main_process:
        models.save_pipeline(pipeline, out / "model")
        (out / "resume.safetensors").unlink(missing_ok=True)
        trace = pd.read_csv(out / "train.csv")
        runs.write_json(
            out / "run.json",
            {
                "finished": True,
                "identity": identity,
                "variant": variant,
                "seed": seed,
                "settings": settings.model_dump(),
                "data": {"fingerprint": data_fingerprint, "studies": len(prompts), "skipped": skipped},
                "processes": world,
                "seconds": round(float(trace["seconds"].sum()), 2),
                "wall_seconds_last_start": round(time.perf_counter() - started, 2),
                "final_loss": round(float(trace["loss"].tail(50).mean()), 6),
                **runs.record(),
            },
        )
    accelerator.wait_for_everyone()
    return out


def is_finished(out: Path, identity: str | None = None) -> bool:
    """Whether ``out`` holds a finished run (made with these very settings, if an ``identity`` is given)."""
    path = Path(out) / "run.json"
    if not path.is_file():
        return False
    found = runs.read_json(path)
    return bool(found.get("finished")) and (identity is None or found.get("identity") == identity)


def checkpoints(run: Path) -> dict[int, Path]:
    """The complete checkpoints of a run, by step."""
    found = {int(p.name.removeprefix("step-")): p for p in (Path(run) / "checkpoints").glob("step-*") if p.suffix != ".part"}
    return dict(sorted(found.items()))


def load_checkpoint(pipeline: StableDiffusionPipeline, run: Path, step: int) -> StableDiffusionPipeline:
    """Put the averaged weights of ``step`` into ``pipeline``; a frozen run's checkpoint has no text encoder.

    Raises:
        FileNotFoundError: no such checkpoint; lists those there are.
        ValueError: the checkpoint does not fit the pipeline.
    """
    available = checkpoints(run)
    if step not in available:
        raise FileNotFoundError(f"{run}: no checkpoint of step {step}; there are {list(available) or 'none'}")
    for name in ("unet", "text_encoder"):
        path = available[step] / f"{name}.safetensors"
        if path.is_file():
            _load(getattr(pipeline, name), runs.load_tensors(path), path)
    return pipeline


def training_pairs(
    pipeline: StableDiffusionPipeline, studies: Sequence[Study], fit: Fit = "crop"
) -> tuple[np.ndarray, list[str], list[str]]:
    """Images uint8 ``(n, s, s)``, their prompts, and one line for each study that was left out."""
    usable, prompts, skipped = [], {}, []
    for study in studies:
        try:
            prompts[study.id] = reports.prompt(study.report)
            usable.append(study)
        except ValueError as error:
            skipped.append(f"{study.id}: {error}")
    images, kept, unreadable = to_images(usable, models.image_size(pipeline), fit)
    if not kept:
        raise ValueError(f"no study to train on: {len(studies)} given, {(skipped + unreadable)[:1] or 'the list is empty'}")
    return images, [prompts[s.id] for s in kept], skipped + unreadable


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
        order = np.random.default_rng([seed, 1, int(epoch)]).permutation(n)
        mine = positions // n == epoch
        indices[mine] = order[positions[mine] % n]
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


def _architecture(pipeline: StableDiffusionPipeline) -> list[Any]:
    return [
        [str(getattr(pipeline, name).config.to_dict() if hasattr(getattr(pipeline, name).config, "to_dict") else dict(getattr(pipeline, name).config))]
        for name in ("unet", "text_encoder")
    ]


def _cached_latents(pipeline: StableDiffusionPipeline, images: np.ndarray, cache: Path | None, data: str) -> Tensor:
    if cache is None:
        return models.encode_images(pipeline, images).cpu()
    weights = next(iter(pipeline.vae.state_dict().values())).double().sum().item()
    path = Path(cache) / f"latents-{runs.fingerprint(data, images.shape, int(images.sum()), repr(weights))}.safetensors"
    if path.is_file():
        return runs.load_tensors(path)["latents"]
    latents = models.encode_images(pipeline, images).cpu()
    runs.save_tensors(path, {"latents": latents})
    return latents


def _check_space(out: Path, trained: dict[str, torch.nn.Module], settings: FinetuneSettings) -> None:
    weights = sum(p.numel() * 4 for part in trained.values() for p in part.parameters())
    # Every checkpoint keeps one copy; the resumable state has weights, average and two moments, twice while renaming.
    needed = weights * (settings.steps // settings.checkpoint_every + 2 + 8)
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            f"{out}: fine-tuning needs about {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
            "free some space, or raise finetune.checkpoint_every in the profile"
        )


def _discard_other(out: Path, identity: str) -> None:
    marker = out / "identity.txt"
    if marker.is_file() and marker.read_text().strip() == identity:
        return
    for name in ("run.json", "train.csv", "resume.safetensors"):
        (out / name).unlink(missing_ok=True)
    for name in ("checkpoints", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    runs.write_atomic(marker, identity + "\n")


class _Log:
    """``train.csv``: rows are kept in memory between checkpoints, so that file and checkpoint never disagree."""

    def __init__(self, path: Path, first: int, writes: bool) -> None:
        self.path, self.writes, self.rows = path, writes, []
        if path.is_file():
            kept = pd.read_csv(path)
            self.rows = kept[kept["step"] <= first].values.tolist()

    def add(self, *values: float) -> None:
        self.rows.append(values)

    def flush(self) -> None:
        if self.writes:
            table = pd.DataFrame(self.rows, columns=_LOG).astype({"step": int})
            runs.write_atomic(self.path, table.to_csv(index=False, float_format="%.6g"))


def _checkpoint(
    out: Path,
    step: int,
    identity: str,
    trained: dict[str, torch.nn.Module],
    optimizer: Any,
    warmup: Any,
    averages: dict[str, EMAModel],
) -> None:
    folder = out / "checkpoints" / f"step-{step}"
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    state: dict[str, Tensor] = {}
    for name, module in trained.items():
        named = dict(module.named_parameters())
        shadow = dict(zip(named, averages[name].shadow_params, strict=True))
        runs.save_tensors(part / f"{name}.safetensors", shadow)
        state |= {f"{name}/{key}": value for key, value in named.items()}
        state |= {f"{name}/average/{key}": value for key, value in shadow.items()}
    for i, (_, moments) in enumerate(_moments(optimizer)):
        state |= {f"optimizer/{i}/{key}": value for key, value in moments.items()}
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    # Written after the folder: a resume never starts beyond what can be scored.
    runs.save_tensors(out / "resume.safetensors", state, {"step": str(step), "identity": identity})


def _moments(optimizer: Any) -> list[tuple[Tensor, dict[str, Tensor]]]:
    inner = getattr(optimizer, "optimizer", optimizer)
    return [(p, inner.state[p]) for group in inner.param_groups for p in group["params"] if p in inner.state]


def _resume(
    out: Path,
    identity: str,
    trained: dict[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    warmup: Any,
    averages: dict[str, EMAModel],
) -> int:
    from safetensors import safe_open

    path = out / "resume.safetensors"
    if not path.is_file():
        return 0
    state = runs.load_tensors(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("identity") != identity:
        return 0
    step = int(metadata["step"])
    for name, module in trained.items():
        plain = {k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/") and "/average/" not in k}
        _load(module, plain, path)
        averages[name].shadow_params = [
            state[f"{name}/average/{key}"].to(p.device) for key, p in module.named_parameters()
        ]
        averages[name].optimization_step = step
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(everything):
        prefix = f"optimizer/{i}/"
        moments = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if moments:
            optimizer.state[parameter] = {
                # AdamW keeps its step count on the parameter's device only when fused on a GPU.
                k: v.to(parameter.device) for k, v in moments.items()
            }
    for _ in range(step):
        warmup.step()
    return step


def _load(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit the model ({str(error).splitlines()[-1].strip()})") from error
    buffers = {name for name, _ in module.named_buffers()}
    if unexpected or set(missing) - buffers:
        wrong = [*unexpected, *sorted(set(missing) - buffers)][0]
        raise ValueError(f"{path}: does not fit the model (for example {wrong!r}); was it made with another base model?")

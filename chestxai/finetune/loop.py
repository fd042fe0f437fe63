"""The training loop. It knows no field of a recipe; it asks what learns, what the U-Net reads, what the loss adds."""

import copy
import inspect
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from chestxai import models, reports, runs
from chestxai.finetune import checkpoints, launch
from chestxai.finetune.checkpoints import load_checkpoint, prepare
from chestxai.finetune.latents import training_latents
from chestxai.finetune.pointing import Pointing
from chestxai.profiles import FinetuneSettings
from chestxai.recipes import Recipe, Schedule
from chestxai.runs import DivergedError, MissingError, Run
from chestxai.studies import Fit, Study

# Bytes of text embeddings kept; those of a hundred thousand prompts of Stable Diffusion would be 30 GB.
_TEXT_CACHE = 4e9
# Seconds of training that a kill between two checkpoints may cost; more where saving takes over a twentieth of that.
_SAVE_AFTER = 600


def finetune(
    pipeline: StableDiffusionPipeline,
    studies: Sequence[Study],
    settings: FinetuneSettings,
    out: Path,
    *,
    recipe: Recipe | str = "frozen",
    seed: int = 0,
    fit: Fit = "crop",
    cache: Path | None = None,
    **about: Any,
) -> Path:
    """Fine-tune ``pipeline`` on the images and report prompts of ``studies`` and leave a finished run in ``out``.

    The loss is the mean squared error of the predicted noise (Ho et al. 2020, eq. 14) or of the velocity, as the
    pipeline's scheduler says, plus what the recipe adds. Latents are encoded once (the posterior's mode); embeddings
    too where the text encoder does not learn and memory allows. The text encoder runs without dropout under every
    recipe, so that recipes differ in nothing else.

    A finished and unchanged run is returned at once; an unfinished one is resumed from what it saved last, at most ten
    minutes or a checkpoint ago; one made with other settings, data or base weights is replaced; one made by other code
    is moved aside. An interrupted call leaves ``pipeline`` as it was. A resumed run equals an undisturbed one, except
    for the loss scale under fp16.

    Args:
        pipeline: trained in place; at the end, also of a run that was finished before, it holds the averaged weights.
        studies: training studies; one without a readable image or a prompt is skipped and listed. A ``fingerprint``
            attribute, as `profiles.studies` sets, is part of the run's identity.
        settings: see `FinetuneSettings`.
        out: ``runs/<profile>/<variant>/seed-<n>``.
        recipe: how the text is treated, or the ``text`` of one.
        seed: of everything random.
        fit: how an image becomes a square.
        cache: folder for encoded latents, shared between runs on the same data; default: none is kept.
        about: further entries of ``run.json``: those of `profiles.about`, from which the run can be repeated.

    Returns:
        ``out``, with ``run.json`` (written last), ``model/``, ``checkpoints/step-<k>/`` and ``train.csv``, whose
        columns are step, loss (denoising, mean over the batch), grad_norm (before clipping), lr (of the U-Net), seconds
        (spent in steps, over all starts) and images_per_second.

    Raises:
        InputError: no usable study, a checkpoint that does not fit the model, a batch that cannot be shared equally, an
            unsupported distribution, another process training the same run.
        OSError: too little disk space, before the first step.
        DivergedError: the loss is no longer finite.
    """
    recipe = Recipe(text=recipe) if isinstance(recipe, str) else recipe
    run, (weights, parts, trained) = Run(out), checkpoints.base_of(pipeline)
    weights = weights or models.fingerprint(pipeline)
    before, code = _identity(parts, studies, settings, recipe, seed, fit, _hashes(recipe, run)), _code(recipe)
    identity = f"{before}-{weights}-{code}"
    if run.is_finished() and _reuse(pipeline, run, recipe, (before, weights, code)):
        return run.folder
    checkpoints.check_base(not trained, run.folder, identity)

    accelerator = launch.make_accelerator(settings, unused=recipe.schedule != Schedule())
    if recipe.anchor_weights and accelerator.is_fsdp2:
        raise runs.InputError("anchor_weights: not under FSDP, which shards the weights; use DDP")
    main = accelerator.is_main_process
    with launch.only_writer(run.folder, main), launch.memory_errors(settings):
        pipeline.to(accelerator.device)
        # Kept where an interrupted call leaves the pipeline prepared: with adapters, its fingerprint is another.
        pipeline.text_encoder.base = weights, parts, trained
        prepare(pipeline, recipe, seed)
        learning = [*recipe.learning(pipeline.unet, pipeline.text_encoder, settings)]
        kept = bool(checkpoints.other_code(run.folder, identity))
        launch.check_space(run.folder, [p for _, p, _ in learning], pipeline, settings, kept)
        latents, kept, prompts, skipped = training_latents(
            pipeline, studies, fit, cache or run.folder / "scratch", recipe, seed
        )
        pointing = None
        if recipe.attention != "none":
            pointing = Pointing(recipe, pipeline, kept, prompts, latents, fit, run.folder)
        if main:
            checkpoints.tidy_run(run.folder, identity)
        accelerator.wait_for_everyone()
        started = time.perf_counter()
        base = run.folder / "scratch" / "base.safetensors"
        with _restored_on_failure(pipeline, learning, base, accelerator, settings):
            training = _Training(accelerator, pipeline, recipe, settings, seed, run, identity, pointing)
            shown = torch.tensor([recipe.oversample if study.present() else 1 for study in kept])
            training.run(latents, prompts, torch.arange(len(kept)).repeat_interleave(shown))
            if settings.weights == "bf16":
                _put_back(pipeline, base, {name for name, _, _ in learning})
            if main:
                models.save_pipeline(pipeline, run.model)
                log = run.train_log()
                record = {
                    "finished": True,
                    "identity": identity,
                    "model": models.fingerprint(pipeline),
                    "variant": recipe.text,
                    "long_prompts": "chunked" if getattr(pipeline.text_encoder.config, "window", None) else "cut",
                    "recipe": recipe.model_dump(),
                    "seed": seed,
                    "settings": settings.model_dump(),
                    "data": {
                        "fingerprint": str(getattr(studies, "fingerprint", "")),
                        "studies": len(prompts),
                        "sections": reports.prompt_counts(study.report for study in studies),
                        "skipped": skipped,
                        "prompts_cut": models.cut_prompts(pipeline.tokenizer, prompts),
                    },
                    "processes": accelerator.num_processes,
                    "seconds": round(float(log["seconds"].iloc[-1]), 2),
                    "wall_seconds_last_start": round(time.perf_counter() - started, 2),
                    "final_loss": round(float(log["loss"].tail(50).mean()), 6),
                }
                runs.write_json(run.record_file, record | runs.record() | about)
        pipeline.text_encoder.base = None, parts, True
        accelerator.wait_for_everyone()  # all have read what is removed now
        # Last, so that a kill in between costs no more than writing the model again.
        if main:
            runs.remove(run.folder / "resume")
            runs.remove(run.folder / "scratch")
        accelerator.wait_for_everyone()
    return run.folder


def _identity(
    parts: dict[str, Any],
    studies: Sequence[Study],
    settings: FinetuneSettings,
    recipe: Recipe,
    seed: int,
    fit: Fit,
    files: Sequence[str],
) -> str:
    """Names settings, recipe and data. Defaults of a recipe do not count, so that a further field changes nothing."""
    return runs.fingerprint(
        settings.model_dump(),
        recipe.model_dump(exclude_defaults=True),
        *files,
        seed,
        fit,
        str(getattr(studies, "fingerprint", "") or [(s.change_token(), s.findings) for s in studies]),
        [[s.id, s.report] for s in studies],
        parts,
    )


def _hashes(recipe: Recipe, run: Run) -> list[str]:
    """Of the files that the recipe reads."""
    files = recipe.files(run.folder)
    for name, path in files.items():
        if not path.is_file():
            raise MissingError(
                f"{name}: {path} is missing" + (f"; {Run(path.parent).remedy()}" if path.stem == "run" else "")
            )
    return [runs.sha256(path) for path in files.values()]


def _code(recipe: Recipe) -> str:
    """Names the code of the training, and of the recipe's class where it is not the package's."""
    own = "" if type(recipe) is Recipe else inspect.getsource(type(recipe))
    return runs.fingerprint(runs.code_fingerprint("chestxai.finetune.loop", "chestxai.recipes"), own)


def _reuse(pipeline: StableDiffusionPipeline, run: Run, recipe: Recipe, identity: tuple[str, str, str]) -> bool:
    """Whether the finished ``run`` is the wanted one; then ``pipeline`` holds its weights."""
    record = run.record()
    settings, _, code = identity
    found = str(record.get("identity"))
    # In a notebook the cell is run again with the pipeline that it trained the first time.
    again = record.get("model") == identity[1] and found.startswith(f"{settings}-") and found.endswith(f"-{code}")
    if not again and found != "-".join(identity):
        return False
    if run.steps()[-1:] != [record["settings"]["steps"]]:  # the last checkpoint has been removed, and is made again
        return False
    runs.remove(run.folder / "resume")
    if not again:
        load_checkpoint(pipeline, run, run.steps()[-1], recipe)
    return True


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(n)


def draw(
    step: int, seed: int, n: int, settings: FinetuneSettings, shape: Sequence[int], timesteps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All that is random in one ``step`` (from 0), from the ``seed`` of the run and the step alone.

    For ``n`` studies (or showings of them) whose latents have a ``shape``, on a schedule of so many ``timesteps``;
    batch and share of dropped prompts as in ``settings``.

    Returns:
        indices int64 ``(batch,)`` into the studies (each epoch a new permutation), noise float32 ``(batch, *shape)``,
        timesteps int64 ``(batch,)``, dropped prompts bool ``(batch,)``.
    """
    size = settings.batch_size
    positions = np.arange(step * size, (step + 1) * size)
    indices = np.empty(size, dtype=np.int64)
    for epoch in np.unique(positions // n):
        here = positions // n == epoch
        indices[here] = _order(seed, int(epoch), n)[positions[here] % n]
    generator = torch.Generator().manual_seed(int(np.random.default_rng([seed, 2, step]).integers(2**63)))
    noise = torch.randn((size, *shape), generator=generator)
    times = torch.randint(0, timesteps, (size,), generator=generator)
    dropped = torch.rand(size, generator=generator) < settings.ucg
    return torch.from_numpy(indices), noise, times, dropped


class _Model(torch.nn.Module):
    """The networks that learn as one module, which is what DDP and FSDP take."""

    def __init__(self, unet: torch.nn.Module, text_encoder: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        # FSDP gathers the weights of one of these blocks at a time.
        blocks = {name for part in self.children() for name in getattr(part, "_no_split_modules", None) or ()}
        self._no_split_modules = sorted(blocks & {type(module).__name__ for module in self.modules()})

    def forward(self, noisy: Tensor, times: Tensor, text: dict[str, Tensor], learns: bool) -> tuple[Tensor, Tensor]:
        """Prediction and encoder states; ``text`` holds a context, or tokens to encode, with a gradient if ``learns``.

        With a context the states are not known, nor needed.
        """
        if "context" in text:
            return models.denoise(self.unet, noisy, times, text["context"]), text["context"]
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            states = models.encoder_states(self.text_encoder, text).float()
            context = models.context(self.text_encoder, states, text)
        return models.denoise(self.unet, noisy, times, context), states


class _Training:
    """The state of one call: everything between the first step and the last."""

    def __init__(
        self,
        accelerator: Accelerator,
        pipeline: StableDiffusionPipeline,
        recipe: Recipe,
        settings: FinetuneSettings,
        seed: int,
        run: Run,
        identity: str,
        pointing: Pointing | None,
    ) -> None:
        self.pointing = pointing
        self.accelerator, self.pipeline, self.recipe, self.settings = accelerator, pipeline, recipe, settings
        self.seed, self.run_, self.identity = seed, run, identity
        self.schedule = models.noising(pipeline.scheduler)
        if settings.min_snr is not None and isinstance(self.schedule, models.Flow):
            raise runs.InputError("min_snr: a flow has no signal-to-noise weighting; leave it out")
        self.parts = {"unet": pipeline.unet} | ({"text_encoder": pipeline.text_encoder} if recipe.text_learns else {})
        pipeline.text_encoder.eval()  # no dropout, under any recipe
        pipeline.unet.train()
        if settings.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        for part in self.parts.values():
            part.to(torch.bfloat16 if settings.weights == "bf16" else torch.float32)
        rates = {}
        for name, parameter, rate in recipe.learning(pipeline.unet, pipeline.text_encoder, settings):
            parameter.requires_grad_(True)
            rates[name] = rate
        # What FSDP has sharded cannot be made whole again, so it gets a copy; the pipeline itself leaves the device.
        model = _Model(**(copy.deepcopy(self.parts) if accelerator.is_fsdp2 else self.parts))
        if accelerator.is_fsdp2:
            for part in self.parts.values():
                part.to("cpu")
        named = dict(model.named_parameters())
        groups = [
            {"params": [named[n] for n in rates if rates[n] == rate], "lr": rate}
            for rate in dict.fromkeys(rates.values())
        ]
        self.model, self.optimizer = accelerator.prepare(model, launch.make_optimizer(groups, settings))
        named = dict(model.named_parameters())
        parameters = {name: named[name] for name in rates}
        self.parameters = list(parameters.values())
        average = checkpoints.Average(self.parameters, settings)
        self.state = checkpoints.State(parameters, self.optimizer.optimizer, average)

    def run(self, latents: Tensor, prompts: list[str], shown: Tensor) -> None:
        """All steps from the last checkpoint on, over the rows ``shown``; then the pipeline holds the averages."""
        self._encode(prompts)
        self.shown = shown
        settings, main = self.settings, self.accelerator.is_main_process
        first = self.state.resume(self.run_.folder, self.identity)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        warmup = get_scheduler(
            "constant_with_warmup", self.optimizer.optimizer, num_warmup_steps=settings.warmup, last_epoch=first - 1
        )
        log = checkpoints.Log(self.run_.log_file, first, main)
        bar = runs.progress(
            range(first, settings.steps),
            total=settings.steps,
            initial=first,
            description=f"fine-tune · {self.run_.folder.parent.name} · seed {self.seed}",
            disable=not main,
        )
        saved, cost = time.monotonic(), 0.0
        for step in bar:
            began = time.perf_counter()
            rate = self.optimizer.param_groups[0]["lr"]
            loss, norm = self._step(step, latents)
            warmup.step()
            log.add(step + 1, loss, norm, rate, time.perf_counter() - began, settings.batch_size)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            checkpoint = (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps
            # What FSDP has sharded takes all processes to save, whose clocks differ: at checkpoints only.
            late = main and not self.accelerator.is_fsdp2 and time.monotonic() - saved > max(_SAVE_AFTER, 20 * cost)
            if checkpoint or late:
                started = time.monotonic()
                log.flush()
                if main or self.accelerator.is_fsdp2:
                    self.state.save(self.run_.folder, step + 1, self.identity, main, checkpoint)
                saved, cost = time.monotonic(), time.monotonic() - started
            if checkpoint:
                self.accelerator.wait_for_everyone()
        own = {f"{part}.{name}": p for part, module in self.parts.items() for name, p in module.named_parameters()}
        for part in self.parts.values():
            part.to(torch.float32)
        with torch.no_grad():
            for name, value in zip(self.state.parameters, self.state.average.shadow_params, strict=True):
                own[name].copy_(launch.gather(value))

    def _encode(self, prompts: list[str]) -> None:
        """Token ids of the distinct prompts, or their states where the text encoder does not learn."""
        pipeline, unique = self.pipeline, sorted(set(prompts) | {""})
        row_of = {prompt: i for i, prompt in enumerate(unique)}
        self.text_rows, self.empty = torch.tensor([row_of[p] for p in prompts]), row_of[""]
        self.droppable = torch.tensor([self.recipe.droppable(p) for p in prompts])
        self.text = models.tokenize(pipeline, unique)
        recipe = self.recipe
        read = models.reference_states if recipe.text_learns else models.text_states

        def states(some: list[str]) -> Tensor:
            return models.encode_text(pipeline, some, read=read).cpu()

        with self.accelerator.autocast():  # in the precision in which a learning one runs
            size = states(unique[:1]).nbytes * len(unique)
            if size > _TEXT_CACHE and recipe.anchor:
                what = f"the states of {len(unique):,} prompts as they were take {size / 1e9:.0f} GB of memory"
                raise runs.InputError(f"anchor: {what}; use anchor_weights, or fewer studies")
            if size <= _TEXT_CACHE and (not recipe.text_learns or recipe.needs_reference):
                # Before a resumed state is loaded: the text encoder is still as it was.
                kept = torch.cat([states(unique[i : i + 256]) for i in range(0, len(unique), 256)])
                self.text = self.text | {"reference": kept} if recipe.text_learns else {"context": kept}

    def _step(self, step: int, latents: Tensor) -> tuple[float, float]:
        """One optimiser step; its denoising loss and its gradient norm before clipping."""
        accelerator, settings = self.accelerator, self.settings
        device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
        micro = settings.batch_size // (world * settings.accumulate)
        shape, timesteps = latents.shape[1:], self.schedule.config.num_train_timesteps
        batch = draw(step, self.seed, len(self.shown), settings, shape, timesteps)
        total = torch.zeros((), device=device)
        for part in range(settings.accumulate):
            mine = slice((part * world + rank) * micro, (part * world + rank + 1) * micro)
            places, noise, times, dropped = (value[mine] for value in batch)
            rows = self.shown[places]
            x, noise, times = latents[rows].to(device), noise.to(device), times.to(device)
            dropped = dropped & self.droppable[rows]
            chosen, named = self.text_rows[rows].masked_fill(dropped, self.empty), rows.masked_fill(dropped, -1)
            with accelerator.accumulate(self.model), accelerator.autocast():
                learns = self.recipe.text_active(step, settings.steps)
                loss, added = self._loss(x, noise, times, chosen, named.tolist(), learns)
                accelerator.backward(loss + added)
                total += loss.detach() / settings.accumulate
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.parameters, settings.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.state.average.step(self.parameters)
        # One read from the device per step, because every read waits for it.
        value, length = torch.stack([accelerator.reduce(total, "mean"), launch.gather(norm).float()]).tolist()
        if not np.isfinite(value):
            raise DivergedError(
                f"{self.run_.folder}: the loss is {value} at step {step + 1}; lower the learning rate or use bf16 "
                "instead of fp16"
            )
        return value, length

    def _loss(
        self, x: Tensor, noise: Tensor, times: Tensor, chosen: Tensor, named: list[int], learns: bool
    ) -> tuple[Tensor, Tensor | float]:
        """Denoising loss of a batch, and what the recipe adds to it."""
        text = {name: values[chosen].to(x.device) for name, values in self.text.items()}
        if not self.recipe.text_learns and "context" not in text:
            text = {"context": models.pipeline_states(self.pipeline, text).float()}
        own = self.accelerator.unwrap_model(self.model)
        with self.pointing.reading(own.unet, named) if self.pointing else nullcontext(lambda: 0.0) as pointed:
            predicted, states = self.model(self.schedule.add_noise(x, noise, times), times, text, learns)
        added = pointed()
        target = models.prediction_target(self.schedule, x, noise, times)
        loss = F.mse_loss(predicted.float(), target, reduction="none").flatten(1).mean(dim=1)
        loss = (loss * self._weights(times)).mean()
        if learns:
            added += self.recipe.penalty(states, text.get("reference"), text["attention_mask"], own.text_encoder) or 0.0
        return loss, added

    def _weights(self, times: Tensor) -> Tensor:
        """Weight of each row's loss: 1, or min-SNR-γ (Hang et al. 2023, eq. 9 and its form for the velocity)."""
        gamma = self.settings.min_snr
        if gamma is None:
            return torch.ones(len(times), device=times.device)
        snr = compute_snr(self.schedule, times)
        velocity = self.schedule.config.prediction_type == "v_prediction"
        return snr.clamp(max=gamma) / (snr + velocity)


@contextmanager
def _restored_on_failure(
    pipeline: StableDiffusionPipeline,
    learning: Sequence[tuple[str, torch.nn.Parameter, float]],
    kept: Path,
    accelerator: Accelerator,
    settings: FinetuneSettings,
) -> Iterator[None]:
    """Leave the networks in eval mode; after an exception, Ctrl-C included, with the weights they had.

    Otherwise a second call in the same notebook would take half-trained weights for the base. The weights wait in a
    file: in memory they would be one more copy beside the average and the moments.
    """
    learns = {name for name, _, _ in learning}
    if accelerator.is_main_process:
        # In bfloat16 those that do not learn are rounded, too.
        rounded = settings.weights == "bf16"
        runs.save_tensors(kept, {n: p for n, p in _weights(pipeline).items() if rounded or n in learns})
    accelerator.wait_for_everyone()
    device = pipeline.unet.device
    try:
        yield
    except BaseException:
        for part in (pipeline.unet, pipeline.text_encoder):
            part.zero_grad()
            part.to("cpu", torch.float32)  # where there is room, whatever has failed
        _put_back(pipeline, kept)
        raise
    finally:
        pipeline.unet.disable_gradient_checkpointing()
        for part in (pipeline.unet, pipeline.text_encoder):
            part.zero_grad()
            part.to(device).eval().requires_grad_(False)


def _weights(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """Parameters and buffers that bfloat16 rounds, such as the positions of a transformer."""
    parts = {name: getattr(pipeline, name) for name in ("unet", "text_encoder")}
    named = {part: (*module.named_parameters(), *module.named_buffers()) for part, module in parts.items()}
    return {f"{part}.{name}": t for part, some in named.items() for name, t in some if t.is_floating_point()}


@torch.no_grad()
def _put_back(pipeline: StableDiffusionPipeline, kept: Path, without: Collection[str] = ()) -> None:
    """Give the weights in the file ``kept`` back what they were."""
    own = _weights(pipeline)
    for name, value in runs.load_tensors(kept).items():
        if name not in without:
            own[name].copy_(value)

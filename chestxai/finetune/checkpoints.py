"""Checkpoints: averaged weights for scoring, states for resuming, and the log of the steps.

A checkpoint holds the parameters that learn, and nothing else: ``unet.safetensors`` and, where the text encoder learns,
``text_encoder.safetensors`` with the names that the modules give them.
"""

import itertools
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from pydantic import ValidationError
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from chestxai import models, reports, runs
from chestxai.finetune.launch import gather, shard_like
from chestxai.profiles import FinetuneSettings
from chestxai.recipes import Recipe
from chestxai.runs import DivergedError, InputError, MissingError, Run

LOG = ["step", "loss", "grad_norm", "lr", "seconds", "images_per_second"]
# What later stages leave in a run's folder: void once the model is another.
_RESULTS = ("grounding*.csv", "sides.csv", "fidelity.json", "maps", "samples")
_PARTS = ("text_encoder", "unet")


def load_checkpoint(
    pipeline: StableDiffusionPipeline, run: Run | Path, step: int, recipe: Recipe | None = None
) -> StableDiffusionPipeline:
    """Put the averaged weights of a checkpoint into ``pipeline``, prepared as the run's recipe needs it.

    Args:
        pipeline: a fresh one of the run's base, or one that holds another checkpoint of the same recipe and seed.
        run: a run or its folder.
        step: of the checkpoint.
        recipe: the run's, where its class is not the package's; default: as ``run.json`` says.

    Raises:
        MissingError: no such checkpoint; lists those there are.
        InputError: the checkpoint is damaged or does not fit the pipeline, or the pipeline holds the weights of another
            recipe.
        DivergedError: its weights are not finite.
    """
    run = run if isinstance(run, Run) else Run(run)
    steps = run.steps()
    if step not in steps:
        raise MissingError(f"{run.folder}: no checkpoint of step {step}; there are {steps or 'none'}")
    record = run.record() if run.record_file.is_file() else {}
    if recipe is None:
        if not record:
            raise MissingError(
                f"{run.record_file} is missing, which names the recipe; {run.remedy()}, or pass recipe=…"
            )
        try:
            recipe = Recipe.model_validate(record.get("recipe", {}))
        except ValidationError as error:
            raise InputError(f"{run.record_file}: a recipe of another class; pass it as recipe=… ({error})") from error
    loaded = {}
    for name in _PARTS:
        path = run.checkpoint(step) / f"{name}.safetensors"
        if name == "unet" or path.is_file():
            try:
                loaded[name] = runs.load_tensors(path)
            except (InputError, OSError) as error:
                raise InputError(
                    f"{path}: damaged or missing; remove {run.folder} and fine-tune again, or use another checkpoint"
                ) from error
            if bad := [key for key, value in loaded[name].items() if not value.isfinite().all()]:
                raise DivergedError(
                    f"{path}: {bad[0]} is not finite: the training had diverged; use an earlier checkpoint"
                )
    _, parts, _ = base_of(pipeline)
    prepare(pipeline, recipe, int(record.get("seed", 0)))
    for name, tensors in loaded.items():
        path = run.checkpoint(step) / f"{name}.safetensors"
        check_fit(dict(getattr(pipeline, name).named_parameters()), tensors, path)
    for name, tensors in loaded.items():
        getattr(pipeline, name).load_state_dict(tensors, strict=False)
    pipeline.text_encoder.base = None, parts, True
    if record:
        models.read_in_windows(pipeline, record.get("long_prompts", "cut"))
    return pipeline


def base_of(pipeline: StableDiffusionPipeline) -> tuple[str | None, dict[str, Any], bool]:
    """What the base of ``pipeline`` was before it was prepared: its fingerprint, its architecture, if it is trained.

    Adapters and tokens change the first two. The fingerprint is None until a training begins, and again at its end.
    """
    weights, parts, trained = getattr(pipeline.text_encoder, "base", (None, None, False))
    if parts is None:
        names = ("unet", "text_encoder", "vae", "scheduler")
        parts = {name: models.architecture(getattr(pipeline, name)) for name in names}
        parts["tokens"] = reports.text_length(pipeline.tokenizer)
    return weights, parts, trained


def check_base(fresh: bool, out: Path, identity: str) -> None:
    """Refuse to replace the run in ``out`` by one of a pipeline that is not ``fresh``; ``identity`` as in `tidy_run`.

    Else a cell that is run again would train on from trained weights.
    """
    if not fresh and identity_of(out) not in ("", identity):
        raise InputError(f"{out} holds a run of a fresh base, and this pipeline is trained: load its base again first")


def prepare(pipeline: StableDiffusionPipeline, recipe: Recipe, seed: int) -> None:
    """`Recipe.prepare`, once for each pipeline.

    InputError if the pipeline was prepared, or trained, for another recipe or seed, which would show through.
    """
    wanted = runs.fingerprint(recipe.treatment, seed if recipe.kind in ("random", "lora") else 0)
    before = getattr(pipeline.text_encoder, "prepared_for", None)
    if before is None:
        recipe.prepare(pipeline, seed)
        pipeline.text_encoder.prepared_for = wanted
    elif before != wanted:
        raise InputError(
            "the pipeline holds the text encoder of another recipe or seed: load a fresh one with models.load_pipeline"
        )


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError unless all ``tensors`` of the file ``path`` are ``expected`` parameters, by name and shape."""
    for name, tensor in sorted(tensors.items()):
        here = tuple(expected[name].shape) if name in expected else "missing"
        if here != tuple(tensor.shape):
            raise InputError(
                f"{path}: does not fit the model ({name!r} is {tuple(tensor.shape)} in the file, {here} in the model); "
                "was it made with another base model or recipe?"
            )


def tidy_run(out: Path, identity: str) -> None:
    """Make the folder ``out`` ready for a run; call only while holding its lock.

    Half-written files are removed. A run of other settings, data or base weights is replaced. One that differs in its
    code alone is moved aside to ``<name>.before-<hash of its code>``: changed code never deletes results. ``identity``
    is "<settings and data>-<base weights>-<code>".
    """
    runs.tidy(out)
    for path in out.glob("checkpoints/*.part"):
        runs.remove(path)
    before = identity_of(out)
    if before == identity:
        return
    if code := other_code(out, identity):
        names = (f"{out.name}.before-{code[:8]}" + (f"-{n}" if n else "") for n in itertools.count())
        kept = next(path for path in map(out.with_name, names) if not path.exists())
        out.rename(kept)
        out.mkdir()
        warnings.warn(f"{out}: the training code has changed; the run of the old code is kept in {kept}", stacklevel=2)
    else:
        for name in ("run.json", "train.csv", "resume", "checkpoints", "model", *_RESULTS):
            for path in [*out.glob(name)]:
                runs.remove(path)
    runs.write_atomic(out / "identity.txt", identity + "\n")


def other_code(out: Path, identity: str) -> str:
    """The code of the run in ``out`` where it differs from ``identity`` (see `tidy_run`) in its code alone, else ""."""
    content, _, code = identity_of(out).rpartition("-")
    wanted, _, own = identity.rpartition("-")
    return code if content == wanted and code != own else ""


def identity_of(out: Path) -> str:
    """Names the run in the folder ``out``, as `tidy_run` has noted it; "" for none."""
    marker = out / "identity.txt"
    return marker.read_text(errors="replace").strip() if marker.is_file() else ""


class Average(EMAModel):
    """diffusers' average with its warm-up in float32, updated in one pass over memory and without a temporary copy."""

    def __init__(self, parameters: list[torch.nn.Parameter], settings: FinetuneSettings) -> None:
        self.aside = settings.weights != "fp32" or settings.averages == "cpu"
        with torch.no_grad():
            shadows = [
                p.to("cpu" if settings.averages == "cpu" else p.device, torch.float32, copy=True) for p in parameters
            ]
        super().__init__([], decay=settings.ema_decay, use_ema_warmup=True, power=0.75)
        self.shadow_params = shadows

    @torch.no_grad()
    def step(self, parameters: list[torch.nn.Parameter]) -> None:
        self.optimization_step += 1
        update = get_ema_multi_avg_fn(self.get_decay(self.optimization_step))
        if not self.aside:
            update(self.shadow_params, parameters, None)
            return
        for shadow, parameter in zip(self.shadow_params, parameters, strict=True):  # one copy at a time
            update([shadow], [parameter.to(shadow)], None)


class Log:
    """``train.csv``: rows are kept in memory between checkpoints, so that log and checkpoint always agree."""

    def __init__(self, path: Path, first: int, writes: bool) -> None:
        self.path, self.writes, self.rows = path, writes, []
        if path.is_file():
            table = Run(path.parent).train_log()
            self.rows = table.loc[table["step"] <= first, LOG].values.tolist()

    def add(self, step: int, loss: float, norm: float, rate: float, spent: float, images: int) -> None:
        """Add a ``step`` (from 1): ``loss``, gradient ``norm``, learning ``rate``, ``spent`` seconds, ``images``."""
        before = self.rows[-1][LOG.index("seconds")] if self.rows else 0.0
        self.rows.append([step, loss, norm, rate, before + spent, images / spent])

    def flush(self) -> None:
        """Write the file in one step."""
        if self.writes:
            table = pd.DataFrame(self.rows, columns=LOG).astype({"step": int})
            runs.write_atomic(self.path, table.to_csv(index=False, float_format="%.6g"))


@dataclass
class State:
    """What training changes: parameters by name, their optimiser and their averages, in one order."""

    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: EMAModel

    def save(self, out: Path, step: int, identity: str, writes: bool, checkpoint: bool = True) -> None:
        """Write resumable state and ``checkpoint`` of ``step`` into the folder ``out`` of the run of this ``identity``.

        All processes of FSDP call this; one of them ``writes``.
        """

        def gathered(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
            # One at a time, and kept by the writing process only.
            return {key: whole.cpu() for key, whole in ((key, gather(value)) for key, value in named) if writes}

        averages = gathered(zip(self.parameters, self.average.shadow_params, strict=True))
        state = gathered(self.parameters.items()) | {f"average/{key}": value for key, value in averages.items()}
        for key, parameter in self.parameters.items():
            # A parameter that never had a gradient has no moments.
            moments = self.optimizer.state.get(parameter, {}).items()
            # The step count of an 8-bit AdamW is a plain number.
            moments = gathered((k, v if torch.is_tensor(v) else torch.tensor(v)) for k, v in moments)
            state |= {f"optimizer/{key}/{name}": value for name, value in moments.items()}
        if not writes:
            return
        if checkpoint:
            folder = Run(out).checkpoint(step)
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            for name in _PARTS:
                tensors = {k.removeprefix(f"{name}."): v for k, v in averages.items() if k.startswith(f"{name}.")}
                if tensors:
                    runs.save_tensors(part / f"{name}.safetensors", tensors)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        # Written after the checkpoint: a resumed run never starts beyond what can be scored.
        runs.save_tensors(out / "resume" / f"step-{step}.safetensors", state, {"identity": identity})
        for old in list(_states(out))[2:]:
            runs.remove(old)

    def resume(self, out: Path, identity: str) -> int:
        """Restore the last complete state of this ``identity`` in ``out`` and return its step, 0 if there is none."""
        state, step = _last_state(out, identity)
        if not step:
            return 0
        check_fit(self.parameters, {k: v for k, v in state.items() if "/" not in k}, out / "resume")
        shadows = []
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(shard_like(state[key], parameter))
                average = self.average.shadow_params[len(shadows)]
                shadows.append(shard_like(state[f"average/{key}"], average))
                prefix = f"optimizer/{key}/"
                moments = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                if moments:
                    # The step count of a fused AdamW is a tensor on the parameter's device.
                    plain = not isinstance(self.optimizer, torch.optim.AdamW)
                    self.optimizer.state[parameter] = {
                        k: v.item() if plain and not v.ndim
                        else shard_like(v, parameter) if v.shape == parameter.shape else v.to(parameter.device)
                        for k, v in moments.items()
                    }  # fmt: skip
        self.average.shadow_params, self.average.optimization_step = shadows, step
        return step


def _states(out: Path) -> dict[Path, int]:
    """Resumable states, the latest first. Two are kept in case the last one is damaged."""
    paths = [path for path in (out / "resume").glob("step-*.safetensors") if re.fullmatch("step-[0-9]+", path.stem)]
    found = {path: int(path.stem[5:]) for path in paths}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _last_state(out: Path, identity: str) -> tuple[dict[str, Tensor], int]:
    for path, step in _states(out).items():
        try:
            if runs.tensor_metadata(path).get("identity") == identity:
                return runs.load_tensors(path), step
        except InputError as error:
            warnings.warn(f"{error}. Resuming from an earlier state", stacklevel=2)
    return {}, 0

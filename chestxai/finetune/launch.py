"""Starting on one process or many: the accelerator, sharded tensors, disk space, the lock of a run's folder."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState, utils
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, GradientAccumulationPlugin
from diffusers import StableDiffusionPipeline
from filelock import FileLock, Timeout
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from chestxai import profiles, runs
from chestxai.profiles import FinetuneSettings
from chestxai.runs import InputError

# Variables of accelerate that would make another run of it, and their value when off.
_BENDING = {
    "ACCELERATE_TORCH_DEVICE": "",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "false",
    "ACCELERATE_DOWNCAST_BF16": "no",
    "ACCELERATE_USE_SAGEMAKER": "false",
}


def make_accelerator(settings: FinetuneSettings, unused: bool = False) -> Accelerator:
    """The accelerator for one run of these ``settings``.

    ``unused``: some parameters have no gradient in some steps, as under a schedule. InputError for a distribution that
    the loop does not support, or a batch that cannot be shared equally.
    """
    profiles.check_packages(settings)
    for name, off in _BENDING.items():
        if os.environ.get(name, off).lower() not in (off, ""):
            raise InputError(
                f"the variable {name} is {os.environ[name]!r}, which no profile asks for: unset it, or start with "
                "'accelerate launch --config_file data/accelerate/ddp.yaml'"
            )
    # accelerate keeps the precision of the first run of a process and refuses another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != settings.precision:
        AcceleratorState._reset_state()
    # Given as plugins, these do not give way to variables of the environment.
    accelerator = Accelerator(
        cpu=runs.device() == "cpu",
        mixed_precision=settings.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.accumulate),
        dynamo_plugin=utils.TorchDynamoPlugin(backend="no"),
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate ignores this request on CPUs, though torch can shard there as well. PartialState is changed too
        # because every new AcceleratorState copies it.
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    other = state.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if other or (state.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2):
        raise InputError(
            f"fine-tuning supports DDP and version 2 of FSDP, not {state.distributed_type.value}"
            f"{'' if other else ' version 1'}: use data/accelerate/ddp.yaml or data/accelerate/fsdp.yaml"
        )
    if accelerator.is_fsdp2:
        # accelerate's plugin outlives the run, and with it the first model's list of blocks.
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # autocast chooses the precision of each operation, as it does without FSDP; gradients stay in float32.
        state.fsdp_plugin.mixed_precision_policy = None
        if settings.averages == "cpu":
            raise InputError("finetune.averages: cpu is not for FSDP, which spreads them over the GPUs; use device")
    world = accelerator.num_processes
    if settings.batch_size % (world * settings.accumulate):
        raise InputError(
            f"batch_size {settings.batch_size} is not a multiple of {world} processes × "
            f"{settings.accumulate} accumulated steps"
        )
    return accelerator


@contextmanager
def memory_errors(settings: FinetuneSettings) -> Iterator[None]:
    """Turn CUDA's "out of memory" inside the block into an InputError of one line, with the ``settings`` to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).split(". ")[0]
        raise InputError(f"{first}: {savers(settings)}. Finished checkpoints are kept") from error


def savers(settings: FinetuneSettings) -> str:
    """The settings to change where memory does not suffice, without those already made in ``settings``."""
    smaller = settings.batch_size // settings.accumulate > 1
    advice = {
        f"raise finetune.accumulate (now {settings.accumulate}; batch_size is {settings.batch_size})": smaller,
        "set finetune.gradient_checkpointing: true": not settings.gradient_checkpointing,
        "set finetune.averages: cpu": settings.averages != "cpu",
        "set finetune.optimizer: adamw8bit": settings.optimizer == "adamw",
        'give the variant unet: "lora:16"': True,
    }
    return f"in the profile, {', or '.join(text for text, helps in advice.items() if helps)}; see --plan"


def make_optimizer(groups: list[dict[str, Any]], settings: FinetuneSettings) -> torch.optim.Optimizer:
    """AdamW over ``groups`` of parameters as the ``settings`` say."""
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    from bitsandbytes.optim import AdamW8bit  # optional, see `profiles.check_packages`

    return AdamW8bit(groups, weight_decay=settings.weight_decay)


def gather(value: Tensor) -> Tensor:
    """A tensor sharded by FSDP as a whole (all processes must call this); any other unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, other: Tensor) -> Tensor:
    """The inverse of `gather`: ``value`` on the device of ``other``, and sharded as it is."""
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements) if isinstance(other, DTensor) else value


def check_space(
    out: Path,
    learning: Sequence[torch.nn.Parameter],
    pipeline: StableDiffusionPipeline,
    settings: FinetuneSettings,
    kept: bool = False,
) -> None:
    """Check before the first step that the disk has room for the run in ``out``; OSError if not.

    That is for the ``learning`` parameters, as often as the ``settings`` say, and for ``pipeline``. What is in ``out``
    now counts as done or to be replaced, unless it is to be ``kept``.
    """

    def size(*parts: Iterable[torch.nn.Parameter]) -> int:
        return sum(p.numel() * p.element_size() for part in parts for p in part)

    whole = size(*(part.parameters() for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae)))
    needed = space(size(learning), whole, settings)
    out.mkdir(parents=True, exist_ok=True)
    if not kept:
        needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            f"{out}: fine-tuning needs about {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
            "free some space, or raise finetune.checkpoint_every in the profile"
        )


def space(learning: int, whole: int, settings: FinetuneSettings) -> int:
    """Bytes of a run on disk: of what is ``learning``, of the ``whole`` model, in the ``settings``' checkpoints."""
    checkpoints = -(-settings.steps // settings.checkpoint_every)
    # The resumable state holds weights, averages and two moments; two are kept while a third is written. The weights
    # before the training are kept beside it, in bfloat16 all of them, and the model is written at the end.
    return learning * (checkpoints + 13) + whole * (1 + (settings.weights == "bf16"))


@contextmanager
def only_writer(out: Path, main: bool) -> Iterator[None]:
    """Hold the lock of a run's folder ``out`` while it is being made; all processes rely on the ``main`` one.

    InputError where another training holds it.
    """
    if not main:
        yield
        return
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another process is fine-tuning this run; wait for it or use another --out") from None
    try:
        yield
    finally:
        lock.release()

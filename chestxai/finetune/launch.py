"""Starting on one process or many: the accelerator, sharded tensors, disk space, the lock of a run's folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from diffusers import StableDiffusionPipeline
from filelock import FileLock, Timeout
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from chestxai.profiles import FinetuneSettings
from chestxai.runs import InputError


def make_accelerator(settings: FinetuneSettings, unused: bool = False) -> Accelerator:
    """The accelerator for one run.

    Args:
        settings: precision and accumulation.
        unused: some parameters have no gradient in some steps, as under a schedule.

    Raises:
        InputError: a kind of distribution that the loop does not support, or a batch that cannot be shared equally.
    """
    # accelerate keeps the precision of the first run of a process and refuses another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != settings.precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
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
    world = accelerator.num_processes
    if settings.batch_size % (world * settings.accumulate):
        raise InputError(
            f"batch_size {settings.batch_size} is not a multiple of {world} processes × "
            f"{settings.accumulate} accumulated steps"
        )
    return accelerator


def gather(value: Tensor) -> Tensor:
    """A tensor sharded by FSDP as a whole (all processes must call this); any other unchanged."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, other: Tensor) -> Tensor:
    """The inverse of `gather`: ``value`` on the device of ``other``, and sharded as it is."""
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements) if isinstance(other, DTensor) else value


def check_space(
    out: Path, learning: Sequence[torch.nn.Parameter], pipeline: StableDiffusionPipeline, settings: FinetuneSettings
) -> None:
    """Check before the first step that the disk has room for the run.

    Args:
        out: folder of the run.
        learning: the parameters that learn.
        pipeline: what will be saved.
        settings: number of checkpoints.

    Raises:
        OSError: too little space.
    """

    def size(*parts: Iterable[torch.nn.Parameter]) -> int:
        return sum(p.numel() * p.element_size() for part in parts for p in part)

    checkpoints = -(-settings.steps // settings.checkpoint_every)
    # The resumable state holds weights, averages and two moments; two are kept while a third is written. The weights
    # before the training are kept beside it, and the model is written at the end.
    whole = size(*(part.parameters() for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae)))
    needed = size(learning) * (checkpoints + 13) + whole
    out.mkdir(parents=True, exist_ok=True)
    # An unfinished run has some of it already; another run is replaced.
    needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            f"{out}: fine-tuning needs about {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
            "free some space, or raise finetune.checkpoint_every in the profile"
        )


@contextmanager
def only_writer(out: Path, main: bool) -> Iterator[None]:
    """Hold the lock of a run's folder while it is being made.

    Args:
        out: folder of the run.
        main: whether this is the main process; the others of one training rely on it.

    Raises:
        InputError: another training holds it.
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

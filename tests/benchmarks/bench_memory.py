"""Memory and speed of a fine-tuning with and without each saver, beside what ``--plan`` says.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/bench_memory.py [--device cuda]

On a CPU: the most bytes of weights and tensors at any time of the training, counted at each operation. On a GPU:
`torch.cuda.max_memory_allocated`. The model is Stable Diffusion 2, on a CPU an eighth as wide with 16² latents; two
steps of 8 images in 2 parts. Ratios are to the training as it is, of the same call. On the CPU, averages lie in the
same memory wherever they are asked for, and bf16 is emulated: its time says nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chestxai import finetune, models, profiles, sources
from chestxai.finetune import plan
from chestxai.profiles import FinetuneSettings
from chestxai.recipes import Recipe
from tests import test_paper

SETTINGS = FinetuneSettings(
    steps=2,
    batch_size=8,
    accumulate=2,
    learning_rate=1e-5,
    text_learning_rate=1e-5,
    checkpoint_every=2,
    precision="bf16",
)
SAVERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "gradient_checkpointing": ({"gradient_checkpointing": True}, {}),
    "weights: bf16": ({"weights": "bf16"}, {}),
    "averages: cpu": ({"averages": "cpu"}, {}),
    "optimizer: adamw8bit": ({"optimizer": "adamw8bit"}, {}),
    "unet: lora:16": ({}, {"unet": "lora:16"}),
    "all but LoRA": ({"gradient_checkpointing": True, "weights": "bf16", "averages": "cpu"}, {}),
}


class Allocated(TorchDispatchMode):
    """Bytes of the weights of ``pipeline`` and of all storages that operations make, while there; and their most."""

    def __init__(self, pipeline: Any = None) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()
        for part in pipeline.components.values() if pipeline is not None else ():
            for parameter in part.parameters() if isinstance(part, nn.Module) else ():
                self._add(parameter.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.known:
            size = storage.nbytes()
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    cuda = parser.parse_args().device == "cuda"
    profile = profiles.load("paper")
    print(f"{'':26}{'peak MB':>10}{'ratio':>8}{'plan MB':>10}{'/ peak':>8}{'s / step':>10}{'ratio':>8}")
    first = None
    with tempfile.TemporaryDirectory() as folder:
        base = test_paper.base(Path(folder) / "base", part=1 if cuda else 8, side=64 if cuda else 16)
        data = sources.load("phantom", split="train", n=8, size=512 if cuda else 128)
        for name, (changes, recipe) in SAVERS.items():
            if not cuda and "weights" not in changes:
                changes = changes | {"precision": "no"}  # a CPU would take minutes for a step in bf16
            settings, treatment = SETTINGS.model_copy(update=changes), Recipe(text="learnable", **recipe)
            options = {"recipe": treatment, "cache": Path(folder) / "cache"}
            try:
                out = finetune.finetune(models.load_pipeline(base), data, settings, Path(folder) / name, **options)
            except FileNotFoundError as error:
                print(f"{name:26}{error}")
                continue
            spent = profiles.Run(out).train_log()["seconds"].diff().iloc[-1]
            pipeline = models.load_pipeline(base)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            with nullcontext() if cuda else Allocated(pipeline) as seen:
                finetune.finetune(pipeline, data, settings, Path(folder) / f"{name} again", **options)
            most = torch.cuda.max_memory_allocated() if cuda else seen.most
            first = first or (most, spent)
            planned = profile.model_copy(
                update={"base": str(base), "finetune": settings, "variants": {"one": treatment}}
            )
            used = plan.memory(plan.networks(planned)[0], planned, "one")
            if not cuda and settings.averages == "cpu":
                used["averages"] = used["gradients"] * (2 if settings.weights == "bf16" else 1)
            total = sum(used.values())
            print(
                f"{name:26}{most / 1e6:10.0f}{most / first[0]:8.2f}{total / 1e6:10.0f}{total / most:8.2f}"
                f"{spent:10.2f}{spent / first[1]:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""What a step of `finetune` costs over the bare forward, backward and optimizer step on the same batch.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_finetune.py [--steps 20] [--blocks 3] [--batch 8] [--base tiny]

Both train the same weights on the same numbers: the losses of their first steps must agree. The bare step has no
drawing and copying of the batch, no clipping, average, log or progress bar: what it lacks is the overhead. Blocks of
the two alternate, on a CPU the processor's time is taken, and the table has the lower quartile of the steps of each,
so that a busy machine does not decide.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from chestxai import finetune as module
from chestxai import models, sources
from chestxai.profiles import FinetuneSettings

CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time


def ours(base: str, studies: list, settings: FinetuneSettings, variant: str) -> tuple[np.ndarray, float]:
    """Seconds of each step, and the first loss."""
    module.time = SimpleNamespace(perf_counter=CLOCK)
    with tempfile.TemporaryDirectory() as folder:
        out = module.finetune(models.load_pipeline(base), studies, settings, Path(folder), variant=variant)
        log = pd.read_csv(out / "train.csv")
    return settings.batch_size / log["images_per_second"].to_numpy(), float(log["loss"][0])


def bare(base: str, studies: list, settings: FinetuneSettings, variant: str) -> tuple[np.ndarray, float]:
    """The same for the U-Net (and text encoder) and nothing else."""
    pipeline = models.load_pipeline(base)
    images, prompts, _ = module.training_pairs(pipeline, studies)
    latents = models.encode_images(pipeline, images).cpu()
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    shape, timesteps, device = latents.shape[1:], schedule.config.num_train_timesteps, pipeline.unet.device
    batches = []
    for step in range(settings.steps):
        rows, noise, times, dropped = module.draw(step, 0, len(latents), settings, shape, timesteps)
        texts = ["" if drop else prompts[row] for row, drop in zip(rows, dropped, strict=True)]
        text = {k: v.to(device) for k, v in models.tokenize(pipeline, texts).items()}
        states = models.encode_text(pipeline, texts) if variant == "frozen" else None
        noisy = schedule.add_noise(latents[rows], noise, times)
        batches.append((noisy.to(device), noise.to(device), times.to(device), text, states))
    unet = pipeline.unet.requires_grad_(True).train()
    groups = [{"params": list(unet.parameters()), "lr": settings.learning_rate}]
    if variant == "learnable":
        encoder = pipeline.text_encoder.requires_grad_(True)
        groups.append({"params": list(encoder.parameters()), "lr": settings.text_learning_rate})
    optimizer = torch.optim.AdamW(groups, fused=True)
    seconds, losses = [], []
    for x, noise, times, text, states in batches:
        began = CLOCK()
        if states is None:
            states = models.text_states(encoder, text)
        loss = F.mse_loss(unet(x, times, states, return_dict=False)[0], noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        seconds.append(CLOCK() - began)
    return np.array(seconds), losses[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="tiny", help="see models.load_pipeline (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of each block (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=3, help="of each kind (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="(default: %(default)s)")
    given = parser.parse_args()
    settings = FinetuneSettings(
        steps=given.steps,
        batch_size=given.batch,
        learning_rate=1e-4,
        text_learning_rate=1e-5,
        checkpoint_every=given.steps,
    )
    size = models.image_size(models.load_pipeline(given.base))
    studies = sources.load("phantom", split="train", n=4 * given.batch, size=size)
    print(f"{given.base}, batch {given.batch}, {torch.get_num_threads()} threads, {given.blocks} × {given.steps} steps")
    print(f"{'variant':<12}{'bare ms':>10}{'finetune ms':>13}{'ratio':>8}")
    for variant in ("frozen", "learnable"):
        seconds: dict[str, list[np.ndarray]] = {"bare": [], "ours": []}
        for _ in range(given.blocks):
            one, two = (run(given.base, studies, settings, variant) for run in (bare, ours))
            if not np.isclose(one[1], two[1], rtol=1e-4):
                raise SystemExit(f"the losses of the first step differ: {one[1]} and {two[1]}")
            for name, (spent, _) in (("bare", one), ("ours", two)):
                seconds[name].append(spent[2:])  # the first steps also allocate
        plain, full = (float(np.quantile(np.concatenate(seconds[name]), 0.25)) * 1e3 for name in ("bare", "ours"))
        print(f"{variant:<12}{plain:>10.1f}{full:>13.1f}{full / plain:>8.3f}")


if __name__ == "__main__":
    main()

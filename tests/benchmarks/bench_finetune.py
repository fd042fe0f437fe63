"""Training speed and memory: `finetune`, diffusers' text-to-image example, and the step that no loop can beat.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/bench_finetune.py [--size tiny] [--variant frozen]
    PYTHONPATH=. python tests/benchmarks/bench_finetune.py --device cuda --dtype bf16 --size sd2 --batch 4

Three contenders train the same model on the same studies, in the same batch size and precision:

- ``limit``: forward, backward and optimizer step on latents, noise and text embeddings that lie ready; no drawing and
  copying of the batch, no clipping, average, log or progress bar.
- ``chestxai``: `finetune` as the book calls it.
- ``example``: the steps of ``examples/text_to_image/train_text_to_image.py`` with ``--use_ema``. Its images come from
  memory and need no resizing, which spares it what it would spend on files. It trains no text encoder; for the
  learnable treatment it is extended as diffusers' DreamBooth example is, by the encoder's parameters.

Each has a process of its own, for the peak of its memory, from loading to the saved run. They take turns, a block of
steps each, so that a busy machine slows all three; the first round and the first step of a block, which find cold
memory, do not count. Ratios are of a round's medians, then the median of the rounds with their range in brackets: of
the processor's time on a CPU, of wall time on a GPU. The losses of `limit` and `chestxai` must agree at the first step,
or the comparison is void. ``sd2`` is Stable Diffusion 2 with random weights: on a GPU in full, on a CPU a fifth as wide
with 32² latents. The example's loss on the tiny base is another, since it samples the autoencoder's posterior where
`finetune` takes its mode.

`finetune` reads all weights for its fingerprint, of which the example leaves most word embeddings on the disk. On the
tiny base with a frozen encoder its peak is higher by these, 20 MB of a mapped file, which the system takes back when it
needs the room; what the process itself allocates is the same.

Tried on the bare step of the tiny base (batch 24, one thread of a busy CPU, 5 rounds; ratio of the processor's time to
that of the step as it is, where the same step a second time gave 1.02) and left out, being no gain of 2 %:
channels_last 0.985, other bits; an AdamW that is not fused 1.015, other bits. Clipping costs 1.015, one tensor at a
time 1.002: no more than the noise. Compiled as a whole (`torch.compile`) the
U-Net's passes take 0.93 of the time, compiled by blocks 0.98; compiling took 120 s, more than the demo could win back.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from chestxai import finetune as module
from chestxai import models, reports, sources
from chestxai.finetune import loop
from chestxai.profiles import FinetuneSettings
from chestxai.studies import Study
from tests import tiny

BATCH = {"tiny": 24, "sd2": 2}


class Turns:
    """Called at the start of each step: takes the time of the one before, and waits for its turn after every block."""

    def __init__(self, line: Connection, block: int) -> None:
        self.line, self.block = line, block
        self.spent: list[tuple[float, float]] = []
        self.began: tuple[float, float] | None = None

    def __call__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        if self.began is not None:
            self.spent.append((now[0] - self.began[0], now[1] - self.began[1]))
        if self.began is None or len(self.spent) == self.block:
            torch.cuda.empty_cache()  # for the next one
            self.line.send(self.spent)
            self.line.recv()
            self.spent = []
        self.began = time.perf_counter(), time.process_time()


def build(size: str, device: str) -> StableDiffusionPipeline:
    """A base model, the same in every process."""
    if size == "tiny":
        return models.load_pipeline("tiny", device=device)
    full = device == "cuda"
    small = tiny.random_pipeline("sd")  # for its tokenizer and scheduler
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64 if full else 32,
        block_out_channels=(320, 640, 1280, 1280) if full else (64, 128, 256, 256),
        attention_head_dim=(5, 10, 20, 20) if full else (1, 2, 4, 4),
        cross_attention_dim=1024 if full else 192,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if full else (24, 48, 96, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=32 if full else 8,
        sample_size=512 if full else 256,
    )
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1024 if full else 192,
        intermediate_size=4096 if full else 768,
        num_hidden_layers=23,
        num_attention_heads=16 if full else 3,
        hidden_act="gelu",
    )
    parts = {**small.components, "unet": unet, "vae": vae, "text_encoder": CLIPTextModel(text)}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    for part in (unet, vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    return pipeline.to(device)


def ours(
    pipeline: StableDiffusionPipeline, studies: list[Study], settings: FinetuneSettings, variant: str, turn: Callable
) -> list[float]:
    """Returns the losses, as all three do."""
    draw = loop.draw

    def drawn(*arguments: object) -> object:
        turn()
        return draw(*arguments)

    loop.draw = drawn
    with tempfile.TemporaryDirectory() as folder:
        out = module.finetune(pipeline, studies, settings, Path(folder), recipe=variant)
        return np.genfromtxt(out / "train.csv", delimiter=",", names=True)["loss"].tolist()


def limit(
    pipeline: StableDiffusionPipeline, studies: list[Study], settings: FinetuneSettings, variant: str, turn: Callable
) -> list[float]:
    device = pipeline.unet.device
    images, prompts, _ = module.training_pairs(pipeline, studies)
    latents = models.encode_images(pipeline, images).cpu()
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    half = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    batches = []
    for step in range(settings.steps):
        shape, times = latents.shape[1:], schedule.config.num_train_timesteps
        rows, noise, times, dropped = module.draw(step, 0, len(latents), settings, shape, times)
        texts = ["" if drop else prompts[row] for row, drop in zip(rows, dropped, strict=True)]
        text = {k: v.to(device) for k, v in models.tokenize(pipeline, texts).items()}
        with half:
            states = models.encode_text(pipeline, texts) if variant == "frozen" else None
        noisy = schedule.add_noise(latents[rows], noise, times)
        batches.append((noisy.to(device), noise.to(device), times.to(device), text, states))
    unet, encoder = pipeline.unet.requires_grad_(True).train(), pipeline.text_encoder
    groups = [{"params": list(unet.parameters()), "lr": settings.learning_rate}]
    if variant == "learnable":
        groups.append({"params": list(encoder.requires_grad_(True).parameters()), "lr": settings.text_learning_rate})
    optimizer = torch.optim.AdamW(groups, fused=True)
    losses = []
    for x, noise, times, text, states in batches:
        turn()
        with half:
            if states is None:
                states = models.text_states(encoder, text)
            loss = F.mse_loss(unet(x, times, states, return_dict=False)[0].float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


class Items(Dataset):
    """An image and its caption, transformed and tokenised whenever asked for."""

    def __init__(self, pipeline: StableDiffusionPipeline, studies: list[Study]) -> None:
        self.images = [Image.fromarray(study.pixels()) for study in studies]
        self.captions = [reports.prompt(study.report) for study in studies]
        self.tokenizer, self.size = pipeline.tokenizer, models.image_size(pipeline)
        self.mode = "RGB" if pipeline.vae.config.in_channels == 3 else "L"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index].convert(self.mode)
        scale = self.size / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).reshape(self.size, self.size, -1).permute(2, 0, 1)
        tokens = self.tokenizer(
            self.captions[index],
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return {"pixels": (pixels.float() / 255 - 0.5) / 0.5, "ids": tokens.input_ids[0]}


def example(
    pipeline: StableDiffusionPipeline, studies: list[Study], settings: FinetuneSettings, variant: str, turn: Callable
) -> list[float]:
    accelerator = Accelerator(mixed_precision=settings.precision)
    vae, encoder = pipeline.vae, pipeline.text_encoder
    trained = [pipeline.unet.train()] + [encoder] * (variant == "learnable")
    for part in trained:
        part.requires_grad_(True)
    averages = [EMAModel(part.parameters()) for part in trained]
    rates = (settings.learning_rate, settings.text_learning_rate)
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip(trained, rates, strict=False)]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    loader = DataLoader(Items(pipeline, studies), shuffle=True, batch_size=settings.batch_size)
    rate = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=settings.warmup)
    optimizer, loader, rate, *trained = accelerator.prepare(optimizer, loader, rate, *trained)
    unet, encoder = trained[0], trained[1] if variant == "learnable" else encoder
    half = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    for part in (vae, encoder) if variant == "frozen" else (vae,):
        part.to(accelerator.device, half)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    losses: list[float] = []
    with open(os.devnull, "w") as nowhere, tqdm(total=settings.steps, file=nowhere) as bar:
        while len(losses) < settings.steps:
            for batch in loader:
                turn()
                with accelerator.accumulate(*trained):
                    with torch.no_grad():
                        latents = vae.encode(batch["pixels"].to(half)).latent_dist.sample() * vae.config.scaling_factor
                    noise = torch.randn_like(latents)
                    count = schedule.config.num_train_timesteps
                    times = torch.randint(0, count, (len(latents),), device=latents.device)
                    noisy = schedule.add_noise(latents, noise, times)
                    states = encoder(batch["ids"])[0]
                    predicted = unet(noisy, times, states).sample
                    loss = F.mse_loss(predicted.float(), noise.float())
                    losses.append(accelerator.gather(loss.repeat(settings.batch_size)).mean().item())
                    accelerator.backward(loss)
                    parameters = [p for part in trained for p in part.parameters()]
                    accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
                    optimizer.step()
                    rate.step()
                    optimizer.zero_grad()
                for part, average in zip(trained, averages, strict=True):
                    average.step(part.parameters())
                bar.update(1)
                bar.set_postfix(step_loss=loss.detach().item(), lr=rate.get_last_lr()[0])
                if len(losses) == settings.steps:
                    break
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
    return losses


CONTENDERS = {"limit": limit, "chestxai": ours, "example": example}


def peak() -> float:
    """Peak memory of this process so far, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "linux":  # what getrusage says there begins with the parent's
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def contend(name: str, given: argparse.Namespace, size: str, variant: str, line: Connection) -> None:
    """A child: one contender from loading to its end."""
    batch = given.batch or BATCH[size]
    steps = (given.rounds + 1) * given.block + 1
    settings = FinetuneSettings(
        steps=steps,
        batch_size=batch,
        learning_rate=1e-4,
        text_learning_rate=1e-5,
        checkpoint_every=steps,
        precision="bf16" if given.dtype == "bf16" else "no",
    )
    pipeline = build(size, given.device)
    studies = list(sources.load("phantom", split="train", n=4 * batch, size=models.image_size(pipeline)))
    losses = CONTENDERS[name](pipeline, studies, settings, variant, Turns(line, given.block))
    line.send((peak(), losses))


def race(given: argparse.Namespace, size: str, variant: str) -> None:
    """Let the three take turns and print their rows of the table."""
    context = multiprocessing.get_context("spawn")
    lines, spent = {}, {name: [] for name in CONTENDERS}
    for name in CONTENDERS:
        lines[name], there = context.Pipe()
        context.Process(target=contend, args=(name, given, size, variant, there), daemon=True).start()
        there.close()
        lines[name].recv()  # ready for its first step
    for i in range(given.rounds + 1):
        for name in list(CONTENDERS)[:: -1 if i % 2 else 1]:
            lines[name].send(None)
            spent[name].append(np.median(lines[name].recv()[1:], axis=0))
    memory, losses = {}, {}
    for name, line in lines.items():
        line.send(None)
        memory[name], losses[name] = line.recv()
    tolerance = 2e-2 if given.dtype == "bf16" else 1e-4
    if not np.isclose(losses["limit"][0], losses["chestxai"][0], rtol=tolerance):
        raise SystemExit(f"the losses of the first step differ: {losses['limit'][0]} and {losses['chestxai'][0]}")
    seconds = {name: np.array(values[1:]) for name, values in spent.items()}  # (rounds, wall and processor)
    clock = 0 if given.device == "cuda" else 1

    def ratio(over: np.ndarray, under: np.ndarray) -> str:
        values = over[:, clock] / under[:, clock]
        return f"{np.median(values):.3f} [{values.min():.3f}, {values.max():.3f}]"

    for name, values in seconds.items():
        wall, processor = np.median(values, axis=0) * 1e3
        rate = (given.batch or BATCH[size]) / np.median(values[:, clock])
        print(
            f"{size:6}{variant:11}{name:10}{wall:9.1f}{processor:9.1f}{rate:10.2f}"
            f"{ratio(seconds['example'], values):>23}{ratio(values, seconds['limit']):>23}"
            f"{memory[name]:9.0f}{np.mean(losses[name]):8.3f}",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=BATCH, action="append", help="base model (default: both)")
    parser.add_argument("--variant", choices=("frozen", "learnable"), action="append", help="(default: both)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, help=f"(default: {BATCH})")
    parser.add_argument("--rounds", type=int, default=7, help="that count (default: %(default)s)")
    parser.add_argument("--block", type=int, default=4, help="steps of a turn (default: %(default)s)")
    given = parser.parse_args()
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the children's default would be the GPU
    print(f"{given.device}, {given.dtype}, {torch.get_num_threads()} threads, {given.rounds} × {given.block} steps")
    head = f"{'model':6}{'variant':11}{'':10}{'wall ms':>9}{'CPU ms':>9}{'images/s':>10}"
    print(head + f"{'× example, images/s':>23}{'× limit, time':>23}{'peak MB':>9}{'loss':>8}")
    for size in given.size or BATCH:
        for variant in given.variant or ("frozen", "learnable"):
            race(given, size, variant)


if __name__ == "__main__":
    main()

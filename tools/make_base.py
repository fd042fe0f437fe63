"""Make the tiny base models that ship in ``data``, from nothing. Run once in the project's life.

    python tools/make_base.py --out data/tiny
    python tools/make_base.py --out data/tiny-velocity --autoencoder data/tiny --predict velocity

The second takes the first's autoencoder. Its U-Net predicts the velocity, as Stable Diffusion 2.1 for 768 pixels does,
and all timesteps weigh the same. In terms of the image, an error then weighs 1 + SNR, where it weighs min(SNR, 5) in
training the first: it counts at high noise, too. The second knows left from right, which the first hardly does.

An autoencoder of chest phantoms is trained first, then a U-Net that generates them from captions in everyday words,
such as "Small white pool at the bottom left.". What Stable Diffusion is to radiographs, which the web shows with all
sorts of captions, this base is to the reports: it has read words for sides, sizes and looks, but no name of a
finding.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from chestxai import models, runs, sources
from chestxai.finetune import finetune
from chestxai.models import TINY
from chestxai.profiles import FinetuneSettings
from chestxai.studies import Study

#: U-Net of the tiny base: 4.7 M parameters, cross-attention at 16², 8² and 4² latent positions.
TINY_UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    # diffusers' historical name: these are numbers of heads; every head is 32 wide.
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 384,
    "norm_num_groups": 16,
}
#: Autoencoder of the tiny base: grey 64² images to 4 × 16² latents.
TINY_VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
}


#: What somebody who never read a report might call a finding, its size and its place.
WORDS = {
    "Atelectasis": ("white streak", "pale band"),
    "Cardiomegaly": ("wide middle", "bulging middle"),
    "Consolidation": ("solid white patch", "dense white spot"),
    "Edema": ("white mist", "white fog"),
    "Lung Opacity": ("grey veil", "faint smudge"),
    "Pleural Effusion": ("white pool", "filled corner"),
    "Pneumonia": ("speckled patch", "mottled spot"),
    "Pneumothorax": ("black gap", "dark rim"),
}
SIZES = {"small": ("small", "little", "tiny"), "moderate": ("medium",), "large": ("large", "big", "huge")}
PLACES = {
    "upper": ("upper", "top"), "apical": ("upper", "top"), "mid": ("middle",), "lower": ("lower", "bottom"),
    "basal": ("lower", "bottom"),
}  # fmt: skip


def captioned(study: Study, rng: np.random.Generator) -> Study:
    """A phantom with a caption for a report: everyday words, chosen by ``rng``, for what there is to see.

    Two captions in five do not say where, so that it must be seen and not read; one in four denies something. Left is
    the patient's left, as in reports.
    """
    sentences = []
    for one in (study.present()[i] for i in rng.permutation(len(study.present()))):
        size, name = (str(rng.choice(words)) for words in (SIZES[one.severity or "moderate"], WORDS[one.name]))
        place = str(rng.choice(PLACES[one.zone])) if one.zone in PLACES and rng.random() < 0.8 else ""
        side = one.side if one.side in ("left", "right") else ""
        size = size if rng.random() < 0.8 else ""
        text = rng.choice([f"{size} {side} {place} {name}", f"{size} {name} at the {place} {side}"])
        where = bool(place or side) and rng.random() < 0.6
        sentences.append(str(text) if where else f"{size} {name}")
    absent = rng.permutation([name for name in WORDS if name not in {one.name for one in study.present()}])
    denied = [f"no {rng.choice(WORDS[str(absent[0])])}"] if rng.random() < 0.25 else []
    order = [" ".join(text.split()).capitalize() + "." for text in [*(sentences or ["nothing to see"]), *denied]]
    return replace(study, id=f"{study.id}-captioned", report="IMPRESSION: " + " ".join(order), findings=())


def noise_scheduler(predict: str = "noise") -> DDIMScheduler:
    """Stable Diffusion's noise schedule, for a U-Net that predicts the noise or the velocity."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon" if predict == "noise" else "v_prediction",
    )


def pretrain(
    out: Path,
    work: Path,
    *,
    images: int = 12000,
    autoencoder: Path | None = None,
    autoencoder_steps: int = 1500,
    predict: Literal["noise", "velocity"] = "noise",
    steps: int = 4000,
    seed: int = 0,
) -> Path:
    """Make the tiny base from nothing: an autoencoder of chest phantoms, then a U-Net that draws them from captions.

    The U-Net is trained by `chestxai.finetune.finetune`, with the text encoder frozen, on images with `captioned`.

    Args:
        out: folder for the weights (float16 safetensors) with ``SHA256SUMS``.
        work: folder for unfinished work; the same call goes on from there.
        images: phantoms for each of the two stages.
        autoencoder: folder of a base whose autoencoder is taken, instead of training one.
        autoencoder_steps: of batch 16.
        predict: the noise, with min-SNR weights, or the velocity, with equal weights.
        steps: of the U-Net, batch 24, in each of two rounds; the second is slower and starts from the first's averages.
        seed: of the weights and of everything drawn.
    """
    out, work = Path(out), Path(work)
    torch.manual_seed(seed)
    size = TINY_VAE["sample_size"]
    finished = work / f"vae-{runs.fingerprint(TINY_VAE, images, autoencoder_steps, seed)}.safetensors"
    if autoencoder:
        vae = AutoencoderKL.from_pretrained(autoencoder / "vae")
    else:
        vae = AutoencoderKL(**TINY_VAE)
        if finished.is_file():
            vae.load_state_dict(runs.load_tensors(finished))
        else:
            pixels = [s.pixels() for s in sources.load("phantom", split="train", n=images, size=size, seed=1)]
            _train_autoencoder(vae, np.stack(pixels), autoencoder_steps, seed)
            runs.save_tensors(finished, vae.state_dict())
    vae.half().float()  # train the U-Net on the latents of the weights that ship
    studies = sources.load("phantom", split="train", n=images, size=size, seed=2)
    pairs = [captioned(study, np.random.default_rng([seed, 4, i])) for i, study in enumerate(studies)]
    tokenizer, encoder = models.minilm()
    torch.manual_seed(seed + 77)  # whatever the autoencoder drew
    unet = UNet2DConditionModel(**TINY_UNET)
    for name, part in unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            part.weight.data.zero_()  # text changes nothing until it is learned
    pipeline = StableDiffusionPipeline(
        vae=vae.eval().requires_grad_(False),
        unet=unet,
        text_encoder=encoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        scheduler=noise_scheduler(predict),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if not autoencoder:
        # Latents of unit variance, as Stable Diffusion's noise schedule expects (Rombach et al. 2022, appendix G).
        vae.register_to_config(scaling_factor=1.0)
        some = models.encode_images(pipeline, np.stack([s.pixels() for s in pairs[:1000]]))
        vae.register_to_config(scaling_factor=round(float(1 / some.std()), 5))
    for n, rate in enumerate((1e-3, 4e-4)):
        settings = FinetuneSettings(
            steps=steps,
            batch_size=24,
            learning_rate=rate,
            text_learning_rate=1e-6,
            warmup=200,
            ucg=0.1,
            min_snr=5 if predict == "noise" else None,
            ema_decay=0.999,
            checkpoint_every=500,
        )
        finetune(pipeline, pairs, settings, work / f"unet-{n}", seed=seed + n)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("SHA256SUMS", "model_index.json"):
        (out / name).unlink(missing_ok=True)
    pipeline.unet.half().save_pretrained(out / "unet")
    if autoencoder:
        shutil.copytree(autoencoder / "vae", out / "vae", dirs_exist_ok=True)
    else:
        pipeline.vae.half().save_pretrained(out / "vae")
    pipeline.scheduler.save_pretrained(out / "scheduler")
    pipeline.save_config(out)
    write_sums(out)
    return out


def write_sums(folder: Path) -> Path:
    """``SHA256SUMS`` of every file in ``folder``, in the format of ``sha256sum -c``."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [f"{runs.sha256(p)}  {p.relative_to(folder).as_posix()}" for p in files]
    return runs.write_atomic(Path(folder) / "SHA256SUMS", "\n".join(lines) + "\n")


def _train_autoencoder(vae: AutoencoderKL, pixels: np.ndarray, steps: int, seed: int, batch: int = 16) -> None:
    # L1 on pixels and on their differences keeps edges without a perceptual network; the KL term only bounds the
    # latents (Rombach et al. 2022, section 3.1).
    vae.to(memory_format=torch.channels_last)  # a third faster on a CPU
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    rng, generator = np.random.default_rng([seed, 3]), torch.Generator().manual_seed(seed)
    bar = runs.progress(range(steps), "autoencoder")
    for _ in bar:
        x = _augment(models.to_tensor(pixels[rng.integers(len(pixels), size=batch)], 1), generator)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        loss = F.l1_loss(y, x) + edges + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random mirror, zoom, shift, contrast and polarity, so that the autoencoder also takes real radiographs."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(x), generator=generator) * (high - low) + low

    zoom, mirror = uniform(0.55, 1.05), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zero = torch.zeros(len(x))
    rows = [
        torch.stack([zoom * mirror, zero, uniform(-0.25, 0.25)], 1),
        torch.stack([zero, zoom, uniform(-0.25, 0.25)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    # A quarter stays sharp as it is: resampling blurs.
    moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
    x = torch.where((uniform(0, 1) < 0.25)[:, None, None, None], x, moved)
    grey = ((x + 1) / 2).clamp(0, 1) ** (2 ** uniform(-0.8, 0.8))[:, None, None, None]
    grey = grey * uniform(0.7, 1)[:, None, None, None] + uniform(0, 0.15)[:, None, None, None]
    grey = torch.where((uniform(0, 1) < 0.05)[:, None, None, None], 1 - grey, grey)
    return (grey * 2 - 1).clamp(-1, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the base.

    Args:
        arguments: of the command line; default: ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=TINY, help="folder for the weights (default: data/tiny)")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="folder for unfinished work")
    parser.add_argument("--images", type=int, default=12000, help="phantoms (default: %(default)s)")
    parser.add_argument("--autoencoder", type=Path, help="folder of a base whose autoencoder is taken")
    parser.add_argument("--predict", default="noise", choices=("noise", "velocity"), help="(default: %(default)s)")
    parser.add_argument("--autoencoder-steps", type=int, default=1500, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="steps of the U-Net, twice (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    folder = pretrain(
        options.out,
        options.work,
        images=options.images,
        autoencoder=options.autoencoder,
        predict=options.predict,
        autoencoder_steps=options.autoencoder_steps,
        steps=options.steps,
        seed=options.seed,
    )
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    runs.command(main)

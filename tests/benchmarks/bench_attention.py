"""What reading attention costs over the U-Net's passes alone, and how many phrases a second it grounds.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/bench_attention.py [--model tiny] [--run RUN]

Four ways run over the same passes: nothing is read; ours; attention-map-diffusers 1.0; and everything is kept, every
token's probabilities in every layer at every timestep, as chest-distillation does. Blocks of the four alternate and the
medians are compared; memory is the most bytes allocated at any time above those of the passes alone (`Allocated`; on a
GPU `torch.cuda.max_memory_allocated`). ``sd2`` is Stable Diffusion 2's U-Net with random weights, at full size on a
GPU, at half the width and 32² latents on a CPU. ``sdxl`` and ``pixart`` have the attention of SDXL and PixArt-Σ at 1024
pixels (positions, heads, tokens), in fewer layers and an eighth as wide.

With ``--run`` (a finished fine-tuning of phantoms) whole protocols are timed on its phrases, image to heatmap, with the
AUC-ROC of each: ours in shared batches, on the short and the long schedule, and the others an image at a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from attention_map_diffusers import AttentionCapture
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from torch import Tensor

from chestxai import attention, finetune, grounding, localization, models, reports, runs, sources
from chestxai.models.kinds import needs_pooled, pack
from chestxai.studies import phrases
from tests.benchmarks.bench_memory import Allocated

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Latents and timestep of each pass.
Passes = list[tuple[Tensor, int]]


def network(name: str, part: int) -> torch.nn.Module:
    """A random denoiser with the attention of a large one, ``part`` times narrower."""
    if name == "pixart":  # 64² positions, 16 heads, 300 tokens
        return PixArtTransformer2DModel(
            num_attention_heads=16, attention_head_dim=8, num_layers=2, cross_attention_dim=128, caption_channels=512,
            sample_size=128, use_additional_conditions=False,
        )  # fmt: skip
    if name == "sdxl":  # 64² positions and 10 heads, 32² and 20 heads, 77 tokens
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(40, 80, 160),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=256 * 6 + 1280,
            cross_attention_dim=256,
            norm_num_groups=8,
        )
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=tuple(width // part for width in (320, 640, 1280, 1280)),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024 // part,
        use_linear_projection=True,
    )


def build(name: str) -> tuple[SimpleNamespace, Tensor, Tensor]:
    """What has a denoiser, and a batch of latents and text states for it."""
    generator = torch.Generator().manual_seed(0)
    part = 1 if DEVICE == "cuda" else 2
    if name == "tiny":
        unet, shape, text = models.load_pipeline("tiny", device=DEVICE).unet, (24, 4, 16, 16), (24, 32, 384)
    else:
        torch.manual_seed(0)
        unet = network(name, part).to(DEVICE, torch.bfloat16 if DEVICE == "cuda" else torch.float32).eval()
        side = 64 // part if name == "sd2" else 128
        rows = 2 if name == "sd2" else 1
        shape = (rows, 4, side, side)
        text = (rows, *{"sd2": (77, 1024 // part), "sdxl": (77, 256), "pixart": (300, 512)}[name])
    dtype = next(unet.parameters()).dtype
    x, states = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in (shape, text))
    if needs_pooled(unet):
        states = pack(states, torch.randn(len(x), 1280, generator=generator).to(states))
    # The other library looks for a part of this name.
    return SimpleNamespace(**{"transformer" if name == "pixart" else "unet": unet}), x, states


def run(model: SimpleNamespace, passes: Passes, states: Tensor) -> None:
    for x, t in passes:
        models.denoise(net(model), x, torch.tensor([t], device=x.device), states)


def net(model: SimpleNamespace) -> torch.nn.Module:
    return next(iter(vars(model).values())) if isinstance(model, SimpleNamespace) else model.unet


def nothing(model: SimpleNamespace, passes: Passes, states: Tensor, tokens: list[int]) -> None:
    run(model, passes, states)


def ours(model: SimpleNamespace, passes: Passes, states: Tensor, tokens: list[int]) -> Tensor:
    with attention.capture(net(model), [tokens] * len(states)) as seen:
        run(model, passes, states)
    return seen.heatmap()[:, 0]


def peer(model: SimpleNamespace, passes: Passes, states: Tensor, tokens: list[int]) -> Tensor:
    with AttentionCapture(model, timesteps="all", offload=None) as seen:
        run(model, passes, states)
    found: dict[str, list[Tensor]] = {}
    for record in seen.compute().records:
        found.setdefault(record.layer_id, []).append(record.data[:, 0, :, tokens].float().mean(dim=-1))
    return merge([torch.stack(maps).mean(dim=0) for maps in found.values()])


def everything(model: SimpleNamespace, passes: Passes, states: Tensor, tokens: list[int]) -> Tensor:
    kept: dict[str, list[Tensor]] = {}

    def reader(name: str) -> Callable:
        def read(attn, arguments, options) -> None:
            q, k = attn.to_q(arguments[0]), attn.to_k(options["encoder_hidden_states"])
            probabilities = attn.get_attention_scores(attn.head_to_batch_dim(q), attn.head_to_batch_dim(k))
            kept.setdefault(name, []).append(probabilities.unflatten(0, (len(states), -1)).mean(dim=1))

        return read

    with ExitStack() as stack:
        for name, layer in attention.cross_attention_layers(net(model)).items():
            stack.callback(layer.register_forward_pre_hook(reader(name), with_kwargs=True).remove)
        run(model, passes, states)
    last = round(len(passes) * 0.8)
    return merge([torch.stack(m[-last:])[..., tokens].float().mean(dim=(0, -1)) for m in kept.values()])


def merge(maps: list[Tensor]) -> Tensor:
    """One map of all layers, each (rows, positions) on a square grid."""
    sides = [round(m.shape[1] ** 0.5) for m in maps]
    grids = [m.unflatten(1, (side, side)) for m, side in zip(maps, sides, strict=True)]
    return torch.stack([attention.resize(m, (max(sides),) * 2) for m in grids]).mean(dim=0)


WAYS = {"nothing is read": nothing, "chestxai": ours, "attention-map-diffusers": peer, "everything is kept": everything}


def seconds(work: Callable[[], object]) -> float:
    """On a CPU the processor's time, so that others at work do not decide."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    began = clock()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def peak(work: Callable[[], object]) -> float:
    """The most MB that ``work`` allocates at any time."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() / 1e6
    with Allocated() as seen:
        work()
    return seen.most / 1e6


@torch.no_grad()
def cost(name: str, blocks: int, steps: int) -> None:
    model, x, states = build(name)
    given = (model, [(x, t) for t in range(steps)], states, [3, 4])
    found = {way: work(*given) for way, work in WAYS.items()}
    tolerance = {"atol": 1e-5 if x.dtype == torch.float32 else 1e-3, "rtol": 0}
    torch.testing.assert_close(found["chestxai"], found["attention-map-diffusers"], **tolerance)
    spent = {way: [] for way in WAYS}
    for _ in range(blocks):
        for way, work in WAYS.items():
            spent[way].append(seconds(lambda work=work: work(*given)))
    medians = {way: float(np.median(values)) for way, values in spent.items()}
    memory = {way: peak(lambda work=work: work(*given)) for way, work in WAYS.items()}
    extra = {way: memory[way] - memory["nothing is read"] for way in WAYS}
    print(f"\n{name}: {len(x)} rows × {steps} timesteps, latents {tuple(x.shape[1:])}, {DEVICE}, {x.dtype}")
    print(f"{'':24}  time / passes  extra MB  × chestxai")
    for way in WAYS:
        print(
            f"{way:24}  {medians[way] / medians['nothing is read']:13.3f}  {extra[way]:8.1f}"
            f"  {extra[way] / max(extra['chestxai'], 1e-9):10.1f}"
        )


@torch.inference_mode()
def protocols(run: Path, count: int, blocks: int) -> None:
    pipeline = models.load_pipeline("tiny", device=DEVICE)
    finetune.load_checkpoint(pipeline, run, max(runs.Run(run).steps()))
    size = models.image_size(pipeline)
    truths = phrases(sources.load("phantom", split="test", n=count, size=size))[:count]
    images = np.stack([t.study.pixels() for t in truths])
    prompts = [t.finding.phrase for t in truths]
    words = [grounding.target_span(t.finding) for t in truths]
    masks = [t.finding.mask for t in truths]
    tokens = [reports.token_positions(pipeline.tokenizer, p, w) for p, w in zip(prompts, words, strict=True)]
    schedule = models.noising(pipeline.scheduler)

    def image_by_image(way: Callable, times: Sequence[int]) -> np.ndarray:
        maps = []
        for i in range(count):
            x, states = models.encode_images(pipeline, images[i : i + 1]), models.encode_text(pipeline, [prompts[i]])
            noise = torch.randn((len(times), *x.shape), generator=torch.Generator().manual_seed(i)).to(x)
            passes = [(schedule.add_noise(x, n, torch.tensor([t])), t) for n, t in zip(noise, times, strict=True)]
            maps.append(way(pipeline, passes, states, tokens[i])[0].cpu().numpy())
        return np.stack(maps)

    def together(stride: int) -> np.ndarray:
        times = grounding.paper_timesteps(pipeline.scheduler, stride=stride)
        return grounding.ground_many(pipeline, images, prompts, words, timesteps=times)

    last, whole = (grounding.paper_timesteps(pipeline.scheduler, last=n) for n in (40, 50))
    plans = {
        "chestxai, 10 timesteps": lambda: together(4),
        "chestxai, 40 timesteps": lambda: together(1),
        "attention-map-diffusers, 40": lambda: image_by_image(peer, last),
        "everything is kept, 50": lambda: image_by_image(everything, whole),
    }
    spent, auc = {name: [] for name in plans}, {}
    for _ in range(blocks):
        for name, work in plans.items():
            maps = []
            spent[name].append(seconds(lambda work=work, maps=maps: maps.append(work())))
            auc[name] = np.mean([localization.auc_roc(m, mask) for m, mask in zip(maps[0], masks, strict=True)])
    print(f"\n{count} phrases of phantoms, {run.parent.name}, {DEVICE}")
    print(f"{'':30}  phrases/s  AUC-ROC")
    for name in plans:
        print(f"{name:30}  {count / np.median(spent[name]):9.2f}  {auc[name]:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "sd2", "sdxl", "pixart"), action="append")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="timesteps of a block (default: %(default)s)")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--phrases", type=int, default=24)
    given = parser.parse_args()
    for name in given.model or ("tiny", "sd2", "sdxl", "pixart"):
        cost(name, given.blocks, given.steps)
    if given.run:
        protocols(given.run, given.phrases, 2)


if __name__ == "__main__":
    main()

"""Drawing the images that are scored: the prompts of held-out reports, and the same noise for every model."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from chestxai import finetune, models, reports, runs
from chestxai.fidelity.arrays import Array
from chestxai.profiles import Profile, SamplingSettings
from chestxai.runs import Run
from chestxai.studies import FINDINGS, Study


def requests(
    studies: Sequence[Study], settings: SamplingSettings, pipeline: StableDiffusionPipeline | None = None
) -> tuple[list[str], Array, Array]:
    """Choose what each of ``settings.images`` images is asked to show. More images only append.

    With ``settings.prompts`` "reports": the report prompts of held-out studies, drawn without replacement (starting
    over if there are too few). Studies, not texts, so that prompts are as frequent as among the real images. With
    "evenly", as Dombrowski et al. 2023: image i is asked for finding i modulo 8 by a phrase of the studies' that states
    it, or by its name where there is none. Either way ``settings.per_prompt`` images share a text.

    Args:
        studies: held out from training; those without a report are left out.
        settings: ``images``, ``per_prompt`` and ``prompts``.
        pipeline: whose tokenizer cuts long prompts; without it nothing counts as cut.

    Returns:
        The prompts; their labels: what the text that the model reads names (see `asked` and `models.readable`), and the
        finding that is asked for evenly; and the position int ``(images,)`` in ``studies`` of the study that the text
        is of, -1 where it is of none. InputError where no study has a report.
    """
    rng, numbers = np.random.default_rng(0), np.arange(settings.images)
    named = np.zeros((settings.images, len(FINDINGS)), np.float32)
    if settings.prompts == "evenly":
        named[numbers, numbers % len(FINDINGS)] = 1
        phrases = [_phrases(studies, name, rng) for name in FINDINGS]
        places = numbers // len(FINDINGS) // settings.per_prompt
        chosen = [phrases[i % len(FINDINGS)][place % len(phrases[i % len(FINDINGS)])] for i, place in enumerate(places)]
    else:
        texts = {}
        for i, study in enumerate(studies):
            with suppress(runs.InputError):
                texts[i] = reports.prompt(study.report)
        if not texts:
            raise runs.InputError(f"nothing to ask for: none of {len(studies)} studies has a report")
        order = rng.permutation(list(texts))
        chosen = [(texts[i], i) for i in order[numbers // settings.per_prompt % len(order)].tolist()]
    prompts, origins = [text for text, _ in chosen], np.array([i for _, i in chosen])
    read = prompts if pipeline is None else models.readable(pipeline.tokenizer, prompts)
    return prompts, np.maximum(asked(read), named), origins


def _phrases(studies: Sequence[Study], name: str, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Distinct phrases that state a finding, with the position of their first study, in an order drawn by ``rng``."""
    found: dict[str, int] = {}
    for i, study in enumerate(studies):
        for finding in study.present():
            if finding.name == name and finding.phrase:
                found.setdefault(finding.phrase, i)
    phrases = list(found.items())
    return [phrases[i] for i in rng.permutation(len(phrases))] or [(f"{name.capitalize()}.", -1)]


def asked(prompts: Sequence[str]) -> Array:
    """The findings that ``prompts`` ask for, see `stated`: float32 ``(n, 8)``, 0 or 1, over `FINDINGS`.

    Not the labels of the prompt's study: an impression omits some, and a model cannot draw what it is not asked for.
    """
    return (stated(prompts) > 0).astype(np.float32)


def stated(prompts: Sequence[str]) -> Array:
    """What ``prompts`` say of each of `FINDINGS`: float32 ``(n, 8)``, 1 asked for, -1 only denied, 0 not named."""
    found = {prompt: {(f.name, f.present) for f in reports.find(prompt)} for prompt in set(prompts)}
    said = [[((name, True) in found[p]) or -((name, False) in found[p]) for name in FINDINGS] for p in prompts]
    return np.array(said, dtype=np.float32).reshape(-1, len(FINDINGS))


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    settings: SamplingSettings,
    path: Path,
    *,
    seed: int = 0,
    precision: str = "no",
    bar: Any = None,
) -> Array:
    """Draw one image per prompt, uint8 ``(n, s, s)``, and keep them in ``path``; see `runs.resumable`.

    DDIM without added noise (Song et al. 2021) with classifier-free guidance (Ho & Salimans 2022) away from the empty
    prompt. The noise that image ``i`` starts from depends on ``seed`` and ``i`` alone, not on the batch, the other
    prompts or the weights: two models are compared from the same noise.

    Without ``prompts``, a text for each image, it is an InputError; DivergedError if the output is not finite.

    ``pipeline`` is of `models.load_pipeline` with a checkpoint's weights; its own scheduler is kept. ``settings``
    are ``guidance``, ``steps``, ``sampler`` and ``batch``; ``path`` is a ``.safetensors`` file whose metadata hold the
    prompts; ``precision``, "no", "fp16" or "bf16", is the U-Net's on a GPU (a CPU always uses float32); ``bar``, of
    `runs.progress`, is advanced by one for each image.
    """
    prompts = list(prompts)
    if not prompts:
        raise runs.InputError("no prompts to draw images for")
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision) if device.type == "cuda" else None
    sampler = models.plms if settings.sampler == "plms" else models.ddim
    side = models.image_size(pipeline) // pipeline.vae_scale_factor
    shape = (pipeline.unet.config.in_channels, side, side)

    unique = [*dict.fromkeys(prompts), ""]

    @cache
    def text() -> torch.Tensor:
        return models.encode_text(pipeline, unique).to(dtype)

    def draw(rows: range) -> tuple[dict[str, torch.Tensor], list[str]]:
        noise = torch.stack([models.seeded_noise(shape, seed, i) for i in rows]).to(device, dtype)
        with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
            wanted = text()[[unique.index(prompts[i]) for i in rows]]
            latents = models.draw(
                pipeline, noise, wanted, text()[-1:], steps=settings.steps, guidance=settings.guidance, sampler=sampler
            )
        if not torch.isfinite(latents).all():
            raise runs.DivergedError(
                f"{path}: the images are not finite (first prompt: {prompts[rows[0]]!r}); the model's training has "
                "diverged, or fp16 overflows: try bf16"
            )
        return {"images": torch.from_numpy(models.decode_latents(pipeline, latents.float()))}, []

    recipe = getattr(pipeline.text_encoder, "recipe", None)
    # Without diffusers' own notes, some of which are sets: their order is another in every process.
    schedule = {name: v for name, v in sampler(pipeline.scheduler).config.items() if not name.startswith("_")}
    identity = runs.fingerprint(
        runs.code_fingerprint("chestxai.fidelity.sampling"),
        models.fingerprint(pipeline),
        schedule,
        None if recipe is None else recipe.model_dump(mode="json"),
        settings.model_dump(include={"guidance", "steps", "sampler", "batch"}),
        reports.text_length(pipeline.tokenizer),
        prompts,
        seed,
        str(half),
    )
    about = {"prompts": json.dumps(prompts), "settings": settings.model_dump_json(), "seed": str(seed)}
    stored, _ = runs.resumable(path, identity, len(prompts), draw, chunk=settings.batch, metadata=about, bar=bar)
    return stored["images"].numpy()


def sample_run(
    pipeline: StableDiffusionPipeline, profile: Profile, run: Run | Path, prompts: Sequence[str], bar: Any = None
) -> Iterator[tuple[int, Array]]:
    """Yield each step of a finished ``run`` and its `sample`, all from the same noise; step 0 is the base.

    ``profile`` is that of the run, and ``pipeline`` its base, which gets the checkpoints' weights. The images are kept
    in ``samples/step-<k>.safetensors`` of the run. ``prompts`` and ``bar`` are as of `sample`.
    """
    run = (run if isinstance(run, Run) else Run(run)).check_finished()
    for step in (0, *run.steps()):
        if step:
            finetune.load_checkpoint(pipeline, run, step)
        path = run.samples_file(step)
        yield step, sample(pipeline, prompts, profile.sampling, path, precision=profile.finetune.precision, bar=bar)

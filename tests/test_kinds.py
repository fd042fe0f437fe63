"""SDXL, PixArt and Sana: random small ones of diffusers' own classes, through every stage."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import pytest
import torch

from chestxai import attention, fidelity, finetune, grounding, models, reports, sources
from chestxai.profiles import FinetuneSettings, SamplingSettings
from chestxai.recipes import Recipe
from chestxai.runs import InputError
from tests import tiny

PROMPT = "Small left pleural effusion"
NAMES = ["sdxl", "pixart-alpha", "pixart-sigma", "sana"]


@pytest.fixture(scope="module", params=NAMES)
def pipeline(request):
    return tiny.random_kind(request.param)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)


def stock(pipeline, steps: int, guidance: float, noise: torch.Tensor) -> torch.Tensor:
    """Latents that the pipeline itself draws of the typed prompt, by the book's sampler."""
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "latents": noise, "output_type": "latent"}
    known = inspect.signature(pipeline.__call__).parameters
    options |= {"use_resolution_binning": False} if "use_resolution_binning" in known else {}
    pipeline.scheduler = models.ddim(pipeline.scheduler)
    return pipeline(PROMPT, height=32, width=32, **options).images


@torch.no_grad()
def test_a_typed_prompt_draws_what_the_book_draws(pipeline):
    """Prompts are encoded, and the denoiser is given what it needs, as the pipeline itself does."""
    noise = models.seeded_noise((4, 8, 8), 0)[None]
    text, empty = models.encode_text(pipeline, [PROMPT]), models.encode_text(pipeline, [""])
    before = pipeline.scheduler
    if type(pipeline).__name__ in ("SanaPipeline", "PixArtAlphaPipeline"):
        # The one walks with solvers of its own, the other reads the image's size in its largest model only.
        ours = models.denoise(pipeline.unet, noise, torch.tensor(500), text)
        states, mask, *_ = pipeline.encode_prompt(PROMPT, False)
        more = {"resolution": torch.tensor([[32.0, 32.0]]), "aspect_ratio": torch.tensor([[1.0]])}
        more = {"added_cond_kwargs": more} if "Alpha" in type(pipeline).__name__ else {}
        given = {"encoder_hidden_states": states, "timestep": torch.tensor([500]), "encoder_attention_mask": mask}
        theirs = pipeline.transformer(noise, **given, **more).sample
        torch.testing.assert_close(ours, theirs[:, :4], atol=1e-5, rtol=1e-4)
        return
    ours = models.draw(pipeline, noise, text, empty, steps=3, guidance=2.0)
    try:
        torch.testing.assert_close(ours, stock(pipeline, 3, 2.0, noise), atol=1e-4, rtol=1e-4)
    finally:
        pipeline.scheduler = before


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(pipeline, tmp_path):
    loaded = models.load_pipeline(models.save_pipeline(pipeline, tmp_path / "base"), device="cpu")
    assert type(loaded) is type(pipeline)
    assert loaded.unet is getattr(loaded, models.kind_of(pipeline).denoiser)
    assert models.fingerprint(loaded) == models.fingerprint(pipeline)
    assert models.image_size(loaded) == 32
    for prompts in ([PROMPT], [""]):
        torch.testing.assert_close(models.encode_text(loaded, prompts), models.encode_text(pipeline, prompts))


@torch.no_grad()
def test_attention_is_shared_by_the_tokens_and_padding_has_none(pipeline, image):
    tokens = models.tokenize(pipeline, [PROMPT])
    real = int(tokens["attention_mask"].sum())
    text = models.encode_text(pipeline, [PROMPT])
    length = tokens["input_ids"].shape[1]
    plain = models.denoise(pipeline.unet, torch.ones(1, 4, 8, 8), torch.tensor(300), text)
    with attention.capture(pipeline.unet, {str(i): [i] for i in range(length)}) as seen:
        again = models.denoise(pipeline.unet, torch.ones(1, 4, 8, 8), torch.tensor(300), text)
    assert torch.equal(plain, again)
    for maps in seen.maps().values():
        torch.testing.assert_close(maps.sum(dim=1), torch.ones_like(maps[:, 0]))
        if type(pipeline).__name__ != "StableDiffusionXLPipeline":  # CLIP's padding is read, as it was in training
            assert maps[:, real:].abs().max() < 1e-6
    # As an independent capture sees it.
    peer = pytest.importorskip("attention_map_diffusers", reason="'make test' installs it")
    with peer.AttentionCapture(_Only(pipeline), timesteps="all") as theirs:
        models.denoise(pipeline.unet, torch.ones(1, 4, 8, 8), torch.tensor(300), text)
    records = {r.layer_id.partition(".")[2]: r.data[0, 0] for r in theirs.compute().records}
    for name, maps in seen.maps().items():
        torch.testing.assert_close(maps[0].flatten(1).T, records[name], atol=1e-5, rtol=0)


class _Only:
    """What the other library looks at: its denoiser alone."""

    def __init__(self, pipeline):
        setattr(self, models.kind_of(pipeline).denoiser, pipeline.unet)


@pytest.mark.parametrize("method", ["noised", "inversion", "generation"])
def test_phrases_are_grounded(pipeline, image, method):
    given = None if method == "generation" else image
    options = {"timesteps": None, "method": method, "steps": 4, "guidance": 2.0 if given is None else 1.0}
    heat = grounding.ground(pipeline, given, PROMPT, "pleural effusion", **options)
    assert heat.tokens == tuple(reports.token_positions(pipeline.tokenizer, PROMPT, "pleural effusion"))
    assert np.isfinite(heat.values).all()
    assert heat.values.std() > 0
    other = grounding.ground(pipeline, given, PROMPT, "left", **options)
    assert not np.allclose(heat.values, other.values)


def test_images_are_drawn_and_kept(pipeline, tmp_path):
    settings = SamplingSettings(images=2, per_prompt=2, steps=2)
    images = fidelity.sample(pipeline, [PROMPT, "Normal chest"], settings, tmp_path / "s.safetensors")
    assert images.shape == (2, 32, 32)


def test_adapters_are_fine_tuned(request, tmp_path):
    """At least by LoRA: a run of two steps changes the maps, is loaded from its checkpoint and as a pipeline."""
    studies = sources.load("phantom", split="train", n=6, size=32)
    settings = FinetuneSettings(
        steps=2, batch_size=2, learning_rate=1e-2, text_learning_rate=1e-3, checkpoint_every=2, ema_decay=0.0
    )
    for name in ("sdxl", "pixart-sigma", "sana"):
        trained, fresh = tiny.random_kind(name), tiny.random_kind(name)
        before = models.fingerprint(trained)
        out = finetune.finetune(trained, studies, settings, tmp_path / name, recipe=Recipe(unet="lora:2"))
        finetune.load_checkpoint(fresh, out, 2)
        merged = models.load_pipeline(out / "model", device="cpu")
        assert models.fingerprint(trained) != before
        text, x = models.encode_text(fresh, [PROMPT]), torch.ones(1, 4, 8, 8)
        with torch.no_grad():
            results = [
                models.denoise(p.unet, x, torch.tensor(300), text)
                for p in (trained, fresh, merged, tiny.random_kind(name))
            ]
        torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(results[2], results[0], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(results[3], results[0], atol=1e-5)


def test_recipes_that_a_kind_cannot_have_are_refused(tmp_path):
    studies = sources.load("phantom", split="train", n=4, size=32)
    settings = FinetuneSettings(steps=1, batch_size=2, learning_rate=1e-3, text_learning_rate=1e-3, checkpoint_every=1)
    with pytest.raises(InputError, match=r"text: a StableDiffusionXLPipeline has two text encoders, which stay"):
        finetune.finetune(tiny.random_kind("sdxl"), studies, settings, tmp_path, recipe="learnable")
    with pytest.raises(InputError, match="keys, values: those of a PixArtSigmaPipeline are made of states"):
        finetune.finetune(
            tiny.random_kind("pixart-sigma"),
            studies,
            settings,
            tmp_path,
            recipe=Recipe(text="learnable", keys="frozen"),
        )
    weighted = settings.model_copy(update={"min_snr": 5.0})
    with pytest.raises(InputError, match="min_snr: a flow has no signal-to-noise weighting"):
        finetune.finetune(tiny.random_kind("sana"), studies, weighted, tmp_path)


def test_pipelines_that_are_not_read_are_refused_by_name(tmp_path):
    for name, more in (("StableDiffusionUpscalePipeline", ""), ("FluxPipeline", "; of its joint attention")):
        assert hasattr(diffusers, name)
        (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{name}"}}')
        with pytest.raises(InputError, match=rf"holds a {name}; one of StableDiffusionPipeline, .* is needed{more}"):
            models.load_pipeline(tmp_path)


@torch.no_grad()
def test_keys_and_values_of_a_text_are_computed_once_while_it_is_the_same():
    unet = tiny.random_pipeline("sd").unet
    layer = next(iter(attention.cross_attention_layers(unet).values())).to_k
    read = []
    layer.forward = lambda x: read.append(x) or torch.nn.functional.linear(x, layer.weight)
    x, times = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    one, other = (torch.randn(2, 7, models.kinds.text_width(unet)) for _ in range(2))
    texts = [one, one, other, one, one]
    plain = [models.denoise(unet, x, times, text) for text in texts]
    del read[:]
    with models.text_read_once(unet):
        for text, expected in zip(texts, plain, strict=True):
            assert torch.equal(models.denoise(unet, x, times, text), expected)
    assert [text is one for text in read] == [True, False, True]
    models.denoise(unet, x, times, one)  # another's hook is left as it was, and nothing is remembered
    assert len(read) == 4
    assert [name for name, part in unet.named_modules() if "forward" in vars(part)] == [
        name for name, part in unet.named_modules() if part is layer
    ]

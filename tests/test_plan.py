"""Plans of a training: counts known by hand, memory as a real training allocates it, profiles that fit their cards."""

from __future__ import annotations

import shutil

import pytest
from transformers import DistilBertConfig, DistilBertModel

from chestxai import models, profiles, sources
from chestxai.finetune import finetune, main, plan
from chestxai.profiles import FinetuneSettings
from chestxai.recipes import Recipe
from tests import tiny
from tests.benchmarks.bench_memory import Allocated

SETTINGS = FinetuneSettings(
    steps=2, batch_size=4, learning_rate=1e-3, text_learning_rate=1e-3, checkpoint_every=2, accumulate=2
)


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def sizes(profile) -> dict[str, int]:
    return {name: sum(p.numel() for p in part.parameters()) for name, part in plan.networks(profile)[0].items()}


def test_stable_diffusion_2_has_its_known_size_without_weights_or_network(offline):
    paper = profiles.load("paper")
    parts, source = plan.networks(paper)
    # The published checkpoints: 865.9, 340.4 and 83.7 million parameters.
    assert sizes(paper) == {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863}
    assert {p.device.type for part in parts.values() for p in part.parameters()} == {"meta"}
    assert source == "stable-diffusion-2.json, as the hub cannot be reached"
    with pytest.raises(FileNotFoundError, match="cannot read the shape of 'nobody/nothing'"):
        plan.networks(paper.model_copy(update={"base": "nobody/nothing"}))


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, Recipe(text="learnable")),
        ({}, Recipe()),
        ({"gradient_checkpointing": True}, Recipe()),
        ({}, Recipe(unet="lora:8")),
        ({"weights": "bf16", "precision": "bf16", "averages": "cpu"}, Recipe()),
    ],
    ids=["learnable", "frozen", "checkpointing", "lora", "bf16"],
)
def test_the_plan_is_what_a_training_allocates(tmp_path, changes, recipe):
    """Within a tenth of the most bytes that tensors of a real run take at any time, counted at each operation."""
    base = models.save_pipeline(tiny.random_pipeline("sd", size=64), tmp_path / "base")
    settings = SETTINGS.model_copy(update=changes)
    content = {"base": str(base), "finetune": settings, "variants": {"one": recipe}}
    profile = profiles.load("smoke").model_copy(update=content)
    planned = plan.memory(plan.networks(profile)[0], profile, "one")
    if settings.averages == "cpu":  # lie in the same memory here
        planned["averages"] = planned["moments"]
    studies = sources.load("phantom", split="train", n=4, size=64)

    def train():
        pipeline = models.load_pipeline(base, device="cpu")
        with Allocated(pipeline) as seen:
            finetune(pipeline, studies, settings, tmp_path / "run", recipe=recipe, cache=tmp_path / "cache")
        return seen.most

    train()  # encodes the images, which is over before the training begins
    shutil.rmtree(tmp_path / "run")
    assert sum(planned.values()) == pytest.approx(train(), rel=0.1)


def test_memory_is_counted_by_part():
    profile = profiles.load("demo")
    unet, text = (sizes(profile)[name] for name in ("unet", "text_encoder"))
    used = {v: plan.memory(plan.networks(profile)[0], profile, v) for v in profile.variants}
    for variant, learning in (("frozen", unet), ("learnable", unet + text)):
        assert used[variant]["gradients"] == used[variant]["averages"] == 4 * learning
        assert used[variant]["moments"] == 8 * learning
        assert used[variant]["copies in half precision"] == 0
    small = {"optimizer": "adamw8bit", "weights": "bf16", "precision": "bf16", "averages": "cpu"}
    saving = profile.model_copy(update={"finetune": profile.finetune.model_copy(update=small)})
    used = plan.memory(plan.networks(profile)[0], saving, "frozen")
    counted = [used[name] for name in ("weights, unet", "gradients", "moments", "averages")]
    assert counted == [2 * unet, 2 * unet, 2 * unet, 0]


def test_a_text_encoder_that_replaces_the_bases_own_is_counted_instead(tmp_path):
    own = tiny.random_pipeline("sd")
    base = models.save_pipeline(own, tmp_path / "base")
    other = tiny.random_pipeline("bert")
    other.text_encoder.save_pretrained(tmp_path / "bert")
    other.tokenizer.save_pretrained(tmp_path / "bert")
    profile = profiles.load("smoke").model_copy(update={"base": str(base), "text_encoder": str(tmp_path / "bert")})
    loaded = models.load_pipeline(base, tmp_path / "bert", device="cpu")
    parts, _ = plan.networks(profile)
    wanted = sum(p.numel() for p in loaded.text_encoder.parameters())
    assert sizes(profile)["text_encoder"] == wanted != sum(p.numel() for p in own.text_encoder.parameters())
    assert type(parts["text_encoder"]) is type(loaded.text_encoder)
    long = plan.networks(profile.model_copy(update={"text_encoder": None, "long_prompts": "chunked"}))[0]
    assert (parts["unet"].text_length, long["unet"].text_length) == (512, 3 * 77)
    with pytest.raises(FileNotFoundError, match=r"cannot read the shape of '.*nothing'"):
        plan.networks(profile.model_copy(update={"text_encoder": str(tmp_path / "nothing")}))


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha", "pixart-sigma", "sana"])
def test_other_kinds_are_planned(tmp_path, name):
    pipeline = tiny.random_kind(name)
    base = models.save_pipeline(pipeline, tmp_path / "base")
    variants = {"one": Recipe(unet="lora:2")}
    profile = profiles.load("smoke").model_copy(update={"base": str(base), "variants": variants})
    kind = models.kind_of(pipeline)
    wanted = {"unet": pipeline.unet, "vae": pipeline.vae} | {e: getattr(pipeline, e) for e in kind.encoders}
    assert sizes(profile) == {n: sum(p.numel() for p in part.parameters()) for n, part in wanted.items()}
    text, fits = plan.report(profile, "one", gpu=24)
    assert fits
    assert "activations" in text


@pytest.mark.parametrize("kind", ["t5", "distilbert"])
def test_a_learning_text_encoder_of_any_kind_is_planned(tmp_path, kind):
    tokenizer, encoder = tiny.t5()
    if kind == "distilbert":
        shape = DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=2, n_heads=2)
        encoder = DistilBertModel(shape)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder.save_pretrained(tmp_path / "text_encoder")
    changed = {"text_encoder": str(tmp_path), "variants": {"one": Recipe(text="learnable", text_projection="linear")}}
    text, _ = plan.report(profiles.load("smoke").model_copy(update=changed), "one", gpu=24)
    assert "activations" in text


@pytest.mark.parametrize(("name", "gpu"), [("paper", 80), ("paper-24gb", 24), ("paper-12gb", 12)])
def test_the_papers_profiles_fit_their_cards(offline, capsys, name, gpu):
    command = ["--plan", "--profile", name, "--variant", "learnable", "--gpu"]
    assert main([*command, str(gpu)]) == 0
    out = capsys.readouterr().out
    assert f"fits in {gpu} GB" in out
    assert "865.9 M parameters" in out
    assert "hours are not known" in out or "hours with this kind of GPU" in out
    assert main([*command, "8"]) == 1
    assert "does not fit in 8 GB" in capsys.readouterr().out


def test_steps_are_timed():
    unet = tiny.random_pipeline("sd").unet.to("meta")
    seconds = plan.seconds_per_step(unet, SETTINGS, "cpu", steps=2)
    assert 0 < seconds < 60


def test_as_many_rows_are_timed_as_one_of_several_gpus_takes(monkeypatch):
    rows, inputs = [], plan._inputs
    monkeypatch.setattr(plan, "_inputs", lambda unet, n, length: rows.append(n) or inputs(unet, n, length))
    settings = SETTINGS.model_copy(update={"batch_size": 8, "accumulate": 2})
    for gpus in (1, 4):
        plan.seconds_per_step(tiny.random_pipeline("sd").unet.to("meta"), settings, "cpu", steps=1, gpus=gpus)
    assert rows == [4, 1]

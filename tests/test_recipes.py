"""Recipes: each field by what it promises, then that they are a seam."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from pydantic import Field, ValidationError

from chestxai import attention, finetune, models, profiles, recipes, reports, runs, sources
from chestxai.finetune import checkpoints as finetune_checkpoints
from chestxai.finetune import loop as finetune_loop
from chestxai.profiles import FinetuneSettings
from chestxai.recipes import Recipe, Schedule
from chestxai.runs import InputError, Run
from tests import tiny

SETTINGS = FinetuneSettings(
    steps=4, batch_size=4, learning_rate=1e-3, text_learning_rate=1e-2, checkpoint_every=2, ema_decay=0.5
)
TEXTS = ["frozen", "learnable", "last:1", "embeddings", "lora:2", "random"]
KINDS = ["sd", "bert"]


def studies():
    return sources.load("phantom", split="train", n=6, size=32)


def states(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in part.state_dict().items()}


def train(recipe: Recipe | str, out: Path, kind: str = "bert", settings: FinetuneSettings = SETTINGS, seed: int = 0):
    pipeline = tiny.random_pipeline(kind)
    finetune.finetune(pipeline, studies(), settings, out, recipe=recipe, seed=seed)
    return pipeline


def text_of(pipeline, prompts=("Large left pleural effusion.", "Normal chest.")) -> torch.Tensor:
    return models.encode_text(pipeline, list(prompts))


# --- what learns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_exactly_what_the_recipe_names_learns(tmp_path, text, kind):
    """Known answer for each ``text``: the parameters of the text encoder that differ after the training."""
    base = tiny.random_pipeline(kind)
    if text == "lora:2":
        Recipe(text=text).prepare(base, seed=7)
    before, pipeline = states(base.text_encoder), train(text, tmp_path, kind, seed=7)
    after = states(pipeline.text_encoder)
    moved = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    parameters = {name for name, _ in pipeline.text_encoder.named_parameters()}
    last = recipes.layer_names(pipeline.text_encoder)[-1]
    # A token that no prompt holds, and a bias of keys (which the softmax ignores), has no gradient to speak of, but
    # weight decay moves it.
    expected = {
        "frozen": set(),
        "learnable": parameters,
        "last:1": {name for name in parameters if name.startswith(f"{last}.")},
        "embeddings": {name for name in parameters if "embeddings" in name.split(".")},
        "lora:2": {name for name in parameters if "lora_" in name},
    }
    if text == "random":
        assert len(moved) >= 10
        again = tiny.random_pipeline(kind)
        Recipe(text="random").prepare(again, seed=7)
        assert all(torch.equal(after[name], value) for name, value in states(again.text_encoder).items())
    else:
        assert moved <= expected[text]
        assert len(moved) >= 0.8 * len(expected[text])


@pytest.mark.parametrize("text", TEXTS)
def test_a_checkpoint_holds_what_learns_and_nothing_else(tmp_path, text):
    pipeline = train(text, tmp_path)
    checkpoint = Run(tmp_path).checkpoint(4)
    learning = {name for name, _ in recipes.learning_text(pipeline.text_encoder, text)}
    assert set(runs.load_tensors(checkpoint / "unet.safetensors")) == {n for n, _ in pipeline.unet.named_parameters()}
    if learning:
        assert set(runs.load_tensors(checkpoint / "text_encoder.safetensors")) == learning
    else:
        assert [p.name for p in checkpoint.iterdir()] == ["unet.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_model_is_stock_and_equals_the_last_checkpoint(tmp_path, text, kind):
    pipeline = train(text, tmp_path, kind)
    expected = text_of(pipeline)
    loaded = finetune.load_checkpoint(tiny.random_pipeline(kind), tmp_path, 4)
    torch.testing.assert_close(text_of(loaded), expected, atol=0, rtol=0)
    model = models.load_pipeline(tmp_path / "model", device="cpu")
    assert not any("lora" in name for name, _ in model.text_encoder.named_modules())
    torch.testing.assert_close(text_of(model), expected, atol=2e-6, rtol=1e-5)
    if kind == "sd":
        stock = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
        stock.set_progress_bar_config(disable=True)
        torch.testing.assert_close(
            stock.encode_prompt("Normal chest.", "cpu", 1, False)[0], text_of(model, ["Normal chest."]), atol=0, rtol=0
        )


@pytest.mark.parametrize(
    "text",
    [
        "lora:2",
        "last:1",
        "random",
        Recipe(text="lora:2", keys="frozen", specials="silent"),
        Recipe(text="learnable", values="frozen", anchor=1.0, anchor_weights=1.0, schedule={"until": 0.9}),
    ],
    ids=str,
)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, monkeypatch, text):
    from chestxai.finetune import loop

    whole = train(text, tmp_path / "whole")
    original = loop.draw

    def stopped(step, *rest):
        if step == 3:
            raise KeyboardInterrupt
        return original(step, *rest)

    monkeypatch.setattr(loop, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(text, tmp_path / "run")
    monkeypatch.undo()
    resumed = train(text, tmp_path / "run")
    for part in ("unet", "text_encoder"):
        one, two = states(getattr(whole, part)), states(getattr(resumed, part))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_pipeline_cannot_hold_two_recipes(tmp_path):
    train("lora:2", tmp_path / "lora")
    train("frozen", tmp_path / "frozen")
    pipeline = finetune.load_checkpoint(tiny.random_pipeline("bert"), tmp_path / "lora", 4)
    with pytest.raises(InputError, match="another recipe or seed: load a fresh one"):
        finetune.load_checkpoint(pipeline, tmp_path / "frozen", 4)
    pipeline = train("learnable", tmp_path / "learnable")  # its weights are no longer what an anchor would hold it near
    with pytest.raises(InputError, match="another recipe or seed: load a fresh one"):
        finetune.finetune(
            pipeline, studies(), SETTINGS, tmp_path / "b", recipe=Recipe(text="learnable", anchor_weights=1)
        )


def test_parts_that_an_encoder_does_not_have_are_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="text 'last:9': the text encoder has 2 layers"):
        train("last:9", tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- schedule and anchor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "learning"),
    [
        (Schedule(), [True] * 4),
        (Schedule(start=0.5), [False, False, True, True]),
        (Schedule(until=0.5), [True, True, False, False]),
        (Schedule(start=0.25, until=0.75), [False, True, True, False]),
    ],
)
def test_the_text_encoder_learns_in_its_stage_only(tmp_path, monkeypatch, schedule, learning):
    recipe = Recipe(text="learnable", schedule=schedule)
    assert [recipe.text_active(step, 4) for step in range(4)] == learning
    from chestxai.finetune import loop

    seen, original = [], loop.draw
    pipeline = tiny.random_pipeline("bert")

    def watch(step, *rest):
        seen.append(states(pipeline.text_encoder)["encoder.layer.1.output.dense.weight"])
        return original(step, *rest)

    monkeypatch.setattr(loop, "draw", watch)
    settings = SETTINGS.model_copy(update={"ema_decay": 0.0})
    finetune.finetune(pipeline, studies(), settings, tmp_path, recipe=recipe)
    seen.append(states(pipeline.text_encoder)["encoder.layer.1.output.dense.weight"])
    assert [not torch.equal(a, b) for a, b in itertools.pairwise(seen)] == learning


def test_frozen_first_equals_frozen_until_the_stage_begins(tmp_path):
    train("frozen", tmp_path / "frozen")
    train(Recipe(text="learnable", schedule=Schedule(start=0.5)), tmp_path / "staged")
    one, two = (Run(tmp_path / name).train_log()["loss"] for name in ("frozen", "staged"))
    np.testing.assert_allclose(one[:3], two[:3], rtol=1e-5)  # the third is computed before the third update
    assert one[3] != two[3]


def test_the_anchor_keeps_the_states_near(tmp_path):
    settings = SETTINGS.model_copy(update={"steps": 12, "text_learning_rate": 1e-3, "checkpoint_every": 12})
    far = train("learnable", tmp_path / "free", settings=settings)
    near = train(Recipe(text="learnable", anchor=10.0), tmp_path / "anchored", settings=settings)
    base = text_of(tiny.random_pipeline("bert"))[:, :3]  # no padding
    distances = [float((1 - torch.cosine_similarity(text_of(p)[:, :3], base, dim=-1)).mean()) for p in (near, far)]
    assert distances[0] < 0.1 * distances[1]


def test_the_weight_anchor_keeps_the_weights_near(tmp_path):
    settings = SETTINGS.model_copy(update={"steps": 12, "text_learning_rate": 1e-3, "checkpoint_every": 12})
    base, moved = dict(tiny.random_pipeline("bert").text_encoder.named_parameters()), []
    for weight in (0.0, 1000.0):
        pipeline = train(Recipe(text="last:1", anchor_weights=weight), tmp_path / str(weight), settings=settings)
        after = pipeline.text_encoder.named_parameters()
        moved.append(sum(float((p - base[name]).square().sum()) for name, p in after))
    assert 0 < moved[1] < 0.5 * moved[0]


def test_the_line_between_two_encoders_by_hand():
    one, two = (tiny.random_pipeline("bert", seed=seed).text_encoder for seed in (0, 1))
    halfway = recipes.between(one, two, 0.5)
    for (name, a), b, half in zip(one.named_parameters(), two.parameters(), halfway.parameters(), strict=True):
        torch.testing.assert_close(half, (a + b) / 2, msg=name)
    start = zip(one.parameters(), recipes.between(one, two, 0).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in start)
    with pytest.raises(InputError, match="no line between them"):
        recipes.between(one, tiny.random_pipeline("sd").text_encoder, 0.5)


def test_cosine_distance_by_hand():
    states = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]])
    reference = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert recipes.cosine_distance(states, reference, mask) == pytest.approx(0.5)  # (0 + 1) / 2; padding does not count
    # A short text counts as much as a long one, so that a batch may be split.
    two = [torch.cat([x, x]) for x in (states, reference)]
    assert recipes.cosine_distance(*two, torch.tensor([[1, 1, 0], [0, 1, 0]])) == pytest.approx(0.75)


# --- what the U-Net reads --------------------------------------------------------------------------------------------


def test_what_an_encoder_cannot_do_is_refused():
    """T5's prompts have no begin, so a word would be silent; eager attention adds a mask of trues and falses."""
    pipeline = tiny.random_kind("pixart-alpha")
    with pytest.raises(InputError, match="specials: this text encoder's prompts have no begin, or no end"):
        Recipe(specials="silent").prepare(pipeline)
    pipeline = tiny.random_pipeline("bert")
    pipeline.text_encoder.config._attn_implementation = "eager"
    with pytest.raises(InputError, match="mixing: this text encoder runs eager attention"):
        Recipe(mixing="causal").prepare(pipeline)


@pytest.mark.parametrize("kind", KINDS)
def test_with_silent_specials_only_words_are_read(tmp_path, kind):
    pipeline = train(Recipe(text="learnable", specials="silent"), tmp_path, kind)
    said, nothing = text_of(pipeline, ["Large left pleural effusion."]), text_of(pipeline, [""])
    positions = reports.token_groups(pipeline.tokenizer, "Large left pleural effusion.", ["Large left pleural"])
    assert nothing.abs().max() == 0
    assert all(said[0, positions[name]].abs().max() == 0 for name in ("begin", "end", "padding"))
    raw = models.encode_text(pipeline, ["Large left pleural effusion."], read=models.encoder_states)
    assert torch.equal(said[0, positions["Large left pleural"]], raw[0, positions["Large left pleural"]])
    assert torch.equal(text_of(models.load_pipeline(tmp_path / "model", device="cpu"), [""]), nothing)


def maps_and_output(pipeline) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), attention.capture(pipeline.unet, {"word": [2]}) as seen:
        out = pipeline.unet(x, 500, text_of(pipeline, ["Large left pleural effusion."]), return_dict=False)[0]
    return seen.heatmap(), out


@pytest.mark.parametrize("kind", KINDS)
def test_with_frozen_keys_the_maps_of_the_first_layer_cannot_follow_the_text_encoder(tmp_path, kind):
    """Keys see the old states: whatever the encoder becomes, the first cross-attention's map is the same."""
    maps = {}
    for field in ("keys", "values"):
        pipeline = tiny.random_pipeline(kind)
        recipe = Recipe(text="learnable", **{field: "frozen"})
        finetune_checkpoints.prepare(pipeline, recipe, 0)
        plain = maps_and_output(tiny.random_pipeline(kind))
        torch.testing.assert_close(maps_and_output(pipeline), plain)  # nothing has learned yet
        recipes.randomise(pipeline.text_encoder, 1)
        first = attention.select_layers(pipeline.unet)[0]
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for name, one in (("before", tiny.random_pipeline(kind)), ("after", pipeline)):
            with torch.no_grad(), attention.capture(one.unet, {"word": [2]}, layers=first) as seen:
                maps[field, name] = one.unet(x, 500, text_of(one, ["Large left pleural effusion."]))[0], seen.heatmap()
    for field, follows in (("keys", False), ("values", True)):
        (drawn, map_), (drawn_after, map_after) = maps[field, "before"], maps[field, "after"]
        assert torch.allclose(map_, map_after, rtol=1e-4) is not follows
        assert not torch.allclose(drawn, drawn_after, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", [{"keys": "frozen"}, {"values": "frozen", "specials": "silent", "anchor": 0.1}])
def test_split_states_survive_training_checkpoint_and_model(tmp_path, recipe, kind):
    pipeline = train(Recipe(text="learnable", **recipe), tmp_path, kind)
    expected = maps_and_output(pipeline)
    assert set(runs.load_tensors(Run(tmp_path).checkpoint(4) / "text_encoder.safetensors")) == {
        name for name, _ in pipeline.text_encoder.named_parameters()
    }
    base = text_of(tiny.random_pipeline(kind))
    read = text_of(pipeline)
    half = read.chunk(2, dim=-1)[0 if "keys" in recipe else 1]
    if "specials" in recipe:
        half, base = half[:, 1:3], base[:, 1:3]
    torch.testing.assert_close(half, base, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(*read.chunk(2, dim=-1), atol=1e-3)
    model = models.load_pipeline(tmp_path / "model", device="cpu")
    loaded = finetune.load_checkpoint(tiny.random_pipeline(kind), tmp_path, 4)
    for other in (model, loaded):
        torch.testing.assert_close(maps_and_output(other), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_token_cannot_see_does_not_change_it(tmp_path, kind):
    """Two prompts that differ in their third word: which states differ says how far the difference travels."""
    pair = ["left lung base opacity edema pneumonia", "left lung effusion opacity edema pneumonia"]
    reached = {}
    for mixing in ("all", "causal", "window:1", "none"):
        pipeline = tiny.random_pipeline(kind)
        finetune_checkpoints.prepare(pipeline, Recipe(mixing=mixing), 0)
        one, two = text_of(pipeline, pair)
        reached[mixing] = [i for i in range(8) if not torch.allclose(one[i], two[i], atol=1e-6)]
    word = 3
    assert reached["none"] == [word]
    first = word if kind == "sd" else word - 2  # CLIP looks back only; two layers pass on by one each
    assert reached["window:1"] == list(range(first, word + 3))
    assert reached["all"] == list(range(0 if kind == "bert" else word, 8))
    assert reached["causal"] == list(range(word, 8))  # nothing before the difference, as in CLIP
    train(Recipe(text="learnable", mixing="none"), tmp_path, kind)
    one, two = text_of(models.load_pipeline(tmp_path / "model", device="cpu"), pair)
    assert [i for i in range(8) if not torch.allclose(one[i], two[i], atol=1e-6)] == [word]


@pytest.mark.parametrize("text", ["frozen", "lora:2"])
def test_u_net_adapters_alone_learn_and_the_model_has_them_merged(tmp_path, text):
    recipe = Recipe(text=text, unet="lora:2", keys="learned" if text == "frozen" else "frozen")
    pipeline = train(recipe, tmp_path)
    expected = maps_and_output(pipeline)
    kept = runs.load_tensors(Run(tmp_path).checkpoint(4) / "unet.safetensors")
    assert kept
    assert all(".lora_" in name and "attn" in name for name in kept)
    base = dict(tiny.random_pipeline("bert").unet.named_parameters())
    own = {name.replace(".base_layer", ""): p for name, p in pipeline.unet.named_parameters() if "lora_" not in name}
    assert all(torch.equal(value, base[name]) for name, value in own.items())
    assert own.keys() == base.keys()
    for other in (
        models.load_pipeline(tmp_path / "model", device="cpu"),
        finetune.load_checkpoint(tiny.random_pipeline("bert"), tmp_path, 4),
    ):
        torch.testing.assert_close(maps_and_output(other), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(maps_and_output(tiny.random_pipeline("bert"))[1], expected[1], atol=1e-4)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_say_what_their_rule_says():
    some = sources.load("phantom", split="train", n=60, size=32)
    made = {}
    for name in ("impression", "labels", "labels+impression", "paraphrases"):
        usable, prompts, skipped = finetune.study_prompts(some, Recipe(prompts=name), seed=1)
        assert len(usable) == len(prompts) == 60
        assert not skipped
        assert finetune.study_prompts(some[::-1], Recipe(prompts=name), seed=1)[1][::-1] == prompts
        made[name] = prompts
    assert made["impression"] == finetune.study_prompts(some)[1]
    for study, label, both, other, plain in zip(
        some, *(made[n] for n in ("labels", "labels+impression", "paraphrases", "impression")), strict=True
    ):
        names = {f.name for f in study.present()}
        assert set(label.split(", ")) == (names or {"No Finding"})
        assert both == f"{label}. {plain}"
        assert names == {f.name for f in reports.find(other) if f.present}
    orders = {tuple(finetune.study_prompts(some, Recipe(prompts="labels"), seed=s)[1]) for s in range(3)}
    assert len(orders) == 3


def test_words_are_dropped_and_findings_denied():
    some = sources.load("phantom", split="train", n=60, size=32)
    plain = finetune.study_prompts(some)[1]
    fewer = finetune.study_prompts(some, Recipe(word_dropout=0.5))[1]
    count = [sum(len(text.split()) for text in texts) for texts in (plain, fewer)]
    assert 0.4 < count[1] / count[0] < 0.65
    assert all(0 < len(b.split()) <= len(a.split()) for a, b in zip(plain, fewer, strict=True))
    denying = finetune.study_prompts(some, Recipe(denied=2))[1]
    for study, before, text in zip(some, plain, denying, strict=True):
        added = text.removeprefix(before)
        denied = {f.name for f in reports.find(added.strip()) if not f.present}
        assert len(denied) == 2
        assert not denied & {f.name for f in study.present()}
    # A list of names has no full stop of its own.
    listed = finetune.study_prompts(some, Recipe(prompts="labels", denied=1))[1]
    assert all(re.fullmatch(r"[\w ,]+\. No [\w ]+\.", prompt) for prompt in listed)


def test_a_study_with_a_finding_is_shown_more_often(tmp_path, monkeypatch):
    """Of an epoch: three healthy chests once, three others four times each, which is 15 rows."""
    shown, latents, loss = [], {}, finetune_loop._Training._loss

    def spy(self, x, noise, times, chosen, named, learns):
        shown.extend(named)
        for latent, row in zip(x, named, strict=True):
            torch.testing.assert_close(latents.setdefault(row, latent), latent)
        return loss(self, x, noise, times, chosen, named, learns)

    monkeypatch.setattr(finetune_loop._Training, "_loss", spy)
    some = sources.load("phantom", split="train", n=60, size=32)
    sick, healthy = ([s for s in some if bool(s.present()) is ill][:3] for ill in (True, False))
    settings = SETTINGS.model_copy(
        update={"batch_size": 5, "accumulate": 5, "steps": 3, "checkpoint_every": 3, "ucg": 0.0}
    )
    finetune.finetune(tiny.random_pipeline("bert"), [*sick, *healthy], settings, tmp_path, recipe=Recipe(oversample=4))
    assert sorted(shown) == sorted([0, 1, 2] * 4 + [3, 4, 5])
    assert shown != sorted(shown)
    assert len({latent.sum().item() for latent in latents.values()}) == 6


def test_prompt_dropout_of_no_finding_only_drops_no_other_prompt(tmp_path):
    settings = SETTINGS.model_copy(update={"ucg": 1.0})
    logs = {}
    for ucg in ("any", "no finding"):
        train(Recipe(ucg=ucg), tmp_path / ucg, settings=settings)
        logs[ucg] = Run(tmp_path / ucg).train_log()["loss"].tolist()
    train("frozen", tmp_path / "none", settings=SETTINGS.model_copy(update={"ucg": 0.0}))
    assert logs["no finding"] == Run(tmp_path / "none").train_log()["loss"].tolist() != logs["any"]
    assert Recipe(ucg="no finding").droppable("No Finding")
    assert not Recipe(ucg="no finding").droppable("Edema")


def test_each_finding_can_be_one_token_that_sees_no_other():
    pipeline, recipe = tiny.random_pipeline("bert"), Recipe(text="learnable", prompts="finding tokens")
    tokenizer = pipeline.tokenizer
    mean = pipeline.text_encoder.get_input_embeddings().weight[tokenizer("pleural effusion")["input_ids"][1:-1]].mean(0)
    recipe.prepare(pipeline)
    for text in ("Edema, Pleural Effusion", "Large left pleural effusion."):
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[3] == "pleural effusion"
    assert reports.token_positions(tokenizer, "Edema, Pleural Effusion", "Pleural Effusion") == [3]
    added = tokenizer.convert_tokens_to_ids("pleural effusion")
    torch.testing.assert_close(pipeline.text_encoder.get_input_embeddings().weight[added], mean)
    alone, beside = text_of(pipeline, ["Edema, Pleural Effusion", "Pneumothorax, Pleural Effusion"])[:, 3].unbind()
    torch.testing.assert_close(alone, beside)
    assert recipe.mixing == "none"
    assert Recipe(prompts="finding tokens", mixing="all").mixing == "all"


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"text": "lora:0"},
        {"text": "last"},
        {"text": "thawed"},
        {"txet": "frozen"},
        {"text": "frozen", "anchor": 1.0},
        {"text": "frozen", "keys": "frozen"},
        {"text": "frozen", "anchor_weights": 1.0},
        {"mixing": "window:0"},
        {"unet": "last:1"},
        {"prompts": "poems"},
        {"text": "learnable", "keys": "frozen", "values": "frozen"},
        {"text": "random", "text_learning_rate": 1e-4},
        {"text": "learnable", "anchor": float("nan")},
        {"text": "learnable", "text_learning_rate": float("inf")},
        {"text": "learnable", "schedule": {"start": 0.5, "until": 0.5}},
    ],
)
def test_what_cannot_be_is_refused_by_name(bad):
    with pytest.raises(ValidationError):
        Recipe.model_validate(bad)


def test_a_profile_names_recipes(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (profiles.DATA / "profiles/smoke.yaml").read_text()
    variants = "variants: {plain: frozen, half: {text: learnable, schedule: {start: 0.5}}, low-rank: 'lora:4'}"
    path.write_text(text.replace("variants: [frozen, learnable]", variants))
    profile = profiles.load(path)
    assert list(profile.variants) == ["plain", "half", "low-rank"]
    assert profile.recipe("half") == Recipe(text="learnable", schedule=Schedule(start=0.5))
    assert profiles.Profile.model_validate(profile.model_dump(mode="json")) == profile
    with pytest.raises(InputError, match="no variant 'frozen': choose one of plain, half, low-rank"):
        profile.recipe("frozen")


# --- a recipe from outside the package -------------------------------------------------------------------------------


class Whispering(Recipe):
    """States are scaled down, the first layer learns ten times slower, and the loss keeps the states small."""

    loudness: float = Field(0.5, gt=0)

    @property
    def stock(self) -> bool:
        return False

    def learning(self, unet, text_encoder, settings):
        for name, parameter, rate in super().learning(unet, text_encoder, settings):
            yield name, parameter, rate * (0.1 if ".layer.0." in name else 1)

    def context(self, states, mask, reference):
        return states * self.loudness

    def penalty(self, states, reference, mask, encoder=None):
        return 1e-3 * states.square().mean()


def test_a_recipe_from_outside_the_package_trains_resumes_and_loads(tmp_path):
    recipe = Whispering(text="learnable")
    pipeline = tiny.random_pipeline("bert")
    loud = text_of(pipeline)
    finetune.finetune(pipeline, studies(), SETTINGS, tmp_path / "run", recipe=recipe)
    plain = train("learnable", tmp_path / "plain")
    assert text_of(pipeline).norm() < 0.75 * loud.norm()
    assert not torch.equal(pipeline.unet.conv_in.weight, plain.unet.conv_in.weight)
    stamp = Run(tmp_path / "run").record_file.stat().st_mtime_ns
    finetune.finetune(tiny.random_pipeline("bert"), studies(), SETTINGS, tmp_path / "run", recipe=recipe)
    assert Run(tmp_path / "run").record_file.stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="a recipe of another class; pass it"):
        finetune.load_checkpoint(tiny.random_pipeline("bert"), tmp_path / "run", 4)
    loaded = finetune.load_checkpoint(tiny.random_pipeline("bert"), tmp_path / "run", 4, recipe)
    assert torch.equal(text_of(loaded), text_of(pipeline))

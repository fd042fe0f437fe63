"""Where words are to point: each kind of ``attention`` by what it promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch._subclasses import FakeTensorMode

from chestxai import attention, finetune, models, runs, sources
from chestxai.finetune.pointing import _PIXEL, Pointing, _supervised, named, place
from chestxai.profiles import FinetuneSettings
from chestxai.recipes import Recipe
from chestxai.runs import InputError, Run
from chestxai.studies import Box, Finding
from tests import tiny

SETTINGS = FinetuneSettings(
    steps=4, batch_size=4, learning_rate=1e-3, text_learning_rate=1e-3, checkpoint_every=4, ema_decay=0.0
)


def phantoms(n: int = 12):
    return sources.load("phantom", split="train", n=n, size=32)


def prepared(recipe: Recipe, kind: str = "bert", n: int = 12):
    pipeline = tiny.random_pipeline(kind)
    studies, prompts, _ = finetune.study_prompts(phantoms(n), recipe)
    images = np.stack([study.pixels() for study in studies])
    latents = models.encode_images(pipeline, images)
    return pipeline, latents, Pointing(recipe, pipeline, studies, prompts, latents), studies, prompts


def added(pipeline, pointing: Pointing, latents, prompts, rows: list[int]) -> torch.Tensor:
    """What is added for some rows at timestep 300, with a graph."""
    x = latents[[max(row, 0) for row in rows]]
    states = models.encode_text(pipeline, [prompts[max(row, 0)] for row in rows])
    pipeline.unet.requires_grad_(True)
    with pointing.reading(pipeline.unet, rows) as loss:
        pipeline.unet(x, torch.full((len(rows),), 300), states)
    return loss()


def test_words_are_found_where_the_prompt_names_a_present_finding():
    (study,) = [s for s in phantoms(40) if {f.name for f in s.present()} == {"Pleural Effusion"}][:1]
    tokenizer = tiny.random_pipeline("bert").tokenizer
    prompt = "No edema. Large pleural effusion."
    (word,) = named(tokenizer, study, prompt, Recipe())
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])
    assert [tokens[i] for i in word.positions] == ["pleural", "effusion"]
    assert {finding.name for finding in word.findings} == {"Pleural Effusion"}
    other = Recipe(attention="floor", attention_weight=1, attention_findings=["Edema"])
    assert named(tokenizer, study, prompt, other) == []
    assert named(tokenizer, study, "heart " * 40 + "pleural effusion", Recipe()) == []


@pytest.mark.parametrize(
    ("finding", "rows", "columns"),
    [
        (Finding("a", boxes=(Box(10, 20, 10, 10),)), (10, 15), (5, 10)),
        (Finding("a", side="right"), (0, 50), (0, 25)),
        (Finding("a", side="left", zone="upper"), (0, 22), (25, 50)),
        (Finding("a", side="bilateral", zone="basal"), (28, 50), (0, 50)),
    ],
)
def test_a_place_is_a_box_or_the_zone_that_is_reported(finding, rows, columns):
    study = replace(phantoms(1)[0], size=(100, 100))
    mask = place(study, finding, 50)
    there = np.nonzero(mask)
    assert (there[0].min(), there[0].max() + 1, there[1].min(), there[1].max() + 1) == (*rows, *columns)
    assert mask.sum() == (rows[1] - rows[0]) * (columns[1] - columns[0])
    assert place(study, Finding("a", zone="diffuse"), 50) is None
    exact = np.eye(100, dtype=bool)
    assert place(study, Finding("a", mask=exact, side="left"), 100).tolist() == exact.tolist()


@pytest.mark.parametrize("kind", ["bert", "sd"])
def test_supervision_moves_attention_into_the_mask(kind):
    recipe = Recipe(attention="supervised", attention_weight=1.0)
    pipeline, latents, pointing, _, prompts = prepared(recipe, kind)
    rows = list(pointing.words)[:4]
    first = added(pipeline, pointing, latents, prompts, rows)
    first.backward()
    moved = {n for n, p in pipeline.unet.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {n.split(".")[-2] for n in moved if "attn2" in n} >= {"to_q", "to_k"}
    optimizer = torch.optim.Adam(pipeline.unet.parameters(), 5e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss = added(pipeline, pointing, latents, prompts, rows)
        loss.backward()
        optimizer.step()
    assert loss < 0.9 * first
    # A dropped prompt says nothing, and the others weigh the same.
    half = added(pipeline, pointing, latents, prompts, [rows[0], -1])
    torch.testing.assert_close(half * 2, added(pipeline, pointing, latents, prompts, rows[:1]), rtol=1e-4, atol=1e-6)
    assert added(pipeline, pointing, latents, prompts, [-1]) == 0.0


def test_five_can_be_taught_and_three_left_unseen():
    taught = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Lung Opacity"]
    recipe = Recipe(attention="supervised", attention_weight=1.0, attention_findings=taught)
    pipeline, _, pointing, studies, prompts = prepared(recipe, n=40)
    for row in pointing.words:
        names = {
            f.name for word in named(pipeline.tokenizer, studies[row], prompts[row], recipe) for f in word.findings
        }
        assert names
        assert names <= set(taught)
    assert len(pointing.words) < len(prepared(Recipe(attention="supervised", attention_weight=1.0), n=40)[2].words)
    with pytest.raises(InputError, match="attention 'floor': no prompt names Nodule of its study"):
        prepared(Recipe(attention="floor", attention_weight=1.0, attention_findings=["Nodule"]))


def test_the_floor_bites_only_where_attention_has_vanished():
    recipe = Recipe(attention="floor", attention_weight=1.0)
    pipeline, latents, pointing, _, prompts = prepared(recipe)
    rows = list(pointing.words)[:2]
    pointing.length = 10**6  # any attention is above the floor
    assert added(pipeline, pointing, latents, prompts, rows) == 0.0
    pointing.length = 1e-3  # none is
    added(pipeline, pointing, latents, prompts, rows).backward()
    assert pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.grad.abs().max() > 0


def test_a_vanished_word_has_a_gradient():
    seen = torch.tensor([[[[1e-12, 1e-13], [1e-13, 1e-14]]]], requires_grad=True)
    recipe = Recipe(attention="floor", attention_weight=1.0)
    pointing = prepared(recipe)[2]
    pointing.words = {0: [[1]]}
    capture = type("Maps", (), {"maps": lambda _: {"a": seen}, "heatmap": lambda _: seen})()
    loss = pointing._loss(capture, [0])
    loss.backward()
    assert loss.item() == pytest.approx(-np.log(1e-12 * pointing.length), rel=1e-4)
    assert seen.grad[0, 0, 0, 0] < -1e11
    assert seen.grad.count_nonzero() == 1


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    out = tmp_path_factory.mktemp("frozen") / "run"
    finetune.finetune(tiny.random_pipeline("bert"), phantoms(), SETTINGS, out)
    return out


def test_distillation_has_the_frozen_runs_maps_as_target(frozen):
    recipe = Recipe(text="learnable", attention="distilled", attention_weight=1.0, attention_from=str(frozen))
    pipeline, latents, pointing, _, prompts = prepared(recipe)
    assert all(torch.isfinite(t).all() and t.amax() == 1 for t in pointing.targets.values())
    rows = list(pointing.words)[:4]
    teacher = models.load_pipeline(frozen / "model", device="cpu")
    own, other = (added(p, pointing, latents, prompts, rows) for p in (teacher, pipeline))
    assert 0 <= own < other
    with pytest.raises(InputError, match=r"attention_from: .*/nowhere/.*run\.json is missing"):
        finetune.finetune(
            tiny.random_pipeline("bert"), phantoms(), SETTINGS, frozen.parent / "other",
            recipe=recipe.model_copy(update={"attention_from": "nowhere"}),
        )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"attention": "supervised", "attention_weight": 0.5, "keys": "frozen", "text": "lora:2"},
        {"attention": "floor", "attention_weight": 0.5, "prompts": "finding tokens", "text": "embeddings"},
        {"attention": "supervised", "attention_weight": 0.5, "unet": "lora:2", "specials": "silent"},
    ],
    ids=lambda fields: "+".join(map(str, fields.values())),
)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, monkeypatch, fields):
    from chestxai.finetune import loop

    recipe, chosen = Recipe(**fields), SETTINGS.model_copy(update={"checkpoint_every": 1})

    def train(out):
        return finetune.finetune(tiny.random_pipeline("bert"), phantoms(), chosen, out, recipe=recipe)

    original = loop.draw

    def stopped(step, *rest):
        if step == 2:
            raise KeyboardInterrupt
        return original(step, *rest)

    monkeypatch.setattr(loop, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    monkeypatch.undo()
    whole, resumed = Run(train(tmp_path / "whole")), Run(train(tmp_path / "run"))
    assert whole.record()["model"] == resumed.record()["model"]
    loaded = finetune.load_checkpoint(tiny.random_pipeline("bert"), whole, 4)
    assert models.fingerprint(models.load_pipeline(whole.model, device="cpu"), ["vae"]) == models.fingerprint(
        loaded, ["vae"]
    )
    text = ["Edema, Pleural Effusion"]
    stored = models.load_pipeline(whole.model, device="cpu")
    torch.testing.assert_close(models.encode_text(stored, text), models.encode_text(loaded, text), atol=2e-6, rtol=1e-5)


def test_attention_changes_the_training_and_its_identity(tmp_path):
    made = {}
    for name, recipe in {"plain": Recipe(), "taught": Recipe(attention="supervised", attention_weight=5)}.items():
        finetune.finetune(tiny.random_pipeline("bert"), phantoms(), SETTINGS, tmp_path / name, recipe=recipe)
        made[name] = Run(tmp_path / name)
    plain, taught = made.values()
    assert plain.record()["identity"] != taught.record()["identity"]
    # The log has the denoising loss, which is the same before the first update.
    assert plain.train_log()["loss"][0] == taught.train_log()["loss"][0]
    assert plain.record()["model"] != taught.record()["model"]


def test_paraphrases_of_real_data_come_from_a_csv(tmp_path):
    some, path = phantoms(4), tmp_path / "own.csv"
    rows = [f'{study.id},"Fluid, number {i}."' for study in some[:3] for i in range(8)]
    path.write_text("\n".join(["study,text", *rows]))
    recipe = Recipe(prompts="paraphrases", paraphrases=str(path))
    usable, prompts, skipped = finetune.study_prompts(some, recipe)
    assert (len(usable), skipped) == (3, [f"{some[3].id}: no paraphrase in own.csv"])
    assert all(prompt.startswith("Fluid, number ") for prompt in prompts)
    assert finetune.study_prompts(some, recipe)[1] == prompts
    assert len({tuple(finetune.study_prompts(some, recipe, seed)[1]) for seed in range(4)}) > 1
    for text, message in (
        ("study,text\nx,y\n", r"own\.csv: has none of the 4 studies; it has 'x'"),
        ("study,text\nx,\n", r"own\.csv:2: study 'x' has an empty text"),
        ("id,text\nx,y\n", r"own\.csv.*study"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            finetune.study_prompts(some, recipe)
    path.unlink()
    with pytest.raises(InputError, match=r"paraphrases: there is no file .*own\.csv"):
        finetune.study_prompts(some, recipe)


@pytest.mark.parametrize(
    "bad",
    [
        {"attention": "floor"},
        {"attention_weight": 1.0},
        {"attention": "supervised", "attention_weight": float("inf")},
        {"attention": "distilled", "attention_weight": 1.0},
        {"attention": "floor", "attention_weight": 1.0, "attention_from": "runs/x"},
        {"attention_findings": ["Edema"]},
        {"paraphrases": "a.csv"},
    ],
)
def test_fields_that_do_not_belong_together_are_refused(bad):
    with pytest.raises(ValidationError, match=r"attention|paraphrases"):
        Recipe.model_validate(bad)


def test_gradients_through_a_capture_are_those_of_the_probabilities():
    """Known answer: the same loss on maps computed by hand from queries and keys."""
    unet = tiny.random_pipeline("bert").unet.requires_grad_(True)
    x, states = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 32)
    name = attention.select_layers(unet)[0]
    layer = attention.cross_attention_layers(unet)[name]
    with attention.capture(unet, [{"a": [1, 2]}, {"a": [3]}], layers=name, grad=True) as seen:
        unet(x, torch.tensor([10, 10]), states)
    with attention.capture(unet, [{"a": [1, 2]}, {"a": [3]}], layers=name) as plain:
        unet(x, torch.tensor([10, 10]), states)
    maps = seen.maps()[name]
    torch.testing.assert_close(maps, plain.maps()[name])
    assert not plain.maps()[name].requires_grad
    (slope,) = torch.autograd.grad(maps[0].sum(), layer.to_k.weight)
    step = 1e-2 * slope / slope.norm()
    with torch.no_grad():
        layer.to_k.weight.add_(step)
        with attention.capture(unet, [{"a": [1, 2]}, {"a": [3]}], layers=name) as moved:
            unet(x, torch.tensor([10, 10]), states)
    risen = (moved.maps()[name][0] - maps[0].detach()).sum()
    assert risen.item() == pytest.approx((slope * step).sum().item(), rel=0.05)
    assert runs.hash_tensors({"a": maps}) == runs.hash_tensors({"a": plain.maps()[name]})


def test_the_pixel_loss_is_torchs_cross_entropy_which_autocast_refuses_on_a_gpu():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 4, 4, generator=generator)
    masks = torch.rand(3, 4, 4, generator=generator).round()
    inside = (maps * masks).sum(dim=(1, 2)) / maps.sum(dim=(1, 2))
    pixels = torch.nn.functional.binary_cross_entropy(maps, masks, reduction="none").mean(dim=(1, 2))
    expected = ((1 - inside).square() + _PIXEL * pixels).sum()
    torch.testing.assert_close(_supervised(maps, masks), expected)
    with FakeTensorMode(), torch.autocast("cuda", torch.bfloat16):
        assert _supervised(*torch.rand(2, 3, 4, 4, device="cuda")).shape == ()

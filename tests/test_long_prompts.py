"""``long_prompts: chunked``: a prompt is read in the same windows wherever it is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from chestxai import causes, fidelity, finetune, grounding, models, profiles, reports, sources
from chestxai.finetune.loop import _Training
from chestxai.profiles import FinetuneSettings, GroundingSettings, SamplingSettings
from chestxai.recipes import Recipe
from chestxai.runs import InputError
from chestxai.studies import phrases
from tests import tiny

FILLER = "small left effusion and " * 40
LONG = f"{FILLER}large right pneumothorax"
SHORT = "Small left pleural effusion"


@pytest.fixture
def clip():
    pipeline = tiny.random_pipeline("sd")
    models.read_in_windows(pipeline)
    return pipeline


def test_a_prompt_is_read_in_windows_whatever_stands_beside_it(clip):
    cut, length = tiny.random_pipeline("sd"), clip.tokenizer.model_max_length
    states = models.encode_text(clip, [SHORT, LONG])
    assert states.shape[1] == models.WINDOWS * length == reports.text_length(clip.tokenizer)
    torch.testing.assert_close(models.encode_text(clip, [SHORT]), states[:1])
    torch.testing.assert_close(states[:, :length], models.encode_text(cut, [SHORT, LONG]))
    for window in (1, 2):  # what a short prompt leaves empty
        torch.testing.assert_close(states[:1, window * length : (window + 1) * length], models.encode_text(cut, [""]))
    other = models.encode_text(clip, [LONG + " apical"])
    assert not torch.allclose(other[0, length:], states[1, length:])
    assert models.cut_prompts(clip.tokenizer, [SHORT, LONG, LONG * 3]) == 1
    assert models.cut_prompts(cut.tokenizer, [SHORT, LONG, LONG * 3]) == 2
    assert models.readable(clip.tokenizer, [LONG * 3])[0].startswith(LONG)


def test_a_word_of_a_later_window_is_found_and_read(clip):
    length = clip.tokenizer.model_max_length
    positions = reports.token_positions(clip.tokenizer, LONG, "right pneumothorax")
    assert positions[0] > length
    ids = models.tokenize(clip, [LONG])["input_ids"][0, positions].tolist()
    assert clip.tokenizer.decode(ids).split() == ["right", "pneumothorax"]
    with pytest.raises(InputError, match=r"is cut off: the prompt has .* and the tokenizer takes 77;"):
        reports.token_positions(tiny.random_pipeline("sd").tokenizer, LONG, "right pneumothorax")
    with pytest.raises(InputError, match="and the tokenizer takes 231;"):
        reports.token_positions(clip.tokenizer, FILLER * 3 + "edema", "edema")
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    heat, other = (grounding.ground(clip, image, LONG, words, timesteps=[200]) for words in ("pneumothorax", "large"))
    assert heat.tokens[0] > length
    assert not np.allclose(heat.values, other.values)
    # The attention to all tokens of all windows adds up to 1.
    groups = reports.token_groups(clip.tokenizer, SHORT, {"words": SHORT})
    assert sorted(p for some in groups.values() for p in some) == list(range(models.WINDOWS * length))
    assert groups["begin"] == [0]
    assert groups["padding"][-1] == models.WINDOWS * length - 1
    long = reports.token_groups(clip.tokenizer, LONG)
    assert long["begin"] == [0, length, 2 * length][: len(long["begin"])]
    assert len(long["begin"]) == len(long["end"]) >= 2
    assert sorted(causes.token_kinds(clip.tokenizer, replace(FINDING, phrase=LONG)))


FINDING = next(f for s in sources.load("phantom", split="train", n=8, size=32) for f in s.present())


def studies(n=6):
    """Phantoms whose prompts are long, and differ in their last word."""
    loaded = sources.load("phantom", split="train", n=n, size=32)
    return [replace(study, report=f"IMPRESSION: {LONG} {i}.") for i, study in enumerate(loaded)]


SETTINGS = FinetuneSettings(
    steps=2, batch_size=2, learning_rate=1e-2, text_learning_rate=1e-2, checkpoint_every=2, ema_decay=0.0, ucg=0.0
)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(text="learnable", anchor=0.1, specials="silent")])
def test_what_trains_is_what_is_read_later(clip, tmp_path, recipe, monkeypatch):
    """The context of each pass is `encode_text` of its prompts; a run remembers how it reads."""
    seen = []
    loss = _Training._loss

    def watched(self, x, noise, times, chosen, named, learns):
        text = {name: values[chosen] for name, values in self.text.items()}
        seen.append(text["context"].shape[1] if "context" in text else text["input_ids"].shape[1])
        return loss(self, x, noise, times, chosen, named, learns)

    monkeypatch.setattr(_Training, "_loss", watched)
    out = finetune.finetune(clip, studies(), SETTINGS, tmp_path / "run", recipe=recipe)
    assert set(seen) == {models.WINDOWS * 77}
    assert profiles.Run(out).record()["data"]["prompts_cut"] == 0
    loaded = models.load_pipeline(out / "model", device="cpu")
    fresh = finetune.load_checkpoint(tiny.random_pipeline("sd"), out, 2)
    states = [models.encode_text(pipeline, [LONG, SHORT]) for pipeline in (clip, loaded, fresh)]
    torch.testing.assert_close(states[1], states[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[2], states[0], atol=1e-5, rtol=1e-4)
    if recipe.specials == "silent":  # begin and end of every window
        ids = models.tokenize(clip, [LONG])["input_ids"][0]
        special = torch.isin(ids, torch.tensor(clip.tokenizer.all_special_ids))
        assert states[0][0, special].abs().max() == 0
        assert states[0][0, ~special].abs().min(dim=1).values.max() > 0


def test_images_are_drawn_of_the_same_windows(clip, tmp_path):
    few, other = SamplingSettings(images=2, steps=2, per_prompt=2), LONG + " apical"
    a, b = (fidelity.sample(clip, [text], few, tmp_path / f"{len(text)}.safetensors") for text in (LONG, other))
    assert (a != b).any(), "the last word is read"
    cut = tiny.random_pipeline("sd")
    # In the same file: images that were drawn of cut prompts are not taken for these.
    c, d = (fidelity.sample(cut, [text], few, tmp_path / f"{len(text)}.safetensors") for text in (LONG, other))
    np.testing.assert_array_equal(c, d)


def test_maps_of_cut_prompts_are_not_taken_for_those_of_windows(clip, tmp_path):
    truths = phrases(sources.load("phantom", split="test", n=4, size=32))[:2]
    settings = GroundingSettings(steps=4, last=2)
    maps = [
        grounding.ground_truths(pipeline, truths, settings, tmp_path / "maps.safetensors")[0]
        for pipeline in (clip, tiny.random_pipeline("sd"))
    ]
    assert not np.allclose(*maps)


def test_it_is_a_setting_of_the_profile_and_for_clip(tmp_path):
    base = models.save_pipeline(tiny.random_pipeline("sd"), tmp_path / "base")
    content = profiles.load("smoke").model_dump(mode="json") | {"base": str(base), "long_prompts": "chunked"}
    profile = profiles.Profile.model_validate(content)
    pipeline = models.load_base(profile, device="cpu")
    assert models.encode_text(pipeline, [SHORT]).shape[1] == models.WINDOWS * 77
    again = models.load_pipeline(models.save_pipeline(pipeline, tmp_path / "saved"), device="cpu")
    assert models.encode_text(again, [SHORT]).shape[1] == models.WINDOWS * 77
    assert models.encode_text(models.load_pipeline(tmp_path / "saved", long_prompts="cut"), [SHORT]).shape[1] == 77
    for other in (tiny.random_pipeline("bert"), tiny.random_kind("sdxl")):
        with pytest.raises(InputError, match="long_prompts: chunked is for one CLIP text encoder"):
            models.read_in_windows(other)


def test_the_empty_prompt_is_read_so_too(clip):
    blank, used = causes.empty_states(clip)
    assert len(blank) == models.WINDOWS * 77
    assert used == 2

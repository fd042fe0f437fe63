"""Causes of known answer: what changes nothing is seen to change nothing, and equal states are seen to be equal."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from chestxai import causes, grounding, models, recipes
from chestxai.runs import InputError
from chestxai.sentences import causes as say
from chestxai.stats import Interval
from chestxai.studies import Finding, GroundTruth, Study
from tests import tiny

SIZE, TIMES = 32, [300, 700]


def truth(phrase, name="Pleural Effusion", side=None, patient="1"):
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[18:28, 2:12] = True
    finding = Finding(name, phrase, side=side, mask=mask)
    image = np.random.default_rng(int(patient)).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    return GroundTruth(Study(patient, patient, "x", "val", phrase, mask.shape, (finding,), array=image), finding)


TRUTHS = [
    truth("small left pleural effusion", side="left"),
    truth("effusion", patient="2"),
    truth("large right lower lobe opacity", "Lung Opacity", "right", "3"),
]


@pytest.fixture(scope="module", params=["sd", "bert"])
def pipeline(request):
    return tiny.random_pipeline(request.param, SIZE)


@pytest.fixture(scope="module")
def sample(pipeline):
    return causes.prepare(pipeline, TRUTHS, [t.study for t in TRUTHS])


@pytest.fixture(scope="module")
def states(pipeline, sample):
    return models.encode_text(pipeline, sample.prompts)


@pytest.fixture(scope="module")
def reading(pipeline, sample, states):
    return causes.read(pipeline, sample, states, TIMES)


class TestSample:
    def test_every_token_has_one_kind(self, pipeline, sample):
        assert list(sample.kinds[0]) == list(causes.KINDS)
        for groups in sample.kinds:
            positions = sorted(p for some in groups.values() for p in some)
            assert positions == list(range(pipeline.tokenizer.model_max_length))

    def test_kinds_are_where_the_words_are(self, pipeline):
        kinds = causes.token_kinds(tiny.random_pipeline("bert").tokenizer, TRUTHS[0].finding)
        assert {k: v for k, v in kinds.items() if k != "padding"} == {
            "finding": [3, 4],
            "side": [2],
            "other words": [1],
            "begin": [0],
            "end": [5],
        }

    def test_a_phrase_that_cannot_be_read_is_left_out_and_listed(self, pipeline):
        long = truth("pleural effusion " * 60 + "pneumonia", "Pneumonia")
        sample = causes.prepare(pipeline, [long, TRUTHS[1]], [])
        assert sample.prompts == ["effusion"]
        assert len(sample.skipped) == 1
        assert "cut off" in sample.skipped[0]
        with pytest.raises(InputError, match="none of 1 phrases"):
            causes.prepare(pipeline, [long], [])

    def test_swapped_images_are_other_patients_without_the_finding(self, pipeline, sample):
        # Effusions (rows 0 and 1) can only see the patient with an opacity, and no patient is left without a pool.
        torch.testing.assert_close(sample.swapped[0], sample.latents[2], atol=1e-4, rtol=0)
        torch.testing.assert_close(sample.swapped[1], sample.latents[2], atol=1e-4, rtol=0)
        assert causes.prepare(pipeline, TRUTHS, []).swapped.isnan().all()


class TestRead:
    def test_maps_are_those_of_grounding(self, pipeline, sample, reading):
        images = np.stack([t.study.array for t in TRUTHS])
        expected = grounding.ground_groups(pipeline, images, sample.prompts, sample.prompts, timesteps=TIMES)
        for kind in ("begin", "end", "padding"):
            np.testing.assert_allclose(reading.of(kind, sample), expected[kind], atol=1e-6)
        words = [
            np.mean([reading.maps[i, p] for k in causes.WORDS for p in g.get(k, [])], axis=0)
            for i, g in enumerate(sample.kinds)
        ]
        np.testing.assert_allclose(words, expected["phrase"], atol=1e-6)

    def test_a_kind_that_a_phrase_lacks_is_nan_and_has_no_score(self, sample, reading):
        side = reading.of("side", sample)
        assert np.isnan(side[1]).all()
        assert np.isnan(causes.auc(side, sample)).tolist() == [False, True, False]

    def test_the_loss_is_that_of_a_plain_pass(self, pipeline, sample, states, reading):
        total = 0.0
        for t in TIMES:
            noise = models.seeded_noise(sample.latents.shape[1:], 0, sample.keys[1], t, 0)[None]
            noisy = pipeline.scheduler.add_noise(sample.latents[1:2], noise, torch.tensor([t]))
            with torch.no_grad():
                total += float((pipeline.unet(noisy, t, states[1:2]).sample - noise).square().mean()) / len(TIMES)
        assert reading.loss[1] == pytest.approx(total, rel=1e-4)

    def test_states_given_twice_are_the_states(self, pipeline, sample, states, reading):
        twice = causes.read(pipeline, sample, torch.cat([states, states], dim=-1), TIMES)
        np.testing.assert_allclose(twice.maps, reading.maps, atol=1e-6)
        np.testing.assert_allclose(twice.loss, reading.loss, rtol=1e-5)

    def test_the_unet_is_left_as_it_was(self, pipeline, states):
        for layer in pipeline.unet.modules():
            assert not layer._forward_pre_hooks

    def test_other_images_change_the_maps(self, pipeline, sample, states, reading):
        swapped = causes.read(pipeline, sample, states, TIMES, sample.swapped)
        assert not np.allclose(swapped.of("finding", sample)[0], reading.of("finding", sample)[0], atol=1e-7)

    def test_a_recipe_with_two_states_for_each_token_is_read_as_it_is(self, sample, reading, pipeline):
        splits = copy.copy(pipeline)
        splits.unet, splits.text_encoder = copy.deepcopy((pipeline.unet, pipeline.text_encoder))
        recipes.attach(splits, recipes.Recipe(text="learnable", keys="frozen"))
        seen = causes.swap({"splits": splits}, sample, TIMES)["splits", "splits", "splits"]
        np.testing.assert_allclose(seen.maps, reading.maps, atol=1e-6)
        assert np.array_equal(causes.lens(splits, "effusion", steps=2), causes.lens(pipeline, "effusion", steps=2))


class TestMass:
    def test_shares_add_up_to_one(self, sample, reading):
        mass = causes.attention_mass(reading, sample)
        np.testing.assert_allclose(mass[list(causes.KINDS)].sum(axis=1), 1, atol=1e-5)
        assert mass["tokens"].tolist() == [len(sample.real(i)) for i in range(3)]
        assert mass.loc[1, "side"] == 0
        assert mass["entropy"].between(0, 1 + 1e-9).all()

    def test_known_entropies(self, sample, reading):
        even = causes.Reading(reading.loss, np.full_like(reading.maps, 0.1))
        np.testing.assert_allclose(causes.attention_mass(even, sample)["entropy"], 1)
        peaked = np.zeros_like(reading.maps)
        peaked[:, 0] = 1
        np.testing.assert_allclose(causes.attention_mass(causes.Reading(reading.loss, peaked), sample)["entropy"], 0)

    def test_states_of_zero_share_the_attention_evenly(self, pipeline, sample, states):
        # A bias-free key of zero has score zero for every query: dilution at its purest.
        mass = causes.attention_mass(causes.read(pipeline, sample, torch.zeros_like(states), TIMES), sample)
        length = states.shape[1]
        np.testing.assert_allclose(mass["begin"], 1 / length, atol=1e-6)
        np.testing.assert_allclose(mass["padding"], 1 - mass["tokens"] / length, atol=1e-5)

    def test_prompt_length_is_taken_out(self):
        tokens = np.array([3, 5, 8, 10])
        assert causes.at_length(0.9 - 0.05 * tokens, tokens, 6) == pytest.approx(0.6)
        assert causes.at_length([0.2, 0.4], [4, 4], 9) == pytest.approx(0.3)


class TestSwap:
    def test_a_swap_with_itself_changes_nothing(self, pipeline, sample, reading):
        seen = causes.swap({"a": pipeline}, sample, TIMES)
        assert list(seen) == [("a", "a", "a")]
        np.testing.assert_allclose(seen["a", "a", "a"].maps, reading.maps, atol=1e-6)

    def test_on_swapped_images_it_reads_their_latents(self, pipeline, sample, states, reading):
        seen = causes.swap({"a": pipeline}, sample, TIMES, sample.swapped)["a", "a", "a"]
        alone = causes.read(pipeline, sample, states, TIMES, sample.swapped)
        np.testing.assert_allclose(seen.maps, alone.maps, atol=1e-6)
        assert not np.allclose(seen.maps, reading.maps, equal_nan=True)

    def test_maps_follow_the_keys_at_the_first_layer(self, pipeline, sample):
        """Another encoder's values cannot change the first layer's attention; its keys can."""
        other = copy.copy(pipeline)
        other.text_encoder = tiny.random_pipeline(
            "sd" if "CLIP" in type(pipeline.text_encoder).__name__ else "bert", SIZE, 1
        ).text_encoder
        seen = causes.swap({"a": pipeline, "b": other}, sample, TIMES)
        assert len(seen) == 8
        keys, values = (
            np.abs(seen[name].maps - seen["a", "a", "a"].maps) for name in (("a", "b", "a"), ("a", "a", "b"))
        )
        assert np.nanmax(keys) > np.nanmax(values)
        assert not np.allclose(seen["a", "a", "b"].loss, seen["a", "a", "a"].loss, rtol=1e-7)
        np.testing.assert_allclose(seen["b", "b", "b"].loss, seen["a", "b", "b"].loss)  # one U-Net, two names


class TestAblation:
    def test_ablating_nothing_changes_nothing(self, pipeline, sample, states):
        empty = causes.empty_states(pipeline)
        assert torch.equal(causes.ablate(states, empty, sample, ()), states)

    def test_ablating_everything_is_the_empty_prompt(self, pipeline, sample, states):
        blank, used = causes.empty_states(pipeline)
        everything = causes.ablate(states, (blank, used), sample, causes.KINDS)
        assert used == 2
        for i, groups in enumerate(sample.kinds):
            assert torch.equal(everything[i, 0], blank[0])
            assert torch.equal(everything[i, groups["end"][0]], blank[1])
            rest = [p for p in range(2, len(blank)) if p not in groups["end"]]
            assert torch.equal(everything[i, rest], blank[rest])

    def test_a_word_is_never_replaced_by_an_end(self, pipeline, sample, states):
        blank, used = causes.empty_states(pipeline)
        ablated = causes.ablate(states, (blank, used), sample, causes.WORDS)
        assert torch.equal(ablated[0, 1], blank[2])
        assert torch.equal(ablated[:, 0], states[:, 0])


class TestBegin:
    def test_it_has_read_the_text_under_bert_and_not_under_clip(self, pipeline, states):
        blank, _ = causes.empty_states(pipeline)
        same = torch.allclose(states[:, 0], blank[0].expand(len(states), -1), atol=1e-5)
        assert same == ("CLIP" in type(pipeline.text_encoder).__name__)


class TestStates:
    def test_equal_states(self, states, sample):
        x = causes.states_of(states, sample, "finding")
        found = causes.compare_states(x, x)
        assert found["cka"] == pytest.approx(1)
        assert found["procrustes"] == pytest.approx(0, abs=1e-9)
        assert found["drift"] == pytest.approx(0, abs=1e-9)

    def test_a_rotation_is_seen_by_the_cosine_only(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((60, 8))
        rotation, _ = np.linalg.qr(rng.standard_normal((8, 8)))
        found = causes.compare_states(x, 3 * x @ rotation)
        assert found["cka"] == pytest.approx(1)
        assert found["procrustes"] == pytest.approx(0, abs=1e-9)
        assert found["drift"] > 0.3

    def test_unrelated_states_of_few_texts_have_a_high_cka_which_the_null_shows(self):
        rng = np.random.default_rng(0)
        found = causes.compare_states(rng.standard_normal((12, 200)), rng.standard_normal((12, 200)))
        assert found["cka"] > 0.8
        assert found["cka_null"] >= found["cka"] - 0.05

    def test_a_phrase_counts_once(self, states, sample):
        twice = replace(sample, prompts=[sample.prompts[0]] * 3, kinds=[sample.kinds[0]] * 3)
        assert causes.states_of(states, twice, "begin").shape == (1, states.shape[-1])
        assert len(causes.states_of(states, sample, "side")) == 2

    def test_likeness_of_known_states(self, states, sample):
        np.testing.assert_allclose(causes.likeness(torch.ones_like(states), sample), 1)
        basis = torch.eye(states.shape[1]).expand(3, -1, -1)
        np.testing.assert_allclose(causes.likeness(basis, sample), 0, atol=1e-12)

    def test_correlations(self):
        maps = np.random.default_rng(0).random((2, 4, 4))
        np.testing.assert_allclose(causes.correlations(maps, -2 * maps), -1)


class TestProbe:
    def test_statements_are_distinct_and_may_deny(self):
        report = "Small left pleural effusion. No pneumothorax. Opacity " + "of the chest " * 40 + "."
        studies = [Study(str(i), str(i), "x", "train", report, (4, 4)) for i in range(2)]
        found = causes.statements(tiny.random_pipeline("bert").tokenizer, studies)
        assert [(f.name, f.present) for f in found] == [("Pleural Effusion", True), ("Pneumothorax", False)]

    def test_what_a_state_holds_is_read_and_what_it_lacks_is_not(self):
        rng = np.random.default_rng(0)
        answers = rng.choice(["left", "right"], 300)
        noise = rng.standard_normal((300, 6))
        told = noise + np.where(answers == "left", 4.0, -4.0)[:, None] * (np.arange(6) == 2)
        right = [(causes.probe(x[:200], answers[:200], x[200:]) == answers[200:]).mean() for x in (told, noise)]
        assert right[0] > 0.95
        assert abs(right[1] - 0.5) < 0.15
        with pytest.raises(InputError, match="two different answers"):
            causes.probe(noise, ["left"] * 300, noise)

    def test_states_are_taken_at_their_positions(self, pipeline, sample, states):
        found = causes.position_states(pipeline, [t.finding for t in TRUTHS])
        assert list(found) == ["begin", "finding", "end"]
        np.testing.assert_allclose(found["begin"], states[:, 0], atol=1e-5)


class TestLens:
    def test_the_last_layer_is_what_the_unet_reads(self, pipeline):
        layers = causes.layer_states(pipeline, "small left effusion")
        assert len(layers) == pipeline.text_encoder.config.num_hidden_layers + 1
        torch.testing.assert_close(
            layers[-1:], models.encode_text(pipeline, ["small left effusion"]), atol=1e-5, rtol=0
        )
        assert not torch.allclose(layers[0], layers[-1])

    def test_an_image_for_each_layer(self, pipeline):
        images = causes.lens(pipeline, "effusion", steps=2)
        assert images.shape == (3, SIZE, SIZE)
        assert images.dtype == np.uint8
        assert not np.array_equal(images[0], images[-1])

    def test_images_from_states_are_those_of_the_prompt_and_its_noise(self, pipeline):
        states, empty = (models.encode_text(pipeline, [text] * 2) for text in ("effusion", ""))
        one, other = causes.generate(pipeline, states, steps=2, keys=[0, 1])
        again, alike = causes.generate(pipeline, states, steps=2)
        assert np.array_equal(one, again)
        assert np.array_equal(again, alike)
        assert not np.array_equal(one, other)
        plain, guided = (causes.generate(pipeline, empty, guidance, steps=2).astype(int) for guidance in (1.0, 4.0))
        assert abs(plain - guided).max() <= 1  # away from itself leads nowhere


def at(low, high):
    return Interval((low + high) / 2, low, high)


UP, DOWN, FLAT = at(0.1, 0.2), at(-0.2, -0.1), at(-0.1, 0.1)
NOTHING = dict.fromkeys(say.EVIDENCE, FLAT)


class TestSentences:
    @pytest.mark.parametrize(
        ("changed", "shown"),
        [
            ({}, []),
            ({"lag": UP}, ["moving target"]),
            ({"keys": UP, "lag": DOWN}, ["worse keys"]),
            ({"finding": DOWN, "end": UP}, ["relocation"]),
            ({"finding": DOWN, "other words": UP}, ["relocation"]),
            ({"finding gain": DOWN, "side gain": UP}, ["relocation"]),
            ({"finding": DOWN, "side": UP, "side gain": FLAT}, []),
            ({"lag gain": UP}, ["moving target"]),
            ({"lag": UP, "lag gain": FLAT, "keys": UP, "keys gain": DOWN}, []),  # the gain decides
            ({"finding": DOWN}, []),  # nothing gained elsewhere
            ({"begin": UP, "end": UP}, []),  # nothing lost where it was
            ({"alike": UP}, ["homogenisation"]),
            ({"named": DOWN, "words": DOWN}, ["forgetting", "dilution"]),
            ({"alike": DOWN, "named": UP, "words": UP, "keys": DOWN}, []),
        ],
    )
    def test_a_hypothesis_is_shown_by_its_own_evidence_only(self, changed, shown):
        table = say.table(NOTHING | changed)
        assert [name.split(":")[0] for name in table.index[table["what was seen"].str.startswith("shown")]] == shown
        assert list(table) == ["what would have shown it", "what was seen"]
        assert len(table) == 6

    def test_the_table_says_where_auc_roc_alone_would_decide_otherwise(self):
        seen = say.table(NOTHING | {"lag": UP, "lag gain": FLAT, "keys": UP, "keys gain": UP})["what was seen"].tolist()
        assert seen[0].startswith("not shown: gain with the states of the checkpoint before")
        assert seen[0].endswith("[-0.100, +0.100] (by AUC-ROC alone: shown)")
        assert seen[1].startswith("shown: gain with the reference's keys")
        assert "alone" not in seen[1]
        # Without a gain AUC-ROC is all there is; kinds of tokens that were not measured are left out.
        known = {key: d for key, d in NOTHING.items() if key not in ("side", "other words")}
        relocation = say.table(known | {"finding": DOWN, "end": UP})["what was seen"].iloc[2]
        assert relocation.startswith("shown: AUC-ROC of the finding's words -0.150 [-0.200, -0.100]; of the begin")
        assert "side" not in relocation

    def test_what_was_not_measured_is_said_so(self):
        assert say.constancy({}) == "not measured"
        told = say.table({"alike": Interval(0.1, 0.05, 0.2)})["what was seen"]
        assert "not measured" in set(told)
        assert not told.str.endswith(": ").any()

    @pytest.mark.parametrize(
        ("gain", "word", "state"),
        [
            (at(-0.009, 0.02), at(0.0, 0.1), "shown: in `a`"),
            (at(-0.02, 0.02), at(0.0, 0.1), "not decided: in `a` gain in AUC-ROC not decided"),
            (
                at(-0.009, 0.02),
                DOWN,
                "refuted: in `a` gain in AUC-ROC no worse (+0.006 [-0.009, +0.020]), word test lower",
            ),
        ],
    )
    def test_constancy_is_judged_by_pointing_alone(self, gain, word, state):
        points = {"gain_auc_roc": gain, "word": word}
        assert say.constancy({"a": points, "b": points | {"classifier_auc": DOWN}}).startswith(state)
        assert "classifier AUC lower (-0.150" in say.constancy({"b": points | {"classifier_auc": DOWN}})
        assert say.constancy({"a": points, "b": {"word": DOWN}}).startswith("refuted")

    def test_where_nothing_is_lost_there_is_nothing_to_explain(self):
        kept, lost = {"gain_auc_roc": UP, "word": FLAT}, {"gain_auc_roc": UP, "word": DOWN}
        assert "so no loss is shown." in say.answer("b", "a", NOTHING, kept)
        assert "although what would show dilution is seen" in say.answer("b", "a", NOTHING | {"words": DOWN}, kept)
        assert "; no explanation is seen." in say.answer("b", "a", NOTHING, lost)
        text = say.answer("b", "a", NOTHING | {"finding": DOWN, "end": UP, "alike": UP}, lost)
        assert "`b` against `a`: gain in AUC-ROC higher (+0.150" in text
        assert "word test lower (-0.150" in text
        assert "what would show relocation and homogenisation is seen" in text

    def test_tokens_are_compared_with_the_words_of_the_finding(self):
        text = say.tokens({"a": {"begin": DOWN, "end": FLAT}})
        assert "*begin* worse (-0.150" in text
        assert "*end* not clearly better or worse" in text

    def test_the_begin_token_of_clip_has_read_nothing(self):
        assert "says what it says of the empty prompt" in say.begin({"a": 1.0})
        assert "has read the text" in say.begin({"a": 0.8})

    def test_exchanged_states(self):
        text = say.swapped("b", "a", {"keys": UP, "values": DOWN})
        assert "U-Net of `b` points better with the keys of `a` (+0.150" in text
        assert "worse with the values of `a`" in text
        assert "`a` points" not in text
        text = say.swapped("b", "a", {"keys": UP, "other U-Net, keys": DOWN})
        assert text.endswith(" The U-Net of `a` points worse with the keys of `b` (-0.150 [-0.200, -0.100]).")

    def test_a_cka_counts_only_above_its_null(self):
        rows = {
            ("b", "begin"): {"cka": 0.7, "cka_null": 0.8, "procrustes": 0.4, "drift": 0.1},
            ("b", "end"): {"cka": 0.9, "cka_null": 0.8, "procrustes": 0.1, "drift": 0.1},
            ("c", "end"): {"cka": 1.0, "cka_null": 0.8, "procrustes": 0.0, "drift": 0.0},
        }
        lines = say.drifted(pd.DataFrame(rows).T).splitlines()
        assert [line.split(": ")[1].split(" (")[0] for line in lines] == [
            "not clearly related",
            "related",
            "as they were",
        ]

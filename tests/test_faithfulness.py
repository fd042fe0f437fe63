"""Maps of known answer: a map that is the prior gains nothing from the image; a perfect map gains all there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chestxai import faithfulness, grounding, localization, models, profiles, runs, sources
from chestxai.finetune import main as finetune_command
from chestxai.profiles import GroundingSettings
from chestxai.runs import InputError
from chestxai.sources import phantom
from chestxai.studies import Finding, GroundTruth, Study, phrases
from tests import tiny

SIZE = 32


def at(row, column, side=6, shape=(SIZE, SIZE)):
    mask = np.zeros(shape, dtype=bool)
    mask[row : row + side, column : column + side] = True
    return mask


def truth(name="Pneumonia", mask=None, side="right", study="a", patient="1", zone=None, midline=0.5):
    mask = at(4, 4) if mask is None else mask
    finding = Finding(name, f"{side} {name}".lower(), side=side, zone=zone, mask=mask)
    attributes = {"midline": midline}
    return GroundTruth(Study(study, patient, "x", "test", "", mask.shape, (finding,), attributes=attributes), finding)


class TestPrompts:
    @pytest.mark.parametrize(
        ("phrase", "without", "other"),
        [
            ("small left pleural effusion", "small pleural effusion", "small right pleural effusion"),
            ("Right-sided pneumothorax", "pneumothorax", "Left-sided pneumothorax"),
            ("LEFT LOWER LOBE", "LOWER LOBE", "RIGHT LOWER LOBE"),
            ("right effusion, left base", "effusion, base", "left effusion, right base"),
            ("the cleft is leftover", "the cleft is leftover", "the cleft is leftover"),
        ],
    )
    def test_sides_are_left_out_or_exchanged(self, phrase, without, other):
        assert faithfulness.without_side(phrase) == without
        assert faithfulness.other_side(phrase) == other
        assert faithfulness.other_side(other) == phrase


class TestMirror:
    @given(st.integers(0, SIZE - 6), st.integers(0, SIZE - 6))
    def test_mirroring_twice_gives_the_mask_back(self, row, column):
        mask = at(row, column)
        np.testing.assert_array_equal(faithfulness.mirrored(faithfulness.mirrored(mask)), mask)
        np.testing.assert_array_equal(faithfulness.mirrored(mask), mask[:, ::-1])

    def test_the_midline_moves_the_mirror(self):
        # Columns 4 to 9 around column 12 (the edge between pixels 11 and 12) become 14 to 19.
        assert np.flatnonzero(faithfulness.mirrored(at(4, 4), 12 / SIZE).any(axis=0)).tolist() == [*range(14, 20)]

    def test_known_answers(self):
        mask = at(4, 4)
        assert faithfulness.mirror_test(mask.astype(float), mask) == 1
        assert faithfulness.mirror_test(mask[:, ::-1].astype(float), mask) == 0
        symmetric = (mask | mask[:, ::-1]).astype(float)
        assert faithfulness.mirror_test(symmetric, mask) == 0.5
        assert faithfulness.mirror_test(np.ones((8, 8)), mask) == 0.5

    def test_a_location_prior_of_both_sides_is_at_chance(self):
        masks = [at(4, 4), at(4, SIZE - 10)]
        prior = localization.location_prior(masks)
        assert [faithfulness.mirror_test(prior, mask) for mask in masks] == [0.5, 0.5]

    def test_nothing_is_said_where_mask_and_mirror_are_the_same_pixels(self):
        assert np.isnan(faithfulness.mirror_test(np.ones((8, 8)), at(4, SIZE // 2 - 3)))


class TestWord:
    def test_known_answers(self):
        a, b = at(2, 2), at(20, 20)
        assert faithfulness.word_test(a + 1.0, b + 1.0, a, b) == 1
        assert faithfulness.word_test(b + 1.0, a + 1.0, a, b) == 0
        assert faithfulness.word_test(a + 1.0, a + 1.0, a, b) == 0.5

    def test_a_map_that_follows_the_brighter_lesion_whatever_the_word_is_at_chance(self):
        a, b = at(2, 2), at(20, 20)
        salience = 1 + 3.0 * a + 1.0 * b
        assert faithfulness.word_test(salience, 7 * salience, a, b) == 0.5

    def test_overlapping_findings_are_not_compared(self):
        assert np.isnan(faithfulness.word_test(np.ones((8, 8)), np.ones((8, 8)), at(2, 2), at(3, 3)))


HARDER = ("auc_roc_shuffled", "auc_roc_field", "average_precision")


def swapped(own, others, mask):
    """`faithfulness.image_swap` of a finding that is either where ``mask`` is, or in the lower right."""
    return faithfulness.image_swap(own, others, mask, (mask | at(20, 20)) + 0.0, mask | at(20, 20))


class TestSwap:
    def test_a_prior_gains_nothing_and_a_perfect_map_all(self):
        mask, other = at(4, 4), at(20, 20)
        prior = (mask | other).astype(np.float32)
        same = swapped(prior, np.stack([prior, prior]), mask)
        assert all(same[f"gain_{name}"] == 0 for name in (*localization.SCORES, *HARDER))
        assert same["presence"] == 0.5
        perfect = swapped(2.0 * mask, np.stack([other + 0.0, np.ones((SIZE, SIZE))]), mask)
        outside = localization.auc_roc(other + 0.0, mask)
        assert perfect["gain_auc_roc"] == pytest.approx(1 - (outside + 0.5) / 2)
        assert perfect["presence"] == 1
        # Where only the other place counts, a map of that place is wrong in all pairs, a constant one in half of them.
        assert (perfect["swap_auc_roc_shuffled"], perfect["gain_auc_roc_shuffled"]) == (0.25, 0.75)
        # Of the hottest 6 × 6 pixels none is target; all others tie, and a cut takes them together.
        area = mask.mean()
        assert perfect["gain_average_precision"] == pytest.approx(1 - area)

    def test_without_a_swapped_image_there_is_no_gain(self):
        row = swapped(at(4, 4) + 0.0, np.full((2, SIZE, SIZE), np.nan), at(4, 4))
        assert np.isnan(row["gain_auc_roc"])
        assert np.isnan(row["presence"])

    def test_images_come_from_other_patients_without_the_findings(self):
        def study(name, patient, *findings):
            return Study(name, patient, "x", "val", "", (8, 8), tuple(Finding(f) for f in findings))

        own = study("own", "1", "Edema", "Pneumonia")
        pool = [
            study("same patient", "1"),
            study("same finding", "2", "Edema"),
            study("other finding", "3", "Cardiomegaly"),
            study("normal", "4"),
        ]
        assert sorted(faithfulness.swap_images(own, pool, 4)) == [2, 3]
        assert faithfulness.swap_images(own, pool, 1) == faithfulness.swap_images(own, pool, 4)[:1]


class TestReworded:
    def reworded(self, phrase, name="Pneumonia", side="right", others=(), study="s"):
        one = Finding(name, phrase, True, side)
        study = Study(study, "1", "x", "test", "", (8, 8), (one, *others))
        return faithfulness.reworded(GroundTruth(study, one))

    def test_the_same_phrase_denies_the_finding_or_names_an_absent_one(self):
        denied, renamed = self.reworded("Small right lower lobe pneumonia.").values()
        assert (denied.name, denied.phrase) == ("Pneumonia", "No Small right lower lobe pneumonia.")
        assert renamed.name in ("Pleural Effusion", "Pneumothorax")  # no other opacity, and nothing without a side
        assert renamed.phrase == f"Small right lower lobe {renamed.name.lower()}."
        wide = {self.reworded("Edema.", "Edema", "bilateral", study=f"s{i}")["renamed"].name for i in range(40)}
        assert wide == {"Cardiomegaly", "Pleural Effusion", "Pneumothorax"}  # the study decides which

    def test_what_cannot_be_said_so_is_left_out(self):
        both = self.reworded("Right pneumonia and effusion.")
        assert both == {}  # two findings are denied, or named
        for phrase in ("No change in right pneumonia", "Right pneumonia cannot be excluded"):
            assert self.reworded(phrase) == {}
        every = [Finding(name) for name in ("Pleural Effusion", "Pneumothorax")]
        assert list(self.reworded("Right pneumonia.", others=every)) == ["denied"]
        assert self.reworded("The lungs are hazy.") == {}
        assert list(self.reworded("Nodule.", "Nodule")) == ["renamed"]  # whose denial the report reader does not know

    def test_the_loss_is_what_the_map_of_the_other_phrase_does_not_show(self):
        place, elsewhere = at(4, 4), at(20, 20)
        one = truth("Pneumonia", place, "right")
        one = replace(one, finding=replace(one.finding, phrase="right pneumonia"))
        other = faithfulness.reworded(one)["renamed"].name
        maps = {"own": place + 0.0, "denied": place + 0.0, "renamed": elsewhere + 0.0}
        probes = {kind: maps.get(kind, place * np.nan)[None] for kind in faithfulness.KINDS}
        probes["swap"] = probes["own"][:, None]
        priors = {"Pneumonia": place + 0.0, other: np.ones((SIZE, SIZE))}
        noisy = np.ones((1, SIZE, SIZE), np.float32)  # at all timesteps; a loss compares maps of the fewer ones
        row = faithfulness.score_maps(noisy, probes, [one], priors, SIZE).iloc[0]
        assert row["denied"] == row["chance_denied"] == row["chance_renamed"] == 0  # the denial changed nothing
        assert row["renamed"] == pytest.approx(1 - localization.auc_roc(elsewhere + 0.0, place))
        assert row["prior_renamed"] == pytest.approx(0.5)  # of a prior that is the same everywhere
        # Nothing is known of where the other finding usually is, though a second phrase of the table has it.
        second = truth(other, elsewhere, "left", "t", "2")
        both = {kind: np.concatenate([maps, maps]) for kind, maps in probes.items()}
        priors = localization.location_priors([one], SIZE)
        table = faithfulness.score_maps(both["own"], both, [one, second], priors, SIZE)
        assert "prior_renamed" not in table or table["prior_renamed"].isna().all()


class TestMoved:
    """A phantom whose finding is taken away or moved, and nothing else."""

    @pytest.fixture(scope="class")
    def one(self):
        truths = phrases(sources.load("phantom", split="test", n=12, size=SIZE))
        return next(t for t in truths if t.finding.side in ("left", "right"))

    def scores(self, one, maps):
        """Of one phrase, with ``maps`` by kind; the others are missing."""
        missing = np.full((1, SIZE, SIZE), np.nan)
        probes = {kind: maps[kind][None] + 0.0 if kind in maps else missing for kind in faithfulness.KINDS}
        probes["swap"] = probes["own"][:, None]
        priors = {one.finding.name: one.finding.mask + 0.0}
        return faithfulness.score_maps(probes["own"], probes, [one], priors, SIZE).iloc[0]

    def test_a_perfect_map_follows_and_a_prior_stays(self, one):
        old, new = one.finding.mask, phantom.counterfactual(one.study, one.finding.name, "other side")[1]
        assert not (old & new).any()
        nothing = np.zeros_like(old)
        row = self.scores(one, {"own": old, "removed": nothing, "no_side": old, "moved": new})
        # Without the finding all pixels tie. On the other side its pixels tie with all but those of the old place.
        before = 0.5 * (1 - old.sum() / (~new).sum())
        assert (row["removed"], row["moved"]) == pytest.approx((0.5, 1 - before))
        # What moves is compared with the same prompt, without a side, not with the image's own.
        assert self.scores(one, {"own": new, "no_side": old, "moved": new})["moved"] == row["moved"]
        # A prior that knows one side better than the other is the same map before and after.
        prior = 2.0 * old + new
        row = self.scores(one, dict.fromkeys(faithfulness.KINDS, prior))
        assert (row["removed"], row["moved"]) == (0, 0)
        assert (row["chance_removed"], row["chance_moved"]) == (0, 0)
        assert np.isnan(self.scores(one, {"own": old})[["removed", "moved"]].astype(float)).all()

    def test_a_map_that_never_leaves_the_old_place_does_not_move(self, one):
        stuck = one.finding.mask
        row = self.scores(one, {"own": stuck, "removed": np.zeros_like(stuck), "no_side": stuck, "moved": stuck})
        assert (row["removed"], row["moved"]) == (0.5, 0)

    def test_only_a_phantom_whose_finding_has_a_place_is_changed(self, one):
        """The image without the finding has the prompt as it is; the moved one, as in the mirror test, has no side."""
        shown = {kind: (study.pixels(), f.phrase) for kind, _, study, f in faithfulness.probes(one, [], 1)}
        assert set(shown) == {*faithfulness.KINDS} - {"swap"}
        for kind, change, like in (("removed", "without", "own"), ("moved", "other side", "no_side")):
            image, _ = phantom.counterfactual(one.study, one.finding.name, change)
            np.testing.assert_array_equal(shown[kind][0], image)
            assert shown[kind][1] == shown[like][1]
        half = replace(one, finding=replace(one.finding, mask=None))
        nowhere = replace(one, finding=replace(one.finding, mask=None, boxes=()))
        assert not {"denied", "renamed"} & {kind for kind, *_ in faithfulness.probes(nowhere, [], 1)}
        real = replace(one, study=replace(one.study, source="nih"))
        middle = replace(one, finding=replace(one.finding, side=None))
        for other in (half, real, middle):
            assert not {"removed", "moved"} & {kind for kind, *_ in faithfulness.probes(other, [], 1)}


class TestScores:
    def test_columns_of_maps_with_a_known_answer(self):
        a, b = at(2, 2), at(20, 20)
        both = [truth("Pneumonia", a, "right", "s"), truth("Edema", b, "left", "s")]
        truths = [*both, truth("Edema", b, None, "t", "2")]
        maps = np.stack([a, b, b]).astype(np.float32) + 1
        nothing = np.full_like(maps, np.nan)
        probes = dict.fromkeys(faithfulness.KINDS, nothing) | {"own": maps, "swap": np.ones_like(maps)[:, None]}
        probes["no_side"] = np.stack([*maps[:2], nothing[2]])
        priors = {"Pneumonia": a + 0.0, "Edema": b + 0.0}
        probes["own"] = np.stack([a, a, b]).astype(np.float32) + 1  # with fewer timesteps the edema is not found
        table = faithfulness.score_maps(maps, probes, truths, priors, SIZE)
        missed = localization.auc_roc(a + 0.0, b) - 0.5
        assert table["gain_auc_roc"].tolist() == pytest.approx([0.5, missed, 0.5])
        assert table["word"].tolist()[:2] == [1, 1]
        assert np.isnan(table["word"][2])
        assert table["prior_word"].tolist()[:2] == [1, 1]
        assert table["swap_word"].tolist()[:2] == [0.5, 0.5]
        assert table["gain_word"].tolist()[:2] == [0, 0]  # two equal maps, as on the swapped images
        assert table["mirror"].tolist()[:2] == [1, 1]
        assert np.isnan(table["mirror"][2])
        assert table["mirror_sided"].tolist()[:2] == [1, 1]
        assert table[["conflict", "removed", "moved"]].isna().all(axis=None)
        # The third patient's edema has no side, so nobody has the same finding, side and zone.
        assert table["peer_auc_roc"].isna().all()

    def test_a_peer_has_the_same_finding_side_and_zone(self):
        truths = [truth(study="s"), truth(study="t", patient="2"), truth(study="u", patient="3", side="left")]
        maps = np.stack([at(4, 4), at(20, 20), at(4, 4)]).astype(np.float32)
        probes = dict.fromkeys(faithfulness.KINDS, maps * np.nan) | {"own": maps, "swap": maps[:, None]}
        table = faithfulness.score_maps(maps, probes, truths, {"Pneumonia": at(4, 4) + 0.0}, SIZE)
        assert table["peer_auc_roc"][0] == localization.auc_roc(maps[1], at(4, 4))
        assert np.isnan(table["peer_auc_roc"][2])


class TestProbes:
    @pytest.fixture(scope="class")
    def pipeline(self):
        return tiny.random_pipeline("bert")

    @pytest.fixture(scope="class")
    def data(self):
        studies = sources.load("phantom", split="test", n=8, size=32)
        return phrases(studies)[:5], list(sources.load("phantom", split="val", n=12, size=32))

    def test_every_row_sees_the_noise_of_its_own_image(self, pipeline, data, tmp_path):
        truths, pool = data
        settings = GroundingSettings(steps=10, last=4, stride=1, swaps=2, swap_every=2)
        probes = faithfulness.probe_truths(pipeline, truths, pool, settings, tmp_path / "p.safetensors")
        assert probes["own"].shape == (5, 8, 8)
        assert probes["swap"].shape == (5, 2, 8, 8)
        times = grounding.paper_timesteps(pipeline.scheduler, 10, 4)[::-2]  # from the least noisy on
        t = truths[0]
        key = [grounding.passes.image_key(t.study.pixels())]
        words = [grounding.target_span(t.finding)]
        swapped = pool[faithfulness.swap_images(t.study, pool, 2)[0]].pixels()
        without, _ = phantom.counterfactual(t.study, t.finding.name, "without")
        for name, image in (("own", t.study.pixels()), ("swap", swapped), ("removed", without)):
            alone = grounding.ground_many(pipeline, image[None], [t.finding.phrase], words, key, timesteps=times)
            found = probes[name][0, 0] if name == "swap" else probes[name][0]
            np.testing.assert_allclose(found, alone[0], rtol=2e-5)
        other = faithfulness.reworded(t)["renamed"]
        span = [grounding.target_span(other)]
        named = grounding.ground_many(pipeline, t.study.pixels()[None], [other.phrase], span, key, timesteps=times)
        np.testing.assert_allclose(probes["renamed"][0], named[0], rtol=2e-5)
        for i, one in enumerate(truths):
            for kind in ("no_side", "removed", "moved"):
                assert np.isfinite(probes[kind][i]).all() == (one.finding.side in ("left", "right"))

    def test_one_damaged_image_costs_its_own_maps_only(self, pipeline, data, tmp_path):
        truths, pool = data
        settings = GroundingSettings(steps=10, last=4, stride=1, swaps=2, swap_every=2)
        before = faithfulness.probe_truths(pipeline, truths, pool, settings, tmp_path / "p.safetensors")
        (tmp_path / "half.png").write_bytes(b"half")
        damaged = faithfulness.swap_images(truths[0].study, pool, 2)[0]
        pool = [replace(s, array=None, path=tmp_path / "half.png") if i == damaged else s for i, s in enumerate(pool)]
        after = faithfulness.probe_truths(pipeline, truths, pool, settings, tmp_path / "q.safetensors")
        assert np.isnan(after["swap"][0, 0]).all()
        np.testing.assert_allclose(after["swap"][0, 1], before["swap"][0, 1], rtol=2e-5)
        np.testing.assert_allclose(after["own"], before["own"], rtol=2e-5)
        alone = GroundTruth(replace(truths[0].study, array=None, path=tmp_path / "half.png"), truths[0].finding)
        none = faithfulness.probe_truths(pipeline, [alone], pool, settings, tmp_path / "r.safetensors")
        assert all(np.isnan(maps).all() for maps in none.values())

    def test_probes_of_another_choice_are_made_again(self, data, tmp_path, monkeypatch):
        truths, pool = data
        names = []
        monkeypatch.setattr(runs, "resumable", lambda path, name, *_, **__: names.append(name) or ({}, []))
        taken = faithfulness.swap_images(truths[0].study, pool, 1)[0]
        shows = replace(pool[taken], findings=(truths[0].finding,))
        sideless = [GroundTruth(t.study, replace(t.finding, side=None)) for t in truths]
        for some, others in ((truths, pool), (truths, [*pool[:taken], shows, *pool[taken + 1 :]]), (sideless, pool)):
            faithfulness.probe_truths(
                tiny.random_pipeline("bert"), some, others, GroundingSettings(swaps=1), tmp_path / "p", identity="w"
            )
        assert len(set(names)) == 3

    def test_a_phrase_that_is_nothing_but_a_side_has_no_prompt_without_it(self):
        assert [kind for kind, *_ in faithfulness.probes(truth(mask=at(3, 3), side="left"), [], 1)]
        bare = replace(truth(mask=at(3, 3), side="left"), finding=Finding("Pneumonia", "left", True, "left"))
        assert [kind for kind, *_ in faithfulness.probes(bare, [], 1)] == ["own"]

    def test_a_reworded_phrase_too_long_for_the_tokenizer_costs_its_own_map_only(self, pipeline, data, tmp_path):
        one, pool = data[0][0], data[1]
        full, longer = one.finding, replace(one.finding, phrase=f"small {one.finding.phrase}")
        while not grounding.unreadable(pipeline, longer):
            full, longer = longer, replace(longer, phrase=f"small {longer.phrase}")
        full = replace(one, finding=full)
        (truths, _), settings = grounding.groundable(pipeline, [full]), GroundingSettings(steps=4, last=1, swaps=1)
        probes = faithfulness.probe_truths(pipeline, truths, pool, settings, tmp_path / "p.safetensors")
        assert np.isfinite(probes["own"]).all()
        assert np.isnan(probes["denied"]).all()

    def test_a_swap_of_the_image_for_itself_gains_nothing(self, pipeline, data, tmp_path):
        truths, _ = data
        pool = [Study(t.study.id, "other", "x", "val", "", (32, 32), array=t.study.array) for t in truths[:1]]
        settings = GroundingSettings(steps=10, last=4, stride=2, swaps=1, swap_every=1)
        probes = faithfulness.probe_truths(pipeline, truths[:1], pool, settings, tmp_path / "q.safetensors")
        np.testing.assert_array_equal(probes["own"][0], probes["swap"][0, 0])

    def test_random_weights_change_the_maps_and_nothing_else(self, data):
        truths, _ = data
        image, phrase = truths[0].study.pixels(), truths[0].finding.phrase
        for part, other in (("unet", "text_encoder"), ("text_encoder", "unet")):
            pipeline = tiny.random_pipeline("bert")
            before = grounding.ground(pipeline, image, phrase, timesteps=[100]).values
            kept = models.fingerprint(pipeline, [other])
            faithfulness.random_weights(pipeline, [part])
            assert models.fingerprint(pipeline, [other]) == kept
            assert not np.allclose(grounding.ground(pipeline, image, phrase, timesteps=[100]).values, before)
        with pytest.raises(InputError, match="vae"):
            faithfulness.random_weights(pipeline, ["vae"])


def test_the_endpoint_is_declared_before_any_run():
    assert profiles.load("demo").statistics.endpoint == localization.FAITHFULNESS[:2]


def test_the_command_leaves_what_chapter_3_finds(tmp_path, capsys):
    text = (profiles.DATA / "profiles/smoke.yaml").read_text()
    for old, new in (
        ("train: 48", "train: 6"),
        ("val: 24", "val: 8"),
        ("test: 32", "test: 4"),
        ("steps: 8", "steps: 2"),
    ):
        text = text.replace(old, new)
    own = tmp_path / "own.yaml"
    own.write_text(text.replace("batch_size: 8", "batch_size: 2").replace("every: 4", "every: 2"))
    options = ["--profile", str(own), "--out", str(tmp_path)]
    assert finetune_command(options) == 0
    assert faithfulness.main(options) == 0
    assert "step 2" in capsys.readouterr().out
    run = profiles.run(profiles.load(own), "frozen", 0, tmp_path)
    assert set(run.probes(2)) == set(faithfulness.KINDS)
    assert run.probes(2)["swap"].shape[:2] == (len(run.maps(2)["rows"]), 4)

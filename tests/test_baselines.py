"""Baselines on toys of known answer: a bright square is the finding, its place and size are side, zone and severity."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chestxai import baselines, localization, profiles
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Finding, GroundTruth, Study, phrases

SIZE = 32
ROWS = {"upper": 4, "lower": 20}
NAMES = {"Pneumonia": 230, "Pneumothorax": 10}  # bright and dark squares on a grey ground


def toys(n: int, split: str = "train", seed: int = 0) -> list[Study]:
    """One square per image; the patient's right is on the image's left."""
    rng = np.random.default_rng(seed)
    studies = []
    for i in range(n):
        name, side, zone = (str(rng.choice(list(some))) for some in (NAMES, ("left", "right"), ROWS))
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        row, column = ROWS[zone] + rng.integers(4), (2 if side == "right" else 18) + rng.integers(6)
        mask[row : row + 7, column : column + 7] = True
        image = np.where(mask, NAMES[name], 110 + rng.normal(0, 8, mask.shape)).astype(np.uint8)
        phrase = f"{side} {zone} {name.lower()}"
        finding = Finding(name, phrase, side=side, zone=zone, mask=mask)
        about = (f"{split}-{i}", f"{split}-{i}", "toy", split, f"IMPRESSION: {phrase}.", (SIZE, SIZE), (finding,))
        studies.append(Study(*about, array=image))
    return studies


PRIORS = localization.location_priors(phrases(toys(48)), SIZE)


@pytest.fixture(scope="module")
def profile():
    settings = profiles.load("smoke")
    return settings.model_copy(update={"data": settings.data.model_copy(update={"size": SIZE})})


@pytest.fixture(scope="module")
def ceiling(profile, tmp_path_factory):
    return baselines.ceiling(profile, phrases(toys(48)), tmp_path_factory.mktemp("ceiling"), epochs=40)


@pytest.fixture
def words(monkeypatch):
    """A direction of its own for each word, in place of MiniLM."""

    def sentences(texts):
        vectors = [
            sum(torch.randn(384, generator=torch.Generator().manual_seed(sum(map(ord, w)))) for w in text.split())
            for text in (text.lower().rstrip(".") for text in texts)
        ]
        return torch.stack(vectors)

    monkeypatch.setattr(baselines, "sentences", sentences)


class TestContrastive:
    def test_the_loss_of_a_perfect_match_is_zero_and_of_no_information_log_n(self):
        texts = torch.eye(4)
        patches = texts[:, :, None, None].expand(4, 4, 3, 3)
        different = torch.eye(4, dtype=torch.bool)
        assert baselines.contrastive_loss(patches, texts, different, 50.0) < 1e-6
        assert baselines.contrastive_loss(patches.roll(1, 0), texts, different, 50.0) == pytest.approx(50, abs=0.01)
        blind = torch.ones(4, 4, 3, 3)
        assert baselines.contrastive_loss(blind, texts, different, 50.0) == pytest.approx(np.log(4), abs=1e-4)

    def test_equal_texts_are_no_negatives_of_each_other(self):
        texts = torch.eye(2)[[0, 0, 1, 1]]
        patches = texts[:, :, None, None].expand(4, 2, 3, 3)
        same = (texts[:, None] == texts).all(-1)
        # Two positives of equal probability: the least that cross-entropy with them can be is log 2.
        assert baselines.contrastive_loss(patches, texts, same, 50.0) == pytest.approx(np.log(2), abs=1e-4)

    def test_one_patch_is_enough_for_the_local_part(self):
        texts = torch.eye(4)
        patches = torch.ones(4, 4, 4, 4)
        patches[:, :, 0, 0] = 9 * texts
        different = torch.eye(4, dtype=torch.bool)
        assert baselines.contrastive_loss(patches, texts, different, 50.0) < np.log(4) / 2 + 0.01

    def test_training_matches_images_and_texts(self, profile, tmp_path, words):
        model = baselines.contrastive(profile, toys(48), tmp_path, epochs=25)
        images, findings = zip(*((s.array, s.findings[0]) for s in toys(16, "test", 1)), strict=True)
        with torch.inference_mode():
            whole = F.normalize(model.image_patches(np.stack(images)).mean((2, 3)), dim=1)
            texts = F.normalize(model.text([f.phrase for f in findings]), dim=1)
        matching = np.array([[a.name == b.name for a in findings] for b in findings])
        cosines = (whole @ texts.T).numpy()
        assert cosines[matching].mean() > cosines[~matching].mean() + 0.2

    def test_studies_without_a_report_are_left_out(self, profile, tmp_path, words):
        silent = [Study("a", "a", "toy", "train", "", (SIZE, SIZE), array=np.zeros((SIZE, SIZE), np.uint8))] * 3
        with pytest.raises(InputError, match="has 0 images to learn from"):
            baselines.contrastive(profile, silent, tmp_path)

    def test_sentences_do_not_depend_on_their_batch(self):
        texts = ["no pneumothorax", "a small left pleural effusion with some further words", "no pneumothorax"]
        together, alone = baselines.sentences(texts), baselines.sentences(texts[:1])
        assert together.shape == (3, 384)
        torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together[0], together[2])


class Random:
    """An image–text model from elsewhere: three-channel images, a 5 × 5 grid, random weights."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.kernel = torch.randn(6, 3, 8, 8, generator=generator)

    def image_patches(self, images):
        x = torch.from_numpy(images)[:, None].float().expand(-1, 3, -1, -1) / 255
        return F.adaptive_avg_pool2d(F.conv2d(x, self.kernel, stride=4), 5)

    def text(self, texts):
        vectors = [torch.randn(6, generator=torch.Generator().manual_seed(len(text))) for text in texts]
        return torch.stack(vectors)


class TestPlugIn:
    def test_its_map_is_the_cosine_of_patch_and_phrase(self):
        model, (study,) = Random(), toys(1)
        heatmap = baselines.similarity(model, study.array[None], study.findings)[0]
        patch = model.image_patches(study.array[None])[0, :, 2, 3]
        text = model.text([study.findings[0].phrase])[0]
        assert heatmap.shape == (5, 5)
        assert heatmap[2, 3] == pytest.approx((1 + F.cosine_similarity(patch, text, dim=0).item()) / 2, abs=1e-5)

    def test_it_is_scored_as_the_others(self):
        point = partial(baselines.similarity, Random())
        table = baselines.score(point, phrases(toys(6, "test", 1)), toys(12), PRIORS, SIZE)
        assert len(table) == 6
        assert {*localization.SCORES, "gain_auc_roc", "mirror", "conflict", "word"} <= set(table)
        assert table["auc_roc"].between(0, 1).all()


class TestScore:
    @staticmethod
    def seeing(images, findings):
        """The departure from grey in the finding's direction."""
        signs = [np.sign(NAMES.get(f.name, 110) - 110) for f in findings]
        return np.stack([np.maximum(s * (x.astype(np.float32) - 110), 0) for s, x in zip(signs, images, strict=True)])

    def test_a_map_that_sees_gains_by_the_image_and_a_blind_one_does_not(self):
        truths, pool = phrases(toys(8, "test", 1)), toys(12)
        rng = np.random.default_rng(0)
        fixed = rng.random((SIZE, SIZE), dtype=np.float32)
        seen = baselines.score(self.seeing, truths, pool, PRIORS, SIZE)
        blind = baselines.score(lambda images, _: np.repeat(fixed[None], len(images), 0), truths, pool, PRIORS, SIZE)
        assert seen["auc_roc"].min() > 0.99
        assert (seen["mirror"] == 1).all()
        assert (seen["conflict"] == 1).all()  # it does not read the side
        assert seen["gain_auc_roc"].min() > 0.3
        harder = [f"gain_{name}" for name in ("auc_roc_shuffled", "auc_roc_field", "average_precision")]
        assert (seen[harder] > 0.1).all(axis=None)
        assert np.allclose(blind[["gain_auc_roc", *harder]], 0)
        assert np.array_equal(seen["phrase"], [t.finding.phrase for t in truths])

    def test_a_phrase_without_a_side_has_no_test_of_sides_and_few_images_to_swap_are_enough(self):
        study = toys(1, "test", 1)[0]
        finding = Finding("Pneumonia", "pneumonia", side="left", mask=study.findings[0].mask)
        other = [s for s in toys(12) if s.findings[0].name != "Pneumonia"][:1]
        table = baselines.score(self.seeing, [GroundTruth(study, finding)], other, PRIORS, SIZE, swaps=3)
        assert table[["mirror", "conflict"]].isna().all(axis=None)
        assert table["gain_auc_roc"].notna().all()

    def test_tables_are_kept(self, profile, tmp_path):
        assert baselines.load_scores(profile, tmp_path) == {}
        table = baselines.score(self.seeing, phrases(toys(2, "test", 1)), toys(6), PRIORS, SIZE)
        table.loc[0, "phrase"] = "NA"
        baselines.save_scores(profile, {"seeing": table}, tmp_path)
        again = baselines.load_scores(profile, tmp_path)["seeing"]
        assert again["phrase"][0] == "NA"
        np.testing.assert_allclose(again["auc_roc"], table["auc_roc"])


class TestCeiling:
    def test_it_finds_the_square(self, ceiling):
        table = baselines.score(ceiling.maps, phrases(toys(12, "test", 1)), toys(12), PRIORS, SIZE)
        assert table["auc_roc"].mean() > 0.97
        assert table["pointing_game"].mean() > 0.9

    def test_it_reads_side_and_zone(self, ceiling):
        studies = toys(24, "test", 2)
        rows = baselines.as_asked(
            np.stack([s.array for s in studies]), [s.findings[0].phrase for s in studies], ceiling
        )
        assert len(rows) == 24
        assert rows["side"].mean() > 0.9
        assert rows["zone"].mean() > 0.9
        assert rows["severity"].isna().all()  # never named in training

    def test_the_other_side_is_not_as_asked(self, ceiling):
        studies = toys(24, "test", 2)
        swapped = [s.findings[0].phrase for s in studies]
        swapped = [p.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right") for p in swapped]
        rows = baselines.as_asked(np.stack([s.array for s in studies]), swapped, ceiling)
        assert rows["side"].mean() < 0.1
        assert rows["zone"].mean() > 0.9

    def test_it_is_trained_once_and_again_when_damaged_or_of_other_data(self, profile, tmp_path, monkeypatch):
        truths, trained = phrases(toys(4)), []
        fit = baselines.fit
        monkeypatch.setattr(baselines, "fit", lambda *rest, **more: trained.append(1) or fit(*rest, **more))

        def weights(*options, **more):
            return baselines.ceiling(profile, *options, tmp_path, **more).state_dict()

        first = weights(truths, epochs=1)
        assert all(torch.equal(value, first[name]) for name, value in weights(truths, epochs=1).items())
        assert len(trained) == 1
        (tmp_path / "smoke" / "baselines" / "supervised.safetensors").write_bytes(b"cut off")
        assert all(torch.equal(value, first[name]) for name, value in weights(truths, epochs=1).items())
        assert len(trained) == 2
        weights(truths, epochs=2)
        weights(phrases(toys(5)), epochs=2)
        assert len(trained) == 4

    def test_one_image_is_too_few(self, profile, tmp_path):
        with pytest.raises(InputError, match="has 1 images to learn from and needs two"):
            baselines.ceiling(profile, phrases(toys(1)), tmp_path)
        assert not (tmp_path / "smoke" / "baselines" / "supervised.safetensors").exists()


class Stub:
    """A ceiling that sees an effusion in the top left place, and says another side for all other places."""

    def __init__(self, varied: bool = True):
        self.names, self.varied = list(FINDINGS), torch.full((8, 3), varied)

    def __call__(self, images):
        logits = torch.zeros(len(images), 16, 4, 4)
        logits[:, FINDINGS.index("Pleural Effusion")] = -3.0
        logits[:, FINDINGS.index("Pleural Effusion"), 0, 0] = 3.0
        logits[:, 8] = -2.0  # elsewhere everything says left …
        logits[:, 8, 0, 0] = 2.0  # … but at the effusion, right
        logits[:, 12] = 1.0  # lower
        logits[:, 15] = 1.0  # severe
        return logits


class TestAsAsked:
    IMAGES = np.zeros((1, SIZE, SIZE), np.uint8)

    @pytest.mark.parametrize(
        ("prompt", "right"),
        [
            ("Large right basal pleural effusion.", (1, 1, 1)),
            ("Small left pleural effusion.", (0, None, 0)),
            ("Pleural effusion.", (None, None, None)),
            ("Bilateral pleural effusions.", (None, None, None)),
        ],
    )
    def test_the_place_of_the_finding_decides(self, prompt, right):
        row = baselines.as_asked(self.IMAGES, [prompt], Stub()).iloc[0]
        for name, value in zip(baselines.ATTRIBUTES, right, strict=True):
            assert np.isnan(row[name]) if value is None else row[name] == value

    def test_chance_is_that_of_prompts_exchanged_within_a_finding(self):
        prompts = [
            "Small right basal pleural effusion.",
            "Large right pleural effusion.",
            "Large left pleural effusion.",
        ]
        rows = baselines.as_asked(np.repeat(self.IMAGES, 3, axis=0), prompts, Stub())
        # The stub always sees "right" and "severe", which two of three prompts ask for.
        assert rows["side"].tolist() == [1, 1, 0]
        assert rows["chance_side"].to_numpy() == pytest.approx(2 / 3)
        assert rows["chance_severity"].to_numpy() == pytest.approx(2 / 3)
        assert rows["chance_zone"].tolist()[:1] == [1]  # one prompt names a zone, and it is right
        assert rows["chance_zone"].isna().tolist() == [False, True, True]

    def test_what_is_denied_is_not_asked_for(self):
        assert baselines.as_asked(self.IMAGES, ["No pleural effusion."], Stub()).empty

    def test_what_never_varied_is_not_measured(self):
        rows = baselines.as_asked(self.IMAGES, ["Large right basal pleural effusion."], Stub(varied=False))
        assert rows[list(baselines.ATTRIBUTES)].isna().all(axis=None)

    def test_batches_do_not_matter(self, ceiling):
        studies = toys(5, "test", 3)
        images, prompts = np.stack([s.array for s in studies]), [s.findings[0].phrase for s in studies]
        whole, names = baselines.as_asked(images, prompts, ceiling), ["finding", *baselines.ATTRIBUTES]
        many = baselines.as_asked(np.tile(images, (14, 1, 1)), prompts * 14, ceiling)  # 70 images
        assert many[names].tail(len(whole)).reset_index(drop=True).equals(whole[names])

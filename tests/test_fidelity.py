"""Fidelity scores: closed forms, agreement with the definitions and with torchmetrics, and a classifier that learns."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import math
import runpy
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import linalg
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import polynomial_kernel
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance

from chestxai import fidelity, models, profiles, runs, sources, tradeoff
from chestxai.fidelity import FindingsClassifier, Training, classifier, metrics, spaces
from chestxai.fidelity.__main__ import main
from chestxai.fidelity.classifier import SHIPPED
from chestxai.profiles import SamplingSettings
from chestxai.recipes import Recipe
from chestxai.studies import FINDINGS, Finding, Frame, Study
from tests import tiny


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pictures(n: int, seed: int = 0, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a grating for each finding an image has: eight textures, eight findings."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(FINDINGS))) < 0.4).astype(np.float32)
    y, x = np.mgrid[:size, :size] * (64 / size)
    waves = [
        np.sin(2 * np.pi * (x * math.cos(angle) + y * math.sin(angle)) / period)
        for angle in np.pi * np.arange(4) / 4
        for period in (4, 9)
    ]
    images = rng.normal(128, 10, (n, size, size)) + 18 * np.tensordot(labels, np.stack(waves), 1)
    return images.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("classifier")
    training = Training("pictures", epochs=3, batch=16)
    fidelity.train_classifier(*pictures(300), out, training, val=pictures(200, seed=1))
    return out


def study(name: str, report: str, *findings: str) -> Study:
    return Study(name, name, "test", "test", report, (64, 64), findings=tuple(map(Finding, findings)))


class TestRequests:
    reports = ("Large left pleural effusion. No pneumothorax.", "No acute disease.", "Marked cardiomegaly.", "")
    studies = tuple(study(f"s{i}", report) for i, report in enumerate(reports))

    def test_images_of_one_study_follow_each_other(self):
        prompts, labels, origins = fidelity.requests(self.studies, SamplingSettings(images=8, per_prompt=3))
        assert prompts[0:3] == prompts[:1] * 3
        assert prompts[3:6] == prompts[3:4] * 3
        assert prompts[6:8] == prompts[6:7] * 2
        assert sorted({*prompts}) == sorted(self.reports[:3])
        assert labels.shape == (8, 8)
        assert [self.reports[i] for i in origins] == prompts

    def test_too_few_studies_are_repeated(self):
        prompts, _, _ = fidelity.requests(self.studies, SamplingSettings(images=16, per_prompt=2))
        assert prompts[:2] == prompts[6:8] == prompts[12:14]

    @given(st.integers(2, 20), st.integers(2, 20), st.integers(2, 5))
    @settings(max_examples=30)
    def test_more_images_only_append(self, few, more, each):
        first, second = (
            fidelity.requests(self.studies, SamplingSettings(images=n, per_prompt=each))[0] for n in sorted((few, more))
        )
        assert second[: len(first)] == first

    def test_labels_are_those_of_the_text(self):
        """Not those of the study: the impression "No acute disease." does not ask for its atelectasis."""
        basal = study("a", "FINDINGS: Basal atelectasis. IMPRESSION: No acute disease.", "Atelectasis")
        prompts, labels, _ = fidelity.requests([basal], SamplingSettings(images=2))
        assert prompts == ["No acute disease."] * 2
        assert not labels.any()
        wanted = fidelity.asked(self.reports[:3])
        assert [[FINDINGS[i] for i in np.flatnonzero(row)] for row in wanted] == [
            ["Pleural Effusion"],
            [],
            ["Cardiomegaly"],
        ]

    def test_what_the_tokenizer_cuts_is_not_asked_for(self, pipeline):
        filler = "The heart, hila, bones and upper abdomen are all within normal limits for age, " * 3
        long = study("a", f"IMPRESSION: Mild cardiomegaly. {filler} and small left pleural effusion.")
        few = SamplingSettings(images=2)
        prompts, whole, _ = fidelity.requests([long], few)
        same, read, _ = fidelity.requests([long], few, pipeline)
        assert same == prompts
        named = [[FINDINGS[i] for i in np.flatnonzero(labels[0])] for labels in (whole, read)]
        assert named == [["Cardiomegaly", "Pleural Effusion"], ["Cardiomegaly"]]
        assert models.cut_prompts(pipeline.tokenizer, [*prompts, "edema"]) == 2

    def test_evenly_asks_for_each_finding_as_often(self):
        phrases = (
            [Finding("Edema", "mild edema"), Finding("Edema", "no edema", present=False)],
            [Finding("Edema", "marked edema")],
        )
        studies = [replace(study(f"s{i}", ""), findings=tuple(some)) for i, some in enumerate(phrases)]
        few = SamplingSettings(images=64, per_prompt=2, prompts="evenly")
        prompts, labels, origins = fidelity.requests(studies, few)
        assert (labels.sum(axis=0) == 8).all()
        edema = [prompts[i] for i in np.flatnonzero(labels[:, FINDINGS.index("Edema")])]
        assert sorted(edema) == ["marked edema"] * 4 + ["mild edema"] * 4
        assert edema[:2] == edema[:1] * 2
        assert {prompts[i] for i in np.flatnonzero(labels[:, 0])} == {"Atelectasis."}
        assert [origins[prompts.index(text)] for text in ("mild edema", "marked edema", "Atelectasis.")] == [0, 1, -1]
        assert fidelity.requests(studies, few.model_copy(update={"images": 20}))[0] == prompts[:20]

    def test_nothing_to_ask(self):
        with pytest.raises(ValueError, match="none of 1 studies has a report"):
            fidelity.requests(self.studies[3:], SamplingSettings(images=2))


@pytest.fixture(scope="module")
def pipeline():
    return tiny.random_pipeline("bert")


@pytest.fixture
def passes(pipeline):
    """Counts the passes through the U-Net."""
    count = SimpleNamespace(n=0)

    def called(*_):
        count.n += 1

    hook = pipeline.unet.register_forward_hook(called)
    yield count
    hook.remove()


class TestSample:
    prompts = ("small left pleural effusion", "large heart", "small left pleural effusion", "normal chest", "edema")
    few = SamplingSettings(images=5, steps=2, guidance=3.0, batch=2)

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    @pytest.mark.parametrize("kind", ["sd", "bert"])
    def test_is_the_stock_pipeline(self, kind, guidance, tmp_path):
        """Prompts as text through diffusers' own call, from the same noise, give the same image."""
        stock = tiny.random_pipeline(kind)
        options = self.few.model_copy(update={"guidance": guidance})
        ours = fidelity.sample(stock, self.prompts[:2], options, tmp_path / "a.safetensors", seed=3)
        noise = torch.stack([models.seeded_noise((4, 8, 8), 3, i) for i in range(2)])
        theirs = stock(
            list(self.prompts[:2]),
            latents=noise,
            guidance_scale=guidance,
            num_inference_steps=2,
            output_type="latent",
        ).images
        assert ours.dtype == np.uint8
        assert ours.std() > 1
        assert np.abs(ours.astype(int) - models.decode_latents(stock, theirs)).max() <= 1

    def test_plms_is_the_stock_pipelines(self, tmp_path):
        stock = tiny.random_pipeline("sd")
        options = self.few.model_copy(update={"sampler": "plms", "steps": 5})
        ours = fidelity.sample(stock, self.prompts[:2], options, tmp_path / "a.safetensors", seed=3)
        stock.scheduler = PNDMScheduler.from_config(stock.scheduler.config, skip_prk_steps=True)
        noise = torch.stack([models.seeded_noise((4, 8, 8), 3, i) for i in range(2)])
        theirs = stock(
            list(self.prompts[:2]), latents=noise, guidance_scale=3.0, num_inference_steps=5, output_type="latent"
        ).images
        assert np.abs(ours.astype(int) - models.decode_latents(stock, theirs)).max() <= 1
        other = self.few.model_copy(update={"steps": 5})
        assert (ours != fidelity.sample(stock, self.prompts[:2], other, tmp_path / "a.safetensors", seed=3)).any()

    def test_an_image_depends_on_seed_position_and_prompt_alone(self, pipeline, tmp_path):
        whole = fidelity.sample(pipeline, self.prompts, self.few, tmp_path / "a.safetensors")
        other = self.few.model_copy(update={"batch": 4})
        shorter = fidelity.sample(pipeline, self.prompts[:3], other, tmp_path / "b.safetensors")
        assert np.abs(whole[:3].astype(int) - shorter).max() <= 1
        assert (whole[0] != whole[2]).any(), "the same prompt from other noise"
        again = fidelity.sample(pipeline, self.prompts, self.few, tmp_path / "c.safetensors", seed=1)
        assert (whole[0] != again[0]).any()

    def test_finished_images_are_read_and_described(self, pipeline, passes, tmp_path):
        path = tmp_path / "samples" / "step-0.safetensors"
        first = fidelity.sample(pipeline, self.prompts, self.few, path)
        assert passes.n == 3 * 2
        np.testing.assert_array_equal(fidelity.sample(pipeline, self.prompts, self.few, path), first)
        assert passes.n == 3 * 2
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        assert json.loads(runs.tensor_metadata(path)["prompts"]) == list(self.prompts)

    def test_a_killed_run_is_resumed(self, pipeline, passes, tmp_path):
        class Killed(Exception):
            pass

        class Bar:
            n = 0

            def update(self, n):
                self.n += n
                if self.n == 4 and not path.exists() and not killed:
                    killed.append(True)
                    raise Killed

        path, killed, bar = tmp_path / "step-0.safetensors", [], Bar()
        with pytest.raises(Killed):
            fidelity.sample(pipeline, self.prompts, self.few, path, bar=bar)
        assert not path.exists()
        assert passes.n == 2 * 2
        images = fidelity.sample(pipeline, self.prompts, self.few, path, bar=(bar := Bar()))
        assert passes.n == 3 * 2, "only the last batch was missing"
        assert bar.n == 5
        whole = fidelity.sample(pipeline, self.prompts, self.few, tmp_path / "undisturbed.safetensors")
        np.testing.assert_array_equal(images, whole)

    def test_any_change_draws_again(self, pipeline, passes, tmp_path):
        path = tmp_path / "a.safetensors"
        first = fidelity.sample(pipeline, self.prompts, self.few, path)
        second = fidelity.sample(pipeline, self.prompts, self.few.model_copy(update={"guidance": 6.0}), path)
        assert (first != second).any()
        third = fidelity.sample(pipeline, self.prompts[::-1], self.few, path)
        assert (first != third).any()
        bias = pipeline.unet.conv_out.bias
        try:
            bias += 0.5
            fourth = fidelity.sample(pipeline, self.prompts[::-1], self.few, path)
        finally:
            bias -= 0.5
        assert (third != fourth).any()
        assert passes.n == 4 * 3 * 2
        # A recipe may change what the U-Net reads without changing a weight.
        try:
            pipeline.text_encoder.recipe = Recipe(text="learnable")
            fidelity.sample(pipeline, self.prompts[::-1], self.few, path)
        finally:
            del pipeline.text_encoder.recipe
        assert passes.n == 5 * 3 * 2

    def test_parts_of_another_model_are_not_mixed_in(self, pipeline, tmp_path):
        """After a kill and other settings, nothing of the first attempt is left, not even its surplus batches."""
        path, parts = tmp_path / "a.safetensors", tmp_path / "a.parts"
        for number in range(7):
            stale = {"images": torch.zeros(2, 32, 32, dtype=torch.uint8)}
            runs.save_tensors(parts / f"{number:05d}.safetensors", stale, {"identity": "another"})
        images = fidelity.sample(pipeline, self.prompts, self.few, path)
        assert images.shape == (5, 32, 32)
        assert (images.std(axis=(1, 2)) > 0).all()
        assert not parts.exists()

    def test_does_not_touch_the_pipeline(self, pipeline, tmp_path):
        before = dict(pipeline.scheduler.config), pipeline.scheduler.timesteps.clone()
        fidelity.sample(pipeline, self.prompts[:1], self.few, tmp_path / "a.safetensors")
        assert dict(pipeline.scheduler.config) == before[0]
        assert torch.equal(pipeline.scheduler.timesteps, before[1])

    def test_a_diverged_model_is_reported(self, tmp_path):
        broken = tiny.random_pipeline("bert")
        broken.unet.conv_out.bias.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match="not finite"):
            fidelity.sample(broken, self.prompts, self.few, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match="no prompts"):
            fidelity.sample(broken, [], self.few, tmp_path / "a.safetensors")


class TestFid:
    def test_of_shifted_points_is_the_squared_shift(self, rng):
        real = rng.standard_normal((200, 4))
        assert fidelity.fid(real, real) == pytest.approx(0, abs=1e-9)
        assert fidelity.fid(real, real + np.array([1, 2, 0, 0])) == pytest.approx(5)

    def test_of_scaled_points_in_one_dimension(self, rng):
        # (μ₁ − μ₂)² + (σ₁ − σ₂)²
        real = rng.standard_normal((300, 1))
        mean, std = real.mean(), real.std(ddof=1)
        assert fidelity.fid(real, 3 * real) == pytest.approx((2 * mean) ** 2 + (2 * std) ** 2)

    def test_is_the_definition(self, rng):
        real, fake = rng.standard_normal((60, 8)), rng.standard_normal((50, 8)) @ rng.standard_normal((8, 8))
        a, b = np.cov(real.T), np.cov(fake.T)
        shift = real.mean(0) - fake.mean(0)
        expected = shift @ shift + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
        assert fidelity.fid(real, fake) == pytest.approx(expected, rel=1e-6)
        assert fidelity.fid(fake, real) == pytest.approx(expected, rel=1e-6)

    def test_is_torchmetrics_on_the_network_itself(self, trained):
        """torchmetrics with the network inside agrees with our features from outside: pixels are scaled once."""
        model = fidelity.load_classifier(trained)

        class Extractor(torch.nn.Module):
            num_features = model.num_features

            def forward(self, images):
                return model.features(images).double()

        real, fake = pictures(40, 2)[0], pictures(30, 3)[0]
        metric = FrechetInceptionDistance(feature=Extractor())
        with torch.inference_mode():
            metric.update(torch.from_numpy(real), real=True)
            metric.update(torch.from_numpy(fake), real=False)
        ours = fidelity.fid(fidelity.features(model, real), fidelity.features(model, fake))
        assert ours == pytest.approx(float(metric.compute()), rel=1e-6)

    def test_fewer_images_than_features(self, rng):
        assert math.isfinite(fidelity.fid(rng.standard_normal((20, 128)), rng.standard_normal((30, 128))))

    @pytest.mark.parametrize(("n", "m"), [(700, 640), (700, 60), (40, 60)])
    def test_features_alone_are_torchmetrics(self, n, m, rng):
        real, fake = rng.standard_normal((n, 96)), 1.3 * rng.standard_normal((m, 96)) + 0.1
        metric = metrics._distance(FrechetInceptionDistance, real, fake, normalize=True)
        assert fidelity.fid(real, fake) == pytest.approx(float(metric), rel=1e-6)
        assert fidelity.fid(real, real) == pytest.approx(0, abs=1e-9)

    def test_interval_is_about_the_estimate(self, rng):
        real, fake = rng.standard_normal((150, 6)), rng.standard_normal((150, 6)) + 0.4
        groups = np.repeat(np.arange(75), 2)
        interval = fidelity.fid_interval(real, fake, groups, n=60)
        assert interval.low < interval.estimate == fidelity.fid(real, fake) < interval.high
        assert interval == fidelity.fid_interval(real, fake, groups, n=60)
        with pytest.raises(ValueError, match="one group for each of 150 generated"):
            fidelity.fid_interval(real, fake, groups[:-1])
        with pytest.raises(ValueError, match="one group for each of 150 real"):
            fidelity.fid_interval(real, fake, groups, real_groups=groups[:-1])

    def test_copies_of_a_prompt_widen_the_interval(self, rng):
        real, fake = rng.standard_normal((400, 3)), rng.standard_normal((40, 3)) + 1
        copies, groups = np.repeat(fake, 8, axis=0), np.repeat(np.arange(40), 8)
        alone, together = fidelity.fid_interval(real, copies), fidelity.fid_interval(real, copies, groups)
        assert together.high - together.low > 1.5 * (alone.high - alone.low)
        # The same with the real images of a patient.
        alone, together = fidelity.fid_interval(copies, real), fidelity.fid_interval(copies, real, real_groups=groups)
        assert together.high - together.low > 1.5 * (alone.high - alone.low)

    def test_bad_features(self, rng):
        good = rng.standard_normal((5, 3))
        with pytest.raises(ValueError, match="n, m ≥ 2"):
            fidelity.fid(good, good[:1])
        with pytest.raises(ValueError, match="NaN"):
            fidelity.fid(good, np.full((5, 3), np.nan))


class TestKid:
    def test_is_the_definition(self, rng):
        """The unbiased MMD² of the polynomial kernel, averaged over all subsets of 3 of 6."""
        real, fake = rng.standard_normal((6, 2)), rng.standard_normal((6, 2)) + 1

        def kernel(a, b):
            return (a @ b.T / 2 + 1) ** 3

        xx, yy = kernel(real, real), kernel(fake, fake)
        expected = (xx.sum() - xx.trace()) / 30 + (yy.sum() - yy.trace()) / 30 - 2 * kernel(real, fake).mean()
        mean, std = fidelity.kid(real, fake, subsets=4000)
        assert mean == pytest.approx(expected, abs=4 * std / math.sqrt(4000))

    def test_is_sklearns_kernel_on_the_same_subsets(self, rng):
        """The same subsets as torchmetrics draws, with scikit-learn's kernel ``(x·y / d + 1)³``."""
        real, fake = rng.standard_normal((60, 16)), rng.standard_normal((50, 16)) + 0.2
        size, values = 25, []
        kernel = functools.partial(polynomial_kernel, degree=3, gamma=1 / 16, coef0=1)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for _ in range(20):
                x, y = (points[torch.randperm(len(points))[:size].numpy()] for points in (real, fake))
                within = [(kernel(z, z).sum() - kernel(z, z).trace()) / size / (size - 1) for z in (x, y)]
                values.append(sum(within) - 2 * kernel(x, y).mean())
        mean, std = fidelity.kid(real, fake, subsets=20, subset_size=size, seed=5)
        assert (mean, std) == (pytest.approx(np.mean(values), abs=1e-6), pytest.approx(np.std(values), abs=1e-6))

    def test_equal_distributions_are_at_zero(self, rng):
        mean, std = fidelity.kid(rng.standard_normal((400, 8)), rng.standard_normal((400, 8)))
        assert abs(mean) < 3 * std

    def test_repeatable_and_leaves_the_global_seed_alone(self, rng):
        real, fake = rng.standard_normal((50, 4)), rng.standard_normal((50, 4))
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        assert fidelity.kid(real, fake) == fidelity.kid(real, fake) != fidelity.kid(real, fake, seed=1)
        assert torch.rand(1) == expected


def clouds(seed: int, n: int = 40, m: int = 30, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), 1.3 * rng.standard_normal((m, d)) + 0.3


class TestNeighbours:
    # On a line, with k = 1. Real 0, 1, 3: radii 1, 1, 2. Generated 2, 10, 10.5: radii 8, 0.5, 0.5.
    real, fake = np.array([[0.0], [1], [3]]), np.array([[2.0], [10], [10.5]])

    def test_precision_and_recall_by_hand(self):
        """2 lies on the rim of the ball around 1, and in that around 3; all of the real ones in the ball around 2."""
        precision, recall = fidelity.precision_recall(self.real, self.fake, k=1)
        assert (precision.estimate, recall.estimate) == (pytest.approx(1 / 3), 1)
        precision, recall = fidelity.precision_recall(self.fake, self.real, k=1)
        assert (precision.estimate, recall.estimate) == (1, pytest.approx(1 / 3))

    def test_the_rim_belongs_to_precision_not_to_density(self):
        """2 and −1 are as far from 1 and 0 as these are from each other."""
        real, fake = np.array([[0.0], [1], [9]]), np.array([[2.0], [-1]])
        assert fidelity.precision_recall(real, fake, k=1)[0].estimate == 1
        assert fidelity.density_coverage(real, fake, k=1)[0].estimate == pytest.approx(1 / 2), "2 is inside 9's ball"

    def test_density_and_coverage_by_hand(self):
        """2 is inside the ball around 3 alone: a third of the generated images in one ball, a third of the balls."""
        density, coverage = fidelity.density_coverage(self.real, self.fake, k=1)
        assert (density.estimate, coverage.estimate) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
        # With k = 2 the radii are 3, 2, 3. Ten images in the middle lie in all three balls.
        density, coverage = fidelity.density_coverage(self.real, np.full((10, 1), 1.2), k=2)
        assert (density.estimate, coverage.estimate) == (3 / 2, 1)

    @given(st.integers(0, 1000), st.integers(1, 6))
    @settings(max_examples=30)
    def test_are_the_definitions(self, seed, k):
        """Every ball and every point, one after the other."""
        real, fake = clouds(seed, 17, 13)

        def radius(points, i):
            return sorted(np.linalg.norm(points - points[i], axis=1))[k]

        def near(a, b):
            return np.linalg.norm(a - b)

        inside = [[near(y, x) <= radius(real, i) for i, x in enumerate(real)] for y in fake]
        covered = [[near(x, y) <= radius(fake, j) for j, y in enumerate(fake)] for x in real]
        precision, recall = fidelity.precision_recall(real, fake, k)
        density, coverage = fidelity.density_coverage(real, fake, k)
        assert precision.estimate == pytest.approx(np.mean([any(row) for row in inside]))
        assert recall.estimate == pytest.approx(np.mean([any(row) for row in covered]))
        assert density.estimate == pytest.approx(np.sum(inside) / k / len(fake))
        assert coverage.estimate == pytest.approx(np.mean(np.any(inside, axis=0)))

    @given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
    @settings(max_examples=30)
    def test_shift_and_scale_leave_them(self, seed, scale, shift):
        real, fake = clouds(seed)
        before, after = (
            [i.estimate for i in (*fidelity.precision_recall(a, b, n=2), *fidelity.density_coverage(a, b, n=2))]
            for a, b in ((real, fake), (scale * real + shift, scale * fake + shift))
        )
        assert before == pytest.approx(after)

    def test_a_set_against_itself(self):
        """Ties everywhere, far from the origin: each point's k-th neighbour is on its rim."""
        real = clouds(0, d=40)[0] + 1000
        assert [i.estimate for i in fidelity.precision_recall(real, real)] == [1, 1]
        assert [i.estimate for i in fidelity.density_coverage(real, real)] == [1, 1]

    def test_many_images_go_through_in_parts(self, rng):
        """3000 × 3000 distances exceed one chunk."""
        real = rng.standard_normal((3000, 2)) * np.linspace(0.1, 1, 3000)[:, None]
        assert [i.estimate for i in fidelity.precision_recall(real, real, n=2)] == [1, 1]
        assert [i.estimate for i in fidelity.density_coverage(real, real, n=2)] == [1, 1]

    def test_collapse_lowers_recall_and_noise_precision(self, rng):
        real = rng.standard_normal((200, 5))
        collapsed, noisy = 0.1 * rng.standard_normal((200, 5)), 3 * rng.standard_normal((200, 5))
        precision, recall = fidelity.precision_recall(real, collapsed)
        assert precision.estimate > 0.95
        assert recall.high < 0.1
        precision, recall = fidelity.precision_recall(real, noisy)
        assert precision.high < 0.5
        assert recall.estimate > 0.9

    def test_images_of_a_prompt_are_resampled_together(self):
        real, fake = clouds(1, m=20)
        fake, prompts = np.repeat(fake, 6, axis=0), np.repeat(np.arange(20), 6)
        alone, together = (fidelity.precision_recall(real, fake, k=8, groups=g)[0] for g in (None, prompts))
        assert together.high - together.low > 1.5 * (alone.high - alone.low) > 0
        real, fake = clouds(1, n=20)
        real, patients = np.repeat(real, 6, axis=0), np.repeat(np.arange(20), 6)
        for call in (fidelity.precision_recall, fidelity.density_coverage):
            alone, together = (call(real, fake, k=8, real_groups=g)[1] for g in (None, patients))
            assert together.high - together.low > 1.5 * (alone.high - alone.low) > 0

    @pytest.mark.parametrize("k", [0, 3])
    def test_too_few_images(self, k):
        with pytest.raises(ValueError, match="neighbours need more than"):
            fidelity.precision_recall(self.real, self.fake, k=k)
        with pytest.raises(ValueError, match="neighbours need more than"):
            fidelity.density_coverage(self.real, self.fake, k=k)


class TestFidInfinity:
    def test_recovers_the_distance_that_few_images_hide(self):
        """Two normal clouds a distance 2 apart have FID∞ = 4; the FID of a few images is far above."""
        rng = np.random.default_rng(0)
        real, fake = rng.standard_normal((6000, 16)), rng.standard_normal((300, 16))
        fake[:, 0] += 2
        trend = fidelity.fid_infinity(real, fake, draws=3)
        assert trend.fids[-1] == pytest.approx(fidelity.fid(real, fake))
        assert trend.fids[-1] > 4.2
        assert trend.estimate == pytest.approx(4, abs=0.25)
        assert trend.slope > 0

    def test_is_the_line_through_the_subsets(self):
        real, fake = clouds(3, 60, 60, 4)
        trend = fidelity.fid_infinity(real, fake, points=5, smallest=20)
        assert trend.sizes.tolist() == [20, 30, 40, 50, 60]
        slope, estimate = np.polyfit(1 / trend.sizes, trend.fids, 1)
        assert (trend.slope, trend.estimate) == (pytest.approx(slope), pytest.approx(estimate))

    def test_sizes_are_the_papers_where_there_are_enough(self):
        def sizes(n, d):
            return fidelity.fid_infinity(np.eye(d + 2, d), np.random.default_rng(0).standard_normal((n, d))).sizes

        assert (sizes(200, 4).min(), len(sizes(200, 4))) == (20, 15)
        assert sizes(40, 4).min() == 8, "twice the number of features"
        assert sizes(10, 30).min() == 5, "but no more than half"

    def test_seeded(self):
        real, fake = clouds(3)
        first, again, other = (fidelity.fid_infinity(real, fake, seed=seed).estimate for seed in (0, 0, 1))
        assert first == again != other

    def test_needs_two_sizes(self):
        with pytest.raises(ValueError, match="two or more sizes"):
            fidelity.fid_infinity(np.eye(3), np.eye(3)[:2])
        with pytest.raises(ValueError, match="two or more sizes"):
            fidelity.fid_infinity(np.eye(9), np.eye(9), points=1)


class TestMemorisation:
    def test_by_hand(self):
        train, unseen = np.array([[0.0], [10], [20]]), np.array([[1.0], [12], [23], [24]])
        memory = fidelity.memorisation(train, np.array([[9.9], [0.5], [15.5], [30]]), unseen, quantile=0.5)
        assert memory.unseen.tolist() == [1, 2, 3, 4]
        assert memory.threshold == 2.5
        assert memory.nearest.tolist() == [1, 0, 2, 2]
        np.testing.assert_allclose(memory.distance, [0.1, 0.5, 4.5, 10])
        assert memory.closer.estimate == 0.5
        assert np.flatnonzero(memory.distance < memory.threshold).tolist() == [0, 1]
        assert memory.detected is None

    def test_planted_copies_are_found(self, trained):
        """A quarter of the images are training images with a little noise; new ones are no closer than chance."""
        model = fidelity.load_classifier(trained)
        images = {seed: pictures(n, seed)[0] for seed, n in ((0, 300), (1, 120), (2, 120))}
        train, unseen, honest = (fidelity.features(model, images[seed]) for seed in (0, 1, 2))
        planted = fidelity.features(model, fidelity.copies(images[0], noise=1))
        memory = fidelity.memorisation(train, np.concatenate([honest, planted[:30]]), unseen, planted=planted)
        assert memory.detected == 1
        assert memory.closer.low > 0.1
        assert (memory.distance < memory.threshold)[120:150].all()
        assert (memory.nearest[120:] == np.arange(30)).all()
        clean = fidelity.memorisation(train, honest, unseen)
        assert clean.closer.low <= 0.05 <= clean.closer.high

    def test_interval_holds_the_chance_of_honest_images(self):
        """In about 95 of 100 simulations; far fewer without the uncertainty of the threshold."""
        rng, hits = np.random.default_rng(0), 0
        for _ in range(60):
            train, fake, unseen = (rng.standard_normal((n, 3)) for n in (50, 200, 100))
            interval = fidelity.memorisation(train, fake, unseen, quantile=0.2, n=200).closer
            hits += interval.low <= 0.2 <= interval.high
        assert hits >= 53

    def test_copies_are_nearly_the_images(self, rng):
        images = rng.integers(20, 236, (5, 16, 16)).astype(np.uint8)
        made = fidelity.copies(images, n=3)
        assert made.shape == (3, 16, 16)
        assert (made.astype(int) - images[:3]).std() == pytest.approx(4, rel=0.1)
        np.testing.assert_array_equal(made, fidelity.copies(images, n=3))

    def test_bad_input(self):
        with pytest.raises(ValueError, match="quantile"):
            fidelity.memorisation(*[np.eye(3)] * 3, quantile=0)
        with pytest.raises(ValueError, match="one group for each of 3 unseen"):
            fidelity.memorisation(np.eye(3), np.eye(3), 2 * np.eye(3), unseen_groups=["a"])
        with pytest.raises(ValueError, match="unseen real images are training images"):
            fidelity.memorisation(*[np.eye(3)] * 3)
        with pytest.raises(ValueError, match="features must be"):
            fidelity.memorisation(np.eye(3), np.eye(4), np.eye(3))


class Means(torch.nn.Module):
    """A feature space of two: mean and spread of the grey values. Counts the images it has seen."""

    description = "mean and spread of the grey values"

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        values = images.float().flatten(1)
        return torch.stack([values.mean(1), values.std(1)], 1)


class Broken(torch.nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3)) / 0


class TestExtract:
    @pytest.fixture
    def folder(self, tmp_path):
        """Five images, one in a sub-folder and one of another shape; two files that are none."""
        root = tmp_path / "images"
        (root / "patient").mkdir(parents=True)
        images = pictures(5, size=32)[0]
        for name, image in zip(("a.png", "c.PNG", "d.jpg", "patient/z.png"), images, strict=False):
            Image.fromarray(image).save(root / name)
        Image.fromarray(np.repeat(images[4], 2, axis=1)).save(root / "wide.png")
        (root / "b.png").write_bytes((root / "a.png").read_bytes()[:300])
        (root / ".hidden.png").write_bytes(b"")
        (root / "notes.txt").write_text("none")
        return root

    def test_a_folder_in_order_without_what_cannot_be_read(self, folder):
        extracted = fidelity.extract(Means(), folder, 32)
        assert extracted.names == ("a.png", "c.PNG", "d.jpg", "patient/z.png", "wide.png")
        assert len(extracted.skipped) == 1
        assert "b.png: not a readable image" in extracted.skipped[0]
        first = pictures(5, size=32)[0][0]
        np.testing.assert_allclose(extracted.values[0], [first.mean(), first.std(ddof=1)], rtol=1e-5)
        wide = Frame(32, 64, 32).image(np.repeat(pictures(5, size=32)[0][4], 2, axis=1))
        np.testing.assert_allclose(extracted.values[4], [wide.mean(), wide.std(ddof=1)], rtol=1e-5)

    def test_features_are_those_in_memory(self, trained, tmp_path):
        model, images = fidelity.load_classifier(trained), pictures(7)[0]
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        extracted = fidelity.extract(model, tmp_path, 64)
        np.testing.assert_allclose(extracted.values, fidelity.features(model, images), atol=1e-5)

    def test_no_more_than_a_batch_is_held(self, tmp_path, monkeypatch):
        """Of a folder of 300 images, at most one batch and the current image are alive at a time."""
        alive, most = set(), 0
        for i in range(300):
            (tmp_path / f"{i:03d}.png").touch()

        def read(path):
            nonlocal most
            i = int(path.stem)
            image = np.full((16, 16), i % 256, np.uint8)
            alive.add(i)
            weakref.finalize(image, alive.discard, i)
            most = max(most, len(alive))
            return image

        monkeypatch.setattr(spaces, "read_image", read)
        monkeypatch.setattr(spaces.Frame, "image", lambda frame, pixels: pixels)
        extracted = fidelity.extract(Means(), tmp_path, 16)
        np.testing.assert_allclose(extracted.values[:, 0], np.arange(300) % 256)
        assert most <= 66

    def test_cached_by_content_space_and_framing(self, folder, tmp_path):
        space, cache = Means(), tmp_path / "cache"
        first = fidelity.extract(space, folder, size=32, cache=cache)
        again = fidelity.extract(space, folder, size=32, cache=cache)
        assert space.seen == 5
        np.testing.assert_array_equal(again.values, first.values)
        assert (again.names, again.skipped) == (first.names, first.skipped)
        assert len(list(cache.iterdir())) == 1
        # Another size, other weights, another image, another name: each is computed.
        fidelity.extract(space, folder, size=16, cache=cache)
        assert space.seen == 10
        space.register_buffer("other", torch.ones(1))
        fidelity.extract(space, folder, size=32, cache=cache)
        assert space.seen == 15
        Image.fromarray(pictures(9, size=32)[0][8]).save(folder / "a.png")
        changed = fidelity.extract(space, folder, size=32, cache=cache)
        assert space.seen == 20
        assert (changed.values[0] != first.values[0]).any()
        (folder / "a.png").rename(folder / "a2.png")
        renamed = fidelity.extract(space, folder, size=32, cache=cache)
        assert renamed.names[0] == "a2.png"
        assert space.seen == 25
        # A damaged file is made again.
        for file in cache.iterdir():
            file.write_bytes(file.read_bytes()[:-8])
        again = fidelity.extract(space, folder, size=32, cache=cache)
        assert space.seen == 30
        np.testing.assert_array_equal(again.values, renamed.values)

    def test_progress_knows_the_total(self, folder):
        seen = []
        fidelity.extract(Means(), folder, size=32, progress=lambda items: seen.append(len(items)) or items)
        assert seen == [6]

    def test_any_module_has_a_name(self):
        one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        assert fidelity.describe(one).startswith("Linear (weights sha256 ")
        assert fidelity.describe(one) == fidelity.describe(one) != fidelity.describe(other)

    def test_errors_that_concern_all_images_are_raised(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="not a folder"):
            fidelity.extract(Means(), tmp_path / "nothing", 32)
        with pytest.raises(ValueError, match="holds no image"):
            fidelity.extract(Means(), tmp_path, 32)
        (tmp_path / "a.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match="none of 1 images could be read"):
            fidelity.extract(Means(), tmp_path, 32)
        Image.fromarray(255 * np.eye(4, dtype=np.uint8)).save(tmp_path / "b.png")  # a blank one would be left out
        with pytest.raises(ValueError, match="NaN or infinite"):
            fidelity.extract(Broken(), tmp_path, 32)


class TestMsSsim:
    def test_copies_are_alike_and_noise_is_not(self, rng):
        noise = rng.integers(0, 256, (4, 64, 64)).astype(np.uint8)
        assert fidelity.ms_ssim(np.repeat(noise[:1], 3, axis=0)) == pytest.approx(1, abs=1e-5)
        assert fidelity.ms_ssim(noise) < 0.2

    def test_is_torchmetrics_mean_over_pairs(self, rng):
        images = (pictures(5)[0] // 2 + pictures(1, 9)[0] // 2).astype(np.uint8)
        values = []
        for i, j in itertools.combinations(range(5), 2):
            metric = MultiScaleStructuralSimilarityIndexMeasure(data_range=255.0, betas=metrics._scales(64))
            values.append(float(metric(*(torch.from_numpy(images[k])[None, None].float() for k in (i, j)))))
        assert fidelity.ms_ssim(images) == pytest.approx(np.mean(values), abs=1e-6)

    def test_standard_scales_on_large_images(self):
        assert metrics._scales(176) == pytest.approx((0.0448, 0.2856, 0.3001, 0.2363, 0.1333), abs=1e-4)
        assert [len(metrics._scales(s)) for s in (11, 32, 64, 128, 256)] == [1, 2, 3, 4, 5]
        with pytest.raises(ValueError, match="at least 11 pixels"):
            metrics._scales(10)

    @pytest.mark.parametrize("size", [11, 22, 44, 99, 176])
    def test_torchmetrics_takes_the_scales_we_choose(self, size, rng):
        images = rng.integers(0, 256, (2, size, size)).astype(np.uint8)
        assert 0 <= fidelity.ms_ssim(images) <= 1

    def test_prompts_are_not_mixed_and_count_alike(self, rng):
        """Prompt a: three copies; b: two pictures; c: one picture, which has no pair."""
        noise = rng.integers(0, 256, (4, 64, 64)).astype(np.uint8)
        images, groups = noise[[0, 1, 0, 2, 0, 3]], ["a", "b", "a", "b", "a", "c"]
        by_group = fidelity.ms_ssim_by_group(images, groups)
        assert list(by_group) == ["a", "b"]
        assert by_group["a"] == pytest.approx(1, abs=1e-5)
        assert by_group["b"] == pytest.approx(fidelity.ms_ssim(noise[1:3]), abs=1e-6)
        assert fidelity.ms_ssim(images, groups) == pytest.approx((by_group["a"] + by_group["b"]) / 2)

    def test_needs_a_pair(self, rng):
        images = rng.integers(0, 256, (2, 64, 64)).astype(np.uint8)
        with pytest.raises(ValueError, match="at least two images of one prompt"):
            fidelity.ms_ssim(images, ["a", "b"])
        with pytest.raises(ValueError, match="one group for each"):
            fidelity.ms_ssim(images, ["a"])
        with pytest.raises(ValueError, match="uint8"):
            fidelity.ms_ssim(images / 255)

    @given(st.integers(2, 30), st.integers(1, 500))
    def test_pairs_are_distinct(self, n, most):
        pairs = metrics.random_pairs(n, most, np.random.default_rng(0))
        assert len({tuple(p) for p in pairs.tolist()}) == len(pairs) == min(most, n * (n - 1) // 2)
        assert (pairs[:, 0] < pairs[:, 1]).all()
        assert pairs.min() >= 0
        assert pairs.max() < n


class TestClassifierAuc:
    @given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
    @settings(max_examples=50)
    def test_auc_is_sklearns(self, rows):
        scores, positive = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
        if positive.all() or not positive.any():
            assert math.isnan(fidelity.macro_auc(scores[:, None], positive[:, None]))
        else:
            auc = fidelity.macro_auc(scores[:, None], positive[:, None])
            assert auc == pytest.approx(roc_auc_score(positive, scores))

    def test_macro_is_sklearns(self, rng):
        scores, labels = rng.random((50, 5)).round(1), rng.random((50, 5)) < 0.4
        assert fidelity.macro_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)

    def test_one_class_is_left_out_of_the_macro(self, rng):
        labels, probabilities = (rng.random((80, 8)) < 0.5).astype(float), rng.random((80, 8))
        labels[:, 0], labels[:, 1] = 0, 1
        result = fidelity.classifier_auc(probabilities, labels, n=50)
        assert list(result) == [*FINDINGS, "macro"]
        assert math.isnan(result[FINDINGS[0]].estimate)
        assert math.isnan(result[FINDINGS[1]].estimate)
        expected = np.mean([roc_auc_score(labels[:, i], probabilities[:, i]) for i in range(2, 8)])
        assert result["macro"].estimate == pytest.approx(expected)
        assert result["macro"].low < expected < result["macro"].high
        nothing = fidelity.classifier_auc(probabilities, np.zeros((80, 8)))
        assert math.isnan(nothing["macro"].estimate)

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"\(n, 8\)"):
            fidelity.classifier_auc(np.zeros((4, 8)), np.zeros((4, 7)))
        with pytest.raises(ValueError, match="NaN"):
            fidelity.classifier_auc(np.full((4, 8), np.nan), np.zeros((4, 8)))


class TestClassifier:
    def test_learns_and_records_it(self, trained):
        about = json.loads((trained / "classifier.json").read_text())
        assert about["source"] == "pictures"
        assert about["val_auc"]["macro"]["estimate"] > 0.9
        assert sorted(p.name for p in trained.iterdir()) == ["classifier.json", "model.safetensors"]

    def test_loaded_is_what_was_saved(self, trained):
        model, (images, labels) = fidelity.load_classifier(trained), pictures(200, seed=1)
        about = json.loads((trained / "classifier.json").read_text())
        probabilities = fidelity.predict(model, images)
        assert probabilities.shape == (200, 8)
        assert fidelity.classifier_auc(probabilities, labels, n=10)["macro"].estimate == pytest.approx(
            about["val_auc"]["macro"]["estimate"], abs=1e-6
        )
        assert "300 images of pictures" in model.description
        assert not model.training

    def test_same_seed_same_file(self, tmp_path):
        images, labels = pictures(40)
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            fidelity.train_classifier(images, labels, tmp_path / name, Training(epochs=1, seed=seed))
        a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
        assert a == b != c

    def test_features_do_not_depend_on_the_batch(self, trained):
        model, images = fidelity.load_classifier(trained), pictures(9)[0]
        whole = fidelity.features(model, images)
        assert whole.shape == (9, model.num_features)
        assert whole.dtype == np.float32
        np.testing.assert_allclose(fidelity.features(model, images, batch=2), whole, atol=1e-5)

    def test_pixels_are_scaled_in_one_place(self):
        model = FindingsClassifier()
        images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None].expand(2, 64, 64)
        assert model.scaled(images).aminmax() == (-127.5 / 64, 127.5 / 64)
        with pytest.raises(ValueError, match="the network scales them itself"):
            model(images / 255)
        with pytest.raises(ValueError, match="uint8"):
            fidelity.features(model, images.numpy() / 255)

    def test_other_sizes_are_resized(self, trained):
        model = fidelity.load_classifier(trained)
        images, labels = pictures(200, seed=1, size=128)
        assert fidelity.classifier_auc(fidelity.predict(model, images), labels, n=10)["macro"].estimate > 0.8

    def test_size(self):
        assert 1e5 < sum(p.numel() for p in FindingsClassifier().parameters()) < 5e5

    def test_missing_damaged_or_other(self, trained, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"tools/make_classifier\.py"):
            fidelity.load_classifier(tmp_path / "nothing")
        for path in trained.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        with pytest.raises(ValueError, match="trained on 'pictures', not on 'phantom'"):
            fidelity.feature_space("phantom", tmp_path)
        assert fidelity.feature_space("pictures", tmp_path).size == 64
        with open(tmp_path / "model.safetensors", "ab") as file:
            file.write(b"x")
        with pytest.raises(ValueError, match="sha256 differs"):
            fidelity.load_classifier(tmp_path)
        (tmp_path / "classifier.json").write_text('{"size": 64}')
        with pytest.raises(ValueError, match="'sha256' is missing"):
            fidelity.load_classifier(tmp_path)

    def test_labels_that_do_not_fit(self, tmp_path):
        with pytest.raises(ValueError, match="need labels"):
            fidelity.train_classifier(pictures(4)[0], np.zeros((4, 3)), tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestFeatureSpaces:
    """The two with published weights. Their packages are optional; if installed, the networks are tested."""

    shades = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 64, 64)

    def test_inception_gets_three_equal_bytes(self):
        def network(x):
            assert x.dtype == torch.uint8
            assert x.shape == (3, 3, 64, 64)
            return (x.float().mean(dim=(2, 3)),)

        got = fidelity.InceptionSpace(network)(self.shades)
        assert got.tolist() == [[0] * 3, [128] * 3, [255] * 3]

    def test_the_twice_scaled_one_sees_a_range_from_minus_3_to_1(self):
        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.AvgPool, self.fc = (
                    torch.nn.Identity(),
                    torch.nn.AdaptiveAvgPool2d(1),
                    torch.nn.Linear(2, 2),
                )

        got = fidelity.TwiceScaledSpace(Network())(self.shades)
        assert got.shape == (3, 3)
        np.testing.assert_allclose(got[:, 0], [-3, 2 * (128 / 127.5 - 1) - 1, 1], atol=1e-6)

    def test_of_a_profile(self, tmp_path):
        assert fidelity.feature_spaces(SamplingSettings(images=2)) == {}
        place = {"inception": str(tmp_path / "mine.pth")}
        for spaces_ in (("inception",), ("findings", "inception-cd")):
            asked = SamplingSettings(images=2, spaces=spaces_, weights=place)
            with pytest.raises(FileNotFoundError, match=r"mine\.pth is missing.*weights: \{inception: "):
                fidelity.feature_spaces(asked)
        (tmp_path / "mine.pth").write_bytes(b"weights")
        if importlib.util.find_spec("torch_fidelity"):
            with pytest.raises(ValueError, match="damaged"):
                fidelity.feature_spaces(asked)

    def test_xrv_gets_its_own_range_and_size(self):
        shapes = []

        class Trunk(torch.nn.Module):
            def forward(self, x):
                shapes.append(x.shape)
                return torch.cat([x, -x], 1)

        got = fidelity.XrvSpace(Trunk())(self.shades)
        assert shapes == [(3, 1, 224, 224)]
        # Black is −1024, white 1024; negative features are cut off before the mean.
        grey = (2 * 128 / 255 - 1) * 1024
        np.testing.assert_allclose(got, [[0, 1024], [grey, 0], [1024, 0]], rtol=1e-4)
        half = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(112).expand(1, 1, 224, 224)
        np.testing.assert_allclose(fidelity.XrvSpace(Trunk())(half), [[512, 512]], rtol=1e-4)

    @pytest.mark.parametrize("space", [fidelity.InceptionSpace, fidelity.XrvSpace])
    def test_scaled_once_and_described(self, space):
        with pytest.raises(ValueError, match="the network scales them itself"):
            space(torch.nn.Identity())(self.shades / 255)
        assert "px (grey" in space.description
        assert f"{space.num_features} features at {space.size} px" in space.description

    @pytest.mark.parametrize(
        ("name", "package", "file", "remedy"),
        [
            ("inception", "torch_fidelity", spaces._INCEPTION, "download https://"),
            ("xrv", "torchxrayvision", f"{spaces._XRV}.safetensors", "python -c"),
        ],
    )
    def test_the_error_says_how_to_get_what_is_missing(self, name, package, file, remedy, tmp_path, monkeypatch):
        pip = "pip install " + package.replace("_", "-")
        with pytest.raises(FileNotFoundError, match=rf"(?s){file} is missing.*{pip}.*{remedy}"):
            fidelity.feature_space(name, tmp_path)
        (tmp_path / file).write_bytes(b"weights")
        # To an import this looks like an absent package, whether it is installed or not.
        for module in (package, "torch_fidelity.feature_extractor_inceptionv3"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(FileNotFoundError, match=rf"(?s){package}.*{pip}.*{remedy}"):
            fidelity.feature_space(name, tmp_path)

    def test_the_advice_is_a_program(self, tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            fidelity.feature_space("xrv", tmp_path / "it's here")
        code = str(error.value).partition('python -c "')[2].removesuffix('"')
        compile(code, "advice", "exec")
        assert "save_file" in code

    def test_inception_is_not_unpickled(self, tmp_path):
        pytest.importorskip("torch_fidelity")
        (tmp_path / spaces._INCEPTION).write_bytes(b"weights")
        with pytest.raises(ValueError, match="damaged"):
            fidelity.feature_space("inception", tmp_path)

    def test_xrv_is_its_packages_features(self, tmp_path):
        xrv = pytest.importorskip("torchxrayvision")
        theirs = xrv.models.DenseNet(weights=None).eval()
        runs.save_tensors(tmp_path / f"{spaces._XRV}.safetensors", theirs.state_dict())
        images = pictures(2, size=224)[0]
        ours = fidelity.features(fidelity.feature_space("xrv", tmp_path), images)
        with torch.inference_mode():
            wanted = theirs.features2(
                torch.from_numpy(np.stack([xrv.utils.normalize(x, 255) for x in images]))[:, None]
            )
        np.testing.assert_allclose(ours, wanted, rtol=1e-4)


class TestTransfer:
    def test_textures_are_taught(self, tmp_path, monkeypatch):
        (images, labels), (real, real_labels) = pictures(300), pictures(150, 1)
        labels[:, 0] = 0
        arguments = (images, labels), (real, real_labels), tmp_path / "t", Training("phantom", epochs=4)
        # A classifier of phantoms ships; it must not be used here.
        taught = fidelity.transfer_auc(*arguments, n=50)
        assert taught["macro"].estimate > 0.8
        assert math.isnan(taught[FINDINGS[0]].estimate), "never shown"
        monkeypatch.setattr(classifier, "train_classifier", None)
        again = fidelity.transfer_auc(*arguments, n=50)
        assert again["macro"] == taught["macro"], "read, not trained again"
        assert "300 images of phantom" in fidelity.load_classifier(tmp_path / "t").description
        assert runs.read_json(tmp_path / "t" / "classifier.json")["batch"] == 300 // 8, "few images, more steps"

    def test_wrong_labels_teach_nothing(self, tmp_path):
        images, labels = pictures(300)
        shuffled = np.random.default_rng(0).permutation(labels)
        auc = fidelity.transfer_auc((images, shuffled), pictures(150, 1), tmp_path / "t", Training(epochs=4), n=50)
        assert abs(auc["macro"].estimate - 0.5) < 0.1


class TestSharedClassifier:
    @staticmethod
    def load(loads):
        def load(split):
            loads.append(split)
            return pictures(40, seed=len(split), size=32)

        return load

    def test_two_notebooks_train_it_once(self, tmp_path):
        """Each has its own lock object on the same file, as two processes do."""
        loads, classifiers, both = [], [], threading.Barrier(2)

        def notebook():
            both.wait()
            classifiers.append(
                fidelity.cached_classifier(tmp_path / "classifier", self.load(loads), Training("pictures", epochs=1))
            )

        threads = [threading.Thread(target=notebook) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert loads == ["train", "val"]
        assert classifiers[0].description == classifiers[1].description
        assert "40 images of pictures" in classifiers[0].description

    def test_the_shipped_one_where_it_was_trained_on_the_source(self, tmp_path):
        model = fidelity.profile_classifier(profiles.load("smoke"), out=tmp_path)
        assert model.description == fidelity.load_classifier(SHIPPED).description
        assert not list(tmp_path.iterdir())

    def test_other_data_or_a_damaged_file_train_again(self, tmp_path):
        loads = []

        def shared(data):
            return fidelity.cached_classifier(tmp_path / "own", self.load(loads), Training("pictures", data, epochs=1))

        first = shared("a").description
        assert shared("a").description == first
        assert len(loads) == 2
        shared("b")
        assert len(loads) == 4
        with open(tmp_path / "own" / "model.safetensors", "ab") as file:
            file.write(b"x")
        shared("b")
        (tmp_path / "own" / "classifier.json").write_text("{")
        shared("b")
        assert len(loads) == 8
        about = runs.read_json(tmp_path / "own" / "classifier.json")
        runs.write_json(tmp_path / "own" / "classifier.json", about | {"code": "of an earlier version"})
        shared("b")
        assert len(loads) == 10


class TestEvaluate:
    groups = np.repeat(np.arange(12), 4)

    def test_numbers(self, trained):
        model = fidelity.load_classifier(trained)
        (real, real_labels), (fake, labels) = pictures(60, 5), pictures(48, 6)
        result = fidelity.evaluate(real, fake, labels, self.groups, model, resamples=20)
        result |= fidelity.reference(real, real_labels, model, others=pictures(48, 7)[0], resamples=20)
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        near = ("fid", "precision", "recall", "density", "coverage")
        for name in (*near, "ms_ssim", "classifier_auc", *(f"{n}_real" for n in (*near, "ms_ssim", "classifier_auc"))):
            assert result[f"{name}_low"] <= result[name] <= result[f"{name}_high"], name
        assert {"kid", "kid_std", "kid_real", "kid_real_std"} <= result.keys()
        for name in ("classifier_auc_by_finding", "classifier_auc_real_by_finding"):
            assert set(result[name]) == set(FINDINGS)
        assert result["classifier_auc"] > 0.8
        assert (result["images_real"], result["images_fake"]) == (60, 48)
        printed = tradeoff.summary(pd.DataFrame([{"variant": "frozen", "seed": 0, "step": 1} | result]))
        for name in (*near, "kid", "ms_ssim", "classifier_auc"):
            row = printed.loc[tradeoff.NAMES[name]]
            assert float(row["frozen"].split()[0]) == pytest.approx(result[name], abs=0.06)
            assert row["held-out images"] != "–"

    def test_further_spaces_have_their_own_columns(self, trained):
        model = fidelity.load_classifier(trained)
        (real, real_labels), (fake, labels) = pictures(20, 5), pictures(16, 6)
        other = FindingsClassifier(32).eval()
        options = {"resamples": 4, "spaces": {"inception-cd": other}}
        result = fidelity.evaluate(real, fake, labels, np.arange(16) // 4, model, **options)
        result |= fidelity.reference(real, real_labels, model, others=fake, **options)
        for name in ("fid", "precision", "recall", "density", "coverage"):
            assert result[f"{name}_inception_cd_low"] <= result[f"{name}_inception_cd"], name
        assert result["fid_inception_cd"] == fidelity.fid(*(fidelity.features(other, x) for x in (real, fake)))
        assert {"kid_inception_cd", "kid_inception_cd_std", "fid_inception_cd_real"} <= result.keys()
        printed = tradeoff.summary(pd.DataFrame([{"variant": "frozen", "seed": 0, "step": 1} | result]))
        assert {"FID (Inception, scaled twice) ↓", "KID (Inception, scaled twice) ↓"} <= set(printed.index)

    def test_top_1_counts_images_asked_for_one_finding(self):
        probabilities, labels = np.eye(8)[[0, 1, 2, 3]], np.eye(8)[[0, 1, 0, 3]]
        assert fidelity.top1(probabilities, labels).estimate == 3 / 4
        labels[3, 0] = 1
        assert fidelity.top1(probabilities, labels).estimate == pytest.approx(2 / 3)
        assert math.isnan(fidelity.top1(probabilities, np.zeros((4, 8))).estimate)

    def test_what_is_denied_is_told_from_what_is_not_named(self):
        prompts = ["No effusion.", "Cardiomegaly. No pneumothorax.", "Effusion.", "Left pneumothorax, no effusion."]
        said = fidelity.stated([*prompts, "Effusion. No left effusion."])
        effusion, thorax, heart = (FINDINGS.index(n) for n in ("Pleural Effusion", "Pneumothorax", "Cardiomegaly"))
        assert said[:, effusion].tolist() == [-1, 0, 1, -1, 1]
        assert said[:, [thorax, heart]].tolist() == [[0, 0], [-1, 1], [0, 0], [1, 0], [0, 0]]
        drawn = np.full((4, 8), 0.25)
        assert fidelity.denied_excess(drawn, prompts).estimate == 0
        drawn[said[:4] < 0] = 0.75  # as if "no" were not there
        drawn[said[:4] > 0] = 1.0  # what is asked for does not count
        assert fidelity.denied_excess(drawn, prompts).estimate == 0.5
        drawn[:, effusion] = [0.75, 0.5, 1.0, 0.25]  # 0.25 more, and 0.25 less, than the one that is not named
        assert fidelity.denied_excess(drawn, prompts).estimate == pytest.approx((0.25 - 0.25 + 0.5) / 3)
        for without in ("Effusion.", "No effusion."):  # none denied; nothing to compare it with
            assert math.isnan(fidelity.denied_excess(drawn, [without] * 4).estimate)

    def test_by_finding(self, rng):
        real, fake = rng.standard_normal((30, 4)), rng.standard_normal((20, 4))
        shown, wanted = np.zeros((30, 8)), np.zeros((20, 8))
        shown[:12, 0], wanted[:8, 0], shown[:, 1], wanted[:5, 1] = 1, 1, 1, 1
        result = fidelity.by_finding(real, fake, shown, wanted)
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert list(result) == list(FINDINGS)
        assert result[FINDINGS[0]]["fid"] == fidelity.fid(real[:12], fake[:8])
        assert result[FINDINGS[0]]["kid"] == fidelity.kid(real[:12], fake[:8])[0]
        assert result[FINDINGS[1]]["fid"] is None
        assert (result[FINDINGS[1]]["images_real"], result[FINDINGS[1]]["images_fake"]) == (30, 5)

    @pytest.mark.parametrize("n", [1, 2, 3, 5])
    def test_what_is_too_little_for_one_score_leaves_that_one_out(self, n, trained):
        """Few images, one patient, one class: a line and a missing score."""
        model, (images, labels) = fidelity.load_classifier(trained), pictures(n)
        labels[:] = labels[:1]
        options = {"patients": ["p"] * n, "resamples": 2}
        with pytest.warns(fidelity.TooFewWarning, match="left out: "):
            result = fidelity.evaluate(images, images, labels, ["a"] * n, model, **options)
        result |= fidelity.reference(images, labels, model, others=images, **options)
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert (result["fid"] is None) == (n < 2)
        assert (result["precision"] is None) == (n < 4)
        assert result["density"] is result["classifier_auc"] is None
        tradeoff.summary(pd.DataFrame([{"variant": "frozen", "seed": 0, "step": 1} | result]))

    def test_equal_prompts_are_one_group(self, trained):
        """Two studies with one text: eight images of one prompt, not two prompts of four."""
        model, (images, labels) = fidelity.load_classifier(trained), pictures(48, 6)
        prompts = [f"text {max(i // 4, 1)}" for i in range(48)]
        result = fidelity.evaluate(images, images, labels, prompts, model, resamples=2)
        assert result["ms_ssim"] == pytest.approx(fidelity.ms_ssim(images, np.maximum(self.groups, 1)))
        assert len(fidelity.ms_ssim_by_group(images, prompts)) == 11

    def test_real_pairs_have_the_same_findings(self, trained):
        model, (images, labels) = fidelity.load_classifier(trained), pictures(6)
        labels = np.zeros_like(labels)
        labels[:, 0] = [0, 0, 1, 1, 1, 1]
        result = fidelity.reference(images, labels, model)
        assert result["ms_ssim_real"] == pytest.approx(fidelity.ms_ssim(images, labels[:, 0].tolist()))
        assert "fid_real" not in result
        # No two alike: any two.
        labels = np.eye(8)[:6]
        result = fidelity.reference(images, labels, model)
        assert result["ms_ssim_real"] == pytest.approx(fidelity.ms_ssim(images))
        assert result["ms_ssim_real_low"] is None, "one group has no interval"

    def test_patients_are_resampled_together(self, trained):
        """With four copies of each patient's image, an interval over images would be too narrow."""
        model, (images, labels) = fidelity.load_classifier(trained), pictures(24, 8)
        images, labels, patients = (np.repeat(x, 4, axis=0) for x in (images, labels, np.arange(24)))
        few, many = (fidelity.reference(images, labels, model, patients=p) for p in (patients, None))
        few, many = (r["classifier_auc_real_high"] - r["classifier_auc_real_low"] for r in (few, many))
        assert few > 1.5 * many

    def test_worse_images_score_worse(self, trained, rng):
        model = fidelity.load_classifier(trained)
        (real, _), (good, labels) = pictures(60, 5), pictures(40, 6)
        bad = (good * 0.2 + rng.integers(0, 204, good.shape)).astype(np.uint8)
        groups = np.repeat(np.arange(10), 4)
        one, two = (fidelity.evaluate(real, x, labels, groups, model, resamples=2) for x in (good, bad))
        assert one["fid"] < two["fid"]
        assert one["kid"] < two["kid"]
        assert one["classifier_auc"] > two["classifier_auc"]


def test_the_tool_trains_on_a_source(tmp_path, monkeypatch, capsys):
    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "make_classifier.py"))

    def load(name, root=None, split="test", *, n, size):
        images, labels = pictures(n, seed=len(split), size=size)
        return [
            Study(
                f"{split}{i}", f"{split}{i}", name, split, "", (size, size), array=image,
                findings=tuple(Finding(FINDINGS[k]) for k in np.flatnonzero(row)),
            )
            for i, (image, row) in enumerate(zip(images, labels, strict=True))
        ]  # fmt: skip

    monkeypatch.setattr(sources, "load", load)
    small = ["--images", "40", "--val", "30", "--epochs", "1", "--size", "32"]
    tool["main"](["--out", str(tmp_path / "c"), *small])
    assert "macro" in capsys.readouterr().out
    assert fidelity.feature_space("phantom", tmp_path / "c").size == 32
    with pytest.raises(SystemExit):
        tool["main"](["--source", "openi"])
    assert "--out is needed" in capsys.readouterr().err


class TestCommandLine:
    @pytest.fixture
    def folders(self, tmp_path):
        """40 real images of 20 patients; 24 generated, two a prompt, 8 of them copies of training images."""
        real, fake, train = (pictures(n, seed)[0] for n, seed in ((40, 5), (24, 6), (40, 7)))
        fake[:8] = train[:8]
        for folder, images in (("real", real), ("fake", fake), ("train", train)):
            for i, image in enumerate(images):
                path = tmp_path / folder / f"{i // 2:02d}" / f"{i % 2}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
        (tmp_path / "fake" / "bad.png").write_bytes(b"no image")
        return tmp_path

    def test_scores_two_folders(self, folders, trained, capsys):
        arguments = ["--real", str(folders / "real"), "--generated", str(folders / "fake"), "--features", str(trained)]
        more = ["--training", str(folders / "train"), "--cache", str(folders / "cache"), "--resamples", "4"]
        assert main(arguments + more) == 0
        out = capsys.readouterr().out
        assert "bad.png: not a readable image" in out
        assert "24 images" in out
        assert "1 left out" in out
        assert len(list((folders / "cache").iterdir())) == 3
        model = fidelity.load_classifier(trained)
        real, fake = (fidelity.extract(model, folders / name, 64).values for name in ("real", "fake"))
        assert f"feature space: {model.description}" in out
        assert f"{fidelity.fid(real, fake):.3f} [" in out
        assert f"{fidelity.kid(real, fake)[0]:.4f} ± " in out
        rows = {line.split("  ")[0].strip(): line for line in out.splitlines()}
        recall = fidelity.precision_recall(real, fake)[1].estimate
        assert f" {recall:.3f} [" in rows["recall ↑"]
        images = np.stack([np.asarray(Image.open(path)) for path in sorted((folders / "fake").glob("*/*.png"))])
        within = fidelity.ms_ssim(images, np.repeat(np.arange(12), 2).tolist())
        assert f" {within:.3f} [" in rows["MS-SSIM of two generated, one group"]
        assert "MS-SSIM of two real" in rows
        train = fidelity.extract(model, folders / "train", 64).values
        memory = fidelity.memorisation(train, fake, real, groups=np.arange(24) // 2, unseen_groups=np.arange(40) // 2)
        assert f"{memory.closer:.1%}" in rows["closer to a training image than 95 % of the real"]
        assert memory.closer.estimate >= 8 / 24

    def test_without_an_interval_and_flat(self, folders, trained, capsys):
        flat = folders / "flat"
        flat.mkdir()
        for i, image in enumerate(pictures(12, 3)[0]):
            Image.fromarray(image).save(flat / f"{i}.png")
        assert main(["--real", str(folders / "real"), "--generated", str(flat), "--features", str(trained),
                              "--resamples", "0"]) == 0  # fmt: skip
        rows = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
        assert "[" not in rows["FID ↓"]
        assert "[" in rows["precision ↑"]
        assert "MS-SSIM of two generated, one group" not in rows

    def test_scores_a_run(self, folders, trained, capsys):
        """Its images against a folder, or against the held-out images of its own profile."""
        profile = profiles.load("smoke")
        run, images = profiles.run(profile, "frozen", 0, folders / "runs"), pictures(16, 6)[0]
        about = json.dumps([f"text {i // 4}" for i in range(16)])
        runs.save_tensors(run.samples_file(4), {"images": torch.from_numpy(images)}, {"prompts": about})
        run.checkpoint(4).mkdir(parents=True)
        runs.write_json(run.record_file, profiles.about(profile, "frozen"))
        arguments = ["--generated", str(run.folder), "--resamples", "0"]
        assert main([*arguments, "--features", str(trained), "--real", str(folders / "real")]) == 0
        out, model = capsys.readouterr().out, fidelity.load_classifier(trained)
        real = fidelity.extract(model, folders / "real", 64).values
        assert f"{fidelity.fid(real, fidelity.features(model, images)):.3f}" in out
        assert "seed-0, step 4" in out
        assert f" {fidelity.ms_ssim(images, json.loads(about)):.3f} [" in out
        assert main([*arguments, "--out", str(folders / "runs")]) == 0
        out = capsys.readouterr().out
        assert "32 images of the test split of phantom" in out
        assert "of phantom (seed" in out, "the shipped classifier"
        with pytest.raises(FileNotFoundError, match=r"step-9\.safetensors is missing: run chapter 6"):
            main([*arguments, "--step", "9"])

    def test_both_folders_are_needed(self, capsys):
        with pytest.raises(SystemExit):
            main(["--real", "a"])
        assert "--generated" in capsys.readouterr().err
        with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
            main(["--real", "nowhere", "--generated", "nowhere"])


class TestPaired:
    """Two models' images of the same prompts and noise: only what they do not share may widen the interval."""

    @pytest.fixture(scope="class")
    @classmethod
    def clouds(cls):
        rng = np.random.default_rng(0)
        return rng.normal(size=(120, 2)), rng.normal(size=(60, 2)), [i // 3 for i in range(60)]

    def test_a_shift_changes_the_fid_as_worked_out_by_hand(self, clouds):
        (real, fake, prompts), shift = clouds, np.array([0.5, 0])
        found = fidelity.fid_difference(real, fake + shift, fake, prompts, n=100)
        # Covariances are equal, so only |shift|² − 2 shift · (μ_real − μ_fake) is left.
        assert found.estimate == pytest.approx(0.25 - (real[:, 0].mean() - fake[:, 0].mean()))
        alone = fidelity.fid_difference(
            real, fake + shift, fake, ["a"] * len(fake), real_groups=["b"] * len(real), n=20
        )
        assert (np.isnan(alone.low), np.isnan(alone.high), alone.p) == (True, True, 1.0)
        one = fidelity.fid_interval(real, fake, ["a"] * len(fake), n=20, real_groups=["b"] * len(real))
        assert np.isnan([one.low, one.high]).all()
        back = fidelity.fid_difference(real, fake, fake + shift, prompts, n=100)
        assert (back.estimate, back.low, back.high) == pytest.approx((-found.estimate, -found.high, -found.low))
        same = fidelity.fid_difference(real, fake, fake, prompts, n=20)
        assert (same.estimate, same.low, same.high, same.p) == (0, 0, 0, 1)

    def test_a_small_change_is_seen_where_two_intervals_overlap(self, clouds):
        real, fake, prompts = clouds
        own, base = (fidelity.fid_interval(real, x, prompts) for x in (1.15 * fake + 0.6, 1.1 * fake + 0.55))
        assert own.low < base.high
        assert fidelity.fid_difference(real, 1.15 * fake + 0.6, 1.1 * fake + 0.55, prompts).low > 0

    def test_auc_by_hand(self):
        labels = np.zeros((8, 8))
        labels[::2, 0] = 1
        perfect, blind = labels + 0.0, np.full((8, 8), 0.5)
        found = fidelity.auc_difference(perfect, blind, labels, list("aabbccdd"), n=50)
        assert (found.estimate, found.low, found.high) == (0.5, 0.5, 0.5)
        assert fidelity.auc_difference(blind, 1 - perfect, labels).estimate == 0.5
        # Of the 16 pairs of an image with it and one without, three are in the wrong order and one is a tie.
        worse = perfect.copy()
        worse[0, 0] = worse[1, 0] = -1
        assert fidelity.auc_difference(worse, perfect, labels).estimate == pytest.approx(-3.5 / 16)

    def test_what_prompts_have_in_common_does_not_hide_a_difference(self):
        rng = np.random.default_rng(0)
        labels = np.zeros((60, 8))
        labels[:30, 0] = 1
        hard = labels + rng.normal(0, 1, (60, 8))
        better = hard + 0.3 * labels
        both = [fidelity.classifier_auc(x, labels)["macro"] for x in (better, hard)]
        assert both[0].low < both[1].high
        found = fidelity.auc_difference(better, hard, labels)
        assert found.estimate == pytest.approx(both[0].estimate - both[1].estimate)
        assert found.low > 0

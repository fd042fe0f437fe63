"""The trade-off table from run folders written here: known means, pairing by phrase, and errors that name the file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from chestxai import localization, profiles, tradeoff
from chestxai.runs import InputError
from chestxai.stats import format_table, holm, minimal_detectable_difference, seeds_ci

# Known answers need few patients.
pytestmark = pytest.mark.filterwarnings("ignore::chestxai.stats.FewGroupsWarning")


def write_run(
    root: Path, variant: str, seed: int, gain: float = 0.0, steps: tuple[int, ...] = (100, 200), patients: int = 12
) -> Path:
    """A finished run whose scores are a phrase's own difficulty, plus the step's and the variant's share."""
    run = root / "demo" / variant / f"seed-{seed}"
    run.mkdir(parents=True)
    rng = np.random.default_rng(100 + seed)
    hard = np.random.default_rng(0).uniform(0.4, 0.7, 2 * patients)
    rows = [
        {
            "step": step,
            "study": f"s{i}",
            "patient": f"p{i // 2:02d}",
            "finding": ("Edema", "Cardiomegaly")[i % 2],
            "phrase": ("NA", "enlarged heart, mild")[i % 2],
            "target": 0.1,
            "auc_roc": hard[i] + step / 2000 + gain + 0.01 * rng.standard_normal(),
            "centre_distance": 0.3 - gain / 2,
            "prior_auc_roc": 0.7,
            "chance_auc_roc": 0.5,
        }
        for step in steps
        for i in range(2 * patients)
    ]
    pd.DataFrame(rows).to_csv(run / "grounding.csv", index=False)
    numbers = {
        str(step): {
            "fid": 30 - step / 20 - 10 * gain,
            "fid_low": 1.0,
            "fid_high": 40.0,
            "kid": 0.012,
            "kid_std": 0.003,
            "ms_ssim": 0.4,
            "ms_ssim_real": 0.35,
            "classifier_auc": None,
            "classifier_auc_by_finding": {"Edema": {"estimate": 0.5}},
        }
        for step in steps
    }
    (run / "fidelity.json").write_text(json.dumps({"steps": numbers, "feature_space": "test", "images": 8}))
    (run / "run.json").write_text(json.dumps({"finished": True}))
    return run


@pytest.fixture
def frozen(tmp_path):
    return [write_run(tmp_path, "frozen", seed, gain=0.1) for seed in (0, 1)]


@pytest.fixture
def learnable(tmp_path):
    return [write_run(tmp_path, "learnable", seed) for seed in (0, 1)]


class TestTable:
    def test_one_row_per_variant_seed_and_step(self, frozen, learnable):
        table = tradeoff.table([*learnable, *frozen], n=200)
        assert table[["variant", "seed", "step"]].to_numpy().tolist() == [
            [variant, seed, step] for variant in ("frozen", "learnable") for seed in (0, 1) for step in (100, 200)
        ]
        assert (table["phrases"] == 24).all()
        assert (table["patients"] == 12).all()

    def test_numbers(self, frozen):
        row = tradeoff.table(frozen, n=200).iloc[1]
        grounding = pd.read_csv(frozen[0] / "grounding.csv")
        assert row["auc_roc"] == pytest.approx(grounding.loc[grounding["step"] == 200, "auc_roc"].mean())
        assert row["auc_roc_low"] < row["auc_roc"] < row["auc_roc_high"]
        assert (row["prior_auc_roc"], row["chance_auc_roc"]) == pytest.approx((0.7, 0.5))
        assert (row["fid"], row["kid_std"], row["ms_ssim_real"]) == pytest.approx((19, 0.003, 0.35))
        assert np.isnan(row["classifier_auc"])
        assert "classifier_auc_by_finding" not in row

    def test_a_step_without_images_is_kept(self, frozen):
        path = frozen[0] / "fidelity.json"
        path.write_text(json.dumps({"steps": {"200": {"fid": 1.0}}}))
        table = tradeoff.table(frozen[:1], n=100)
        assert table["step"].tolist() == [100, 200]
        assert table["fid"].isna().tolist() == [True, False]

    def test_gaps_in_a_score_are_left_out(self, frozen):
        path = frozen[0] / "grounding.csv"
        frame = pd.read_csv(path, keep_default_na=False)
        frame.loc[24, "auc_roc"] = np.nan
        frame.to_csv(path, index=False)
        row = tradeoff.table(frozen[:1], n=100).iloc[1]
        assert row["auc_roc"] == pytest.approx(frame["auc_roc"][25:].astype(float).mean())


class TestParetoFront:
    def test_by_hand(self):
        table = pd.DataFrame({"fid": [1, 2, 3, 2, np.nan], "auc_roc": [0.5, 0.7, 0.6, 0.7, 0.9]})
        assert tradeoff.pareto_front(table).tolist() == [True, True, False, True, False]

    def test_lower_is_better_scores_are_minimised(self):
        table = pd.DataFrame({"fid": [1, 2, 3], "centre_distance": [0.3, 0.1, 0.2]})
        assert tradeoff.pareto_front(table, y="centre_distance").tolist() == [True, True, False]

    def test_unknown_column(self):
        with pytest.raises(InputError, match="no column 'kid'; it has fid"):
            tradeoff.pareto_front(pd.DataFrame({"fid": [1]}), x="kid")

    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
    def test_no_one_on_it_is_beaten_and_everyone_off_it_is(self, points):
        front = tradeoff.pareto_front(pd.DataFrame(points, columns=["fid", "auc_roc"]))
        assert front.any()
        for (x, y), on in zip(points, front, strict=True):
            beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
            assert on != beaten


def test_equal_time_is_the_nearest_checkpoint_of_each_seed():
    rows = [
        *(("frozen", 0, step, step) for step in (10, 20)),  # ends at 20, first of its seed
        *(("learnable", 0, step, 1.7 * step) for step in (10, 20)),  # 17 is nearer than 34
        *(("frozen", 1, step, 3 * step) for step in (10, 20)),  # ends at 60
        *(("learnable", 1, step, 3.5 * step) for step in (10, 20)),  # 70 is nearer than 35
        ("untimed", 0, 10, np.nan),
        ("frozen", 0, 0, 0.0),
    ]
    found = tradeoff.at_equal_seconds(pd.DataFrame(rows, columns=["variant", "seed", "step", "seconds"]))
    assert found.set_index(["variant", "seed"])["step"].to_dict() == {
        ("frozen", 0): 20,
        ("learnable", 0): 10,
        ("frozen", 1): 20,
        ("learnable", 1): 20,
    }


def test_secondary_scores_are_declared():
    declared = profiles.load("demo").statistics
    assert set(declared.secondary) <= set(localization.COLUMNS) - set(declared.endpoint)
    assert {"gain_word", "mirror_sided", "average_precision", "auc_roc_field"} <= set(declared.secondary)
    assert profiles.StatisticsSettings(secondary=["cnr"]).secondary == ("cnr",)
    with pytest.raises(ValueError, match="no score of a phrase is called nope"):
        profiles.StatisticsSettings(secondary=["nope"])


class TestCompare:
    def test_the_planted_difference_is_found(self, frozen, learnable):
        found = tradeoff.compare(frozen, learnable, n=500)
        assert found.estimate == pytest.approx(0.1, abs=0.01)
        assert found.low < 0.1 < found.high
        # The phrases' own difficulty, thirty times as large, cancels.
        assert found.high - found.low < 0.15
        assert found.p < 0.05
        assert (found.a, found.b, found.step, found.phrases, found.patients, found.seeds) == (
            "frozen",
            "learnable",
            200,
            24,
            12,
            2,
        )

    def test_seeds_that_disagree_widen_the_interval(self, tmp_path):
        a = [write_run(tmp_path, "frozen", seed, gain=gain) for seed, gain in enumerate((0.0, 0.1, 0.2))]
        b = [write_run(tmp_path, "learnable", seed) for seed in range(3)]
        alone, found = tradeoff.compare(a[2:], b[2:], n=500), tradeoff.compare(a, b)
        assert found.estimate == pytest.approx(0.1, abs=0.01)
        # Student's t of the seeds' differences 0, 0.1 and 0.2, of which patients and noise add next to nothing.
        half = 4.303 * 0.1 / np.sqrt(3)
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
        assert found.low < 0 < alone.low
        assert found.p == pytest.approx(2 * stats.t.sf(np.sqrt(3), 2), rel=0.05)
        assert (alone.seeds, found.seeds) == (1, 3)
        # The level at which it just excludes zero is one less the p-value.
        both, _ = tradeoff._phrases([*a, *b], "auc_roc", None)
        ours, theirs = np.split(np.stack(both["seeds"]), 2, axis=1)
        just = seeds_ci(ours - theirs, both["patient"], 1 - found.p)
        assert just.low == pytest.approx(0, abs=1e-6)
        # Of unequal numbers only patients vary.
        assert tradeoff.compare(a, b[:2], n=100).seeds == 1

    def test_differences_that_cancel_but_for_rounding_are_none(self):
        patients = pd.Series(["p", "q"])
        for values in ([[1 - 2 / 3] * 2, [1 / 3 - 2 / 3] * 2], [[0.1] * 2, [0.2] * 2, [-0.3] * 2]):
            found = tradeoff._p(np.array(values), pd.Series(range(len(values))))
            assert found == pytest.approx(1, abs=1e-6)
        assert tradeoff._p(np.array([[0.2, 0.2], [0.2, 0.2]]), patients) < 1e-6

    def test_order_of_runs_does_not_matter(self, frozen, learnable):
        assert tradeoff.compare(frozen, learnable) == tradeoff.compare(frozen, learnable[::-1])

    def test_order_of_rows_does_not_matter(self, frozen, learnable):
        expected = tradeoff.compare(frozen, learnable, n=200)
        path = learnable[1] / "grounding.csv"
        pd.read_csv(path, keep_default_na=False).sample(frac=1, random_state=0).to_csv(path, index=False)
        assert vars(tradeoff.compare(frozen, learnable, n=200)) == pytest.approx(vars(expected))

    def test_only_common_phrases_count(self, frozen, learnable):
        path = learnable[0] / "grounding.csv"
        frame = pd.read_csv(path, keep_default_na=False)
        frame[frame["study"] != "s3"].to_csv(path, index=False)
        assert tradeoff.compare(frozen, learnable, n=100).phrases == 23
        frame.assign(study="other " + frame["study"]).to_csv(path, index=False)
        with pytest.raises(InputError, match="no phrase in common"):
            tradeoff.compare(frozen, learnable)

    def test_one_finding_and_an_earlier_step(self, frozen, learnable):
        found = tradeoff.compare(frozen, learnable, step=100, finding="Edema", n=100)
        assert (found.phrases, found.step) == (12, 100)
        with pytest.raises(InputError, match="no phrase of Pneumonia"):
            tradeoff.compare(frozen, learnable, finding="Pneumonia")

    def test_different_last_steps_are_not_compared_silently(self, tmp_path, frozen):
        other = write_run(tmp_path, "learnable", 0, steps=(100,))
        with pytest.raises(InputError, match=r"different steps \(100, 200\)"):
            tradeoff.compare(frozen, [other])
        assert tradeoff.compare(frozen, [other], step=100, n=100).step == 100

    def test_seeds_of_one_variant_only(self, frozen, learnable):
        with pytest.raises(InputError, match="seeds of one variant, got frozen, learnable"):
            tradeoff.compare([*frozen, *learnable], learnable)


class TestManyVariants:
    """A third variant is one more row and one more comparison with the reference, the first unless named."""

    @pytest.fixture
    def runs(self, tmp_path):
        gains = {"frozen": 0.1, "learnable": 0.0, "last:2": 0.2}
        return [write_run(tmp_path, name, seed, gain=gain) for name, gain in gains.items() for seed in (0, 1)]

    def test_each_is_compared_with_the_reference(self, runs):
        found = tradeoff.compare_all(runs, n=100)
        assert [(c.a, c.b) for c in found] == [("frozen", "learnable"), ("frozen", "last:2")]
        assert [c.estimate for c in found] == pytest.approx([0.1, -0.1], abs=1e-9)
        assert found[0] == tradeoff.compare(runs[:2], runs[2:4], n=100)
        other = tradeoff.compare_all([*runs[4:], *runs[:4]], "centre_distance", step=100)
        assert [(c.a, c.b, c.metric, c.step) for c in other] == [
            ("last:2", "frozen", "centre_distance", 100),
            ("last:2", "learnable", "centre_distance", 100),
        ]
        assert tradeoff.compare_all(runs[:2]) == []

    def test_holm_counts_all_findings_of_all_variants(self, runs):
        found = tradeoff.compare_findings(runs[:2], runs[2:], n=100)
        assert found.index.tolist() == ["Cardiomegaly", "Edema"] * 2
        assert found["variant"].tolist() == ["learnable"] * 2 + ["last:2"] * 2
        assert found["holm"].tolist() == pytest.approx(holm([c.p for c in found["difference"]]))
        alone = tradeoff.compare(runs[:2], runs[4:], finding="Edema", n=100, alpha=0.05 / 4)
        assert found["difference"].iloc[3] == alone

    def test_tables(self, runs):
        table = tradeoff.table(runs, n=100)
        assert table["variant"].unique().tolist() == ["frozen", "last:2", "learnable"]
        assert list(tradeoff.summary(table, runs, n=100))[:3] == ["frozen", "last:2", "learnable"]
        assert set(tradeoff.by_finding(runs, n=100)["variant"]) == {"frozen", "last:2", "learnable"}


def test_by_finding(frozen, learnable):
    found = tradeoff.by_finding([*frozen, *learnable], n=200)
    assert found["finding"].tolist() == ["Cardiomegaly"] * 2 + ["Edema"] * 2 + ["all"] * 2
    row = found[(found["finding"] == "all") & (found["variant"] == "frozen")].iloc[0]
    means = [pd.read_csv(run / "grounding.csv").query("step == 200")["auc_roc"].mean() for run in frozen]
    assert row["mean"] == pytest.approx(np.mean(means))
    assert row["low"] < row["mean"] < row["high"]
    assert (row["prior"], row["chance"], row["n"]) == pytest.approx((0.7, 0.5, 24))
    assert found["swap"].isna().all()  # these tables hold none
    for i, run in enumerate(frozen):
        table = pd.read_csv(run / "grounding.csv")
        table.assign(swap_auc_roc=table["auc_roc"] / 2 + i / 10).to_csv(run / "grounding.csv", index=False)
    found = tradeoff.by_finding(frozen, n=200)
    assert found["swap"].to_numpy() == pytest.approx(found["mean"].to_numpy() / 2 + (len(frozen) - 1) / 20)
    step = tradeoff.table(frozen, n=100).iloc[-1]
    assert step["swap_auc_roc"] == pytest.approx(step["auc_roc"] / 2 + (len(frozen) - 1) / 10)
    assert tradeoff.by_finding(frozen, "centre_distance", n=100)["prior"].isna().all()


class TestSummary:
    def test_is_printed_beside_its_references(self, frozen, learnable):
        runs = [frozen[0], learnable[0]]
        table = tradeoff.table(runs, n=200)
        printed = tradeoff.summary(table)
        assert list(printed.columns) == ["frozen", "learnable", "location prior", "chance", "held-out images"]
        assert list(printed.index) == ["FID ↓", "KID ↓", "MS-SSIM within a prompt", "AUC-ROC ↑", "centre distance ↓"]
        # What a map scores on a swapped image differs by variant, so it is a row.
        swapped = tradeoff.summary(table.assign(swap_auc_roc=table["variant"].map({"frozen": 0.6, "learnable": 0.55})))
        assert list(swapped.index)[3:5] == ["AUC-ROC ↑", "AUC-ROC, swapped images"]
        assert list(swapped.iloc[4]) == ["0.600", "0.550", "–", "–", "–"]
        assert printed.loc["FID ↓", "frozen"] == "19.0 [1.0, 40.0]"
        assert printed.loc["KID ↓", "frozen"] == "0.012 ± 0.003"
        assert printed.loc["KID ↓", "chance"] == "–"
        assert printed.loc["MS-SSIM within a prompt", "held-out images"] == "0.350"
        assert printed.loc["AUC-ROC ↑", ["location prior", "chance", "held-out images"]].tolist() == [
            "0.700",
            "0.500",
            "–",
        ]
        # One seed: the interval over patients, as the table has it.
        row = table.query("variant == 'frozen' and step == 200").iloc[0]
        assert (
            printed.loc["AUC-ROC ↑", "frozen"]
            == f"{row['auc_roc']:.3f} [{row['auc_roc_low']:.3f}, {row['auc_roc_high']:.3f}]"
        )

    def test_seeds_are_a_level_of_their_own(self, tmp_path):
        runs = [write_run(tmp_path, "frozen", seed, gain=gain) for seed, gain in enumerate((0.0, 0.1, 0.2))]
        table = tradeoff.table(runs, n=100)
        found = tradeoff.estimates(table, runs).loc["AUC-ROC ↑", "frozen"]
        frames = [pd.read_csv(run / "grounding.csv", keep_default_na=False).query("step == 200") for run in runs]
        scores = np.stack([frame["auc_roc"] for frame in frames], axis=1)
        expected = seeds_ci(scores, frames[0]["patient"])
        assert (found.estimate, found.low, found.high) == pytest.approx(
            (expected.estimate, expected.low, expected.high)
        )
        # Bounds averaged over seeds would not know that the seeds differ by ten times the patients' error.
        averaged = (table["auc_roc_high"] - table["auc_roc_low"])[table["step"] == 200].mean()
        assert found.high - found.low > 2 * averaged
        with pytest.raises(InputError, match="frozen has 3 seeds: give the folders"):
            tradeoff.estimates(table, runs[:2])
        shown = tradeoff.summary(table, runs).loc["AUC-ROC ↑", "frozen"]
        assert shown == f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"

    def test_fidelity_over_seeds_by_hand(self, tmp_path):
        runs = [write_run(tmp_path, "frozen", seed, gain=gain) for seed, gain in enumerate((0.0, 0.1, 0.2))]
        found = tradeoff.estimates(tradeoff.table(runs, n=100), runs)
        # FIDs 20, 19 and 18, each [1, 40]; Student's t of two degrees of freedom is 4.303.
        seeds = 4.303 / np.sqrt(3)
        low = np.sqrt((19**2 + 18**2 + 17**2) / 3 + seeds**2)
        high = np.sqrt((20**2 + 21**2 + 22**2) / 3 + seeds**2)
        fid = found.loc["FID ↓", "frozen"]
        assert (fid.estimate, fid.low, fid.high) == pytest.approx((19, 19 - low, 19 + high), abs=1e-3)
        assert found.loc["KID ↓", "frozen"] == pytest.approx(0.012)

    def test_numbers_are_exported(self, frozen, learnable):
        runs = [*frozen, *learnable]
        found = tradeoff.estimates(tradeoff.table(runs, n=100), runs)
        read = pd.read_csv(io.StringIO(format_table(found, "csv")), index_col=0)
        cell = found.loc["AUC-ROC ↑", "learnable"]
        assert read.loc["AUC-ROC ↑", ["learnable", "learnable_low", "learnable_high"]].tolist() == pytest.approx(
            [cell.estimate, cell.low, cell.high]
        )
        assert read.loc["KID ↓", "frozen"] == pytest.approx(0.012)
        assert r"\toprule" in format_table(found, "latex")
        assert "| FID ↓ | 19.000 [1.000, 40.000] |" in format_table(found)


class TestCompareFindings:
    def test_each_is_the_comparison_of_that_finding_and_holm_knows_how_many(self, frozen, learnable):
        found = tradeoff.compare_findings(frozen[:1], learnable[:1], n=200)
        assert found.index.tolist() == ["Cardiomegaly", "Edema"]
        alone = tradeoff.compare(frozen[:1], learnable[:1], finding="Edema", n=200, alpha=0.025)
        assert found.loc["Edema", "difference"] == alone
        assert found.loc["Edema", ["phrases", "patients"]].tolist() == [12, 12]
        p = [c.p for c in found["difference"]]
        assert found["holm"].tolist() == pytest.approx(holm(p))
        assert (found["holm"] >= p).all()

    def test_detectable_is_of_the_spread_over_patients(self, frozen, learnable):
        # Of different seeds, whose noise does not cancel.
        runs = frozen[:1], learnable[1:]
        frames = [pd.read_csv(run / "grounding.csv", keep_default_na=False) for (run,) in runs]
        edema = [f.query("step == 200 and finding == 'Edema'")["auc_roc"].to_numpy() for f in frames]
        expected = minimal_detectable_difference(edema[0] - edema[1], alpha=0.05 / 2)
        assert expected > 0.005
        found = tradeoff.compare_findings(*runs, n=100)
        assert found.loc["Edema", "detectable"] == pytest.approx(expected)
        assert tradeoff.compare(*runs, finding="Edema", n=100).detectable < expected  # of one question only
        # Two seeds of which one knows little: it has to be larger.
        both = tradeoff.compare(frozen, learnable[::-1], finding="Edema", n=100)
        assert both.seeds == 2

    def test_of_one_patient_nothing_is_detectable(self, tmp_path):
        runs = [[write_run(tmp_path, name, 0, patients=1)] for name in ("frozen", "learnable")]
        assert np.isnan(tradeoff.compare_findings(*runs, n=50)["detectable"]).all()

    def test_one_patient_and_several_seeds_show_nothing(self, tmp_path):
        one, other = (
            [write_run(tmp_path, name, seed, gain, patients=1) for seed in (0, 1)]
            for name, gain in (("a", 0.2), ("b", 0))
        )
        found = tradeoff.compare(one, other)
        assert found.p == 1
        assert np.isnan(found.low)

    def test_nothing_in_common(self, frozen, learnable):
        path = learnable[0] / "grounding.csv"
        pd.read_csv(path, keep_default_na=False).assign(auc_roc="").to_csv(path, index=False)
        with pytest.raises(InputError, match="no phrase has auc_roc"):
            tradeoff.compare_findings(frozen[:1], learnable[:1])

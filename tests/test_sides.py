"""Sides as truth: whom a report places on one side, the half image that shows it, and maps of known answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from chestxai import profiles, sides
from chestxai import sentences as say
from chestxai.finetune import main as finetune_command
from chestxai.runs import InputError
from chestxai.studies import Finding, Study


def study(*findings, **attributes):
    return Study("a", "1", "x", "test", "", (40, 60), findings, attributes=attributes)


def effusion(phrase, side, present=True):
    return Finding("Pleural Effusion", phrase, present, side)


class TestSided:
    def test_the_side_is_the_truth_and_leaves_the_prompt(self):
        (truth,) = sides.sided([study(effusion("Small left pleural effusion", "left"))])
        assert truth.finding.side == "left"
        assert truth.finding.phrase == "Small pleural effusion"

    @pytest.mark.parametrize(
        "findings",
        [
            [effusion("bilateral effusions", "bilateral")],
            [effusion("an effusion", None)],
            [effusion("left effusion", "left"), effusion("right effusion", "right")],
            [effusion("left effusion", "left"), effusion("an effusion", None)],
            [effusion("no left effusion", "left", present=False)],
            [effusion("left", "left")],
            [Finding("Lung Opacity", "opacity in the lingula", True, "left")],
        ],
    )
    def test_only_what_is_on_one_side_for_certain_counts(self, findings):
        assert sides.sided([study(*findings)]) == []

    def test_a_finding_counts_once_and_not_against_the_indexers(self):
        twice = [effusion("left effusion", "left"), effusion("the left effusion is small", "left")]
        assert [t.finding.phrase for t in sides.sided([study(*twice, side="left")])] == ["effusion"]
        assert sides.sided([study(*twice, side="right")]) == sides.sided([study(*twice, side="bilateral")]) == []


def test_the_patient_faces_the_reader():
    right = sides.half(study(), "right", 8)
    assert right[:, :4].all()
    assert not right[:, 4:].any()
    assert (sides.half(study(), "left", 8) == ~right).all()
    # 0.4 of 60 columns is column 24; cropped to the central 40, column 14 of 40, which is 2.8 of 8.
    assert sides.half(study(midline=0.4), "right", 8)[0].tolist() == [True] * 3 + [False] * 5


def test_a_map_that_always_leans_to_the_heart_scores_one_half():
    table = pd.DataFrame({"side": ["left"] * 30 + ["right"] * 10, "patient": np.arange(40)})
    assert sides.side_score(table.assign(mirror=[1.0] * 30 + [0.0] * 10)).estimate == pytest.approx(0.5)
    assert sides.side_score(table.assign(mirror=1.0)).estimate == pytest.approx(1)
    assert sides.side_score(table.assign(mirror=[0.8] * 30 + [np.nan] + [0.2] * 9)).estimate == pytest.approx(0.5)


def test_an_interval_of_a_share_is_one_and_a_single_side_gives_none():
    table = pd.DataFrame({"side": ["left"] * 3 + ["right"] * 20, "patient": np.arange(23)})
    always_left = sides.side_score(table.assign(mirror=[1.0] * 3 + [0.0] * 20))
    assert (always_left.estimate, always_left.low, always_left.high) == (0.5, 0.5, 0.5)
    everywhere = sides.side_score(table.assign(mirror=1.0))
    assert (everywhere.estimate, everywhere.low, everywhere.high) == (1, 1, 1)
    assert np.isnan(sides.side_score(table[table["side"] == "left"].assign(mirror=1.0)).estimate)


def test_the_sentence_follows_the_interval():
    table = pd.DataFrame({"side": ["left", "right"] * 40, "patient": np.arange(80), "swap_mirror": 0.5})
    assert "not clearly above chance" in say.localization.sides({"a": table.assign(mirror=[1.0, 0, 0, 1] * 20)}, 200)
    text = say.localization.sides({"a": table.assign(mirror=1.0), "b": table.assign(mirror=0.0)}, 200)
    assert text.startswith(
        "How often does the map prefer the side that the report names? On 80 findings of 80 patients"
    )
    assert "`a`: 1.000 [1.000, 1.000], above chance" in text
    assert "`b`: 0.000 [0.000, 0.000], below chance" in text
    assert say.localization.sides({}, 200).startswith("No report")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    finetune_command(["--profile", "smoke", "--variant", "frozen", "--out", str(out)])
    return out


def test_every_checkpoint_of_a_run_is_scored(out):
    profile = profiles.load("smoke")
    run, splits = (
        profiles.run(profile, "frozen", 0, out),
        {s: list(profiles.studies(profile, s)) for s in ("val", "test")},
    )
    steps = sides.scores_by_step(profile, run, splits["val"], splits["test"])
    assert steps["step"].tolist() == [4, 8]
    table = sides.score_run(profile, run, splits["val"], splits["test"], 8)
    assert steps["side"].iloc[1] == sides.side_score(table).estimate
    assert steps["side_findings"].tolist() == [len(table)] * 2
    assert steps["side_patients"].tolist() == [table["patient"].nunique()] * 2
    assert table["mirror"].between(0, 1).all()
    assert not table["phrase"].str.contains("left|right").any()


def test_without_sides_there_is_nothing_to_score(out):
    profile = profiles.load("smoke")
    with pytest.raises(InputError, match="no report of this split places a finding"):
        sides.score_run(profile, profiles.run(profile, "frozen", 0, out), [study()], [], 8)

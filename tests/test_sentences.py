"""Every sentence of the chapters, for every branch of the rule that chooses it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scipy.stats import t as student

from chestxai import profiles, runs, stats
from chestxai import sentences as say
from chestxai.profiles import StatisticsSettings
from chestxai.sentences import answers, fidelity, images, knowledge, localization, tradeoff, words
from chestxai.stats import Difference, Interval
from chestxai.tradeoff import Comparison

UP, DOWN, FLAT = Interval(0.1, 0.05, 0.15), Interval(-0.1, -0.15, -0.05), Interval(0.02, -0.05, 0.09)
NONE = Interval(0.1, math.nan, math.nan)
VARIANTS = ("frozen", "learnable", "last:2")


class TestWords:
    @pytest.mark.parametrize(
        ("interval", "sign", "verb"),
        [
            (UP, 1, "is clearly higher than"),
            (DOWN, -1, "is clearly lower than"),
            (FLAT, 0, "does not clearly differ from"),
            (NONE, 0, "does not clearly differ from"),
            (Interval(0.1, 0.0, 0.2), 0, "does not clearly differ from"),
        ],
    )
    def test_an_interval_chooses_the_verb(self, interval, sign, verb):
        assert words.direction(interval) == sign
        assert words.verb(interval) == verb
        assert words.verb(interval, "wins", "loses", "draws") == ("draws", "wins", "loses")[sign]

    def test_data_choose_among_the_words_of_a_template(self):
        text = "{n:# map}{few: of {names:&}|} {d:rise to {d.estimate:.1f}|fall|stay}"
        assert words.filled(text, n=1, few=[], names=[], d=FLAT) == "1 map stay"
        assert words.filled(text, n=2000, few=True, names=["a", "b"], d=UP) == "2,000 maps of a and b rise to 0.1"

    def test_every_template_is_used(self):
        for path in Path(words.__file__).parent.glob("*.yaml"):
            code = path.with_suffix(".py").read_text(encoding="utf-8")
            assert [name for name in runs.read_yaml(path) if f'"{name}"' not in code and f"'{name}'" not in code] == []

    def test_independent_by_hand(self):
        d = words.independent(Interval(5, 2, 9), Interval(3, 2, 7))
        assert (d.estimate, d.low, d.high) == pytest.approx((2, 2 - 5, 2 + math.hypot(4, 1)))
        assert math.isnan(words.independent(Interval(5, 2, 9), 3.0).low)

    @given(st.lists(st.floats(0, 10), min_size=6, max_size=6))
    def test_independent_is_antisymmetric_and_reproduces_a_known_number(self, values):
        low_a, a, high_a, low_b, b, high_b = *sorted(values[:3]), *sorted(values[3:])
        one, other = Interval(a, low_a, high_a), Interval(b, low_b, high_b)
        d, back = words.independent(one, other), words.independent(other, one)
        assert (d.estimate, d.low, d.high) == pytest.approx((-back.estimate, -back.high, -back.low))
        exact = words.independent(one, Interval(b, b, b))
        assert (exact.low, exact.high) == pytest.approx((low_a - b, high_a - b))

    @pytest.mark.parametrize(
        "text",
        [
            "<img src=x onerror=alert(1)>",
            "*a* _b_ `c` [d](javascript:alert(1)) ![e](f.png) ~~g~~ $h$ | i | \\j {k}`l`",
            "&lt;script&gt; &#60;b&#62; <!-- -->",
            "# a\n\n- b\n```{raw} html\n<b>\n```",
            "</details><script>alert(1)</script>",
        ],
    )
    def test_text_from_data_is_shown_and_not_obeyed(self, text):
        for kind in ("commonmark", "gfm-like"):
            page = MarkdownIt(kind, {"linkify": False}).render(f"a “{words.escaped(text)}” b")
            shown = BeautifulSoup(page, "html.parser")
            assert [tag.name for tag in shown.find_all()] == ["p"]
            assert shown.get_text().strip() == f"a “{' '.join(text.split())}” b"
        assert BeautifulSoup(f"<i>{words.escaped(text)}</i>", "html.parser").i.get_text() == " ".join(text.split())

    def test_hidden_characters_go(self):
        assert words.escaped("ab\u202ecd\u200b\x00é 3.5 %") == "abcdé 3.5 %"

    def test_counts_and_bullets(self):
        assert [words.counted(n, "map") for n in (0, 1, 2000)] == ["0 maps", "1 map", "2,000 maps"]
        assert words.bullets(["a", "b"]) == "- a\n- b"
        assert [words.listed(range(1, n)) for n in (2, 3, 4)] == ["1", "1 and 2", "1, 2 and 3"]


class TestImages:
    def test_source(self):
        assert "digital phantoms" in images.source("phantom", "phantom")
        assert images.source("openi", "openi") == "The images of this run are real: reports come from `openi`."
        assert "places of findings from `nih`" in images.source("openi", "nih")

    def test_contrast(self):
        assert "Disease is the smaller change" in images.contrast(2.0, 9.0)
        assert "Disease is not the smaller change" in images.contrast(9.0, 2.0)
        assert "changes the image by 9.0 of 255" in images.contrast(9.0, 2.0)

    def test_rules(self):
        scores = pd.DataFrame(
            {
                "f1": [0.9, 1.0],
                "there": [4, 5],
                "wrong": [1, 0],
                "hedged": [1, 0],
                "sided": [2, 2],
                "side_right": [1, 0.5],
            },
            index=["Edema", "Pneumonia"],
        )
        assert images.rules(scores, 1234.0) == (
            "Macro-F1 over 2 findings is **0.950** on test reports; 3 of 4 true sides are read (**75%**); a side "
            "that the report does not name, often that of edema, counts as missed. One core reads 1,200 reports "
            "a second."
        )
        poor = images.rules(scores, 1234.0, least=0.95)
        assert "have an F1 below 0.95: Edema 0.900 (4 reports; falsely in 1, 1 in doubt)." in poor
        assert poor.endswith("indexers mostly do not.")
        assert "doubt as present" not in images.rules(scores.assign(hedged=0), 1234.0, least=0.95)
        # No side is recorded: nothing is divided by zero.
        nowhere = scores.assign(sided=0, side_right=np.nan)
        assert "0 of 0 true sides are read (**0%**)" in images.rules(nowhere, 1.0)

    def test_splits(self):
        assert images.splits({"train and val": 0, "val and test": 0}, []) == (
            "No patient is in two splits (train and val: 0 shared, val and test: 0 shared). No record was left out."
        )
        text = images.splits({"train and val": 2}, [("openi", "train", 1200, "no image")])
        assert text.startswith("Patients straddle splits (train and val: 2 shared)")
        assert text.endswith("Records left out:\n\n- `openi`, train: 1,200 × no image")
        hostile = images.splits({}, [("folder", "test", 1, "<img src=x onerror=alert(1)>")])
        assert "<" not in hostile


class TestLocalization:
    def test_against(self):
        p = Difference(0.1, 0.05, 0.15, 0.004)
        text = localization.against(
            "last:2", {"chance": p, "the location prior": DOWN, "the swapped image": FLAT}, "Top-1"
        )
        assert text.split("\n") == [
            "- The Top-1 of `last:2` is clearly higher than that of chance: +0.100 [+0.050, +0.150], p = 0.004.",
            "- The Top-1 of `last:2` is clearly lower than that of the location prior: -0.100 [-0.150, -0.050].",
            "- The Top-1 of `last:2` does not clearly differ from that of the swapped image: +0.020 [-0.050, +0.090].",
        ]

    def test_follows(self):
        def table(removed, moved):
            return pd.DataFrame({"removed": removed, "moved": moved, "patient": range(4)})

        perfect, prior = table([0.5] * 4, [0.4] * 4), table([0.0] * 4, [0.0] * 4)
        half = table([0.3] * 4, [0.3, -0.3, 0.2, -0.2])
        text = localization.follows({"a": perfect, "b": prior, "c": half}, 100).split("\n")
        assert text[0] == (
            "- `a`: at the finding's place AUC-ROC falls when the finding is taken away (*removed* +0.500 "
            "[+0.500, +0.500]); at the new place it rises when the finding comes there (*moved* +0.400 "
            "[+0.400, +0.400])."
        )
        assert "`b`: at the finding's place AUC-ROC does not clearly change" in text[1]
        assert "at the new place it does not clearly change" in text[2]
        assert text[-1] == "So on average the maps of `a` go with the finding."
        turned = localization.follows({"b": prior, "d": table([-0.5] * 4, [-0.4] * 4)}, 100)
        assert "AUC-ROC rises when the finding is taken away" in turned
        assert "at the new place it falls" in turned
        assert turned.endswith("It is not shown that any map goes with the finding.")

    def test_parts(self):
        assert "here there are none" in localization.parts(10, [], 0)
        text = localization.parts(10, [0.5, 0.7], 1)
        assert "2 of 10 targets have several parts" in text
        assert "mean box IoU of 0.60" in text
        assert "In 1 of them" in text

    def test_fooled(self):
        skill = pd.DataFrame({"shifted": [0.95, 0.2], "ring": [0.1, 0.3]}, index=["AUC-ROC", "IoU"])
        assert localization.fooled(skill, {"AUC-ROC": 0.5, "IoU": 0.0}) == (
            "These maps have 90% or more of the perfect map's skill:\n\n- *shifted* by AUC-ROC\n\n"
            "No measure accepts *ring*.\n\nA constant map scores 0.25 or more by AUC-ROC."
        )
        assert localization.fooled(skill * 0, {}) == "No measure accepts *shifted*, *ring*."
        every = localization.fooled(skill * 0 + 1, {})
        assert every.endswith("Each map is accepted by at least one measure.")
        assert "- *ring* by AUC-ROC, IoU" in every
        # A measure that a constant and the perfect map share has no skill.
        assert localization.fooled(skill * np.nan, {}) == "No measure accepts *shifted*, *ring*."


class TestAnswers:
    """The sentence in the head of each chapter."""

    def test_images(self):
        assert answers.images(1, 1, 2000, 0.61, 0.049) == (
            "1 phrase in 1 of 2,000 test reports can be grounded, as the finding's place is known; a map of where each "
            "finding usually is (the location prior) has its highest pixel inside the finding in 61% of them (chance "
            "5%)."
        )

    def test_finetuning(self):
        frozen = answers.finetuning("frozen", {"U-Net": 2000}, 1e-8)
        assert frozen.startswith(
            "In `frozen` 2,000 parameters of the U-Net are trained, and the state of a token does not"
        )
        text = answers.finetuning("a", {"U-Net": 2000, "text encoder": 1}, 0.1234)
        assert text.startswith("In `a` 2,000 parameters of the U-Net and 1 parameter of the text encoder are trained")
        assert text.endswith("changes by 0.123 on average (1 − cosine: 0 is unchanged).")

    @pytest.mark.parametrize(
        ("gains", "tests"), [([1.0] * 4, "`a` pass the tests"), ([0.0, 1.0] * 2, "`a` do not pass both tests")]
    )
    def test_maps(self, gains, tests):
        settings = StatisticsSettings(endpoint=("gain_auc_roc", "word"), resamples=100)
        frame = pd.DataFrame({"gain_auc_roc": [0.1, 0.2, 0.3, 0.2], "word": gains, "patient": list("abcd")})
        rows = frame.assign(chance_gain_auc_roc=0.0, chance_word=0.5, study=frame["patient"])
        for interval, fit in (
            (UP, "fit the findings better than"),
            (DOWN, "worse than"),
            (FLAT, "not clearly better than"),
        ):
            text = answers.maps("a", interval, rows, settings)
            assert fit in text
            assert f"the location prior ({interval:+.3f})" in text
            assert tests in text
            assert "swapped" not in text
        for gain, said in (
            (0.2, "(the latter clearly better than on images of other"),
            (0.0, "so the words alone may explain it"),
        ):
            text = answers.maps("a", FLAT, rows.assign(gain_word=gain), settings)
            assert (said in text) == (tests == "`a` pass the tests")  # a test that is not passed needs no doubt

    def test_scores(self):
        skill = pd.DataFrame({"shifted": [0.95, 0.2], "ring": [0.9, 0.3]}, index=["AUC-ROC", "IoU"])
        assert answers.scores(skill) == (
            "1 of 2 scores accept none of the 2 wrong maps tried; AUC-ROC accepts the most, 2 of them."
        )
        assert answers.scores(skill * 0).endswith("2 of 2 scores accept none of the 2 wrong maps tried.")
        assert answers.scores(skill * 0 + 1).startswith(
            "Each of 2 scores accepts some of the 2 wrong maps tried; AUC-ROC"
        )

    def test_fidelity(self):
        def text(fid, auc):
            base, moved = Interval(20, 18, 22), Interval(fid.estimate - 20, fid.low - 20, fid.high - 20)
            return answers.fidelity("a", (base, fid), moved, Interval(4.5, 4, 5), auc)

        better = text(Interval(5, 4, 6), Interval(0.8, 0.75, 0.85))
        assert better.startswith(
            "By FID, the images of `a` are closer to the held-out ones than the base's (FID 5.00 against 20.00, "
            "difference -15.00 [-16.00, -14.00]; of held-out images 4.50), and a classifier finds the prompted "
            "findings in them better than by chance (AUC 0.80; side, "
        )
        assert "are farther from the held-out ones than" in text(Interval(40, 38, 42), UP)
        # The paired difference decides, also where the intervals of the two overlap.
        overlap = answers.fidelity("a", (Interval(20, 18, 22), Interval(19, 17, 21)), DOWN, Interval(4.5, 4, 5), UP)
        assert "are closer to the held-out ones than" in overlap
        unclear = text(Interval(20, 17, 23), Interval(0.5, 0.4, 0.6))
        assert "not clearly closer to the held-out ones than" in unclear
        assert (
            "and a classifier does not clearly find the prompted findings in them better than by chance (AUC 0.50;"
            in unclear
        )

    def test_blind_spots(self):
        change = pd.DataFrame({"fid": [0.0, -5.0], "kid": [-3.0, -2.0], "cov": [np.nan, -0.5]}, index=["noise", "blur"])
        names = {"fid": "FID", "kid": "KID", "cov": "coverage"}
        assert answers.blind_spots(change, names) == ("KID overlooks nothing: of 2 failings, coverage misses 2, KID 0.")
        alarmed = answers.blind_spots(change, names, ["FID", "coverage"])
        assert alarmed.endswith("KID 0; fewer images alone worsen FID and coverage.")
        assert answers.blind_spots(change, {"fid": "FID"}).startswith("Every score overlooks something: of 2 failings")


class TestFidelity:
    def test_sample_size(self):
        assert "50 of 2.00: they did not become better" in fidelity.sample_size((8, 50), (9.0, 2.0), (0.01, 0.01))
        assert "more numerous" not in fidelity.sample_size((8, 50), (2.0, 9.0), (0.01, 0.01))

    @pytest.mark.parametrize(
        ("generated", "expected"),
        [
            (Interval(0.55, 0.45, 0.65), "is not clearly better than chance"),
            (NONE, "is not clearly better than chance"),
            (Interval(0.6, 0.55, 0.65), "is worse than one trained on training images"),
            (Interval(0.8, 0.75, 0.85), "is not clearly worse than one trained on training images"),
            (Interval(0.95, 0.92, 0.98), "is better than one trained on training images"),
        ],
    )
    def test_teaching(self, generated, expected):
        text = fidelity.teaching(generated, Interval(0.82, 0.78, 0.86))
        assert expected in text
        assert f"AUC **{generated}**" in text

    def test_as_asked(self):
        real = {"side": Interval(0.97, 0.95, 0.99), "zone": Interval(0.9, 0.8, 1.0)}
        above = {"side": Interval(0.07, -0.02, 0.15), "zone": Interval(0.25, 0.15, 0.35)}
        generated = {"side": Interval(0.57, 0.48, 0.65), "zone": Interval(0.7, 0.6, 0.8)}
        side, zone = fidelity.as_asked(generated, real, above).split("\n")
        assert side.startswith(
            "- For 57% [48%, 65%] of the findings, the side is as asked, not clearly more often than by chance (50%)"
        )
        assert "the same measurement finds 97% [95%, 99%]: the difference, generated minus held-out, is -0.40 [" in side
        assert "70% [60%, 80%] of the findings, the zone is as asked, more often than by chance (45%)" in zone
        assert "cannot judge" not in side + zone
        weak = fidelity.as_asked(generated, {"side": Interval(0.55, 0.45, 0.65)} | {"zone": real["zone"]}, above)
        assert ["cannot judge it" in line for line in weak.split("\n")] == [True, False]
        assert "No prompt asks" in fidelity.as_asked({}, {}, {})

    def test_answer(self):
        def shifted(interval, by):
            return Interval(interval.estimate - by, interval.low - by, interval.high - by)

        def lines(last=None, similar=None, auc=None):
            last, similar = last or Interval(5, 4, 6), similar or Interval(0.4, 0.38, 0.42)
            fid, clf = (Interval(20, 18, 22), last), (Interval(0.5, 0.45, 0.55), auc or Interval(0.8, 0.75, 0.85))
            pairs = (
                (similar, Interval(0.4, 0.37, 0.43)),
                clf,
                (NONE, Interval(0.65, 0.55, 0.75), Interval(0.9, 0.85, 0.95)),
            )
            changes = {"fid": shifted(last, 20), "auc": shifted(clf[1], 0.5)}
            return fidelity.answer(fid, Interval(4.5, 3.5, 5.5), *pairs, changes).split("\n")

        better = lines()
        assert better[0].startswith(
            "- As a set, the images have moved towards the held-out ones: FID 5.00 [4.00, 6.00], against"
        )
        assert better[0].endswith(" 20.00 [18.00, 22.00] of the base; difference -15.00 [-16.00, -14.00].")
        assert better[1].startswith(
            "- By FID they are not clearly farther from the held-out ones than other held-out images"
        )
        assert better[2].startswith("- Fewer of them lie near a held-out image than of other held-out images")
        assert better[2].endswith(": precision 0.650 [0.550, 0.750], against 0.900 [0.850, 0.950] (base: 0.100).")
        assert "not clearly less varied than" in better[3]
        assert better[4].startswith("- They show the findings that the prompt names, better than the base's")
        assert "away from the held-out ones:" in lines(Interval(40, 38, 42))[0]
        assert lines(Interval(40, 38, 42))[1].startswith("- By FID they are farther from the held-out ones than other")
        assert "neither clearly towards the held-out ones nor away" in lines(Interval(20, 17, 23))[0]
        assert lines(Interval(1, 0.9, 1.1))[1].startswith("- By FID they are closer to the held-out ones than other")
        assert " less varied than" in lines(similar=Interval(0.9, 0.88, 0.92))[3]
        assert "more varied (or noisier) than" in lines(similar=Interval(0.1, 0.08, 0.12))[3]
        assert lines(auc=Interval(0.5, 0.4, 0.6))[4].startswith(
            "- They do not clearly show the findings that the prompt names"
        )
        unclear = {"fid": FLAT, "auc": FLAT}
        auc, same = (Interval(0.5, 0.49, 0.51), Interval(0.55, 0.52, 0.58)), (Interval(0.4, 0.38, 0.42),) * 2
        paired = fidelity.answer(same, same[0], same, auc, (*same, same[0]), unclear)
        assert "not clearly better than the base's" in paired  # though the two intervals do not overlap
        assert "difference +0.020 [-0.050, +0.090]" in paired

    def test_a_checkpoint_may_obey_less_than_its_base(self):
        fid, same = Interval(20, 18, 22), Interval(0.4, 0.38, 0.42)
        auc = Interval(0.8, 0.75, 0.85), Interval(0.6, 0.55, 0.65)
        changes = {"fid": FLAT, "auc": DOWN}
        text = fidelity.answer((fid, fid), fid, (same, same), auc, (same, same, same), changes)
        assert "worse than the base's" in text

    def test_memory(self):
        assert "no sign of copying" in fidelity.memory(Interval(0.06, 0.02, 0.1), 1.0)
        text = fidelity.memory(Interval(0.4, 0.3, 0.5), 0.97)
        assert text.startswith("40% [30%, 50%] of the generated images")
        assert "more than chance. It need not be copying" in text
        assert "Of the planted copies 97% are that near" in text

    def test_unnoticed(self):
        change = pd.DataFrame({"fid": [0.0, -5.0], "kid": [-3.0, -2.0], "cov": [np.nan, -0.5]}, index=["noise", "blur"])
        assert fidelity.unnoticed(change, {"fid": "FID", "kid": "KID", "cov": "coverage"}) == (
            "- **FID** does not notice: noise.\n- **KID** does not notice: nothing.\n"
            "- **coverage** does not notice: noise; blur."
        )


def comparison(estimate, low, high, b="learnable", metric="auc_roc", detectable=0.05):
    return Comparison(estimate, low, high, 0.01, metric, "frozen", b, 240, 24, 12, 1, detectable)


class TestTradeoff:
    def test_seeds(self):
        assert tradeoff.seeds(1).startswith("One seed: the intervals cover *new patients*")
        assert "Mean over 3 seeds" in tradeoff.seeds(3)
        assert "So few seeds" in tradeoff.seeds(3)
        assert "So few seeds" not in tradeoff.seeds(5)

    def test_findings(self):
        def table(*rows):
            names = [name for name, *_ in rows]
            columns = {"difference": [c for _, c, _ in rows], "holm": [p for *_, p in rows]}
            columns["detectable"] = [c.detectable for c in columns["difference"]]
            return pd.DataFrame(columns, index=pd.Index(names, name="finding"))

        text = tradeoff.findings(
            table(
                ("Edema", comparison(0.1, 0.05, 0.15), 0.02),
                ("Edema", comparison(-0.1, -0.15, -0.05, "last:2"), 0.03),
                ("Pneumonia", comparison(-0.1, -0.15, -0.05, metric="centre_distance"), 0.03),
                ("Pneumothorax", comparison(0.01, -0.05, 0.07), 0.9),
            )
        )
        assert text == (
            "After Holm's adjustment:\n\n"
            "- Edema: `frozen` is better than `learnable`; frozen minus learnable is +0.100 [+0.050, +0.150], "
            "adjusted p = 0.020\n"
            "- Edema: `last:2` is better than `frozen`; frozen minus last:2 is -0.100 [-0.150, -0.050], "
            "adjusted p = 0.030\n"
            "- Pneumonia: `frozen` is better than `learnable`; frozen minus learnable is -0.100 [-0.150, -0.050], "
            "adjusted p = 0.030\n\n"
            "No difference after Holm's adjustment in 1 of 4 comparisons. This does not show that there is none: true "
            "differences up to the column *detectable* would often be missed."
        )
        none = tradeoff.findings(table(("Edema", comparison(0.1, -0.05, 0.25), 0.2)))
        assert none.startswith("No difference after Holm's adjustment in 1 of 1 comparison. ")
        assert "adjusted p < 0.001" in tradeoff.findings(table(("Edema", comparison(0.1, 0.05, 0.15), 0.0)))

    def test_coverage(self):
        def held(*estimates, half=0.01):
            return {n: Interval(e, e - half, e + half) for n, e in zip((10, 20, 40), estimates, strict=True)}

        text = tradeoff.coverage(held(0.90, 0.94, 0.95), 1000, [12, 30])
        assert "With 1000 simulated data sets of each size, a share is known to about ±0.010." in text
        assert "From 20 patients on, 93 to 97 % of the intervals held the truth. With 10 patients, fewer did." in text
        assert text.endswith("The findings above have 12 to 30 patients.")
        assert tradeoff.coverage(held(0.90, 0.94, 0.95), 1000, [12]).endswith("have 12 patients.")
        # 92.5 % might be 93 %: not called fewer.
        close = tradeoff.coverage(held(0.925, 0.94, 0.95), 1000, [12])
        assert "With 10 patients the simulation cannot tell whether 93 % did." in close
        assert "fewer did" not in close
        assert "cannot tell" not in text
        never = tradeoff.coverage(held(0.90, 0.91, 0.90), 1000, [12])
        assert "Not even with the most patients" in never
        assert "With 10, 20 and 40 patients, fewer did." in never
        assert "too little to tell 93 % from 97 %" in tradeoff.coverage(held(0.9, 0.94, 0.95, half=0.05), 50, [12])

    def test_coverage_reads_a_simulation(self):
        draw = lambda rng: stats.clustered_scores(rng, patients=20)  # noqa: E731
        found = stats.coverage(draw, 0.85, lambda s, p: stats.bootstrap_ci(s, p, n=50), runs=20)
        assert "20 simulated data sets" in tradeoff.coverage({20: found}, 20, [20])

    def test_gains(self):
        scores = pd.DataFrame(
            {
                "frozen": [Interval(10, 9, 11), Interval(0.7, 0.6, 0.8)],
                "learnable": [Interval(5, 4, 6), Interval(0.8, 0.7, 0.9)],
                "last:2": [Interval(10, 8, 12), 0.75],
            },
            index=["FID ↓", "classifier AUC ↑"],
        )
        fids = {"learnable": Difference(5.0, 3.59, 6.41, 0.01), "last:2": Difference(0.0, -2.24, 2.24, 1.0)}
        assert tradeoff.gains(scores, {"FID ↓": 57.2, "classifier AUC ↑": 0.5}, "frozen", fids).split("\n") == [
            "- `frozen`: FID from 57.200 (base) to 10.000 [9.000, 11.000], classifier AUC from 0.500 (base) to "
            "0.700 [0.600, 0.800]",
            "- `learnable`: FID from 57.200 (base) to 5.000 [4.000, 6.000], classifier AUC from 0.500 (base) to "
            "0.800 [0.700, 0.900]",
            "- `last:2`: FID from 57.200 (base) to 10.000 [8.000, 12.000], classifier AUC from 0.500 (base) to 0.750",
            "- The FID of `learnable` is lower than that of `frozen`: frozen minus learnable +5.00 "
            "[+3.59, +6.41], p = 0.010.",
            "- The FID of `last:2` does not clearly differ from that of `frozen`: frozen minus last:2 "
            "+0.00 [-2.24, +2.24], p = 1.000.",
        ]

    def test_extrapolation(self):
        rows = [
            {"variant": "a", "step": s, "n": n, "side": 0.5 + 0.02 * np.log2(n / 100) + 0.01 * np.log2(s / 10)}
            for s in (10, 20)
            for n in (100, 400)
        ]
        table = pd.DataFrame(rows)
        table = table.assign(side_low=table["side"] - 0.03, side_high=table["side"] + 0.03)
        assert tradeoff.extrapolation(table, "n", {"side": (0.5, 0.65)}) == (
            "- `a`, side that the report names: 0.550 [0.520, 0.580], above chance (0.5). A doubling of the steps "
            "changes it by +0.010, of the images by +0.020; at this pace 0.65 takes 5.0 doublings of the images."
        )
        fallen = tradeoff.extrapolation(table.assign(n=1000 / table["n"]), "n", {"side": (0.5, 0.65)})
        assert fallen.endswith("of the images by -0.020; this does not lead to 0.65.")
        assert "this does not lead to 3" in tradeoff.extrapolation(table, "n", {"side": (0.5, 3)})
        assert tradeoff.extrapolation(table[table["n"] == 100], "n", {"side": (0.5, 0.65)}) == ""
        assert "; 0.54 is reached." in tradeoff.extrapolation(table, "n", {"side": (0.5, 0.54)})
        start = table.assign(step=0, side=np.nan)
        again = tradeoff.extrapolation(pd.concat([start, table]), "n", {"side": (0.5, 0.65)})
        assert again == tradeoff.extrapolation(table, "n", {"side": (0.5, 0.65)})


class TestKnowledge:
    def test_robust(self):
        losses = pd.DataFrame(
            [("rules", 0.5, 0.0, 1.0), ("TF-IDF", 9.0, 5.0, 12.0), ("frozen", 2.5, 1.0, 4.0)],
            columns=["reader", "lost", "lost_low", "lost_high"],
        )
        assert knowledge.robust(losses) == (
            "Under all formatting changes at once, `rules` loses less than 3 points (0.5 [0.0, 1.0]); `TF-IDF` loses "
            "more than 3 points (9.0 [5.0, 12.0]); `frozen` does not clearly lose less than 3 points (2.5 [1.0, 4.0])."
        )

    def test_images(self):
        levels = dict(
            zip(VARIANTS, (Interval(0.7, 0.6, 0.8), Interval(0.5, 0.4, 0.6), Interval(0.9, 0.8, 0.95)), strict=True)
        )
        assert knowledge.images(levels, dict(zip(VARIANTS, (UP, FLAT, DOWN), strict=True))).split("\n") == [
            "- `frozen` recognises findings on average: mean AUC over findings 0.700 [0.600, 0.800]. The "
            "classifier does better: +0.100 [+0.050, +0.150].",
            "- `learnable` is not clearly better than chance: mean AUC over findings 0.500 [0.400, 0.600]. The "
            "classifier does not clearly differ from it: +0.020 [-0.050, +0.090].",
            "- `last:2` recognises findings on average: mean AUC over findings 0.900 [0.800, 0.950]. The "
            "classifier does worse: -0.100 [-0.150, -0.050].",
        ]

    @pytest.mark.parametrize(
        ("known", "pointed", "expected"),
        [
            (DOWN, DOWN, "points worse (-0.100 [-0.150, -0.050]); it has lost knowledge, too."),
            (UP, DOWN, "points worse (-0.100 [-0.150, -0.050]); it knows more all the same."),
            (FLAT, DOWN, "; no loss of knowledge is seen that would explain it."),
            (UP, FLAT, "by the word test it does not clearly point better or worse (+0.020 [-0.050, +0.090])."),
            (UP, UP, "by the word test it points better (+0.100 [+0.050, +0.150])."),
        ],
    )
    def test_answer(self, known, pointed, expected):
        knows = {"from the report": {"learnable": known}, "from the image": {"learnable": FLAT}}
        text = knowledge.answer(knows, {"learnable": {"gain_auc_roc": UP, "word": pointed}}, "frozen")
        knowing = {UP: "knows more", DOWN: "knows less", FLAT: "does not clearly know more"}[known]
        assert text.startswith(f"- Compared with `frozen`, `learnable` {knowing} from the report (")
        assert " and does not clearly know more from the image (+0.020 [-0.050, +0.090]); by the gain in" in text
        assert text.endswith(expected)

    def test_answer_of_many_variants(self):
        knows = {"from the report": dict.fromkeys(VARIANTS[1:], UP)}
        text = knowledge.answer(knows, {name: {"word": DOWN} for name in VARIANTS[1:]}, "frozen")
        assert text.count("\n") == len(VARIANTS) - 2
        assert knowledge.answer({}, {}, "frozen") == ""


class TestPointing:
    """Chapters 3, 4 and 8: the endpoint and the one answer."""

    def rows(self, gain, word):
        n = len(gain)
        who = [str(i) for i in range(n)]
        patients = {"study": who, "patient": who, "chance_gain_auc_roc": 0.0, "chance_word": 0.5}
        return pd.DataFrame({"gain_auc_roc": gain, "word": word} | patients)

    def test_a_model_points_only_if_image_and_word_count(self):
        settings = StatisticsSettings(resamples=200)
        both = say.localization.looks("a", self.rows([0.1, 0.2, 0.3, 0.2], [1.0, 1.0, 1.0, 1.0]), settings)
        assert "So `a` passes every test" in both
        assert "(4 phrases of 4 images)" in both
        one = say.localization.looks("a", self.rows([0.1, 0.2, 0.3, 0.2], [0.0, 1.0, 0.0, 1.0]), settings)
        assert "does not pass" in one
        none = say.localization.looks("a", self.rows([0.1, 0.2, 0.3, 0.2], [math.nan] * 4), settings)
        assert "no phrase can be tested" in none
        assert "does not pass" in none

    @pytest.mark.parametrize(
        ("gain", "word", "fid", "start"),
        [
            (
                (0.1, 0.05, 0.15),
                (0.1, 0.05, 0.15),
                (2, 1, 3),
                "**Reproduced in this setting**: `learnable` points worse",
            ),
            ((0.1, 0.05, 0.15), (0.0, -0.1, 0.1), (-2, -3, -1), "**Not reproduced in"),
            ((0.1, 0.05, 0.15), (0.0, -0.1, 0.1), (1, -1, 3), "**Not reproduced in"),
            ((0.0, -0.1, 0.1), (0.0, -0.1, 0.1), (2, 1, 3), "**Not reproduced in"),
            ((-0.1, -0.15, -0.05), (0.0, -0.1, 0.1), (2, 1, 3), "**Not reproduced in"),
            ((-0.1, -0.15, -0.05), (-0.1, -0.15, -0.05), (2, 1, 3), "**Contradicted in"),
            ((-0.1, -0.15, -0.05), (0.1, 0.05, 0.15), (2, 1, 3), "**Not reproduced in"),
        ],
    )
    def test_the_answer_follows_from_the_endpoint_alone(self, gain, word, fid, start):
        points = [
            Comparison(*values, 0.01, metric=name, a="frozen", b="learnable", step=1, phrases=9, patients=9, seeds=1)
            for name, values in (("gain_auc_roc", gain), ("word", word))
        ]
        text = say.tradeoff.answer(points, {"learnable": Difference(*fid, 0.01)})
        assert text.removeprefix("- ").startswith(start)
        assert ("by one test of the endpoint, not clearly" in text) == (gain[0] < 0 == word[0])
        # A reason follows each "not reproduced".
        assert ("points worse than `frozen`, but by FID its images are" in text) == (gain[0] > 0 and fid[1] <= 0)
        assert ("points better than `frozen` by one test and worse by another, and by FID" in text) == (
            gain[0] < word[1]
        )

    def test_there_are_three_verdicts(self):
        fids = [Difference(*values, 0.5) for values in ((2, 1, 3), (0, -1, 1), (-2, -3, -1))]
        cases = runs.read_yaml(Path(say.tradeoff.__file__).with_suffix(".yaml"))["cases"].values()
        found = {say.words.filled(verdict, fid=fid) for verdict, *_ in cases for fid in fids}
        assert found == {"Reproduced", "Not reproduced", "Contradicted"}

    def test_the_detectable_difference_stands_beside_the_verdict(self):
        points = [comparison(-0.1, -0.2, 0.0, metric="word", detectable=0.123)]
        fid = {"learnable": Difference(1, 0.5, 2, 0.01)}
        assert "four times in five if it is at least 0.123 (word test)." in say.tradeoff.answer(points, fid)
        alone = [comparison(-0.1, -0.2, 0.0, metric="word", detectable=math.nan)]
        assert "four times in five" not in say.tradeoff.answer(alone, fid)

    def test_over_seeds_there_is_no_p(self):
        points = {"gain_auc_roc": Interval(-0.1, -0.2, -0.05), "word": Interval(-0.1, -0.2, 0.1)}
        text = say.tradeoff.verdict("learnable", "frozen", points, Interval(-0.5, -0.7, -0.4))
        assert "by FID its images are farther from the held-out ones. Differences, frozen minus learnable:" in text
        assert text.endswith(
            "gain in AUC-ROC -0.100 [-0.200, -0.050]; word test -0.100 [-0.200, +0.100]; FID -0.50 [-0.70, -0.40]."
        )

    def test_a_score_of_which_less_is_better_points_the_other_way(self):
        points = {"centre_distance": Interval(-0.1, -0.2, -0.05)}  # of frozen, which points better
        assert "`learnable` points worse" in say.tradeoff.verdict("learnable", "frozen", points, Interval(1, 0.5, 2))

    def test_kinds_by_hand(self):
        up, down, wide = Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(0.1, -0.1, 0.3)
        rows = {
            "paper": (down, wide, down, up),  # FID falls, which is better
            "lost": (down, down, up, wide),
            "gain": (up, up, wide, up),
            "half": (up, wide, wide, up),  # points better by one test: not decided
            "back": (up, up, up, wide),
            "both": (down, down, up, up),  # images better and worse
            "none": (wide, wide, wide, wide),
        }
        columns = ["gain_auc_roc", "word", "fid", "classifier_auc"]
        found = say.tradeoff.kinds(pd.DataFrame.from_dict(rows, orient="index", columns=columns), columns[:2])
        assert found["kind"].to_dict() == {
            "paper": "trade-off",
            "lost": "collapse of both",
            "gain": "gain of both",
            "half": "open",
            "back": "reverse of the trade-off",
            "both": "open",
            "none": "open",
        }
        assert found["images"].tolist()[:4] == ["better", "worse", "better by one score", "better by one score"]
        assert found["maps"].tolist()[3:] == ["better by one score", "better", "worse", "open"]
        assert found.loc["both", "images"] == "better and worse"
        assert say.tradeoff.counted_kinds(found["kind"]) == (
            "Of 7 rows: trade-off in 1, collapse of both in 1, gain of both in 1, reverse of the trade-off in 1 "
            "and open in 3."
        )
        assert "trade-off in none," in say.tradeoff.counted_kinds(["open"])

    def test_conditions_name_the_two_rates(self):
        found = say.tradeoff.conditions(profiles.load("paper"))
        assert found["learning rate of the text encoder"].endswith("(1 × the U-Net's)")
        assert found["timesteps read"] == "40: the last 40 of 50"
        few = say.tradeoff.conditions(profiles.load("recipes"))["timesteps read"]
        assert few == "10: one in 4 of the last 40 of 50"
        assert (
            found["states of padding"] != say.tradeoff.conditions(profiles.load("demo"))["states of padding"] == "zero"
        )


class TestRecipes:
    """Chapter 10."""

    def table(self, **shifts):
        rows = [
            {"variant": v, "seed": s, "step": 10, "word": 0.8 + w + 1e-4 * s * s, "classifier_auc": 0.7 + a - 1e-4 * s}
            for v, (w, a) in {"frozen": (0, 0), "learnable": (-0.1, 0.1), **shifts}.items()
            for s in range(3)
        ]
        return pd.DataFrame(rows)

    def test_success_is_no_worse_than_frozen_and_than_learnable(self):
        table = self.table(good=(0.0, 0.1), mute=(-0.2, 0.1), dull=(0.0, 0.0))
        found = say.recipes.verdicts(table, ["word"])
        assert found["both"].to_dict() == {"learnable": "no", "good": "yes", "mute": "no", "dull": "no"}
        assert say.recipes.answer(found).startswith("**Yes**: with `good` (adjusted p = 0.0")
        weak = say.recipes.answer(found.assign(p=0.03))
        assert weak.startswith("**Yes**, but not after adjustment: with `good` (adjusted p = 0.030, not below")
        text = say.recipes.principles(found, {"A": ["good"], "B": ["mute", "dull"], "C": ["absent"]})
        assert "**A**: supported (`good`" in text
        assert "One recipe says little about a kind." in text
        assert "**B**: refuted" in text
        assert "`mute` refutes it, word test − frozen: -0.200" in text  # further below the margin than `dull`
        assert "**C**" not in text
        alone = found.loc[["mute"]].map(lambda d: Interval(0.1, np.nan, np.nan) if isinstance(d, Interval) else d)
        beside = pd.concat([found.loc[["mute"]], alone.rename(index={"mute": "once"}).assign(both="too few seeds")])
        assert "`mute` refutes it" in say.recipes.principles(beside, {"A": ["once", "mute"]})

    def test_no_worse_than_learnable_is_also_no_worse_than_frozen(self):
        table = self.table(good=(0.0, 0.1))
        learnt = table["variant"].isin(["learnable", "good"]) & (table["seed"] == 0)
        table.loc[learnt, "classifier_auc"] -= 0.2  # both differ from frozen as much by seed, and not from each other
        found = say.recipes.verdicts(table, ["word"])
        assert found["classifier AUC − learnable"]["good"].low > -0.01 > found["classifier AUC − frozen"]["good"].low
        assert found["both"]["good"] == "open"

    def test_a_seed_on_two_devices_is_one_seed(self):
        rows = [
            {"variant": v, "seed": 0, "device": d, "step": 1, "word": word}
            for d, shift in (("cpu", 0.0), ("gpu", 0.1))
            for v, word in (("frozen", 0.5), ("a", 0.6 + shift))
        ]
        d = say.recipes.over_seeds(pd.DataFrame(rows), "word", "frozen")["a"]
        assert d.estimate == pytest.approx(0.15)
        assert np.isnan(d.low)

    def test_two_bases_are_judged_together(self):
        one = say.recipes.verdicts(self.table(good=(0.0, 0.1), other=(0.0, 0.1)), ["word"])
        two = say.recipes.verdicts(self.table(good=(0.0, 0.1), other=(-0.2, 0.1)), ["word"])
        text = say.recipes.joint({"a": one, "b": two.assign(p=0.001)})
        assert text.startswith("**`a` and `b` together**: all three tests are passed in each by `good` if")
        assert ("by `good` after Holm" in text) == (one["p"]["good"] < 0.025)
        assert "by no recipe after Holm" in say.recipes.joint({"a": one, "b": two.assign(p=0.03)})
        assert "by no recipe if" in say.recipes.joint({"a": one.drop(index="good"), "b": two})

    def test_one_seed_gives_no_interval_and_a_wide_one_decides_nothing(self):
        table = self.table(other=(0.0, 0.1))
        assert say.recipes.verdicts(table[table["seed"] == 0], ["word"])["both"]["other"] == "too few seeds"
        table.loc[(table["variant"] == "other") & (table["seed"] == 1), "word"] += 0.3
        found = say.recipes.verdicts(table, ["word"])
        assert found["both"]["other"] == "open"
        assert "comes nearest" in say.recipes.answer(found)

    def test_a_run_is_compared_with_the_frozen_run_of_its_own_device(self):
        """On the CPU every word test is higher by 0.2, of frozen too: that is no effect of the recipe."""
        gpu, cpu = self.table(there=(0.0, 0.1)), self.table(here=(0.0, 0.1)).query("variant != 'learnable'")
        table = pd.concat(
            [gpu.assign(device="GPU"), cpu.assign(device="CPU", word=cpu["word"] + 0.2)], ignore_index=True
        )
        moved = say.recipes.over_seeds(table, "word", "frozen")
        assert moved.map(lambda d: round(d.estimate, 6)).to_dict() == {"learnable": -0.1, "there": 0.0, "here": 0.0}
        alone = table[~((table["variant"] == "frozen") & (table["device"] == "CPU"))]
        assert "here" not in say.recipes.over_seeds(alone, "word", "frozen")  # nothing to compare it with
        assert say.recipes.over_seeds(alone.drop(columns="device"), "word", "frozen")["here"].estimate > 0.19

    def test_other_patients_widen_what_seeds_alone_say(self):
        """Every seed gains 0.1, but only for half of the patients."""
        rows = [
            {"variant": name, "seed": seed, "device": device, "patient": p, "study": p, "finding": "Edema"}
            | {"word": 0.5 + 0.2 * (p % 2) * (name == "a")}
            for name, device in (("frozen", "CPU"), ("a", "CPU"), ("alone", "GPU"))
            for seed in range(3)
            for p in range(40)
        ]
        found = say.recipes.over_seeds_and_patients(pd.DataFrame(rows), "word", "frozen")
        assert [*found.index] == ["a"]
        assert (found["a"].seeds, found["a"].patients) == (3, 40)
        assert found["a"].estimate == pytest.approx(0.1)
        half = student.ppf(0.975, 39) * 0.2 * np.sqrt(0.25 / 39)  # every patient is 0.1 off the mean
        assert found["a"].high - found["a"].estimate == pytest.approx(half, rel=1e-6)

    def test_a_second_test_without_learnable_asks_of_seeds_and_patients(self):
        """By its seeds alone a recipe that only a few patients lose passes; their interval reaches below the margin."""
        table = self.table(good=(0.0, 0.1), luck=(0.0, 0.1)).query("variant != 'learnable'").assign(device="CPU")
        rows = [
            {"variant": name, "seed": seed, "device": "CPU", "patient": p, "study": p, "finding": "Edema"}
            | {"word": 0.5 + 0.01 * seed + (0.4 * (-1) ** p * (p < 20) if name == "luck" else 0.0)}
            for name in ("frozen", "good", "luck")
            for seed in table["seed"].unique()
            for p in range(100)
        ]
        assert say.recipes.verdicts(table, ["word"])["both"].to_dict() == {"good": "yes", "luck": "yes"}
        found = say.recipes.verdicts(table, ["word"], phrases=pd.DataFrame(rows))
        assert found["both"].to_dict() == {"good": "yes", "luck": "open"}
        assert "classifier AUC − frozen" in found
        assert "no worse than with frozen, by the stated margin" in say.recipes.answer(found)
        # The one-sided p-value is that of the interval, here Student's over patients: the seeds do not differ.
        half = found["word test − frozen"]["luck"].high - found["word test − frozen"]["luck"].estimate
        t = 0.01 / (half / student.ppf(0.975, 99))
        assert found["p"]["luck"] == pytest.approx(student.sf(t, 99), rel=1e-4)
        one = [row | {"patient": 0, "study": 0} for row in rows if row["patient"] == 0]
        assert say.recipes.verdicts(table, ["word"], phrases=pd.DataFrame(one))["p"].isna().all()

    @given(st.integers(0, 10**6), st.floats(-0.1, 0.1), st.integers(2, 6))
    @settings(max_examples=30, deadline=None)
    def test_the_p_value_over_seeds_and_patients_is_that_of_their_interval(self, draw, shift, seeds):
        """It is below 2.5 % where the lower end of the 95 % interval is above the bound, whatever varies."""
        rng = np.random.default_rng(draw)
        effects = shift + 0.05 * rng.normal(size=(1, seeds)) + 0.1 * rng.normal(size=(40, 1))
        values = effects + 0.1 * rng.normal(size=(40, seeds))
        rows = [
            {"variant": name, "seed": seed, "device": "CPU", "patient": p, "study": p, "finding": "Edema"}
            | {"word": 0.5 + values[p, seed] * (name == "a"), "classifier_auc": 0.9 + 0.1 * (name == "a"), "step": 1}
            for name in ("frozen", "a")
            for seed in range(seeds)
            for p in range(40)
        ]
        table = pd.DataFrame(rows)
        found = say.recipes.verdicts(table.query("patient == 0"), ["word"], phrases=table).loc["a"]
        assert (found["p"] < 0.025) == (found["word test − frozen"].low > -0.01)

    def test_without_another_recipe_there_is_no_answer(self):
        found = say.recipes.verdicts(self.table(), ["word"])
        assert say.recipes.answer(found) == "No other recipe has been run on the same seeds yet."

    def test_learnable_itself_may_have_both(self):
        found = say.recipes.verdicts(self.table(learnable=(0.02, 0.1)), ["word"])
        assert found["both"].to_dict() == {"learnable": "yes"}
        assert say.recipes.answer(found).startswith("`learnable` itself points and generates no worse than frozen")

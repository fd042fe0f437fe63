"""What a model knows: truth from indexers, attention over words only, reports in another form, errors under prompts."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from chestxai import knowledge, models, reports, sources
from chestxai.knowledge import Passage
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Finding, Study
from tests import tiny

PHANTOMS = sources.load("phantom", split="val", n=80, size=32)
REPORT = (
    "INDICATION: Evaluate for pneumonia.\nFINDINGS: There is a small left pleural effusion. No pneumothorax. "
    "The examination is limited.\nIMPRESSION: 1. Small left pleural effusion. 2. No edema"
)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.random_pipeline("bert")


def stated(text: str) -> set[tuple[str, bool]]:
    return {(f.name, f.present) for f in reports.find(text)}


class TestTruth:
    @pytest.mark.parametrize(
        ("terms", "expected"),
        [
            ("normal", set()),
            ("Opacity/lung/base/left; Cardiomegaly/mild", {"Lung Opacity", "Cardiomegaly"}),
            ("Pneumonectomy/lung/left; Pneumoperitoneum; Lung/hypoinflation", set()),
            ("Cardiac Shadow/enlarged/mild", {"Cardiomegaly"}),
            ("Cardiac Shadow/obscured; Pericardial Effusion", set()),
            ("Costophrenic Angle/sulcus/left/blunted; Costophrenic Angle/right/obscured", {"Pleural Effusion"}),
            ("Hydropneumothorax/left", {"Pleural Effusion", "Pneumothorax"}),
            ("Heart Failure; Pulmonary Congestion/mild", {"Edema"}),
        ],
    )
    def test_indexers_terms(self, terms, expected):
        labels = knowledge.mesh_labels(terms)
        assert {name for name, there in zip(FINDINGS, labels, strict=True) if there} == expected

    def test_what_was_not_indexed_is_not_normal(self):
        assert knowledge.mesh_labels("No Indexing") is None
        assert knowledge.mesh_labels("") is None

    def test_the_indexers_outrank_what_was_read(self):
        def study(**attributes):
            return Study("a", "a", "s", "test", "", (1, 1), (Finding("Edema"),), attributes=attributes)

        labels, kept = knowledge.truth(
            [study(), study(mesh_major="No Indexing"), study(mesh_major="Pneumonia/lower lobe")]
        )
        assert kept == [0, 2]
        assert labels.tolist() == [[n == "Edema" for n in FINDINGS], [n == "Pneumonia" for n in FINDINGS]]
        assert knowledge.truth([])[0].shape == (0, 8)

    @pytest.mark.parametrize(
        ("terms", "expected"),
        [
            ("Opacity/lung/base/left; Cardiomegaly/mild", {"Lung Opacity": "left"}),
            ("Opacity/lung/base/left; Infiltrate/lung/right", {"Lung Opacity": "bilateral"}),
            ("Pleural Effusion/bilateral; Pleural Effusion/left/small", {"Pleural Effusion": "bilateral"}),
            ("Costophrenic Angle/right/blunted; Scarring/lung/left", {"Pleural Effusion": "right"}),
            ("Hydropneumothorax/left", {"Pleural Effusion": "left", "Pneumothorax": "left"}),
            ("normal", {}),
        ],
    )
    def test_indexers_sides(self, terms, expected):
        assert knowledge.mesh_sides(terms) == expected

    def test_the_rules_are_scored_by_hand(self):
        def study(name: str, report: str, major: str) -> Study:
            return Study(name, name, "openi", "test", report, (1, 1), attributes={"mesh_major": major})

        left = study("1", "Left pleural effusion.", "Pleural Effusion/left")
        some = [
            left,
            replace(left, id="1b"),  # another image of the same report
            study("2", "Pleural effusion on the right. No edema.", "Pleural Effusion/bilateral"),
            study("3", "There may be pneumonia.", "Opacity/lung"),
            study("4", "Clear lungs.", "normal"),
            study("5", "Mild scoliosis. Pneumothorax.", "normal"),
            study("6", "Effusion.", "No Indexing"),
        ]
        found = knowledge.rule_scores(some)
        assert list(found.index) == [*FINDINGS, "normal"]
        effusion, pneumonia, opacity, gas, normal = (
            found.loc[name].to_dict()
            for name in ("Pleural Effusion", "Pneumonia", "Lung Opacity", "Pneumothorax", "normal")
        )
        assert effusion == {
            "there": 2, "precision": 1, "recall": 1, "f1": 1, "wrong": 0, "hedged": 0, "sided": 2, "side_right": 0.5,
        }  # fmt: skip
        assert (pneumonia["there"], pneumonia["precision"], pneumonia["f1"]) == (0, 0, 0)
        assert (pneumonia["wrong"], pneumonia["hedged"]) == (1, 1)
        assert (opacity["there"], opacity["recall"], opacity["f1"]) == (1, 0, 0)
        assert np.isnan(opacity["precision"])
        assert (gas["wrong"], gas["hedged"]) == (1, 0)
        assert (normal["there"], normal["precision"], normal["recall"]) == (2, 1, 0.5)

    def test_of_phantoms_the_truth_is_their_own(self):
        found = knowledge.rule_scores(PHANTOMS)
        assert "normal" not in found.index
        assert found["there"].sum() == sum(len({f.name for f in s.present()}) for s in PHANTOMS)
        assert found["f1"].min() > 0.95

    def test_rare_findings_are_left_out(self):
        train, test = np.zeros((20, 8)), np.zeros((10, 8))
        train[:6, :3] = 1
        test[:5, 0], test[:4, 1], test[:6, 2] = 1, 1, 1
        assert knowledge.judgeable([train, test], least=5) == [FINDINGS[0]]  # of 2, only four do not have it
        assert knowledge.columns(["Edema", "Atelectasis"]) == [FINDINGS.index("Edema"), FINDINGS.index("Atelectasis")]


class TestPassages:
    def test_sentences_and_items(self):
        text = "1. Small effusion. 2. Seen by Dr. Smith on film 12. At 2.5 cm.\n- no edema\n- clear\n\nStable"
        assert knowledge.sentences(text) == [
            "Small effusion.", "Seen by Dr. Smith on film 12.", "At 2.5 cm.", "no edema", "clear", "Stable",
        ]  # fmt: skip

    def test_the_label_of_an_item_is_none_of_its_words_whatever_it_is(self):
        text = "Finding 1: Small effusion.\nPoint 12: no edema\nÖdem 3: none. Scan of 2012: clear. Zone 2 is clear."
        assert knowledge.sentences(text.replace("\n", ". ")) == [
            "Small effusion..", "no edema.", "none.", "Scan of 2012: clear.", "Zone 2 is clear.",
        ]  # fmt: skip

    @given(st.integers(0, 10_000))
    @settings(max_examples=60, deadline=None)
    def test_a_template_changes_no_passage(self, seed):
        # So a reader of encoder states cannot lose by it, whatever the encoder.
        report = PHANTOMS[seed % len(PHANTOMS)].report
        assert knowledge.passages(knowledge.change(report, "template", 1.0, seed)) == knowledge.passages(report)

    def test_only_what_is_said_of_the_image(self):
        assert knowledge.passages(REPORT) == [
            "There is a small left pleural effusion.", "No pneumothorax.", "The examination is limited.",
            "Small left pleural effusion.", "No edema.",
        ]  # fmt: skip


class TestRead:
    def test_states_are_the_encoders(self, pipeline):
        ((passage,),) = knowledge.read(pipeline, ["No small effusion."])
        whole = models.encode_text(pipeline, ["No small effusion."])[0]
        # [CLS] stands before, [SEP] and padding after.
        torch.testing.assert_close(passage.states, whole[1 : 1 + len(passage.spans)])
        assert [passage.text[a:b] for a, b in passage.spans] == ["No", "small", "effusion", "."]

    def test_clip_too(self):
        clip = tiny.random_pipeline("sd")
        text = "No small effusion."
        ((passage,),) = knowledge.read(clip, [text])
        whole = models.encode_text(clip, [text])[0]
        torch.testing.assert_close(passage.states, whole[1 : 1 + len(passage.spans)], rtol=1e-4, atol=1e-5)
        assert passage.text[slice(*passage.spans[2])] == "effusion"

    def test_neighbours_make_no_difference(self, pipeline):
        short, long = "No edema.", "There is a moderate left pleural effusion and a small right pneumothorax."
        alone = knowledge.read(pipeline, [short])[0][0].states
        among = knowledge.read(pipeline, [long, short, REPORT], batch=8)[1][0].states
        torch.testing.assert_close(alone, among)

    def test_no_word_of_a_long_sentence_is_cut_off(self, pipeline):
        text = " ".join(f"effusion{i}" for i in range(60)) + "."
        (reading,) = knowledge.read(pipeline, [text])
        assert len(reading) > 1
        read = {i for passage in reading for a, b in passage.spans for i in range(a, b)}
        assert read == {i for i, c in enumerate(text) if c != " "}

    def test_equal_sentences_are_encoded_once(self, pipeline):
        cache: dict = {}
        knowledge.read(pipeline, ["No edema. No edema.", "NO EDEMA."], cache)
        assert len(cache) == 1  # this encoder knows no case
        (ids,) = cache
        cache[ids] = torch.zeros_like(cache[ids])
        assert not knowledge.read(pipeline, ["no edema"], cache)[0][0].states.any()

    def test_an_empty_report_is_named(self, pipeline):
        with pytest.raises(InputError, match="report 1 does not describe the image"):
            knowledge.read(pipeline, ["No edema.", "FINDINGS: ___"])


def planted(n: int, seed: int = 0, width: int = 6) -> tuple[list[list[Passage]], np.ndarray]:
    """Reports of 2 to 9 tokens of noise; finding 0 is there where one token points along the first axis."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.random(n) < 0.4, rng.random(n) < 0.5], axis=1).astype(np.float32)
    readings = []
    for row in labels:
        states = rng.normal(0, 0.3, (rng.integers(2, 10), width)).astype(np.float32)
        for k in range(2):
            if row[k]:
                states[rng.integers(len(states))] += 3 * np.eye(width, dtype=np.float32)[k]
        spans = tuple((i, i + 1) for i in range(len(states)))
        readings.append([Passage("a" * len(states), spans, torch.from_numpy(states))])
    return readings, labels


class TestAttentionPool:
    def test_the_formula(self):
        rng = np.random.default_rng(0)
        pool = knowledge.AttentionPool(4, 2)
        q, w, b, mean, spread = (rng.normal(size=s).astype(np.float32) for s in ((2, 4), (2, 4), 2, 4, 4))
        spread = abs(spread) + 0.5
        for name, value in (("query", q), ("weight", w), ("bias", b), ("mean", mean), ("spread", spread)):
            getattr(pool, name).data.copy_(torch.from_numpy(value))
        states = rng.normal(size=(3, 4)).astype(np.float32)
        z = (states - mean) / spread
        a = np.exp(z @ q.T) / np.exp(z @ q.T).sum(axis=0)
        logits, attention = pool(torch.from_numpy(states)[None], torch.ones(1, 3, dtype=torch.bool))
        np.testing.assert_allclose(attention[0].detach(), a.T, rtol=1e-4)
        np.testing.assert_allclose(logits[0].detach(), ((a.T @ z) * w).sum(axis=1) + b, rtol=1e-4)

    def test_padding_is_never_read(self):
        torch.manual_seed(0)
        pool = knowledge.AttentionPool(4, 2)
        torch.nn.init.normal_(pool.query)
        states, real = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
        logits, attention = pool(states, real)
        loud = states.clone()
        loud[0, 3:] = 1e4
        assert torch.equal(pool(loud, real)[0], logits)
        assert not attention[0, :, 3:].any()
        torch.testing.assert_close(attention.sum(dim=2), torch.ones(2, 2))

    def test_finds_the_token_that_tells(self):
        pool = knowledge.train_pool(*planted(200), seed=0)
        readings, labels = planted(100, seed=1)
        probabilities = knowledge.pool_probabilities(pool, readings)
        assert probabilities.shape == (100, 2)
        assert knowledge.macro_auc(probabilities, labels) > 0.98
        hits = []
        for reading, row in zip(readings, labels, strict=True):
            if row[0]:
                weights = [weight[0] for _, weight in knowledge.attended(pool, reading)]
                hits.append(np.sum(weights) == pytest.approx(1, abs=1e-5))
        assert all(hits)
        many = [(r, int(r[0].states[:, 0].argmax())) for r, row in zip(readings, labels, strict=True) if row[0]]
        found = [int(pool(r[0].states[None], torch.ones(1, len(r[0].spans)).bool())[1][0, 0].argmax()) for r, _ in many]
        assert np.mean([a == b for a, (_, b) in zip(found, many, strict=True)]) > 0.9

    def test_the_seed_decides(self):
        readings, labels = planted(40)
        first, again, other = (knowledge.train_pool(readings, labels, epochs=2, seed=s) for s in (0, 0, 1))
        assert torch.equal(first.query, again.query)
        assert not torch.equal(first.query, other.query)

    def test_labels_must_fit(self):
        readings, labels = planted(10)
        with pytest.raises(ValueError, match=r"10 reports need labels \(10, k\), got \(9, 2\)"):
            knowledge.train_pool(readings, labels[:9])

    def test_attention_is_told_by_words(self, pipeline):
        text = "No hydropneumothorax, small edema."  # the second word is many pieces
        (reading,) = knowledge.read(pipeline, [text])
        torch.manual_seed(0)
        pool = knowledge.AttentionPool(32, 3)
        torch.nn.init.normal_(pool.query)
        words = knowledge.attended(pool, reading)
        assert [word for word, _ in words] == ["No", "hydropneumothorax", ",", "small", "edema", "."]
        raw = pool(reading[0].states[None], torch.ones(1, len(reading[0].spans)).bool())[1][0].detach().numpy()
        assert len(raw[0]) > len(words)
        np.testing.assert_allclose(words[0][1], raw[:, 0], rtol=1e-5)
        np.testing.assert_allclose(words[1][1], raw[:, 1:-4].sum(axis=1), rtol=1e-4)


class TestBaselines:
    def test_tfidf_tells_a_finding_from_its_denial(self):
        texts = ["Large effusion.", "No effusion.", "Small effusion. No edema.", "No effusion. Edema."] * 8
        labels = np.array([[1, 0], [0, 0], [1, 0], [0, 1]] * 8)
        model = knowledge.train_tfidf(texts, labels)
        # Headers and what the indication says are not read.
        asked = ["FINDINGS: LARGE EFFUSION", "INDICATION: Edema.\nIMPRESSION: No effusion."]
        assert (model.predict_proba(asked) > 0.5).tolist() == [[True, False], [False, False]]

    def test_tfidf_of_a_single_finding(self):
        model = knowledge.train_tfidf(["Large effusion.", "No effusion."] * 8, np.array([[1], [0]] * 8))
        assert (model.predict_proba(["Large effusion.", "No effusion."]) > 0.5).tolist() == [[True], [False]]

    def test_a_column_of_one_class_is_refused(self):
        with pytest.raises(InputError, match="label column 1 has one class only"):
            knowledge.train_tfidf(["a b"] * 4, np.array([[0, 1], [1, 1], [0, 1], [1, 1]]))

    def test_rules_are_of_the_findings_asked_for(self):
        found = knowledge.rules([REPORT, "No effusion."], ["Edema", "Pleural Effusion"])
        assert found.tolist() == [[False, True], [False, False]]


class TestScores:
    @given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12))
    def test_no_threshold_is_better(self, rows):
        p, y = np.array([[a / 5] for a, _ in rows]), np.array([[b] for _, b in rows], dtype=float)
        cut = knowledge.thresholds(p, y)
        if not y.any():
            assert cut == [0.5]
            return
        tried = [knowledge.macro_f1(p > t, y) for t in np.linspace(-0.1, 1.1, 49)]
        assert knowledge.macro_f1(p > cut, y) == pytest.approx(np.nanmax(tried))

    def test_threshold_by_hand(self):
        # Above 0.65: two of three hits, all right, F1 0.8. Above 0.45: all hits and one miss, F1 6/7.
        p = np.array([[0.9], [0.7], [0.6], [0.5], [0.4]])
        assert knowledge.thresholds(p, np.array([[1], [1], [0], [1], [0]])) == pytest.approx([0.45])

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_f1_and_auc_are_scikit_learns(self, seed):
        rng = np.random.default_rng(seed)
        y, p, s = rng.random((12, 3)) < 0.4, rng.random((12, 3)) < 0.4, rng.integers(0, 4, (12, 3)) / 4
        ours, theirs = knowledge.f1(p, y), f1_score(y, p, average=None, zero_division=np.nan)
        np.testing.assert_allclose(ours, theirs)
        known = [i for i in range(3) if 0 < y[:, i].sum() < 12]
        if known:
            expected = np.mean([roc_auc_score(y[:, i], s[:, i]) for i in known])
            assert knowledge.macro_auc(s, y) == pytest.approx(expected)

    def test_undefined_findings_do_not_count(self):
        y, p = np.array([[1, 0], [0, 0]]), np.array([[1, 0], [1, 0]])
        assert knowledge.macro_f1(p, y) == pytest.approx(2 / 3)
        assert np.isnan(knowledge.macro_f1(p[:, 1:], y[:, 1:]))
        assert np.isnan(knowledge.macro_auc(p[:, 1:], y[:, 1:]))

    def test_differences_are_paired(self):
        rng = np.random.default_rng(0)
        y = rng.random((60, 2)) < 0.5
        right, wrong = y.copy(), y.copy()
        wrong[:12] = ~wrong[:12]
        same = knowledge.difference(right, right, y, n=50)
        assert (same.estimate, same.low, same.high) == (0, 0, 0)
        gap = knowledge.difference(right, wrong, y, n=200)
        assert 0 < gap.low < gap.estimate < gap.high
        assert gap.estimate == pytest.approx(1 - knowledge.macro_f1(wrong, y))
        assert knowledge.scored(wrong, y, n=50).estimate == pytest.approx(knowledge.macro_f1(wrong, y))

    def test_robustness_sees_what_a_reader_hangs_on(self):
        texts = [s.report for s in PHANTOMS]
        labels = np.stack([s.labels() for s in PHANTOMS])

        def literal(some):
            return np.array([[name in text for name in FINDINGS] for text in some])

        words = ["Pneumonia." if row[FINDINGS.index("Pneumonia")] else "Clear." for row in labels]
        table = knowledge.robustness(
            {"rules": knowledge.rules, "literal": lambda some: literal(some)},
            words, (labels * (np.array(FINDINGS) == "Pneumonia")), range(len(words)),
            {"upper or lower case": ["case"]}, (0.0, 1.0), n=50,
        )  # fmt: skip
        lost = table.set_index(["reader", "strength"])["lost"]
        assert lost["rules", 1.0] == lost["rules", 0.0] == lost["literal", 0.0] == 0
        assert lost["literal", 1.0] > 10
        assert set(table.columns) >= {"change", "mean", "low", "high", "lost_low", "lost_high"}
        assert len(texts) == len(words)


DENIALS = re.compile(r"\b(?:no|not|without|w/o|free|clear|negative|resolved)\b", re.IGNORECASE)


class TestChange:
    @pytest.mark.parametrize("kind", ["case", "headers", "order", "template", "lines"])
    def test_rules_find_the_same_in_another_form(self, kind):
        for i, study in enumerate(PHANTOMS):
            for strength in (0.4, 1.0):
                changed = knowledge.change(study.report, kind, strength, i)
                assert stated(changed) == stated(study.report), changed

    def test_all_formatting_together(self):
        """Blanks may take a word that the rules need ("enlargement of the heart"), but never add or deny anything."""
        for i, study in enumerate(PHANTOMS):
            changed = knowledge.change(study.report, knowledge.FORMATTING, 1.0, i)
            assert stated(changed) <= stated(study.report), changed

    @pytest.mark.parametrize("kind", ["blanks", "typos", "abbreviations"])
    def test_what_is_left_untouched_says_the_same(self, kind):
        """Sentence by sentence: one whose statement has kept its words is read as before."""
        touched = 0
        for i, study in enumerate(PHANTOMS):
            before = knowledge.passages(study.report)
            after = knowledge.passages(knowledge.change(study.report, kind, 0.25, i))
            assert len(before) == len(after)
            for a, b in zip(before, after, strict=True):
                touched += a != b
                for f in reports.find(a):
                    if f.phrase in b:
                        assert (f.name, f.present) in stated(b), (a, b)
        assert touched > 20

    @pytest.mark.parametrize("kind", list(knowledge.CHANGES))
    def test_denials_are_kept(self, kind):
        for i, study in enumerate(PHANTOMS):
            said = "\n".join(knowledge.passages(study.report))
            changed = knowledge.change(said, kind, 1.0, i)
            assert len(DENIALS.findall(changed)) == len(DENIALS.findall(said)), changed

    @pytest.mark.parametrize("kind", list(knowledge.CHANGES))
    def test_strength_and_seed(self, kind):
        texts = [s.report for s in PHANTOMS]
        for i, text in enumerate(texts):
            assert knowledge.change(text, kind, 0.0, i) == text
            assert knowledge.change(text, kind, 0.6, i) == knowledge.change(text, kind, 0.6, i)
        moved = [np.mean([knowledge.change(t, kind, s, i) != t for i, t in enumerate(texts)]) for s in (0.1, 1.0)]
        assert moved[0] < moved[1]
        assert moved[1] > 0.6

    def test_lines_are_broken_between_words(self):
        text = "FINDINGS: " + "Small left effusion. " * 9 + "\n\nIMPRESSION: Small left effusion."
        changed = knowledge.change(text, "lines", 1.0)
        assert changed.split() == text.split()
        assert max(map(len, changed.split("\n"))) <= 80 + len("FINDINGS: ")
        assert "\n Small" in changed or "\n left" in changed or "\n effusion" in changed
        assert "\n\nIMPRESSION" in changed

    def test_blanks_take_only_what_means_nothing(self):
        changed = knowledge.change(REPORT, "blanks", 1.0)
        assert changed == REPORT.replace(" a ", " XXXX ").replace("The examination", "XXXX XXXX")

    def test_an_indication_without_its_header_would_be_a_statement(self):
        changed = knowledge.change(REPORT, "headers", 1.0)
        assert "pneumonia" not in changed
        assert not re.search("FINDINGS|IMPRESSION|INDICATION", changed)
        assert stated(changed) == stated(REPORT)

    def test_a_typing_error_is_one_and_never_in_a_word_that_denies(self):
        text = "Without consolidation, moderate effusion of the right base has resolved. See XXXXX."
        texts = ["Nothing to show.", "It couldn't be identified.", "Against edema."]
        assert all(
            knowledge.change(t, "typos", 1.0, seed).split()[0] == t.split()[0] for t in texts for seed in range(9)
        )
        for seed in range(30):
            pairs = list(zip(text.split(), knowledge.change(text, "typos", 1.0, seed).split(), strict=True))
            for before, after in pairs:
                if before.strip(".,").lower() in ("consolidation", "moderate", "effusion"):
                    assert before[0] == after[0]
                    assert abs(len(before) - len(after)) <= 1
                    assert sum(a != b for a, b in zip(before, after, strict=False)) <= 2 or len(before) != len(after)
                else:
                    assert before == after

    def test_abbreviations_by_hand(self):
        text = "Moderate right lower lobe consolidation without pleural effusion."
        assert knowledge.change(text, "abbreviations", 1.0) == "mod RLL consol w/o pl eff."

    def test_a_template_holds_every_sentence_once(self):
        seen = set()
        for seed in range(20):
            changed = knowledge.change("Small effusion. No edema. Clear.", "template", 1.0, seed)
            seen.add(changed)
            assert re.findall("Small effusion|No edema|Clear", changed) == ["Small effusion", "No edema", "Clear"]
        assert seen == {
            "1. Small effusion. 2. No edema. 3. Clear.",
            "\n- Small effusion\n- No edema\n- Clear",
            "\nObservation 1: Small effusion.\nObservation 2: No edema.\nObservation 3: Clear.",
        }

    def test_blanks_keep_their_case(self):
        assert "xxxx" not in knowledge.change("The XXXX is clear. Seen on XXXX.", "case", 1.0, 1)

    def test_unknown_changes_are_refused(self):
        with pytest.raises(InputError, match=r"unknown change 'style': choose from .*typos"):
            knowledge.change("Clear.", "style", 0.5)
        with pytest.raises(InputError, match=r"strength must be in \[0, 1\], got 2"):
            knowledge.change("Clear.", "case", 2)


class TestDenoisingErrors:
    prompts = ("Small effusion.", "Moderate left edema and effusion.", "Small effusion.", "Normal chest.")

    @pytest.fixture
    def images(self):
        return np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
    def test_is_the_mean_squared_error_by_hand(self, pipeline, images, kind, monkeypatch):
        schedule = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
        monkeypatch.setattr(pipeline, "scheduler", schedule)
        errors = knowledge.denoising_errors(pipeline, images, self.prompts, [100, 700])
        assert errors.shape == (3, 4, 2)
        x = models.encode_images(pipeline, images[1:2])
        text = models.encode_text(pipeline, self.prompts[1:2])
        abar, rng = float(schedule.alphas_cumprod[700]), np.random.default_rng([0, 1, 700, 0])
        noise = torch.from_numpy(rng.standard_normal(x.shape[1:], dtype=np.float32))[None]
        noisy = abar**0.5 * x + (1 - abar) ** 0.5 * noise
        target = noise if kind == "epsilon" else abar**0.5 * noise - (1 - abar) ** 0.5 * x
        with torch.no_grad():
            predicted = pipeline.unet(noisy, torch.tensor([700]), text)[0]
        assert errors[1, 1, 1] == pytest.approx(float((predicted - target).square().mean()), rel=1e-4)

    def test_prompts_of_an_image_see_the_same_noise(self, pipeline, images):
        errors = knowledge.denoising_errors(pipeline, images, self.prompts, [300])
        np.testing.assert_allclose(errors[:, 0], errors[:, 2], rtol=1e-5)
        assert abs(errors[:, 0] - errors[:, 1]).min() > 0
        alone = knowledge.denoising_errors(pipeline, images, self.prompts[:2], [300])
        np.testing.assert_allclose(alone, errors[:, :2], rtol=1e-4)

    def test_evidence_is_what_the_prompt_saves(self):
        errors = np.array([[[0.4, 0.2], [0.7, 0.5], [0.5, 0.3]]])  # two classes, then normal; two timesteps
        np.testing.assert_allclose(knowledge.evidence(errors), [[0.1, -0.2]])

    def test_every_finding_has_a_prompt_that_names_it(self):
        assert list(knowledge.PROMPTS) == list(FINDINGS)
        for name, prompt in knowledge.PROMPTS.items():
            assert stated(prompt) == {(name, True)}
        assert reports.normal(knowledge.NORMAL)

    def test_what_cannot_be_asked_is_refused(self, pipeline, images):
        with pytest.raises(InputError, match=r"expected uint8 images \(n, 32, 32\)"):
            knowledge.denoising_errors(pipeline, images[:, :16], self.prompts, [300])
        with pytest.raises(InputError, match=r"timesteps from 0 to 999: got 4 and \[1000\]"):
            knowledge.denoising_errors(pipeline, images, self.prompts, [1000])
        with pytest.raises(InputError, match="got 0 and"):
            knowledge.denoising_errors(pipeline, images, [], [100])

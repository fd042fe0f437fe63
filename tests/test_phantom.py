"""The chest phantom: determinism, exact truth, the physics of a radiograph, and reports that say what is shown."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from chestxai import localization, reports, sources
from chestxai.runs import InputError
from chestxai.sources import phantom
from chestxai.sources.phantom import MU, Lesion, Patient
from chestxai.studies import FINDINGS, Study, box_of, phrases

# The first three studies of seed 1, and of seed 2 without findings; a line is an image, row by row of blocks.
LOOK = """
 33.3 113.7 191.4 116.7   10.5  85.2 171.1  91.6    6.0 119.4 222.9 157.8    6.0  33.4 135.1  53.8
 77.1 137.3 100.5  82.0   71.9 138.2  95.6  73.9   75.2 150.9 103.7  57.4  104.9 194.4 171.4  50.9
 58.0 127.4  83.0  62.5   54.8 128.6  68.6  56.3   82.7 162.8 120.9  61.8   78.0 177.2 148.7  34.2
 65.1 113.6 125.4  68.0   52.6  84.1 101.1  65.7   57.9 117.2 143.6  80.4   53.8 178.7 183.3  73.3
 49.4 109.0 125.2  55.1   33.6  83.3  94.4  48.2   38.2 164.7 179.1  49.5    6.2 113.1 117.9   7.9
 48.0  85.4 161.9  84.3   27.8  73.1 160.4  73.9   11.2 108.6 192.4 116.0    5.3 154.4 231.0 145.1
"""
PLAIN = {"scanner": 0, "exposure": 0.0, "field": 34.0, "shift": (0.3, -0.4)}
SHAPE = np.random.default_rng(0).random(48)


@pytest.fixture(scope="module")
def many() -> list[Study]:
    return phantom.load(split="test", n=500, size=64, seed=5)


def person(k: int = 0, **changes: object) -> Patient:
    """One of many, without findings, noise of a scanner B, misjudged exposure, or odd position."""
    return replace(phantom.patient(9, "test", k, 0, normal=True), **(PLAIN | changes))


def expose(integral: np.ndarray, patients: list[Patient], size: int) -> np.ndarray:
    """A chest without lesions."""
    return phantom.expose(integral, patients, size, integral)


def with_lesion(one: Patient, name: str, side: int = 1, zone: str = "", amount: float = 0.6) -> Patient:
    return replace(one, lesions=(Lesion(name, side, zone, amount, SHAPE),))


class TestDeterminism:
    def test_the_same_settings_give_the_same_studies(self):
        first, again = (phantom.load(split="val", n=12, size=64, seed=3) for _ in range(2))
        assert first.fingerprint == again.fingerprint
        assert list(first) == list(again)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a.array, b.array)
            for f, g in zip(a.findings, b.findings, strict=True):
                np.testing.assert_array_equal(f.mask, g.mask)

    @pytest.mark.parametrize("n", [1, 7, 65])
    def test_a_larger_n_only_appends(self, n):
        few, more = phantom.load(n=n, size=64), phantom.load(n=80, size=64)
        assert list(few) == list(more[:n])
        # Bit for bit: the rest of the batch must not matter to sums, medians or noise.
        for a, b in zip(few, more, strict=False):
            np.testing.assert_array_equal(a.array, b.array)

    def test_settings_that_differ_have_other_fingerprints(self):
        base = {"split": "test", "n": 2, "size": 32, "seed": 0, "normal": False}
        changes = [{}, {"split": "val"}, {"n": 3}, {"size": 33}, {"seed": 1}, {"normal": True}]
        assert len({phantom.load(**(base | change)).fingerprint for change in changes}) == len(changes)

    def test_the_look_of_the_images_is_pinned(self):
        """The base in data/ was trained on these: means of 4 × 4 blocks, free of how a machine rounds."""
        images = np.stack(
            [
                s.array
                for seed, normal in ((1, False), (2, True))
                for s in phantom.load(split="train", n=3, seed=seed, normal=normal)
            ]
        )
        blocks = images.reshape(6, 4, 16, 4, 16).mean(axis=(2, 4))
        np.testing.assert_allclose(blocks, np.array(LOOK.split(), float).reshape(6, 4, 4), atol=0.5)

    def test_reached_through_sources(self):
        one = sources.load("phantom", split="val", n=1, size=32, seed=4)
        assert one[0] == phantom.load(split="val", n=1, size=32, seed=4)[0]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"split": "dev"}, "unknown split 'dev'"),
            ({"size": 31}, "32 to 1024"),
            ({"size": 2048}, "32 to 1024"),
            ({"n": 0}, "at least 1"),
        ],
    )
    def test_errors_say_what_is_wrong(self, options, message):
        with pytest.raises(ValueError, match=message):
            phantom.load(**options)


class TestPatients:
    def test_patients_never_straddle_splits(self):
        studies = {split: phantom.load(split=split, n=60, size=32) for split in ("train", "val", "test")}
        assert len({s.id for found in studies.values() for s in found}) == 180
        patients = [{s.patient for s in found} for found in studies.values()]
        assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
        # Nor under another name: no image occurs twice.
        assert len({s.array.tobytes() for found in studies.values() for s in found}) == 180

    def test_a_patient_has_one_to_three_visits_and_stays_the_same_person(self, many):
        visits: dict[str, list[Study]] = {}
        for s in many:
            visits.setdefault(s.patient, []).append(s)
        # The last one may be cut off by n.
        assert {len(v) for v in list(visits.values())[:-1]} == {1, 2, 3}
        for v in visits.values():
            for key in ("sex", "age", "habitus"):
                assert len({s.attributes[key] for s in v}) == 1

    def test_normal_gives_the_same_people_without_findings(self):
        ill, well = (phantom.load(n=40, size=32, normal=normal) for normal in (False, True))
        assert not any(s.present() for s in well)
        assert [s.patient for s in ill] == [s.patient for s in well]
        assert [s.attributes for s in ill] == [s.attributes for s in well]
        healthy = [(a, b) for a, b in zip(ill, well, strict=True) if not a.present()]
        assert len(healthy) > 3
        for a, b in healthy:
            np.testing.assert_array_equal(a.array, b.array)

    def test_every_finding_and_a_fair_share_of_normals(self, many):
        counts = np.sum([s.labels() for s in many], axis=0)
        assert counts.min() > 50
        assert 0.15 < sum(not s.present() for s in many) / len(many) < 0.4


class TestTruth:
    def test_every_present_finding_has_a_mask_and_a_place(self, many):
        for s in many:
            assert len({f.name for f in s.present()}) == len(s.present())
            for f in s.present():
                assert f.name in FINDINGS
                assert f.mask.shape == s.array.shape == s.size == (64, 64)
                assert f.mask.dtype == bool
                assert f.mask.any(), (s.id, f.name)
                # A finding is a part of the image, never most of it.
                assert f.mask.mean() < 0.3

    def test_boxes_are_tight(self, many):
        for s in many:
            for f in s.present():
                parts = np.zeros(s.size, dtype=bool)
                for box in f.boxes:
                    rows, columns = slice(int(box.y), int(box.y + box.h)), slice(int(box.x), int(box.x + box.w))
                    inside = np.zeros(s.size, dtype=bool)
                    inside[rows, columns] = f.mask[rows, columns]
                    assert box_of(inside) == box
                    parts |= inside
                np.testing.assert_array_equal(parts, f.mask)
                assert len(f.boxes) == (2 if f.name == "Edema" else 1)

    def test_the_patients_right_is_on_the_images_left(self, many):
        seen = set()
        for s in many:
            for f in s.present():
                seen.add((f.name, f.side))
                middle = round(s.attributes["midline"] * 64)
                left_half, right_half = f.mask[:, :middle].any(), f.mask[:, middle:].any()
                if f.side == "right":
                    assert (left_half, right_half) == (True, False), (s.id, f.name)
                elif f.side == "left":
                    assert (left_half, right_half) == (False, True), (s.id, f.name)
                else:
                    assert left_half
                    assert right_half
        one_sided = set(FINDINGS) - {"Cardiomegaly", "Edema"}
        assert seen == {(n, side) for n in one_sided for side in ("left", "right")} | {
            ("Cardiomegaly", None),
            ("Edema", "bilateral"),
        }

    def test_zones_are_where_they_are_called(self, many):
        heights: dict[tuple, list[float]] = {}
        for s in many:
            for f in s.present():
                one = phantom.patient(5, "test", int(s.patient[-6:]), int(s.id[-1]))
                down = (ndimage.center_of_mass(f.mask)[0] / 64 - 0.5) * one.field - one.shift[1]
                heights.setdefault((f.name, f.zone), []).append(0.5 + down / 34)
        mean = {key: np.mean(found) for key, found in heights.items()}
        for name in ("Consolidation", "Lung Opacity", "Pneumonia"):
            assert mean[name, "upper"] < mean[name, "mid"] < mean[name, "lower"]
        # Fluid sinks and air rises.
        assert min(heights["Pleural Effusion", "basal"]) > 0.5 > max(heights["Pneumothorax", "apical"])
        # The diaphragm's dome is where the lung ends.
        assert mean["Atelectasis", "mid"] < mean["Atelectasis", "basal"] < mean["Pleural Effusion", "basal"]

    def test_severity_is_a_third_of_the_amount(self):
        grades = [Lesion("Edema", 0, "perihilar", amount, SHAPE).severity for amount in (0.1, 0.34, 0.5, 0.67, 1.0)]
        assert grades == ["small", "moderate", "moderate", "large", "large"]

    @pytest.mark.parametrize("name", [n for n in FINDINGS if n not in ("Cardiomegaly", "Pneumonia")])
    def test_more_of_it_is_larger(self, name):
        zone = {"Edema": "perihilar", "Pleural Effusion": "basal", "Pneumothorax": "apical"}.get(name, "mid")
        side = 0 if name == "Edema" else -1
        # 0.5 and 1.0 would differ in the number of plates of an atelectasis; that is tested as more, too.
        patients = [with_lesion(person(), name, side, zone, amount) for amount in (0.1, 0.5, 1.0)]
        areas = [masks[0].sum() for masks in phantom.render(patients, 128)[1]]
        assert areas == sorted(set(areas))

    @pytest.mark.parametrize("name", ["Edema", "Consolidation", "Pneumothorax"])
    def test_outlines_are_smooth_whatever_is_drawn_into_the_lesion(self, name):
        """Vessels, septal lines and air bronchograms belong in the image, not in the outline."""
        side, zone = {"Edema": (0, "perihilar"), "Consolidation": (1, "mid"), "Pneumothorax": (1, "apical")}[name]
        for k in range(6):
            mask = phantom.render([with_lesion(person(k), name, side, zone, 0.4)], 256)[1][0][0]
            _, parts = ndimage.label(mask)
            assert parts == (2 if name == "Edema" else 1)
            np.testing.assert_array_equal(ndimage.binary_fill_holes(mask), mask)
            if name != "Pneumothorax":
                # An oval of this size has no notch that a disc of 4 pixels would fill.
                disc = np.hypot(*np.mgrid[-4:5, -4:5]) <= 4
                assert (ndimage.binary_closing(mask, disc) & ~mask).sum() <= 0.01 * mask.sum()

    @pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
    def test_sizes_show_the_same_patient(self, size):
        one, reference = (phantom.load(n=4, size=s, seed=8) for s in (size, 64))
        for a, b in zip(one, reference, strict=True):
            assert a.array.shape == a.size == (size, size)
            assert a.array.dtype == np.uint8
            assert a.report == b.report
            for f, g in zip(a.present(), b.present(), strict=True):
                assert f.mask.mean() == pytest.approx(g.mask.mean(), abs=0.01 + 0.15 * g.mask.mean())


class TestCardiothoracicRatio:
    def ratio(self, one: Patient, size: int = 128) -> float:
        """As a radiologist measures it: width of the heart over inner width of the chest, in a band below the hila."""
        profile = phantom.attenuation([one], size)[0][0, int(0.57 * size) : int(0.63 * size)].mean(axis=0)
        spine = size // 2 + round(one.shift[0] / one.field * size)
        right_lung = int(0.15 * size) + profile[int(0.15 * size) : spine].argmin()
        left_lung = spine + profile[spine : int(0.85 * size)].argmin()
        heart_right = np.argmax(profile[spine::-1] < (profile[spine] + profile[right_lung]) / 2)
        heart_left = np.argmax(profile[spine:] < (profile[spine] + profile[left_lung]) / 2)
        chest = left_lung + profile[left_lung:].argmax() - profile[:right_lung].argmax()
        return (heart_right + heart_left) / chest

    def test_a_large_heart_is_wider_than_the_same_patients_own(self):
        for k in range(12):
            one = person(k)
            grades = [self.ratio(one)]
            grades += [self.ratio(with_lesion(one, "Cardiomegaly", 0, "", amount)) for amount in (0.05, 0.5, 1.0)]
            assert grades == sorted(set(grades)), k
            # Half the chest is the limit every textbook gives.
            assert grades[0] < 0.5


class TestPhysics:
    def test_chord_known_answers(self):
        # A sphere of radius 5: 10 through the middle, 8 at a distance of 3 (3-4-5), nothing at the rim or beyond.
        u = np.array([0, 3 / 5, 1, 2])
        np.testing.assert_allclose(phantom.chord(u, 0 * u, 5), [10, 8, 0, 0], atol=1e-12)

    @given(st.floats(1, 5), st.floats(1, 5), st.floats(1, 5))
    @settings(max_examples=20, deadline=None)
    def test_chords_add_up_to_the_ellipsoids_volume(self, a, b, c):
        step = 0.02
        y, x = np.mgrid[-5:5:step, -5:5:step] + step / 2
        volume = phantom.chord(x / a, y / b, c).sum() * step**2
        assert volume == pytest.approx(4 / 3 * math.pi * a * b * c, rel=2e-3)

    def test_a_uniform_absorber_is_shown_as_worked_out_by_hand(self):
        """Exposure control puts the median at 0.05 below the middle of the response: 255 / (1 + e^(1.7 · 0.05))."""
        image = expose(np.full((1, 64, 64), 3.0), [person()], 64)[0]
        assert np.median(image) == round(255 / (1 + math.exp(1.7 * 0.05)))

    @pytest.mark.parametrize("scale", [0.25, 1, 4])
    def test_noise_is_that_of_the_photons_counted(self, scale, monkeypatch):
        """Poisson: the logarithm of N counts has a standard deviation of 1/√N, so four times the dose halves it."""
        photons = phantom.PHOTONS * scale
        monkeypatch.setattr("chestxai.sources.phantom.rendering.PHOTONS", photons)
        thickness, size = 3.0, 64
        image = expose(np.full((1, size, size), thickness), [person()], size)[0].astype(float)
        # 85 % of the primary beam and 15 % of a scatter of an eighth of it (scanner A) reach a pixel.
        counts = photons * (34 / size) ** 2 * math.exp(-thickness) * (0.85 + 0.15 * 0.125)
        shown = 1 / (1 + math.exp(1.7 * 0.05))
        expected = 255 * 1.7 * shown * (1 - shown) / math.sqrt(counts)
        # The steps of whole grey levels add 1/12.
        assert image.std() == pytest.approx(math.sqrt(expected**2 + 1 / 12), rel=0.06)

    def test_the_second_scanner_counts_fewer_photons(self):
        a, b = (expose(np.full((1, 64, 64), 3.0), [person(scanner=k, noise=1)], 64)[0] for k in (0, 1))
        contrast = {0: 1.7 * 255, 1: 1.45 * 0.88 * 255}
        assert b[4:-4, 4:-4].std() / contrast[1] > 1.2 * a[4:-4, 4:-4].std() / contrast[0]

    def test_an_overexposed_image_is_darker(self):
        integral, *_ = phantom.attenuation([person()], 64)
        means = [expose(integral, [person(exposure=e)], 64).mean() for e in (-1.0, 0.0, 1.0)]
        assert means == sorted(means, reverse=True)

    @pytest.mark.parametrize("name", ["Pleural Effusion", "Lung Opacity", "Consolidation", "Edema", "Atelectasis"])
    def test_more_fluid_is_brighter(self, name):
        side, zone = {"Edema": (0, "perihilar"), "Pleural Effusion": (1, "basal")}.get(name, (1, "mid"))
        for k in range(4):
            # Up to one half, beyond which an atelectasis gets a second plate.
            amounts = (0.05, 0.25, 0.5)
            patients = [person(k), *(with_lesion(person(k), name, side, zone, a) for a in amounts)]
            integral, *_ = phantom.attenuation(patients, 64)
            images, masks = phantom.render(patients, 64)
            place = masks[1][0]
            beams = [i[place].mean() for i in integral]
            assert beams == sorted(set(beams)), k
            # The display adapts to the whole chest, so compare the place with the rest of the image.
            shown = [i[place].mean() - i[~place].mean() for i in images.astype(float)]
            assert shown[0] < shown[-1]
            # Fluid replaces lung: a ray gains no more than the lung's thickness of it.
            assert (integral[-1] - integral[0]).max() < (MU["fluid"] - MU["lung"]) * 20
            assert (integral[-1] - integral[0]).min() > -1e-5

    def test_air_in_the_pleural_space_is_darker_than_the_same_patients_lung(self):
        for k in range(6):
            for side in (-1, 1):
                patients = [person(k), with_lesion(person(k), "Pneumothorax", side, "apical", 0.5)]
                integral, *_ = phantom.attenuation(patients, 64)
                images, masks = phantom.render(patients, 64)
                place = masks[1][0]
                assert (integral[1] < integral[0])[place].all()
                assert images[1][place].mean() < images[0][place].mean() - 5
                # The other lung stays as it is.
                other = slice(34, None) if side < 0 else slice(None, 30)
                np.testing.assert_array_equal(integral[0][:, other], integral[1][:, other])

    def test_a_wedge_is_brighter_the_thicker_it_is(self):
        """Bone white and air black: the display falls with transmission, from one end of the scale to the other."""
        wedge = np.broadcast_to(np.linspace(0, 8, 8).repeat(8)[:, None], (64, 64))
        steps = expose(wedge[None], [person()], 64)[0].reshape(8, 8, 64)[:, 2:6].mean(axis=(1, 2))
        assert (np.diff(steps) > 0).all()
        assert steps[0] < 5
        assert steps[-1] > 200

    def test_spine_and_abdomen_are_brighter_than_lung(self):
        images, _ = phantom.render([person(k) for k in range(6)], 64)
        for image in images.astype(float):
            spine, abdomen, lung = image[20:40, 30:34].mean(), image[54:60, 24:40].mean(), image[20:36, 14:22].mean()
            assert min(spine, abdomen) > lung + 40

    def test_unknown_signs_are_refused(self):
        with pytest.raises(ValueError, match="no phantom sign for 'Fracture'"):
            phantom.render([with_lesion(person(), "Fracture")], 32)


class TestReports:
    def test_every_phrase_is_verbatim_and_ends_up_in_the_prompt(self, many):
        for s in many:
            prompt = reports.prompt(s.report)
            for f in s.present():
                assert f.phrase
                assert f.phrase in s.report
                assert f.phrase.lower() in prompt.lower()
                # The words that name the finding can be read from the phrase (or the map would be that of all words).
                assert reports.name_in(f.phrase, f.name), f.phrase

    def test_denied_findings_are_told_by_the_text(self, many):
        denied = [(s, f) for s in many for f in s.findings if not f.present]
        assert len(denied) > 100
        for s, f in denied:
            assert f.phrase in s.report
            assert f.phrase.lower().startswith("no ")
            assert (f.mask, f.boxes, f.side) == (None, (), None)
            assert f.name not in {g.name for g in s.present()}

    def test_the_reader_recovers_what_the_writer_wrote(self, many):
        """Two independent pieces of code: recall and precision of findings and negations are 1."""
        for s in many:
            for present in (True, False):
                written = {f.name for f in s.findings if f.present == present}
                assert {f.name for f in reports.find(s.report) if f.present == present} == written, s.report

    def test_the_reader_recovers_sides_and_severity(self, many):
        grades = {"small": "mild", "moderate": "moderate", "large": "severe"}
        for s in many:
            read = [f for f in reports.find(s.report) if f.present]
            for f in s.present():
                mine = [g for g in read if g.name == f.name]
                assert {g.severity for g in mine} == {grades[f.severity]}, s.report
                # The text need not say that a finding that is always on both sides is bilateral.
                assert {g.side for g in mine} <= ({f.side} if f.side in ("left", "right") else {f.side, None}), s.report

    def test_styles_vary(self, many):
        assert any(s.report.isupper() for s in many)
        assert any("1. " in s.report for s in many)
        assert any("FINDINGS" not in s.report.upper() for s in many)
        assert any("XXXX" in s.report for s in many)
        assert len({s.report for s in many}) > 450

    def test_the_age_is_the_patients(self, many):
        told = [s for s in many if s.report.lower().startswith("indication")]
        assert len(told) > 100
        assert all(f"{s.attributes['age']}-year-old" in s.report.lower() for s in told)

    def test_devices_are_told_and_drawn(self, many):
        seen = {s.attributes["device"] for s in many}
        assert seen == {"", "central line", "pacemaker", "endotracheal tube"}
        # A pacemaker lies on the patient's left, which is the image's right.
        bare, paced = phantom.attenuation([person(device=d) for d in ("", "pacemaker")], 64)[0]
        assert (paced - bare).sum(axis=0).argmax() > 40


def test_memory_does_not_grow_with_the_number_of_studies():
    """What `load` uses beyond the studies it returns is one chunk, however many there are."""

    def overhead(n: int) -> int:
        tracemalloc.start()
        kept = phantom.load(n=n, size=128, seed=1)
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(kept) == n
        return peak - now

    assert overhead(80) < 1.3 * overhead(20)


class TestShortcuts:
    """Disease must be seen where it is, and not in the brightness of the whole image or in where chests usually are."""

    @pytest.mark.parametrize("name", FINDINGS)
    def test_a_few_pixels_outside_a_lesion_two_exposures_are_equal(self, name):
        """Of 64 pixels, 4 from the outline the change is faint and 12 from it there is none."""
        places = {"Pleural Effusion": (1, "basal"), "Consolidation": (-1, "upper"), "Edema": (0, "perihilar")}
        places |= {"Pneumothorax": (1, "apical"), "Cardiomegaly": (0, "")}
        # Air in the pleural space also moves the collapsed lung, which is larger than the mask: physics, not exposure.
        near, far = (30, 8) if name == "Pneumothorax" else (12, 2)
        for k in range(3):
            one = person(k)
            ill = with_lesion(one, name, *places.get(name, (1, "mid")))
            (shown, well), (masks, _) = phantom.render([ill, one], 64)
            reach = ndimage.distance_transform_edt(~masks[0])
            changed = np.abs(shown.astype(int) - well)
            assert changed[reach <= 1].max() > 30
            assert changed[reach > 4].max() <= near
            assert changed[reach > 12].max() <= far

    def test_brightness_tells_no_disease(self, many):
        brightness = np.array([s.array.mean() for s in many])
        labels = np.array([s.labels() for s in many])
        for i, name in enumerate(FINDINGS):
            auc = roc_auc_score(labels[:, i], brightness)
            # Air in the place of lung is darker: physics, not exposure. The rest is what 500 phantoms scatter.
            assert (0.42 if name == "Pneumothorax" else 0.45) < auc < 0.6, (name, auc)

    def test_no_prior_without_the_prompt_knows_too_much(self, many):
        train = phrases(phantom.load(split="train", n=400, size=64, seed=5))
        priors = localization.location_priors(train, 64)
        scores = [localization.auc_roc(priors[t.finding.name], t.finding.mask) for t in phrases(many)]
        assert 0.8 < np.mean(scores) < 0.9

    def test_a_counterfactual_differs_in_the_lesion_only(self, many):
        study = next(s for s in many if any(f.name == "Pneumothorax" and f.present for f in s.findings))
        lesion = next(f for f in study.present() if f.name == "Pneumothorax")
        without, nothing = phantom.counterfactual(study, "Pneumothorax", "without")
        moved, mask = phantom.counterfactual(study, "Pneumothorax", "other side")
        assert not nothing.any()
        changed = np.abs(without.astype(int) - study.array)
        assert changed[lesion.mask].mean() > 5 * changed[~lesion.mask].mean()
        middle = study.attributes["midline"] * 64
        sides = [np.nonzero(m)[1].mean() - middle for m in (lesion.mask, mask)]
        assert sides[0] * sides[1] < 0
        assert np.abs(moved.astype(int) - without)[mask].mean() > 5
        other, mask = phantom.counterfactual(study, "Pneumothorax", "Pleural Effusion")
        assert (np.nonzero(mask)[1].mean() - middle) * sides[0] > 0  # on the same side
        assert np.nonzero(mask)[0].mean() > np.nonzero(lesion.mask)[0].mean()  # at the base, not at the apex
        assert np.abs(other.astype(int) - without)[mask].mean() > 5
        with pytest.raises(InputError, match="no phantom"):
            phantom.counterfactual(replace(study, id="openi-3"), "Pneumothorax", "without")
        with pytest.raises(InputError, match="no Edema"):
            phantom.counterfactual(replace(study, id="phantom-0-test-000000-99"), "Edema", "other side")

"""Small malformed inputs, by kind: each is refused or listed with file, row or setting."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chestxai import profiles, runs, sources
from chestxai.runs import InputError
from chestxai.sources.records import MOST, image_size
from chestxai.sources.shapes import parse_box
from chestxai.sources.tables import csv_rows, read_json
from chestxai.studies import read_image
from tests import test_chexlocalize, test_coco, test_padchest
from tests.pictures import ramp

HEADER = "image,text,finding,x,y,w,h,split\n"


def folder(root: Path, rows: str | bytes, images: tuple[str, ...] = ("a.png",)) -> sources.Studies:
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp(64, 64)).save(root / name)
    (root / "t.csv").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    return sources.load("folder", root, "test")


class TestTables:
    def test_windows_1252_is_recognised_and_told(self, tmp_path):
        rows = "image,text,split,patient\na.png,Œdème,test,Müller\nb.png,Épanchement,test,Möller\n"
        with pytest.warns(UserWarning, match=r"t\.csv: not UTF-8, read as Windows-1252"):
            loaded = folder(tmp_path, rows.encode("cp1252"), ("a.png", "b.png"))
        assert [(s.report, s.patient) for s in loaded] == [("Œdème", "Müller"), ("Épanchement", "Möller")]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"image,text\na.png,caf\x81\n", "line 2: neither UTF-8 nor Windows-1252"),
            ("image,text\na.png,x\n".encode("utf-16"), "line 1: neither UTF-8 nor Windows-1252"),
            (b"image,text,text\na.png,x,y\n", "column text there twice"),
            (b'image,text\na.png,"x\nb.png,y\n', "3: not readable as csv .*a quote that opens a cell must close it"),
            (b'image,text\na.png,"x"y\n', "2: not readable as csv"),
        ],
    )
    def test_what_would_be_read_wrongly_is_refused(self, tmp_path, content, message):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(InputError, match=rf"t\.csv(?:, |: |:){message}"):
            list(csv_rows(tmp_path / "t.csv", ("image", "text"), "Do this."))

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_names_are_compared_in_one_form(self, tmp_path, form):
        name = unicodedata.normalize(form, "clichés/2.png")
        other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], name)
        assert len(folder(tmp_path, f"image,text,split\n{other},Effusion,test\n", (name,))) == 1

    def test_a_pipe_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "t.csv")
        (tmp_path / "c").mkdir()
        for path in (tmp_path / "t.csv", tmp_path / "c"):
            for read in (runs.read_json, runs.read_yaml, read_image, image_size):
                with pytest.raises(InputError, match="a folder, a pipe or a device"):
                    read(path)
            with pytest.raises(InputError, match="a folder, a pipe or a device"):
                read_json(path, dict, "Do this.")
            with pytest.raises(InputError, match="a folder, a pipe or a device"):
                list(csv_rows(path, ("a",), "Do this."))

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ("Edema and effusion.,Edema; Pleural Effusion,1,2,9,9,test", "not the name of a finding"),
            ("Edema and effusion.,Edema|Pleural Effusion,1,2,9,9,test", "not the name of a finding"),
            ("Edema.,<img src=x onerror=alert(1)>,1,2,9,9,test", "not the name of a finding"),
            ("Edema.,../../etc,1,2,9,9,test", "not the name of a finding"),
            ("Edema.,3,1,2,9,9,test", "not the name of a finding"),
            (f"Edema.,{'x' * 3000},1,2,9,9,test", "not the name of a finding"),
            ("Left effusion.,Pleural Efusion,1,2,9,9,test", "'Pleural Effusion', or a name less like it"),
            ("Left effusion.,Pleural effusions,1,2,9,9,test", "'Pleural Effusion', or a name less like it"),
            ("Normal.,No finding,1,2,9,9,test", "box of a row without a finding"),
            ("nan,,,,,,test", "row without a text"),
            ("3.5,,,,,,test", "row without a text"),
            ("   ,,,,,,test", "row without a text"),
        ],
    )
    @pytest.mark.parametrize("name", ["a.png", "4.png"])  # of which split the second would be, its row does not say
    def test_a_row_of_no_use_is_listed(self, tmp_path, name, row, reason):
        loaded = folder(tmp_path, f"{HEADER}{name},{row}\nb.png,Edema.,,,,,,test\n", (name, "b.png"))
        assert [s.id for s in loaded] == ["b.png"]
        assert reason in loaded.skipped[0]
        assert loaded.skipped[0].startswith("t.csv:2: ")

    @pytest.mark.parametrize("nothing", ["No Finding", "no_finding", "None", "normal", "nan", "n/a", "-"])
    def test_no_finding_in_its_many_spellings(self, tmp_path, nothing):
        (study,) = folder(tmp_path, f"{HEADER}a.png,Normal chest.,{nothing},,,,,test\n")
        assert study.findings == ()

    @pytest.mark.parametrize("nobody", ["nan", "None", "NULL", "n/a", "unknown", "-"])
    def test_patients_without_a_name_are_not_one(self, tmp_path, nobody):
        rows = f"image,text,patient,split\na.png,Edema.,{nobody},test\nb.png,Edema.,{nobody},test\n"
        assert [s.patient for s in folder(tmp_path, rows, ("a.png", "b.png"))] == ["a.png", "b.png"]

    @pytest.mark.parametrize("pair", [("1", "1.0"), ("7", "007"), ("12", "12.00")])
    def test_a_patient_in_two_spellings_is_not_in_two_splits(self, tmp_path, pair):
        rows = "image,text,patient,split\na.png,Edema.,{},test\nb.png,Edema.,{},train\n".format(*pair)
        with pytest.raises(InputError, match=f"patients '{pair[0]}' and '{pair[1]}' may be one person"):
            folder(tmp_path, rows, ("a.png", "b.png"))

    @pytest.mark.parametrize(
        ("text", "present", "denied"),
        [
            ("Left pleural effu\u00adsion.", {"Pleural Effusion"}, set()),
            ("No pneumo\u200bthorax.", set(), {"Pneumothorax"}),
            ("Pulmonary in\ufb01ltrate.", {"Lung Opacity"}, set()),
            ("\uff2c\uff45\uff46\uff54 \uff45\uff46\uff46\uff55\uff53\uff49\uff4f\uff4e.", {"Pleural Effusion"}, set()),
            ("There isn\u2019t a pneumothorax.", set(), {"Pneumothorax"}),
            ("<p>Left <b>effusion</b>.</p>", {"Pleural Effusion"}, set()),
            ("Edema &amp; left&nbsp;effusion.", {"Edema", "Pleural Effusion"}, set()),
            (r"FINDINGS:\nLeft effusion.\nIMPRESSION:\nEdema.", {"Edema", "Pleural Effusion"}, set()),
        ],
    )  # fmt: skip
    def test_print_markup_and_escapes_hide_no_word(self, tmp_path, text, present, denied):
        (study,) = folder(tmp_path, f"{HEADER}a.png,{text},,,,,,test\n")
        for there, names in ((True, present), (False, denied)):
            assert {f.name for f in study.findings if f.present is there} == names

    def test_a_report_of_many_rows_is_bounded(self, tmp_path):
        rows = "".join(f'a.png,"{i} {"Left effusion. " * 5000}",,,,,,test\n' for i in range(3))
        loaded = folder(tmp_path, f"{HEADER}{rows}b.png,Edema.,,,,,,test\n", ("a.png", "b.png"))
        assert [s.id for s in loaded] == ["b.png"]
        assert "t.csv:2: report of more than 200,000 characters (a.png)" in loaded.skipped

    def test_equal_keys_of_json_are_refused(self, tmp_path):
        (tmp_path / "a.json").write_text('{"a": {"b": 1, "b": 2}}')
        with pytest.raises(InputError, match=r"a\.json: .*the key 'b' occurs twice"):
            read_json(tmp_path / "a.json", dict, "Do this.")


class TestBoxes:
    @pytest.mark.parametrize(
        "number", ["1_0", "１０", "١٠", "inf", "nan", "1e400", "0x10", "1 0", "+-1", True, 10**400, "1e300"]
    )
    def test_numbers_are_decimal(self, number):
        with pytest.raises(InputError, match="not a box"):
            parse_box([number, *("2", "3", "4")] if isinstance(number, str) else [number, 2, 3, 4])
        assert parse_box(["+1.5", ".5", "1e1", "4."]) == parse_box([1.5, 0.5, 10, 4])

    @pytest.mark.parametrize("values", ["1234", b"1234", {1: 2, 3: 4, 5: 6, 7: 8}, [[1], [2], [3], [4]]])
    def test_nor_are_other_things_taken_apart(self, values):
        with pytest.raises(InputError, match="not a box"):
            parse_box(values)

    @pytest.mark.parametrize("nothing", ["", "nan", "NaN", "None", "null", "NA", "n/a", "-", "0", "0.0", "-1"])
    def test_no_box_in_its_many_spellings(self, tmp_path, nothing):
        (study,) = loaded = folder(tmp_path, f"{HEADER}a.png,Normal chest.,,{','.join([nothing] * 4)},test\n")
        assert (study.report, study.findings, loaded.skipped) == ("Normal chest.", (), [])

    @pytest.mark.parametrize(("box", "reason"), [("0.5,0.6,0.3,0.2", "fractions"), ("60,60,90,80", "mostly outside")])
    def test_one_of_another_frame_is_no_truth_and_many_are_refused(self, tmp_path, box, reason):
        row = f"Left effusion.,Pleural Effusion,{box},test\n"
        loaded = folder(tmp_path, f"{HEADER}a.png,{row}")
        assert (loaded[0].findings, [reason in line for line in loaded.skipped]) == ((), [True])
        names = tuple(f"{i}.png" for i in range(4))
        with pytest.raises(InputError, match="4 of 4 boxes do not lie inside their images, which are probably"):
            folder(tmp_path, HEADER + "".join(f"{name},{row}" for name in names), names)

    def test_an_image_of_very_many_boxes_is_left_out_at_once(self, tmp_path):
        rows = [f"a.png,Left effusion.,Pleural Effusion,{1 + i / 1e4},5,20,20,test\n" for i in range(10 * MOST)]
        loaded = folder(tmp_path, HEADER + "".join(rows) + "b.png,Edema.,,,,,,test\n", ("a.png", "b.png"))
        assert [s.id for s in loaded] == ["b.png"]
        assert f"image of more than {MOST} rows" in "".join(loaded.reasons())


class TestJson:
    @pytest.mark.parametrize(
        "change",
        [
            {"bbox": "1234"},
            {"bbox": ["1", "2", "3", "4"]},
            {"bbox": [True] * 4},
            {"bbox": [0, 0, 10**400, 5]},
            {"category_id": [18]},
            {"category_id": True},
            {"image_id": [1]},
            {"image_id": 77},
            {"iscrowd": "0"},
            {"segmentation": [[0, 0, 1e300, 0, 5, 5]]},
            {"segmentation": [[True, False, True, True, False, True]]},
            {"segmentation": {"size": 48, "counts": [1920]}},
            {"segmentation": {"size": [48, 40], "counts": [True, 1919]}},
            {"segmentation": {"size": [48, 40], "counts": [1920]}},
            {"segmentation": [[30, 30, 39, 30, 39, 39, 30, 39]]},
            {"segmentation": [[0.03, 0.05, 0.1, 0.05, 0.1, 0.2]]},
            {"segmentation": [[900, 900, 990, 900, 990, 990]]},
        ],
    )
    def test_an_object_of_coco_is_what_the_format_says_or_listed(self, tmp_path, change):
        things = [test_coco.thing(1, 18, 5, 6, 7, 8), test_coco.thing(1, 18, 1, 2, 3, 4) | change]
        loaded = sources.load("coco", test_coco.collection(tmp_path, [test_coco.image(1)], things), masks=True)
        assert [[(b.x, b.y) for b in f.boxes] for f in loaded[0].findings] == [[(5, 6)]]
        assert len(loaded.skipped) == 1

    @pytest.mark.parametrize(
        "points", [[[0, 0], [float("nan"), 5], [5, 5]], [["1", "2"], [9, 9]], ["12", "34"], [[10**400, 5]]]
    )
    def test_an_outline_is_made_of_numbers(self, tmp_path, points):
        truth = {test_chexlocalize.key(1): test_chexlocalize.outlines(Edema=[points])}
        root = test_chexlocalize.collection(tmp_path, [test_chexlocalize.row(1, "Edema")], truth)
        loaded = sources.load("chexlocalize", root)
        assert not any(f.boxes for f in loaded[0].findings)
        assert "not a polygon" in loaded.skipped[0]

    @pytest.mark.parametrize(
        "change", [{"abnormal": "False"}, {"boxes": "1234"}, {"labels": "edema"}, {"sentence_en": 5}]
    )
    def test_a_sentence_of_padchest_has_its_types(self, tmp_path, change):
        sentence = test_padchest.EFFUSION | change
        records = [test_padchest.study(1, test_padchest.CLEAR, sentence)]
        (study,), skipped = test_padchest.everything(
            test_padchest.collection(tmp_path, records, [test_padchest.row(1)])
        )
        assert [f.name for f in study.findings] == ["Pneumothorax"]
        assert "findings[1]: not a sentence" in skipped[0]

    @pytest.mark.parametrize("caption", ["A \ud800 dog.", "dog " * 100_000, "  "])
    def test_a_caption_is_text_of_unicode_and_not_endless(self, tmp_path, caption):
        captions = {1: [caption], 2: ["A dog."]}
        loaded = sources.load(
            "coco", test_coco.collection(tmp_path, [test_coco.image(1), test_coco.image(2)], (), captions)
        )
        assert [s.id for s in loaded] == ["2"]
        assert "captions_val2017.json:annotations[0]: not of COCO's format" in loaded.skipped[0] or caption.isspace()


class TestImages:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("ending", ["png", "jpg"])
    def test_are_shown_as_their_file_says(self, tmp_path, orientation, ending):
        shown = np.zeros((40, 60), np.uint8)
        shown[5:15, 45:55] = 255
        stored = {
            1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.T, 6: np.rot90(shown),
            7: shown[::-1, ::-1].T, 8: np.rot90(shown, -1),
        }[orientation]  # fmt: skip
        image = Image.fromarray(np.ascontiguousarray(stored))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"o.{ending}", exif=exif)
        read = read_image(tmp_path / f"o.{ending}")
        assert read.shape == image_size(tmp_path / f"o.{ending}") == (40, 60)
        assert read[6:14, 46:54].mean() > 240

    @pytest.mark.parametrize("kind", ["BMP", "GIF", "EPS", "PPM", "ICO", "TGA"])
    def test_other_formats_are_refused_whatever_their_name(self, tmp_path, kind):
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png", format=kind)
        for read in (read_image, image_size):
            with pytest.raises(InputError, match=r"a\.png"):
                read(tmp_path / "a.png")


class TestSettings:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("variants", []), ("seeds", []), ("seeds", [1, 1]), ("seeds", [True]), ("seeds", [-1]), ("base", ""),
            ("finetune.steps", True), ("finetune.steps", 10**12), ("finetune.learning_rate", float("inf")),
            ("finetune.learning_rate", True), ("data.size", 10**9), ("data.test", True), ("sampling.images", 10**12),
            ("sampling.guidance", 1e300), ("grounding.draws", 10**9), ("statistics.resamples", 10**12),
            ("variants", {"a": "frozen", "A": "learnable"}), ("variants", {"cache": "frozen"}),
            ("variants", {"a": {"text": "learnable", "anchor": True}}), ("variants", {"a": {"denied": True}}),
            ("variants", {"a": {"schedule": {"start": False}}}), ("seeds", list(range(2000))),
            ("statistics.endpoint", ["nope"]),
            ("variants", {"": "frozen"}), ("finetune.gradient_checkpointing", "maybe"), ("finetune.weights", "fp8"),
        ],
    )  # fmt: skip
    def test_a_setting_has_bounds(self, key, value):
        content = runs.read_yaml(profiles.DATA / "profiles" / "smoke.yaml") | {"name": "smoke"}
        *section, name = key.split(".")
        (content.setdefault(section[0], {}) if section else content)[name] = value
        with pytest.raises(ValueError, match=name):
            profiles.Profile.model_validate(content)

    @pytest.mark.parametrize("base", ["/nowhere/at/all", ".", "./x/y"])
    def test_a_base_is_there(self, base):
        with pytest.raises(runs.MissingError, match="cannot load the base model"):
            profiles.base_folder(base)

    def test_an_error_does_not_print_all_that_was_given(self, tmp_path):
        for key in ("base", "variants", "seeds", "x" * 50_000):
            path = tmp_path / "own.yaml"
            text = (profiles.DATA / "profiles" / "smoke.yaml").read_text()
            path.write_text(
                f"{text}\n{key}: {'y' * 40_000}\n".replace(f"{key}: tiny\n", "").replace(f"\n{key}: [", "\n#")
            )
            with pytest.raises(InputError, match=r"own\.yaml") as caught:
                profiles.load(path)
            assert len(str(caught.value)) < 1500

    @pytest.mark.parametrize("name", ["my profile", "-x", "ä"])
    def test_a_name_is_told_what_it_may_be(self, tmp_path, name):
        path = tmp_path / f"{name}.yaml"
        path.write_text((profiles.DATA / "profiles" / "smoke.yaml").read_text())
        with pytest.raises(InputError, match="name: use letters, digits"):
            profiles.load(path)

    @pytest.mark.parametrize("seed", [-1, 2**32, 10**30])
    def test_a_seed_is_one_for_every_library(self, seed):
        with pytest.raises(InputError, match="seed "):
            profiles.run(profiles.load("smoke"), "frozen", seed)

    @pytest.mark.parametrize(
        "text",
        [
            "a: " + "[" * 20_000, "a: &a [1]\nb: *a\n", "a: 1\na: 2\n", "x: \udc00", "a: " + "9" * 5000,
            "a: 2026-13-45", "{[1]: 2}", "a: !!python/name:os.system", "\0", "a: 1\n---\nb: 2\n",
        ],
    )  # fmt: skip
    def test_yaml_is_bounded(self, tmp_path, text):
        (tmp_path / "p.yaml").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(InputError, match=r"p\.yaml: not valid YAML"):
            runs.read_yaml(tmp_path / "p.yaml")

    def test_many_keys_are_read_in_time(self, tmp_path):
        (tmp_path / "p.yaml").write_text(json.dumps({f"k{i}": i for i in range(5000)}))
        assert len(runs.read_yaml(tmp_path / "p.yaml")) == 5000


class TestRuns:
    """What a run's folder may hold after a crash, a bad disk or an editor."""

    @pytest.fixture
    def run(self, tmp_path):
        run = runs.Run(tmp_path / "smoke" / "frozen" / "seed-0")
        runs.write_json(run.record_file, {"finished": True, "identity": "a-b-c", "model": "m", "seed": 0})
        columns = [*runs.TEXT_COLUMNS, "step", "auc_roc"]
        rows = [["a", "p", "Edema", "edema", "4", "0.5"], ["b", "q", "Edema", "edema", "4", "0.25"]]
        runs.write_atomic(run.grounding_file, "".join(",".join(row) + "\n" for row in [columns, *rows]))
        runs.write_atomic(run.log_file, "step,loss,grad_norm,lr,seconds,images_per_second\n1,0.5,1,0.1,3,2\n")
        return run

    @pytest.mark.parametrize(
        "content", ["[]", "null", "3", "true", '"x"', "{", "[" * 100_000, '{"a": 1, "a": 2}', "\udcff", ""]
    )
    def test_a_record_of_another_type_is_refused(self, run, content):
        run.record_file.write_bytes(content.encode(errors="surrogateescape"))
        for read in (run.record, run.is_finished, run.check_finished):
            with pytest.raises(InputError, match=r"run\.json"):
                read()

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("finished", "yes"), ("identity", 5), ("model", []), ("seed", "one"), ("seed", True), ("recipe", "frozen"),
            ("data", []), ("data", {"skipped": 3}), ("settings", None), ("versions", {"torch": 2}), ("seconds", "long"),
        ],
    )  # fmt: skip
    def test_an_entry_of_another_type_is_named(self, run, key, value):
        runs.write_json(run.record_file, run.record() | {key: value})
        with pytest.raises(InputError, match=rf"run\.json: {key}.*; delete it and make it with"):
            run.record()

    @pytest.mark.parametrize("cut", [1, 3, 8, 20])
    @pytest.mark.parametrize("name", ["grounding_file", "log_file"])
    def test_a_table_cut_off_in_a_row_is_noticed(self, run, name, cut):
        path = getattr(run, name)
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(InputError, match=rf"{path.name}: cut off in its last line; delete it and make it with"):
            (run.grounding if name == "grounding_file" else run.train_log)()

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            (",4,0.25", ",4.5,0.25", "line 3: step is '4.5', not a number of steps"),
            (",4,0.25", ",-4,0.25", "line 3: step is '-4', not a number of steps"),
            (",4,0.25", ",1e30,0.25", "line 3: step is '1e30', not a number of steps"),
            (",4,0.25", ",,0.25", "line 3: step is '', not a number of steps"),
            (",4,0.25", ",4,0.25,7", "not a readable table"),
            ("0.25", "inf", "auc_roc is infinite"),
            ("0.25", "high", "line 3: auc_roc is 'high', not a number"),
            ("step,auc_roc", "step,step", "a column is there twice"),
            ("edema", "ed\0ma", "bytes of no text"),
            ("b,q", '"b,q', "not a readable table"),
        ],
    )
    def test_a_damaged_cell_is_named(self, run, old, new, problem):
        run.grounding_file.write_text(run.grounding_file.read_text().replace(old, new))
        with pytest.raises(InputError, match=rf"grounding\.csv(?:, |: ){re.escape(problem)}"):
            run.grounding()

    @pytest.mark.parametrize(
        "stored",
        [
            {"maps": torch.rand(2, 8, 8)},
            {"rows": torch.arange(2)},
            {"maps": torch.rand(3, 8, 8), "rows": torch.arange(2)},
            {"maps": torch.rand(2, 64), "rows": torch.arange(2)},
            {"maps": torch.rand(2, 8, 8), "rows": torch.tensor([0.0, 0.5])},
            {"maps": torch.rand(2, 8, 8), "rows": torch.tensor([-1, 0])},
            {"maps": torch.rand(2, 8, 8), "rows": torch.tensor([0, 0])},
            {"maps": torch.rand(2, 8, 8), "rows": torch.arange(2)[None]},
        ],
        ids=range(8),
    )
    def test_maps_are_one_for_each_row(self, run, stored):
        runs.save_tensors(run.maps_file(4), stored)
        with pytest.raises(InputError, match=r"step-4\.safetensors: does not hold a map for each of its rows; delete"):
            run.last_maps()

    def test_a_table_that_lacks_a_column_is_named(self, run):
        run.log_file.write_text("step,loss\n1,0.5\n")
        with pytest.raises(InputError, match=r"train\.csv lacks the columns grad_norm, lr, seconds"):
            run.train_log()

    def test_what_is_no_checkpoint_is_none(self, run):
        for name in ("step-4", "step-²", "step-x", "step-", "step--1", "step-4.part"):
            (run.folder / "checkpoints" / name).mkdir(parents=True)
        assert run.steps() == [4]

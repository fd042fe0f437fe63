"""What a run leaves behind: files whole or not at all (disk full, process killed), names, records, exit codes."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from chestxai import finetune, profiles, runs

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this system")


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.suffix == ".part"]


class TestReplacing:
    def test_writes_text_and_bytes_and_makes_folders(self, tmp_path):
        path = tmp_path / "a" / "b" / "c.txt"
        assert runs.write_atomic(path, "für\n") == path
        assert path.read_bytes() == "für\n".encode()
        runs.write_atomic(str(path), b"\x00\xff")
        assert path.read_bytes() == b"\x00\xff"
        assert leftovers(path.parent) == []

    def test_permissions_are_those_of_any_other_file(self, tmp_path):
        (tmp_path / "usual").touch()
        runs.write_atomic(tmp_path / "atomic", "x")
        runs.save_tensors(tmp_path / "tensors", {"x": torch.ones(1)})
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
        assert len(set(modes.values())) == 1, modes

    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "disk on fire")])
    def test_a_failing_write_leaves_the_old_file_and_nothing_else(self, error, tmp_path):
        path = tmp_path / "a.json"
        runs.write_atomic(path, "old")

        def write():
            with runs.replacing(path) as part:
                part.write_text("half of the ne")
                raise error

        with pytest.raises(OSError if isinstance(error, OSError) else type(error)):
            write()
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def test_nobody_sees_the_file_before_it_is_whole(self, tmp_path):
        with runs.replacing(tmp_path / "a") as part:
            part.write_text("half")
            assert not (tmp_path / "a").exists()
            assert part.stat().st_dev == tmp_path.stat().st_dev  # so that renaming is one step
        assert (tmp_path / "a").read_text() == "half"

    def test_two_writers_at_once_do_not_share_a_part(self, tmp_path):
        with runs.replacing(tmp_path / "a") as one, runs.replacing(tmp_path / "a") as two:
            one.write_text("one")
            two.write_text("two")
        assert (tmp_path / "a").read_text() == "one"

    @needs_dev_full
    def test_a_full_disk_is_told_with_the_file_and_the_remedy(self, tmp_path, monkeypatch):
        """/dev/full answers every write as a full disk does: the part is turned into a link to it."""
        path = runs.write_json(tmp_path / "out.json", "old")
        monkeypatch.setattr(Path, "touch", lambda part, exist_ok: part.symlink_to("/dev/full"))
        with pytest.raises(
            OSError, match=r"cannot write .*out\.json: .*No space left.*free some disk space and run again"
        ):
            runs.write_json(path, list(range(100)))
        assert runs.read_json(path) == "old"
        assert leftovers(tmp_path) == []

    def test_a_full_disk_under_tensors_is_told_alike(self, tmp_path, monkeypatch):
        # safetensors makes a file of its own, which cannot be led to /dev/full, and has its own way to tell.
        def full(tensors, filename, metadata):
            Path(filename).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        path = runs.save_tensors(tmp_path / "out", {"x": torch.ones(1)})
        monkeypatch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match=r"cannot write .*out: .*No space left.*free some disk space and run again"):
            runs.save_tensors(path, {"x": torch.zeros(1)})
        assert runs.load_tensors(path)["x"] == 1
        assert leftovers(tmp_path) == []

    def test_a_forbidden_folder_is_told_with_another_remedy(self, tmp_path, monkeypatch):
        def refuse(part, path):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match=r"cannot write .*a\.txt: .*Remedy: check the folder's permissions"):
            runs.write_atomic(tmp_path / "a.txt", "x")
        assert leftovers(tmp_path) == []

    def test_a_file_in_the_place_of_a_folder_is_named(self, tmp_path):
        (tmp_path / "a").write_text("I am a file")
        with pytest.raises(OSError, match=r"cannot write .*a/b/c\.txt: .*a"):
            runs.write_atomic(tmp_path / "a" / "b" / "c.txt", "x")
        assert (tmp_path / "a").read_text() == "I am a file"

    def test_a_folder_in_the_place_of_the_file_is_named(self, tmp_path):
        (tmp_path / "a").mkdir()
        with pytest.raises(OSError, match=r"cannot write .*/a: ") as caught:
            runs.write_atomic(tmp_path / "a", "x")
        # Permissions are not what is wrong here.
        assert "Remedy" not in str(caught.value)
        assert leftovers(tmp_path) == []


# Writes "a"s and "b"s in turn for ever, and says so after the first whole file; told "half", it stops in the middle.
_WRITER = """
import sys, time
from chestxai import finetune, profiles, runs
path, how = sys.argv[1:]
runs.write_atomic(path, "a" * 3_000_000)
print("ready", flush=True)
while how == "loop":
    for letter in "ba":
        runs.write_atomic(path, letter * 3_000_000)
with runs.replacing(path) as part, open(part, "w") as file:
    file.write("b" * 1_500_000)
    file.flush()
    print("half", flush=True)
    time.sleep(60)
"""


class TestKilled:
    @pytest.mark.parametrize("how", ["half", "loop"])
    def test_sigkill_leaves_the_old_or_the_new_file_never_half(self, how, tmp_path):
        path = tmp_path / "model.bin"
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(path), how], stdout=subprocess.PIPE) as writer:
            for _ in range(2 if how == "half" else 1):
                assert writer.stdout.readline()
            if how == "loop":
                time.sleep(0.1)
            writer.send_signal(signal.SIGKILL)
            assert writer.wait() == -signal.SIGKILL
        content = path.read_text()
        assert len(content) == 3_000_000
        assert set(content) == {"a"} if how == "half" else len(set(content)) == 1
        # What the killed writer could not tidy up disturbs no later one.
        runs.write_atomic(path, "again")
        assert path.read_text() == "again"

    def test_what_a_killed_writer_of_tensors_leaves_is_known_for_ours(self, tmp_path):
        """safetensors writes to ``.tmpXXXXXX`` beside the file it is given, a name that does not say whose it was."""
        code = "import sys, torch; from chestxai import runs\nx = {'x': torch.ones(50_000_000)}\n"
        code += "while True: runs.save_tensors(sys.argv[1], x)"
        path = tmp_path / "model.safetensors"
        with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
            until = time.monotonic() + 60
            while not any(p.name.startswith(".tmp") for p in tmp_path.rglob("*")):
                assert time.monotonic() < until
                assert writer.poll() is None
            writer.kill()
        (tmp_path / "run.json").touch()
        assert leftovers(tmp_path)
        runs.tidy(tmp_path.parent, "**/*", seconds=600)
        assert leftovers(tmp_path), "its writer might be at work"
        runs.tidy(tmp_path.parent, "**/*")
        assert {p.name for p in tmp_path.rglob("*")} <= {"model.safetensors", "run.json"}


class TestJson:
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    @settings(max_examples=40, deadline=None)
    def test_what_is_written_is_read(self, value):
        with tempfile.TemporaryDirectory() as folder:
            assert runs.read_json(runs.write_json(Path(folder) / "a.json", value)) == value

    @pytest.mark.parametrize("number", [math.nan, math.inf, np.float64("nan")])
    def test_nan_is_refused_and_the_old_file_kept(self, number, tmp_path):
        path = runs.write_json(tmp_path / "a.json", {"fid": 1.5})
        with pytest.raises(ValueError, match=r"a\.json: cannot be written as JSON"):
            runs.write_json(path, {"scores": [0.5, number]})
        assert runs.read_json(path) == {"fid": 1.5}
        assert leftovers(tmp_path) == []

    @pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"\x00" * 40])
    def test_damage_is_named(self, content, tmp_path):
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.json: not valid JSON \(.+\)"):
            runs.read_json(tmp_path / "run.json")

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"run\.json"):
            runs.read_json(tmp_path / "run.json")

    def test_files_are_utf8_whatever_the_locale(self, tmp_path):
        code = f"import json; from chestxai import runs; print(ascii(runs.read_json({str(tmp_path / 'a.json')!r})))"
        (tmp_path / "a.json").write_text('"é"', encoding="utf-8")
        environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == r"'\xe9'", done.stderr


class TestTensors:
    def test_round_trip_with_metadata(self, tmp_path):
        half = torch.tensor(1.5, dtype=torch.bfloat16)
        tensors = {"not contiguous": torch.arange(6).reshape(2, 3).T, "empty": torch.zeros(0, 4), "half": half}
        path = runs.save_tensors(tmp_path / "x.safetensors", tensors, {"identity": "ab"})
        loaded = runs.load_tensors(path)
        assert set(loaded) == set(tensors)
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor)
        assert runs.tensor_metadata(path) == {"identity": "ab"}
        assert runs.tensor_metadata(runs.save_tensors(tmp_path / "y", {"a": torch.ones(1)})) == {}

    def test_a_trained_tensor_is_saved_without_its_graph(self, tmp_path):
        weight = torch.ones(3, requires_grad=True)
        assert not runs.load_tensors(runs.save_tensors(tmp_path / "x", {"w": weight * 2}))["w"].requires_grad

    def test_one_flipped_bit_is_found(self, tmp_path):
        """safetensors checks its header alone: without the checksum, another number would be read."""
        path = runs.save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(100), "b": torch.zeros(100)})
        content = bytearray(path.read_bytes())
        content[-200] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors: damaged \(its content is not what was written\)"):
            runs.load_tensors(path)

    def test_files_of_others_have_no_checksum_and_are_read(self, tmp_path):
        save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
        assert runs.load_tensors(tmp_path / "x.safetensors")["a"].tolist() == [1, 1]

    @pytest.mark.parametrize("damage", ["empty", "cut", "text", "header"])
    @pytest.mark.parametrize("read", [runs.load_tensors, runs.tensor_metadata])
    def test_damage_is_named(self, damage, read, tmp_path):
        path = runs.save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(100)})
        content = path.read_bytes()
        damaged = {"empty": b"", "cut": content[:200], "text": b"<html>404</html>", "header": b"\xff" * 8 + content[8:]}
        path.write_bytes(damaged[damage])
        with pytest.raises(ValueError, match=r"x\.safetensors: damaged or not a safetensors file .*delete it"):
            read(path)

    @pytest.mark.parametrize("read", [runs.load_tensors, runs.tensor_metadata])
    def test_a_missing_file_is_named(self, read, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"x\.safetensors"):
            read(tmp_path / "x.safetensors")


class TestNames:
    def test_sha256_known_answer(self, tmp_path):
        (tmp_path / "abc").write_bytes(b"abc")
        assert runs.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def test_a_fingerprint_never_changes(self):
        # Runs on disk are found again by these names: a change here makes every one of them anew.
        assert runs.fingerprint("demo", {"lr": 5e-5, "steps": 100}, [1, None, True]) == "810744011773af33"

    @given(st.lists(st.lists(st.integers() | st.text()), max_size=4))
    def test_an_iterator_is_a_list_read_item_by_item(self, values):
        assert runs.fingerprint("a", iter(values), "b") == runs.fingerprint("a", values, "b")
        assert runs.fingerprint(iter(values)) == runs.fingerprint(values)

    @given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False))), st.randoms())
    @settings(deadline=None)
    def test_the_order_of_keys_is_no_difference(self, values, random):
        items = list(values.items())
        random.shuffle(items)
        assert runs.fingerprint(dict(items)) == runs.fingerprint(values)
        assert runs.fingerprint({"outer": dict(items)}) == runs.fingerprint({"outer": values})

    def test_what_differs_differs(self):
        values = [(), ("a",), ("a", "b"), ("ab",), (["a", "b"],), ({"a": "b"},), (1,), ("1",), (None,), (0.1,), (True,)]
        assert len({runs.fingerprint(*v) for v in values}) == len(values)

    def test_paths_sets_and_numpy_scalars_are_plain_values(self):
        assert runs.fingerprint(Path("a") / "b") == runs.fingerprint(os.path.join("a", "b"))
        assert runs.fingerprint({"b", "a", "c"}) == runs.fingerprint(["a", "b", "c"])
        assert runs.fingerprint(np.int64(3), np.float64(0.5)) == runs.fingerprint(3, 0.5)
        assert runs.fingerprint((1, (2,))) == runs.fingerprint([1, [2]])

    @pytest.mark.parametrize("value", [object(), np.arange(10_000), torch.ones(2), lambda: 0])
    def test_a_value_without_a_stable_text_is_refused(self, value):
        # An object's text holds its address, that of a long array an ellipsis: neither names the value.
        with pytest.raises(TypeError, match="plain values, not of"):
            runs.fingerprint({"a": [value]})

    def test_the_same_in_another_process(self):
        code = "from chestxai import runs; print(runs.fingerprint({'x': {'c', 'a', 'b'}, 'a': 0.1}))"
        environment = {**os.environ, "PYTHONHASHSEED": "7"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.strip() == runs.fingerprint({"a": 0.1, "x": {"a", "b", "c"}})


class TestRecord:
    def test_says_what_a_run_must_say(self):
        record = runs.record()
        assert torch.__version__.startswith(record["versions"]["torch"].split("+")[0])
        assert set(record) == {"versions", "python", "device", "threads", "commit", "environment", "peak_memory_gb"}
        assert 0.05 < record["peak_memory_gb"] < 1000
        json.dumps(record, allow_nan=False)

    def test_needs_no_git(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert runs.record()["commit"] is None

    def test_peak_memory_is_in_gigabytes(self):
        now = psutil.Process().memory_info().rss / 1e9
        assert now <= runs.peak_memory() * 1.01
        assert runs.peak_memory() < 100 * now


class TestProgress:
    def test_a_log_gets_a_few_lines_only(self, capfd, monkeypatch):
        monkeypatch.delenv("CHESTXAI_STATUS", raising=False)
        assert list(runs.progress(range(5000), "counting")) == list(range(5000))
        shown = capfd.readouterr().err
        assert "counting: 100%" in shown
        assert shown.count("\r") <= 4


class TestCommand:
    def outcome(self, main, capsys) -> tuple[object, str]:
        with pytest.raises(SystemExit) as stopped:
            runs.command(main)
        return stopped.value.code, capsys.readouterr().err

    def test_success(self, capsys):
        assert self.outcome(lambda: None, capsys) == (0, "")
        assert self.outcome(lambda: 3, capsys) == (3, "")

    @pytest.mark.parametrize(
        "error",
        [
            runs.InputError("no such split"),
            runs.MissingError("make it with 'make book'"),
            runs.DivergedError("the loss is nan at step 3"),
            FileNotFoundError(2, "No such file", "x.csv"),
            ModuleNotFoundError("this needs pydicom; install it"),
        ],
    )
    def test_an_error_one_can_act_on_is_one_line(self, error, capsys):
        def main():
            raise error

        assert self.outcome(main, capsys) == (2, f"error: {error}\n")

    def test_a_long_error_is_one_line_too(self, capsys):
        def main():
            # As pydantic lists what is wrong with a profile: one problem a line.
            raise runs.InputError("2 problems\nsteps\n  must be positive\nlr\n  must be positive")

        assert self.outcome(main, capsys) == (2, "error: 2 problems steps must be positive lr must be positive\n")

    def test_ctrl_c(self, capsys):
        def main():
            raise KeyboardInterrupt

        code, told = self.outcome(main, capsys)
        assert code == 130
        assert told.count("\n") == 1
        assert "finished work is kept" in told

    def test_a_bug_keeps_its_traceback(self):
        with pytest.raises(ZeroDivisionError):
            runs.command(lambda: 1 // 0)
        with pytest.raises(ValueError, match="invalid literal"):
            runs.command(lambda: int("x"))
        with pytest.raises(ModuleNotFoundError, match=r"No module named 'chestxai\.nothing'"):
            runs.command(lambda: importlib.import_module("chestxai.nothing"))

    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
                "raise finetune.accumulate",
            ),
            (OSError(28, "No space left on device", "a.bin"), "free some disk space and run again"),
            (runs.InputError("x" * 100_000), "xxx…"),
        ],
        ids=["memory", "disk", "long"],
    )
    def test_what_runs_full_ends_in_one_line_with_its_remedy(self, capsys, error, remedy):
        def main():
            raise error

        with pytest.raises(SystemExit) as end:
            runs.command(main)
        told = capsys.readouterr().err
        assert (end.value.code, told.count("\n")) == (2, 1)
        assert told.startswith("error: ")
        assert remedy in told
        assert len(told) < 2100

    def test_a_character_that_the_terminal_lacks_costs_nothing_but_itself(self):
        code = "from chestxai import runs; runs.command(lambda: print('notebooks → pages'))"
        env = os.environ | {"PYTHONIOENCODING": "cp1252"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        assert done.stdout.split() == [b"notebooks", b"?", b"pages"]

    def test_a_library_that_is_missing_is_one_line_of_the_command(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a.dcm").write_bytes(bytes(128) + b"DICM")
        (tmp_path / "folder" / "a.csv").write_text("image,text\na.dcm,Left pleural effusion.\n")
        own = tmp_path / "own.yaml"
        smoke = (profiles.DATA / "profiles" / "smoke.yaml").read_text()
        own.write_text(re.sub(r"data: .*", "data: {source: folder}", smoke))
        # As Python has it: a module that is None cannot be imported.
        monkeypatch.setitem(sys.modules, "pydicom", None)
        options = ["--profile", str(own), "--data", str(tmp_path), "--out", str(tmp_path / "runs")]
        code, told = self.outcome(lambda: finetune.main(options), capsys)
        assert code == 2
        assert re.fullmatch(r"error: .*a\.dcm is a DICOM file: .* 'python -m pip install pydicom'\n", told)


class TestRun:
    @pytest.fixture
    def run(self, tmp_path):
        folder = tmp_path / "runs/demo/frozen/seed-3"
        folder.mkdir(parents=True)
        return runs.Run(folder)

    def test_a_missing_run_is_one_message_that_names_the_command(self, run):
        options = f"--profile demo --variants frozen --seeds 3 --out {run.folder.parents[2]}"
        command = f"make it with 'python -m chestxai.batch {options}'"
        for read in (run.record, run.train_log, run.grounding, run.fidelity, run.check_finished, lambda: run.maps(3)):
            with pytest.raises(runs.MissingError) as told:
                read()
            assert command in str(told.value)
        assert not run.is_finished()
        assert run.steps() == []

    def test_identifiers_and_phrases_stay_text(self, run):
        run.grounding_file.write_text(
            "study,patient,finding,phrase,step,auc_roc\n01,007,Edema,NA,80,0.5\n02,07,Edema,None,80,\n"
        )
        table = run.grounding()
        assert table["patient"].tolist() == ["007", "07"]
        assert table["phrase"].tolist() == ["NA", "None"]
        assert table["step"].tolist() == [80, 80]
        assert np.isnan(table["auc_roc"][1])

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("", "not a readable table"),
            ("study,patient\n1,2\n", "lacks the columns step, finding, phrase"),
            ("study,patient,finding,phrase,step\n", "has no rows"),
            ("study,patient,finding,phrase,step,iou\na,b,c,d,1,0.5\na,b,c,d,2,hello\n", "line 3: iou is 'hello'"),
            ("study,patient,finding,phrase,step\na,b,c,d,\n", "line 2: step is ''"),
        ],
    )
    def test_a_damaged_table_is_named_with_its_line(self, run, content, told):
        run.grounding_file.write_text(content)
        with pytest.raises(runs.InputError, match=told):
            run.grounding()

    @pytest.mark.parametrize(
        "content", ["[]", "null", "3", "'a'", "[" * 100_000, '{"steps": [1]}', '{"steps": {"a": {}}}']
    )
    def test_json_of_another_type_is_named(self, run, content):
        run.fidelity_file.write_text(content)
        with pytest.raises(runs.InputError, match=r"fidelity\.json"):
            run.fidelity()

    def test_scores_by_step(self, run):
        run.fidelity_file.write_text('{"steps": {"0": {"fid": 2, "kid": null}}}')
        scores = run.fidelity()
        assert scores[0]["fid"] == 2
        assert np.isnan(scores[0]["kid"])
        run.fidelity_file.write_text('{"steps": {"0": {"fid": "low"}}}')
        with pytest.raises(runs.InputError, match="fid is 'low', not a number"):
            run.fidelity()


class TestResumable:
    def test_chunks_are_joined_and_a_finished_file_is_read(self, tmp_path):
        calls = []

        def compute(rows):
            calls.append(list(rows))
            return {"x": torch.tensor([i * i for i in rows if i != 2])}, [f"{i} left out" for i in rows if i == 2]

        for _ in range(2):
            tensors, lines = runs.resumable(tmp_path / "a.safetensors", "me", 5, compute, chunk=2)
            assert tensors["x"].tolist() == [0, 1, 9, 16]
            assert lines == ["2 left out"]
        assert calls == [[0, 1], [2, 3], [4]]
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
        runs.resumable(tmp_path / "a.safetensors", "another", 5, compute, chunk=2)
        assert len(calls) == 6

    def test_a_stopped_job_computes_only_what_is_missing(self, tmp_path):
        calls = []

        def compute(rows, stops=True):
            if stops and rows.start == 4:
                raise KeyboardInterrupt
            calls.append(rows.start)
            return {"x": torch.tensor(list(rows))}, []

        with pytest.raises(KeyboardInterrupt):
            runs.resumable(tmp_path / "a.safetensors", "me", 6, compute, chunk=2)
        tensors, _ = runs.resumable(tmp_path / "a.safetensors", "me", 6, lambda rows: compute(rows, False), chunk=2)
        assert calls == [0, 2, 4]
        assert tensors["x"].tolist() == [0, 1, 2, 3, 4, 5]

    def test_where_everything_is_left_out_nothing_is_kept(self, tmp_path):
        tensors, lines = runs.resumable(tmp_path / "a.safetensors", "me", 3, lambda rows: ({}, ["no"] * len(rows)))
        assert (tensors, lines) == ({}, ["no"] * 3)
        assert list(tmp_path.iterdir()) == []

    def test_what_another_run_of_the_profile_has_is_copied_and_not_computed_again(self, tmp_path):
        """The base before fine-tuning is the same for all variants and seeds."""

        def result(run, identity, value, name="step-0"):
            path = tmp_path / run / "maps" / f"{name}.safetensors"
            tensors, lines = runs.resumable(path, identity, 1, lambda rows: ({"x": torch.tensor([value])}, ["a line"]))
            assert lines == ["a line"]
            return int(tensors["x"])

        assert result("demo/frozen/seed-0", "base", 1) == 1
        assert result("demo/learnable/seed-1", "base", 2) == 1
        assert result("demo/learnable/seed-0", "another base", 3) == 3
        assert result("demo/learnable/seed-0", "base", 4, "step-8") == 4
        assert result("open/frozen/seed-0", "base", 5) == 5

    def test_a_damaged_file_of_another_run_is_no_reason_to_stop(self, tmp_path):
        for variant, value in (("frozen", 1), ("learnable", 2)):
            path = tmp_path / "demo" / variant / "seed-0" / "maps" / "step-0.safetensors"
            tensors, _ = runs.resumable(path, "base", 1, lambda rows, v=value: ({"x": torch.tensor([v])}, []))
            assert tensors["x"].tolist() == [value]
            path.write_bytes(b"no tensors")

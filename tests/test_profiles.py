"""Profiles: every file that ships is valid, the paper's numbers are the paper's, and a wrong setting is named."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from chestxai import grounding, localization, models, profiles, sources
from chestxai.recipes import Recipe
from chestxai.runs import InputError, read_yaml
from chestxai.studies import phrases
from tests import tiny

LEARNABLE = Recipe(text="learnable")


def test_every_profile_that_ships_loads_under_its_own_name():
    names = "causes cxrbert demo open open-quick paper paper-12gb paper-24gb recipes recipes-open recipes-open-val"
    assert profiles.names() == [*names.split(), "smoke", "text_rate"]
    for name in profiles.names():
        profile = profiles.load(name)
        assert profile.name == name
        assert profile.data.source in sources.SOURCES
        assert profile.boxes in sources.SOURCES
        assert profile.finetune.steps % profile.finetune.checkpoint_every == 0


def test_the_papers_protocol():
    """Dombrowski et al., AAAI 2024, arXiv:2303.17908."""
    paper = profiles.load("paper")
    assert (paper.data.source, paper.data.size) == ("mimic", 512)
    assert (paper.finetune.steps, paper.finetune.learning_rate, paper.finetune.ucg) == (60_000, 5e-5, 0.3)
    assert (paper.grounding.steps, paper.grounding.last, paper.grounding.stride) == (50, 40, 1)
    assert (paper.sampling.images, paper.sampling.guidance, paper.sampling.steps) == (5000, 4, 75)
    assert (paper.sampling.prompts, paper.sampling.sampler) == ("evenly", "plms")
    for smaller in ("paper-24gb", "paper-12gb"):
        # What saves memory, and nothing else.
        other = profiles.load(smaller)
        assert {k: v for k, v in other.sampling if k != "batch"} == {k: v for k, v in paper.sampling if k != "batch"}
        savers = {"accumulate", "gradient_checkpointing", "optimizer", "averages", "weights"}
        assert {k: v for k, v in other.finetune if k not in savers} == {
            k: v for k, v in paper.finetune if k not in savers
        }
        assert (other.base, other.data, other.variants) == (paper.base, paper.data, paper.variants)
    schedule = tiny.random_pipeline("sd").scheduler
    assert len(grounding.paper_timesteps(schedule, paper.grounding.steps, paper.grounding.last)) == 40


def test_the_two_variants_differ_in_nothing_a_profile_says():
    for name in sorted({*profiles.names()} - {"cxrbert"}):  # whose paper has one
        variants = profiles.load(name).variants
        assert {v: variants[v] for v in ("frozen", "learnable")} == {"frozen": Recipe(), "learnable": LEARNABLE}
        assert name.startswith(("causes", "recipes")) or len(variants) == 2


def test_the_quick_profile_of_real_images_differs_in_steps_alone():
    whole, quick = profiles.load("open"), profiles.load("open-quick")
    assert quick.finetune.steps == whole.finetune.steps / 4
    same = whole.finetune.model_copy(update={k: getattr(quick.finetune, k) for k in ("steps", "checkpoint_every")})
    assert quick == whole.model_copy(update={"name": quick.name, "description": quick.description, "finetune": same})


def written(tmp_path: Path, **changes: object) -> Path:
    content = yaml.safe_load((profiles.DATA / "profiles/smoke.yaml").read_text())
    for key, value in changes.items():
        place, _, last = key.rpartition("__")
        target = content[place] if place else content
        target[last] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_ones_own_profile_is_loaded_by_its_path_and_named_after_its_file(tmp_path):
    mine = profiles.load(written(tmp_path, finetune__steps=12))
    assert (mine.name, mine.finetune.steps) == ("mine", 12)
    assert profiles.run(mine, "frozen", 3, tmp_path).folder == tmp_path / "mine/frozen/seed-3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune__speed": 9}, "finetune.speed: Extra inputs are not permitted"),
        ({"finetune__steps": 0}, "finetune.steps: Input should be greater than 0"),
        ({"finetune__ucg": 1.5}, "finetune.ucg"),
        ({"finetune__accumulate": 3}, "batch_size 8 is not a multiple of accumulate 3"),
        ({"grounding__last": 60}, "last 60 exceeds steps 10"),
        ({"variants": ["thawed"]}, "variants.thawed.text"),
        ({"variants": []}, "variants"),
        ({"variants": ["frozen", "frozen"]}, "repeats a variant"),
        ({"variants": {"../up": "frozen"}}, "variants"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 0]}, "repeats a seed"),
        ({"seeds": [-1]}, "seeds.0"),
        ({"finetune__learning_rate": float("inf")}, "finetune.learning_rate"),
        ({"data__size": 20}, "data.size"),
        ({"sampling__steps": 334}, "334 steps would begin at timestep 666 of 1,000"),
        ({"grounding__steps": 1001}, "grounding.steps"),
        ({"name": "../elsewhere"}, "name"),
        ({"data__source": "nowhere"}, "data: Value error, unknown source 'nowhere': choose one of phantom"),
        ({"data__options": {"vindr": {"agree": 3}}}, "options of 'vindr', which is not read here"),
        ({"data__options": {"phantom": {"sed": 1}}}, "phantom has no option 'sed': it has seed, normal"),
        ({"data__options": {"phantom": {"n": 1}}}, "phantom has no option 'n'"),
        ({"data__options": {"phantom": {"seed": "1"}}}, "option 'seed' of phantom: Input should be a valid integer"),
        ({"data__boxes": "mimic", "data__options": {"mimic": {"mode": "x"}}}, "should be 'phrase' or 'impression'"),
        ({"data__boxes": "mimic", "data__credentialed": False}, "the terms of mimic bind each user"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path, changes, message):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"mine\.yaml") as caught:
        profiles.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("steps", [5, 75, 125, 200, 250, 500])
def test_so_many_steps_begin_in_noise(tmp_path, steps):
    loaded = profiles.load(written(tmp_path, sampling__steps=steps))
    scheduler = models.ddim(models.load_pipeline("tiny").scheduler)
    scheduler.set_timesteps(loaded.sampling.steps)
    assert steps < 100 or scheduler.timesteps[0] > 890


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    "text",
    ["[1, 2", "just words", "", "!!python/object/apply:os.getcwd []", BOMB, "a: 1\na: 2", "x" * 200_000, "[" * 5000],
)
def test_what_is_not_a_profile_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        profiles.load(path)


@pytest.mark.parametrize("name", ["nothing", "../profiles/demo", "no/such.yaml"])
def test_an_unknown_profile_lists_those_there_are(name):
    with pytest.raises(ValueError, match=f"choose one of {', '.join(profiles.names())}"):
        profiles.load(name)


def test_unknown_variant_and_source_list_those_there_are():
    with pytest.raises(ValueError, match="no variant 'thawed': choose one of frozen, learnable"):
        profiles.run(profiles.load("smoke"), "thawed", 0)
    with pytest.raises(ValueError, match="unknown source 'nowhere': choose one of phantom"):
        sources.load("nowhere")
    with pytest.raises(ValueError, match="unknown split 'all'"):
        sources.load("phantom", split="all")


def test_data_on_disk_are_asked_for_by_the_command_that_takes_them(tmp_path):
    profile = profiles.load("open")
    with pytest.raises(ValueError, match="make book PROFILE=open DATA=/path/to/folder"):
        profiles.studies(profile, "test")
    with pytest.raises(FileNotFoundError, match="openi"):
        profiles.check_data(profile, tmp_path)


@pytest.mark.parametrize("name", sorted(sources.SOURCES))
def test_the_options_of_every_source_can_be_said_in_a_profile(tmp_path, name):
    load = importlib.import_module(f"chestxai.sources.{name}").load
    defaults = {k: p.default for k, p in inspect.signature(load).parameters.items() if p.kind is p.KEYWORD_ONLY}
    given = {k: v for k, v in defaults.items() if (name, k) not in (("phantom", "n"), ("phantom", "size"))}
    assert "seed" in given or name in ("chexlocalize", "padchest")
    profile = profiles.load(written(tmp_path, data__boxes=name, data__options={name: given}))
    assert profile.data.options == {name: given}


def test_options_reach_the_source_and_name_the_data(tmp_path):
    plain = profiles.load("smoke")
    normal = profiles.load(written(tmp_path, data__options={"phantom": {"normal": True}}))
    assert any(s.present() for s in profiles.studies(plain, "test"))
    assert not any(s.present() for s in profiles.studies(normal, "test"))

    nih(tmp_path / "nih", boxed=9, plain=40)
    names = set()
    for options in ({}, {"seed": 0}, {"seed": 1}, {"boxes": "any"}):
        own = profiles.load(written(tmp_path, data__boxes="nih", data__options={"nih": options}))
        found = profiles.studies(own, "test", tmp_path, boxes=True)
        expected = [s for s in sources.load("nih", tmp_path / "nih", "test", **options) if phrases([s])]
        assert found == expected
        names.add(found.fingerprint)
    assert len(names) == 4


def test_every_recipe_of_the_studies_is_said_in_words():
    words = read_yaml(profiles.DATA / "words" / "recipes.yaml")
    assert set(words) == set(profiles.load("recipes").variants)


def test_a_batch_of_several_profiles_knows_data_by_their_options(tmp_path):
    nih(tmp_path / "nih", boxed=9, plain=40)
    options, known, found = ({"seed": 0}, {"seed": 1}, {"seed": 0}), {}, []
    for given in options:
        own = profiles.load(written(tmp_path, data__boxes="nih", data__options={"nih": given}))
        found.append(profiles.check_data(own, tmp_path, known)["boxes test"])
    assert found[0] != found[1]
    assert found[0] == found[2]


def nih(root: Path, boxed: int, plain: int) -> None:
    (root / "images").mkdir(parents=True)
    entry, boxes = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"], []
    for i in range(boxed + plain):
        name = f"{i:08d}_000.png"
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(root / "images" / name)
        entry.append(f"{name},Cardiomegaly,0,{i},60,F,PA")
        if i >= plain:
            boxes.append(f"{name},Cardiomegaly,400,500,300,200")
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(entry) + "\n")
    head = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    (root / "BBox_List_2017.csv").write_text("\n".join([head, *boxes]) + "\n")


def test_a_cap_counts_only_studies_that_can_be_scored(tmp_path):
    nih(tmp_path / "nih", boxed=30, plain=60)
    profile = profiles.load("open")
    capped = profile.model_copy(update={"data": profile.data.model_copy(update={"test": 5})})
    found = profiles.studies(capped, "test", tmp_path, boxes=True)
    assert len(found) == 5 == len(phrases(found))
    assert len(profiles.studies(profile, "test", tmp_path, boxes=True)) > 5


def test_boxes_that_are_not_there_are_missed_before_the_run(tmp_path):
    nih(tmp_path / "nih", boxed=0, plain=4)
    profile = profiles.load("open")
    only = profile.model_copy(update={"data": profile.data.model_copy(update={"source": "nih"})})
    with pytest.raises(ValueError, match="no study of the test split has a usable box"):
        profiles.check_data(only, tmp_path)


def test_one_patient_of_a_split_is_too_few_before_the_run(tmp_path):
    (tmp_path / "folder").mkdir()
    rows = ["image,text,finding,x,y,w,h,split"]
    for i, split in enumerate(["train"] * 2 + ["val"] + ["test"] * 2):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "folder" / f"{i}.png")
        rows.append(f"{i}.png,Small nodule.,Nodule,1,1,4,4,{split}")
    (tmp_path / "folder" / "t.csv").write_text("\n".join(rows))
    own = profiles.load(written(tmp_path, data__source="folder"))
    with pytest.raises(InputError, match=r"only one patient of the val split has a usable image.*of two patients each"):
        profiles.check_data(own, tmp_path)


def test_a_sample_is_seeded_in_order_and_never_more_than_there_is():
    items = list(range(50))
    assert (
        profiles.sample(items, 10, seed=1)
        == profiles.sample(items, 10, seed=1)
        == sorted(profiles.sample(items, 10, 1))
    )
    assert profiles.sample(items, 10, seed=1) != profiles.sample(items, 10, seed=2)
    assert profiles.sample(items, 99) == items


def test_an_endpoint_has_a_chance_and_more_of_it_is_better():
    # A map that knows where findings usually are has less to lose: no scores to rank by.
    losses = {"renamed", "denied", "removed", "moved"}
    points = {*localization.FAITHFULNESS, *localization.SCORES} - localization.LOWER_IS_BETTER - losses
    assert {*get_args(profiles.Points)} == points
    for name in ("fid", "centre_distance", "auc_roc_shuffled", "side"):
        with pytest.raises(ValidationError, match="endpoint"):
            profiles.StatisticsSettings(endpoint=(name,))
    # A score of sets of images has no phrases to compare.
    with pytest.raises(ValidationError, match="no score of a phrase is called fid;"):
        profiles.StatisticsSettings(secondary=("cnr", "fid"))
    assert profiles.StatisticsSettings(endpoint=("word", "word"), secondary=("cnr", "iou", "cnr")) == (
        profiles.StatisticsSettings(endpoint=("word",), secondary=("cnr", "iou"))
    )

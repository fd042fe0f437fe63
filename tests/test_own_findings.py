"""Findings are data: a source whose findings are none of the eight is trained, grounded, scored and tabled."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image

from chestxai import profiles
from chestxai.batch import study
from chestxai.recipes import Recipe

NAMES = ("Nodule", "Mass")


def folder(root):
    rng, rows = np.random.default_rng(0), [["image", "text", "finding", "x", "y", "w", "h", "patient", "split"]]
    root.mkdir(parents=True)
    for split, n in (("train", 12), ("val", 8), ("test", 8)):
        for i in range(n):
            pixels = rng.normal(90, 15, (64, 64))
            x, y = (int(value) for value in rng.integers(5, 45, 2))
            name = NAMES[i % 2]
            pixels[y : y + 12, x : x + 12] += 90
            side = "right" if x < 26 else "left"
            about = [f"Small {side} {name.lower()}.", name, x, y, 12, 12] if i % 4 else ["Normal chest.", *[""] * 5]
            rows.append([f"{split}{i}.png", *about, f"{split}{i}", split])
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{split}{i}.png")
    with open(root / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_findings_of_a_source_of_its_own_are_trained_grounded_scored_and_tabled(tmp_path):
    folder(tmp_path / "data" / "folder")
    smoke = profiles.load("smoke").model_dump()
    smoke["data"] = {"source": "folder", "credentialed": False, "size": 64}
    smoke["finetune"] |= {"steps": 2, "batch_size": 4, "checkpoint_every": 2}
    smoke["grounding"] |= {"last": 4, "swaps": 1}
    smoke["sampling"] |= {"images": 4, "steps": 2, "per_prompt": 2}
    taught = Recipe(text="learnable", attention="supervised", attention_weight=0.1, attention_findings=["Nodule"])
    profile = profiles.Profile.model_validate(smoke | {"variants": {"taught": taught}})
    profiles.check_data(profile, tmp_path / "data")
    job = study.Job(profile, "taught", 0, "test", {}, str(tmp_path / "data"), tmp_path / "runs")
    rows = study.rows_of(job)
    assert np.isfinite(rows[["auc_roc", "gain_auc_roc", "cnr", "ms_ssim"]].to_numpy(float)).all()
    grounding = profiles.run(profile, "taught", 0, tmp_path / "runs").grounding()
    assert set(grounding["finding"]) == set(NAMES)

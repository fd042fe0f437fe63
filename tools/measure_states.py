"""Measures what the text encoders of finished runs say: data/states.csv, which chapter 9 shows, and its provenance.

    python tools/measure_states.py runs other/runs …

Every run on phantoms below the folders gives a row per checkpoint, beside its scores on test phrases. Only the text
encoder is run, on the validation phrases of chapter 9.

Columns: ``base, variant, rate`` (of the text encoder; empty if it does not learn), ``seed, step``; ``alike``, the
mean cosine between the states of different tokens of a phrase; ``between``, that of the finding's words in different
phrases; ``drift``, the mean of 1 − cosine between a token's state and the base's; ``gain_auc_roc, word`` and
``classifier_auc``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch.nn.functional as F

from chestxai import causes, finetune, models, profiles, runs
from chestxai.profiles import Profile
from chestxai.runs import Run
from chestxai.studies import phrases


def rows_of(run: Run, profile: Profile, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row per scored checkpoint.

    Args:
        run: finished and scored.
        profile: of the run.
        about: the entries that name it.
    """
    val = list(profiles.studies(profile, "val", boxes=True))
    pipeline = models.load_base(profile)
    sample = causes.prepare(pipeline, profiles.sample(phrases(val), 48), val, profile.data.fit)
    before = models.encode_text(pipeline, sample.prompts, read=models.encoder_states)
    scores = pd.read_csv(run.grounding_file).groupby("step")[["gain_auc_roc", "word"]].mean()
    drawn = runs.read_json(run.fidelity_file, dict)["steps"]
    for step in run.steps():
        finetune.load_checkpoint(pipeline, run, step)
        states = models.encode_text(pipeline, sample.prompts, read=models.encoder_states)
        cosine = F.cosine_similarity(before, states, dim=-1).cpu().numpy()
        x = causes.states_of(states, sample, "finding")
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        yield about | {
            "step": step,
            "alike": causes.likeness(states, sample).mean(),
            "between": ((x @ x.T).sum() - len(x)) / (len(x) * (len(x) - 1)),
            "drift": np.mean([1 - cosine[i, sample.real(i)].mean() for i in range(len(cosine))]),
            **scores.loc[step],
            "classifier_auc": drawn[str(step)]["classifier_auc"],
        }


def main() -> None:
    """``python tools/measure_states.py``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="roots of runs")
    rows = []
    for file in sorted(file for folder in parser.parse_args().folders for file in folder.rglob("run.json")):
        run, record = Run(file.parent), runs.read_json(file, dict)
        profile = Profile.model_validate(record["profile"])
        if profile.data.source != "phantom" or not (run.grounding_file.is_file() and run.fidelity_file.is_file()):
            continue
        recipe = profile.recipe(record["variant"])
        rate = (recipe.text_learning_rate or profile.finetune.text_learning_rate) if recipe.text_learns else None
        about = {"base": Path(profile.base).name, "variant": record["variant"], "rate": rate, "seed": record["seed"]}
        rows += rows_of(run, profile, about)
        print(file.parent, flush=True)
    table = pd.DataFrame(rows).sort_values(["base", "variant", "rate", "seed", "step"])
    measured = list(table.columns[table.columns.get_loc("alike") :])
    table[measured] = table[measured].round(5) + 0.0  # no -0
    runs.write_atomic(profiles.DATA / "states.csv", table.to_csv(index=False))
    counted = len(table[["base", "variant", "rate", "seed"]].drop_duplicates())
    about = {"command": "python tools/measure_states.py FOLDER-OF-RUNS …", "runs": counted}
    runs.write_json(profiles.DATA / "states.json", about | runs.record())


if __name__ == "__main__":
    main()

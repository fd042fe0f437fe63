"""What it costs to know whether the model looked: passes of the swaps and the changed prompts against the plain maps.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_faithfulness.py [--phrases 64]

Both are made with the tiny base under the settings of profile `demo`, in turns, by processor time. The limit is three
times the plain maps with four swapped images. "precision" is what fewer timesteps cost: the mean absolute difference of
the gain in AUC-ROC between reading every ``swap_every``-th timestep and all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from chestxai import faithfulness, grounding, localization, models, profiles, runs
from chestxai.studies import phrases

LIMIT = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--phrases", type=int, default=64, help="phrases to ground (default: %(default)s)")
    options = parser.parse_args()
    profile = profiles.load("demo")
    # Tuned on val; the images to swap are of other patients.
    pool = list(profiles.studies(profile, "val"))
    truths = phrases(pool)[: options.phrases]
    pipeline, settings = models.load_pipeline(profile.base), profile.grounding
    seconds, gains = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        grounding.ground_truths(pipeline, truths, settings, Path(folder, "maps.safetensors"))
        seconds["maps"] = time.process_time() - began
        for every in (settings.swap_every, 1):
            some = settings.model_copy(update={"swap_every": every})
            began = time.process_time()
            probes = faithfulness.probe_truths(pipeline, truths, pool, some, Path(folder, f"{every}.safetensors"))
            seconds[every] = time.process_time() - began
            gains[every] = [
                localization.auc_roc(own, t.finding.mask)
                - np.mean([localization.auc_roc(m, t.finding.mask) for m in swapped])
                for own, swapped, t in zip(probes["own"], probes["swap"], truths, strict=True)
            ]
    ratio = seconds[settings.swap_every] / seconds["maps"]
    lost = float(np.mean(np.abs(np.subtract(gains[settings.swap_every], gains[1]))))
    print(f"{len(truths)} phrases: maps {seconds['maps']:.1f} s, swaps and prompts {ratio:.2f} × (limit {LIMIT:g}), ")
    print(f"all timesteps {seconds[1] / seconds['maps']:.2f} ×; precision {lost:.4f} a phrase")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    runs.command(main)

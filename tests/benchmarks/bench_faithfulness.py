"""What it costs to know whether the model looked: passes of the swaps and the changed prompts against the plain maps.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_faithfulness.py [--phrases 64]

Both are made with the tiny base under the settings of profile `demo`, in turns, by processor time. The limit is three
times the plain maps with four swapped images. Reading every so-manieth timestep only costs precision: the mean absolute
difference of a phrase's gain in AUC-ROC from that with all timesteps, and the difference of the means. The phrases are
of val, so that the profiles' ``swap_every`` could be chosen by these numbers.
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
    pool = list(profiles.studies(profile, "val"))
    truths = phrases(pool)[: options.phrases]
    pipeline, settings = models.load_pipeline(profile.base), profile.grounding
    ratios, gains = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        grounding.ground_truths(pipeline, truths, settings, Path(folder, "maps.safetensors"))
        plain = time.process_time() - began
        for every in dict.fromkeys((1, 2, settings.swap_every, 10)):
            some = settings.model_copy(update={"swap_every": every})
            began = time.process_time()
            probes = faithfulness.probe_truths(pipeline, truths, pool, some, Path(folder, f"{every}.safetensors"))
            ratios[every] = (time.process_time() - began) / plain
            gains[every] = np.array(
                [
                    localization.auc_roc(own, t.finding.mask)
                    - np.mean([localization.auc_roc(m, t.finding.mask) for m in swapped])
                    for own, swapped, t in zip(probes["own"], probes["swap"], truths, strict=True)
                ]
            )
    print(f"{len(truths)} phrases, maps {plain:.1f} s; limit {LIMIT:g} × for every {settings.swap_every}th timestep")
    for every, ratio in ratios.items():
        apart = gains[every] - gains[1]
        off = f"{np.abs(apart).mean():.4f} a phrase, {apart.mean():+.4f} on average"
        print(f"every {every:2d}: {ratio:.2f} ×, gain off by {off}")
    return int(ratios[settings.swap_every] > LIMIT)


if __name__ == "__main__":
    runs.command(main)

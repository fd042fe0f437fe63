# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: jupytext,kernelspec,-all
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 The trade-off
#
# **Does a learnable text encoder cost interpretability, and what does it buy?**
#
# All runs come together here: every variant, seed and checkpoint, with what it draws (chapter 5) and where it looks
# (chapters 3 and 4). Nothing is trained or sampled in this chapter; it reads the runs' files.
#
# The claim to test {cite}`dombrowski2024tradeoffs`: fine-tuning makes the images better; with a *learnable* text encoder the
# attention stops pointing at the disease that a word names, with a *frozen* one it keeps pointing.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variants = ["frozen", "learnable"]
seeds = [0]
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import warnings
from functools import partial

import pandas as pd
from IPython.display import Markdown, display

from chestxai import plots, profiles, runs, stats, tradeoff

# How many patients there are is in the tables, and what few of them mean is measured below.
warnings.simplefilter("ignore", stats.FewGroupsWarning)
settings = profiles.load(profile)
folders = {v: [profiles.run_folder(settings, v, s, out) for s in seeds] for v in variants}
every = [folder for members in folders.values() for folder in members]
resamples = settings.statistics.resamples
crossed = len(seeds) > 1  # then an interval covers other seeds, too
plots.setup()

# %% [markdown]
# ## Every checkpoint of every run
#
# One row per variant, seed and checkpoint; step 0 is the base. Localization scores are means over the test phrases with a
# 95 % interval that resamples *patients*, because phrases of one patient are not independent.

# %%
table = tradeoff.table(every, n=resamples)
runs.write_atomic(
    profiles.profile_folder(settings, out) / "tradeoff.csv", table.to_csv(index=False)
)
columns = ["fid", "kid", "classifier_auc", "auc_roc", "pointing_game", "cnr", "miou"]
table.set_index(["variant", "seed", "step"])[columns].round(3)

# %% [markdown]
# ## The figure
#
# Left is more real, up is more interpretable. Each line starts at the base and follows one variant over its checkpoints. The
# ringed points are Pareto-optimal: no other checkpoint is better in both. The buttons change the score.

# %%
plots.tradeoff(table)

# %% tags=["hide-input"]
front = tradeoff.pareto_front(table)
best = table[front][["variant", "seed", "step"]].itertuples(index=False)
Markdown(
    "Pareto-optimal by FID and AUC-ROC: "
    + ", ".join(f"{v} (seed {s}, step {k})" for v, s, k in best)
    + "."
    if front.any()
    else "No checkpoint has both scores."
)

# %% [markdown]
# ## At the last checkpoint, side by side

# %%
tradeoff.summary(table, every, n=resamples)

# %% tags=["hide-input"]
Markdown(
    f"Mean over {len(seeds)} seeds. The intervals are over *new seeds and new patients*: seeds are a level of their own, "
    "crossed with patients, for all seeds are scored on the same ones. Averaging the seeds' own intervals would not do: it "
    "forgets that the seeds differ."
    if crossed
    else "One seed: the intervals are over *new patients* (and new images of the same model), not over new seeds."
)

# %% [markdown]
# *Centre prior* is a map that knows where the finding usually is and never looks at the image; *chance* is a random map.
# *Real images* is what held-out real images score themselves: the ceiling of the classifier's AUC, the similarity
# (MS-SSIM) to aim at, and what precision, recall, density and coverage can be.
#
# The same table for a paper, a page and a program. In the CSV an interval is three columns of numbers at full precision.

# %%
exported = tradeoff.estimates(table, every, n=resamples)
for ending, kind in (("csv", "csv"), ("tex", "latex"), ("md", "markdown")):
    file = profiles.profile_folder(settings, out) / f"results.{ending}"
    runs.write_atomic(file, stats.format_table(exported, kind))
    print(f"{file.name}: {file.stat().st_size} bytes")
print("\n" + "\n".join(stats.format_table(exported, "latex").splitlines()[:6]))

# %% [markdown]
# They are in the profile's folder, beside the runs.
#
# ## The paired difference
#
# Some phrases are hard for every model. Comparing the variants on the *same* phrases takes that out.

# %%
metrics = ["auc_roc", "pointing_game", "cnr", "iou", "miou", "bbox_iou", "centre_distance"]
comparisons = []
if len(variants) == 2:
    comparisons = [
        tradeoff.compare(folders[variants[0]], folders[variants[1]], m, n=resamples)
        for m in metrics
    ]
    display(
        plots.paired(comparisons, title=f"{variants[0]} minus {variants[1]}, same phrases")
    )
else:
    print("A paired difference needs exactly two variants.")

# %% tags=["hide-input"]
Markdown(
    "\n\n".join(
        tradeoff.verdict(c, better="frozen")
        for c in comparisons[:3]
        if "frozen" in (c.a, c.b)
    )
    or "–"
)

# %% [markdown]
# These sentences are chosen by the intervals: *supported*, *contradicted* or *undecided*.
#
# ## Finding by finding

# %%
plots.scores_by_finding(tradeoff.by_finding(every, "auc_roc", n=resamples), "AUC-ROC")

# %% [markdown]
# Where a variant lies left of the diamond, knowing where the finding usually is would have been enough. Now the same
# question for each finding by itself. Asked often enough, chance says yes once in twenty times: so the p-values are adjusted
# for the number of findings (Holm). And a difference that was not found may be one that so few patients could not have
# shown: the *minimal detectable difference* is the true one that this design finds four times in five, after the strictest
# adjustment. One that is larger than the score's range says that this design could have found none.

# %%
each = pd.DataFrame()
if len(variants) == 2:
    each = tradeoff.compare_findings(
        folders[variants[0]], folders[variants[1]], "auc_roc", n=resamples
    )
    bounds = [vars(c) for c in each["difference"]]
    shown = pd.DataFrame(bounds)[["estimate", "low", "high"]]
    shown = shown.assign(name=list(each.index), n=each["patients"].to_numpy())
    display(
        plots.paired(
            shown,
            names=tuple(variants),
            shared=True,
            title=f"AUC-ROC, {variants[0]} minus {variants[1]} (number of patients)",
        )
    )
    display(
        each.assign(
            difference=each["difference"].map("{:+.3f}".format),
            holm=each["holm"].map("{:.3f}".format),
            detectable=each["detectable"].map("{:.3f}".format),
        ).rename(columns={"holm": "p, Holm", "detectable": "detectable ±"})
    )

# %% tags=["hide-input"]
lines = []
for name, row in each.iterrows():
    c = row["difference"]
    if row["holm"] <= 0.05:
        lines.append(f"- {name}: `{c.a if c.estimate > 0 else c.b}` is better")
hidden = each[(each["holm"] > 0.05)] if len(each) else each
small = [
    n for n, r in hidden.iterrows() if not r["detectable"] <= abs(r["difference"].estimate)
]
Markdown(
    ("After Holm's adjustment:\n\n" + "\n".join(lines) + "\n\n" if lines else "")
    + (
        f"Of {len(each)} findings {len(hidden)} show no difference after the adjustment"
        + (
            f"; {len(small)} of them a smaller one than could have been detected, which is no proof that there is none."
            if small
            else "."
        )
        if len(hidden)
        else ""
    )
    + (
        f" {len(seeds)} seeds are few: intervals over seeds are wide then, and detectable differences large."
        if 1 < len(seeds) < 5 and len(each)
        else ""
    )
)

# %% [markdown]
# ## Can these intervals be trusted?
#
# A 95 % interval should hold the truth 95 times in a hundred. Whether ours do can be tried where the truth is known: scores
# are drawn at random, skewed like AUCs and one to three phrases a patient, again and again, and the intervals that hold the
# true mean are counted. The count is itself a sample, so it has an interval, too.

# %%
trials = min(resamples, 1000)
sizes = sorted({10, 20, 40, int(table["patients"].max())})
textbook = partial(stats.bootstrap_ci, n=400, expand=False)
ours = partial(stats.bootstrap_ci, n=400)
covered = {}
for size in runs.progress(sizes, "simulated intervals"):
    draw = partial(stats.clustered_scores, patients=size)
    covered[size, "textbook bootstrap"] = stats.coverage(draw, 0.85, textbook, trials // 2)
    covered[size, "as used here"] = stats.coverage(draw, 0.85, ours, trials)


def with_seeds(rng, patients, number=3):
    """The same scores of several seeds, which differ, and not on all patients alike."""
    scores, groups = stats.clustered_scores(rng, patients)
    both = 0.05 * rng.standard_normal((patients, number))[groups]
    return scores[:, None] + 0.02 * rng.standard_normal(number) + both, groups


for size in sizes:
    draw = partial(with_seeds, patients=size)
    covered[size, "as used here, three seeds"] = stats.coverage(
        draw, 0.85, stats.seeds_ci, trials
    )
pd.Series(covered).map("{:.3f}".format).unstack().rename_axis("patients")[
    ["textbook bootstrap", "as used here", "as used here, three seeds"]
]

# %% tags=["hide-input"]
held = {size: covered[size, "as used here"] for size in sizes}
reach = next(
    (n for n in sizes if all(0.93 <= held[k].estimate <= 0.97 for k in sizes if k >= n)),
    None,
)
early = [n for n in sizes if reach is None or n < reach]
few = [n for n in early if held[n].high < 0.93]
open_ = [n for n in early if n not in few]
own = max(c.high - c.low for c in held.values()) / 2
Markdown(
    f"Of {trials} simulated data sets of each size, a share is known to about ±{own:.3f}. "
    + (
        "That is too little to tell 93 from 97 %. "
        if own > 0.02
        else f"From {reach} patients on, the intervals used here held the truth in 93 to 97 % of them. "
        if reach
        else "Not even with the most patients was the truth in 93 to 97 % of the intervals. "
    )
    + (f"With {' and '.join(map(str, few))} they hold it less often. " if few else "")
    + (
        f"With {' and '.join(map(str, open_))} this many data sets cannot tell. "
        if open_ and own <= 0.02
        else ""
    )
    + (
        f"The findings above have {each['patients'].min()} to {each['patients'].max()} patients, all together "
        if len(each)
        else "Here there are "
    )
    + f"{table['patients'].max():.0f}."
)

# %% [markdown]
# The interval over seeds is cautious: with three seeds it has to be, for it does not know how much seeds differ.
#
# ## And what does it buy?

# %% tags=["hide-input"]
last = table.loc[table.groupby(["variant", "seed"])["step"].idxmax()]
start = table[table["step"] == 0]
means = last.groupby("variant")[["fid", "classifier_auc"]].mean()
lines = [
    f"- `{v}`: FID from {start['fid'].mean():.2f} (base) to {row['fid']:.2f}, classifier AUC from "
    f"{start['classifier_auc'].mean():.3f} to {row['classifier_auc']:.3f}"
    for v, row in means.iterrows()
]
sooner = means["fid"].idxmin()
gap = means["fid"].max() - means["fid"].min()
wide = (last["fid_high"] - last["fid_low"]).max()
lines.append(
    f"\nThe FIDs of the variants differ by {gap:.2f}, "
    + ("less" if gap < wide else "more")
    + f" than the width of one's interval ({wide:.2f})"
    + (
        f"; `{sooner}` draws the more realistic images."
        if gap >= wide
        else ": they cannot be told apart."
    )
)
Markdown("\n".join(lines))

# %% [markdown]
# ## Exercises
#
# **1.** Does the answer depend on the score? Compare `pointing_game` at every checkpoint.

# %% tags=["hide-cell"]
if len(variants) == 2:
    for step in sorted(set(table["step"])):
        print(
            step,
            tradeoff.compare(
                folders[variants[0]],
                folders[variants[1]],
                "pointing_game",
                step=int(step),
                n=resamples,
            ),
        )

# %% [markdown]
# **2.** The interval covers other *patients*. Which uncertainty does it leave out, and how would you measure it?

# %% tags=["hide-cell"]
# Another seed of the training. Run `make book SEEDS=0,1,2`: the spread between seeds is then drawn in the figure.
spread = (
    table[table["step"] == table["step"].max()]
    .groupby("variant")["auc_roc"]
    .agg(["mean", "std", "count"])
)
print(spread.round(3))

# %% [markdown]
# **3.** How many patients would it take to see a difference of one hundredth in AUC-ROC? And what would tell more: another
# seed, or another hundred patients?


# %% tags=["hide-cell"]
def by_seed(variant):
    """AUC-ROC at the last step: a row for each phrase, a column for each seed."""
    read = [
        pd.read_csv(f / "grounding.csv", keep_default_na=False) for f in folders[variant]
    ]
    last = [t[t["step"] == t["step"].max()] for t in read]
    keys = ["patient", "study", "finding", "phrase"]
    return pd.concat([t.groupby(keys)["auc_roc"].mean() for t in last], axis=1)


if len(variants) == 2:
    of_seeds = (by_seed(variants[0]) - by_seed(variants[1])).dropna()
    patient = of_seeds.index.get_level_values("patient")
    needed = {
        n: stats.minimal_detectable_difference(of_seeds.to_numpy(), patient, patients=n)
        for n in (50, 100, 200, 500, 1000, 2000, 5000)
    }
    display(
        pd.Series(needed, name="detectable").rename_axis("patients").round(4).to_frame().T
    )
    # If it stops falling, patients are not what is missing.
    # With several seeds the variance can be taken apart.
    parts = stats.variance_components(of_seeds.to_numpy(), patient)
    print(f"standard error now: {parts.standard_error():.4f}")
    print(
        f"with 100 more patients: {parts.standard_error(patients=parts.patients + 100):.4f}"
    )
    print(f"with one more seed: {parts.standard_error(seeds=parts.seeds + 1):.4f}")
    if parts.seeds == 1:
        print("one seed tells nothing of what seeds add, so the last line is too hopeful")

# %% [markdown]
# ## Takeaways
#
# - Fidelity and interpretability are two axes; a single number hides the trade.
# - A paired, patient-clustered interval decides what may be said; chance and the centre prior say what it is worth.
# - One seed is one draw of the training: claims about treatments need several.

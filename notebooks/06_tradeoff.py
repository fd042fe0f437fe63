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
from IPython.display import Markdown, display

from chestxai import plots, profiles, runs, tradeoff

settings = profiles.load(profile)
folders = {v: [profiles.run_folder(settings, v, s, out) for s in seeds] for v in variants}
every = [folder for members in folders.values() for folder in members]
resamples = settings.statistics.resamples
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
tradeoff.summary(table)

# %% [markdown]
# *Centre prior* is a map that knows where the finding usually is and never looks at the image; *chance* is a random map.
# *Real images* is what held-out real images score themselves: the ceiling of the classifier's AUC, and the similarity
# (MS-SSIM) to aim at.
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
# Where a variant lies left of the diamond, knowing where the finding usually is would have been enough.
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
# ## Takeaways
#
# - Fidelity and interpretability are two axes; a single number hides the trade.
# - A paired, patient-clustered interval decides what may be said; chance and the centre prior say what it is worth.
# - One seed is one draw of the training: claims about treatments need several.

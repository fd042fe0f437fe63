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
# # 8 The trade-off
#
# **Does a learnable text encoder cost interpretability, and what does it buy?**
#
# This chapter puts all runs together: every variant, seed and checkpoint, with its images and its maps. Nothing is
# trained or generated.
#
# The claim to test {cite}`dombrowski2024tradeoffs`: fine-tuning makes the images better; with a *learnable* text
# encoder, attention stops pointing at the disease that a word names, and with a *frozen* one it keeps pointing.
#
# *You will be able to* read fidelity and localization (how well maps point) side by side, compare variants on the same
# phrases, and say how much a given number of patients and seeds lets you conclude. *Before:* chapters 3 and 4 (maps and
# their scores) and 6 (fidelity).

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variants = ["frozen", "learnable"]  # each variant is compared with the first
seeds = [0]
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import pandas as pd
from IPython.display import Markdown, display
from scipy.stats import t as student

from chestxai import (
    baselines,
    fidelity,
    localization,
    plots,
    profiles,
    runs,
    stats,
    tradeoff,
)
from chestxai import sentences as say
from chestxai.studies import to_images

# %%
settings = profiles.load(profile)
trained = [profiles.run(settings, v, s, out) for v in variants for s in seeds]
every = [run.check_finished().folder for run in trained]
plots.setup(settings.variants)

# %% [markdown]
# ## Every checkpoint of every run
#
# The table has one row per variant, seed and checkpoint; step 0 is the base. Localization scores are means over the
# test phrases. Their 95 % intervals resample *patients*, because phrases of one patient are not independent; all
# columns are stored in `tradeoff.csv`.

# %% tags=["aggregate"]
import warnings

# The number of patients is in the table; the last section measures what few patients mean for an interval.
warnings.simplefilter("ignore", stats.FewGroupsWarning)
resamples = settings.statistics.resamples
table = tradeoff.table(every, n=resamples)
stored = profiles.profile_folder(settings, out) / "tradeoff.csv"
runs.write_atomic(stored, table.to_csv(index=False))
columns = "patients fid kid classifier_auc auc_roc pointing_game cnr miou".split()
table.set_index(["variant", "seed", "step"])[columns].round(3)

# %% [markdown]
# Follow one variant from step 0 on: if the images become more like held-out ones, FID and KID fall. What do the
# localization scores do meanwhile?
#
# ## The figure
#
# In {numref}`fig-tradeoff`, left is more like held-out images, up is more interpretable. Each line follows one variant
# from the base over its checkpoints. Ringed points are *Pareto-optimal*: no other checkpoint is better in both. This
# ignores the intervals: a tiny lead is enough. The buttons change the score.

# %% tags=["aggregate"] name="fig-tradeoff"
endpoint = settings.statistics.endpoint
shown = [*endpoint, "mirror", "auc_roc"]
plots.tradeoff(table, shown, variants=variants)

# %% [markdown]
# A line that runs to the left and stays high has higher fidelity at no cost; one that falls pays for it. These
# checkpoints are Pareto-optimal by FID and the first test of the endpoint:

# %% tags=["remove-input", "aggregate"]
table[tradeoff.pareto_front(table, y=endpoint[0])][["variant", "seed", "step"]]

# %% [markdown]
# ## The last checkpoint in numbers

# %% tags=["aggregate"]
estimates = tradeoff.estimates(table, every, n=resamples)
beside = baselines.load_scores(settings, out)
for baseline, rows in beside.items():
    estimates[baseline] = None
    for column, name in tradeoff.NAMES.items():
        part = rows[rows[column].notna()] if column in rows else rows[:0]
        if name in estimates.index and len(part):
            interval = stats.bootstrap_ci(part[column], part["patient"], n=resamples)
            estimates.at[name, baseline] = interval
        swapped = f"{localization.LABELS[column]}, swapped images"
        if swapped in estimates.index and f"swap_{column}" in rows:
            estimates.at[swapped, baseline] = rows[f"swap_{column}"].mean()
summary = tradeoff.summary(table, every, n=resamples)
summary.join(estimates[[*beside]].map(stats.format_interval))

# %% tags=["remove-input", "aggregate"]
Markdown(say.tradeoff.seeds(len(seeds)))

# %% [markdown]
# First compare each variant's AUC-ROC and word test with the location prior: a variant that does not exceed it may only
# know where findings usually are. The gain in AUC-ROC removes this doubt for AUC-ROC, the *gain in the word test* for
# the word test. If such an interval includes 0, the doubt remains. The rows *as asked* say whether generated findings
# lie on the side and in the zone that the prompt names, and are as severe (chapter 6); no other score of fidelity sees
# that.
#
# The *location prior* never looks at the image; *chance* is a random map. *Held-out images* is what such images score
# themselves: the level to aim at for the classifier's AUC, precision, recall, density, coverage and similarity
# (MS-SSIM). The rows *swapped images* are the scores on images of other patients without the finding: what is reached
# without this image. (The variants read them at fewer timesteps, see chapter 4.) The *prior of the text* is the mean
# training mask of the same finding, side and zone. *AUC-ROC within the field* compares only pixels where some training
# patient has a finding. *Contrastive* and *supervised* are the models of chapter 4 that point without diffusion; the
# second has learned from masks.
#
# The next cell writes all columns of the table for programs (CSV, where an interval is three columns at full
# precision), papers (LaTeX) and pages (Markdown), into the profile's folder.

# %% tags=["aggregate"]
for ending, kind in (("csv", "csv"), ("tex", "latex"), ("md", "markdown")):
    file = profiles.profile_folder(settings, out) / f"results.{ending}"
    runs.write_atomic(file, stats.format_table(estimates, kind))
    print(f"{file.name}: {file.stat().st_size} bytes")
print("\n" + "\n".join(stats.format_table(estimates, "latex").splitlines()[:6]))

# %% [markdown]
# ## The endpoint
#
# Does a variant point because of the image **and** because of the word? The profile declares the two tests before any
# map is made: the gain, which the image adds to the AUC-ROC (own minus swapped image, {numref}`fig-swap`), and the word
# test (chapter 4). Some phrases are hard for every model, so each variant is compared with the first on the *same*
# phrases. Right of the line the first variant points better; an interval that excludes zero shows a difference. A model
# points only if it passes both tests. So a variant counts as *better* than the first only if both tests show it, and as
# *worse* if one test shows it and the other does not show the opposite. The two p-values are not adjusted. The word
# test needs two separate findings in one image, so it has fewer patients. The answer below also says how large a true
# difference has to be for this design to find it four times in five. An unclear result does not rule out a smaller one.

# %% tags=["aggregate"]
scored = [m for m in endpoint if table[m].notna().any()]
leading = scored[0] if scored else "auc_roc"
primary = [c for m in scored for c in tradeoff.compare_all(every, m, n=resamples)]
if missing := {*endpoint} - {*scored}:
    print(f"No phrase has {', '.join(sorted(missing))}: the verdict goes without.")
if primary:
    display(
        plots.paired(primary, title="Primary endpoint, same phrases", variants=variants)
    )

# %% [markdown]
# Fidelity is compared in the same way. All variants generate for the same prompts from the same noise, so one bootstrap
# over prompts and patients gives the interval of the *difference* of two FIDs. (With several seeds: of the first one.)

# %%
test = profiles.studies(settings, "test", data)
real, kept, _ = to_images(test, settings.data.size, settings.data.fit)
prompts, _, _ = fidelity.requests(kept, settings.sampling)
classifier = fidelity.profile_classifier(settings, data, out)
seen = {}
for variant in variants:
    run = profiles.run(settings, variant, seeds[0], out)
    images = runs.load_tensors(run.samples_file(run.steps()[-1]))["images"]
    seen[variant] = fidelity.features(classifier, images.numpy())
pairing = {"groups": prompts, "real_groups": [s.patient for s in kept]}
fids = {
    other: fidelity.fid_difference(
        fidelity.features(classifier, real), seen[variants[0]], seen[other], **pairing
    )
    for other in variants[1:]
}

# %% tags=["answer", "remove-input", "aggregate"]
Markdown(
    say.tradeoff.answer(primary, fids)
    or "There is only one variant, so nothing is compared."
)

# %% [markdown]
# The table compares the conditions of this run with the paper's (profile `paper`).

# %% tags=["remove-input", "aggregate"]
paper = profiles.load("paper")
pd.DataFrame(
    {
        "the paper": say.tradeoff.conditions(paper),
        "this run": say.tradeoff.conditions(settings),
    }
)

# %% [markdown]
# ## Secondary scores
#
# Again, right of the line the first variant is better. The profile declares these scores, too, before any map is made
# (`statistics.secondary`). Of many comparisons some are significant by chance, so the p-values are adjusted for the
# number of all of them (Holm). FID and the classifier AUC are not among them, because they are of a set of images and
# not of a phrase: FID is compared above, and both are compared over seeds below, without an adjustment. Where scores
# disagree with the endpoint, chapters 4 and 5 say what each of them can see. Intervals and p-values are computed in
# different ways, so near the limit they may disagree.

# %% tags=["aggregate"]
metrics = [
    m for m in settings.statistics.secondary if m in table and table[m].notna().any()
]
comparisons = [c for m in metrics for c in tradeoff.compare_all(every, m, n=resamples)]
if comparisons:
    display(
        plots.paired(comparisons, title="Secondary scores, same phrases", variants=variants)
    )

# %% tags=["remove-input", "aggregate"]
if comparisons:
    adjusted = stats.holm([c.p for c in comparisons])
    told = {
        "score": [tradeoff.NAMES[c.metric] for c in comparisons],
        "difference": [f"{c.a} minus {c.b}" for c in comparisons],
        "estimate": [f"{c:+.3f}" for c in comparisons],
        "p, Holm": [f"{p:.3f}" for p in adjusted],
    }
    display(pd.DataFrame(told))

# %% [markdown]
# A small p-value over patients says nothing of other trainings. In the study `demo` (`make grid
# GRID=data/grids/demo.yaml`) the same two recipes were trained with three seeds. Here is learnable minus frozen, seed
# by seed, for these scores and those of the images; the last column is the mean with Student's interval over the seeds.
# Where the sign changes, one seed has shown nothing about the recipe:

# %% tags=["aggregate"]
shipped = profiles.DATA / "results"
demo = pd.read_csv(shipped / "demo.csv")
over_seeds = say.recipes.over_seeds
drawn = ["fid", "classifier_auc", *(f"asked_{name}" for name in baselines.ATTRIBUTES)]
compared = [c for c in [*endpoint, *settings.statistics.secondary, *drawn] if c in demo]
by_seed = tradeoff.last_step(demo).set_index(["variant", "seed"])[compared]
by_seed = (by_seed.loc["learnable"] - by_seed.loc["frozen"]).T.map("{:+.3f}".format)
by_seed["over seeds"] = [
    f"{over_seeds(demo, c, 'frozen')['learnable']:+.3f}" for c in by_seed.index
]
by_seed.rename(index=localization.NAMES)

# %% [markdown]
# What the three seeds say by the rule of the endpoint (here it is frozen minus learnable):

# %% tags=["remove-input", "aggregate"]
turned = {c: over_seeds(demo, c, "learnable")["frozen"] for c in (*endpoint, "fid")}
Markdown(say.tradeoff.verdict("learnable", "frozen", turned, turned.pop("fid")))

# %% [markdown]
# The study `text_rate` (below) trains the same two recipes with the same seeds, but has more test images and another
# sampler. Learnable minus frozen in both studies:

# %% tags=["aggregate"]
studied, rate = pd.read_csv(shipped / "text_rate.csv"), "finetune.text_learning_rate"
short = studied[studied[rate] == profiles.load("demo").finetune.text_learning_rate]
wanted = [*endpoint, "classifier_auc", "fid"]
both = {}
for study, rows in {"demo": demo, "text_rate": short}.items():
    sampling = profiles.load(study).sampling
    about = {"sampler": f"{sampling.sampler}, {sampling.steps} steps"}
    about["test images"] = rows["images_real"].max()
    found = {c: f"{over_seeds(rows, c, 'frozen')['learnable']:+.3f}" for c in wanted}
    both[study] = about | found
pd.DataFrame(both).rename(localization.NAMES)

# %% [markdown]
# In `demo` the images of learnable are farther from the held-out ones by FID with each of the three seeds, but three
# seeds do not decide the mean. In `text_rate` not even the sign is decided. Student's interval is over seeds, with the
# *same* test images and prompts; the interval of FID in the answer above is over images and prompts. So by FID a loss
# is open in both studies. The gain is clearly higher in both, the classifier AUC in `demo` alone, and the word test in
# neither.
#
# ## Equal steps, or equal time?
#
# A step with a learnable text encoder takes longer. Compare the last checkpoints, at equal steps, with the checkpoint
# of each run that is nearest in time to the end of the fastest run of its seed:

# %% tags=["remove-input", "aggregate"]
ends = {"equal steps": tradeoff.last_step(table)}
ends["equal time"] = tradeoff.at_equal_seconds(table)
columns = ["step", "seconds", *endpoint, "auc_roc", "fid", "classifier_auc"]
pd.concat(
    {k: t.groupby("variant")[columns].mean().reindex(variants) for k, t in ends.items()}
).round(3)

# %% [markdown]
# This table has means only. Here is learnable minus frozen over the three seeds of the study `demo`, with intervals.
# The seconds depend on what else the computer did meanwhile.

# %% tags=["aggregate"]
ends = {"equal steps": tradeoff.last_step(demo)}
ends["equal time"] = tradeoff.at_equal_seconds(demo)
timed = {}
for name, rows in ends.items():
    spent = rows.groupby("variant")[["step", "seconds"]].mean()
    told = {
        f"{c} of {v}": f"{spent.loc[v, c]:.0f}"
        for c in spent
        for v in ("frozen", "learnable")
    }
    for c in [*endpoint, "auc_roc", "classifier_auc", "fid"]:
        told[localization.NAMES[c]] = f"{over_seeds(rows, c, 'frozen')['learnable']:+.3f}"
    timed[name] = told
pd.DataFrame(timed)

# %% [markdown]
# Have the scores stopped rising? The study `demo` has two checkpoints, so the table shows each score at the last one
# minus that at the one before, paired by seed, with an interval over the three seeds.
#
# Would twice as many steps change the result? In the study `recipes-final` (chapter 10) `frozen` and `fifth` are the
# demo's two variants, trained for 480 steps. The rows named after both studies show their scores minus those after 240
# steps in `text_rate`: the same three seeds and the same test images. The two studies ran on different devices, and two
# runs with the same seed differ (chapter 10). So a change in a row need not come from the longer training, even where
# its interval excludes 0. The study `convergence`, further below, has both lengths in one run.

# %% tags=["aggregate"]
long = pd.read_csv(shipped / "recipes-final.csv")
long = long[(long["base"] == "tiny") & long["seed"].isin(short["seed"])]
names = {"learnable": "at the U-Net's rate", "fifth": "learnable"}
joined = pd.concat([short, long.replace({"variant": names})], ignore_index=True)
steps = {}
for study, rows in {"demo": demo, "text_rate, recipes-final": joined}.items():
    first, last = sorted(rows["step"].unique())[-2:]
    for v in ("frozen", "learnable"):
        part = rows[rows["variant"] == v].assign(variant=rows["step"], device="any")
        told = {c: over_seeds(part, c, first)[last] for c in wanted}
        steps[study, v, f"{last} minus {first}"] = told
steps = pd.DataFrame(steps).T
steps.map("{:+.3f}".format).rename(columns=localization.NAMES)

# %% tags=["remove-input", "aggregate"]
margin, changes = 0.01, steps[[*endpoint]].stack()
flat = sum(-margin < change.low and change.high < margin for change in changes)
Markdown(
    f"For {flat or 'none'} of these {len(changes)} changes of the endpoint, the whole interval "
    f"lies within ±{margin:g}, which would show a curve that is flat at that point. An "
    "interval that includes zero does not show it: three seeds say little."
)

# %% [markdown]
# What would help frozen? The study `convergence` trains it on both bases (chapter 10 describes `tiny-velocity`), with
# weights of the timesteps (min-SNR) and with equal ones, for twice as many steps, on two seeds. It is scored on
# *validation* images, so that settings can be chosen by it, and reads maps at one in four of the last 40 of 50
# timesteps, noisier ones than the demo's (chapter 3). Means over the seeds:

# %% tags=["aggregate"]
tried = pd.read_csv(shipped / "convergence.csv")
equal = tried["finetune.min_snr"].isna().rename("weights")
weights = equal.map({True: "equal", False: "min-SNR"})
scores = [*endpoint, "mirror", "classifier_auc", "fid", "asked_side"]
means = tried.groupby(["base", weights, "step"])[scores].mean()
means.round(3).rename(columns=plots.style.score_name)

# %% [markdown]
# The base decides most: on `tiny-velocity` generated findings lie on the named side more often (*side as asked*), and
# the maps prefer the true side less often (mirror test). Twice as many steps raise the classifier AUC in each of
# the eight runs, and the mean of the gain in each of the four settings, some by very little; FID falls in some runs and
# rises in others. Two seeds decide little, but nothing here shows that the demo's frozen run is converged: it stops
# where a laptop has spent minutes.

# %% [markdown]
# ## Finding by finding

# %% tags=["aggregate"]
by_finding = tradeoff.by_finding(every, leading, n=resamples)
plots.scores_by_finding(by_finding, localization.LABELS[leading], variants=variants)

# %% [markdown]
# Now the differences for each finding. If no difference was found, there may still be one that is too small for so few
# patients. The *minimal detectable difference* is the true difference that this design finds four times in five, if p
# is multiplied by the number of comparisons. Where it exceeds the score's range, no difference could be found.

# %% tags=["aggregate"] name="fig-by-finding"
first, others = every[: len(seeds)], every[len(seeds) :]
if others:
    each = tradeoff.compare_findings(first, others, leading, n=resamples)
    points = pd.DataFrame(map(vars, each["difference"])).assign(name=each.index)
    points = points.rename(columns={"patients": "n"})
    title = f"{variants[0]} minus each other variant (number of patients)"
    display(plots.paired(points, shared=True, title=title, variants=variants))

# %% [markdown]
# The intervals in {numref}`fig-by-finding` are not adjusted; the column "p, Holm" of the table is.

# %% tags=["aggregate"]
if others:
    printed = {"difference": "{:+.3f}", "holm": "{:.3f}", "detectable": "{:.3f}"}
    printed = each.assign(
        **{name: each[name].map(form.format) for name, form in printed.items()}
    )
    display(printed.rename(columns={"holm": "p, Holm", "detectable": "detectable ±"}))

# %% tags=["remove-input", "aggregate"]
Markdown(say.tradeoff.findings(each) if others else "")

# %% [markdown]
# The interval over all phrases speaks of new patients with the *same eight findings*. To speak of other findings, too,
# we treat the eight as a sample: the mean of their own differences, with a t-interval over findings, for each test of
# the endpoint:

# %% tags=["remove-input", "aggregate"]
if others:
    found = {
        m: tradeoff.compare_findings(first, others, m, n=100)["difference"] for m in scored
    }
    spread = pd.concat(
        {m: pd.DataFrame(map(vars, d)) for m, d in found.items()}, names=["test"]
    )
    spread = spread.groupby(["test", "b"])["estimate"].agg(["mean", "sem", "count"])
    half = spread["sem"] * student.ppf(0.975, spread["count"] - 1)
    display(
        spread.assign(low=spread["mean"] - half, high=spread["mean"] + half)
        .drop(columns="sem")
        .rename(index=localization.LABELS)
        .round(3)
    )

# %% [markdown]
# ## How fast may the text encoder learn?
#
# A frozen text encoder has a learning rate of zero. The study `text_rate` trains the learnable variant at other rates
# (`make grid GRID=data/grids/text_rate.yaml`, hours). Here and below, a mark is the mean over the seeds, and its bar
# covers their intervals, each of which is over patients.
#
# The menu's last score is the *drift* of the text encoder: how far its states are from those of the base (mean of 1 −
# cosine, chapter 9; frozen has a drift of zero). `data/states.csv` holds it.

# %%
measured = pd.read_csv(profiles.DATA / "states.csv").query("base == 'tiny'")
measured = measured.rename(columns={"rate": rate})
keys = ["variant", rate, "seed", "step"]
rates = studied.query("variant == 'learnable'")
rates = rates.merge(measured[[*keys, "drift"]], how="left", on=keys)
shown = [*endpoint, "auc_roc", "classifier_auc", "fid", "drift"]
by_step = rates.assign(variant=rates["step"].map("after {} steps".format))
title = "The checkpoints over the text encoder's rate"
rate_curves = plots.setting_curves(
    by_step, rate, shown, title, settings.finetune.learning_rate
)
# More drift is neither better nor worse.
rate_curves.layout.updatemenus[0].buttons[-1].args[1]["yaxis.title.text"] = "drift"
rate_curves

# %% [markdown]
# The dotted line is the rate at which the U-Net learns. The table compares each rate with frozen: differences paired by
# seed, with Student's interval over the seeds. *Runs without words* counts the runs whose word test does not clearly
# exceed chance.

# %% tags=["aggregate"]
rated = tradeoff.last_step(rates, (rate, "seed"))
rated = rated.assign(variant=rated[rate].map("{:g}".format))
frozen = tradeoff.last_step(studied).query("variant == 'frozen'")
by_rate = pd.concat([rated, frozen], ignore_index=True)
scores = [*endpoint, "mirror", "auc_roc", "classifier_auc", "fid"]
of_rate = pd.DataFrame({c: over_seeds(by_rate, c, "frozen") for c in scores})
lost, drift = rated["word_low"] <= rated["chance_word"], rated.groupby("variant")["drift"]
of_rate = of_rate.map("{:+.3f}".format).rename(columns=localization.NAMES)
of_rate["runs without words"] = lost.groupby(rated["variant"]).sum()
of_rate["drift"] = drift.mean().map("{:.3f}".format)
of_rate.loc[rated["variant"].unique()].rename_axis("rate").T

# %% [markdown]
# ## And for how long?
#
# In the paper both networks learn at one rate, and for much longer than here. The study `length` goes on to 960 steps,
# at three rates and on two bases. The text encoder of `tiny` has read the language of the reports; with `tiny-code` the
# words of the reports are exchanged for others, so that it does not know the language. The study is scored on
# validation images, because the settings of chapter 10 were chosen by it. Means over its two seeds:

# %% tags=["aggregate"]
scores = {
    "gain_auc_roc": "gain",
    "word": "word test",
    "mirror": "mirror test",
    "auc_roc": "AUC-ROC",
    "classifier_auc": "classifier AUC",
    "fid": "FID",
}
longer = pd.read_csv(shipped / "length.csv")
longer = longer[["base", "variant", "seed", "step", rate, *scores]]
speed = longer[rate].map("{:g}".format)
speed = speed.where(longer["variant"] == "learnable", "frozen").rename("encoder")
means = longer.groupby(["base", speed, "step"])[[*scores]].mean()
means.rename(columns=scores).unstack("step").round(2)

# %% [markdown]
# In which share of the seeds is the score higher than that of frozen, at the end? (For FID, higher is worse.)

# %% tags=["aggregate"]
last = tradeoff.last_step(longer.assign(encoder=speed), ("base", "encoder", "seed"))
last = last.set_index(["base", "encoder", "seed"])[[*scores]].rename(columns=scores)
frozen = last.xs("frozen", level="encoder").reindex(last.index.droplevel("encoder"))
above = (last > frozen.set_axis(last.index)).groupby(["base", "encoder"]).mean()
above.drop("frozen", level="encoder")

# %% [markdown]
# At a fifth of the U-Net's rate the classifier AUC is higher than with frozen, in both languages and with both seeds.
# After the last step the word test is noticeably higher than with frozen only where the encoder knows the language; in
# the study `recipes-final` (chapter 10), with half the steps and five seeds, it is higher in both. A faster encoder can
# lose its words, in some runs only after longer training: the word test falls to chance (0.5) or below, where a word's
# map prefers the *other* finding, which is not explained here (chapter 9 looks into such encoders). The classifier AUC
# falls as well: the images hardly show what the prompt asks for. The gain and the mirror test stay as high as with
# frozen, because maps still follow the image; AUC-ROC falls less; and FID, which compares sets of images without their
# prompts, may go either way. That is why the primary endpoint has two tests and is not AUC-ROC.
#
# ## A trade-off, a collapse, or a gain of both?
#
# The paper's trade-off means better images and worse maps. For each rate of these studies, the table says what the
# seeds show against frozen. *Maps* follow the rule of the endpoint. *Images* are better or worse if FID or the
# classifier AUC clearly is (Student's interval over the seeds excludes zero) and the other is not clearly the opposite.
# If both axes are decided, the last column names the kind. Five seeds can decide what two or three cannot. Nothing is
# adjusted for the number of rows.

# %% tags=["aggregate"]
final = [pd.read_csv(shipped / f"recipes-{name}.csv") for name in ("final", "repeat")]
recipes = profiles.load("recipes")
own = {v: recipes.recipe(v).text_learning_rate for v in ("learnable", "fifth")}
own = {v: f"{r or recipes.finetune.text_learning_rate:g}" for v, r in own.items()}
final = pd.concat(final, ignore_index=True).replace({"variant": own})
final = final[final["variant"].isin(["frozen", *own.values()])]
ends = {("text_rate", "tiny"): by_rate}
for study, rows in {"recipes-final": final, "length": longer.assign(variant=speed)}.items():
    ends |= {(study, base): part for base, part in rows.groupby("base")}
against = {}
for key, rows in ends.items():
    decisive = {
        c: over_seeds(rows, c, "frozen") for c in (*endpoint, "fid", "classifier_auc")
    }
    about = {"steps": rows["step"].max(), "seeds": rows["seed"].nunique()}
    found = pd.DataFrame(decisive).sort_index(key=lambda names: names.astype(float))
    against[key] = found.assign(**about).set_index([*about], append=True)
against = pd.concat(against, names=["study", "base", "rate", *about])
kinds = say.tradeoff.kinds(against, endpoint)
kinds

# %% tags=["remove-input", "aggregate"]
Markdown(say.tradeoff.counted_kinds(kinds["kind"]))

# %% [markdown]
# In these runs, words are lost only if the text encoder learns at half the U-Net's rate or faster, and in some runs
# only after longer training. Where they are lost, the classifier AUC falls as well. With so few seeds, most rows of the
# table stay open.

# %% [markdown]
# ## On real X-rays
#
# Every finding of a phantom has a mask, and its report is composed from fixed words. Do the maps of models trained on
# real X-rays depend on the image? The study `open` trains both variants on a quarter and on all of Open-i's images
# (`make grid GRID=data/grids/open.yaml DATA=…`, hours). Two tests: the gain on the few phrases with a box (of the NIH's
# data set ChestX-ray14), and *side*, the share of findings whose map prefers the half of the image that the report
# names (Open-i). We consider a gain of one tenth and a side score of 85 % worth reaching.
#
# This is a first attempt. The study has not tried prompts made of labels or of the medical subject headings (MeSH) that
# indexers gave the reports, balanced sampling of findings, augmentation, 96 or 128 pixels, or a wider U-Net. It has one
# seed; chapter 10 trains more recipes with three, and tries names and balance on val. It is scored on test images
# directly, without validation images, so a setting that is chosen by these scores has to be tested on other images.
# Where maps lean to one side, the intervals of the side are wider than they need to be. A few phrases behind *side*
# still name it in another way (“in the lingula”), here and in chapter 10; runs made now leave these out.

# %%
tests = {
    "gain_auc_roc": (0.0, 0.1),
    "side": (0.5, 0.85),
}  # chance, and a value worth reaching
real = pd.read_csv(shipped / "open.csv")
title = "Real X-rays: the last checkpoints over the number of training images"
plots.setting_curves(real, "data.train", [*tests, "classifier_auc", "fid"], title)

# %%
whole = real[real["data.train"] == real["data.train"].max()]
title = "Real X-rays: all training images, over the steps"
plots.setting_curves(whole, "step", [*tests, "classifier_auc", "fid"], title)

# %% [markdown]
# Every checkpoint, with its interval over patients:

# %% tags=["aggregate"]
told = {
    localization.LABELS[c]: real[[c, f"{c}_low", f"{c}_high"]].apply(
        lambda row: str(stats.Interval(*row)), axis=1
    )
    for c in tests
}
keys = real.rename(columns={"data.train": "images"})[["images", "variant", "step"]]
pd.concat([keys, pd.DataFrame(told)], axis=1).set_index([*keys]).unstack("variant")

# %% tags=["remove-input"]
Markdown(say.tradeoff.extrapolation(real, "data.train", tests))

# %% [markdown]
# The gain exceeds zero clearly at some earlier checkpoints and at no last one, and the side nowhere exceeds chance
# clearly. So some of these maps follow the image for a while; whether they still do at the end is open here. With three
# seeds (chapter 10), the gain of some last checkpoints is clearly above zero, and that of others clearly below. One
# seed and two numbers of images do not carry an extrapolation: a slope only says in which direction to look. FID and
# classifier AUC cannot be compared between the two numbers of images, because the classifier behind them was trained on
# as many images as the model.

# %% [markdown]
# ## What does it buy?
#
# Each variant's fidelity at its last checkpoint beside the base's, and the paired difference of the FIDs:

# %% tags=["remove-input", "aggregate"]
reported = {tradeoff.NAMES[column]: column for column in ("fid", "classifier_auc")}
reported = {name: column for name, column in reported.items() if name in estimates.index}
base = {
    name: table.loc[table["step"] == 0, column].mean() for name, column in reported.items()
}
Markdown(say.tradeoff.gains(estimates.loc[list(base), variants], base, variants[0], fids))

# %% [markdown]
# ## Can these intervals be trusted?
#
# A 95 % interval should contain the true value 95 times in a hundred. To check this, we make scores at random, skewed
# like AUCs, with one to three phrases per patient, and count the intervals that contain the true mean. The count is
# itself a sample, so it has an interval, too. The book takes the textbook's bootstrap and widens its intervals where
# there are few patients (*as used here*).

# %%
from functools import partial

trials = min(resamples, 1000)
sizes = sorted({10, 20, 40, int(table["patients"].max())})
textbook = partial(stats.bootstrap_ci, n=400, expand=False)
ours = partial(stats.bootstrap_ci, n=400)
covered = {}
for size in runs.progress(sizes, "simulated intervals"):
    scores = partial(stats.clustered_scores, patients=size)
    covered[size, "textbook bootstrap"] = stats.coverage(
        scores, 0.85, textbook, trials // 2
    )
    covered[size, "as used here"] = stats.coverage(scores, 0.85, ours, trials)


# %% [markdown]
# With several seeds, the scores of a patient also depend on the seed, and not for all patients alike.


# %%
def scores_of_seeds(rng, patients, number=3):
    """Clustered scores ``(rows, seeds)`` with an effect of the seed, and of the seed on each patient."""
    scores, groups = stats.clustered_scores(rng, patients)
    interaction = 0.05 * rng.standard_normal((patients, number))[groups]
    return scores[:, None] + 0.02 * rng.standard_normal(number) + interaction, groups


for size in runs.progress(sizes, "simulated intervals over seeds"):
    generate = partial(scores_of_seeds, patients=size)
    simulated = stats.coverage(generate, 0.85, stats.seeds_ci, trials)
    covered[size, "as used here, three seeds"] = simulated

# %% tags=["aggregate"]
methods = ["textbook bootstrap", "as used here", "as used here, three seeds"]
pd.Series(covered).map("{:.3f}".format).unstack().rename_axis("patients")[methods]

# %% [markdown]
# Read down a column: from which number of patients on is it near 95 %? The textbook bootstrap is too narrow, most of
# all with few patients. The intervals used here come nearer, but may still cover a little less than 95 %. With enough
# patients the interval over seeds is cautious, because three seeds say little about how much seeds differ.

# %% tags=["remove-input", "aggregate"]
patients = each["patients"] if others else table["patients"].dropna().astype(int)
shares = {size: covered[size, "as used here"] for size in sizes}
Markdown(say.tradeoff.coverage(shares, trials, list(patients)))

# %% [markdown]
# ## Exercises
#
# **1.** Does the answer depend on the score? Compare `pointing_game` at every checkpoint.

# %% [markdown] tags=["solution"]
# A difference whose interval includes zero at one checkpoint and not at another is no clear answer. Compare its sign
# with that of the endpoint: where they differ, chapters 4 and 5 say what each score can see.

# %% tags=["solution", "aggregate"]
pd.DataFrame(
    {"step": c.step, "difference": f"{c.a} minus {c.b}", "pointing game": f"{c:+.3f}"}
    for step in sorted(set(table["step"]))
    for c in tradeoff.compare_all(every, "pointing_game", step=int(step), n=resamples)
)

# %% [markdown]
# **2.** With one seed, the interval covers other *patients*. Which uncertainty does it leave out, and how would you
# measure it?

# %% [markdown] tags=["solution"]
# Another seed of the training. Run `make book SEEDS=0,1,2`: {numref}`fig-tradeoff` then shows the spread between seeds.

# %% tags=["solution", "aggregate"]
final = table[table["step"] == table["step"].max()]
final.groupby("variant")["auc_roc"].agg(["mean", "std", "count"]).round(3)

# %% [markdown]
# **3.** How many patients would it take to see a difference of one hundredth in AUC-ROC? And which would help more:
# another seed, or another hundred patients?


# %% [markdown] tags=["solution"]
# Find the first row whose detectable difference is at most one hundredth. With one seed, the spread between seeds is
# unknown and left out, so “detectable now” is too small and the last row cannot fall. To learn what another seed
# gains, run several seeds.


# %% tags=["solution", "aggregate"]
def by_seed(variant):
    """AUC-ROC at the last step: a row for each phrase, a column for each seed."""
    rows = [run.grounding() for run in trained if run.folder.parent.name == variant]
    keys = ["patient", "study", "finding", "phrase"]
    last = [r[r["step"] == r["step"].max()].groupby(keys)["auc_roc"].mean() for r in rows]
    return pd.concat(last, axis=1, keys=seeds)


planned, planned_sizes = {}, (50, 100, 200, 500, 1000, 2000, 5000)
for variant in variants[1:]:
    difference = (by_seed(variants[0]) - by_seed(variant)).dropna()
    values, groups = difference.to_numpy(), difference.index.get_level_values("patient")
    detectable = partial(stats.minimal_detectable_difference, values, groups)
    planned[variant] = {
        f"detectable, {n} patients": detectable(patients=n) for n in planned_sizes
    } | {
        "detectable now": detectable(),
        "with 100 more patients": detectable(patients=len(set(groups)) + 100),
        "with one more seed": detectable(seeds=len(seeds) + 1),
    }
pd.DataFrame(planned).round(4)

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **The interval of a difference includes zero. What may you say?**
#
# <details class="quiz" name="question-1"><summary>there is no difference</summary>No. Look at the detectable difference: a smaller one may be there.</details>
# <details class="quiz right" name="question-1"><summary>no difference was shown</summary>Right. How small a one could have been seen is a number beside it.</details>
# <details class="quiz" name="question-1"><summary>the variants are equal</summary>No. That needs an interval that excludes what matters.</details>
#
# **Why are differences paired by phrase?**
#
# <details class="quiz" name="question-2"><summary>because the number of phrases is small</summary>No. Pairing helps with many phrases, too.</details>
# <details class="quiz right" name="question-2"><summary>because hard phrases are hard for all variants</summary>Right. What they have in common cancels, and the interval is narrower.</details>
#
# **With one seed, what does the interval cover?**
#
# <details class="quiz right" name="question-3"><summary>other patients</summary>Right. Another training may differ more; that takes several seeds.</details>
# <details class="quiz" name="question-3"><summary>other patients and other trainings</summary>No. One training cannot say how much trainings differ.</details>

# %% [markdown]
# ## Takeaways
#
# - Fidelity and interpretability are two axes; a single number hides whether one is bought with the other.
# - A paired interval over patients decides what may be claimed; chance and the location prior put it into proportion.
# - One seed is one sample of the training: claims about variants need several.
#
# **Further reading.** {cite:t}`dombrowski2024tradeoffs` is the paper whose claim is tested here;
# {cite:t}`nuetzel2025generate` ground phrases with such a model.

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
# # 6 Fidelity
#
# **How like held-out images and how varied are the generated ones, and do they show what the prompt names?**
#
# No single number answers these questions, so we ask one by one:
#
# - *Like held-out images?* Do the generated images, as a set, resemble images that no model has seen? FID and KID compare the two sets; precision and
#   recall ask whether each image has neighbours in the other set.
# - *Varied?* Does one prompt give one image again and again? MS-SSIM compares images of the same prompt.
# - *Faithful to the prompt?* Does a classifier find the finding that the prompt names?
# - *Of use?* Does a classifier trained only on generated images work on held-out ones (train on synthetic, test on real:
#   TSTR)?
#
# The table under *The answer* shows every score beside what held-out images reach. Brackets hold a 95 % interval; KID
# has its standard deviation over subsets (±).
#
# *You will be able to* compute and read these scores. *Before:* chapters 2 and 4.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variant = "frozen"  # a variant of the profile
seed = 0
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import warnings

import numpy as np
import pandas as pd
import plotly.express as px
from IPython.display import Markdown, display
from scipy.linalg import sqrtm
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from chestxai import baselines, fidelity, models, plots, profiles, reports, runs, tradeoff
from chestxai import sentences as say
from chestxai.stats import (
    FewGroupsWarning,
    Interval,
    bootstrap_ci,
    bootstrap_statistic,
    format_interval,
)
from chestxai.studies import FINDINGS, Frame, phrases, to_images

# %%
settings = profiles.load(profile)
run = profiles.run(settings, variant, seed, out).check_finished()
plots.setup(settings.variants)
fit, resamples = settings.data.fit, min(settings.statistics.resamples, 200)
pipeline = models.load_base(settings)
size, steps = models.image_size(pipeline), [0, *run.steps()]
last = steps[-1]
pd.Series(settings.sampling.model_dump(), name=f"profile {settings.name}").to_frame()

# %% [markdown]
# ## Held-out images, and the prompts
#
# The prompts come from the reports of *held-out* studies, on which the model was never trained. A prompt is used as
# often as it occurs among the held-out images (or, with `sampling: {prompts: evenly}`, as many for each finding).
# Several images are generated for each. The text encoder reads a limited number of tokens; findings that are named
# beyond them count as not asked for. `others` are held-out images of yet other patients. Their FID, KID, precision,
# recall, density and coverage are about what a perfect model would get. The other scores are compared with those of the
# test images.

# %%
train = profiles.studies(settings, "train", data)
real, kept, unreadable = to_images(profiles.studies(settings, "test", data), size, fit)
real_labels, patients = np.stack([s.labels() for s in kept]), [s.patient for s in kept]
validation = profiles.studies(settings, "val", data)
others, kept_others, _ = to_images(
    profiles.sample(validation, settings.sampling.images), size, fit
)
prompts, labels, origins = fidelity.requests(kept, settings.sampling, pipeline)
prompts_cut = models.cut_prompts(pipeline.tokenizer, prompts)

# %% tags=["remove-input", "aggregate"]
Markdown(
    f"{len(real)} held-out images of {len(set(patients))} patients (`{len(unreadable)}` could not be read) and {len(others)} "
    f"others. {len(prompts)} images are generated for {len(set(prompts))} different prompts at each of {len(steps)} "
    "checkpoints, the base included. Studies whose reports have the same words share a prompt. "
    f"{prompts_cut} of the {len(prompts)} prompts are cut off."
)


# %% [markdown]
# ## The feature space
#
# FID compares images not pixel by pixel but by *features*, the activations of a network in its last layer but one.
# Usually this is an Inception network trained on photographs {cite}`heusel2017fid`; ours is a small network that names
# findings in images like those the model generates. Numbers from two feature spaces cannot be compared, so the
# classifier is named with every result. A profile can add spaces, `sampling: {spaces: [findings, inception, xrv]}`
# (`xrv` is a network trained on public chest X-rays).


# %%
classifier = fidelity.profile_classifier(settings, data, out)
spaces = fidelity.feature_spaces(settings.sampling)


# %% tags=["remove-input", "aggregate"]
def interval(numbers, name):
    """A score with its bounds; NaN where it is undefined."""
    values = (numbers.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    return Interval(*(float("nan") if v is None else v for v in values))


reference = fidelity.reference(
    real, real_labels, classifier, others=others, patients=patients,
    others_patients=[s.patient for s in kept_others], resamples=resamples, spaces=spaces,
)  # fmt: skip
Markdown(
    f"Here: {classifier.description}. On held-out images its AUC, averaged over findings, is "
    f"**{interval(reference, 'classifier_auc_real')}**. Generated images with a similar AUC show the findings as clearly."
)

# %% [markdown]
# ## Generating
#
# At every checkpoint and for all variants, the same prompts start from the same noise, so differences are due to the
# weights. Noise is removed in deterministic steps (DDIM or PLMS, as the profile says), with *classifier-free guidance*
# {cite}`ho2022cfg` (chapter 2).

# %%
scores, generated = {}, {}
bar = runs.progress(
    total=len(steps) * len(prompts), description=f"generate · {variant} · seed {seed}"
)
options = {"patients": patients, "resamples": resamples, "spaces": spaces}
for step, images in fidelity.sample_run(pipeline, settings, run, prompts, bar):
    found = fidelity.evaluate(real, images, labels, prompts, classifier, **options)
    scores[step] = reference | found
    generated |= {step: images} if step in (0, last) else {}
bar.close()

# %%
# One prompt for each finding that any prompt names.
firsts = {
    labels[i].argmax() if labels[i].any() else -1: i
    for i in reversed(range(len(prompts)))
    if origins[i] >= 0
}
shown = sorted(firsts.values())[:4]
plots.images(
    np.concatenate([real[origins[shown]], generated[0][shown], generated[last][shown]]),
    titles=[
        f"{name}: {prompts[i]}"
        for name in ("held-out", "base", f"step {last}")
        for i in shown
    ],
    columns=len(shown),
    title=f"The held-out image, what the base and {variant} generate for its report",
)

# %% [markdown]
# The images of the base show where fine-tuning started. In those of the last step, look for the finding and for its
# side: “R” marks the patient's right.
#
# ## Like held-out images?
#
# Each image is a point in the feature space. {numref}`fig-features` shows the two directions in which the held-out
# points spread most.

# %%
image_sets = {
    "held-out": real,
    "base": generated[0],
    variant: generated[last],
    "other held-out": others,
}
features = {
    name: fidelity.features(classifier, images) for name, images in image_sets.items()
}

# %% name="fig-features"
plane = PCA(2).fit(features["held-out"])
points = pd.concat(
    pd.DataFrame(
        plane.transform(values), columns=["first component", "second component"]
    ).assign(images=name)
    for name, values in features.items()
    if name != "other held-out"
)
looks = plots.variant_style(points["images"].unique())
px.scatter(
    points, x="first component", y="second component", opacity=0.6, height=440, title="Every point is an image",
    **plots.express_options(looks, "images", dash=False),
).update_layout(legend_title_text="")  # fmt: skip


# %% [markdown]
# A good model covers the held-out cloud: it is not elsewhere, nor only in a part of it. The Fréchet inception distance
# (FID) {cite}`heusel2017fid` approximates each cloud by a normal distribution and compares means $\mu$ and covariances
# $\Sigma$:
#
# $$ \mathrm{FID} = \lVert \mu_1 - \mu_2 \rVert^2
# + \mathrm{tr}\left(\Sigma_1 + \Sigma_2 - 2\,(\Sigma_1\Sigma_2)^{1/2}\right) $$


# %% tags=["aggregate"]
def frechet(a, b):
    """The formula above for two clouds (n, d)."""
    s, t = np.cov(a.T), np.cov(b.T)
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    )


flat = {name: plane.transform(values) for name, values in features.items()}
pd.DataFrame(
    {
        name: {
            "by hand, in the plane above": frechet(flat["held-out"], flat[name]),
            "fidelity.fid, in the plane above": fidelity.fid(flat["held-out"], flat[name]),
            f"fidelity.fid, all {classifier.num_features} features": fidelity.fid(
                features["held-out"], features[name]
            ),
        }
        for name in ("base", variant, "other held-out")
    }
).round(3)

# %% [markdown]
# *Other held-out* is the floor: even held-out images of other patients are not at zero. Part of that is sampling error,
# which FID counts as distance; {numref}`fig-fewer` shows how much. KID
# {cite}`binkowski2018kid` is free of that error on average. It compares how similar features are within each set and
# between the two sets, by a function called a kernel. If both sets come from one distribution it is 0 on average, so a
# single value may be slightly negative. It is computed on random subsets.
#
# FID is one number for two failings. Draw a ball around each image in the feature space, up to its third-nearest
# neighbour in its own set. *Precision* is the share of generated images inside a ball of a held-out one: it shows how
# like those they are. *Recall* is the share of held-out images inside a ball of a generated one: it shows how varied
# they are {cite}`kynkaanniemi2019precision`. *Density* and *coverage* {cite}`naeem2020reliable` are less sensitive to
# single outliers. Density counts in how many neighbourhoods of held-out images a generated image lies, divided by the
# number of neighbours (five), and may exceed 1. Coverage is the share of held-out images with a generated image in
# their neighbourhood. Compare each row with *other held-out*:

# %% tags=["aggregate"]
rows = {}
for name in ("base", variant, "other held-out"):
    groups = None if name == "other held-out" else prompts
    values = fidelity.scores(
        features["held-out"],
        features[name],
        groups=groups,
        real_groups=patients,
        resamples=0,
    )
    rows[name] = {k: f"{v:.2f}" for k, v in values.items() if k != "fid"}
    rows[name]["KID"] = f"{fidelity.kid(features['held-out'], features[name])[0]:.3f}"
pd.DataFrame(rows).T

# %% [markdown]
# ## Varied?
#
# A model that generates one good image for a prompt again and again (*mode collapse*) may still score well with the
# classifier. MS-SSIM {cite}`wang2003msssim` compares brightness, contrast and local patterns of two images at several
# resolutions; 1 means equal, and 0 that the patterns do not match at all. We compare
# images of the *same prompt*. The aim is not 0, but the similarity of two held-out images with the same findings. A low
# value may also mean noise. In {numref}`fig-varied`, each number is a mean over the few pairs of one prompt.

# %% name="fig-varied"
alike = fidelity.ms_ssim_by_group(generated[last], prompts)
ranked = sorted(alike, key=alike.get)
extremes = list(dict.fromkeys([ranked[0], ranked[-1]]))
rows = [
    np.flatnonzero(np.array(prompts) == text)[: min(4, settings.sampling.per_prompt)]
    for text in extremes
]
plots.images(
    generated[last][np.concatenate(rows)],
    titles=[
        f"{alike[text]:.2f}: {text}"
        for text, row in zip(extremes, rows, strict=True)
        for _ in row
    ],
    columns=len(rows[0]),
    title=f"The most and the least varied prompt at step {last}, with MS-SSIM",
)

# %% [markdown]
# ## Faithful to the prompt?
#
# The classifier gives every finding a probability in each generated image. The AUC is the probability that an image
# whose prompt names the finding gets a higher value than one whose prompt does not: 0.5 means that naming the finding
# makes no difference. The prompt counts, not the labels of its study: a model cannot show what the impression omits.

# %% tags=["aggregate"]
named = {
    "held-out images": reference["classifier_auc_real_by_finding"],
    "base": scores[0]["classifier_auc_by_finding"],
    variant: scores[last]["classifier_auc_by_finding"],
}
count = dict(zip(FINDINGS, labels.sum(0), strict=True))
table = pd.DataFrame(
    {
        "finding": finding,
        "variant": name,
        "mean": v["estimate"],
        **v,
        "chance": 0.5,
        "n": count[finding],
    }
    for name, found in named.items()
    for finding, v in found.items()
    if v["estimate"] is not None
)
plots.scores_by_finding(
    table,
    "classifier AUC",
    "Does the image show what the prompt names? (n: images asked for it)",
)


# %% [markdown]
# A finding that no prompt names has no AUC, and one that few name has a wide interval, because the images of one prompt
# are resampled together. Where a prompt names one finding alone, does the classifier find that one most probable
# (*classifier top-1*; chance is one in eight)? And how close are the images asked for a finding to
# held-out images of it?

# %% tags=["aggregate"]
with warnings.catch_warnings(category=FewGroupsWarning, action="ignore"):
    scores[last]["by_finding"] = fidelity.by_finding(
        features["held-out"], features[variant], real_labels, labels
    )
display(pd.DataFrame(scores[last]["by_finding"]).T.astype(float).round(3))
Markdown(
    f"Classifier top-1 at step {last}: {interval(scores[last], 'top1')}, of held-out images {interval(reference, 'top1_real')}."
)

# %% [markdown]
# Findings with fewer than six images of either kind are left out. FIDs of few images are large, so compare variants
# finding by finding, and not findings with each other. KID may be below 0.
#
# ### On the side, in the zone, and as severe as asked?
#
# A prompt also says on which of two sides, in which of three zones (upper, mid, lower) and how severe a finding is
# (mild, moderate, severe). A segmentation network that was trained on the exact masks of phantoms (the supervised model
# of chapter 4) reads these off an image. This model makes errors, too. Held-out images with
# their own prompts show how many. Where they are close to chance, the measurement says little about generated images.
# The zone is judged only for findings that occur in several zones. *Chance* is the share as asked if the prompts of a
# finding are exchanged between its images. Where a finding is usually in the lower zone, a model that ignores the word
# will often be right, so for zone and severity this is more than a third.

# %%
exact = settings.boxes == settings.data.source == "phantom"  # others have no exact truth
judge = baselines.ceiling(settings, phrases(train), out) if exact else None


def as_asked(images, texts, groups):
    """Share of findings as asked, by attribute, and that share minus chance, with intervals over groups."""
    rows = baselines.as_asked(images, texts, judge)
    rows["group"] = [groups[i] for i in rows["image"]]
    share, above = {}, {}
    for name in baselines.ATTRIBUTES:
        if len(part := rows.dropna(subset=name)):
            minus = part[name] - part[f"chance_{name}"]
            share[name] = bootstrap_ci(part[name], part["group"], n=resamples)
            above[name] = bootstrap_ci(minus, part["group"], n=resamples)
    return share, above


def keep(name, value):
    """Add a score with its bounds to the numbers of the last step."""
    ends = {"": value.estimate, "_low": value.low, "_high": value.high}
    scores[last] |= {
        name + end: float(v) if np.isfinite(v) else None for end, v in ends.items()
    }


# %% tags=["aggregate"]
if exact:
    own = [reports.prompt(s.report) for s in kept]
    asked = {"held-out images": as_asked(real, own, patients)}
    asked |= {
        name: as_asked(generated[step], prompts, prompts)
        for name, step in (("base", 0), (variant, last))
    }
    shares = {name: share for name, (share, _) in asked.items()}
    above = asked[variant][1]
    minus = {f"{name} − chance": over for name, (_, over) in asked.items()}
    told = pd.DataFrame(shares).map("{:.2f}".format)
    display(told.join(pd.DataFrame(minus).map("{:+.2f}".format)))
    for name, share in shares[variant].items():
        keep(f"asked_{name}", share)
        keep(f"asked_{name}_real", shares["held-out images"][name])
        scores[last][f"chance_asked_{name}"] = share.estimate - above[name].estimate

# %% tags=["remove-input", "aggregate"]
Markdown(
    say.fidelity.as_asked(shares[variant], shares["held-out images"], above)
    if exact
    else "Only phantoms have exact truth, so this is not measured here."
)

# %% [markdown]
# ### Does “no effusion” generate an effusion?
#
# Some prompts deny findings, and a model that reads only the name would generate what is denied. The table has the mean
# probability that the classifier gives to findings that the prompt asks for, denies, or does not name. The row
# *held-out images* has the images whose reports gave the prompts. The last column is the *excess of denied findings*:
# their probability minus that of the same findings in images whose prompts do not name them. At 0, to deny a finding is
# the same as not to name it, which is all that can be asked of a model; towards 1, what is denied is generated. Compare
# it with the row of the held-out images. (In real reports it may be below 0, because impressions leave out some
# findings that are there; those of phantoms leave out none.)

# %% tags=["aggregate"]
texts = np.array(models.readable(pipeline.tokenizer, prompts))
stated, by_images = fidelity.stated(texts.tolist()), {}
every, from_reports = np.arange(len(texts)), np.flatnonzero(origins >= 0)
for name, (images, rows) in {
    "held-out images": (real[origins[from_reports]], from_reports),
    "base": (generated[0], every),
    variant: (generated[last], every),
}.items():
    if len(rows):
        claims, seen = stated[rows], fidelity.predict(classifier, images)
        parts = {"asked for": claims > 0, "denied": claims < 0}
        parts["not named"] = claims == 0
        means = {k: seen[p].mean() if p.any() else np.nan for k, p in parts.items()}
        excess = fidelity.denied_excess(seen, texts[rows].tolist())
        by_images[name] = means | {"excess of denied": excess}
pd.DataFrame(by_images).T.map(format_interval)

# %% tags=["remove-input", "aggregate"]
denying = {*texts[(stated < 0).any(axis=1)]}
Markdown(f"Of {len({*texts})} different prompts, {len(denying)} deny a finding.")

# %% [markdown]
# ## Of use?
#
# The classifier AUC does not test variety. *TSTR* (train on synthetic, test on real) {cite}`ravuri2019cas` does: a new
# classifier is trained on the generated images alone and tested on *held-out* ones. Compare it with one trained on as
# many training images; chance is 0.5.


# %%
def small(images):
    """Images scaled down to what a classifier needs."""
    side = min(size, 128)
    return np.stack([Frame(*image.shape, side, fit).image(image) for image in images])


sampled, kept_sampled, _ = to_images(profiles.sample(train, len(prompts)), size, fit)
sampled_labels = np.stack([s.labels() for s in kept_sampled])
lessons = {
    "training images": (sampled, sampled_labels, profiles.profile_folder(settings, out)),
    variant: (generated[last], labels, run.folder),
}
transfer = {
    name: fidelity.transfer_auc(
        (small(images), shows),
        (small(real), real_labels),
        folder / "transfer",
        fidelity.Training(name, epochs=20),
        patients=patients,
    )
    for name, (images, shows, folder) in lessons.items()
}

# %% tags=["aggregate"]
for name, suffix in ((variant, ""), ("training images", "_real")):
    keep(f"transfer_auc{suffix}", transfer[name]["macro"])
count = dict(zip((*FINDINGS, "all"), [*real_labels.sum(0), len(real)], strict=True))
table = pd.DataFrame(
    {"finding": "all" if finding == "macro" else finding, "variant": name}
    | {"mean": v.estimate, "low": v.low, "high": v.high, "chance": 0.5}
    | {"n": count["all" if finding == "macro" else finding]}
    for name, found in transfer.items()
    for finding, v in found.items()
    if np.isfinite(v.estimate)
)
plots.scores_by_finding(
    table,
    "AUC on held-out images",
    "Trained on generated or on training images (n: held-out images that show it)",
)

# %% tags=["remove-input", "aggregate"]
Markdown(
    f"{len(prompts)} generated and {len(sampled)} training images, averaged over findings. "
    + say.fidelity.teaching(
        transfer[variant]["macro"], transfer["training images"]["macro"]
    )
    + " Both intervals are over test patients; they do not cover another training."
)

# %% [markdown]
# The classifier of *The feature space* was trained on many more images: it cannot be compared with these two.
#
# ## The answer: over the checkpoints

# %% tags=["aggregate"]
names = {
    "fid": "FID ↓",
    "ms_ssim": "MS-SSIM within a prompt",
    "classifier_auc": "classifier AUC ↑",
}
curves = pd.DataFrame(
    {"step": step, "score": name, "images": images}
    | vars(interval(numbers, column + suffix))
    for step, numbers in scores.items()
    for column, name in names.items()
    for images, suffix in ((variant, ""), ("held-out", "_real"))
)
curves["up"] = curves["high"] - curves["estimate"]
curves["down"] = curves["estimate"] - curves["low"]
styles = plots.variant_style([variant, "held-out"])
figure = px.line(
    curves, x="step", y="estimate", error_y="up", error_y_minus="down", facet_col="score", facet_col_spacing=0.08,
    height=420, labels={"estimate": "", "step": "training step"},
    title=f"Fidelity over fine-tuning, {variant} (95 % intervals)", **plots.express_options(styles, "images"),
)  # fmt: skip
figure.update_yaxes(matches=None, showticklabels=True).update_layout(
    legend_title_text=""
).for_each_annotation(lambda a: a.update(text=a.text.removeprefix("score="), yshift=10))

# %% [markdown]
# The numbers are stored in the run's folder, for chapter 8. At the last checkpoint they are:

# %% tags=["aggregate"]
about = settings.sampling.model_dump() | {
    "resamples": resamples,
    "fit": fit,
    "precision": settings.finetune.precision,
    "prompts_cut": prompts_cut,
}
by_step = {str(step): numbers for step, numbers in scores.items()}
runs.write_json(
    run.fidelity_file,
    {
        "classifier": classifier.description,
        "spaces": {name: fidelity.describe(space) for name, space in spaces.items()},
        "settings": about,
        "steps": by_step,
    },
)
tradeoff.summary(
    pd.DataFrame(
        {"variant": name, "seed": seed, "step": k} | scores[k]
        for k, name in ((0, "base"), (last, variant))
    )
)

# %% [markdown]
# Base and last step have the same prompts and noise. So one bootstrap resamples both together, prompt by prompt, and
# gives the intervals of the *differences* of FID and of classifier AUC. What both share, such as difficult prompts,
# cancels out. The other comparisons are of different images: there, the interval of the difference comes from the
# intervals of both.

# %%
likely = {k: fidelity.predict(classifier, generated[k]) for k in (0, last)}
changes = {
    "fid": fidelity.fid_difference(
        features["held-out"],
        features[variant],
        features["base"],
        prompts,
        patients,
        resamples,
    ),
    "auc": fidelity.auc_difference(likely[last], likely[0], labels, prompts),
}

# %% tags=["remove-input", "aggregate"]
fid, auc = (
    [interval(scores[k], name) for k in (0, last)] for name in ("fid", "classifier_auc")
)
similar = interval(scores[last], "ms_ssim"), interval(reference, "ms_ssim_real")
precise = [interval(scores[k], "precision") for k in (0, last)]
precise.append(interval(reference, "precision_real"))
Markdown(
    "By these intervals:\n\n"
    + say.fidelity.answer(
        fid, interval(reference, "fid_real"), similar, auc, precise, changes
    )
)

# %% tags=["answer", "remove-input", "aggregate"]
floor = interval(reference, "fid_real")
Markdown(say.answers.fidelity(variant, fid, changes["fid"], floor, auc[-1]))

# %% [markdown]
# The interval of the FID resamples prompts and patients; that of KID is the spread over subsets. Neither covers another
# training.
#
# ## Exercises
#
# **1.** Generate images of two prompts with no guidance (1) and with a lot (8). What happens to MS-SSIM, and to the
# images?

# %% [markdown] tags=["solution"]
# Guidance pushes every image towards what is typical for its prompt. Often, more of it makes images more alike and
# MS-SSIM higher; with two prompts MS-SSIM may also fall. Too much of it exaggerates contrast.

# %% tags=["solution"]
some = slice(0, 2 * settings.sampling.per_prompt)
by_guidance = {settings.sampling.guidance: generated[last][some]}
for guidance in (1.0, 8.0):
    changed = settings.sampling.model_copy(update={"guidance": guidance})
    path = run.samples_file(f"guidance-{guidance:g}")
    by_guidance[guidance] = fidelity.sample(pipeline, prompts[some], changed, path)
by_guidance = dict(sorted(by_guidance.items()))
similarity = {g: fidelity.ms_ssim(x, prompts[some]) for g, x in by_guidance.items()}
display(pd.DataFrame({"MS-SSIM": similarity}).round(3))
plots.images(
    np.concatenate([x[:4] for x in by_guidance.values()]),
    titles=[
        f"guidance {g:g}: {p}"
        for g, x in by_guidance.items()
        for p in prompts[: len(x[:4])]
    ],
    title="The same prompts and noise with more and more guidance",
)

# %% [markdown]
# **2.** Networks expect scaled pixels, and scaling is easily done twice, or for one of the two sets only. What does
# `fidelity.features` say to images in [0, 1]? What would the FID be if it accepted them? And if one set is inverted, as
# files marked MONOCHROME1 are?

# %% [markdown] tags=["solution"]
# `fidelity.features` takes whole numbers from 0 to 255 and refuses others. Forced through, such images would all be
# black: FID would measure the mistake, not the images. Inverted images pass the check, so compare the mean brightness
# of the two sets before you compare them.

# %% tags=["solution"]
try:
    fidelity.features(classifier, others / 255)
except ValueError as error:
    print("refused:", error)
# Forced through as whole numbers, every image is black. FID then measures the mistake, not the images.
mistakes = {
    "none": others,
    "scaled twice": (others / 255).astype(np.uint8),
    "inverted": 255 - others,
}
pd.DataFrame(
    {
        "mistake": name,
        "FID": fidelity.fid(features["held-out"], fidelity.features(classifier, x)),
    }
    for name, x in mistakes.items()
).round(2)

# %% [markdown]
# **3.** The classifier knows “effusion”, but not left from right. Find a score of an image that does, and try it on
# held-out and on generated images.

# %% [markdown] tags=["solution"]
# Most findings are brighter than air. The patient's left is the image's right half: is it the brighter one? First look
# at the held-out images: if their interval includes 0.5, this score does not tell the side, and its value on generated
# images means nothing. Heart and anatomy also differ between the halves. The supervised model above is the better
# judge.

# %% tags=["solution"]
BRIGHT = {"Atelectasis", "Consolidation", "Lung Opacity", "Pleural Effusion", "Pneumonia"}


def side_of(findings):
    """The one side, "left" or "right", that all bright findings are on; else None."""
    sides = {f.side for f in findings if f.present and f.name in BRIGHT}
    return sides.pop() if len(sides) == 1 and sides < {"left", "right"} else None


def auc_of(y, x):
    return roc_auc_score(y, x) if 0 < y.sum() < len(y) else np.nan


def side_auc(images, sides, groups):
    """AUC of the difference of brightness between the two halves for "left" against "right"."""
    rows = np.flatnonzero([side is not None for side in sides])
    left = np.array([sides[i] == "left" for i in rows])
    if left.all() or not left.any():
        return "no prompt names both sides"
    halves = images[rows][:, :, size // 2 :], images[rows][:, :, : size // 2]
    brighter = halves[0].mean(axis=(1, 2)) - halves[1].mean(axis=(1, 2))
    return bootstrap_statistic((left, brighter), auc_of, [groups[i] for i in rows], n=200)


# %% tags=["solution"]
prompt_sides = [side_of(reports.find(p)) for p in prompts]
print("held-out images:", side_auc(real, [side_of(s.findings) for s in kept], patients))
for step, images in generated.items():
    print(f"step {step}:", side_auc(images, prompt_sides, prompts))

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **An FID of 12 with 200 images, and one of 9 with 2,000. Which images are better?**
#
# <details class="quiz" name="question-1"><summary>the second</summary>No. FID falls with the number of images.</details>
# <details class="quiz" name="question-1"><summary>the first</summary>No. Nothing says so.</details>
# <details class="quiz right" name="question-1"><summary>one cannot tell</summary>Right. Compare equal numbers, or use KID.</details>
#
# **MS-SSIM within a prompt is close to 1. What does it mean?**
#
# <details class="quiz" name="question-2"><summary>the images follow the prompt</summary>No. The classifier's AUC asks whether the named finding appears.</details>
# <details class="quiz right" name="question-2"><summary>the model generates one image again and again</summary>Right. High similarity within a prompt is little variety.</details>
# <details class="quiz" name="question-2"><summary>the images are like held-out ones</summary>No. Similar images may all be poor.</details>
#
# **What does TSTR test?**
#
# <details class="quiz right" name="question-3"><summary>whether generated images can teach a classifier that works on held-out ones</summary>Right. Train on synthetic, test on real.</details>
# <details class="quiz" name="question-3"><summary>whether a classifier can tell generated from held-out images</summary>No. That is another test.</details>

# %% [markdown]
# ## Takeaways
#
# - FID and KID compare sets of images and depend on the feature space. The floor is not zero: held-out images of other
#   patients set it.
# - MS-SSIM within a prompt shows mode collapse. The classifier's AUC shows whether the named findings appear. It does not
#   show whether side, zone and severity are as asked; measure these separately.
# - Whether images are of use is best tested by using them: train on generated images, test on held-out ones.
# - None of these scores says *where* the model looks when it reads a word. Chapter 8 puts both together.
#
# **Further reading.** {cite:t}`heusel2017fid` introduce FID; {cite:t}`kynkaanniemi2019precision` and
# {cite:t}`naeem2020reliable` separate fidelity from variety.

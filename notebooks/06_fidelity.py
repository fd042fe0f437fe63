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
# # 5 Fidelity
#
# **How real and how varied are the generated images, and do they show what was asked for?**
#
# These are several questions, and no single number answers them:
#
# - *Real?* Are the generated images, as a crowd, like real ones? FID and KID compare the two crowds, precision and recall
#   ask each image about its neighbours.
# - *Varied?* Does one prompt give one image again and again? MS-SSIM compares images of the same prompt.
# - *Asked for?* Does a classifier of real images find the finding that the prompt names?
# - *Of use?* Does a classifier that has only seen generated images know its way about real ones?
# - *New?* Or are they copies of training images?
#
# Every number is shown with what real images score themselves, and with an interval.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variant = "frozen"  # treatment of the text encoder: "frozen" or "learnable"
seed = 0
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.express as px
from IPython.display import Markdown, display
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from chestxai import fidelity, models, plots, profiles, reports, runs, tradeoff
from chestxai.stats import Interval, bootstrap_statistic
from chestxai.studies import FINDINGS, Frame, to_images

settings = profiles.load(profile)
run = profiles.run_folder(settings, variant, seed, out)
fit = settings.data.fit
resamples = min(settings.statistics.resamples, 200)
plots.setup()
panels = {
    "legend": {"y": 1.1, "title": {"text": ""}},
    "margin": {"t": 110},
}  # room above the panels of a figure
plain = lambda a: a.update(text=a.text.removeprefix("score="))  # noqa: E731 - and no more than its name above each

pipeline = models.load_pipeline(settings.base)
size = models.image_size(pipeline)
steps = [0, *runs.Run(run).steps()]
last = steps[-1]
pd.Series(
    settings.sampling.model_dump(), name=f"profile {settings.name}", dtype=object
).to_frame()

# %% [markdown]
# ## Real images, and what to ask for
#
# The model is asked for what the reports of *held-out* studies say: prompts it was never trained on, as frequent as
# they are among the real images. Each is drawn several times. `others` are real images of yet other patients: whatever
# a score says of them is what a perfect model would get.

# %%
train = profiles.studies(settings, "train", data)
validation = profiles.sample(
    profiles.studies(settings, "val", data), settings.sampling.images
)
real, kept, unreadable = to_images(profiles.studies(settings, "test", data), size, fit)
real_labels, patients = np.stack([s.labels() for s in kept]), [s.patient for s in kept]
others, kept_others, _ = to_images(validation, size, fit)
others_labels = np.stack([s.labels() for s in kept_others])
prompts, labels, origins = fidelity.requests(kept, settings.sampling)
pd.Series(prompts).value_counts(sort=False).rename_axis("prompt").rename(
    "images"
).to_frame().head(8)

# %% tags=["hide-input"]
Markdown(
    f"{len(real)} real test images of {len(set(patients))} patients"
    + (f" ({len(unreadable)} could not be read)" if unreadable else "")
    + f" and {len(others)} others. {len(prompts)} images are to be drawn for {len(set(prompts))} different prompts at "
    f"each of {len(steps)} checkpoints, the base included. Studies whose reports have the same words are one prompt."
)

# %% [markdown]
# ## The eye that compares
#
# FID is usually taken in the feature space of an Inception network trained on photographs {cite}`heusel2017fid`, which
# knows dogs and cars. Our features are those of a small network that names findings in the same kind of images as the
# model draws. Numbers from two feature spaces cannot be compared, so the classifier is named with every result.


# %%
def labelled(split):
    """Images uint8 (n, s, s) and labels (n, 8), should a classifier have to be trained."""
    some = profiles.sample(
        train if split == "train" else profiles.studies(settings, split, data), 20_000
    )
    pixels, readable, _ = to_images(some, min(size, 128), fit)
    return pixels, np.stack([s.labels() for s in readable])


classifier = fidelity.shared_classifier(
    settings.data.source,
    profiles.profile_folder(settings, out) / "classifier",
    labelled,
    data=f"{train.fingerprint}-{fit}",
)
reference = fidelity.reference(
    real, real_labels, classifier, others=others, patients=patients, resamples=resamples
)


# %% tags=["hide-input"]
def interval(numbers, name):
    """A score with its bounds; NaN where it is undefined."""
    values = (numbers.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    return Interval(*(float("nan") if v is None else v for v in values))


Markdown(
    f"Here: {classifier.description}. On real test images its AUC, averaged over findings, is "
    f"**{interval(reference, 'classifier_auc_real')}**: no more than this can be expected of generated images."
)

# %% [markdown]
# ## Drawing
#
# At every checkpoint the same prompts are drawn from the same noise, for both treatments, so differences are due to
# the weights. Noise is removed by deterministic DDIM steps, and *guidance* {cite}`ho2022cfg` pushes each step away
# from what the model would draw without a prompt. The images are kept: a rerun does not draw them again.

# %%
scores, drawn = {}, {}
with runs.progress(
    total=len(steps) * len(prompts), description=f"draw · {variant} · seed {seed}"
) as bar:
    for step, images in fidelity.sample_run(pipeline, settings, run, prompts, bar):
        scores[step] = reference | fidelity.evaluate(
            real,
            images,
            labels,
            prompts,
            classifier,
            patients=patients,
            resamples=resamples,
        )
        if step in (0, last):
            drawn[step] = images

# %%
# One prompt for each finding, as far as there are any.
firsts = {
    labels[i].argmax() if labels[i].any() else -1: i for i in reversed(range(len(prompts)))
}
shown = sorted(firsts.values())[:4]
plots.images(
    np.concatenate([real[origins[shown]], drawn[0][shown], drawn[last][shown]]),
    titles=[
        f"{name}: {prompts[i]}" for name in ("real", "base", f"step {last}") for i in shown
    ],
    columns=len(shown),
    title=f"The real image, what the base draws for its report, and what {variant} draws",
)

# %% [markdown]
# The base has not been trained on these reports; its row is what fine-tuning started from. Look for the finding in the
# last row, and for its side: "R" marks the patient's right.
#
# ## Real?
#
# Each image becomes a point in the feature space. Here are the two directions in which the real points spread most.

# %%
now = f"step {last}"
crowds = {"real": real, "base": drawn[0], now: drawn[last], "other real": others}
features = {name: fidelity.features(classifier, images) for name, images in crowds.items()}
plane = PCA(2).fit(features["real"])
points = pd.concat(
    pd.DataFrame(
        plane.transform(values), columns=["first component", "second component"]
    ).assign(images=name)
    for name, values in features.items()
    if name != "other real"
)
px.scatter(
    points, x="first component", y="second component", color="images", symbol="images", opacity=0.6,
    template=plots.TEMPLATE, height=440, title="Every point is an image",
).update_layout(legend_title_text="")  # fmt: skip

# %% [markdown]
# A good model covers the real cloud: it is neither elsewhere nor only in a part of it. The Fréchet distance
# {cite}`heusel2017fid` takes each cloud for a normal distribution and compares centres and shapes:
#
# $$ \mathrm{FID} = \lVert \mu_1 - \mu_2 \rVert^2
# + \mathrm{tr}\left(\Sigma_1 + \Sigma_2 - 2\,(\Sigma_1\Sigma_2)^{1/2}\right) $$


# %%
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
            "by hand, in the plane above": frechet(flat["real"], flat[name]),
            "fidelity.fid, in the plane above": fidelity.fid(flat["real"], flat[name]),
            f"fidelity.fid, all {classifier.num_features} features": fidelity.fid(
                features["real"], features[name]
            ),
        }
        for name in ("base", now, "other real")
    }
).round(3)

# %% [markdown]
# The last column is the floor: even real images of other patients are not at zero. Part of that is chance, and FID
# counts chance as distance, the more the fewer images there are. KID {cite}`binkowski2018kid`, an unbiased kernel
# distance, does not.

# %%
rng, most = np.random.default_rng(0), min(len(others), len(prompts))
sizes = sorted({max(4, round(most * share)) for share in (0.125, 0.25, 0.5, 1)})
trials = []
for n in sizes:
    for name in ("other real", now):
        for _ in range(10):
            some = features[name][rng.permutation(len(features[name]))[:n]]
            trials += [(n, name, "FID", fidelity.fid(features["real"], some))]
            trials += [
                (n, name, "KID", fidelity.kid(features["real"], some, subsets=20)[0])
            ]
trials = pd.DataFrame(trials, columns=["images", "compared with real", "score", "value"])
means = trials.groupby(["score", "compared with real", "images"], sort=False)[
    "value"
].mean()
px.line(
    means.reset_index(), x="images", y="value", color="compared with real", symbol="compared with real",
    facet_col="score", facet_col_spacing=0.1, template=plots.TEMPLATE, height=380, labels={"value": ""},
    title="The same images, but fewer of them (mean of ten draws)",
).update_yaxes(matches=None, showticklabels=True).update_layout(**panels).for_each_annotation(plain)  # fmt: skip

# %% tags=["hide-input"]
few, many = (
    {score: means[score, "other real", n] for score in ("FID", "KID")}
    for n in (sizes[0], sizes[-1])
)
Markdown(
    f"Real against real, {sizes[0]} images have an FID of {few['FID']:.2f} and {sizes[-1]} of {many['FID']:.2f}"
    + (": they did not become more real, only more. " if few["FID"] > many["FID"] else ". ")
    + f"The KID is {few['KID']:.3f} and {many['KID']:.3f}. FIDs of different numbers of images must not be compared."
)

# %% [markdown]
# The more images, the nearer FID comes to what infinitely many would have; against one over their number it is nearly a
# straight line, and where that line meets zero is *FID∞* {cite}`chong2020unbiased`. With fewer images than features
# the line bends: read it as a correction, not as a result.

# %%
trend = {
    name: fidelity.fid_infinity(
        features["real"], features[name], smallest=most // 4, draws=10
    )
    for name in ("other real", now)
}
points = pd.concat(
    pd.DataFrame({"1 / images": 1 / t.sizes, "FID": t.fids, "compared with real": name})
    for name, t in trend.items()
)
figure = px.scatter(
    points, x="1 / images", y="FID", color="compared with real", symbol="compared with real", template=plots.TEMPLATE,
    height=380, range_x=[0, None], title="Where FID goes with ever more images",
)  # fmt: skip
for t, trace in zip(trend.values(), tuple(figure.data), strict=True):
    end = 1 / t.sizes.min()
    figure.add_scatter(
        x=[0, end], y=[t.estimate, t.estimate + t.slope * end], mode="lines", showlegend=False,
        line={"color": trace.marker.color, "dash": "dash"},
    )  # fmt: skip
figure

# %% [markdown]
# FID is one number for two failings. *Precision* is the share of generated images that lie near a real one, *recall* the
# share of real images that lie near a generated one {cite}`kynkaanniemi2019precision`: real, and varied. *Density* and
# *coverage* {cite}`naeem2020reliable` ask the same of neighbourhoods around real images only, so that one outlier counts
# for less.

# %%
pd.DataFrame(
    {
        name: {
            score: f"{interval:.2f}"
            for score, interval in fidelity.scores(
                features["real"],
                features[name],
                groups=None if name == "other real" else prompts,
                real_groups=patients,
                resamples=0,
            ).items()
            if score != "fid"
        }
        for name in ("base", now, "other real")
    }
).T

# %% [markdown]
# ## Varied?
#
# A model that draws one good image for a prompt again and again fools the classifier, and nearly FID. MS-SSIM
# {cite}`wang2003msssim` is 1 for two equal images. We compare images of the *same prompt*: near 1 is mode collapse.
# What to aim at is the similarity of two real images that have the same findings.

# %%
alike = fidelity.ms_ssim_by_group(drawn[last], prompts)
ranked = sorted(alike, key=alike.get)
extremes = list(dict.fromkeys([ranked[0], ranked[-1]]))
rows = [
    np.flatnonzero(np.array(prompts) == text)[: min(4, settings.sampling.per_prompt)]
    for text in extremes
]
plots.images(
    drawn[last][np.concatenate(rows)],
    titles=[
        f"{alike[text]:.2f}: {text}"
        for text, row in zip(extremes, rows, strict=True)
        for _ in row
    ],
    columns=len(rows[0]),
    title=f"The most and the least varied prompt at step {last}, with MS-SSIM",
)

# %% [markdown]
# ## Asked for?
#
# The classifier looks at each generated image and gives every finding a probability. The AUC is the chance that an
# image whose prompt names the finding gets a higher one than an image whose prompt does not: 0.5 is a model that does
# not listen. The prompt counts, not the labels of its study: an impression leaves out some findings, and what was not
# said was not asked for.

# %%
named = {
    "real images": reference["classifier_auc_real_by_finding"],
    "base": scores[0]["classifier_auc_by_finding"],
    now: scores[last]["classifier_auc_by_finding"],
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
).astype({"low": float, "high": float})
plots.scores_by_finding(
    table,
    "classifier AUC",
    "Does the image show what the prompt names? (n: images asked for it)",
)

# %% [markdown]
# A finding that no prompt asks for has no AUC, and one that few prompts ask for has a wide interval: the images of one
# prompt are one request, and are resampled together.
#
# ## Of use?
#
# That test is easily passed: one good image of a finding, repeated, is enough. A harder one turns it round
# {cite}`ravuri2019cas`. A new classifier learns from the generated images alone, and is tested on *real* ones. What it
# can reach is what the same lesson from as many real training images reaches; chance is 0.5.


# %%
def small(images):
    """No larger than a classifier needs."""
    side = min(size, 128)
    return np.stack([Frame(*image.shape, side, fit).image(image) for image in images])


pupils, kept_pupils, _ = to_images(profiles.sample(train, len(prompts)), size, fit)
pupils_labels = np.stack([s.labels() for s in kept_pupils])
lessons = {
    "real images": (pupils, pupils_labels, profiles.profile_folder(settings, out)),
    now: (drawn[last], labels, run),
}
learnt = {
    name: fidelity.transfer_auc(
        (small(images), shows),
        (small(real), real_labels),
        folder / "transfer",
        fidelity.Training(name, epochs=20),
        patients=patients,
    )
    for name, (images, shows, folder) in lessons.items()
}
for name, suffix in ((now, ""), ("real images", "_real")):
    for end, value in vars(learnt[name]["macro"]).items():
        key = f"transfer_auc{suffix}" + ("" if end == "estimate" else f"_{end}")
        scores[last][key] = float(value) if np.isfinite(value) else None

# %%
count = dict(zip((*FINDINGS, "all"), [*real_labels.sum(0), len(real)], strict=True))
learnt_table = pd.DataFrame(
    {
        "finding": "all" if finding == "macro" else finding,
        "variant": f"learnt from {name}",
        "mean": v.estimate,
        "low": v.low,
        "high": v.high,
        "chance": 0.5,
    }
    for name, found in learnt.items()
    for finding, v in found.items()
    if np.isfinite(v.estimate)
)
plots.scores_by_finding(
    learnt_table.assign(n=learnt_table["finding"].map(count)),
    "AUC on real images",
    "What generated images teach (n: real images that show it)",
)

# %% tags=["hide-input"]
taught, limit = learnt[now]["macro"], learnt["real images"]["macro"]
if not taught.low > 0.5:
    teaches = "It cannot be told that the generated images teach anything"
elif taught.high < limit.low:
    teaches = "The generated images teach, but less than real ones"
else:
    teaches = "The generated images teach, and it cannot be told that they do so less than real ones"
Markdown(
    f"Averaged over findings, {len(prompts)} generated images teach an AUC of **{taught}**, {len(pupils)} real ones of "
    f"**{limit}**. {teaches}. Both intervals are over test patients; they do not cover another training."
)

# %% [markdown]
# Real images lose to many more real ones here: compare the classifier above. So read the lesson against that of as many
# real images, never by itself.
#
# ## The answer: over the checkpoints

# %%
names = {
    "fid": "FID ↓",
    "ms_ssim": "MS-SSIM within a prompt",
    "classifier_auc": "classifier AUC ↑",
}
curves = pd.DataFrame(
    {
        "step": step,
        "score": name,
        "images": images,
        **vars(interval(numbers, column + suffix)),
    }
    for step, numbers in scores.items()
    for column, name in names.items()
    for images, suffix in ((variant, ""), ("real", "_real"))
)
px.line(
    curves.assign(up=curves["high"] - curves["estimate"], down=curves["estimate"] - curves["low"]),
    x="step", y="estimate", error_y="up", error_y_minus="down", color="images", symbol="images", line_dash="images",
    facet_col="score", facet_col_spacing=0.08, template=plots.TEMPLATE, height=420,
    color_discrete_map={variant: plots.VARIANTS[variant], "real": "#555555"},
    labels={"estimate": "", "step": "training step"},
    title=f"Fidelity over fine-tuning, {variant} text encoder (95 % intervals)",
).update_yaxes(matches=None, showticklabels=True).update_layout(**panels).for_each_annotation(plain)  # fmt: skip

# %% [markdown]
# The numbers go into the run's folder, for the next chapter. At the end they are:

# %%
about = settings.sampling.model_dump() | {
    "resamples": resamples,
    "fit": fit,
    "precision": settings.finetune.precision,
}
by_step = {str(step): numbers for step, numbers in scores.items()}
runs.write_json(
    run / "fidelity.json",
    {"classifier": classifier.description, "settings": about, "steps": by_step},
)
tradeoff.summary(
    pd.DataFrame(
        {"variant": name, "seed": seed, "step": k} | scores[k]
        for k, name in ((0, "base"), (last, now))
    )
)

# %% tags=["hide-input"]
fid, similar, told = (
    [interval(scores[k], name) for k in (0, last)]
    for name in ("fid", "ms_ssim", "classifier_auc")
)
floor, similar_real = interval(reference, "fid_real"), interval(reference, "ms_ssim_real")


def above(a, b):
    """Whether a − b is above 0: the lower bound of the difference, from both intervals (Zou & Donner 2008)."""
    return a.estimate - b.estimate > np.hypot(a.estimate - a.low, b.high - b.estimate)


more = (
    "more real" if above(fid[0], fid[1]) else "less real" if above(fid[1], fid[0]) else None
)
vary = (
    "less"
    if above(similar[1], similar_real)
    else "more"
    if above(similar_real, similar[1])
    else "about as"
)
lines = [
    f"The images have become {more}."
    if more
    else "Whether the images have become more or less real cannot be told.",
    "They are not yet as real as real images."
    if above(fid[1], floor)
    else "So few images do not tell whether they are less real than real ones.",
    f"For one prompt they are {vary} varied {'as' if vary == 'about as' else 'than'} real images with equal findings"
    + (" (or noisier)." if vary == "more" else "."),
    "It cannot be told that they show what the prompt names."
    if not told[1].low > 0.5
    else "They show what the prompt names, and better than the base's."
    if above(told[1], told[0])
    else "They show what the prompt names, but it cannot be told that they do so better than the base's.",
]
Markdown("By these intervals:\n\n" + "\n".join(f"- {line}" for line in lines))

# %% [markdown]
# The interval of the FID resamples prompts and patients; that of KID is the spread over subsets. None covers another
# training: for that, seeds are needed.
#
# ## Or is it memory?
#
# A model that copies its training images has an excellent FID. So for each generated image we look up the nearest
# training image in the feature space, and ask how near an image may be by chance: as near as *unseen real* images are.

# %%
seen = to_images(profiles.sample(train, 5000), size, fit)[0]
train_features = fidelity.features(classifier, seen)
memory = fidelity.memorisation(
    train_features,
    features[now],
    np.concatenate([features["real"], features["other real"]]),
    groups=prompts,
    # Would a copy be found? Plant some: training images with a little noise.
    planted=fidelity.features(classifier, fidelity.copies(seen)),
)
closest = np.argsort(memory.distance)[:4]
plots.images(
    np.concatenate([drawn[last][closest], seen[memory.nearest[closest]]]),
    titles=[f"generated, distance {d:.2f}" for d in memory.distance[closest]]
    + ["nearest training image"] * len(closest),
    columns=len(closest),
    title="The generated images that are nearest to a training image, and that image",
)

# %% tags=["hide-input"]
Markdown(
    f"{memory.closer:.0%} of the generated images are nearer to one of {len(seen)} (of {len(train)}) training images than 95 "
    "of 100 unseen real images are; chance is 5 %. "
    + (
        "That is more. It need not be copying, for a smooth, typical chest is near to many: compare the pairs above. "
        if memory.closer.low > 0.05
        else "That is no more than chance: no sign of memory. "
    )
    + f"Of the planted copies {memory.detected:.0%} are that near."
)

# %% [markdown]
# ## Which measure notices what?
#
# Every measure has a failing that it does not see. So let us fail on purpose. We take real images, spoil them in ways
# that models do, and score them as if they had been generated; their own findings stand for the prompts.

# %%
most = min(len(others), len(pupils))
whole, shows = others[:most], others_labels[:most]
kind = np.where(shows.any(axis=1), shows.argmax(axis=1), -1)
first = [int(np.flatnonzero(kind == k)[0]) for k in kind]
grain = np.random.default_rng(0).normal(0, 24, whole.shape)
healthy, part = kind < 0, slice(0, max(8, most // 4))
spoiled = {
    "other patients": (whole, shows),
    "fewer of them": (whole[part], shows[part]),
    "only without a finding": (whole[healthy], shows[healthy]),
    "copies of training images": (fidelity.copies(pupils, most), pupils_labels[:most]),
    "one image a finding": (fidelity.copies(whole[first], most), shows),
    "four images": (fidelity.copies(whole[np.arange(most) % 4], most), shows),
    "blur": (np.stack([gaussian_filter(x, size / 64) for x in whole]), shows),
    "noise": ((whole + grain).clip(0, 255).astype(np.uint8), shows),
}
# Fewer have too few neighbours, or no two with the same findings.
spoiled = {name: pair for name, pair in spoiled.items() if len(pair[0]) >= 8}
rows = min(3, *(len(images) for images, _ in spoiled.values()))
plots.images(
    np.concatenate([images[[i]] for i in range(rows) for images, _ in spoiled.values()]),
    titles=[*spoiled, *[""] * (rows - 1) * len(spoiled)],
    columns=len(spoiled),
    title="The first images of each set",
)

# %%
measures = {
    "fid": "FID ↓", "kid": "KID ↓", "precision": "precision ↑", "recall": "recall ↑", "density": "density ↑",
    "coverage": "coverage ↑", "ms_ssim": "MS-SSIM ↓", "classifier_auc": "classifier AUC ↑", "memory": "near training ↓",
}  # fmt: skip


def judged(images, shows, n):
    """Every measure of one set; intervals from n resamples."""
    values = fidelity.features(classifier, images)
    found = fidelity.scores(features["real"], values, real_groups=patients, resamples=n)
    kid, std = fidelity.kid(features["real"], values, subsets=50)
    auc = fidelity.classifier_auc(fidelity.predict(classifier, images), shows, n=max(n, 2))
    alike = [str(row) for row in shows.astype(int).tolist()]
    if len(set(alike)) == len(alike):
        alike = None  # no two of them have the same findings: any two are compared
    return found | {
        "kid": Interval(kid, kid - 2 * std, kid + 2 * std),
        "ms_ssim": replace(
            similar_real, estimate=fidelity.ms_ssim(images, alike, pairs=20)
        ),
        "classifier_auc": auc["macro"],
        "memory": fidelity.memorisation(
            train_features, values, features["real"], n=n
        ).closer,
    }


reactions = {
    name: judged(*pair, resamples if name == "other patients" else 0)
    for name, pair in spoiled.items()
}

# %%
fair = reactions["other patients"]
values = pd.DataFrame(
    {name: {m: row[m].estimate for m in measures} for name, row in reactions.items()}
).T
half = pd.Series({m: max((fair[m].high - fair[m].low) / 2, 1e-9) for m in measures})
better = pd.Series({m: 1 if label.endswith("↑") else -1 for m, label in measures.items()})
# In widths of chance: below −1, the measure says "worse than real images of other patients".
change = (values - values.loc["other patients"]) / half * better
figure = px.imshow(
    change.rename(columns=measures), zmin=-4, zmax=4, color_continuous_scale="RdBu", aspect="auto", height=440,
    template=plots.TEMPLATE, labels={"color": "change,<br>in half-widths<br>of the interval"},
    title="Spoiled real images: red is worse, blue better, pale chance",
)  # fmt: skip
figure.update_traces(
    text=[["–" if np.isnan(v) else f"{v:.2f}" for v in row] for row in values.to_numpy()],
    texttemplate="%{text}",
)
figure.update_xaxes(side="top", title="").update_yaxes(title="")

# %% tags=["hide-input"]
lines = []
for m, label in measures.items():
    missed = [
        name
        for name in change.index[1:]
        if np.isfinite(change.loc[name, m]) and change.loc[name, m] > -1
    ]
    lines.append(
        f"**{label[:-2]}** has no quarrel with: {'; '.join(missed) or 'none of them'}"
    )
Markdown("\n".join(f"- {line}." for line in lines))

# %% [markdown]
# Read the figure by row. *Fewer of them* are as real as all; what turns red there depends on the number of images. *Only
# without a finding* is a real crowd, but another one, and smooth chests are near to many. *Copies* are what the look at the
# training images is for. In *one image a finding* every image is good and shows what it should: the measures of variety
# must notice. *Noise* is the trap of MS-SSIM, which takes grain for variety. Then read it by column: is any red where, and
# only where, something is wrong?
#
# ## Exercises
#
# **1.** Guidance pushes towards the prompt. Draw two prompts with no guidance (1) and with a lot (8). What happens to
# MS-SSIM, and to the images?

# %% tags=["hide-cell"]
some = slice(0, 2 * settings.sampling.per_prompt)
by_guidance = {settings.sampling.guidance: drawn[last][some]}
for guidance in (1.0, 8.0):
    changed = settings.sampling.model_copy(update={"guidance": guidance})
    path = run / "samples" / f"guidance-{guidance:g}.safetensors"
    by_guidance[guidance] = fidelity.sample(pipeline, prompts[some], changed, path)
# Usually: the more guidance, the more pronounced is what the prompt names, and the more alike are its images.
by_guidance = dict(sorted(by_guidance.items()))
display(
    pd.DataFrame(
        {"MS-SSIM": {g: fidelity.ms_ssim(x, prompts[some]) for g, x in by_guidance.items()}}
    ).round(3)
)
plots.images(
    np.concatenate([x[:4] for x in by_guidance.values()]),
    titles=[
        f"guidance {g:g}: {p}"
        for g, x in by_guidance.items()
        for p in prompts[: len(x[:4])]
    ],
)

# %% [markdown]
# **2.** How much blur does FID see? Blur the *other real* images more and more, and compare them with the real ones.

# %% tags=["hide-cell"]
# Every patient and finding is still there, only texture goes. A feature space that was trained to name findings may
# overlook a little blur: FID sees what its features see.
blurred = {
    sigma: np.stack([gaussian_filter(x, sigma * size / 64) for x in others])
    for sigma in (0, 0.5, 1, 2, 4)
}
pd.DataFrame(
    {
        "blur (pixels of 64)": sigma,
        "FID": fidelity.fid(features["real"], fidelity.features(classifier, x)),
        "KID": fidelity.kid(features["real"], fidelity.features(classifier, x))[0],
        "MS-SSIM of any two": fidelity.ms_ssim(x),
    }
    for sigma, x in blurred.items()
).set_index("blur (pixels of 64)").round(3)

# %% [markdown]
# **3.** Networks want their pixels scaled, and it is easily done twice, or for one of the two sets only. What does
# `fidelity.features` say to images in [0, 1]? What would the FID be if it took them? And what if one set is inverted,
# as files are that say MONOCHROME1?

# %% tags=["hide-cell"]
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
        "FID": fidelity.fid(features["real"], fidelity.features(classifier, x)),
    }
    for name, x in mistakes.items()
).round(2)

# %% [markdown]
# **4.** The classifier knows "effusion", but not left from right. Find a score of an image that does, try it on real
# images, and then on generated ones.

# %% tags=["hide-cell"]
# Most findings are brighter than air. The patient's left is the image's right half: is it the brighter one?
bright = {"Atelectasis", "Consolidation", "Lung Opacity", "Pleural Effusion", "Pneumonia"}


def sided(found):
    """The one side, "left" or "right", that all bright findings are on; else None."""
    sides = {f.side for f in found if f.present and f.name in bright}
    return sides.pop() if len(sides) == 1 and sides < {"left", "right"} else None


def side_auc(images, sides, groups):
    """AUC of the difference of brightness between the two halves for "left" against "right"."""
    rows = np.flatnonzero([side is not None for side in sides])
    left = np.array([sides[i] == "left" for i in rows])
    if left.all() or not left.any():
        return "not both sides were asked for"
    brighter = images[rows][:, :, size // 2 :].mean(axis=(1, 2)) - images[rows][
        :, :, : size // 2
    ].mean(axis=(1, 2))
    auc = lambda y, x: roc_auc_score(y, x) if 0 < y.sum() < len(y) else np.nan  # noqa: E731
    return bootstrap_statistic((left, brighter), auc, [groups[i] for i in rows], n=200)


asked_side = [sided(reports.find(p)) for p in prompts]
print("real images:", side_auc(real, [sided(s.findings) for s in kept], patients))
for step, images in drawn.items():
    print(f"step {step}:", side_auc(images, asked_side, prompts))

# %% [markdown]
# **5.** *One image a finding* shows what it should. Would it make a good textbook? Let a classifier learn from it.

# %% tags=["hide-cell"]
# The classifier knows each finding in it. But who has seen one effusion may not know the next.
images, shows = spoiled["one image a finding"]
book = fidelity.transfer_auc(
    (small(images), shows),
    (small(real), real_labels),
    run / "transfer-collapsed",
    fidelity.Training("one image a finding", epochs=20),
    patients=patients,
)
pd.DataFrame(
    {
        "classifier AUC": {
            "one image a finding": fidelity.classifier_auc(
                fidelity.predict(classifier, images), shows
            )["macro"],
            now: interval(scores[last], "classifier_auc"),
        },
        "learnt from it: AUC on real images": {
            "one image a finding": book["macro"],
            now: learnt[now]["macro"],
        },
    }
).map(str)

# %% [markdown]
# **6.** Balls around images are easily misled. Put one picture of pure noise among the *real* images: what do precision and
# density say then of the noisy set? And draw each of a few good images four times over: what do recall and coverage say?

# %% tags=["hide-cell"]
# The outlier's neighbours are far away: its ball is huge, and one picture makes others precise. Density counts over all
# balls. An image and its three copies have tiny balls around them, which hold nothing else: recall says that the images
# are not varied, though as many are as before. Coverage has its balls around the real images.
static = np.random.default_rng(0).integers(0, 256, (1, size, size)).astype(np.uint8)
outlier = fidelity.features(classifier, static)
noisy = fidelity.features(classifier, spoiled["noise"][0])
few = whole[: max(4, most // 4)]
fours = fidelity.copies(np.repeat(few, 4, axis=0), 4 * len(few))
pairs = {
    "noise": (features["real"], noisy),
    "noise, an outlier among the real": (
        np.concatenate([features["real"], outlier]),
        noisy,
    ),
    "a few good images": (features["real"], fidelity.features(classifier, few)),
    "the same, each four times": (features["real"], fidelity.features(classifier, fours)),
}
pd.DataFrame(
    {
        name: {
            score: found.estimate
            for score, found in fidelity.scores(*pair, resamples=0).items()
        }
        for name, pair in pairs.items()
    }
).T.drop(columns="fid").round(2)

# %% [markdown]
# **7.** Our search for copies found the planted ones. Would it find a copy that is noisier, shifted by two pixels, or
# mirrored?

# %% tags=["hide-cell"]
# What the feature space takes for something else is not found. No search can say that nothing was copied, only that
# nothing was copied in a way that it would have found.
planted = {f"noise of {level}": fidelity.copies(seen, noise=level) for level in (4, 16, 32)}
planted |= {"shifted": np.roll(seen[:32], 2, axis=2), "mirrored": seen[:32, :, ::-1].copy()}
pd.Series(
    {
        name: fidelity.memorisation(
            train_features,
            features[now],
            features["real"],
            planted=fidelity.features(classifier, images),
            n=0,
        ).detected
        for name, images in planted.items()
    },
    name="share of copies found",
).to_frame()

# %% [markdown]
# ## Takeaways
#
# - FID and KID compare crowds, not images; they depend on the feature space, and FID on the number of images.
# - The floor is not zero: real images of other patients set it.
# - MS-SSIM within a prompt sees mode collapse, the classifier's AUC sees whether the prompt is obeyed, a look at the
#   nearest training image sees copies. A model can be good at one of these and bad at the others, and each can be fooled:
#   by grain, by one image a finding, by a copy that the feature space does not know again.
# - Whether images are of use is best asked by using them: train on generated, test on real.
# - None of them says *where* the model looks when it reads a word. That was chapter 3; chapter 6 puts both together.

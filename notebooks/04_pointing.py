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
# # 4 Do the maps point?
#
# **Does the map of a disease's name point at the disease? Because of the image, and because of the word?**
#
# Chapter 3 made a heatmap for each phrase, and the finding's true place, the *target*, is known. Two scores say whether
# they agree: AUC-ROC looks at the order of all pixels, the *pointing game* at the hottest one. Each stands beside
# chance and beside the location prior ({numref}`fig-prior`). But a map may fit without the model having looked. So we
# also swap the image, mirror the side and exchange the word.
#
# *You will be able to* read AUC-ROC and the pointing game, compare them with what needs no image, and tell whether a
# map comes from the image, from the word, or from where findings usually are.
# *Before:* chapter 3.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variants = ["frozen", "learnable"]
seeds = [0]
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import copy
import warnings
from functools import partial

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import ndimage

from chestxai import (
    baselines,
    faithfulness,
    finetune,
    grounding,
    localization,
    models,
    plots,
    profiles,
    sides,
    stats,
    tradeoff,
)
from chestxai import sentences as say
from chestxai.sources import phantom
from chestxai.studies import FINDINGS, Box, Frame, phrases

# %%
# The tables say how many patients there are; chapter 8 measures what few of them mean for an interval.
warnings.simplefilter("ignore", stats.FewGroupsWarning)
settings = profiles.load(profile)
plots.setup(settings.variants)
folders = {v: [profiles.run(settings, v, s, out).folder for s in seeds] for v in variants}
size = models.image_size(models.load_base(settings, device="cpu"))
test = phrases(profiles.studies(settings, "test", data, boxes=True))
resamples = settings.statistics.resamples

# %%
tables, maps = {}, {}
for variant in variants:
    run = profiles.run(settings, variant, seeds[0], out)
    tables[variant], maps[variant] = run.last_maps()


def frame_of(truth):
    """From the original image to the model's frame."""
    return Frame(*truth.study.size, size, settings.data.fit)


def frame_of_study(study):
    """The image of a study in the model's frame."""
    return Frame(*study.size, size, settings.data.fit).image(study.pixels())


rows = sorted(set.intersection(*map(set, maps.values())))
masks = {i: frame_of(test[i]).mask(test[i].finding) for i in rows}
grid = maps[variants[0]][rows[0]].shape
auc = pd.DataFrame({v: t["auc_roc"] for v, t in tables.items()}).loc[rows]

# %% tags=["remove-input", "aggregate"]
again = [localization.auc_roc(maps[v][i], masks[i]) for v in variants for i in rows[:5]]
stored = [auc.loc[i, v] for v in variants for i in rows[:5]]
assert np.allclose(again, stored, atol=1e-3), "maps and scores differ: run chapter 3 again"
kept = pd.Series({i: localization.kept(test[i].finding, frame_of(test[i])) for i in rows})
Markdown(
    f"{len(rows)} phrases of {len({test[i].study.patient for i in rows})} patients, each with a heatmap of {grid[0]} × "
    f"{grid[1]} from each variant's first seed at its last checkpoint. Maps are enlarged bilinearly to the model's image of "
    f"{size} × {size} pixels and scored there, without normalisation or smoothing. "
    + (
        f"Fitting radiographs into that square cuts off a part of {say.words.counted((kept < 0.995).sum(), 'target')}; of the "
        f"worst, {kept.min():.0%} of the area is left."
        if kept.min() < 0.995
        else "No target is cut off by fitting radiographs into that square."
    )
)

# %% [markdown]
# ## One map
#
# The white outline is the target. Beside the variants' maps stands the location prior, which has not seen the image.
# The phrase is one on which the variants do better than on most. Where is each map brightest?

# %%
train_studies = profiles.studies(settings, "train", data, boxes=True)
train = phrases(train_studies)
# Some sources have boxes for val and test only.
elsewhere = train or phrases(profiles.studies(settings, "val", data, boxes=True))
prior = localization.location_priors(elsewhere, size, settings.data.fit)
anywhere = localization.location_prior(frame_of(t).mask(t.finding) for t in elsewhere)

# %%
ranked = auc.mean(axis=1).sort_values()
whole = [i for i in ranked.index if ndimage.label(masks[i])[1] == 1] or list(ranked.index)
example = whole[int(0.75 * (len(whole) - 1))]
mask, finding = masks[example], test[example].finding
picture = frame_of(test[example]).image(test[example].study.pixels())
raw = maps[variants[0]][example]
heat = localization.resize(raw, mask.shape)

shown = {"location prior": prior[finding.name], **{v: maps[v][example] for v in variants}}
plots.overlays(
    [picture] * len(shown),
    list(shown.values()),
    masks=[mask] * len(shown),
    titles=list(shown),
    title=f"“{finding.phrase}”",
    scale="heat",
)

# %% [markdown]
# ## The order of all pixels: AUC-ROC
#
# AUC-ROC is the probability that a random pixel of the target is hotter than a random pixel outside: 1 is perfect, 0.5
# is chance. The less the histograms of the values inside and outside overlap, the higher it is.

# %%
plots.histogram(
    heat, mask, title=f"{variants[0]}: AUC-ROC {localization.auc_roc(heat, mask):.2f}"
)

# %% [markdown]
# **What it misses.** Most pixels are easy. It takes no insight to know that the disease is not in the black corners, in
# the neck or below the diaphragm, yet each of these pixels counts as much as one beside the finding. How far does one
# map get that is the same for every image and *every finding*, the mean mask of all findings of other patients?

# %% tags=["aggregate"]
blind = pd.Series({i: localization.auc_roc(anywhere, masks[i]) for i in rows})
means = pd.Series({"one map for everything": blind.mean(), **auc.mean()}, name="AUC-ROC")
means.round(3).to_frame().T

# %% tags=["remove-input", "aggregate"]
patients = [test[i].study.patient for i in rows]
gaps = {v: stats.paired_difference(auc[v], blind, patients, n=resamples) for v in variants}
Markdown(
    f"This map, which knows neither image nor finding, reaches {blind.mean():.3f}. An AUC-ROC says little without such a map "
    "beside it.\n\n"
    + "\n".join(
        say.localization.against(v, {"one map for everything": d}) for v, d in gaps.items()
    )
)

# %% [markdown]
# ## The hottest pixel: the pointing game
#
# The pointing game asks whether the hottest pixel is in the target {cite}`zhang2018excitation`, which is what a user
# who is shown one spot wants to know. The score is the share of maps that hit. Chance is the share of the image that
# the target fills.
#
# Some papers forgive a near miss. Zhang et al. accept a maximum up to 15 pixels from the target, in photographs some
# 500 pixels wide; in a smaller image the same 15 pixels forgive far more. Compare no tolerance, the same *share* of the
# width as theirs, and 15 pixels. Yellow is where a maximum counts as a hit; its share of the image is chance. The small
# box marks the map's maximum.

# %%
tolerances = [0, round(15 * size / 500, 2), 15]
away = {i: ndimage.distance_transform_edt(~masks[i]) for i in rows}
y, x = np.unravel_index(np.argmax(localization.resize(raw, mask.shape)), mask.shape)
plots.overlays(
    [picture] * len(tolerances),
    [(away[example] <= t).astype(np.float32) for t in tolerances],
    masks=[mask] * len(tolerances),
    boxes=[[("", Box(x - 1, y - 1, 3, 3))]] * len(tolerances),
    titles=[
        f"{t} pixels, {(away[example] <= t).mean():.0%} of the image: "
        + ("a hit" if localization.pointing_game(raw, mask, t) else "a miss")
        for t in tolerances
    ],
    title=f"What a tolerance forgives a map of {variants[0]}",
    scale=plots.Scale("a hit", (0, 1)),
)

# %% tags=["aggregate"]
guesses = {"location prior": {i: prior[test[i].finding.name] for i in rows}, **maps}
pd.DataFrame(
    {
        "chance": [np.mean([(away[i] <= t).mean() for i in rows]) for t in tolerances],
        **{
            name: [
                np.mean([localization.pointing_game(some[i], masks[i], t) for i in rows])
                for t in tolerances
            ]
            for name, some in guesses.items()
        },
    },
    index=pd.Index([f"{t} pixels" for t in tolerances], name="tolerance"),
).round(3)

# %% tags=["remove-input", "aggregate"]
Markdown(
    "**What it misses.** It sees one pixel and ignores all others. A map may be right everywhere but at its maximum, or "
    f"wrong everywhere else and lucky. A map of {grid[0]} × {grid[1]} also locates its maximum only to within "
    f"{size / grid[0]:.0f} pixels, more than some targets are wide. A tolerance of 15 pixels is {15 / size:.0%} of the width "
    f"here and {15 / 500:.0%} in a photograph, so it must be reported with the image's size. And a hit is 0 or 1, so the pointing game "
    f"needs many phrases: with {len(rows)}, its standard error is up to {0.5 / np.sqrt(len(rows)):.2f}."
)

# %% [markdown]
# ## The answer: where findings are, and where they usually are
#
# {numref}`fig-auc-by-finding` and {numref}`fig-pointing-game-by-finding` show the mean score of each finding with its
# 95 % confidence interval. It covers what other *patients* might have given: patients are resampled, each with all of
# their phrases (a bootstrap, which chapter 8 checks). With several seeds it covers other seeds, too. The ring is the
# score on images of other patients without the finding, read at fewer timesteps (*The image swap*, below), the diamond
# the location prior, the bar chance.

# %% tags=["aggregate"] name="fig-auc-by-finding"
every = [folder for several in folders.values() for folder in several]
plots.scores_by_finding(
    tradeoff.by_finding(every, "auc_roc", n=resamples),
    "AUC-ROC",
    title="AUC-ROC by finding (number of phrases)",
)

# %% tags=["aggregate"] name="fig-pointing-game-by-finding"
plots.scores_by_finding(
    tradeoff.by_finding(every, "pointing_game", n=resamples),
    "pointing game",
    title="Pointing game by finding (number of phrases)",
)

# %% tags=["remove-input", "aggregate"]
lines, beyond = [], {}
for variant, table in tables.items():
    differences = {
        name: stats.paired_difference(
            table["auc_roc"], table[f"{prefix}_auc_roc"], table["patient"], n=resamples
        )
        for name, prefix in {"chance": "chance", "the location prior": "prior"}.items()
    }
    beyond[variant] = differences["the location prior"]
    lines.append(say.localization.against(variant, differences))
Markdown(
    "Differences on the same phrases, at the last checkpoint of the first seed, with 95 % intervals:\n\n"
    + "\n".join(lines)
)

# %% [markdown]
# ## Does the map depend on the image? The image swap
#
# The location prior scores high without the image. Does the model's map need it? We give the model images of other
# patients *without* the finding, with the same prompt and the same noise, and score these maps on the same target. What
# the score loses, the *gain*, is what the image contributed. In {numref}`fig-swap`, a map that stays as it is on other
# images does not come from this one. The rows of the table:
#
# - *gain*: what the image adds; 0 means that any image would do. It uses fewer timesteps, the same for own and swapped
#   images, so it is not exactly the difference of the two rows below it. Below the table we see by how much.
# - *another patient's map*: the model's map for the same finding, side and zone in another patient. A map that scores
#   more has used more than these words.
# - *prior of the text*: the mean mask of that finding, side and zone. It holds most of what the words can tell (it
#   ignores words for size).
# - *shuffled AUC*: the target is compared only with places where other patients have the finding, so knowing the usual
#   place helps little.
# - *within the field*: only pixels count that some finding of other patients covers, so black corners and neck give
#   nothing.
# - *average precision*: how much of the hottest pixels is target, averaged over all cuts. Chance is the target's share
#   of the image, so it is low for small targets (chapter 5).
# - *the map's peak*: the share of swapped images on which it is lower; chance is 0.5.

# %% name="fig-swap"
step = int(tables[variants[0]]["step"].iloc[0])
run = profiles.run(settings, variants[0], seeds[0], out)
probes = run.probes(step)
pool = profiles.studies(settings, "val", data, boxes=True)
swapped = faithfulness.swap_images(test[example].study, pool, 3)
row = list(tables[variants[0]].index).index(example)
pictures = [picture, *(frame_of_study(pool[j]) for j in swapped)]
plots.overlays(
    pictures,
    [probes["own"][row], *probes["swap"][row][: len(swapped)]],
    masks=[mask] * len(pictures),
    titles=["own image", *(f"swapped image {k + 1}" for k in range(len(swapped)))],
    title=f"{variants[0]}: “{finding.phrase}” on images of other patients without it",
)


# %% tags=["aggregate"]
def estimated(columns, tables=tables):
    """Mean and interval of each column, for each table; columns that no phrase has are left out."""
    out = {}
    for variant, table in tables.items():
        for column, name in columns.items():
            part = table[table[column].notna()] if column in table else table[:0]
            if len(part):
                value = stats.bootstrap_ci(part[column], part["patient"], n=resamples)
                out.setdefault(name, {})[variant] = str(value)
    return pd.DataFrame(out).T


# %% tags=["aggregate"]
estimated(
    {
        "gain_auc_roc": "gain: own minus swapped",
        "swap_auc_roc": "AUC-ROC on swapped images",
        "auc_roc": "AUC-ROC on the own image (all timesteps)",
        "peer_auc_roc": "AUC-ROC of another patient's map, same finding, side and zone",
        "prior_auc_roc": "AUC-ROC of the location prior",
        "text_prior_auc_roc": "AUC-ROC of the prior of the text",
        "auc_roc_shuffled": "shuffled AUC (negatives where the finding usually is)",
        "swap_auc_roc_shuffled": "shuffled AUC on swapped images",
        "prior_auc_roc_shuffled": "shuffled AUC of the location prior",
        "auc_roc_field": "AUC-ROC within the field",
        "swap_auc_roc_field": "AUC-ROC within the field, swapped images",
        "prior_auc_roc_field": "AUC-ROC of the location prior within the field",
        "average_precision": "average precision",
        "swap_average_precision": "average precision on swapped images",
        "prior_average_precision": "average precision of the location prior",
        "presence": "the map's peak is lower on swapped images",
    }
)

# %% tags=["remove-input", "aggregate"]
lines = []
for variant, table in tables.items():
    some = table.dropna(subset=["gain_auc_roc"])
    apart = some["auc_roc"] - some["swap_auc_roc"] - some["gain_auc_roc"]
    mean = stats.bootstrap_ci(apart, some["patient"], n=resamples)
    direction = say.words.verb(
        mean, "clearly higher", "clearly lower", "not clearly higher or lower"
    )
    lines.append(
        f"`{variant}`: by {apart.abs().mean():.3f} on one phrase (mean absolute difference); on average it is {direction} "
        f"with all timesteps ({mean:+.3f})"
    )
Markdown(
    "By how much the AUC-ROC on the own image differs between all timesteps and the fewer ones of the gain:\n\n"
    + say.words.bullets(lines)
)

# %% [markdown]
# ## Does it know the side? The mirror test
#
# For a finding on one side: is the mean attention inside the target higher than inside its mirror image? Chance is 0.5.
# First the prompt names no side, so only the image can tell. Then comes the prompt as it is, and then one with the
# **wrong** side, so that word and image conflict: 1 means that the map follows the image, 0 that it follows the word.

# %% tags=["aggregate"]
estimated(
    {
        "mirror": "no side in the prompt",
        "mirror_sided": "true side in the prompt",
        "conflict": "wrong side in the prompt",
    }
)

# %% [markdown]
# Data sets of patients outline few findings, but most reports name a side. So the target can be the half of the image
# on that side, which lets more studies be tested. This test is coarser than the one above: the mean over half of the
# image contains little of a small finding, so values are closer to 0.5. No prompt names the side, and left and right
# count equally, so a map that always leans to one side scores 0.5.

# %% tags=["aggregate"]
studies = profiles.studies(settings, "test", data)
if settings.boxes == "phantom":  # all of them have masks; some are enough to compare
    studies = profiles.sample(studies, 40)
halves = {}
if sides.sided(studies):
    runs_of = {v: profiles.run(settings, v, seeds[0], out) for v in variants}
    halves = {
        v: sides.score_run(settings, r, studies, pool, step) for v, r in runs_of.items()
    }
Markdown(say.localization.sides(halves, resamples))

# %% [markdown]
# ## Does it depend on the word? The word test
#
# A map can follow the image and ignore the word, if it lights up whatever is conspicuous. So we take images with two
# findings in different places, divide the map of each name by its mean, and subtract one from the other. The test is
# passed if the mean of this difference is larger inside the first finding than inside the second. Both phrases of such
# a pair get the same result; an image with three findings has three pairs. A map that ignores the word scores 0.5.
#
# A map can pass this test without the image: the priors, made from true masks of other patients, get many right. On
# swapped images the model sees neither finding, so its score there comes from the words and from anatomy. The row
# *gain* is what the image adds. As in the image swap, it uses fewer timesteps, the same for own and swapped images, so
# it is not exactly the difference of the two rows above it. If its interval includes 0, the words alone may explain
# that the test is passed.

# %% tags=["aggregate"]
estimated(
    {
        "word": "word test",
        "swap_word": "the same on swapped images",
        "gain_word": "gain",
        "prior_word": "location prior",
        "text_prior_word": "prior of the text",
    }
)

# %% tags=["remove-input", "aggregate"]
Markdown(
    "The image swap and the word test are the primary endpoint, declared in the profile before any map was made.\n\n"
    + "\n\n".join(
        f"**{variant}**\n\n{say.localization.looks(variant, table, settings.statistics)}"
        for variant, table in tables.items()
    )
)

# %% tags=["answer", "remove-input", "aggregate"]
Markdown(
    say.words.bullets(
        say.answers.maps(v, beyond[v], table, settings.statistics)
        for v, table in tables.items()
    )
)

# %% [markdown]
# ## Further: a scale to read these scores on
#
# A model can pass both tests and still score below the location prior. The prior is made from true masks; the maps are
# coarse, and the model was never told where findings are. A score below the prior therefore does not mean that the
# model ignores the image: the gain tests that.
#
# Is such a gain large? Two other models put it in proportion. The *contrastive* one learns from the same images and
# prompts to place image patches and sentences that belong together close to each other; its map is the similarity of
# each patch with the phrase {cite}`boecking2022mscxr`. The *supervised* one is a small segmentation network
# {cite}`ronneberger2015unet` that learned from the targets themselves. Models without targets are not expected to reach
# the AUC-ROC, pointing game or IoU of the supervised one. Its gain is no such limit: a model whose maps are worse on
# swapped images can have a larger gain. (IoU, the overlap of map and target, first cuts the map at a threshold:
# chapter 5.)

# %%
same = settings.boxes == settings.data.source
pairs = train_studies if same else profiles.studies(settings, "train", data)
pointers = {
    "contrastive": partial(
        baselines.similarity, baselines.contrastive(settings, pairs, out)
    ),
    "supervised": baselines.ceiling(settings, elsewhere, out).maps,
}
scale = {
    name: baselines.score(
        point, [test[i] for i in rows], pool, prior, size, settings.data.fit
    ).set_index(pd.Index(rows))
    for name, point in pointers.items()
}
baselines.save_scores(settings, scale, out)

# %%
names = ["location prior", *variants, *pointers]
guesses = [prior[finding.name], *(maps[v][example] for v in variants)]
guesses += [point(picture[None], [finding])[0] for point in pointers.values()]
plots.overlays(
    [picture] * len(names),
    guesses,
    masks=[mask] * len(names),
    titles=names,
    title=f"“{finding.phrase}”",
    scale="heat",
)

# %% tags=["aggregate"]
estimated(
    {
        "auc_roc": "AUC-ROC",
        "pointing_game": "pointing game",
        "iou": "IoU",
        "gain_auc_roc": "gain in AUC-ROC",
        "auc_roc_shuffled": "shuffled AUC",
        "gain_auc_roc_shuffled": "gain in shuffled AUC",
        "auc_roc_field": "AUC-ROC within the field",
        "average_precision": "average precision",
        "presence": "the map's peak is lower on swapped images",
        "mirror": "mirror test, no side in the prompt",
        "conflict": "wrong side in the prompt: follows the image",
        "word": "word test",
        "gain_word": "gain in the word test",
    },
    {**{v: t.loc[rows] for v, t in tables.items()}, **scale},
)

# %% tags=["remove-input", "aggregate"]
lines = []
for variant, table in tables.items():
    own = table.loc[rows]
    differences = {
        column: {
            f"the {name} model": stats.paired_difference(
                own[column], other[column], own["patient"], n=resamples
            )
            for name, other in scale.items()
        }
        for column in ("auc_roc", "gain_auc_roc")
    }
    lines += [
        say.localization.against(variant, d, localization.LABELS[column])
        for column, d in differences.items()
    ]
Markdown("Differences on the same phrases:\n\n" + "\n".join(lines))

# %% [markdown]
# The contrastive model has learned from the same images and prompts, so a gain can be compared with its gain; look at
# the AUC-ROC as well. Of the prompt, the supervised model reads only the finding's name, so a wrong side cannot mislead
# it. On swapped images it falls back on where the finding usually is, so its gain is less than its AUC-ROC above
# chance.

# %% [markdown]
# ## Further: words that should not point
#
# A model that understands should give a word little attention where its finding is absent, or where the prompt denies
# it. So phrases are read twice more with other words, on their own images and at the timesteps of the gain. (Phrases
# with two names and those that already deny something are left out.) Two differences of AUC-ROC, both at the place of
# the finding that is there, are 0 for a map that ignores the change:
#
# - *renamed*: the AUC-ROC of the phrase as it is, minus that of the phrase with the name of a finding that the image
#   does not show. Opacities have several names, which never replace one another. The location prior also loses, since
#   the other finding usually lies elsewhere.
# - *denied*: the same for the phrase with *No* before it.

# %% tags=["aggregate"]
reworded = {
    "renamed": "renamed",
    "prior_renamed": "renamed, location prior",
    "denied": "denied",
}
estimated(reworded, {**tables, **scale})

# %% tags=["remove-input", "aggregate"]
told = []
for v, table in tables.items():
    for kind, what in (
        ("renamed", "the name of an absent finding"),
        ("denied", "the word *No*"),
    ):
        part = table.dropna(subset=[kind])
        if len(part):
            lost = stats.bootstrap_ci(part[kind], part["patient"], n=resamples)
            changes = say.words.verb(lost, "lowers", "raises", "does not clearly change")
            told.append(f"`{v}`: {what} {changes} the AUC-ROC.")
    both = ["patient", "renamed", "prior_renamed"]
    part = table.reindex(columns=both).dropna()
    if len(part):
        against_prior = stats.paired_difference(
            part["renamed"], part["prior_renamed"], part["patient"], n=resamples
        )
        is_than = say.words.verb(
            against_prior, "larger than", "smaller than", "not clearly different from"
        )
        told.append(
            f"`{v}`: what another name costs is {is_than} what it costs the location prior ({against_prior:+.3f})."
        )
Markdown(say.words.bullets(told))

# %% [markdown]
# Where the name of an absent finding costs little, the map comes from the image and from the phrase's other words, such
# as those for the place, and hardly from the name. Where *No* changes nothing, the map shows the place of what is named,
# whatever the prompt says of it.
#
# The AUC-ROC does not say how bright a map is. So we also look at its *peak*, with every variant's first seed, on the
# same sample of up to 20 phrases, at the timesteps at which swapped images are read. Each image shows a finding; another
# finding, which it does not show, is named as well. All maps are scored at the place of the finding that is there. If an
# AUC-ROC is close to that of the first row, the word points at the same place, though it should not. *Peak* is the
# highest attention to the word, divided by that to the name of the finding that is there, when the prompt holds only
# this name; 1 means equally high.

# %%
sampled = profiles.sample([test[i] for i in rows], 20, seeds[0])
images = np.stack([frame_of(t).image(t.study.pixels()) for t in sampled])
sampled_masks = [frame_of(t).mask(t.finding) for t in sampled]
patients_of = [t.study.patient for t in sampled]
pipelines = {v: models.load_base(settings) for v in variants}
for v in variants:
    finetune.load_checkpoint(pipelines[v], profiles.run(settings, v, seeds[0], out), step)
reading = settings.grounding
swap_times = grounding.paper_timesteps(
    pipelines[variants[0]].scheduler, reading.steps, reading.last, reading.stride
)[:: -reading.swap_every]


def ask(pipeline, asked, same_noise, **options):
    """Maps of several questions, each ``images, prompts, words``; in one call, so that an image is encoded once."""
    pixels, *texts = zip(*asked.values(), strict=True)
    keys = [grounding.passes.image_key(image) for image in same_noise] * len(asked)
    texts = [[text for part in some for text in part] for some in texts]
    options = {"timesteps": swap_times, "keys": keys, **options}
    found = grounding.ground_many(pipeline, np.concatenate(pixels), *texts, **options)
    return dict(zip(asked, np.split(found, len(asked)), strict=True))


# %%
shown = [t.finding.name for t in sampled]
other = [
    next(n for n in FINDINGS if not t.study.labels()[FINDINGS.index(n)]) for t in sampled
]
asked = {
    "a finding that is there": (images, [f"{a}." for a in shown], shown),
    "the same, denied": (images, [f"No {a}." for a in shown], shown),
    "one that is not there": (images, [f"{b}." for b in other], other),
    "one that is not there, after it": (
        images,
        [f"{a}. {b}." for a, b in zip(shown, other, strict=True)],
        other,
    ),
}
heard = {v: ask(pipelines[v], asked, images) for v in variants}

# %% tags=["aggregate"]
peaks = {
    v: {name: m.max(axis=(1, 2)) for name, m in each.items()} for v, each in heard.items()
}
share = {
    v: {name: p / each["a finding that is there"] for name, p in each.items()}
    for v, each in peaks.items()
}
fits = {
    v: {name: [*map(localization.auc_roc, m, sampled_masks)] for name, m in each.items()}
    for v, each in heard.items()
}  # fmt: skip
columns = {
    (v, column): {
        name: str(stats.bootstrap_ci(scores, patients_of, n=resamples))
        for name, scores in values[v].items()
    }
    for v in variants
    for column, values in (("AUC-ROC", fits), ("peak", share))
}
pd.DataFrame(columns)

# %% tags=["remove-input", "aggregate"]
lower = {
    (v, name): stats.paired_difference(
        share[v][name], np.ones_like(share[v][name]), patients_of, n=resamples
    )
    for v in variants
    for name in ("the same, denied", "one that is not there")
}
absent = [f"`{v}`" for v in variants if lower[v, "one that is not there"].high < 0]
Markdown(
    "\n".join(
        say.localization.against(v, {"a finding that is there": d}, f"peak of “{name}”")
        for (v, name), d in lower.items()
    )
    + (
        f"\n\nSo with {say.words.listed(absent)}, the name of an absent finding gets less attention than that of a present one; "
        "names may also differ on any image."
        if absent
        else "\n\nIt is not shown that the name of an absent finding gets less attention; the endpoint does not ask this."
    )
)

# %% [markdown]
# At each place the attention to all tokens sums to 1, and a longer prompt has more words to share it: compare the
# second and the last row with that in mind. Names also differ in how much attention they get on any image; only
# *denied* uses the same name.
#
# ## Further: two names in one prompt
#
# The word test asks for one name at a time. A report names several findings, and the text encoder mixes the words of a
# prompt. So up to 20 of the pairs are asked for again, at the same timesteps: each name alone, and both names in one
# prompt, from which the map of each is read. The test itself is the same. If it is passed less often with both names,
# each disturbs the map of the other.


# %%
def apart(i, j):
    """Whether two phrases of an image can be told apart: different findings in different places."""
    of = maps[variants[0]]
    passed = faithfulness.word_test(of[i], of[j], masks[i], masks[j])
    return test[i].finding.name != test[j].finding.name and not np.isnan(passed)


of_image = pd.Series(rows).groupby([test[i].study.id for i in rows])
each_pair = (
    (j, i) for _, some in of_image for k, i in enumerate(some) for j in some.iloc[:k]
)
all_pairs = [pair for pair in each_pair if apart(*pair)]
pairs = profiles.sample(all_pairs, 20, seeds[0])

# %%
if pairs:
    pair_images = np.stack([frame_of_study(test[i].study) for i, _ in pairs])
    one, two = ([test[pair[k]].finding.name for pair in pairs] for k in (0, 1))
    both = [f"{a}. {b}." for a, b in zip(one, two, strict=True)]
    alone = {
        (k, "alone"): (pair_images, [f"{name}." for name in names], names)
        for k, names in enumerate((one, two))
    }
    asked = alone | {
        (k, "both"): (pair_images, both, names) for k, names in enumerate((one, two))
    }
    named = {v: ask(pipelines[v], asked, pair_images) for v in variants}

# %% tags=["aggregate"]
together = {}
for v in variants if pairs else []:
    passed = {
        way: [
            faithfulness.word_test(a, b, masks[i], masks[j])
            for a, b, (i, j) in zip(named[v][0, way], named[v][1, way], pairs, strict=True)
        ]
        for way in ("alone", "both")
    }
    together[v] = pd.DataFrame(passed).assign(
        patient=[test[i].study.patient for i, _ in pairs]
    )
estimated({"alone": "each name alone", "both": "both names in one prompt"}, together)

# %% tags=["remove-input", "aggregate"]
changed = {
    v: stats.paired_difference(t["both"], t["alone"], t["patient"], n=resamples)
    for v, t in together.items()
}
Markdown(
    say.words.bullets(
        f"`{v}`: with both names the word test {say.words.verb(d)} that with each alone: {d:+.3f}."
        for v, d in changed.items()
    )
    + f"\n\nTested on {say.words.counted(len(pairs), 'pair')}; chance is 0.5."
    if pairs
    else "No image of the test set has two boxed findings in different places."
)

# %% [markdown]
# ## Further: do the same layers see the image and read the word?
#
# A map is the mean over layers. Which of them contribute the gain, and which pass the word test? Each layer stands
# alone here, on up to 160 test phrases, at the same timesteps. The gain is that over one other image per phrase. Layers
# are named by part, block and number, in the order in which they run.

# %%
read_rows = profiles.sample(rows, 160, seeds[0])
own_images = np.stack([frame_of_study(test[i].study) for i in read_rows])
swaps = [faithfulness.swap_images(test[i].study, pool, 1) for i in read_rows]
swap_images = np.stack(
    [
        frame_of_study(pool[j[0]]) if j else image
        for j, image in zip(swaps, own_images, strict=True)
    ]
)
texts = [test[i].finding.phrase for i in read_rows]
spans = [grounding.target_span(test[i].finding, reading.target) for i in read_rows]
swappable = np.array([bool(j) for j in swaps])
whose = np.array([test[i].study.patient for i in read_rows])
told_apart = [(i, j) for i, j in all_pairs if i in read_rows and j in read_rows]


# %%
def by_layer(pipeline, pixels):
    """Maps of all phrases by layer, means over the timesteps: float32 (n, h, w)."""
    found = grounding.ground_layers(pipeline, pixels, texts, spans, timesteps=swap_times)
    return {name: layer.mean(axis=1) for name, layer in found.items()}


def auc_of(layer):
    """AUC-ROC of each phrase's map."""
    return np.array(
        [localization.auc_roc(m, masks[i]) for m, i in zip(layer, read_rows, strict=True)]
    )


# %%
split = {}
for v in variants:
    own, other = (by_layer(pipelines[v], pixels) for pixels in (own_images, swap_images))
    for name, layer in own.items():
        fit, of = auc_of(layer), dict(zip(read_rows, layer, strict=True))
        scores = {"AUC-ROC": (fit, whose)}
        if swappable.any():
            scores["gain"] = (fit - auc_of(other[name]))[swappable], whose[swappable]
        if told_apart:
            passed = [
                faithfulness.word_test(of[i], of[j], masks[i], masks[j])
                for i, j in told_apart
            ]
            scores["word test"] = passed, [test[i].study.patient for i, _ in told_apart]
        label = (
            name.split(".transformer")[0]
            .replace("_blocks", "")
            .replace("_block", "")
            .replace("attentions.", "")
        )
        split[v, label] = {
            c: stats.bootstrap_ci(*both, n=resamples) for c, both in scores.items()
        }

# %% tags=["aggregate"]
pd.DataFrame(split).T.map(str).unstack(0).swaplevel(axis=1).sort_index(axis=1).reindex(
    dict.fromkeys(label for _, label in split)
)

# %% tags=["remove-input", "aggregate"]
told = []
for v in variants if swappable.any() and told_apart else []:
    layers = {label: row for (of, label), row in split.items() if of == v}
    seeing = max(layers, key=lambda name: layers[name]["gain"].estimate)
    naming = max(layers, key=lambda name: layers[name]["word test"].estimate)
    told.append(
        f"`{v}`: the gain is highest in {seeing} ({layers[seeing]['gain']}), where the word test is "
        f"{layers[seeing]['word test']}; the word test is highest in {naming} ({layers[naming]['word test']}), where the "
        f"gain is {layers[naming]['gain']}."
    )
Markdown(
    say.words.bullets(told)
    or "Without images to swap and pairs of findings there is nothing to compare."
)

# %% [markdown]
# The highest of many layers is partly luck. But if the word test of the layer with the highest gain is not clearly
# above chance, nothing shows that this layer follows the name and not whatever is conspicuous in the image. Where
# another layer passes the word test with a smaller gain, image and name act in different layers, and the mean over
# layers can pass both tests though no layer passes both well.

# %% [markdown]
# ## Further: the experiment that only a phantom allows
#
# A phantom can be X-rayed again without its finding, or with the finding on the other side, and nothing else changed.
# Unlike on swapped images, anatomy and other findings stay as they are, so what changes is due to this finding alone.
# Only findings that lie in one half of the chest are tested: an enlarged heart cannot be taken away, only made smaller,
# and edema fills both lungs, so it has no other side. Two differences of AUC-ROC sum this up:
#
# - *removed* is measured at the finding's place: the AUC-ROC on the image with the finding, minus that on the image
#   without it;
# - *moved* is measured at the new place, on the other side: the AUC-ROC on the image with the finding moved there, minus
#   that on the original image. Here the prompt names no side.
#
# Both are 0 for a map that does not look at the finding, such as the location prior; a map that follows it is above 0
# in both. The phrase shown is again one on which the variants do better than on most. (In the third picture, as for
# *moved*, the prompt names no side.)

# %%
lateral = [i for i in ranked.index if test[i].finding.side in ("left", "right")]
can_change = bool(lateral) and settings.boxes == "phantom"
if can_change:
    chosen = lateral[int(0.75 * (len(lateral) - 1))]
    one = test[chosen]
    versions = {"as it is": (one.study.pixels(), one.finding.mask)} | {
        change: phantom.counterfactual(one.study, one.finding.name, change)
        for change in ("without", "other side")
    }
    for v in variants:
        kept = profiles.run(settings, v, seeds[0], out).probes(step)
        place = list(tables[v].index).index(chosen)
        figure = plots.overlays(
            [image for image, _ in versions.values()],
            [kept[kind][place] for kind in ("own", "removed", "moved")],
            masks=[mask if mask.any() else None for _, mask in versions.values()],
            titles=list(versions),
            title=f"{v}: “{one.finding.phrase}”, one patient, three versions",
        )
        display(figure)

# %% tags=["aggregate"]
names = {"gain_auc_roc": "gain", "removed": "removed", "moved": "moved"}
tested = {v: t.dropna(subset=[*names]) for v, t in {**tables, **scale}.items()}
estimated(names, tested)

# %% [markdown]
# *Removed* is computed like the gain, but the other image is this patient's own image without the finding, not another
# patient's. So the gain minus *removed* is the part of the gain that is left when only the finding is taken away. This
# part needs the patient's image, but not the finding. One explanation: the words name a place, and the map locates that
# place in the patient's anatomy, whether or not a finding is there. On real X-rays only the gain can be measured. It
# shows that a map depends on the image, not that it depends on the finding.

# %% tags=["remove-input", "aggregate"]
followed = {v: tested[v] for v in variants if len(tested[v])}
parts = []
for v, t in followed.items():
    rest = stats.bootstrap_ci(t["gain_auc_roc"] - t["removed"], t["patient"], n=resamples)
    parts.append(
        f"`{v}`: of the gain of {t['gain_auc_roc'].mean():.3f}, {t['removed'].mean():.3f} are lost when the finding is taken "
        f"away; {rest} remain, which is {say.words.verb(rest, 'clearly above 0', 'clearly below 0', 'not clearly above 0')}."
    )
Markdown(
    f"On {say.words.counted(len(t), 'phrase')}:\n\n{say.localization.follows(followed, resamples)}\n\n"
    + say.words.bullets(parts)
    if followed
    else "Only a phantom can be X-rayed without its finding."
)

# %% [markdown]
# Do not rank models by *removed* and *moved*. If a map also shows where findings usually are, it loses little when the
# finding is taken away, as the supervised model shows.
#
# What happens if another finding replaces the old one on the same side? We replace a pneumothorax by an effusion, and
# any other finding by a pneumothorax. The map of the old name should no longer fit the old place, and the map of the
# new name should fit the new finding. We test this on the sample of up to 20 phrases from *words that should not
# point*, and leave out images that already show the new finding.

# %%
changed = []
for t in sampled if can_change else []:
    name, others = t.finding.name, {f.name for f in t.study.present()}
    kind = "Pleural Effusion" if name == "Pneumothorax" else "Pneumothorax"
    if t.finding.side in ("left", "right") and kind not in others:
        changed.append((t, kind, *phantom.counterfactual(t.study, name, kind)))
replaced = {}
if changed:
    truths, kinds, after, new_places = zip(*changed, strict=True)
    before = np.stack([t.study.pixels() for t in truths])
    old = [f"{t.finding.name}." for t in truths], [t.finding.name for t in truths]
    new = [f"{kind}." for kind in kinds], list(kinds)
    after, old_places = np.stack(after), [t.finding.mask for t in truths]
    asked = {"as it is": (before, *old), "after": (after, *old), "new": (after, *new)}
    places = {"as it is": old_places, "after": old_places, "new": new_places}
    for v in variants:
        each = ask(pipelines[v], asked, before)
        fit = {c: [*map(localization.auc_roc, m, places[c])] for c, m in each.items()}
        each_patient = [t.study.patient for t in truths]
        replaced[v] = pd.DataFrame(fit).assign(patient=each_patient)

# %% tags=["aggregate"]
names = {
    "as it is": "old name, at the finding",
    "after": "old name, at the same place, another finding instead",
    "new": "new name, at the new finding",
}
estimated(names, replaced) if replaced else None

# %% [markdown]
# ## Further: how much of a score is the draw?
#
# Maps are read under random noise. Another draw of it gives another map and another score. The table compares two
# standard deviations of AUC-ROC: that of *one phrase* over three draws (root mean square over phrases), and that
# *between phrases* in their means over the draws. The smaller the first is against the second, the less the draw
# matters. Two more rows show how much the mean over phrases moves with the draw, and how alike the maps of two draws
# are. It is measured on up to 16 phrases of the sample. Here a map is the mean over the timesteps of swapped images;
# maps of the book are means over more, each with its own noise, so a draw matters less there.

# %%
few = slice(0, 16)
prompts = [t.finding.phrase for t in sampled]
words = [grounding.target_span(t.finding, settings.grounding.target) for t in sampled]
question = {"drawn": (images[few], prompts[few], words[few])}
drawn = {
    v: [ask(pipelines[v], question, images[few], seed=k)["drawn"] for k in range(3)]
    for v in variants
}


def likeness(some, others):
    """Mean correlation of maps with others of the same phrases."""
    pairs = zip(some, others, strict=True)
    return np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])


# %% tags=["aggregate"]
spread = {}
for v, each in drawn.items():
    scores = np.array([[*map(localization.auc_roc, m, sampled_masks[few])] for m in each])
    spread[v] = {
        "one phrase, over draws": np.sqrt(scores.var(axis=0, ddof=1).mean()),
        "between phrases": scores.mean(axis=0).std(ddof=1),
        "mean over phrases, over draws": scores.mean(axis=1).std(ddof=1),
        "correlation of maps of two draws": likeness(each[0], each[1]),
    }
pd.DataFrame(spread).round(3)

# %% tags=["remove-input", "aggregate"]
Markdown(
    say.words.bullets(
        f"`{v}`: the draw moves the AUC-ROC of one phrase by {s['one phrase, over draws']:.3f}, "
        f"{s['one phrase, over draws'] / s['between phrases']:.0%} of the standard deviation between phrases, so "
        + (
            "a difference between two single phrases may be due to the draw."
            if s["one phrase, over draws"] > s["between phrases"] / 2
            else "phrases differ by more than draws do."
        )
        for v, s in spread.items()
    )
)

# %% [markdown]
# ## Further: would it also point if nothing had been learned?
#
# We replace the trained weights of the first variant by random ones, in the U-Net, the text encoder or both, on the
# sample of phrases and at the same timesteps. A map that comes from what was learned must then lose its score and its
# likeness to the map as trained {cite}`adebayo2018sanity`. If only the text encoder is random, the trained U-Net still
# reacts to the image. Its maps may then be far from 0.5, even below it, but they must not resemble the map as trained,
# and they may pass the image swap (here with one other image), but not the word test (on the pairs of *two names in one
# prompt*, where there are any).

# %%
near = [faithfulness.swap_images(t.study, pool, 1) for t in sampled]
others = [frame_of_study(pool[j[0]]) if j else x for j, x in zip(near, images, strict=True)]
question = {
    "own": (images, prompts, words),
    "swapped": (np.stack(others), prompts, words),
}
pipeline = pipelines[variants[0]]
learned = copy.deepcopy(pipeline.text_encoder)


def checked():
    """Maps of the sample on own and swapped images, and of the pairs' names."""
    return ask(pipeline, question, images) | (
        ask(pipeline, alone, pair_images) if pairs else {}
    )


checks = {"as trained": checked()}
faithfulness.random_weights(pipeline, ["text_encoder"])
checks["random text encoder"] = checked()
faithfulness.random_weights(pipeline, ["unet"])
checks["both random"] = checked()
pipeline.text_encoder = learned
checks["random U-Net"] = checked()

# %%
fit_of, table_of = {}, {}
for name, each in checks.items():
    fit, off = (
        np.array([*map(localization.auc_roc, each[what], sampled_masks)])
        for what in ("own", "swapped")
    )
    known, fit_of[name] = np.array([bool(j) for j in near]), fit
    told = {"AUC-ROC": stats.bootstrap_ci(fit, patients_of, n=resamples)}
    if known.any():
        told["gain in AUC-ROC"] = stats.bootstrap_ci(
            (fit - off)[known], np.array(patients_of)[known], n=resamples
        )
    if pairs:
        passed = [
            faithfulness.word_test(a, b, masks[i], masks[j])
            for a, b, (i, j) in zip(each[0, "alone"], each[1, "alone"], pairs, strict=True)
        ]
        whose = [test[i].study.patient for i, _ in pairs]
        told["word test"] = stats.bootstrap_ci(passed, whose, n=resamples)
    as_trained = likeness(checks["as trained"]["own"], each["own"])
    table_of[name] = {k: str(d) for k, d in told.items()} | {
        "correlation with the map as trained": f"{as_trained:.3f}"
    }

# %% tags=["aggregate"]
pd.DataFrame(table_of).T

# %% tags=["remove-input", "aggregate"]
chance = {
    name: stats.paired_difference(fit, np.full(len(fit), 0.5), patients_of, n=resamples)
    for name, fit in fit_of.items()
    if name != "as trained"
}
left = [f"*{name}*" for name, d in chance.items() if d.low > 0]
Markdown(
    "\n".join(say.localization.against(name, {"chance": d}) for name, d in chance.items())
    + "\n\n"
    + (
        f"With {say.words.listed(left)}, AUC-ROC is above chance: that much of a score does not need what the replaced weights had learned."
        if left
        else "No AUC-ROC of random weights is clearly above chance, so no part of the score is shown to come without "
        "training. The intervals say how large such a part could be."
    )
)

# %% [markdown]
# ## Further: the best and the worst maps
#
# A mean hides what maps look like. Here are the three phrases with the highest and the three with the lowest AUC-ROC,
# averaged over the variants. Does the pointing game agree?

# %%
order = list(ranked.index)
hit = {v: table["pointing_game"] for v, table in tables.items()}
picked = list(dict.fromkeys([*order[::-1][:3], *order[:3][::-1]]))
plots.overlay_grid(
    [frame_of(test[i]).image(test[i].study.pixels()) for i in picked],
    {variant: [maps[variant][i] for i in picked] for variant in variants},
    masks=[masks[i] for i in picked],
    titles=[
        f"{'best' if k < 3 else 'worst'}: “{test[i].finding.phrase}”"
        for k, i in enumerate(picked)
    ],
    captions={
        v: [f"AUC {auc.loc[i, v]:.2f}, pointing game {hit[v][i]:.0f}" for i in picked]
        for v in variants
    },
    title="The phrases that are grounded best, and those grounded worst",
)

# %% [markdown]
# ## Further: does size decide?
#
# A large target is easier to hit. Two data sets may therefore differ in score only because their targets differ in
# size.

# %%
both = pd.concat(
    [table.assign(variant=variant) for variant, table in tables.items()], ignore_index=True
)
plots.score_by_size(
    both,
    title="Scores by the size of the target: phrases (faint) and means of groups (bold)",
)

# %% tags=["remove-input", "aggregate"]
shared = tables[variants[0]].loc[rows]
SCORES = localization.SCORES
of_size = {
    "chance": {s: (shared["target"], shared[f"chance_{s}"]) for s in SCORES},
    "location prior": {s: (shared["target"], shared[f"prior_{s}"]) for s in SCORES},
    **{v: {s: (t["target"], t[s]) for s in SCORES} for v, t in tables.items()},
}
pd.DataFrame(
    {
        name: [
            f"{x.corr(y, 'spearman'):.2f}" if min(x.nunique(), y.nunique()) > 1 else "–"
            for x, y in pairs.values()
        ]
        for name, pairs in of_size.items()
    },
    index=pd.Index(
        [tradeoff.NAMES[s] for s in SCORES], name="rank correlation with the target's size"
    ),
)

# %% [markdown]
# The rank correlation is 1 if a score always grows with the size, 0 if the two are unrelated, and -1 if it always
# falls. A correlation of 1 under *chance* means that the score grows with the target whatever a map does. Compare such
# a score only on the same phrases, or beside its chance. A dash means one value for all sizes.
#
# ## Exercises
#
# **1.** Which variant is better? Ask every score, and count how often they agree.

# %% [markdown] tags=["solution"]
# The count is not a vote. IoU and Dice order single maps alike, and mIoU and box IoU are closely related, so one
# property is counted several times. Chapter 5 explains these scores.

# %% tags=["solution", "aggregate"]
means = pd.DataFrame({v: t.loc[rows, SCORES].mean() for v, t in tables.items()})
lower = means.index.isin(localization.LOWER_IS_BETTER)
best = means.idxmax(axis=1).where(~lower, means.idxmin(axis=1))
best = best.where(means.nunique(axis=1) > 1, "neither")
print(best.value_counts().to_string())
means.assign(better=best).rename(index=tradeoff.NAMES).round(3)

# %% [markdown]
# **2.** Make a map whose AUC-ROC rounds to 1 and whose pointing game is 0.

# %% [markdown] tags=["solution"]
# The target itself, and a single hotter pixel in a corner: nearly all pairs of pixels are in order, but the maximum is
# not in the target.

# %% tags=["solution"]
trap = mask.astype(np.float32)
trap[tuple(np.argwhere(~mask)[0])] = 2
pd.Series(localization.score(trap, mask)).rename(tradeoff.NAMES).round(3).to_frame("trap").T

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **A model's AUC-ROC equals that of the location prior. What has been shown?**
#
# <details class="quiz" name="question-1"><summary>that it looks at the image</summary>No. A map of where findings usually are gets as much without looking.</details>
# <details class="quiz right" name="question-1"><summary>nothing about whether it looks</summary>Right. The image swap asks that: what does the score lose on another patient's image?</details>
# <details class="quiz" name="question-1"><summary>that it does not look</summary>No. Equal scores can come from different maps.</details>
#
# **What does the gain subtract?**
#
# <details class="quiz" name="question-2"><summary>the score by chance</summary>No. Chance needs no image at all, and no model.</details>
# <details class="quiz right" name="question-2"><summary>the score on images of other patients without the finding</summary>Right. Same prompt, tokens and noise: what is left is due to the image.</details>
# <details class="quiz" name="question-2"><summary>the score of another variant</summary>No. That is a paired difference.</details>
#
# **The map of *effusion* and that of *pneumothorax* are the same and hit both findings. Which test fails?**
#
# <details class="quiz right" name="question-3"><summary>the word test</summary>Right. Two equal maps leave no difference, so neither name prefers its own finding.</details>
# <details class="quiz" name="question-3"><summary>the image swap</summary>No. The map may well depend on the image.</details>
# <details class="quiz" name="question-3"><summary>the mirror test</summary>No. It asks about sides, not about words.</details>

# %% [markdown]
# ## Takeaways
#
# - AUC-ROC looks at the order of all pixels and is easy on the background; the pointing game looks at one pixel and needs many
#   phrases.
# - A map that has not seen the image can score high. The gain over swapped images is what the image contributes, the
#   word test what the word does. A model points only if it passes both. If the word test gains nothing over swapped
#   images, the words alone may explain it.
# - A gain shows that the map depends on the image, not that it depends on the finding. Only the same patient without the
#   finding can show that.
# - Passing both tests does not mean that a map stays dark where its finding is absent.
# - Every score belongs beside chance and the location prior, on the same phrases, with an interval over patients.
# - Look at the maps, the worst ones too.
#
# **Further reading.** {cite:t}`adebayo2018sanity` propose tests that a map must pass;
# {cite:t}`saporta2022chexlocalize` compare maps of classifiers with radiologists.

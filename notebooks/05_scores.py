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
# # 5 What a score can see
#
# **What does each score of a map reward, what does it miss, and which wrong maps does it accept?**
#
# There are many scores of a map. Papers use different ones under the same name, and each can be high for a bad reason.
# So we apply them to maps whose quality we know. The *target* is again the mask of the finding.
#
# *You will be able to* choose a score, name its convention, and say which wrong maps would pass. *Before:* chapter 4.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variants = ["frozen", "learnable"]
seeds = [0]
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from IPython.display import Markdown
from scipy import ndimage
from sklearn.metrics import precision_recall_curve

from chestxai import localization, models, plots, profiles, runs, tradeoff
from chestxai import sentences as say
from chestxai.localization import LOWER_IS_BETTER, SCORES
from chestxai.studies import Frame, box_of, phrases

# %%
settings = profiles.load(profile)
plots.setup(settings.variants)
size = models.image_size(models.load_base(settings, device="cpu"))
test = phrases(profiles.studies(settings, "test", data, boxes=True))

# %%
tables, maps = {}, {}
for variant in variants:
    run = profiles.run(settings, variant, seeds[0], out)
    tables[variant], maps[variant] = run.last_maps()


def frame_of(truth):
    """From the original image to the model's frame."""
    return Frame(*truth.study.size, size, settings.data.fit)


rows = sorted(set.intersection(*map(set, maps.values())))
masks = {i: frame_of(test[i]).mask(test[i].finding) for i in rows}
grid = maps[variants[0]][rows[0]].shape
auc = pd.DataFrame({v: t["auc_roc"] for v, t in tables.items()}).loc[rows]

# %%
train = phrases(profiles.studies(settings, "train", data, boxes=True))
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

# %% [markdown]
# ## What fools which score
#
# Here are eight maps made by hand for one target, and what every score says of them; the rest of the chapter explains
# the scores. All but the first are wrong in some way. All but the last two are slightly blurred, as no model's map is
# sharp, so even the first misses the best value of some scores.
#
# In the table of scores, each cell holds the score, and its colour rescales it: 0 (white) is what a constant map gets,
# which says nothing, 1 (dark green) what the first map gets, and brown is below 0. A score *accepts* a wrong map if
# this rescaled value is at least nine tenths (before rounding). The constant map sets the zero, so it does not count as
# a wrong one.

# %%
span = max(2, round(np.sqrt(mask.sum()) / 2))
aside = 1 if np.argwhere(mask)[:, 1].mean() < size / 2 else -1
grown = ndimage.binary_dilation(mask, iterations=span)
sharp = {
    "perfect, blurred": mask,
    "shifted": ndimage.shift(mask.astype(float), (0, aside * 2 * span), order=0),
    "too large": grown,
    "ring": grown & ~mask,
    "two, one wrong": mask | (mask[:, ::-1] & ~mask),  # the same place in the other half
    "inverted": ~mask,
}
# A little blur, as no model's map is sharp.
handmade = {
    name: ndimage.gaussian_filter(np.asarray(values, dtype=np.float32), size / 64)
    for name, values in sharp.items()
}
spot = np.zeros(mask.shape, np.float32)
spot[tuple(np.argwhere(mask)[mask.sum() // 2])] = 1
handmade |= {"one hot pixel": spot, "constant": np.zeros_like(spot)}

# %%
plots.overlays(
    [picture] * len(handmade),
    list(handmade.values()),
    masks=[mask] * len(handmade),
    titles=list(handmade),
    title="Eight maps for one target",
    scale=plots.Scale("heat", (0, 1)),
)

# %%
labels = {
    "auc_roc": "AUC-ROC", "average_precision": "average precision", "pointing_game": "pointing game",
    "pointing_game_15": "pointing game (15 pixels)", "energy": "energy", "cnr": "CNR", "cnr_absolute": "CNR (absolute)",
    "iou": "IoU (mixture)", "iou_otsu": "IoU (Otsu)", "iou_area": "IoU (hottest tenth)", "iou_oracle": "IoU (oracle)",
    "dice": "Dice", "miou": "mIoU (classes)", "miou_thresholds": "mIoU (thresholds)", "bbox_iou": "box IoU",
    "centre_distance": "centre distance",
}  # fmt: skip
scores = pd.DataFrame(
    {name: localization.score(values, mask, "full") for name, values in handmade.items()}
).loc[list(labels)]
constant, perfect_scores = scores["constant"], scores["perfect, blurred"]
skill = scores.sub(constant, axis=0).div(perfect_scores - constant, axis=0)

# %%
figure = go.Figure(
    go.Heatmap(
        z=skill.clip(-1, 1).round(3), x=list(scores), y=list(labels.values()), zmid=0, zmin=-1, zmax=1,
        colorscale="BrBG", showscale=False, text=scores.round(2), texttemplate="%{text:.2f}", hoverinfo="skip",
    )
)  # fmt: skip
figure.update_layout(
    template=plots.TEMPLATE, height=560, title="<b>Every score on the eight maps</b> (centre distance: lower is better)",
    yaxis={"autorange": "reversed", "showgrid": False}, margin={"t": 90, "b": 16},
    xaxis={
        "side": "top", "showgrid": False, "tickangle": 0, "tickvals": list(scores),
        "ticktext": [name.replace(" ", "<br>") for name in scores],
    },
)  # fmt: skip

# %% tags=["remove-input", "aggregate"]
wrong = [name for name in scores if name not in ("perfect, blurred", "constant")]
free = {labels[s]: constant[s] for s in labels if s not in LOWER_IS_BETTER}
Markdown(say.localization.fooled(skill[wrong].rename(index=labels), free))

# %% tags=["answer", "remove-input", "aggregate"]
Markdown(say.answers.scores(skill[wrong].rename(index=labels)))


# %% [markdown]
# A score that accepts none of these maps is not safe either: exercise 2 makes maps that fool six scores.
# So we report several. If several pixels share a map's maximum, its pointing game is the share of them that lie in the
# target, so a constant map gets chance, and a map with two equal peaks may get a half.
#
# ## More maps of known quality
#
# Five more maps set the scale for the variants' maps: the target itself, the target at the resolution of the model's
# maps, its opposite, random noise, and the location prior.


# %%
def perfect(i):
    """The target as a map: exact, at the resolution of the maps, and inverted."""
    exact = masks[i].astype(np.float32)
    coarse = localization.resize(exact, grid)
    name = f"perfect, {grid[0]} × {grid[1]}"
    return {"perfect": exact, name: coarse, "inverted": 1 - coarse}


rng = np.random.default_rng(0)
noise = {i: rng.standard_normal(grid).astype(np.float32) for i in rows}
priors = {i: prior[test[i].finding.name] for i in rows}
shown = {
    **perfect(example),
    "random": noise[example],
    "location prior": priors[example],
    **{variant: maps[variant][example] for variant in variants},
}
plots.overlays(
    [picture] * len(shown),
    list(shown.values()),
    masks=[mask] * len(shown),
    titles=list(shown),
    title=f"“{finding.phrase}”",
    scale="heat",
)


# %%
def mean_score(score, maps_by_row, *arguments):
    """Mean of a score over the test phrases."""
    return np.mean([score(maps_by_row[i], masks[i], *arguments) for i in rows])


# %% [markdown]
# ## The hot end of the order: average precision
#
# Like AUC-ROC (chapter 4), average precision looks at the order of the pixels, but from the hottest pixel down. As more
# pixels are taken, *recall* is the share of the target that is covered, and *precision* the share of the taken pixels
# that belong to the target. Plotted against each other, they form a curve. Average precision is the area under it. The
# easy background has little influence on it. Chance is the target's share of the image.

# %%
curves = {
    "location prior": prior[finding.name],
    **{v: localization.resize(maps[v][example], mask.shape) for v in variants},
}
points, looks = [], {}
styles = plots.variant_style(variants) | {"location prior": plots.REFERENCES["prior"][1]}
for name, values in curves.items():
    precision, recall, _ = precision_recall_curve(mask.ravel(), values.ravel())
    label = f"{name} ({localization.average_precision(values, mask):.2f})"
    looks[label] = styles[name]
    points.append(pd.DataFrame({"recall": recall, "precision": precision, "map": label}))
options = plots.express_options(looks, "map") | {"symbol": None}
px.line(
    pd.concat(points), x="recall", y="precision", height=360, range_y=[0, 1.02], **options,
    title="<b>Precision from the hottest pixel down</b> (in brackets: average precision)",
).update_layout(legend_title_text="").add_hline(
    mask.mean(), line_dash="dot", annotation_text="chance", annotation_position="top right"
)  # fmt: skip

# %% tags=["remove-input", "aggregate"]
target_area = pd.Series({i: masks[i].mean() for i in rows})
precise = pd.Series(
    {i: localization.average_precision(maps[variants[0]][i], masks[i]) for i in rows}
)
Markdown(
    "**What it misses.** Targets differ in size, and chance is the size, so a small target scores low unless the map is "
    f"nearly perfect. Here targets fill {target_area.min():.1%} to {target_area.max():.0%} of the image; the average precision of "
    f"`{variants[0]}` has a rank correlation of {precise.corr(target_area, 'spearman'):+.2f} with that."
)

# %% [markdown]
# ## How much of it? Energy
#
# The energy-based pointing game {cite}`wang2020scorecam` is the share of a map's mass, the sum of its values, that lies
# in the target. But attention is never 0, and in a nearly even map most of the mass is a constant part that all pixels
# share. So the book counts only what is above the map's minimum. The left picture of {numref}`fig-energy` shows a map
# divided by its maximum, the right one the same map scaled from its minimum to its maximum. The colour shows what each
# way counts.

# %% name="fig-energy"
counted = {"as it is": "zero", "above its minimum": "min"}
plots.overlays(
    [picture] * 2,
    [raw / raw.max(), plots.normalize(raw)],
    masks=[mask] * 2,
    titles=[
        f"{name}: {localization.energy(raw, mask, floor):.1%} of the mass in {mask.mean():.1%} of the image"
        for name, floor in counted.items()
    ],
    title=f"The mass of a map of {variants[0]}",
    scale=plots.Scale("counted", (0, 1)),
)

# %% tags=["aggregate"]
kinds = {
    "constant": {i: np.ones(grid, np.float32) for i in rows},
    "location prior": priors,
    **maps,
}
shares = {
    name: {
        "above the map's minimum": mean_score(localization.energy, values),
        "as it is": mean_score(localization.energy, values, "zero"),
    }
    for name, values in kinds.items()
}
pd.DataFrame(shares).T.rename_axis("share of the mass in the target").round(3)

# %% [markdown]
# **What it misses.** Where in the target the mass lies, and how much of the target it covers: a single hot pixel inside
# scores 1.
#
# ## How strongly? The contrast-to-noise ratio
#
# CNR is the difference between the mean inside and outside the target, divided by the spread:
#
# $$ \mathrm{CNR} = \frac{\mu_\mathrm{in} - \mu_\mathrm{out}}{\sqrt{\sigma^2_\mathrm{in} + \sigma^2_\mathrm{out}}} $$
#
# One paper keeps the sign {cite}`dombrowski2024tradeoffs`, others take the absolute value
# {cite}`boecking2022mscxr,vilouras2024zeroshot`. Compare the inverted map and noise under both:

# %% tags=["aggregate"]
inverted = {i: perfect(i)["inverted"] for i in rows}
tried = {"inverted": inverted, "random": noise, "location prior": priors, **maps}
pd.DataFrame(
    {
        name: {
            "signed": mean_score(localization.cnr, values),
            "absolute": mean_score(localization.cnr, values, False),
        }
        for name, values in tried.items()
    }
).T.round(2)

# %% [markdown]
# **What it misses.** The absolute CNR gives full marks to a map that is cold exactly where the disease is, and more
# than zero to pure noise. We report the signed one. Neither form changes if a map is scaled or shifted. An increasing
# function, such as a square root, keeps the order of the pixels but changes their values. It changes CNR, thresholds
# and IoU; AUC-ROC, average precision and the pointing game stay the same.

# %% tags=["aggregate"]
powers = {"√ map": 0.5, "map": 1.0, "map³": 3.0}
bent = {
    name: localization.score(plots.normalize(raw) ** power, mask)
    for name, power in powers.items()
}
pd.DataFrame(bent).T[["auc_roc", "pointing_game", "cnr", "iou"]].rename(
    columns=tradeoff.NAMES
).round(3)

# %% [markdown]
# ## A shape: threshold, IoU, Dice, mIoU
#
# To compare shapes, each pixel of a map must become a yes or a no. The *intersection over union* (IoU) then divides the
# area that map and target share by the area that either covers. Dombrowski et al. fit a mixture of two Gaussians to the
# map's values and cut half-way between their means; the mask plays no part in it.

# %%
threshold = localization.gmm_threshold(raw)
plots.histogram(
    heat,
    mask,
    threshold,
    title=f"Where to cut the map of {variants[0]}",
    label="mixture threshold",
)

# %%
cut = {name: localization.foreground(values, mask.shape) for name, values in shown.items()}
overlap = {name: localization.iou(values, mask) for name, values in shown.items()}
plots.overlays(
    [picture] * len(cut),
    [hot.astype(np.float32) for hot in cut.values()],
    masks=[mask] * len(cut),
    titles=[
        f"{name}: {hot.mean():.0%} of the image, IoU {overlap[name]:.2f}"
        for name, hot in cut.items()
    ],
    title="What lies above the threshold",
    scale=plots.Scale("foreground", (0, 1)),
)

# %% [markdown]
# There are other ways to cut. *Otsu's* threshold splits the histogram where the two parts differ most; others take a
# fraction of the map's range, or the hottest tenth of the image. The *oracle* takes the threshold with the highest IoU.
# It uses the mask, so it is an upper bound and cannot compare models; it is listed to show what a perfect threshold
# would reach.

# %%
ways = {
    "mixture": "gmm",
    "Otsu": "otsu",
    "half the range": 0.5,
    "hottest tenth": ("area", 0.1),
}
oracle, best = localization.oracle_threshold(raw, mask)
cuts = {name: localization.foreground(raw, mask.shape, way) for name, way in ways.items()}
cuts["oracle"] = heat > oracle
plots.overlays(
    [picture] * len(cuts),
    [hot.astype(np.float32) for hot in cuts.values()],
    masks=[mask] * len(cuts),
    titles=[
        f"{name}: {hot.mean():.0%}, IoU {(hot & mask).sum() / (hot | mask).sum():.2f}"
        for name, hot in cuts.items()
    ],
    columns=3,
    title=f"One map of {variants[0]}, five ways to cut it",
    scale=plots.Scale("foreground", (0, 1)),
)

# %% tags=["aggregate"]
cuts_by_name = {**ways, "oracle": "oracle"}
by_way = {
    name: {
        way: mean_score(localization.iou, values, how) for way, how in cuts_by_name.items()
    }
    for name, values in tried.items()
    if name != "inverted"
}
pd.DataFrame(by_way).T.rename_axis("mean IoU").round(3)

# %% tags=["remove-input", "aggregate"]
gap = {v: by_way[v]["oracle"] - by_way[v]["mixture"] for v in variants}
Markdown(
    "**What they miss.** A threshold decides without knowing the target's size. "
    + "With the mixture's threshold, the mean IoU of "
    + " and of ".join(f"`{v}` is {loss:.3f} lower" for v, loss in gap.items())
    + " than with the oracle's. And the oracle knows the truth: even noise gets "
    f"{by_way['random']['oracle']:.3f} from it."
)

# %% [markdown]
# *Dice* is a function of IoU, $2\,\mathrm{IoU}/(1+\mathrm{IoU})$. **What they miss:** even noise, in which no region
# stands out, is cut in two, and an error of one pixel all around costs a small target much more than a large one.
#
# *mIoU* means two things. Over **classes** it is the mean of the IoU of the foreground and that of the background, at
# the mixture threshold {cite}`dombrowski2024tradeoffs`. Over **thresholds** it is the mean IoU at the thresholds 0.1 to
# 0.5 {cite}`boecking2022mscxr`, here of the map's range.

# %% tags=["aggregate"]
constants = {i: np.zeros(grid, np.float32) for i in rows}
pd.DataFrame(
    {
        name: {
            "IoU": mean_score(localization.iou, values),
            "mIoU over classes": mean_score(localization.miou, values),
            "mIoU over thresholds": mean_score(localization.miou, values, "thresholds"),
        }
        for name, values in {**tried, "constant": constants}.items()
    }
).T.round(3)


# %% [markdown]
# Look at the constant map, which predicts nothing: over classes it gets nearly a half, because the background is large
# and counts as right. Exercise 1 asks how many of the models' maps do worse.
#
# ## A place: box IoU and the distance of the centres
#
# Often the truth is only a box. Then one compares it with the box around the largest part of the thresholded map, or
# compares the centre of the thresholded map with that of the target's box. The second picture of {numref}`fig-boxes`
# shows a finding of several parts, where the data have one. Its box also holds what lies between the parts, and the
# centre of the box often lies there. So a map that points between the parts may score well.


# %%
def largest(hot):
    """The largest part of a thresholded map."""
    parts, n = ndimage.label(hot, np.ones((3, 3)))
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if n else hot


parted = [i for i in rows if ndimage.label(masks[i], np.ones((3, 3)))[1] > 1]
placed = [example, *sorted(parted, key=lambda i: box_of(masks[i]).w)[-1:]]
mapped = {i: maps[variants[0]][i] for i in placed}
boxes = {
    i: {
        "target": box_of(masks[i]),
        "map": box_of(largest(localization.foreground(mapped[i], mask.shape))),
    }
    for i in placed
}

# %% name="fig-boxes"
plots.images(
    [frame_of(test[i]).image(test[i].study.pixels()) for i in placed],
    titles=[
        f"“{test[i].finding.phrase}”: box IoU {localization.bbox_iou(mapped[i], masks[i]):.2f}, centres "
        f"{localization.centre_distance(mapped[i], masks[i]):.2f} of the diagonal apart"
        for i in placed
    ],
    masks=[masks[i] for i in placed],
    boxes=[[(name, box) for name, box in boxes[i].items() if box] for i in placed],
    columns=2,
    title=f"Boxes of the target and of the thresholded map of {variants[0]}",
)

# %% tags=["remove-input", "aggregate"]
lost = mean_score(localization.centre_distance, constants)
own = [localization.bbox_iou(masks[i].astype(np.float32), masks[i]) for i in parted]
centres = {i: (b.y + b.h / 2, b.x + b.w / 2) for i in parted for b in [box_of(masks[i])]}
outside = sum(not masks[i][int(y), int(x)] for i, (y, x) in centres.items())
Markdown(
    say.localization.parts(len(rows), own, outside)
    + f" A map that points nowhere has its centre in the middle of the image, and is {lost:.2f} of the diagonal away from the "
    "target on average: report a distance beside that."
)

# %% [markdown]
# ## Definition or skill?
#
# All maps under the book's eight main scores, as means over the test phrases. Where *perfect* is not at the best value
# (1; 0 for the distance; CNR has no limit), the score or the map's resolution is the reason. What *constant*, *random*
# and *inverted* get is free. What the *location prior* gets is anatomy. What a variant has beyond these may be skill,
# or may come from the side and zone that the prompt names: chapter 4 tests that.

# %% tags=["aggregate"]
made = [
    {"map": name, **localization.score(some, masks[i])}
    for i in runs.progress(rows, "reference maps")
    for name, some in {**perfect(i), "constant": np.zeros(grid, np.float32)}.items()
]
compared = pd.DataFrame(made).groupby("map", sort=False).mean()
shared = tables[variants[0]].loc[rows]
for name, prefix in (("random", "chance_"), ("location prior", "prior_")):
    compared.loc[name] = [shared[prefix + score].mean() for score in SCORES]
for variant in variants:
    compared.loc[variant] = [tables[variant].loc[rows, score].mean() for score in SCORES]
compared.rename(columns=tradeoff.NAMES).round(2)

# %% [markdown]
# The arrow shows which direction is better. A CNR is infinite where a map takes one value inside and another outside.
# Read by columns: a score is useful if rows without knowledge get little and rows with full knowledge much.
#
# ## The same maps under the protocols of three papers
#
# The maps of a sample of at most 60 phrases are scored once more, as three papers
# {cite}`dombrowski2024tradeoffs,nuetzel2025generate,vilouras2024zeroshot` score theirs, as far as their code and text
# tell. Where the data have boxes only, the target is the box; for phantoms it is still the mask.
# `localization.PROTOCOLS` lists the steps, and what could not be found out.

# %%
PAPERS = ("dombrowski2023", "nuetzel2025", "vilouras2024")
some = profiles.sample(rows, 60, seeds[0])
truths = {i: localization.box_labels(test[i].finding, frame_of(test[i])) for i in some}


def tried_on(i):
    """Maps of known quality and the variants' maps for one phrase."""
    exact, coarse, opposite = perfect(i).items()
    known = {"inverted": opposite[1], "location prior": priors[i]}
    return known | {v: maps[v][i] for v in variants} | dict([coarse, exact])


# %%
records = []
for protocol in PAPERS:
    for i in runs.progress(some, protocol):
        values = {"random": localization.chance(truths[i], grid, 8, protocol=protocol)}
        for name, heatmap in tried_on(i).items():
            values[name] = localization.score(heatmap, truths[i], protocol)
        records += [
            (protocol, score, name, test[i].finding.name, value)
            for name, by_score in values.items()
            for score, value in by_score.items()
        ]
columns = ["protocol", "score", "map", "finding", "value"]
under = pd.DataFrame(records, columns=columns)

# %% tags=["aggregate"]
# The third paper takes the mean over findings, the others that over phrases.
keys = ["protocol", "score", "map"]
means = under.groupby(keys, sort=False)["value"].mean()
by_finding = under.groupby([*keys, "finding"], sort=False)["value"].mean()
over_findings = by_finding.groupby(keys, sort=False).mean()
means["vilouras2024"] = over_findings["vilouras2024"]
means.unstack("map")[list(dict.fromkeys(under["map"]))].round(3)

# %% [markdown]
# Read each row from left to right: a score that gives *random* much gives it to everyone, one that gives *inverted*
# much has no sign, and one that gives *perfect* little cannot reward a good map. Read `centre_distance_pixels` the
# other way round: less is better. Then compare one score between protocols, in one column: the maps are the same, so
# the difference is due to the definition. In `nuetzel2025`, for example, a map whose foreground is empty gets 0 in
# every score. This lowers AUC-ROC, but it improves the distance, for which 0 is best: compare the perfect map at the
# resolution of the models' maps. `bbox_iou` draws one box around all of the foreground and compares it with the target;
# `bbox_miou` averages that with the IoU of the two backgrounds.
#
# ## Exercises
#
# **1.** An empty prediction gets an mIoU over classes of (1 − target)/2, where *target* is the target's share of the
# image. Why? How many of the models' maps get less, and what does that say of a mean mIoU of 0.4?

# %% [markdown] tags=["solution"]
# Its foreground is empty, so the IoU of the foreground is 0. Its background is the whole image, of which 1 − target is
# right, so the IoU of the background is 1 − target. A mean of 0.4 may be less than an empty prediction gets.

# %% tags=["solution"]
empty = pd.Series(
    {i: localization.miou(np.zeros(grid, np.float32), masks[i]) for i in rows}
)
assert np.allclose(empty, [(1 - masks[i].mean()) / 2 for i in rows])
print(f"saying nothing: mIoU {empty.mean():.3f}")
for variant, table in tables.items():
    own = table.loc[rows, "miou"]
    print(
        f"{variant}: mIoU {own.mean():.3f}; {(own < empty).mean():.0%} of its maps get less than saying nothing"
    )

# %% [markdown]
# **2.** Energy, average precision, the oracle's IoU, the absolute CNR, box IoU, and the distance of the centres can all
# be fooled. For each, make a map that scores as well as the perfect one, or nearly so, and that you would not show to
# anyone.

# %% [markdown] tags=["solution"]
# Each score ignores something: energy the pixels that stay at the minimum, average precision and the oracle the size of
# the difference, the absolute CNR its sign, box IoU everything inside the box, and the distance all but the centre.

# %% tags=["solution"]
box, random = box_of(mask), np.random.default_rng(0)
top, left, high, wide = (int(v) for v in (box.y, box.x, box.h, box.w))
rim = np.zeros(mask.shape, np.float32)
rim[top : top + high, left : left + wide] = 1
rim[top + 1 : top + high - 1, left + 1 : left + wide - 1] = 0
dot = np.zeros(mask.shape, np.float32)
dot[
    top + (high - 1) // 2 : top + high // 2 + 1,
    left + (wide - 1) // 2 : left + wide // 2 + 1,
] = 1
# In the right order, but nobody could see it: the target is at 0, and noise begins right below.
ordered = np.where(mask, 0, -0.01 - random.random(mask.shape)).astype(np.float32)

traps = {"energy": spot, "average_precision": ordered, "iou_oracle": ordered}
traps |= {"cnr_absolute": handmade["inverted"], "bbox_iou": rim, "centre_distance": dot}
pd.DataFrame(
    {
        "its map gets": localization.score(values, mask, "full")[name],
        "the perfect one": scores.loc[name, "perfect, blurred"],
        "its IoU (mixture)": localization.iou(values, mask),
    }
    for name, values in traps.items()
).set_axis([labels[name] for name in traps]).round(3)

# %% [markdown]
# **3.** Add one very hot pixel to the perfect map, as a broken detector would. Which thresholds survive it, and which
# scores without a threshold?

# %% [markdown] tags=["solution"]
# Thresholds that depend on the values (mixture, Otsu, a share of the range) fail or get worse, CNR falls, and the
# pointing game is lost. Energy loses the share of the pixel's mass. AUC-ROC and average precision, which use the order
# of all pixels, change little, and so do the oracle's cut and the cut of a fixed area.

# %% tags=["solution"]
broken = handmade["perfect, blurred"].copy()
broken[0, 0] = 20 * broken.max()
compared_scores = [
    "iou",
    "iou_otsu",
    "iou_area",
    "iou_oracle",
    "auc_roc",
    "average_precision",
]
compared_scores += ["energy", "pointing_game", "cnr", "miou_thresholds"]
both = {"perfect": handmade["perfect, blurred"], "with the pixel": broken}
pd.DataFrame(
    {name: localization.score(values, mask, "full") for name, values in both.items()}
).loc[compared_scores].rename(index=labels).round(3).T

# %% [markdown]
# **4.** Dice always grows with IoU. Can the mean Dice still prefer another variant than the mean IoU?

# %% [markdown] tags=["solution"]
# Yes: the curve bends, so Dice forgives a middling map more than IoU does. Two phrases are enough.

# %% tags=["solution"]
two = pd.DataFrame({"even": [0.5, 0.5], "one good, one bad": [1.0, 0.04]})
assert two["even"].mean() < two["one good, one bad"].mean()  # IoU
bent = 2 * two / (1 + two)
assert bent["even"].mean() > bent["one good, one bad"].mean()  # Dice
pd.DataFrame({"mean IoU": two.mean(), "mean Dice": bent.mean()}).round(3)

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **Two papers report “mIoU”. Can you compare the numbers?**
#
# <details class="quiz" name="question-1"><summary>yes, they have one name</summary>No. One may average over two classes, the other over thresholds.</details>
# <details class="quiz right" name="question-1"><summary>only if the convention is the same</summary>Right. Say which one you use; the same name hides different scores.</details>
#
# **An inverted map, cold where the finding is, has a high *absolute* CNR. Why?**
#
# <details class="quiz right" name="question-2"><summary>its sign is dropped</summary>Right. The difference of means is as large, with the other sign.</details>
# <details class="quiz" name="question-2"><summary>it is sharp</summary>No. Sharpness is not what CNR measures.</details>
#
# **How do you find out what a score accepts?**
#
# <details class="quiz" name="question-3"><summary>by reading its definition</summary>No. Useful, but surprises remain.</details>
# <details class="quiz right" name="question-3"><summary>by applying it to maps whose quality you know</summary>Right. Wrong maps that score high show what it does not see.</details>
# <details class="quiz" name="question-3"><summary>by applying it to the best model</summary>No. Then you know the model's score, not the score's faults.</details>

# %% [markdown]
# ## Takeaways
#
# - Average precision looks at the hot end; CNR compares means and needs its sign; energy ignores how much of the target
#   is covered; IoU and mIoU compare shapes and depend on a threshold; boxes and centres fail on findings of several
#   parts.
# - Say which convention you use: the same name hides different scores, and saying nothing can score well.
# - Try a new score on maps of known quality before you trust it.
#
# **Further reading.** {cite:t}`zhang2018excitation` introduce the pointing game; {cite:t}`boecking2022mscxr` score maps
# of phrases by their contrast.

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
# # 4 Localization
#
# **How does one measure whether a map points at the disease, and what do the measures miss?**
#
# The last chapter left a heatmap for each phrase, and we know where the finding is. One number has to say whether the
# two agree. There are many such numbers, papers use different ones under the same name, and each can be high for a bad
# reason. So before the result we look at each measure with maps of which we know how good they are.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variants = ["frozen", "learnable"]
seeds = [0]
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import warnings

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from IPython.display import Markdown
from scipy import ndimage
from sklearn.metrics import precision_recall_curve

from chestxai import localization, models, plots, profiles, runs, stats, tradeoff
from chestxai.localization import LOWER_IS_BETTER, SCORES
from chestxai.studies import FINDINGS, Box, Frame, GroundTruth, box_of, phrases

# What few patients mean for an interval is measured in chapter 6.
warnings.simplefilter("ignore", stats.FewGroupsWarning)
settings = profiles.load(profile)
plots.setup()
size = models.image_size(models.load_pipeline(settings.base, device="cpu"))
test = phrases(profiles.studies(settings, "test", data, boxes=True))
folders = {
    variant: [profiles.run_folder(settings, variant, seed, out) for seed in seeds]
    for variant in variants
}


def frame_of(truth: GroundTruth) -> Frame:
    """From the original image to the model's."""
    return Frame(*truth.study.size, size, settings.data.fit)


tables, maps = {}, {}
for variant, (first, *_) in folders.items():
    table = pd.read_csv(first / "grounding.csv")
    last = table[table["step"] == table["step"].max()].reset_index(drop=True)
    stored = runs.load_tensors(first / "maps" / f"step-{last['step'][0]}.safetensors")
    tables[variant] = last.set_index(pd.Index(stored["rows"].tolist(), name="row"))
    maps[variant] = dict(zip(stored["rows"].tolist(), stored["maps"].numpy(), strict=True))
rows = sorted(set.intersection(*map(set, maps.values())))
masks = {i: frame_of(test[i]).mask(test[i].finding) for i in rows}
grid = maps[variants[0]][rows[0]].shape
pd.DataFrame(
    {
        "step": {v: t["step"].iloc[0] for v, t in tables.items()},
        "maps": {v: len(m) for v, m in maps.items()},
    }
)

# %% tags=["hide-input"]
auc = pd.DataFrame({variant: table["auc_roc"] for variant, table in tables.items()}).loc[
    rows
]
again = [localization.auc_roc(maps[v][i], masks[i]) for v in variants for i in rows[:5]]
written = [auc.loc[i, v] for v in variants for i in rows[:5]]
assert np.allclose(again, written, atol=1e-3), (
    "maps and grounding.csv are of different data: run chapter 3 again"
)
kept = pd.Series({i: localization.kept(test[i].finding, frame_of(test[i])) for i in rows})
cut_off = kept[kept < 0.995]
Markdown(
    f"{len(rows)} phrases of {len({test[i].study.patient for i in rows})} patients, each with a heatmap of {grid[0]} × "
    f"{grid[1]} from each variant's first seed at its last checkpoint. They are scored in the model's frame of {size} "
    f"× {size} pixels, to which a map is enlarged bilinearly. Nothing is normalised or smoothed before. "
    + (
        f"That frame cuts {len(cut_off)} of the targets, the worst to {cut_off.min():.0%} of its area: a map is held against "
        "what is left, and `kept` in grounding.csv says how much that is."
        if len(cut_off)
        else "That frame cuts none of the targets."
    )
)

# %% [markdown]
# ## Maps of which we know how good they are
#
# One phrase, and beside the models' maps some that we make ourselves: the target itself; the target as well as a map of
# the model's resolution can show it; its opposite; random noise; and the centre prior of chapter 1, the mean mask that
# other patients have of this finding. The phrase is one on which the models do better than on most.

# %%
ranked = auc.mean(axis=1).sort_values()
single = [i for i in ranked.index if ndimage.label(masks[i])[1] == 1] or list(ranked.index)
example = single[int(0.75 * (len(single) - 1))]
mask, finding = masks[example], test[example].finding
picture = frame_of(test[example]).image(test[example].study.pixels())

known = phrases(profiles.studies(settings, "train", data, boxes=True))
# Some sources have boxes for val and test only.
known = known or phrases(profiles.studies(settings, "val", data, boxes=True))
where = {
    name: [frame_of(t).mask(t.finding) for t in known if t.finding.name == name]
    for name in FINDINGS
}
anywhere = localization.location_prior([m for found in where.values() for m in found])
prior = {
    name: localization.location_prior(found) if found else anywhere
    for name, found in where.items()
}


def perfect(i: int) -> dict[str, np.ndarray]:
    """Maps that know the answer, and the one that knows it and says the opposite."""
    exact = masks[i].astype(np.float32)
    coarse = localization.resize(exact, grid)
    return {
        "perfect": exact,
        f"perfect, {grid[0]} × {grid[1]}": coarse,
        "inverted": 1 - coarse,
    }


shown = {
    **perfect(example),
    "random": np.random.default_rng(0).standard_normal(grid).astype(np.float32),
    "centre prior": prior[finding.name],
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

# %% [markdown]
# The white outline is the target. "Constant", a map that says the same everywhere, is missing only because there is
# nothing to see.
#
# ## Does the finding rank first? AUC-ROC
#
# The first measure asks only for the order: how probable is it that a pixel of the target is hotter than one outside? 1
# is perfect, 0.5 is chance. Here are the values of a model's map inside and outside the target. The less the two
# histograms overlap, the higher the AUC-ROC.

# %%
heat = localization.resize(maps[variants[0]][example], mask.shape)
plots.histogram(
    heat, mask, title=f"{variants[0]}: AUC-ROC {localization.auc_roc(heat, mask):.2f}"
)

# %% [markdown]
# **What it misses.** Most pixels are easy. That the disease is not in the black corners, in the neck or below the
# diaphragm is no insight, yet each of these pixels counts as much as one beside the finding. How far does a single map
# get, the same for every image and *every finding*, the mean mask of all findings of other patients?

# %%
blind = pd.Series([localization.auc_roc(anywhere, masks[i]) for i in rows])
pd.Series({"one map for everything": blind.mean(), **auc.mean()}, name="AUC-ROC").round(
    3
).to_frame().T

# %% tags=["hide-input"]
below = [v for v in variants if auc[v].mean() < blind.mean()]
Markdown(
    f"Without knowing the image or the finding one reaches {blind.mean():.3f}. "
    + (
        f"{' and '.join(f'`{v}`' for v in below)} stay below that. "
        if below
        else "The models are above that. "
    )
    + "An AUC-ROC says little unless such a map stands beside it."
)

# %% [markdown]
# ## The hot end of the order: average precision
#
# Average precision asks for the order, too, but from the hottest pixel down: of what has been called so far, how much is
# target? It is the area under this curve, without the easy background's help. Chance is the target's share of the image.

# %%
curves = {
    "centre prior": prior[finding.name],
    **{v: localization.resize(maps[v][example], mask.shape) for v in variants},
}
points = []
for name, some in curves.items():
    precision, recall, _ = precision_recall_curve(mask.ravel(), some.ravel())
    ap = localization.average_precision(some, mask)
    points.append(
        pd.DataFrame(
            {"recall": recall, "precision": precision, "map": f"{name} ({ap:.2f})"}
        )
    )
px.line(
    pd.concat(points), x="recall", y="precision", color="map", template=plots.TEMPLATE, height=360,
    range_y=[0, 1.02], title="<b>Precision from the hottest pixel down</b> (in brackets: average precision)",
).update_layout(legend_title_text="").add_hline(mask.mean(), line_dash="dot", annotation_text="chance")  # fmt: skip

# %% tags=["hide-input"]
target_area = pd.Series({i: masks[i].mean() for i in rows})
precise = pd.Series(
    {i: localization.average_precision(maps[variants[0]][i], masks[i]) for i in rows}
)
Markdown(
    "**What it misses.** That targets differ in size: chance is the size, so a small target scores low under any map. Here "
    f"targets fill {target_area.min():.1%} to {target_area.max():.0%} of the image; the average precision of "
    f"`{variants[0]}` has a rank correlation of {precise.corr(target_area, 'spearman'):+.2f} with that."
)

# %% [markdown]
# ## How much of it? Energy
#
# The energy-based pointing game {cite}`wang2020scorecam` is the share of a map's mass that lies in the target. But what is
# mass? Attention is never 0, and a map that is nearly even has most of its mass in what is common to all pixels. So the
# book counts what is above the map's minimum; taken as it is, the number would hardly move from the target's area. Here is
# one map twice, each time as a share of its maximum: what has a colour is counted.

# %%
raw = maps[variants[0]][example]
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

# %%
shares = {
    name: {
        "above the map's minimum": np.mean(
            [localization.energy(some[i], masks[i]) for i in rows]
        ),
        "as it is": np.mean([localization.energy(some[i], masks[i], "zero") for i in rows]),
    }
    for name, some in {
        "constant": {i: np.ones(grid, np.float32) for i in rows},
        "centre prior": {i: prior[test[i].finding.name] for i in rows},
        **maps,
    }.items()
}
pd.DataFrame(shares).T.rename_axis("share of the mass in the target").round(3)

# %% [markdown]
# **What it misses.** Where in the target, and how much of it: one hot pixel inside has all of its mass there.
#
# ## Does it hit? The pointing game (Top-1)
#
# The hottest pixel is in the target or not {cite}`zhang2018excitation`. That is what a user wants to know who is shown
# one spot. Chance is the share of the image that the target fills.
#
# A tolerance forgives a near miss. Zhang et al. count a maximum up to 15 pixels from the target, in photographs at their
# own size, some 500 pixels. `pointing_game` takes a tolerance *literally*, in pixels of the frame that the mask is in, and
# does not scale it: whoever scores in a smaller frame and writes 15 plays another game. Here are none, the same share of
# the side as theirs, and 15 pixels. Yellow is where a maximum counts as a hit; its share of the image is chance. The box is
# around the map's maximum.

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

# %%
guesses = {"centre prior": {i: prior[test[i].finding.name] for i in rows}, **maps}
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

# %% tags=["hide-input"]
Markdown(
    "**What it misses.** All but one pixel. A map may be right everywhere and wrong in its maximum, or wrong "
    f"everywhere and lucky. The maximum of a map of {grid[0]} × {grid[1]} is also only known to {size / grid[0]:.0f} "
    f"pixels, wider than some targets. A tolerance of 15 pixels is {15 / size:.0%} of this frame's side and {15 / 500:.0%} "
    "of a photograph's, so it must be told with the size of the frame. And a hit is 0 or 1, so it needs many phrases: "
    f"with {len(rows)} of them, the standard error of a share is up to {0.5 / np.sqrt(len(rows)):.2f}."
)

# %% [markdown]
# ## How strongly? The contrast-to-noise ratio
#
# CNR is the distance of the two means in the histogram above, measured by their spreads:
#
# $$ \mathrm{CNR} = \frac{\mu_\mathrm{in} - \mu_\mathrm{out}}{\sqrt{\sigma^2_\mathrm{in} + \sigma^2_\mathrm{out}}} $$
#
# One paper keeps the sign {cite}`dombrowski2024tradeoffs`, others take the absolute value
# {cite}`boecking2022mscxr,vilouras2024zeroshot`. What difference does it make?

# %%
rng = np.random.default_rng(0)
noise = {i: rng.standard_normal(grid).astype(np.float32) for i in rows}
tried = {"inverted": {i: perfect(i)["inverted"] for i in rows}, "random": noise, **guesses}
pd.DataFrame(
    {
        name: {
            "signed": np.mean([localization.cnr(some[i], masks[i]) for i in rows]),
            "absolute": np.mean(
                [localization.cnr(some[i], masks[i], signed=False) for i in rows]
            ),
        }
        for name, some in tried.items()
    }
).T.round(2)

# %% [markdown]
# **What it misses.** The absolute CNR gives a map full marks that is cold exactly where the disease is, and more than
# zero to pure noise. We report the signed one. And both depend on the scale: the same map, with its contrast changed
# but the order of its pixels kept, gets another CNR, as it gets another threshold and IoU. AUC-ROC and Top-1 do not
# care.

# %%
powers = {"√ map": 0.5, "map": 1.0, "map³": 3.0}
bent = {
    name: localization.score(plots.normalize(heat) ** power, mask)
    for name, power in powers.items()
}
pd.DataFrame(bent).T[["auc_roc", "pointing_game", "cnr", "iou"]].rename(
    columns=tradeoff.NAMES
).round(3)

# %% [markdown]
# ## A shape: threshold, IoU, Dice, mIoU
#
# To compare shapes, a map must become a yes or no for each pixel. The paper fits a mixture of two Gaussians to the
# map's values and cuts half-way between their means. The mask plays no part in it.

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
cut = {name: localization.foreground(some, mask.shape) for name, some in shown.items()}
overlap = {name: localization.iou(some, mask) for name, some in shown.items()}
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
# The mixture is one way to cut. Otsu's threshold splits the histogram where the two parts differ most, a fixed one takes a
# fraction of the map's range, a fixed area the hottest tenth of the image, and the *oracle* the cut with the best overlap
# with the very mask: no score, but what a map could give.

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

# %%
by_way = {
    name: {
        way: np.mean([localization.iou(some[i], masks[i], how) for i in rows])
        for way, how in {**ways, "oracle": "oracle"}.items()
    }
    for name, some in {"random": noise, **guesses}.items()
}
pd.DataFrame(by_way).T.rename_axis("mean IoU").round(3)

# %% tags=["hide-input"]
gap = {v: by_way[v]["oracle"] - by_way[v]["mixture"] for v in variants}
Markdown(
    "**What they miss.** A threshold decides without knowing the target's size. "
    + ", ".join(f"`{v}` loses {loss:.3f}" for v, loss in gap.items())
    + " of IoU to the mixture's cut, compared with the oracle's. And the oracle knows the truth: even noise gets "
    f"{by_way['random']['oracle']:.3f} from it."
)

# %% [markdown]
# The *intersection over union* (IoU) divides what both cover by what either covers; *Dice* is another spelling of the
# same number, $2\,\mathrm{IoU}/(1+\mathrm{IoU})$. **What they miss:** a map without two kinds of pixels is cut all the
# same, and an error of one pixel all around costs a small target much more than a large one.
#
# *mIoU* means two things. As the mean over **classes** it is (IoU of the foreground + IoU of the background) / 2 at the
# mixture threshold {cite}`dombrowski2024tradeoffs`; as the mean over **thresholds** it is the mean IoU at 0.1 to 0.5 of
# the map's range {cite}`boecking2022mscxr`.

# %%
everywhere = {**tried, "constant": {i: np.zeros(grid, np.float32) for i in rows}}
pd.DataFrame(
    {
        name: {
            "IoU": np.mean([localization.iou(some[i], masks[i]) for i in rows]),
            "mIoU over classes": np.mean(
                [localization.miou(some[i], masks[i]) for i in rows]
            ),
            "mIoU over thresholds": np.mean(
                [localization.miou(some[i], masks[i], "thresholds") for i in rows]
            ),
        }
        for name, some in everywhere.items()
    }
).T.round(3)

# %% [markdown]
# Look at the constant map, which predicts nothing at all: over classes it gets nearly a half, because the background is
# large and it gets that right. Exercise 2 asks how many of the models' maps do worse than saying nothing.
#
# ## A place: box IoU and the distance of the centres
#
# Often the truth is only a box. Then one compares it with the box around the thresholded map (around its largest part,
# so that a stray pixel does not spoil it), or the two centres. A finding of several parts, where there is one, shows
# what goes wrong.


# %%
def largest(hot: np.ndarray) -> np.ndarray:
    """The largest part of a thresholded map."""
    parts, n = ndimage.label(hot, np.ones((3, 3)))
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if n else hot


parted = [i for i in rows if ndimage.label(masks[i], np.ones((3, 3)))[1] > 1]
widest = sorted(parted, key=lambda i: box_of(masks[i]).w)[-1:]
placed = [example, *widest]
boxes = [
    [
        ("target", box_of(masks[i])),
        ("map", box_of(largest(localization.foreground(maps[variants[0]][i], mask.shape)))),
    ]
    for i in placed
]
plots.images(
    [frame_of(test[i]).image(test[i].study.pixels()) for i in placed],
    titles=[
        f"“{test[i].finding.phrase}”: box IoU {localization.bbox_iou(maps[variants[0]][i], masks[i]):.2f}, centres "
        f"{localization.centre_distance(maps[variants[0]][i], masks[i]):.2f} of the diagonal apart"
        for i in placed
    ],
    masks=[masks[i] for i in placed],
    boxes=[[(name, box) for name, box in pair if box] for pair in boxes],
    columns=2,
    title=f"Boxes of the target and of the thresholded map of {variants[0]}",
)

# %% tags=["hide-input"]
nothing = np.zeros(grid, np.float32)
lost = np.mean([localization.centre_distance(nothing, masks[i]) for i in rows])
own = [localization.bbox_iou(masks[i].astype(np.float32), masks[i]) for i in parted]
middles = [(b.y + b.h / 2, b.x + b.w / 2) for b in (box_of(masks[i]) for i in parted)]
beside = sum(
    not masks[i][int(y), int(x)] for i, (y, x) in zip(parted, middles, strict=True)
)
Markdown(
    (
        f"**What they miss.** {len(parted)} of {len(rows)} targets have several parts. Even the target itself, taken "
        f"as a map, gets a box IoU of {np.mean(own):.2f} on them, for the box of its largest part is not the box of "
        f"all. In {beside} of them the centre of the box is not in the target at all. "
        if parted
        else "**What they miss.** The form of a finding, and findings of several parts, which are not among these. "
    )
    + f"A map that points nowhere has its centre in the middle of the image, and is {lost:.2f} of the diagonal "
    "away from the target on average: a distance has to be seen beside that."
)

# %% [markdown]
# ## What fools which measure
#
# Eight maps made by hand for this one target, each wrong in its own way but the first. Below is what every measure says of
# them. Colour is where the score lies between that of a constant map, which says nothing (white), and that of the perfect
# one (dark green); brown is worse than nothing.

# %%
span = max(2, round(np.sqrt(mask.sum()) / 2))
aside = 1 if np.argwhere(mask)[:, 1].mean() < size / 2 else -1
grown = ndimage.binary_dilation(mask, iterations=span)
wrong = mask[:, ::-1] & ~mask  # the same place in the other half
handmade = {
    "perfect": mask,
    "shifted": ndimage.shift(mask.astype(float), (0, aside * 2 * span), order=0),
    "too large": grown,
    "ring": grown & ~mask,
    "two, one wrong": mask | wrong,
    "inverted": ~mask,
}
# A little blur, as no model's map is sharp.
handmade = {
    name: ndimage.gaussian_filter(np.asarray(some, dtype=np.float32), size / 64)
    for name, some in handmade.items()
}
spot = np.zeros(mask.shape, np.float32)
spot[tuple(np.argwhere(mask)[mask.sum() // 2])] = 1
handmade |= {"one hot pixel": spot, "constant": np.zeros_like(spot)}
plots.overlays(
    [picture] * len(handmade),
    list(handmade.values()),
    masks=[mask] * len(handmade),
    titles=list(handmade),
    title="Eight maps for one target",
    scale=plots.Scale("heat", (0, 1)),
)

# %%
asked = {
    "auc_roc": "AUC-ROC", "average_precision": "average precision", "pointing_game": "Top-1",
    "pointing_game_15": "Top-1, 15 pixels", "energy": "energy", "cnr": "CNR", "cnr_absolute": "CNR, absolute",
    "iou": "IoU, mixture", "iou_otsu": "IoU, Otsu", "iou_area": "IoU, hottest tenth", "iou_oracle": "IoU, oracle",
    "dice": "Dice", "miou": "mIoU, classes", "miou_thresholds": "mIoU, thresholds", "bbox_iou": "box IoU",
    "centre_distance": "centre distance",
}  # fmt: skip
said = pd.DataFrame(
    {name: localization.score(some, mask, "full") for name, some in handmade.items()}
).loc[list(asked)]
nothing, all_of_it = said["constant"], said["perfect"]
skill = said.sub(nothing, axis=0).div(all_of_it - nothing, axis=0)
figure = go.Figure(
    go.Heatmap(
        z=skill.clip(-1, 1), x=list(said), y=list(asked.values()), zmid=0, zmin=-1, zmax=1,
        colorscale="BrBG", showscale=False, text=said, texttemplate="%{text:.2f}", hoverinfo="skip",
    )
)  # fmt: skip
figure.update_layout(
    template=plots.TEMPLATE, height=560, title="<b>Every measure on the eight maps</b> (centre distance: lower is better)",
    yaxis={"autorange": "reversed", "showgrid": False}, margin={"t": 90, "b": 16},
    xaxis={
        "side": "top", "showgrid": False, "tickangle": 0, "tickvals": list(said),
        "ticktext": [name.replace(" ", "<br>", 1) for name in said],
    },
)  # fmt: skip

# %% tags=["hide-input"]
taken = {
    name: [asked[s] for s in asked if skill.loc[s, name] >= 0.9]
    for name in said
    if name not in ("perfect", "constant")
}
free = [asked[s] for s in asked if s not in LOWER_IS_BETTER and nothing[s] >= 0.25]
Markdown(
    "Taken for nine tenths of perfect, or more, are:\n\n"
    + "\n".join(f"- *{name}* by {', '.join(who)}" for name, who in taken.items() if who)
    + (
        "\n\nBy none: "
        + ", ".join(f"*{name}*" for name, who in taken.items() if not who)
        + "."
        if not all(taken.values())
        else ""
    )
    + f"\n\nA map that says nothing gets a quarter or more from {', '.join(free)}."
)

# %% [markdown]
# Look for a column that every measure rejects, and for a measure that rejects every wrong column. That neither is easy to
# find is why several are reported.
#
# ## Definition or skill?
#
# Now all maps under all measures, as means over the test phrases. What separates *perfect* from 1 is the measure or the
# map's resolution. What *constant*, *random* and *inverted* get is free. What the *centre prior* gets is anatomy. Only
# what a model has beyond these is skill.

# %%
made = [
    {"map": name, **localization.score(some, masks[i])}
    for i in runs.progress(rows, "reference maps")
    for name, some in {**perfect(i), "constant": np.zeros(grid, np.float32)}.items()
]
compared = pd.DataFrame(made).groupby("map", sort=False).mean()
shared = tables[variants[0]].loc[rows]
for name, prefix in (("random", "chance_"), ("centre prior", "prior_")):
    compared.loc[name] = [shared[prefix + score].mean() for score in SCORES]
for variant in variants:
    compared.loc[variant] = [tables[variant].loc[rows, score].mean() for score in SCORES]
compared.rename(columns=tradeoff.NAMES).round(2)

# %% [markdown]
# The arrow points to where better is. An infinite CNR has no noise: the map takes one value inside and another outside.
# Read the table by columns: a measure is useful to the extent that the rows that know nothing get little, and the rows
# that know everything get much.
#
# ## The same maps under the protocols of three papers
#
# "CNR" and "mIoU" do not mean one thing. The same maps are scored once more as three papers score theirs
# {cite}`dombrowski2024tradeoffs,nuetzel2025generate,vilouras2024zeroshot`, as far as their code and text tell;
# `localization.PROTOCOLS` says what they do to a map, and what could not be found out.

# %%
some = profiles.sample(rows, 60, seeds[0])
truths = {i: localization.box_labels(test[i].finding, frame_of(test[i])) for i in some}
scored = []
for protocol in ("dombrowski2023", "nuetzel2025", "vilouras2024"):
    for i in runs.progress(some, protocol):
        exact, coarse, inverted = perfect(i).items()
        tried_maps = {
            "inverted": inverted[1],
            "centre prior": prior[test[i].finding.name],
            **{variant: maps[variant][i] for variant in variants},
            **dict([coarse, exact]),
        }
        found = {
            "random": localization.chance(truths[i], grid, 8, protocol=protocol),
            **{
                m: localization.score(h, truths[i], protocol) for m, h in tried_maps.items()
            },
        }
        scored += [
            (protocol, score, name, test[i].finding.name, value)
            for name, values in found.items()
            for score, value in values.items()
        ]
under = pd.DataFrame(scored, columns=["protocol", "score", "map", "finding", "value"])
# The third takes the mean over findings, the others that over phrases.
means = under.groupby(["protocol", "score", "map"], sort=False)["value"].mean()
by_finding = under.groupby(["protocol", "score", "map", "finding"], sort=False)[
    "value"
].mean()
means["vilouras2024"] = by_finding.groupby(["protocol", "score", "map"], sort=False).mean()[
    "vilouras2024"
]
means.unstack("map")[list(dict.fromkeys(under["map"]))].round(3)

# %% [markdown]
# Read each row from left to right: a protocol that gives *random* much gives it to everyone, one that praises *inverted*
# has no sign, and one that gives *perfect* little cannot praise a good map. What differs down a column is definition: the
# maps are the same.
#
# ## The answer: do the maps point at the disease?
#
# Each finding with its 95 % interval, which says what other *patients* might have given: it is found by drawing
# patients, with all of their phrases, again and again (chapter 6 tries out whether such intervals hold what they promise).
# With several seeds it covers other seeds, too. The diamond is the centre prior and the bar is chance.

# %%
every = [folder for found in folders.values() for folder in found]
resamples = settings.statistics.resamples
plots.scores_by_finding(
    tradeoff.by_finding(every, "auc_roc", n=resamples),
    "AUC-ROC",
    title="AUC-ROC by finding (number of phrases)",
)

# %%
plots.scores_by_finding(
    tradeoff.by_finding(every, "pointing_game", n=resamples),
    "Top-1",
    title="Top-1 by finding (number of phrases)",
)

# %% tags=["hide-input"]
words = []
for variant, table in tables.items():
    for name in ("chance", "prior"):
        d = stats.paired_difference(
            table["auc_roc"], table[f"{name}_auc_roc"], table["patient"], n=resamples
        )
        verb = (
            "is above" if d.low > 0 else "is below" if d.high < 0 else "cannot be told from"
        )
        words.append(
            f"- `{variant}` {verb} {'the centre prior' if name == 'prior' else name}: difference {d:+.3f}"
        )
if set(variants) == {"frozen", "learnable"}:
    words.append(
        f"- {tradeoff.verdict(tradeoff.compare(folders['frozen'], folders['learnable'], n=resamples))}"
    )
Markdown(
    f"AUC-ROC on the same phrases, paired, at the last checkpoint (against chance and prior: seed {seeds[0]}):\n\n"
    + "\n".join(words)
)

# %% [markdown]
# ## The best and the worst maps
#
# A mean hides what a map looks like. Here are the three phrases that the models ground best and the three they ground
# worst.

# %%
order = list(ranked.index)
picked = list(dict.fromkeys([*order[::-1][:3], *order[:3][::-1]]))
hit = {variant: table["pointing_game"] for variant, table in tables.items()}
plots.overlay_grid(
    [frame_of(test[i]).image(test[i].study.pixels()) for i in picked],
    {variant: [maps[variant][i] for i in picked] for variant in variants},
    masks=[masks[i] for i in picked],
    titles=[
        f"{'best' if k < 3 else 'worst'}: “{test[i].finding.phrase}”"
        for k, i in enumerate(picked)
    ],
    captions={
        v: [f"AUC {auc.loc[i, v]:.2f}, Top-1 {hit[v][i]:.0f}" for i in picked]
        for v in variants
    },
)

# %% [markdown]
# ## Does size decide?
#
# A large target is easier to hit. So two models, or two data sets, may differ only because the targets do.

# %%
both = pd.concat(
    [table.assign(variant=variant) for variant, table in tables.items()], ignore_index=True
)
plots.score_by_size(
    both,
    title="Scores by the size of the target: phrases (faint) and means of groups (bold)",
)

# %% tags=["hide-input"]
of_size = {
    "chance": {s: (shared["target"], shared[f"chance_{s}"]) for s in SCORES},
    "centre prior": {s: (shared["target"], shared[f"prior_{s}"]) for s in SCORES},
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
# A correlation of 1 under *chance* means that the measure grows with the target whatever a map does. Compare such a
# score only on the same phrases, or beside its chance. A dash: one value for all sizes.
#
# ## Exercises
#
# **1.** Make a map whose AUC-ROC rounds to 1 and whose Top-1 is 0.

# %% tags=["hide-cell"]
# The target itself, and a single hotter pixel in a corner: nearly all pairs of pixels are in order, the maximum is not.
trap = mask.astype(np.float32)
trap[tuple(np.argwhere(~mask)[0])] = 2
pd.Series(localization.score(trap, mask)).rename(tradeoff.NAMES).round(3).to_frame("trap").T

# %% [markdown]
# **2.** An empty prediction gets an mIoU over classes of (1 − target)/2. Why? How many of the models' maps get less
# than that, and what does it say of a mean mIoU of 0.4?

# %% tags=["hide-cell"]
# Its foreground is empty, so the IoU of the foreground is 0. Its background is the whole image, of which 1 − target is
# right, so the IoU of the background is 1 − target. A mean of 0.4 may be less than nothing.
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
# **3.** Which variant is better? Ask every measure, and count how often they agree.

# %% tags=["hide-cell"]
means = compared.loc[variants]
first = {
    s: means[s].idxmin() if s in LOWER_IS_BETTER else means[s].idxmax() for s in SCORES
}
better = [name if means[s].nunique() > 1 else "neither" for s, name in first.items()]
print(pd.Series(better).value_counts().to_string())
means.rename(columns=tradeoff.NAMES).round(3).T.assign(better=better)

# %% [markdown]
# **4.** Each of these can be fooled: energy, average precision, the oracle's IoU, the absolute CNR, box IoU, and the distance
# of the centres. Make a map for each that gets as much as the perfect map of the gallery, and that you would not show to
# anyone.

# %% tags=["hide-cell"]
box, random = box_of(mask), np.random.default_rng(0)
top, left, high, wide = (int(v) for v in (box.y, box.x, box.h, box.w))
rim = np.zeros(mask.shape, np.float32)
rim[top : top + high, left : left + wide] = 1
rim[top + 1 : top + high - 1, left + 1 : left + wide - 1] = 0
dot = np.zeros(mask.shape, np.float32)
dot[top + high // 2, left + wide // 2] = 1
# In the right order, but nobody could see it: the target is at 0, and noise begins right below.
ordered = np.where(mask, 0, -0.01 - random.random(mask.shape)).astype(np.float32)
fooled = {
    "energy": spot,
    "average_precision": ordered,
    "iou_oracle": ordered,
    "cnr_absolute": handmade["inverted"],
    "bbox_iou": rim,
    "centre_distance": dot,
}
pd.DataFrame(
    {
        "the measure": asked[name],
        "its map gets": localization.score(some, mask, "full")[name],
        "the perfect one": said.loc[name, "perfect"],
        "its IoU, mixture": localization.iou(some, mask),
    }
    for name, some in fooled.items()
).set_index("the measure").round(3)

# %% [markdown]
# **5.** Add one very hot pixel to the perfect map of the gallery, as a broken detector would. Which thresholds survive it, and
# which scores without a threshold?

# %% tags=["hide-cell"]
broken = handmade["perfect"].copy()
broken[0, 0] = 20 * broken.max()
asked_of = [
    "iou",
    "iou_otsu",
    "iou_area",
    "iou_oracle",
    "auc_roc",
    "average_precision",
    "energy",
]
asked_of += ["pointing_game", "cnr", "miou_thresholds"]
# What goes by the values' range or squares is lost, and so is the maximum. Energy pays for the pixel's mass. What goes by
# order, the fixed area's cut too, hardly notices one pixel.
pd.DataFrame(
    {
        name: localization.score(some, mask, "full")
        for name, some in {"perfect": handmade["perfect"], "with the pixel": broken}.items()
    }
).loc[asked_of].rename(index=asked).round(3).T

# %% [markdown]
# **6.** Dice grows with IoU, always. Can the mean Dice still prefer another variant than the mean IoU?

# %% tags=["hide-cell"]
# Yes: the curve bends, so Dice forgives a middling map more than IoU does. Two phrases are enough.
two = pd.DataFrame({"even": [0.5, 0.5], "one good, one bad": [1.0, 0.04]})
assert two["even"].mean() < two["one good, one bad"].mean()  # IoU
bent = 2 * two / (1 + two)
assert bent["even"].mean() > bent["one good, one bad"].mean()  # Dice
pd.DataFrame({"mean IoU": two.mean(), "mean Dice": bent.mean()}).round(3)

# %% [markdown]
# ## Takeaways
#
# - AUC-ROC asks for order and is easy on the background; Top-1 asks for one pixel; CNR asks for contrast, and needs its
#   sign; IoU and mIoU ask for a shape, and depend on a threshold; boxes and centres fail on findings of several parts.
# - Say which convention you use: the same name hides different measures, and saying nothing can score well.
# - Every score belongs beside chance and the centre prior, on the same phrases, with an interval over patients.
# - A map has to be looked at, the worst ones too.

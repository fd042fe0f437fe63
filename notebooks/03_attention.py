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
# # 3 Attention on held-out images
#
# **When the model reads the name of a disease, where in a radiograph does it look?**
#
# The U-Net reads the prompt by *cross-attention* (chapter 2): every position of the image gives each token of the
# prompt a probability. Averaged over the tokens that name the finding, these probabilities form a *heatmap*: at each
# position, how much attention the name gets there. We read it on *held-out* images, which the model has never seen,
# rather than on images that it generated: only for held-out images is it known where the finding is, from a radiologist
# or from the phantom {cite}`dombrowski2024tradeoffs,vilouras2024zeroshot`.
#
# Two tests decide whether such maps point (chapter 4): they must be better on their own image than on other patients'
# images, and the word must matter.
#
# *You will be able to* make a heatmap by hand, see how layers and timesteps differ, and compare three ways to run the
# model.
# *Before:* chapters 1 and 2.
#
# ![Noise of several timesteps is added to the latent of a held-out image; the U-Net reads each with the prompt; the attention probabilities of the phrase are averaged into a heatmap, which is compared with the mask](../_static/map.svg)
#
# *How a map is made. Nothing learns here.*

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variant = "frozen"  # a variant of the profile
seed = 0
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import numpy as np
import pandas as pd
import plotly.express as px
import torch
from IPython.display import Markdown

from chestxai import (
    attention,
    faithfulness,
    finetune,
    grounding,
    localization,
    models,
    plots,
    postprocess,
    profiles,
    reports,
    runs,
    stats,
    tradeoff,
    widgets,
)
from chestxai import sentences as say
from chestxai.studies import FINDINGS, Frame, phrases, to_images

# %%
settings = profiles.load(profile)
run = profiles.run(settings, variant, seed, out).check_finished()
plots.setup(settings.variants)
pipeline = models.load_base(settings)
size, steps = models.image_size(pipeline), run.steps()
finetune.load_checkpoint(pipeline, run, steps[-1])
test = phrases(profiles.studies(settings, "test", data, boxes=True))

# %% tags=["aggregate"]
Markdown(
    f"`{variant}`, seed {seed}, step {steps[-1]}: {len(test)} phrases of {len({t.study.patient for t in test})} patients "
    f"will be grounded, with checkpoints at steps {', '.join(map(str, steps))}."
)

# %% [markdown]
# ## One phrase on one image, by hand
#
# Here the prompt is one phrase of a test report. It is split into tokens, and we read the attention to those that name
# the finding:

# %%
readable, _ = grounding.groundable(pipeline, test, settings.grounding.target)
effusions = (t for t in readable if t.finding.name == "Pleural Effusion")
example = next(effusions, readable[0])
prompt = example.finding.phrase
span = grounding.target_span(example.finding, settings.grounding.target)
words = prompt[slice(*span)]
positions = reports.token_positions(pipeline.tokenizer, prompt, span)
ids = models.tokenize(pipeline, [prompt])["input_ids"][0]
tokens = pipeline.tokenizer.convert_ids_to_tokens(ids)
used = max(len(pipeline.tokenizer(prompt)["input_ids"]), positions[-1] + 1)
pd.DataFrame(
    {"token": tokens[:used], "read": ["●" if i in positions else "" for i in range(used)]},
).T

# %% [markdown]
# The image becomes a latent, gets the noise of one timestep, and passes through the U-Net once. Each attention layer
# has learned matrices: one turns the U-Net's features at a position into a *query* (a row of $Q$), another turns a
# token's state into a *key* (a row of $K$, both of width $d$). The larger their product, the more the position attends
# to the token. For each position, $\mathrm{softmax}(QK^\top/\sqrt d)$ turns the products into probabilities over all
# tokens, padding included. (A third matrix makes the *values*, which the position takes in; a map does not use them.) A
# layer does this several times side by side, in its *heads*. `capture` records what each position gives to the marked
# tokens; the mean over heads and marked tokens is one map per layer, at the layer's own resolution. Layers are named by
# their place in the U-Net: *down* goes from fine to coarse, *mid* is the coarsest, *up* goes back. The first number is
# the block, the second the layer in it.

# %%
timestep = 200
frame = Frame(*example.study.size, size, settings.data.fit)
image = frame.image(example.study.pixels())
mask = frame.mask(example.finding)
latent = models.encode_images(pipeline, image[None])
noise = models.seeded_noise(latent.shape, seed).to(latent.device)
schedule = models.noising(pipeline.scheduler)
noisy = schedule.add_noise(latent, noise, torch.tensor([timestep]))
with torch.no_grad(), attention.capture(pipeline.unet, [positions]) as seen:
    models.denoise(pipeline.unet, noisy, timestep, models.encode_text(pipeline, [prompt]))


# %%
def short(name):
    """Short name of a layer, such as "up 0.1"."""
    part, number, *rest = name.split(".")
    if part == "mid_block":
        return "mid"
    return " ".join([part.split("_")[0], ".".join([number, *rest[1:2]])])


layers = {short(name): maps for name, maps in seen.maps().items()}
pd.DataFrame(
    {"map (images, groups of tokens, h, w)": [tuple(m.shape) for m in layers.values()]},
    index=list(layers),
)

# %% name="fig-layers"
plots.overlays(
    [image] * len(layers),
    [m[0, 0].cpu().numpy() for m in layers.values()],
    masks=[mask] * len(layers),
    titles=list(layers),
    title=f"“{words}”, timestep {timestep}",
)

# %% [markdown]
# The white outline is the finding's true place. A single pass is noisy and the layers disagree ({numref}`fig-layers`).
# When a model generates, it does not visit every timestep but some 50, evenly spaced. The paper averages over all
# layers, the coarser maps enlarged to the finest, and over the 40 of these 50 with the least noise, with fresh noise
# at each. A profile may read fewer or other timesteps; the next sections say what that changes. Is the mean map
# highest inside the outline? A single phrase may fail ({numref}`fig-where-it-looks` shows more of them): an AUC-ROC
# below 0.5 means that the map is lower inside the outline than outside.

# %%
timesteps = grounding.paper_timesteps(
    pipeline.scheduler,
    settings.grounding.steps,
    settings.grounding.last,
    settings.grounding.stride,
)
heatmap = grounding.ground(pipeline, image, prompt, span, timesteps, seed)
plots.overlay(
    image,
    heatmap.values,
    mask,
    title=f"mean over {len(timesteps)} timesteps and {len(heatmap.layers)} layers: AUC-ROC "
    f"{localization.auc_roc(heatmap.values, mask):.2f}",
)

# %% [markdown]
# ## Further: which layer, and when?
#
# Does the mean hide a layer or timestep that points better? Here each is scored alone, on validation phrases, by
# AUC-ROC (chapter 1). White is chance: on average over the phrases, the map is no higher inside the finding than
# outside.


# %%
def mask_of(truth):
    """Where a finding is, in the model's frame: bool (size, size)."""
    return Frame(*truth.study.size, size, settings.data.fit).mask(truth.finding)


located = phrases(profiles.studies(settings, "val", data, boxes=True))
located, _ = grounding.groundable(pipeline, located, settings.grounding.target)
sampled = profiles.sample(located, 32, seed)
images, studies, _ = to_images([t.study for t in sampled], size, settings.data.fit)
row_of = {study.id: i for i, study in enumerate(studies)}
validation = [t for t in sampled if t.study.id in row_of]
val_images = images[[row_of[t.study.id] for t in validation]]
val_prompts = [t.finding.phrase for t in validation]
val_words = [
    grounding.target_span(t.finding, settings.grounding.target) for t in validation
]
val_masks = [mask_of(t) for t in validation]


# %% tags=["aggregate"] name="fig-layer-time"
def mean_auc(maps):
    """Mean AUC-ROC over the validation phrases of one map (h, w) each."""
    return np.mean(
        [localization.auc_roc(m, mask) for m, mask in zip(maps, val_masks, strict=True)]
    )


many = min(50, settings.grounding.steps)
path = grounding.paper_timesteps(pipeline.scheduler, many, many)
by_layer = grounding.ground_layers(
    pipeline, val_images, val_prompts, val_words, timesteps=path, seed=seed
)  # {layer: (phrases, timesteps, h, w)}
at = np.unique(np.linspace(0, len(path) - 1, 8).round().astype(int))
few = [path[j] for j in at]
auc = np.array([[mean_auc(m[:, j]) for j in at] for m in by_layer.values()])
px.imshow(
    auc, x=[str(t) for t in few], y=list(layers), text_auto=".2f", aspect="auto",
    color_continuous_scale="RdBu", color_continuous_midpoint=0.5, template=plots.TEMPLATE,
    labels={"x": "timestep t (larger = noisier)", "y": "layer", "color": "AUC-ROC"},
    title=f"AUC-ROC of {len(val_masks)} validation phrases, {variant}",
).update_xaxes(type="category")  # fmt: skip

# %% tags=["remove-input", "aggregate"]
names = list(layers)
best, worst = (np.unravel_index(at, auc.shape) for at in (auc.argmax(), auc.argmin()))
Markdown(
    f"The best cell is {names[best[0]]} at t = {few[best[1]]} with {auc.max():.3f}, the worst {names[worst[0]]} at "
    f"t = {few[worst[1]]} with {auc.min():.3f}. A map below chance is higher *outside* the finding. The best of many cells "
    "on few phrases is partly luck. We keep the paper's mean over all layers, which needs no such choice. The timesteps are "
    "the topic of the next two sections."
)

# %% [markdown]
# ## Further: how many timesteps does it take?
#
# A heatmap costs a pass through the U-Net for each timestep. Are fewer enough? On the same phrases, every second,
# fourth, … of the paper's timesteps is read. The last point adds the noisiest ones, which the paper leaves out.

# %%
side = max(m.shape[-1] for m in by_layer.values())
resized = [
    attention.resize(torch.from_numpy(m), (side, side)).numpy() for m in by_layer.values()
]
by_time = np.mean(resized, axis=0)  # (phrases, timesteps, h, w)
paper_steps = path[-(many * 4 // 5) :]  # 40 of 50
whole = len(paper_steps)
cost = pd.Series(
    {
        len(paper_steps[::k]): mean_auc(by_time[:, -whole:][:, ::k].mean(axis=1))
        for k in (40, 20, 10, 8, 5, 4, 2, 1)
        if k <= whole
    }
)
enough = min(n for n in cost.index if cost[n] >= cost[whole] - 0.005)
cost[len(path)] = mean_auc(by_time.mean(axis=1))

# %% tags=["aggregate"]
px.line(
    x=cost.index.astype(str), y=cost.values, markers=True, template=plots.TEMPLATE, height=380,
    labels={"x": "timesteps (passes through the U-Net)", "y": "AUC-ROC"},
    title=f"What a heatmap costs, and what it gains ({len(val_masks)} validation phrases, {variant})",
    color_discrete_sequence=[plots.variant_style([variant])[variant].color],
).update_xaxes(type="category").add_hline(
    cost[whole] - 0.005, line_dash="dot", annotation_text=f"0.005 below {whole} timesteps",
    annotation_position="bottom right",
)  # fmt: skip

# %% tags=["remove-input", "aggregate"]
read = grounding.ground_many(
    pipeline, val_images, val_prompts, val_words, timesteps=timesteps, seed=seed
)
Markdown(
    f"All layers and all {whole} timesteps of the paper together reach {cost[whole]:.3f}; compare it with the best cell "
    f"above. Reading {say.words.counted(enough, 'timestep')} instead of {whole} costs at most 0.005 of AUC-ROC on these "
    f"phrases. The {say.words.counted(len(timesteps), 'timestep')} of this profile, up to t = {max(timesteps)} (the paper's: "
    f"{max(paper_steps)}), reach {mean_auc(read):.3f}."
)

# %% [markdown]
# ## Further: how much noise?
#
# The noisier the image, the more the map must come from the prompt and from what the model knows of anatomy. Is it
# better to read where the noise is low? In the study `timesteps`, frozen and learnable of profile `demo` are read at
# the last 10 of 13, 25, 50, 100 and 200 timesteps. The last 10 of 13 span a little less than the paper's 40 of 50, and
# the last 10 of 200 have hardly any noise. The scores are those of the *validation* split, because a setting must not be
# chosen on the images that are reported. The two scores of the endpoint and the mirror test are explained below, and in
# chapter 4; each line is the mean of two seeds.

# %% tags=["aggregate"]
noise = pd.read_csv(profiles.DATA / "results" / "timesteps.csv")
noise = tradeoff.last_step(noise, ("variant", "seed", "grounding.steps"))
noise = noise.groupby(["variant", "grounding.steps"])[["gain_auc_roc", "word", "mirror"]]
noise = noise.mean().rename(columns=localization.LABELS).stack().rename("score")
tidy = noise.rename_axis(["variant", "steps", "test"]).reset_index()
px.line(
    tidy.assign(steps=tidy["steps"].astype(str)), x="steps", y="score", color="variant",
    facet_col="test", facet_col_spacing=0.09, markers=True, template=plots.TEMPLATE, height=380,
    color_discrete_map={v: style.color for v, style in plots.variant_style(["frozen", "learnable"]).items()},
    labels={"steps": "of steps"},
    title="The last 10 of so many timesteps: from much noise to little",
).update_yaxes(matches=None, showticklabels=True).update_xaxes(type="category").for_each_annotation(
    lambda note: note.update(text=note.text.removeprefix("test="))
)  # fmt: skip

# %% [markdown]
# In these means, with little noise the maps of both variants depend more on the image (gain) and prefer the true side
# more often (mirror test). The word test of learnable is lowest where there is hardly any noise; perhaps its words
# matter more where there is less to see. Profile `demo` reads the last 10 of 100. We set this after a first look at
# these validation images, and the study, made afterwards, does not decide between 100 and 200: the gain is about the
# same, and two seeds are few for a word test. Profile `paper` reads what the paper reads. Scores can be compared only
# if they are read at the same noise.

# %% [markdown]
# ## Further: three ways to run the model
#
# So far each pass saw the image with *fresh* noise (`noised`). There are two other ways. `inversion` runs DDIM
# {cite}`song2021ddim`, a sampler without randomness, backwards: from the image to the noise from which it would be
# generated, reading the attention on the way {cite}`vilouras2024zeroshot`. `generation` uses no image: the model
# generates one for the prompt, and its attention is read meanwhile. That map is scored against the finding in the
# *held-out* image, so it can only reflect where such a finding usually is, and which side and zone the prompt names.
#
# The maps of `noised` are those behind {numref}`fig-layer-time`, with all of the paper's timesteps. The other two take
# half as many, larger steps: `generation` takes all of them, `inversion` only those up to the noisiest timestep that is
# read. In the table, brackets hold a 95 % confidence interval, and the pointing game is as in chapter 1.

# %%
steps_of_path = many // 2
half = grounding.paper_timesteps(pipeline.scheduler, steps_of_path, max(1, whole // 2))
ways = {"noised": by_time[:, -whole:].mean(axis=1)} | {
    method: grounding.ground_many(
        pipeline,
        None if method == "generation" else val_images,
        val_prompts,
        val_words,
        timesteps=half,
        seed=seed,
        method=method,
        steps=steps_of_path,
    )
    for method in ("inversion", "generation")
}


# %% tags=["aggregate"]
def compared(maps_by_name):
    """AUC-ROC and pointing game with their intervals, for each kind of map."""
    scores = {"AUC-ROC": localization.auc_roc, "pointing game": localization.pointing_game}
    patients = [t.study.patient for t in validation]
    table = pd.DataFrame(index=list(maps_by_name), columns=list(scores))
    for name, maps in maps_by_name.items():
        for title, score in scores.items():
            values = [score(m, mask) for m, mask in zip(maps, val_masks, strict=True)]
            interval = stats.bootstrap_ci(values, patients, n=settings.statistics.resamples)
            table.loc[name, title] = str(interval)
    return table


compared(ways).assign(passes=[whole, len(half), steps_of_path])


# %%
def first_of_each(truths, most):
    """Positions of the first phrase of each finding, at most `most` of them."""
    names = [t.finding.name for t in truths]
    return [names.index(name) for name in dict.fromkeys(names)][:most]


examples = first_of_each(validation, 3)
plots.overlay_grid(
    [val_images[i] for i in examples],
    {way: [maps[i] for i in examples] for way, maps in ways.items()},
    masks=[val_masks[i] for i in examples],
    titles=[f"{validation[i].finding.name}: “{val_prompts[i]}”" for i in examples],
    title=f"One phrase, read in three ways, {variant}",
)

# %% [markdown]
# The maps of `generation` use no held-out image. What they get right comes from the prompt, and from what the model has
# learned about where findings usually are. The book uses `noised`, as the paper does.
#
# ## Further: may a map be improved afterwards?
#
# Papers also process their maps: they smooth them, subtract the begin token's map, or use *Bimodal Bias Merging*
# {cite}`nuetzel2025generate`. This takes two more maps: the begin token's on this image, and the phrase's while the
# model generates an image. The more alike these two are, the more weight their product gets, and the less the measured
# map. The begin token of CLIP has read no word, so its map shows what attracts attention whatever the words. In a BERT
# such as the base's, the begin token has read the whole prompt, so its map depends on the words as well (chapter 9).
# The begin token of the *empty prompt* has read no word in either, so the last two steps are also tried with its map.
# Each step changes what is scored, so the book scores maps as measured. Here is what the steps would change (at the
# profile's timesteps, so the first row differs from `noised`). A step that raises one score may lower the other:
# compare both columns.

# %% tags=["aggregate"]
groups = grounding.ground_groups(
    pipeline, val_images, val_prompts, val_words, timesteps=timesteps, seed=seed
)
measured, begin, empty = (groups[name] for name in ("phrase", "begin", "empty prompt"))
drawn = ways["generation"]
compared(
    {
        "as measured": measured,
        "smoothed (σ = 1)": [postprocess.smooth(m) for m in measured],
        "minus the begin token": [*map(postprocess.subtract_background, measured, begin)],
        "minus the empty prompt's": [
            *map(postprocess.subtract_background, measured, empty)
        ],
        "Bimodal Bias Merging": [*map(postprocess.merge_biases, measured, begin, drawn)],
        "Bimodal Bias Merging, empty prompt's": [
            *map(postprocess.merge_biases, measured, empty, drawn)
        ],
    }
)

# %% [markdown]
# ## All test phrases, over all checkpoints
#
# Now all test phrases are grounded at all checkpoints; step 0 is the base before fine-tuning. Every map is scored
# against the finding's mask. Beside it stand three references that do not depend on the image: *chance*, the *location
# prior* ({numref}`fig-prior`), and the *prior of the text*, the mean mask of the same finding on the side and in the
# zone that the prompt names. The row *swapped images* holds the scores of the last checkpoint on images of other
# patients, as explained next. Compare numbers within a table: the validation phrases above were few, and other findings
# than these.
#
# A high score does not prove that the model looked at the image: a map of where findings usually are scores high on
# every image. Two tests ask more:
#
# - The *image swap* reads every phrase again, with the same tokens and noise, on images of other patients *without* the
#   finding. The **gain** is the score on the own image minus the mean score on those: what the image itself contributed.
#   (It uses fewer timesteps than the AUC-ROC beside it.)
# - The *word test* takes images with two or more findings and asks, for each pair of names, whether the map of each,
#   against that of the other, is higher at its own finding. Chance is 0.5. A map made without the image may also pass,
#   as that of the location prior, which has a map for each name: chapter 4 takes this up.
#
# These two are the *primary endpoint*: the scores that decide, declared in the profile before any map is made. Chapter
# 4 explains them and the mirror test, chapter 5 CNR and mIoU.

# %%
validation_studies = profiles.studies(settings, "val", data, boxes=True)
train = phrases(profiles.studies(settings, "train", data, boxes=True))
# Some sources have boxes for val and test only.
scored = faithfulness.score_run(settings, run, test, train or located, validation_studies)
found = {step.step: step for step in runs.progress(scored, "checkpoints", len(steps) + 1)}
maps_of = {step: one.maps for step, one in found.items()}
rows, left_out = found[steps[-1]].truths, found[steps[-1]].skipped

# %%
table = pd.concat([one.table for one in found.values()], ignore_index=True)
localization.save_masks(run.masks_file, test, size, settings.data.fit)
_ = runs.write_atomic(run.grounding_file, table.to_csv(index=False))

# %% tags=["aggregate"]
columns = [
    *settings.statistics.endpoint,
    "mirror",
    "auc_roc",
    "pointing_game",
    "cnr",
    "miou",
]
overview = table.groupby("step")[columns].mean()
for name, prefix in {"swapped images": "swap_", **tradeoff.REFERENCES}.items():
    beside = table[table["step"] == steps[-1]].reindex(
        columns=[f"{prefix}{c}" for c in columns]
    )
    overview.loc[name] = beside.mean().to_numpy()
overview.rename(columns=localization.LABELS).round(3).astype(object).fillna("–")

# %% tags=["remove-input", "aggregate"]
last = table[table["step"] == steps[-1]].reset_index(drop=True)
base = table[table["step"] == 0].reset_index(drop=True)
references = {"the base": base["auc_roc"], "the location prior": last["prior_auc_roc"]}
differences = {
    name: stats.paired_difference(
        last["auc_roc"], values, last["patient"], n=settings.statistics.resamples
    )
    for name, values in references.items()
}
Markdown(
    f"{len(rows)} phrases per checkpoint, {len(left_out)} left out. Phrases cut off because the text encoder cannot "
    f"read more: {models.cut_prompts(pipeline.tokenizer, [t.finding.phrase for t in rows])}. "
    f"At step {steps[-1]}:\n\n"
    + say.localization.against(variant, differences)
    + "\n"
    + say.localization.looks(variant, last, settings.statistics)
)

# %% tags=["answer", "remove-input", "aggregate"]
prior_difference = differences["the location prior"]
Markdown(say.answers.maps(variant, prior_difference, last, settings.statistics))

# %% [markdown]
# ## The answer: from the base to the last checkpoint
#
# One phrase for each of six findings. Does the bright region move into the outline, and does it stay there? AUC-ROC is
# below each map: it need not rise for every phrase.

# %% name="fig-where-it-looks"
examples = first_of_each(rows, 6)
frames = [Frame(*rows[i].study.size, size, settings.data.fit) for i in examples]
every = max(1, -(-len(steps) // 3))
chosen = {"base": 0} | {f"step {s}": s for s in (*steps[::every], steps[-1])}
auc_of = {step: part["auc_roc"].to_numpy() for step, part in table.groupby("step")}
plots.overlay_grid(
    [f.image(rows[i].study.pixels()) for f, i in zip(frames, examples, strict=True)],
    {name: [maps_of[s][i] for i in examples] for name, s in chosen.items()},
    masks=[mask_of(rows[i]) for i in examples],
    titles=[f"{rows[i].finding.name}: “{rows[i].finding.phrase}”" for i in examples],
    captions={
        name: [f"AUC {auc_of[s][i]:.2f}" for i in examples] for name, s in chosen.items()
    },
    title=f"Where {variant} looks",
)

# %% [markdown]
# ## Look for yourself
#
# Choose a study, a phrase, a layer and a timestep.

# %%
picked = profiles.sample(validation, 4, seed)
index = [validation.index(t) for t in picked]
explored = plots.explored(
    images=val_images[index],
    # (studies, layers, timesteps, h, w)
    heatmaps=np.stack([m[index][:, at] for m in resized], axis=1),
    titles=[f"study {i + 1}" for i in range(len(picked))],
    phrases=[t.finding.phrase for t in picked],
    layers=list(layers),
    timesteps=few,
    masks=[val_masks[i] for i in index],
)
widgets.show(
    lambda: widgets.attention_explorer(explored),
    lambda: plots.explorer_static(explored),
)

# %% [markdown]
# ## Exercises
#
# **1.** Make the map of a word that does not name the finding, such as the side. Where is it high?

# %% [markdown] tags=["solution"]
# Compare the AUC-ROC above the maps. The text encoder mixes the words of a prompt: the state of a word for size or side
# also carries what the other words say. Its map may therefore be higher at the finding than the map of the name.

# %% tags=["solution"]
others = [w for w in (*prompt.split()[:3], words) if w]
heatmaps = [
    grounding.ground(pipeline, image, prompt, w, timesteps, seed).values for w in others
]
plots.overlays(
    [image] * len(heatmaps),
    heatmaps,
    masks=[mask] * len(heatmaps),
    titles=[
        f"“{w}”: AUC {localization.auc_roc(h, mask):.2f}"
        for w, h in zip(others, heatmaps, strict=True)
    ],
    title="Where other words of the prompt look",
)

# %% [markdown]
# **2.** Ground a finding that the image does *not* show. What should a model with understanding do, and can attention
# express it?

# %% [markdown] tags=["solution"]
# A model with understanding would give the name little attention everywhere. Attention can express this in part: at
# each position the probabilities of all tokens sum to 1, but the other tokens may take nearly all of it.
# {numref}`fig-absent` cannot show this, because a map is coloured from its own minimum to its own maximum. AUC-ROC
# cannot show it either, because it reads only the order of the pixels. Chapter 4 compares the peaks of maps on images
# with and without the finding, and of words that are denied.

# %% tags=["solution"] name="fig-absent"
absent = next(
    name for name in FINDINGS if name not in {f.name for f in example.study.present()}
)
ghost = grounding.ground(pipeline, image, f"{absent}.", absent, timesteps, seed)
plots.overlay(image, ghost.values, title=f"“{absent}”, which this image does not show")

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **What is averaged to make a heatmap?**
#
# <details class="quiz right" name="question-1"><summary>attention probabilities over heads, layers, timesteps and the tokens of the name</summary>Right. What is left is one number for each position of the image.</details>
# <details class="quiz" name="question-1"><summary>pixels of generated images</summary>No. The image is a held-out one; nothing is generated.</details>
# <details class="quiz" name="question-1"><summary>gradients of the loss</summary>No. No gradient is needed: the probabilities are read as they are.</details>
#
# **Why are maps read on held-out images rather than on generated ones?**
#
# <details class="quiz" name="question-2"><summary>they are sharper</summary>No. Sharpness plays no part.</details>
# <details class="quiz" name="question-2"><summary>generated images need more time</summary>No. How many passes are made can be chosen for both.</details>
# <details class="quiz right" name="question-2"><summary>only for held-out images does somebody say where the finding is</summary>Right. A score needs the true place.</details>
#
# **At one position, the probabilities of all tokens …**
#
# <details class="quiz right" name="question-3"><summary>sum to 1, whatever the image shows</summary>Right. So the value of a word also depends on the other words. By itself it does not say that the finding is there.</details>
# <details class="quiz" name="question-3"><summary>are 0 if the finding is absent</summary>No. They always sum to 1.</details>

# %% [markdown]
# ## Takeaways
#
# - A heatmap is a mean of attention probabilities over heads, layers, timesteps and the tokens that name the finding,
#   on a held-out image.
# - Layers and timesteps differ; the mean over all of them needs no tuning.
# - Every score stands beside chance and the location prior: a map of where findings usually are also scores well, so a
#   high score alone does not show understanding.
#
# **Further reading.** {cite:t}`tang2023daam` map the attention of images that the model generates itself,
# {cite:t}`vilouras2024zeroshot` that of held-out radiographs.

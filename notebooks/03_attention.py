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
# # 3 Attention on real images
#
# **When the model reads the name of a disease, where in a radiograph does it look?**
#
# The U-Net reads the prompt by *cross-attention*: every position of the image gives each token a probability. Collected for
# the tokens of one phrase, these probabilities are a map of where the phrase matters. We read it on *held-out* images, ones
# the model never saw, and not on images it has drawn itself: only there does a radiologist (or the phantom) say where the
# finding is {cite}`dombrowski2024tradeoffs,vilouras2024zeroshot`.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variant = "frozen"  # treatment of the text encoder: "frozen" or "learnable"
seed = 0
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import numpy as np
import pandas as pd
import plotly.express as px
import torch
from diffusers import DDPMScheduler
from IPython.display import Markdown

from chestxai import (
    attention,
    finetune,
    grounding,
    localization,
    models,
    plots,
    postprocess,
    profiles,
    reports,
    runs,
    widgets,
)
from chestxai.stats import bootstrap_ci
from chestxai.studies import FINDINGS, Frame, phrases, to_images

settings = profiles.load(profile)
run = profiles.run_folder(settings, variant, seed, out)
plots.setup()

pipeline = models.load_pipeline(settings.base)
size = models.image_size(pipeline)
steps = list(finetune.checkpoints(run))
finetune.load_checkpoint(pipeline, run, steps[-1])
test = phrases(profiles.studies(settings, "test", data, boxes=True))
Markdown(
    f"`{variant}`, seed {seed}, step {steps[-1]}: {len(test)} phrases of {len({t.study.patient for t in test})} patients "
    f"are to be grounded, with checkpoints at steps {', '.join(map(str, steps))}."
)

# %% [markdown]
# ## One phrase on one image, by hand
#
# A phrase becomes tokens, and some of them name the finding.

# %%
example = next((t for t in test if t.finding.name == "Pleural Effusion"), test[0])
prompt = example.finding.phrase
words = grounding.target_words(example, settings.grounding.target)
positions = reports.token_positions(pipeline.tokenizer, prompt, words)
ids = models.tokenize(pipeline, [prompt])["input_ids"][0]
tokens = pipeline.tokenizer.convert_ids_to_tokens(ids)
used = len(pipeline.tokenizer(prompt)["input_ids"])
pd.DataFrame(
    {"token": tokens[:used], "read": ["●" if i in positions else "" for i in range(used)]},
).T

# %% [markdown]
# The image is encoded, noised, and passed through the U-Net once, with `capture` recording the probability
# $\mathrm{softmax}(QK^\top/\sqrt d)$ that each position gives to the marked tokens. The mean over heads and marked tokens
# is one map per layer, at the layer's own resolution.

# %%
t = 200
frame = Frame(*example.study.size, size, settings.data.fit)
image = frame.image(example.study.pixels())
mask = frame.mask(example.finding)
latent = models.encode_images(pipeline, image[None])
noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).to(
    latent.device
)
noisy = DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(
    latent, noise, torch.tensor([t])
)
with torch.no_grad(), attention.capture(pipeline.unet, [positions]) as seen:
    pipeline.unet(noisy, t, models.encode_text(pipeline, [prompt]))
short = {
    n: n.split(".transformer")[0]
    .replace("_blocks.", " ")
    .replace("_block", "")
    .replace(".attentions", "")
    for n in seen.maps()
}
layers = {short[name]: m for name, m in seen.maps().items()}
pd.DataFrame(
    {"map (slots, groups, h, w)": [tuple(m.shape) for m in layers.values()]},
    index=list(layers),
)

# %%
plots.overlays(
    [image] * len(layers),
    [m[0, 0].cpu().numpy() for m in layers.values()],
    masks=[mask] * len(layers),
    titles=list(layers),
    title=f"“{words}”, timestep {t}",
)

# %% [markdown]
# The white outline is the finding's true place. A single pass is noisy and layers disagree; the paper therefore averages
# all layers and the last 40 of 50 timesteps, with fresh noise at each. No trajectory is followed, so all of these passes
# share a batch, and only a running sum is kept.

# %%
timesteps = grounding.paper_timesteps(
    pipeline.scheduler,
    settings.grounding.steps,
    settings.grounding.last,
    settings.grounding.stride,
)
heatmap = grounding.ground(pipeline, image, prompt, words, timesteps, seed)
plots.overlay(
    image,
    heatmap.values,
    mask,
    title=f"mean over {len(timesteps)} timesteps and {len(heatmap.layers)} layers",
)

# %% [markdown]
# ## Which layer, and when?
#
# The same score for every layer and timestep by itself, on validation phrases. White is chance: a layer that is white sees
# nothing of where the finding is.

# %%
validation = profiles.sample(
    phrases(profiles.studies(settings, "val", data, boxes=True)), 32, seed
)
images, kept, skipped = to_images([t.study for t in validation], size, settings.data.fit)
readable = {s.id: i for i, s in enumerate(kept)}
validation = [t for t in validation if t.study.id in readable]
val_images = images[[readable[t.study.id] for t in validation]]
val_prompts = [t.finding.phrase for t in validation]
val_words = [grounding.target_words(t, settings.grounding.target) for t in validation]
val_masks = [
    Frame(*t.study.size, size, settings.data.fit).mask(t.finding) for t in validation
]


def mean_auc(maps):
    """Mean AUC-ROC over the validation phrases of one map (h, w) each."""
    return np.mean(
        [localization.auc_roc(m, mask) for m, mask in zip(maps, val_masks, strict=True)]
    )


path = grounding.paper_timesteps(
    pipeline.scheduler, settings.grounding.steps, settings.grounding.steps
)
by_layer = grounding.ground_layers(
    pipeline, val_images, val_prompts, val_words, timesteps=path, seed=seed
)  # {layer: (phrases, timesteps, h, w)}
at = np.unique(np.linspace(0, len(path) - 1, 8).round().astype(int))
few = [path[j] for j in at]
auc = np.array([[mean_auc(m[:, j]) for j in at] for m in by_layer.values()])
plots.layer_time(
    auc,
    list(layers),
    few,
    title=f"AUC-ROC of {len(val_masks)} validation phrases, {variant}",
)

# %% tags=["hide-input"]
best, worst = (
    np.unravel_index(auc.argmax(), auc.shape),
    np.unravel_index(auc.argmin(), auc.shape),
)
Markdown(
    f"The best cell is {list(layers)[best[0]]} at t = {few[best[1]]} with {auc.max():.3f}, the worst "
    f"{list(layers)[worst[0]]} at t = {few[worst[1]]} with {auc.min():.3f}. A map below chance points *away* from the finding. "
    "We keep the paper's mean over all of them, chosen before looking."
)

# %% [markdown]
# ## How many timesteps does it take?
#
# The cost of a heatmap is the number of passes through the U-Net. Here is the score against it, on the same phrases: the mean
# over all layers and over every second, fourth, … of the timesteps that the paper reads. The last point is the whole path,
# with the noisiest steps, which the paper leaves out.

# %%
side = max(m.shape[-1] for m in by_layer.values())
by_time = np.mean(
    [
        attention.resize(torch.from_numpy(m), (side, side)).numpy()
        for m in by_layer.values()
    ],
    axis=0,
)  # (phrases, timesteps, h, w)
paper_steps = path[-settings.grounding.last :]
whole = len(paper_steps)
strides = [k for k in (40, 20, 10, 8, 5, 4, 2, 1) if k <= whole]
cost = pd.Series(
    {
        len(paper_steps[::k]): mean_auc(by_time[:, -whole:][:, ::k].mean(axis=1))
        for k in strides
    }
)
short = min(n for n in cost.index if cost[n] >= cost[whole] - 0.005)
cost[len(path)] = mean_auc(by_time.mean(axis=1))
px.line(
    x=cost.index.astype(str), y=cost.values, markers=True, template=plots.TEMPLATE, height=380,
    labels={"x": "timesteps (passes through the U-Net)", "y": "AUC-ROC"},
    title=f"What a heatmap costs, and what it gains ({len(val_masks)} validation phrases, {variant})",
).update_xaxes(type="category").add_hline(
    cost[whole] - 0.005, line_dash="dot", annotation_text=f"0.005 below {whole} timesteps",
    annotation_position="bottom right",
)  # fmt: skip

# %% tags=["hide-input"]
Markdown(
    f"{short} of the paper's {whole} timesteps {'come' if short > 1 else 'comes'} within 0.005 of all of them, chosen on "
    f"these validation phrases; this profile reads {len(timesteps)} on the test phrases below."
)

# %% [markdown]
# ## Three ways to run the model
#
# So far each pass saw the image under *fresh* noise. There are two other ways, and all three are the same call, with another
# `method`. `inversion` follows one deterministic path from the image towards noise, the same path along which DDIM would draw
# it {cite}`song2021ddim,vilouras2024zeroshot`. `generation` looks at no image: the model draws one for the prompt, and its
# attention is read meanwhile. That map is scored against the finding in the *real* image, so what it can know is only where
# such a finding usually is, and which side and zone the prompt names.

# %%
steps_of_path = settings.grounding.steps
ways = {
    "noised": grounding.ground_many(
        pipeline, val_images, val_prompts, val_words, timesteps=paper_steps, seed=seed
    ),
    "inversion": grounding.ground_many(
        pipeline,
        val_images,
        val_prompts,
        val_words,
        timesteps=paper_steps,
        method="inversion",
        steps=steps_of_path,
    ),
    "generation": grounding.ground_many(
        pipeline,
        None,
        val_prompts,
        val_words,
        timesteps=paper_steps,
        seed=seed,
        method="generation",
        steps=steps_of_path,
    ),
}
patients = [t.study.patient for t in validation]


def compared(named):
    """AUC-ROC and Top-1 with their intervals, for each kind of map."""
    scores = {
        "AUC-ROC": localization.auc_roc,
        "Top-1": localization.pointing_game,
    }
    return pd.DataFrame(
        {
            title: {
                name: bootstrap_ci(
                    [score(m, mask) for m, mask in zip(maps, val_masks, strict=True)],
                    patients,
                    n=settings.statistics.resamples,
                )
                for name, maps in named.items()
            }
            for title, score in scores.items()
        }
    ).map(str)


compared(ways).assign(passes=[whole, whole, len(path)])

# %%
looked = [
    next((i for i, t in enumerate(validation) if t.finding.name == name), None)
    for name in FINDINGS
]
looked = [i for i in looked if i is not None][:3]
plots.overlay_grid(
    [val_images[i] for i in looked],
    {way: [maps[i] for i in looked] for way, maps in ways.items()},
    masks=[val_masks[i] for i in looked],
    titles=[f"{validation[i].finding.name}: “{val_prompts[i]}”" for i in looked],
    title=f"One phrase, read in three ways, {variant}",
)

# %% [markdown]
# ## May a map be improved afterwards?
#
# Papers smooth their maps, subtract what every token sees, or merge them with what text and image say by themselves
# {cite}`nuetzel2025generate`. Each of these changes what is scored, so it is shown beside the map as it was measured, and the
# book scores that one. *Bimodal Bias Merging* weighs in the product of two biases (where the begin token looks in this image,
# and where the phrase looks when the model draws by itself) as far as the two are alike.

# %%
groups = grounding.ground_groups(
    pipeline, val_images, val_prompts, val_words, timesteps=timesteps, seed=seed
)
measured = groups["phrase"]
compared(
    {
        "as measured": measured,
        "smoothed (σ = 1)": [postprocess.smooth(m) for m in measured],
        "minus the begin token": [
            postprocess.subtract_background(m, background)
            for m, background in zip(measured, groups["begin"], strict=True)
        ],
        "Bimodal Bias Merging": [
            postprocess.merge_biases(m, image, text)
            for m, image, text in zip(
                measured, groups["begin"], ways["generation"], strict=True
            )
        ],
    }
)

# %% [markdown]
# ## All test phrases, over all checkpoints
#
# Step 0 is the base before any fine-tuning. Each map is scored against the finding's mask, and so are two maps that know
# nothing of the image: chance, and the *centre prior*, the mean mask of that finding in the training data. Chapter 4 explains
# the scores. With several GPUs, `python -m chestxai.grounding` makes these maps beforehand, as the README says.

# %%
located = phrases(profiles.studies(settings, "train", data, boxes=True))
# Some sources have boxes for val and test only.
located = located or phrases(profiles.studies(settings, "val", data, boxes=True))
where = {
    name: [
        Frame(*t.study.size, size, settings.data.fit).mask(t.finding)
        for t in located
        if t.finding.name == name
    ]
    for name in FINDINGS
}
anywhere = localization.location_prior([m for found in where.values() for m in found])
prior = {
    name: localization.location_prior(found) if found else anywhere
    for name, found in where.items()
}

# %%
tables, maps_of = [], {}
everything = grounding.ground_run(settings, run, test)
for step, maps, rows, skipped in runs.progress(everything, "checkpoints", len(steps) + 1):
    masks = [Frame(*t.study.size, size, settings.data.fit).mask(t.finding) for t in rows]
    scores = pd.DataFrame(
        localization.score_table(maps, masks, [prior[t.finding.name] for t in rows])
    )
    about = pd.DataFrame(
        {
            "study": t.study.id,
            "patient": t.study.patient,
            "finding": t.finding.name,
            "phrase": t.finding.phrase,
            "kept": localization.kept(
                t.finding, Frame(*t.study.size, size, settings.data.fit)
            ),  # by the crop
        }
        for t in rows
    )
    tables.append(pd.concat([about, scores], axis=1).assign(step=step))
    maps_of[step] = maps

table = pd.concat(tables, ignore_index=True)
localization.save_masks(run / "maps" / "masks.safetensors", test, size, settings.data.fit)
runs.write_atomic(run / "grounding.csv", table.to_csv(index=False))
columns = ["auc_roc", "pointing_game", "cnr", "miou"]
overview = table.groupby("step")[columns].mean()
overview.loc["centre prior"] = table[[f"prior_{c}" for c in columns]].mean().to_numpy()
overview.loc["chance"] = table[[f"chance_{c}" for c in columns]].mean().to_numpy()
overview.round(3)

# %% tags=["hide-input"]
last, reference = (
    overview.loc[steps[-1], "auc_roc"],
    overview.loc["centre prior", "auc_roc"],
)
Markdown(
    f"{len(rows)} phrases per checkpoint, {len(skipped)} left out. At step {steps[-1]} the `{variant}` model reaches an AUC-ROC "
    f"of {last:.3f}, against {overview.loc[0, 'auc_roc']:.3f} before fine-tuning: it points "
    + ("better" if last > reference else "no better")
    + f" than a map that only knows where the finding usually is ({reference:.3f})."
)

# %% [markdown]
# ## The answer: from the base to the last checkpoint
#
# One phrase of each finding. Watch whether the bright region moves into the outline, and stays.

# %%
shown = [
    next((i for i, t in enumerate(rows) if t.finding.name == name), None)
    for name in FINDINGS
]
shown = [i for i in shown if i is not None][:6]
chosen = [0, *steps[:: max(1, -(-len(steps) // 3))], steps[-1]]
chosen = list(dict.fromkeys(chosen))
plots.overlay_grid(
    [
        Frame(*rows[i].study.size, size, settings.data.fit).image(rows[i].study.pixels())
        for i in shown
    ],
    {("base" if s == 0 else f"step {s}"): [maps_of[s][i] for i in shown] for s in chosen},
    masks=[masks[i] for i in shown],
    titles=[f"{rows[i].finding.name}: “{rows[i].finding.phrase}”" for i in shown],
    captions={
        ("base" if s == 0 else f"step {s}"): [
            f"AUC {table[table['step'] == s]['auc_roc'].iloc[i]:.2f}" for i in shown
        ]
        for s in chosen
    },
    title=f"Where {variant} looks",
)

# %% [markdown]
# ## Look for yourself
#
# Pick a study, a phrase, a layer and a timestep. In JupyterLab this is a widget; on the page the same maps come with it.

# %%
picked = profiles.sample(validation, 6, seed)
index = [validation.index(t) for t in picked]
explored = {
    "images": val_images[index],
    "heatmaps": np.stack(
        [
            attention.resize(torch.from_numpy(m[index][:, at]), (side, side)).numpy()
            for m in by_layer.values()
        ],
        axis=1,
    ),  # (studies, layers, timesteps, h, w)
    "titles": [f"study {i + 1}" for i in range(len(picked))],
    "phrases": [t.finding.phrase for t in picked],
    "layers": list(layers),
    "timesteps": few,
    "masks": [val_masks[i] for i in index],
}
widgets.show(
    lambda: widgets.attention_explorer(**explored),
    lambda: plots.explorer_static(**explored),
)

# %% [markdown]
# ## Exercises
#
# **1.** Read a word that says nothing of the finding, such as the side, or the full stop. Where does it look?

# %% tags=["hide-cell"]
others = [w for w in (*prompt.split()[:3], words) if w]
found = [grounding.ground(pipeline, image, prompt, w, timesteps, seed) for w in others]
plots.overlays(
    [image] * len(found),
    [h.values for h in found],
    masks=[mask] * len(found),
    titles=[
        f"“{w}”: AUC {localization.auc_roc(h.values, mask):.2f}"
        for w, h in zip(others, found, strict=True)
    ],
)

# %% [markdown]
# **2.** Ground a finding that the image does *not* show. What would a model that understands have to do, and can attention
# express it at all?

# %% tags=["hide-cell"]
# The probabilities of all tokens sum to 1 at every position, whatever the image shows: a map says where a word matters
# *relative* to the other words and positions, not whether the finding is there. Scores on absent findings are undefined.
absent = next(
    name for name in FINDINGS if name not in {f.name for f in example.study.present()}
)
ghost = grounding.ground(pipeline, image, f"{absent}.", absent, timesteps, seed)
plots.overlay(image, ghost.values, title=f"“{absent}”, which this image does not show")

# %% [markdown]
# ## Takeaways
#
# - A heatmap is a mean of attention probabilities over heads, layers, timesteps and the tokens of a phrase, on a real image.
# - Layers differ more than timesteps do; averaging needs no tuning.
# - Every score stands beside chance and the centre prior: a map that only knows anatomy is not yet understanding.

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
# # 2 Fine-tuning
#
# **What is trained when a diffusion model learns chest X-rays, and what if the text encoder may learn too?**
#
# A *diffusion model* generates an image from pure noise, by removing a little of the noise at a time. A text, the
# prompt, says what the image is to show. The U-Net of the book's own *base* model was trained on chests with captions
# in everyday words, such as "Small white pool at the lower left.": with words for sides, sizes and looks, but with no
# name of a finding. (Its text encoder was trained before, on English texts of many kinds.) The base is *fine-tuned*,
# that is, trained further, on images and their reports.
#
# A *recipe* says how the text is treated during fine-tuning; a *variant* is a recipe that has a name in the profile.
# The two variants of the paper {cite}`dombrowski2024tradeoffs` are
#
# - `frozen`: only the network that removes noise (the U-Net) learns. The network that reads the prompt (the text
#   encoder) stays as it was, so the vectors that it makes of a prompt stay the same. The U-Net may still learn to read
#   them in a new way.
# - `learnable`: the text encoder is trained as well.
#
# All variants see the same images in the same order, with the same random numbers, so two runs of one seed differ in
# nothing but the recipe. Small changes grow during training, so only several seeds show what a recipe does (chapter 8).
#
# *You will be able to* say what learns under a recipe, take one training step by hand, and fine-tune a model.
# *Before:* chapter 1.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variant = "frozen"  # a variant of the profile
seed = 0
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown

from chestxai import finetune, models, plots, profiles
from chestxai import sentences as say

settings = profiles.load(profile)
recipe, run = settings.recipe(variant), profiles.run(settings, variant, seed, out)
plots.setup(settings.variants)

# %% [markdown]
# These are the settings of the training that this chapter explains. In the profile `paper` they are the paper's: 60,000
# steps at 512 pixels with a learning rate of 5e-5. The paper trains both networks at that one rate; a profile may give
# the text encoder a rate of its own, `text_learning_rate`. So where the two rates of the table differ, `learnable` is
# not quite the paper's. Chapter 8 varies the rate.

# %%
shown = "steps batch_size learning_rate text_learning_rate ucg min_snr checkpoint_every"
chosen = pd.Series(settings.finetune.model_dump())[shown.split()]
chosen["guidance"] = settings.sampling.guidance
chosen.to_frame(f"profile {settings.name}")

# %% [markdown]
# ## The parts of the model
#
# A latent diffusion model {cite}`rombach2022ldm` has three networks:
#
# - The *autoencoder* (VAE) compresses an image into a *latent*, an array with a few channels and fewer rows and
#   columns, and turns a latent back into an image. Noise is added and removed in latents, which is much cheaper than in
#   images.
# - The *text encoder* turns the prompt into one vector per token, the token's *state*. The book's base has MiniLM, a
#   small BERT, in which each token reads all others; the paper's model has CLIP's, in which a token reads only itself
#   and those before it.
# - The *U-Net* is a convolutional network that goes from fine to coarse resolution and back. It gets a noisy latent and
#   predicts the noise in it. It reads the states by *cross-attention*: each position of the latent gives every token a
#   weight, and takes in the mean of what the tokens say, with these weights. Chapter 3 makes maps of these weights.
#
# ![An image becomes a latent through the autoencoder and noise is added; a prompt becomes a state for each token through the text encoder; the U-Net reads both and predicts the noise](../_static/model.svg)
#
# *The model, and which of its parts learn.*

# %%
pipeline = models.load_base(settings)
size = models.image_size(pipeline)
networks = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "unet")}
counts = {
    name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()
}
pd.DataFrame(
    {
        "class": [type(part).__name__ for part in networks.values()],
        "parameters (millions)": [round(count / 1e6, 1) for count in counts.values()],
    },
    index=list(networks),
)

# %% [markdown]
# `SilentPadBert` is a BERT that says nothing at padding: the states of the tokens that only fill up a prompt are zero.
# The autoencoder never learns, so all latents are computed once, before the first step.
#
# ## The recipe
#
# These are the recipe's settings; those not listed have their default.

# %%
recipe.model_dump(exclude_defaults=True) or {"text": recipe.text}

# %% [markdown]
# A recipe says which parameters learn and at which rate, what the U-Net reads, and what is added to the loss. These
# parameters get a gradient:

# %%
learning = [*recipe.learning(pipeline.unet, pipeline.text_encoder, settings.finetune)]
pd.DataFrame(
    {"network": name.split(".")[0], "parameters": parameter.numel(), "rate": rate}
    for name, parameter, rate in learning
).groupby(["network", "rate"])["parameters"].agg(["count", "sum"])

# %% [markdown]
# `count` is the number of tensors, `sum` that of the parameters in them. (Where the embeddings of a text encoder learn,
# those of words that no prompt contains get no gradient.) Other values of `text` are:
#
# - `last:2` trains the last two layers of the text encoder,
# - `embeddings` trains only its embedding layer: the vectors that it looks up for tokens and their positions before its
#   first layer, and how their sum is normalised,
# - `lora:8` trains small matrices of rank 8 (adapters) beside its weights,
# - `random` gives it random weights and never trains them: a control that knows nothing about words.
#
# Training uses pairs of an image and a prompt, such as these:

# %%
studies = profiles.studies(settings, "train", data)
usable, _, _ = finetune.study_prompts(studies, recipe, seed)
images, prompts, skipped = finetune.training_pairs(
    pipeline, usable[:8], settings.data.fit, recipe, seed
)
plots.images(images, titles=prompts, title="Eight training pairs")

# %% [markdown]
# Each caption is the prompt of the image: the impression of its report, if the recipe says nothing else. Some list
# findings, some rule them out.
#
# ## One step, by hand
#
# Training teaches the U-Net to recognise noise. For each image a *timestep* $t$ is chosen at random, from 0 (hardly any
# noise) to 999 (hardly anything else). The *noise schedule* fixes how much of the image is left at each: $\bar\alpha_t$
# is its share of the variance. Noise $\varepsilon$ is mixed into the latent $x_0$ accordingly, and the U-Net
# $\varepsilon_\theta$ is asked which noise it was (eq. 14 of {cite}`ho2020ddpm`):
#
# $$ x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon, \qquad
#    \mathcal{L} = \lVert \varepsilon - \varepsilon_\theta(x_t, t, \mathrm{text}) \rVert^2 $$

# %%
schedule = models.noising(pipeline.scheduler)
generator = torch.Generator().manual_seed(seed)
device = pipeline.unet.device
x = models.encode_images(pipeline, images)
noise = torch.randn(x.shape, generator=generator).to(device)
some = [0, 100, 250, 500, 750, 999]
noisy = [
    schedule.add_noise(x[:1], noise[:1], torch.tensor([k], device=device)) for k in some
]
plots.images(
    list(models.decode_latents(pipeline, torch.cat(noisy))),
    titles=[f"t = {k}" for k in some],
    title="One image with more and more noise",
)

# %% [markdown]
# The U-Net gets one of these and must say what was added. Generating walks from right to left. (What is shown are the
# latents after decoding.)

# %%
states = models.encode_text(pipeline, prompts)
t = torch.randint(0, 1000, (len(x),), generator=generator).to(device)
with torch.no_grad():
    predicted = models.denoise(pipeline.unet, schedule.add_noise(x, noise, t), t, states)
target = models.prediction_target(schedule, x, noise, t)
kind = schedule.config.prediction_type.removesuffix("_prediction")
asked = {"epsilon": "noise", "v": "velocity"}.get(kind, kind)
pd.DataFrame(
    {"shape": [tuple(v.shape) for v in (torch.from_numpy(images), x, states, predicted)]},
    index=[
        "images (n, height, width)",
        "latents (n, channels, h, w)",
        "text (n, tokens, width)",
        f"predicted {asked}",
    ],
)

# %% tags=["remove-input"]
Markdown(
    "The prediction has the shape of the latents. In training, the loss is the mean over their values. The base predicts "
    f"the {asked} of these {len(x)} latents with a mean squared error of **{F.mse_loss(predicted, target).item():.3f}**; "
    f"always predicting 0 would give {target.square().mean().item():.3f}."
    + (
        ""
        if asked == "noise"
        else f" (The {asked} is a mixture of noise and image, from which the noise follows.)"
    )
)

# %% [markdown]
# ## Before: what the base generates
#
# To *generate*, the U-Net predicts the noise of a latent of pure noise; a small part of it is removed, and so on until
# a clean latent is left, which the autoencoder turns into an image. *Classifier-free guidance* strengthens the prompt
# {cite}`ho2022cfg`: each step predicts the noise with the prompt and with an empty one, and exaggerates the difference
# by the factor `guidance`; 1 means none.
#
# We generate for four prompts now, and again after training, from the same noise.

# %%
prompts_shown = [
    "No acute cardiopulmonary abnormality.",
    "Large left pleural effusion.",
    "Large right pleural effusion.",
    "Marked cardiomegaly.",
]


def generate(guidance: float = settings.sampling.guidance) -> np.ndarray:
    """Images of `prompts_shown`, uint8 (n, size, size), from the same noise every time."""
    start = torch.Generator().manual_seed(seed)
    start = torch.randn((len(prompts_shown), *x.shape[1:]), generator=start).to(device)
    *read, empty = models.encode_text(pipeline, [*prompts_shown, ""])
    read, empty = torch.stack(read), empty[None]
    with torch.no_grad():
        drawn = models.draw(pipeline, start, read, empty, steps=20, guidance=guidance)
    return models.decode_latents(pipeline, drawn)


before = generate()

# %% [markdown]
# ## Training
#
# `finetune` takes that training step many times, each time improving the parameters that learn. Every
# `checkpoint_every` steps it saves a *checkpoint*: an exponential moving average of these parameters, which varies less
# than they do. A share `ucg` of the prompts is replaced by the empty one, so that guidance can work. `min_snr` gives
# timesteps with little noise less weight: those whose ratio of signal to noise exceeds this number. Progress is saved
# every ten minutes; an interrupted run resumes from there, and a finished one is not trained again.

# %%
finetune.finetune(
    pipeline,
    studies,
    settings.finetune,
    run.folder,
    recipe=recipe,
    seed=seed,
    fit=settings.data.fit,
    cache=profiles.profile_folder(settings, out) / "cache",
    **profiles.about(settings, variant, data),
)
last = run.steps()[-1]
trace, used = run.train_log(), run.record()["data"]["studies"]
plots.training_curves({variant: trace}, title="Training")

# %% tags=["remove-input"]
Markdown(
    f"{len(trace)} steps of {settings.finetune.batch_size} images, {len(trace) * settings.finetune.batch_size / used:.1f} "
    f"passes over {used} of {len(studies)} studies, took {trace['seconds'].max() / 60:.1f} minutes. The loss of the first tenth was "
    f"{trace['loss'].head(max(1, len(trace) // 10)).mean():.4f}, of the last {trace['loss'].tail(max(1, len(trace) // 10)).mean():.4f}. "
    "The loss says little, and it may even rise. All variants get the same timesteps and noise, so their losses rise and "
    "fall together; and the base already predicts noise well, so these ups and downs hide what is learned. "
    + (
        "Weighted by `min_snr`, it cannot be compared with the error above. "
        if settings.finetune.min_snr
        else ""
    )
    + "What was learned shows in images and maps. "
    f"Prompts that were cut off because the text encoder cannot read more: {run.record()['data']['prompts_cut']}."
)

# %% [markdown]
# ## After: the same prompts, the same noise

# %% name="fig-before-after"
after = generate()
plots.images(
    np.concatenate([before, after]),
    titles=[f"base: {p}" for p in prompts_shown]
    + [f"step {last}: {p}" for p in prompts_shown],
    title="Before and after fine-tuning",
)

# %% [markdown]
# Compare the two pictures of each prompt. “R” marks the patient's right, on the image's left: is the fluid on the side
# that the prompt names?
#
# ## Did the words keep their states?
#
# A text encoder that learns can move its states anywhere that lowers the loss. For each token of the prompts of
# {numref}`fig-before-after` we compute the cosine between its state before and after training; 1 means unchanged.

# %%
pristine = models.load_base(settings)
words = pipeline.tokenizer(prompts_shown)["input_ids"]
old, new = (models.encode_text(p, prompts_shown).cpu() for p in (pristine, pipeline))
similar = F.cosine_similarity(old, new, dim=-1)
drift = pd.DataFrame(
    {"prompt": prompt, "token": token, "cosine": float(similar[i, j])}
    for i, prompt in enumerate(prompts_shown)
    for j, token in enumerate(pipeline.tokenizer.convert_ids_to_tokens(words[i]))
)
drift.groupby("prompt", sort=False)["cosine"].agg(["mean", "min"]).round(3)

# %% [markdown]
# The next table says how alike the tokens within a prompt are, as a mean over the four prompts. At 1 all of them would
# have the same state, and no word could be told from another. Chapter 9 asks how alike they must be before it matters.

# %%
alike = {
    name: np.mean(
        [
            (F.normalize(s[: len(w)], dim=-1) @ F.normalize(s[: len(w)], dim=-1).T)[
                ~torch.eye(len(w), dtype=bool)
            ].mean()
            for s, w in zip(vectors, words, strict=True)
        ]
    )
    for name, vectors in {"base": old, f"{variant}, step {last}": new}.items()
}
pd.Series(alike, name="mean cosine between tokens of a prompt").round(3).to_frame()

# %% tags=["remove-input"]
moved = 1 - drift["cosine"].mean()
Markdown(
    f"On average a token's state moved by {max(moved, 0):.3f} (1 − cosine)."
    + (
        " A frozen text encoder does not change."
        if moved < 1e-6
        else " Training has changed what its tokens say."
    )
)

# %% tags=["answer", "remove-input", "aggregate"]
trained = {
    network: sum(p.numel() for name, p, _ in learning if name.startswith(part))
    for part, network in {"unet": "U-Net", "text_encoder": "text encoder"}.items()
}
Markdown(
    say.answers.finetuning(variant, {name: n for name, n in trained.items() if n}, moved)
)

# %% [markdown]
# ## Exercises
#
# **1.** Some training prompts are replaced by the empty one. What for? Generate the images again with guidance 1 (off)
# and 4, and say what changes.

# %% [markdown] tags=["solution"]
# The dropped prompts teach the model to generate without text. Guidance then pushes away from that, towards the prompt:
# the higher, the more pronounced the finding. With many images one would also see less variety and, if guidance is too
# high, less realism.

# %% tags=["solution"]
plots.images(
    np.concatenate([generate(1.0), generate(4.0)]),
    titles=[f"guidance 1: {p}" for p in prompts_shown]
    + [f"guidance 4: {p}" for p in prompts_shown],
    title="The same noise with little and with much guidance",
)

# %% [markdown]
# **2.** How many weights of the text encoder can change under `learnable`, and which share of all trained weights is
# that?

# %% [markdown] tags=["solution"]
# All of them can change, and all weights of the U-Net as well.

# %% tags=["solution"]
encoder, unet = counts["text_encoder"], counts["unet"]
print(
    f"{encoder:,} weights in the text encoder, {encoder / (encoder + unet):.0%} of those a learnable run trains"
)

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **Which network learns under every recipe?**
#
# <details class="quiz" name="question-1"><summary>the autoencoder</summary>No. It never learns here: the latents are computed once.</details>
# <details class="quiz right" name="question-1"><summary>the U-Net</summary>Right. Under every recipe of the book at least a part of it learns.</details>
# <details class="quiz" name="question-1"><summary>the text encoder</summary>No. Under <em>frozen</em> it stays as it was.</details>
#
# **Two variants end with the same training loss. Have they learned the same?**
#
# <details class="quiz right" name="question-2"><summary>not necessarily</summary>Right. The base predicts noise well already, so the loss hardly depends on what is learned later. Where a model looks and what it generates have to be measured.</details>
# <details class="quiz" name="question-2"><summary>yes</summary>No. The loss hardly tells variants apart.</details>
#
# **Why do all variants get the same images in the same order, and the same noise?**
#
# <details class="quiz" name="question-3"><summary>to save time</summary>No. It takes as long either way.</details>
# <details class="quiz right" name="question-3"><summary>so that two runs of one seed differ in nothing but the recipe</summary>Right. Then they can be compared in pairs.</details>
# <details class="quiz" name="question-3"><summary>because the result must not depend on the seed</summary>No. It does depend on the seed; several seeds show by how much.</details>

# %% [markdown]
# ## Takeaways
#
# - Fine-tuning trains the U-Net to predict the noise in a latent; the autoencoder stays as it is.
# - Variants differ only in their recipe: which parameters learn and at which rate, what the U-Net reads, and what is
#   added to the loss.
# - The training loss does not tell them apart. The next chapters look at where the model *looks* and what it
#   *generates*.
#
# **Further reading.** {cite:t}`ho2020ddpm` derive the loss, {cite:t}`rombach2022ldm` describe latents and
# cross-attention, and {cite:t}`chambon2022roentgen` fine-tune Stable Diffusion on chest X-rays.

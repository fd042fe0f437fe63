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
# The model starts as a *base* that generates normal chests and knows no word of a disease. It is fine-tuned on pairs of an
# image and its report. How the text is treated meanwhile is a *recipe*; a *variant* is a recipe with a name. The two
# variants of the paper {cite}`dombrowski2024tradeoffs` are
#
# - `frozen`: only the U-Net learns; words keep the meaning that the text encoder learned in its own pre-training.
# - `learnable`: the text encoder is trained along.
#
# All variants see the same images in the same order, with the same noise, timesteps and dropped prompts, so whatever
# differs at the end is due to the recipe.
#
# *You will be able to* name what learns under a recipe, take one training step by hand, and fine-tune a model.
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
pd.Series(settings.finetune.model_dump(), name=f"profile {settings.name}").to_frame()

# %% [markdown]
# These are all the settings of the training. In the `paper` profile they are the paper's: 60,000 steps at 512 pixels with
# a learning rate of 5e-5.
#
# ## The parts of the model
#
# A latent diffusion model {cite}`rombach2022ldm` has three networks. The *autoencoder* (VAE) turns an image into a small
# *latent* and back. The *text encoder* turns a prompt into one vector per token. The *U-Net* removes noise from a latent
# and reads the token vectors by cross-attention:
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
# The autoencoder never learns: it is the same for all variants, and all latents are computed once, before the first step.
#
# ## The recipe
#
# A recipe is a few settings. Settings that are not listed have their default.

# %%
recipe.model_dump(exclude_defaults=True) or {"text": recipe.text}

# %% [markdown]
# The training loop knows none of these settings. It asks the recipe three questions: which parameters learn, and at which
# rate; what the U-Net reads; what the loss adds. Here are the answers to the first one: the parameters that get a gradient.

# %%
learning = [*recipe.learning(pipeline.unet, pipeline.text_encoder, settings.finetune)]
pd.DataFrame(
    {"network": name.split(".")[0], "parameters": parameter.numel(), "rate": rate}
    for name, parameter, rate in learning
).groupby(["network", "rate"])["parameters"].agg(["count", "sum"])

# %% [markdown]
# `count` is the number of tensors, `sum` that of the numbers in them. `text: last:2` would let the last two layers of the
# text encoder learn, `embeddings` its embeddings, `lora:8` small adapters beside its weights; `random` freezes random
# weights, which is the control: words without a meaning. A text encoder that does not learn is also faster to train with,
# because its token vectors are computed once.

# %%
studies = profiles.studies(settings, "train", data)
images, prompts, skipped = finetune.training_pairs(pipeline, studies[:8], settings.data.fit)
plots.images(images, titles=prompts, title="Eight training pairs")

# %% [markdown]
# Each caption is the impression of the report above its image: the prompt the model is trained with. Reports are as they
# are: some list findings, some rule them out.
#
# ## One step, by hand
#
# Noise of a random strength is added to the latent, and the U-Net is asked which noise it was (Ho et al. 2020, eq. 14):
#
# $$ x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon, \qquad
#    \mathcal{L} = \lVert \varepsilon - \varepsilon_\theta(x_t, t, \mathrm{text}) \rVert^2 $$

# %%
schedule = models.noising(pipeline.scheduler)
generator = torch.Generator().manual_seed(seed)
device = pipeline.unet.device
x = models.encode_images(pipeline, images)
states = models.encode_text(pipeline, prompts)
noise = torch.randn(x.shape, generator=generator).to(device)
t = torch.randint(0, 1000, (len(x),), generator=generator).to(device)
with torch.no_grad():
    predicted = models.denoise(pipeline.unet, schedule.add_noise(x, noise, t), t, states)
pd.DataFrame(
    {"shape": [tuple(v.shape) for v in (torch.from_numpy(images), x, states, predicted)]},
    index=[
        "images (n, height, width)",
        "latents (n, channels, h, w)",
        "text (n, tokens, width)",
        "predicted noise",
    ],
)

# %% tags=["remove-input"]
Markdown(
    f"The base predicts the noise of these {len(x)} latents with a mean squared error of "
    f"**{F.mse_loss(predicted, noise).item():.3f}**; predicting none at all would cost {noise.square().mean().item():.3f}."
)

# %% [markdown]
# ## Before: what the base generates
#
# The same prompts and the same starting noise will be used again after the training.

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
    shown = pipeline(
        prompts_shown,
        guidance_scale=guidance,
        num_inference_steps=20,
        generator=start,
        output_type="latent",
    )
    return models.decode_latents(pipeline, shown.images)


before = generate()

# %% [markdown]
# ## Training
#
# `finetune` keeps a checkpoint every few steps: the exponential moving average of the parameters that learn. An interrupted
# run resumes from its last checkpoint; a finished one is not trained again.

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
    "It says little: most of it is noise that nobody can predict. What the model has learnt shows in the images and maps. "
    f"Prompts longer than the text encoder takes, of which it read the beginning alone: {run.record()['data']['prompts_cut']}."
)

# %% [markdown]
# ## After: the same prompts, the same noise

# %%
after = generate()
plots.images(
    np.concatenate([before, after]),
    titles=[f"base: {p}" for p in prompts_shown]
    + [f"step {last}: {p}" for p in prompts_shown],
    title="Before and after fine-tuning",
)

# %% [markdown]
# Compare the two rows. "R" marks the patient's right, which is on the image's left: is the fluid on the side that the
# prompt names?
#
# ## Did the words keep their meaning?
#
# A text encoder that learns can move its vectors anywhere that lowers the loss. For each token of a few prompts we compare
# its vector after the training with the one before: 1 is unchanged.

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

# %%
# How alike are different tokens of one prompt? If all vectors say the same, no word can be told from another.
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
    f"On average a token's vector moved by {moved:.3f} (1 − cosine) from where it was."
    + (
        " Frozen means frozen."
        if moved < 1e-6
        else " The encoder has changed what its tokens say."
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
# **1.** A tenth of the prompts (`ucg`) is replaced by the empty one. What for? Generate the images again with guidance 1 (off)
# and 4, and say what changes.

# %% [markdown] tags=["solution"]
# The dropped prompts teach the model to generate without text. Guidance then pushes away from that, towards the prompt
# (Ho & Salimans 2022): the higher, the more pronounced the finding, at the cost of variety and, too high, of realism.

# %% tags=["solution"]
plots.images(
    np.concatenate([generate(1.0), generate(4.0)]),
    titles=[f"guidance 1: {p}" for p in prompts_shown]
    + [f"guidance 4: {p}" for p in prompts_shown],
    title="The same noise with little and with much guidance",
)

# %% [markdown]
# **2.** How many weights of the text encoder could change at all, and which share of all trained weights is that?

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
# <details class="quiz right" name="question-1"><summary>the U-Net</summary>Right. The recipes differ in what of the text encoder learns.</details>
# <details class="quiz" name="question-1"><summary>the text encoder</summary>No. Under <em>frozen</em> it stays as it was.</details>
#
# **Two variants end with the same training loss. Have they learned the same?**
#
# <details class="quiz right" name="question-2"><summary>not necessarily</summary>Right. Most of the loss is noise that nobody can predict. Where a model looks and what it generates have to be measured.</details>
# <details class="quiz" name="question-2"><summary>yes</summary>No. The loss hardly tells variants apart.</details>
#
# **Why do all variants get the same images in the same order, and the same noise?**
#
# <details class="quiz" name="question-3"><summary>to save time</summary>No. It takes as long either way.</details>
# <details class="quiz right" name="question-3"><summary>so that what differs at the end is due to the recipe</summary>Right. Then two runs of one seed can be compared in pairs.</details>
# <details class="quiz" name="question-3"><summary>because the result must not depend on the seed</summary>No. It does depend on the seed; several seeds show by how much.</details>

# %% [markdown]
# ## Takeaways
#
# - Fine-tuning trains the U-Net on noise it has to predict; the autoencoder stays as it is.
# - Variants differ only in their recipe: what of the text encoder learns, when, and what the loss adds.
# - The training loss does not tell them apart. The next chapters look at where the model *looks* and what it *generates*.

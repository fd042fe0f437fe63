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
# # 7 What fidelity cannot see
#
# **Which failings does each score of fidelity overlook, and would we notice a copied training image?**
#
# To find out what a score misses, we spoil held-out images on purpose, in ways in which models fail, and score them as
# if they had been generated.
#
# *You will be able to* say what a good score does not prove. *Before:* chapter 6.

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
from IPython.display import Markdown
from scipy.ndimage import gaussian_filter

from chestxai import fidelity, models, plots, profiles, runs
from chestxai import sentences as say
from chestxai.stats import Interval
from chestxai.studies import Frame, to_images

# %%
settings = profiles.load(profile)
plots.setup(settings.variants)
fit, resamples = settings.data.fit, min(settings.statistics.resamples, 200)
pipeline = models.load_base(settings, device="cpu")
size = models.image_size(pipeline)
folders = {v: profiles.run(settings, v, seeds[0], out).check_finished() for v in variants}

# %%
train = profiles.studies(settings, "train", data)
real, kept, unreadable = to_images(profiles.studies(settings, "test", data), size, fit)
real_labels, patients = np.stack([s.labels() for s in kept]), [s.patient for s in kept]
validation = profiles.studies(settings, "val", data)
others, kept_others, _ = to_images(
    profiles.sample(validation, settings.sampling.images), size, fit
)
others_labels = np.stack([s.labels() for s in kept_others])
prompts, labels, origins = fidelity.requests(kept, settings.sampling, pipeline)
cut = models.cut_prompts(pipeline.tokenizer, prompts)
print(f"{cut} of the {len(prompts)} prompts are longer than the text encoder takes.")

generated = {
    v: runs.load_tensors(run.samples_file(run.steps()[-1]))["images"].numpy()
    for v, run in folders.items()
}


# %%
classifier = fidelity.profile_classifier(settings, data, out)

features = {"held-out": fidelity.features(classifier, real)}
features["other held-out"] = fidelity.features(classifier, others)
features |= {v: fidelity.features(classifier, images) for v, images in generated.items()}

# %% [markdown]
# ## Which score notices what?
#
# Each set below consists of held-out images, except for the copies, which are training images. *Other patients* and
# *fewer of them* serve for comparison; each of the other sets has one fault. As these images have no prompt, their
# findings take its place.
#
# - *Only without a finding*: those of healthy patients.
# - *Copies of training images*: training images with a little noise.
# - *One image a finding*: for each finding a single image, repeated with a little noise.
# - *Four images*: four images, repeated with a little noise.
# - *Slight blur* and *noise*: the images of other patients, smoothed by one pixel or with added grain.

# %%
sampled, kept_sampled, _ = to_images(profiles.sample(train, len(prompts)), size, fit)
sampled_labels = np.stack([s.labels() for s in kept_sampled])
most = min(len(others), len(sampled))
whole, shows = others[:most], others_labels[:most]
kind = np.where(shows.any(axis=1), shows.argmax(axis=1), -1)
first = [int(np.flatnonzero(kind == k)[0]) for k in kind]
grain = np.random.default_rng(0).normal(0, 24, whole.shape)
healthy, part = kind < 0, slice(0, max(8, most // 4))
blurry = np.stack([gaussian_filter(x, size / 64) for x in whole])
spoiled = {
    "other patients": (whole, shows),
    "fewer of them": (whole[part], shows[part]),
    "only without a finding": (whole[healthy], shows[healthy]),
    "copies of training images": (fidelity.copies(sampled, most), sampled_labels[:most]),
    "one image a finding": (fidelity.copies(whole[first], most), shows),
    "four images": (fidelity.copies(whole[np.arange(most) % 4], most), shows),
    "slight blur": (blurry, shows),
    "noise": ((whole + grain).clip(0, 255).astype(np.uint8), shows),
}
# Smaller sets have too few neighbours, or no two images with the same findings.
spoiled = {name: pair for name, pair in spoiled.items() if len(pair[0]) >= 8}

# %% tags=["aggregate"]
if not spoiled:
    runs.leave_out_rest()
few = f"A set needs eight images, but there are only {most}: the rest of this chapter is left out (restart the kernel to run it again)."
None if spoiled else Markdown(few)

# %%
count = min(3, *(len(images) for images, _ in spoiled.values()))
plots.images(
    np.concatenate([images[[i]] for i in range(count) for images, _ in spoiled.values()]),
    titles=[*spoiled, *[""] * (count - 1) * len(spoiled)],
    columns=len(spoiled),
    title="The first images of each set",
)

# %%
MEASURES = {
    "fid": "FID ↓", "kid": "KID ↓", "precision": "precision ↑", "recall": "recall ↑", "density": "density ↑",
    "coverage": "coverage ↑", "ms_ssim": "MS-SSIM ↓", "classifier_auc": "classifier AUC ↑", "memory": "near training ↓",
}  # fmt: skip
training = to_images(profiles.sample(train, 5000), size, fit)[0]
train_features = fidelity.features(classifier, training)
reference = fidelity.reference(
    real, real_labels, classifier, others=others, patients=patients,
    others_patients=[s.patient for s in kept_others], resamples=resamples,
)  # fmt: skip
bounds = [reference[f"ms_ssim_real{end}"] for end in ("_low", "_high")]


# %%
def judge(images, shows, n):
    """Every score of one set; intervals from n resamples."""
    values = fidelity.features(classifier, images)
    judged = fidelity.scores(
        features["held-out"], values, real_groups=patients, resamples=n
    )
    kid, std = fidelity.kid(features["held-out"], values, subsets=50)
    auc = fidelity.classifier_auc(fidelity.predict(classifier, images), shows, n=max(n, 2))
    alike = [str(row) for row in shows.astype(int).tolist()]
    if len(set(alike)) == len(alike):
        alike = None  # no two have the same findings: any two are compared
    similar = fidelity.ms_ssim(images, alike, pairs=20)
    memory = fidelity.memorisation(train_features, values, features["held-out"], n=n)
    return judged | {
        "kid": Interval(kid, kid - 2 * std, kid + 2 * std),
        "ms_ssim": Interval(similar, *bounds),
        "classifier_auc": auc["macro"],
        "memory": memory.closer,
    }


judged = {
    name: judge(*pair, resamples if name == "other patients" else 0)
    for name, pair in spoiled.items()
}

# %% tags=["aggregate"] name="fig-spoiled"
fair = judged["other patients"]
values = pd.DataFrame(
    {name: {m: row[m].estimate for m in MEASURES} for name, row in judged.items()}
).T.astype(float)
ends = pd.DataFrame({m: vars(fair[m]) for m in MEASURES}).T.astype(float)
half = ((ends["high"] - ends["low"]) / 2).clip(lower=1e-9)
better = pd.Series({m: 1 if label.endswith("↑") else -1 for m, label in MEASURES.items()})
# In half-widths of the interval: below −1, the score says "worse than held-out images of other patients".
change = (values - values.loc["other patients"]) / half * better
figure = px.imshow(
    change.rename(columns=MEASURES), zmin=-4, zmax=4, color_continuous_scale="RdBu", aspect="auto", height=440,
    template=plots.TEMPLATE, labels={"color": "change,<br>in half-widths<br>of the interval"},
    title="Spoiled held-out images: red is worse, blue better, pale about the same",
)  # fmt: skip
figure.update_traces(
    text=[["–" if np.isnan(v) else f"{v:.2f}" for v in row] for row in values.to_numpy()],
    texttemplate="%{text}",
)
figure.update_xaxes(side="top", title="").update_yaxes(title="")

# %% tags=["remove-input", "aggregate"]
failings = change.drop(["other patients", "fewer of them"], errors="ignore")
names = {m: label[:-2] for m, label in MEASURES.items()}
alone = change.loc[change.index == "fewer of them"].le(-1).any()
alarms = [name for m, name in names.items() if alone[m]]
harmless = (
    f"\n- Fewer images, without any failing, worsen: {', '.join(alarms) or 'nothing'}."
)
Markdown(say.fidelity.unnoticed(failings, names) + harmless)

# %% tags=["answer", "remove-input", "aggregate"]
Markdown(say.answers.blind_spots(failings, names, alarms))

# %% [markdown]
# The numbers in {numref}`fig-spoiled` are the scores. The colour compares them with *other patients*: the difference is
# divided by half the width of the interval of *other patients* (for MS-SSIM that of the held-out images, for KID two
# standard deviations over subsets). So −1 means worse by as much as the choice of images alone may explain. Below −1,
# we say that the score notices. This is a rule of thumb, not a test: values near −1 may be due to which images were
# drawn. *Near training* is the share of images that are nearer to a training image than 95 % of unseen images are.
# MS-SSIM counts as worse when it is higher, as mode collapse makes it. A dash means that the score is not defined; it
# counts as not noticing.
#
# Read the figure by rows. *Fewer of them* are as good as all. A score that turns red there depends on the number of
# images, or on which ones were taken. *Only without a finding* lacks variety, but each of its images is good. It also
# has fewer images, so compare it with *fewer of them*. *Copies* are what the comparison with the training images is
# for. In *one image a finding* every image shows the first finding that it should, but not always the others. The
# scores of variety (recall, coverage, MS-SSIM) must notice the repetition. Recall may rise with fewer images, as their
# balls become larger. MS-SSIM cannot notice *noise*: grain makes images less alike, and so
# does variety. Then read by columns: is a score red only where something is wrong? *Near training* may also be red for
# healthy images, though nothing was copied: they lie close together.
#
# ## How many images?
#
# FID counts sampling error as distance, and the fewer images, the more. KID {cite}`binkowski2018kid` does not, on
# average over many draws; ten draws of few images vary a lot. (This figure uses fewer random subsets than chapter 6, so
# values differ a little.)

# %%
compared = ["other held-out", *variants]
rng, most = np.random.default_rng(0), min(len(others), len(prompts))
sizes = sorted({max(4, round(most * share)) for share in (0.125, 0.25, 0.5, 1)})
trials = []
for n in sizes:
    for name in compared:
        for _ in range(10):
            subset = features[name][rng.permutation(len(features[name]))[:n]]
            kid = fidelity.kid(features["held-out"], subset, subsets=20)[0]
            fid = fidelity.fid(features["held-out"], subset)
            trials += [(n, name, "FID", fid), (n, name, "KID", kid)]
columns = ["images", "compared with held-out", "score", "value"]
by_score = pd.DataFrame(trials, columns=columns).groupby(
    ["score", "compared with held-out", "images"], sort=False
)
means = by_score["value"].mean()

# %% tags=["aggregate"] name="fig-fewer"
look = plots.express_options(
    plots.variant_style(compared), "compared with held-out", dash=False
)
figure = px.line(
    means.reset_index(), x="images", y="value", facet_col="score", facet_col_spacing=0.1, height=380, labels={"value": ""},
    title="The same images, but fewer of them (mean of ten subsets)", **look,
)  # fmt: skip
figure.update_yaxes(matches=None, showticklabels=True).update_layout(
    legend_title_text=""
).for_each_annotation(lambda a: a.update(text=a.text.removeprefix("score="), yshift=10))

# %% tags=["remove-input", "aggregate"]
ends = sizes[0], sizes[-1]
fids, kids = ([means[score, "other held-out", n] for n in ends] for score in ("FID", "KID"))
Markdown(say.fidelity.sample_size(ends, fids, kids))

# %% [markdown]
# Plotted against one over the number of images, FID is nearly a straight line, which meets the axis at the FID of
# infinitely many images, *FID∞* {cite}`chong2020unbiased`. With fewer images than features the line bends, and FID∞ is
# only a rough estimate. It may even be below 0, which no FID can.

# %% tags=["aggregate"]
trend = {
    name: fidelity.fid_infinity(
        features["held-out"], features[name], smallest=most // 4, draws=10
    )
    for name in compared
}
points = pd.concat(
    pd.DataFrame({"1 / images": 1 / t.sizes, "FID": t.fids, "compared with held-out": name})
    for name, t in trend.items()
)
figure = px.scatter(
    points, x="1 / images", y="FID", height=380, range_x=[0, None], title="FID with ever more images", **look,
).update_layout(legend_title_text="")  # fmt: skip
for t, trace in zip(trend.values(), tuple(figure.data), strict=True):
    end = 1 / t.sizes.min()
    figure.add_scatter(
        x=[0, end], y=[t.estimate, t.estimate + t.slope * end], mode="lines", showlegend=False,
        line={"color": trace.marker.color, "dash": "dash"},
    )  # fmt: skip
figure

# %% [markdown]
# ## Is it memory?
#
# A model that copies its training images has an excellent FID. So we look up the training image nearest to each
# generated one in the feature space (nearest-neighbour copy detection) and compare the distance with that of *unseen*
# images. We also plant copies, to see whether they would be found.

# %% tags=["aggregate"]
unseen = np.concatenate([features["held-out"], features["other held-out"]])
# Would a copy be found? Plant some: training images with a little noise.
planted = fidelity.features(classifier, fidelity.copies(training))
memories = {
    v: fidelity.memorisation(
        train_features, features[v], unseen, groups=prompts, planted=planted
    )
    for v in variants
}
Markdown(
    f"{len(training)} of {len(train)} training images are searched; chance is 5 %.\n\n"
    + "\n".join(
        f"- `{v}`: {say.fidelity.memory(m.closer, m.detected)}" for v, m in memories.items()
    )
)

# %% [markdown]
# A share below 5 % means that generated images are farther from the training images than unseen ones are. That is
# no merit: poor images are, too. Exercise 4 shows how little a copy must change to be missed.

# %%
shown, titles = [], []
for v, memory in memories.items():
    nearest = np.argsort(memory.distance)[:4]
    shown += [*generated[v][nearest], *training[memory.nearest[nearest]]]
    titles += [f"{v}, distance {d:.2f}" for d in memory.distance[nearest]]
    titles += ["nearest training image"] * len(nearest)
plots.images(
    np.stack(shown),
    titles=titles,
    columns=4,
    title="The generated images nearest to a training image, and that image",
)

# %% [markdown]
# ## Exercises
#
# **1.** How much blur does FID see? Blur the *other held-out* images more and more, and compare them with the held-out
# ones.

# %% [markdown] tags=["solution"]
# A little blur removes texture and leaves the findings; strong blur can also remove small findings. A feature space
# that was trained to name findings may overlook a little blur: FID sees what its features see.

# %% tags=["solution"]
blurred = {
    sigma: np.stack([gaussian_filter(x, sigma * size / 64) for x in others])
    for sigma in (0, 0.5, 1, 2, 4)
}
pd.DataFrame(
    {
        "blur (pixels of 64)": sigma,
        "FID": fidelity.fid(features["held-out"], fidelity.features(classifier, x)),
        "KID": fidelity.kid(features["held-out"], fidelity.features(classifier, x))[0],
        "MS-SSIM of any two": fidelity.ms_ssim(x),
    }
    for sigma, x in blurred.items()
).set_index("blur (pixels of 64)").round(3)


# %% [markdown]
# **2.** *One image a finding* shows at least the first finding that it should. Can a classifier learn from it? Train
# one.


# %% [markdown] tags=["solution"]
# Compare the two AUCs. The classifier of chapter 6 recognises findings in these images, but a classifier that has seen
# a single effusion learns that image and not what effusions have in common.


# %% tags=["solution"]
def small(images):
    """Images scaled down to what a classifier needs."""
    side = min(size, 128)
    return np.stack([Frame(*image.shape, side, fit).image(image) for image in images])


images, shows_one = spoiled["one image a finding"]
textbook = fidelity.transfer_auc(
    (small(images), shows_one),
    (small(real), real_labels),
    profiles.profile_folder(settings, out) / "transfer-collapsed",
    fidelity.Training("one image a finding", epochs=20),
    patients=patients,
)
seen = fidelity.classifier_auc(fidelity.predict(classifier, images), shows_one)
pd.Series(
    {
        "classifier AUC": str(seen["macro"]),
        "trained on it: AUC on held-out images": str(textbook["macro"]),
    },
    name="one image a finding",
).to_frame()

# %% [markdown]
# **3.** Precision, recall, density and coverage count images within *balls*, which reach from each image to one of its
# nearest neighbours. Put one picture of pure noise among the *held-out* images: what do precision and density say of
# the noisy set? Then show each of a few good images four times: what do recall and coverage say?

# %% [markdown] tags=["solution"]
# The outlier's neighbours are far away, so its ball is huge, and images in it count as precise. Density rises much
# less, as the huge ball is only one of those that it counts. An image and its three copies have tiny balls that hold
# nothing else, so recall falls although there are as many different images as before. Coverage has its balls around the
# held-out images.

# %% tags=["solution"]
static = np.random.default_rng(0).integers(0, 256, (1, size, size)).astype(np.uint8)
polluted = np.concatenate([features["held-out"], fidelity.features(classifier, static)])
noisy = fidelity.features(classifier, spoiled["noise"][0])
few = whole[: max(4, len(whole) // 4)]
fours = fidelity.copies(np.repeat(few, 4, axis=0), 4 * len(few))
pairs = {
    "noise": (features["held-out"], noisy),
    "noise, an outlier among the held-out": (polluted, noisy),
    "a few good images": (features["held-out"], fidelity.features(classifier, few)),
    "the same, each four times": (
        features["held-out"],
        fidelity.features(classifier, fours),
    ),
}
scored = {name: fidelity.scores(*pair, resamples=0) for name, pair in pairs.items()}
pd.DataFrame(
    {name: {k: v.estimate for k, v in values.items()} for name, values in scored.items()}
).T.drop(columns="fid").round(2)

# %% [markdown]
# **4.** The search for copies found the planted ones. Would it find a copy that is noisier, shifted by two pixels, or
# mirrored?

# %% [markdown] tags=["solution"]
# Compare each share with 5 %, which is chance. A copy that the feature space takes for something else is not found. No
# search can say that nothing was copied, only that nothing was copied in a way that it would have found.

# %% tags=["solution"]
changed = {
    f"noise of {level}": fidelity.copies(training, noise=level) for level in (4, 16, 32)
}
changed["shifted"] = np.roll(training[:32], 2, axis=2)
changed["mirrored"] = training[:32, :, ::-1].copy()
shares = {}
for name, images in changed.items():
    hidden = fidelity.features(classifier, images)
    search = fidelity.memorisation(
        train_features, features[variants[0]], features["held-out"], planted=hidden, n=0
    )
    shares[name] = search.detected
pd.Series(shares, name="share of copies found").to_frame()

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **A search for copies finds none. What has been shown?**
#
# <details class="quiz" name="question-1"><summary>nothing was copied</summary>No. Only that nothing was copied in a way that the search would have found.</details>
# <details class="quiz right" name="question-1"><summary>nothing was copied that this feature space recognises</summary>Right. Plant some copies and count how many are found.</details>
# <details class="quiz" name="question-1"><summary>the model cannot copy</summary>No. It may, with other prompts.</details>
#
# **Noise is added to every image. Which score may get *better*?**
#
# <details class="quiz right" name="question-2"><summary>MS-SSIM, as a score of variety</summary>Right. It takes grain for variety.</details>
# <details class="quiz" name="question-2"><summary>classifier AUC</summary>No. Noise hides findings.</details>
#
# **Why are *held-out* images spoiled on purpose?**
#
# <details class="quiz" name="question-3"><summary>to train a better model</summary>No. Nothing is trained on them.</details>
# <details class="quiz right" name="question-3"><summary>so that we know what is wrong, and see which score notices</summary>Right. A score is tested on failings that are known.</details>

# %% [markdown]
# ## Takeaways
#
# - Each score can be fooled, for example by a little blur, by grain, or by a copy that the feature space does not
#   recognise.
# - FID, precision, recall and coverage depend on the number of images; compare equal numbers. The mean of KID does not
#   depend on it.
# - A search for copies can only find the copies that its feature space recognises: plant some and count.
#
# **Further reading.** {cite:t}`chong2020unbiased` show how FID depends on the number of images,
# {cite:t}`naeem2020reliable` what outliers do to precision and recall.

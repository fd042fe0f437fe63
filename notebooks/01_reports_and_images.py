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
# # 1 Reports and images
#
# **What do a chest X-ray and its report say, and which words could a model ground?**
#
# A radiologist looks at an image and writes what is there, where it is, and what is *not* there. A text-to-image model
# is trained on pairs of image and report, and nobody tells it which word belongs to which place. To *ground* a phrase
# is to find the place in the image that it names; whether the model learns this on its own is the question of this
# book. This chapter looks at the data, and at what can be known without any model.
#
# *You will be able to* read a study, say which words can be grounded, and compute the location prior, a map of where a
# finding usually is. *Before:* nothing; start here.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/
# Not used here: `make book` passes these two to every chapter.
variants = ["frozen", "learnable"]
seeds = [0]

# %%
from dataclasses import replace
from itertools import combinations
from textwrap import fill
from time import process_time

import numpy as np
import pandas as pd
import plotly.express as px
from IPython.display import Markdown

from chestxai import (
    finetune,
    grounding,
    knowledge,
    localization,
    models,
    plots,
    profiles,
    reports,
    sources,
    widgets,
)
from chestxai import sentences as say
from chestxai.sources import phantom
from chestxai.studies import FINDINGS, Finding, Frame, phrases, to_images

# %%
settings = profiles.load(profile)
plots.setup(settings.variants)
pd.set_option("display.max_colwidth", None)
splits, is_phantom = ("train", "val", "test"), settings.data.source == "phantom"
studies = {split: profiles.studies(settings, split, data) for split in splits}
# Some profiles read reports from one source and boxes from another.
boxed = {split: profiles.studies(settings, split, data, boxes=True) for split in splits}
if settings.boxes == settings.data.source:
    boxed = studies

# %% tags=["remove-input", "aggregate"]
Markdown(
    say.images.source(settings.data.source, settings.boxes)
    + " Radiographs are shown as if the patient faced us, so the patient's right is on the image's left; an **R** marks that "
    "side. *Left* and *right* in reports are always the patient's."
)

# %% [markdown]
# ## A study
#
# A `Study` is one image with its report, the form into which the book brings every data set. It lists `Finding`s:
# abnormalities that the report says are present or absent. A finding has a name, the words of the report about it (the
# *phrase*), and a place: one or more `Box`es, and a *mask*, the set of its pixels, where the exact shape is known.
#
# Studies come in three *splits*: models learn from *train*, choices are made on *val*, and results are reported on
# *test*.

# %%
located = [s for s in boxed["test"] if phrases([s])]
example = next((s for s in located if len(s.present()) > 1), located[0])


def show(report: str) -> None:
    """Print a report with its own line breaks, long lines wrapped."""
    print("\n".join(fill(line, 80) for line in report.splitlines()))


print(
    f"study {example.id} of patient {example.patient}, image {example.size[0]} × {example.size[1]} pixels\n"
)
show(example.report)

# %%
pd.DataFrame(
    {
        "finding": f.name,
        "in the image": "yes" if f.present else "denied",
        "phrase": f.phrase,
        "side": f.side,
        "boxes (x, y, w, h)": " ".join(
            str((round(b.x), round(b.y), round(b.w), round(b.h))) for b in f.boxes
        ),
        "share of the image": f"{Frame(*example.size, 256).mask(f).mean():.1%}"
        if f.boxes
        else "",
    }
    for f in example.findings
).fillna("").set_index("finding")

# %% [markdown]
# Where the second column says *denied*, the report names the finding to say that it is absent.
#
# Here are more studies, with their findings outlined and the conclusion of the report above each.

# %%
_, sheet, unreadable = to_images(profiles.sample(located, 8), 64)
sheet, concluded, _ = finetune.study_prompts(sheet)
plots.study_sheet(
    sheet,
    titles=concluded,
    title="Studies, their findings outlined, and what their reports conclude",
)

# %% [markdown]
# Cover the outlines and look for the findings yourself. Many are faint; what to look for comes below.
#
# ## How a radiograph is made
#
# An X-ray tube sends photons through the chest, and a detector counts those that arrive. Along a ray, the share
# $e^{-\int \mu\,\mathrm{d}z}$ passes, where the attenuation $\mu$ is large in bone, smaller in fluid and soft tissue,
# and almost zero in air (Beer–Lambert law). The image shows the *logarithm* of the count through a contrast curve that
# each manufacturer chooses, with bone white and air black. A grey level therefore has no unit; only differences between
# neighbouring regions carry information.

# %%
if is_phantom:
    person = phantom.patient(0, "train", 0, 0, normal=True)
    integral, _, healthy = phantom.attenuation([person], 256)
    twice = [replace(person, noise=seed) for seed in (0, 1)]
    first, again = (phantom.expose(integral, [p], 256, healthy)[0] for p in twice)
    noise = np.abs(first.astype(int) - again.astype(int))
    stages = {
        "1. attenuation added up along each ray": integral[0],
        "2. share of photons that arrive": np.exp(-integral[0]),
        "3. displayed: logarithm, contrast curve": first,
        f"what differs on a second exposure, × {255 // max(1, noise.max())}": noise,
    }
    stages = {name: plots.normalize(value) for name, value in stages.items()}
else:
    grey = Frame(*sheet[0].size, 256, settings.data.fit).image(sheet[0].pixels()) / 255
    stages = {
        "as stored": grey,
        "a darker curve": grey**2,
        "a brighter curve": grey**0.5,
        "a steeper curve": 1 / (1 + np.exp(8 * (0.5 - grey))),
    }
pictures = [(255 * value).astype(np.uint8) for value in stages.values()]
title = "From photons to a radiograph" if is_phantom else "One image, four curves"
plots.images(pictures, titles=list(stages), title=title)

# %% tags=["remove-input"]
Markdown(
    f"In picture 2 the chest is nearly black: behind its densest part only {np.exp(-integral.max()):.2%} of the "
    "photons arrive. The logarithm makes these differences visible. The last picture is the *quantum noise*: photons "
    "arrive at random, so two exposures of one patient differ. Where the image is white or black, the contrast curve "
    "hides it."
    if is_phantom
    else "The four pictures differ only in the contrast curve. A radiologist sees the same chest in each; a model has "
    "to learn to."
)

# %% [markdown]
# ## Variation that is not disease
#
# Patients are slim or large, breathe in more or less deeply, and stand at an angle. A standing patient is X-rayed from
# back to front (PA), one in bed from front to back (AP), which enlarges the heart's shadow. None of this is disease,
# yet it changes brightness, places and shapes.

# %%
if is_phantom:
    changes = {
        "one person": {},
        "slim": {"habitus": -1.6},
        "large": {"habitus": 1.6},
        "AP instead of PA": {"view": "AP", "inspiration": 0.93 * person.inspiration},
        "turned": {"rotation": 3.0},
        "shallow breath": {"inspiration": 0.85},
        "wrongly exposed": {"exposure": -2.5},
        "off centre, from afar": {"field": 44.0, "shift": (5.0, 3.0)},
    }
    neutral = dict.fromkeys(("habitus", "rotation", "exposure"), 0.0) | {"inspiration": 1.0}
    central = {"field": 34.0, "shift": (0.0, 0.0)}
    plain = replace(person, view="PA", device="", **neutral, **central)
    varied, _ = phantom.render([replace(plain, **c) for c in changes.values()], 192)
    captions = list(changes)
else:
    normal = [s for s in studies["test"] if reports.normal(s.report)] or studies["test"]
    varied, kept, _ = to_images(profiles.sample(normal, 8), 192, settings.data.fit)
    captions = [f"normal study {i + 1}" for i in range(len(kept))]

# %%
plots.images(
    varied,
    titles=captions,
    title="The same person" if is_phantom else "Eight chests without a finding",
)

# %% [markdown]
# ## The eight findings
#
# A model has to tell such variation from the changes that a finding makes. The book uses the eight findings for which
# the data set MS-CXR gives both phrase and place {cite}`boecking2022mscxr`. The lungs hold air and are dark; most
# findings replace air by fluid or tissue and are bright. In the table, the *apex* is the upper end of a lung, a *lobe*
# one of its parts, a *hilum* (plural *hila*) its root near the heart, and the *diaphragm* the muscle below it.
#
# | Finding | What has happened | What one sees | Where |
# | --- | --- | --- | --- |
# | Atelectasis | a part of the lung has lost its air | bright bands; the diaphragm is drawn up | mostly the lower end |
# | Cardiomegaly | the heart is enlarged | its shadow is wider than half the chest | the middle, more on the left |
# | Consolidation | air spaces are filled with fluid | dense white, crossed by dark airways | a lobe |
# | Edema | fluid has leaked into the lung | a haze, shaped like a bat's wings | around both hila |
# | Lung Opacity | a bright area that is not named further | an ill-defined haze | anywhere in the lung |
# | Pleural Effusion | fluid between lung and chest wall | white at the bottom, rising towards the outer edge | the lower end |
# | Pneumonia | the lung is infected | bright patches, often several | anywhere in the lung |
# | Pneumothorax | air between lung and chest wall | a dark rim without blood vessels, behind a fine line | the outer edge, mostly at the apex |
#
# Some of these names describe what is *seen* (opacity), others its *cause* (pneumonia), so one white patch may go by
# several names.


# %%
def alone(name: str) -> phantom.Patient:
    """A phantom patient with this finding only, and not a faint one."""
    everyone = (phantom.patient(0, "train", k, 0) for k in range(5000))
    return next(
        p
        for p in everyone
        if [x.name for x in p.lesions] == [name] and p.lesions[0].amount > 0.45
    )


# %%
if is_phantom:
    ill = [alone(name) for name in FINDINGS]
    pairs = [p for one in ill for p in (replace(one, lesions=()), one)]
    radiographs, truth = phantom.render(pairs, 192)
    names = [p.lesions[0].name if p.lesions else "without" for p in pairs]
    figure = plots.images(
        radiographs,
        titles=names,
        masks=[m[0] if m else None for m in truth],
        title="Eight patients, each without and with one finding",
    )
else:
    first = {f.name: s for s in reversed(located) for f in s.present() if f.boxes}
    kept = to_images([first[name] for name in sorted(first)], 64)[1]
    figure = plots.study_sheet(kept, title="A study for each finding with a box")
figure

# %% tags=["remove-input", "aggregate"]
if is_phantom:
    grey = radiographs.astype(float)
    by_finding = np.abs(grey[1::2] - grey[::2]).mean()
    by_nuisance = np.abs(varied[1:].astype(float) - varied[0]).mean()
    remark = (
        "Each pair shows one patient, without the finding and with it. Would you have seen it without the outline? "
        + say.images.contrast(by_finding, by_nuisance)
    )
else:
    remark = "Different patients, one for each finding that has a box: no finding can be removed from an X-ray of a patient."
Markdown(remark)

# %% [markdown]
# ## What reports look like
#
# Reports come in many layouts, most of them with sections: the *indication* says why the image was taken, the
# *findings* describe it, and the *impression* concludes. An indication such as “evaluate for pneumonia” does not say
# that there is one.

# %%
layouts = {}
for s in studies["test"]:
    layouts.setdefault(
        "capitals" if s.report.isupper() else tuple(reports.sections(s.report)), s
    )
several = list(layouts.values())[:4]
for s in several:
    show(s.report)
    print(40 * "─")

# %%
pd.DataFrame(
    [reports.sections(s.report) for s in several], index=[s.id for s in several]
).fillna("")

# %% [markdown]
# Blanks such as “XXXX” or “___” replace names and dates, to protect patients; they are removed before a model reads the
# text. The text that a model is given with an image is its *prompt*. As in the paper, it is the impression, which is
# short and says what matters. For one report, here is the impression beside the longer texts that could be used:

# %%
longest = max(several, key=lambda s: len(reports.sections(s.report)))
prompts = {
    mode: reports.prompt(longest.report, mode)
    for mode in ("impression", "findings", "report")
}
pd.Series(prompts, name="prompt").to_frame()

# %% [markdown]
# Where the impression says nothing by itself, such as “as above”, the next section that says something is taken, and an
# addendum that adds or overrules a finding is kept. The table counts the training prompts by the section they are made
# of:

# %% tags=["aggregate"]
made_of = reports.prompt_counts(s.report for s in studies["train"])
pd.Series(made_of, name="training prompts").rename_axis("made of").to_frame()

# %% [markdown]
# ## What reports say, and what they deny
#
# A report may name a disease to say that it is absent. `reports.find` reads reports by rules: it knows the words for
# each finding (after {cite}`irvin2019chexpert`) and how far a “no” reaches. These sentences need care:

# %%
sentences = (
    "No pneumothorax.",
    "No change in the left pleural effusion.",
    "The right pleural effusion has resolved.",
    "Pneumonia cannot be excluded.",
    "Evaluate for pneumothorax.",
    "Right lower lobe opacity, atelectasis versus pneumonia.",
    "Heart size is borderline, lungs are clear of consolidation.",
)
pd.DataFrame(
    {
        "sentence": sentence,
        "finding": f.name,
        "present": {True: "yes", False: "denied"}[f.present] if f.phrase else "",
        "side": f.side,
        "zone": f.zone,
        "severity": f.severity,
    }
    for sentence in sentences
    for f in reports.find(sentence) or [Finding("nothing is stated")]
).fillna("").set_index("sentence")

# %% [markdown]
# “No change” denies the change, not the effusion. A doubtful finding counts as present. A finding that is only looked
# for is not stated.
#
# Such rules are never perfect, and ours were written on training reports. So we check them on test reports, against
# labels from elsewhere: for phantoms the truth is known; for Open-i, a public collection of chest X-rays, people
# labelled the reports {cite}`demner2016openi`. Reports of phantoms are composed from fixed words, so a perfect score
# there says little about real reports. *Precision* is the share of findings read that are there, *recall* the share of
# findings there that are read, *F1* their harmonic mean, *macro-F1* the mean of F1 over findings.

# %% tags=["aggregate"]
has_truth = is_phantom or settings.data.source == "openi"
began = process_time()
for s in studies["train"]:
    reports.find(s.report)
speed = len(studies["train"]) / (process_time() - began)
examined = {split: knowledge.rule_scores(studies[split]) for split in ("train", "test")}
checked = examined["test"].assign(training=examined["train"]["f1"])
columns = {
    "there": "test reports with it", "precision": "precision", "recall": "recall", "f1": "F1",
    "training": "F1, training reports", "wrong": "false alarms", "hedged": "of these, in doubt",
    "sided": "found, side known", "side_right": "share with the correct side",
}  # fmt: skip
counts = ("there", "wrong", "hedged", "sided")
pd.DataFrame(
    {
        title: checked[name].map(
            lambda v, digits=0 if name in counts else 3: (
                "" if np.isnan(v) else f"{v:.{digits}f}"
            )
        )
        for name, title in columns.items()
    }
)

# %% tags=["remove-input", "aggregate"]
Markdown(
    say.images.rules(examined["test"].loc[list(FINDINGS)], speed)
    if has_truth
    else "Here the labels were themselves read from reports by a program: the table compares two readers, and neither is the "
    "truth."
)

# %% [markdown]
# ## From phrase to tokens
#
# A model reads *tokens*, words or pieces of words from a fixed vocabulary. To ask where it sees “pleural effusion”, we
# need the positions of these words' tokens in the prompt.

# %%
pipeline = models.load_base(settings, device="cpu")
tokenizer, size = pipeline.tokenizer, models.image_size(pipeline)
truths, _ = grounding.groundable(pipeline, phrases(boxed["test"]))
chosen = next(
    (
        t
        for t in truths
        if len(t.finding.phrase.split()) > 3 and not t.finding.phrase.isupper()
    ),
    truths[0],
)
phrase = chosen.finding.phrase
span = grounding.target_span(chosen.finding)
words = phrase[slice(*span)]
positions = reports.token_positions(tokenizer, phrase, span)
pieces = tokenizer.convert_ids_to_tokens(tokenizer(phrase)["input_ids"])
pd.DataFrame(
    {
        "token": pieces,
        f"names {chosen.finding.name}": [
            "●" if i in positions else "" for i in range(len(pieces))
        ],
    }
).rename_axis("position").T

# %% tags=["remove-input"]
places = say.words.counted(len(positions), "position")
Markdown(
    f"The phrase “{say.words.escaped(phrase)}” has {len(phrase.split())} words and {len(pieces)} tokens, including a *begin* "
    f"and an *end* token. “{say.words.escaped(words)}” is at {places}: "
    f"{', '.join(map(str, positions))}. Every prompt is padded to {reports.text_length(tokenizer)} positions; a longer one "
    "is cut off."
)

# %% [markdown]
# `[CLS]` and `[SEP]` are the begin and the end token; `##` marks a piece that continues a word. Rare words are split
# into several pieces. From chapter 3 on, the map of a word is the mean over its pieces.

# %%
pd.DataFrame(
    {"pieces": len(split), "tokens": " ".join(split)}
    for split in map(tokenizer.tokenize, map(str.lower, FINDINGS))
).set_index(pd.Index(FINDINGS, name="word"))

# %% [markdown]
# Which words *can* be grounded? Those that name something with a place in the image: the finding, perhaps its side and
# zone. “No”, “stable” or “there is” have no place. The words must also reach the model, that is, not be cut off.


# %%
def reaches(finding: Finding) -> bool:
    """Whether the words that name it survive the tokenizer."""
    try:
        span = grounding.target_span(finding)
        return bool(reports.token_positions(tokenizer, finding.phrase, span))
    except ValueError:
        return False


rows = []
for finding in (f for s in boxed["test"] for f in s.present()):
    named = reports.name_in(finding.phrase, finding.name)
    place = bool(finding.boxes) or finding.mask is not None
    read = reaches(finding)
    rows.append((finding.name, place, place and named != "", place and read))
funnel = pd.DataFrame(
    rows, columns=["finding", "has a place", "words name it", "can be grounded"]
)
counted = funnel.groupby("finding").sum().astype(int)
counted.insert(0, "test findings", funnel["finding"].value_counts())
counted.loc["all"] = counted.sum()
counted

# %% tags=["remove-input", "aggregate"]
usable, prompts, _ = finetune.study_prompts(studies["train"])
lengths = np.array([len(ids) for ids in tokenizer(prompts)["input_ids"]])
Markdown(
    f"**{counted.loc['all', 'can be grounded']} of {counted.loc['all', 'test findings']} test findings can be "
    f"grounded**; chapters 3 and 4 score these. Where a table is of a sample of them, it says so. "
    f"Of the {len(prompts):,} training prompts, "
    f"{models.cut_prompts(tokenizer, prompts) / len(prompts):.1%} are longer than the {reports.text_length(tokenizer)} tokens that "
    f"the model can read (median {np.median(lengths):.0f}, longest {lengths.max()})."
)

# %% [markdown]
# ## Further: how many, and which together
#
# All images of a patient are in one split; otherwise a model that remembers a patient's ribs would be tested on its
# memory.

# %%
patients = {
    split: {s.patient for s in [*studies[split], *boxed[split]]} for split in splits
}
shared = {
    f"{a} and {b}": len(patients[a] & patients[b]) for a, b in combinations(splits, 2)
}
assert not any(shared.values()), f"patients straddle splits: {shared}"

# %%
loaded = {settings.data.source: studies, settings.boxes: boxed}
total = {split: len(found) for split, found in studies.items()}
people = {split: len({s.patient for s in found}) for split, found in studies.items()}
labels = {
    split: np.array([s.labels() for s in found]).reshape(-1, len(FINDINGS))
    for split, found in studies.items()
}
counts = {split: found.sum(axis=0) for split, found in labels.items()}
prevalence = pd.DataFrame(counts, index=FINDINGS)
prevalence.loc["none of the eight"] = [
    (found.sum(axis=1) == 0).sum() for found in labels.values()
]
shown = prevalence.map("{:,.0f}".format) + (prevalence / pd.Series(total)).map(
    " ({:.0%})".format
)
pd.concat(
    [pd.DataFrame([total, people], index=["studies", "patients"]).map("{:,}".format), shown]
)

# %% tags=["remove-input", "aggregate"]
left_out = [
    (source, split, count, reason)
    for source, sets in loaded.items()
    for split in splits
    for reason, count in sets[split].reasons().items()
]
Markdown(say.images.splits(shared, left_out))

# %% [markdown]
# This is what was read of the data set, and its `options` for profiles, with their defaults in brackets. [Data
# cards](../data_cards) describe all data sets that the book can use.

# %% tags=["aggregate"]
cards = {name: sources.card(name) for name in loaded}
read = {
    name: {
        "read by this profile": "; ".join(
            f"{split}: {len(found):,} studies of {len({s.patient for s in found}):,} patients, "
            f"{len(phrases(found)):,} places"
            for split, found in sets.items()
        )
    }
    for name, sets in loaded.items()
}
pd.DataFrame({name: {**card, **read[name]} for name, card in cards.items()}).drop("where")

# %% [markdown]
# A study may have several findings. Where two usually occur together, a model that confuses them may still look right.
# Each row of {numref}`fig-together` takes the studies with one finding. A cell shows which share of them also has the
# column's finding. Compare it with that finding's share of all training studies (in the table of splits): if both are
# about equal, the two findings do not tend to occur together.

# %% tags=["aggregate"] name="fig-together"
counts = labels["train"].sum(axis=0).astype(int)
both = pd.DataFrame(labels["train"].T @ labels["train"], columns=FINDINGS)
share = both.div(np.where(counts, counts, np.nan), axis=0).mask(
    np.eye(len(FINDINGS), dtype=bool)
)
share.index = [f"{f} ({n:,})" for f, n in zip(FINDINGS, counts, strict=True)]
px.imshow(
    share.round(4), text_auto=".0%", aspect="auto", template=plots.TEMPLATE, height=420,
    color_continuous_scale="Blues", range_color=[0, share.max(axis=None)],
    labels={"x": "… that have this finding too", "y": "of the studies with …", "color": "share"},
    title="Findings that come together, training studies",
).update_xaxes(showgrid=False).update_yaxes(showgrid=False).update_coloraxes(colorbar_tickformat=".0%")  # fmt: skip

# %% [markdown]
# ## Look for yourself
#
# Choose a study: the places are outlined, and the words that name them are marked. In JupyterLab you can browse all
# test studies.

# %%
healthy = [s for s in studies["test"] if not s.present()]
first_with = [
    next((s for s in studies["test"] if n in {f.name for f in s.present()}), None)
    for n in FINDINGS
]
listed = {
    s.id: s
    for s in [*first_with, *healthy[:2], *([] if boxed is studies else sheet[:4])]
    if s
} or {s.id: s for s in studies["test"][:8]}
_, browsed, _ = to_images(list(listed.values()), 64)
every = [*studies["test"], *([] if boxed is studies else boxed["test"])]
widgets.show(lambda: widgets.study_browser(every), lambda: plots.study_static(browsed))

# %% [markdown]
# ## The answer: where findings usually are
#
# How much can one know about a finding's place without looking at the image? To find out, we average the masks of a
# finding over *other* patients: those of training, or of validation where a data set has no boxes for training. This
# mean is the *location prior*: at each pixel, the share of the finding's masks that cover it.


# %% name="fig-prior"
def mask_of(truth) -> np.ndarray:
    """The finding's mask in the model's frame."""
    return Frame(*truth.study.size, size, settings.data.fit).mask(truth.finding)


# Some sources have boxes for val and test only.
others = phrases(boxed["train"]) or phrases(boxed["val"])
priors = localization.location_priors(others, size, settings.data.fit)
numbers = pd.Series([t.finding.name for t in others]).value_counts()
some, _, _ = to_images(
    profiles.sample([t.study for t in others], 200), size, settings.data.fit
)
plots.overlays(
    [some.mean(axis=0).astype(np.uint8)] * len(priors),
    list(priors.values()),
    titles=[
        f"{name}: n = {numbers[name]:,}, peak {prior.max():.0%}"
        for name, prior in priors.items()
    ],
    title="Location prior: the mean mask of each finding, over the mean radiograph",
    scale="share of the masks",
)

# %% [markdown]
# A high peak means that the finding is nearly always in that place, a low one that it may be in many, or that it is
# small and rarely covers the same pixels. The prior depends neither on the image that is scored nor on the side that
# its report names, so a model that finds the place in the image can beat it.
#
# We score the prior on the test studies in two ways, of which chapter 4 says more. *AUC-ROC* is the probability that a
# random pixel of the finding has a higher value than a random pixel outside it; 0.5 is chance. The *pointing game* is
# the share of maps whose highest pixel lies in the finding (of several equal ones, the share that does); chance is the
# share of the image that the finding fills. Where a finding has few phrases, one hit more or less moves the pointing
# game by several hundredths.

# %% tags=["aggregate"]
scored = pd.DataFrame(
    {
        "finding": t.finding.name,
        "AUC-ROC": localization.auc_roc(priors[t.finding.name], mask),
        "pointing game": localization.pointing_game(priors[t.finding.name], mask),
        "its chance": mask.mean(),
    }
    for t in truths
    if 0 < (mask := mask_of(t)).mean() < 1
)
baseline = scored.groupby("finding").mean()
baseline.insert(0, "test phrases", scored["finding"].value_counts())
baseline.loc["all"] = [len(scored), *scored.drop(columns="finding").mean()]
baseline.round(3).astype({"test phrases": int})

# %% tags=["remove-input", "aggregate"]
overall = baseline.loc["all"]
Markdown(
    f"Without looking at the image, the prior has an AUC-ROC of **{overall['AUC-ROC']:.2f}** (chance 0.5), and its highest "
    f"pixel hits the finding in **{overall['pointing game']:.0%}** of cases (chance {overall['its chance']:.0%}). This baseline "
    "stands beside every model of the later chapters: a model that does not beat it may have learned only where findings "
    "usually are."
)

# %% tags=["answer", "remove-input", "aggregate"]
Markdown(
    say.answers.images(
        len(truths),
        len(located),
        len(boxed["test"]),
        overall["pointing game"],
        overall["its chance"],
    )
)

# %% [markdown]
# ## Exercises
#
# **1.** Find a study whose report names a finding only to deny it. Would a model that looks for words alone be fooled?

# %% [markdown] tags=["solution"]
# Yes: the prompt may hold the word “pneumothorax” while the image has none. Training on such pairs weakens the tie
# between the word and its place, unless the model learns what “no” does to the words that follow.

# %% tags=["solution"]
_, read, _ = finetune.study_prompts(studies["test"])
denials = [(text, f) for text in read for f in reports.find(text) if not f.present]
for text, f in denials[:1]:
    print(
        f"{len(denials)} denials in {len(read)} test prompts, e.g. of {f.name}:\n\n{text}"
    )

# %% [markdown]
# **2.** Which finding is the smallest? Which would you expect to be the hardest to point at?

# %% [markdown] tags=["solution"]
# The column *50%* is the median share of the image. A small finding that may be in many places should be the hardest:
# its chance is low, and so is the peak of its location prior.

# %% tags=["solution"]
area = pd.DataFrame({"finding": t.finding.name, "area": mask_of(t).mean()} for t in others)
area.groupby("finding")["area"].describe()[["count", "25%", "50%", "75%"]].sort_values(
    "50%"
).map("{:.3g}".format)

# %% [markdown]
# **3.** A model could be given the whole report instead of the impression. How many training prompts would then be cut
# off by the tokenizer?

# %% [markdown] tags=["solution"]
# Count the tokens of both: what lies beyond the encoder's length is cut off, and with it the findings that stand there.

# %% tags=["solution"]
usable, prompts, _ = finetune.study_prompts(studies["train"])
whole = [reports.prompt(s.report, "report") for s in usable]
for name, texts in (("impression", prompts), ("report", whole)):
    cut, tokens = models.cut_prompts(tokenizer, texts), tokenizer(texts)["input_ids"]
    median = np.median([len(ids) for ids in tokens])
    print(f"{name}: {cut / len(texts):.1%} cut off, median {median:.0f} tokens")

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **A report says “No pneumothorax.” Which words of it can a model ground in the image?**
#
# <details class="quiz" name="question-1"><summary>“pneumothorax”</summary>No. The word names a finding, but there is none in the image, so it has no place.</details>
# <details class="quiz right" name="question-1"><summary>none</summary>Right. What is denied has no place. Only findings that are present, with a place, can be grounded.</details>
# <details class="quiz" name="question-1"><summary>“No”</summary>No. A denial has no place in the image.</details>
#
# **What does the location prior know?**
#
# <details class="quiz right" name="question-2"><summary>where a finding usually is in other patients</summary>Right. It is the mean mask of a finding, made without the image it is scored on.</details>
# <details class="quiz" name="question-2"><summary>where the finding is in this image</summary>No. It is made from other patients only.</details>
# <details class="quiz" name="question-2"><summary>which side the report names</summary>No. It reads no report.</details>
#
# **Two radiographs of one patient differ in brightness. What follows?**
#
# <details class="quiz" name="question-3"><summary>one of them shows a finding</summary>No. Exposure, breath, position and the maker's curve change brightness, too.</details>
# <details class="quiz" name="question-3"><summary>the patient has lost weight</summary>No. That is one of many causes.</details>
# <details class="quiz right" name="question-3"><summary>nothing: brightness has no unit</summary>Right. Only differences to the neighbourhood mean something.</details>

# %% [markdown]
# ## Takeaways
#
# - A study is an image, a report, and findings that tie words to places.
# - Radiographs vary for many reasons; a finding is a small change among them, and grey levels have no unit.
# - Reports deny as well as assert. Words that name a finding with a place can be grounded; “no” cannot.
# - Where a finding usually is can be known without looking. This location prior is the baseline to beat.
#
# **Further reading.** {cite:t}`irvin2019chexpert` label reports by rules and keep doubt as an answer of its own;
# {cite:t}`johnson2019mimiccxrjpg` describe the images of the paper's data.

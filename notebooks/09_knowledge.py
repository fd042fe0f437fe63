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
# # 7 What does the model know?
#
# **Does a learnable text encoder know more about the diseases, and does it point worse?**
#
# Chapters 3 to 6 asked where a model looks and what it draws. Knowledge is something else: a model may know exactly
# what an effusion is and still not point at it. So each model takes two examinations in naming diseases,
#
# - from a **report**: what do the states of its text encoder tell about the findings?
# - from an **image**: which finding, given as prompt, helps the model most to remove noise from the image?
#
# each beside readers that know nothing of diffusion. What the two treatments know is then put beside how well they
# point.

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variants = ["frozen", "learnable"]
seeds = [0]
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import html

import numpy as np
import pandas as pd
import plotly.express as px
from IPython.display import HTML, Markdown

from chestxai import fidelity, knowledge, models, plots, profiles, reports, runs, tradeoff
from chestxai.stats import bootstrap_statistic
from chestxai.studies import FINDINGS, to_images

settings = profiles.load(profile)
resamples = min(settings.statistics.resamples, 500)
plots.setup()
folders = {
    variant: [profiles.run_folder(settings, variant, seed, out) for seed in seeds]
    for variant in variants
}
pipelines = {v: models.load_pipeline(first / "model") for v, (first, *_) in folders.items()}
both = set(variants) == {"frozen", "learnable"}

# %% [markdown]
# ## The examination papers
#
# Reports to learn from (train), to choose thresholds on (val) and to be examined on (test); no patient is in two of
# them. The right answers must not come from any reader that is examined: of phantoms the truth is known, and Open-i's
# reports were indexed by people {cite}`demner2016openi`, whose terms are taken here.

# %%
phantom = settings.data.source == "phantom"
# Some hundred reports show how those of phantoms are written; and as each is drawn with its image, no more are made.
limits = dict(
    zip(
        ("train", "val", "test"),
        (400, 120, 100) if phantom else (4000, 1000, 1000),
        strict=True,
    )
)
count = (
    {"train": min(settings.data.train or limits["train"], limits["train"])}
    if phantom
    else {}
)
fewer = settings.model_copy(update={"data": settings.data.model_copy(update=count)})
loaded = {split: profiles.studies(fewer, split, data) for split in limits}
texts, labels, patients = {}, {}, {}
for split, limit in limits.items():
    # Several images of one report are one report.
    different = {(s.patient, s.report): s for s in loaded[split]}.values()
    own = profiles.sample(list(different), limit)
    labels[split], kept = knowledge.truth(own)
    texts[split] = [own[i].report for i in kept]
    patients[split] = [own[i].patient for i in kept]
least = max(1, len(texts["test"]) // 50)
findings = knowledge.judgeable(list(labels.values()), least)
counts = {split: part.sum(axis=0).astype(int) for split, part in labels.items()}
labels = {split: part[:, knowledge.columns(findings)] for split, part in labels.items()}
pd.DataFrame(counts, index=pd.Index(FINDINGS, name="reports with")).T.assign(
    reports={split: len(some) for split, some in texts.items()}
).T

# %% tags=["hide-input"]
left_out = [name for name in FINDINGS if name not in findings]
Markdown(
    f"Examined are {len(findings)} of {len(FINDINGS)} findings. "
    + (
        f"Left out, with fewer than {least} reports in one of the splits: {', '.join(left_out)}. A score of so few would "
        "be chance."
        if left_out
        else "Every finding is frequent enough."
    )
)

# %% [markdown]
# ## Reading with attention
#
# Of each report, the text encoder gives one state per token. The encoder stays as it is: only a small head is trained
# on its states, and what the head can read, the encoder must have written there. For each finding the head learns
# which tokens to attend to (a softmax over the report's tokens, never over padding) and what the weighted mean of
# their states says. Sentences are read one by one, because the encoder takes few tokens at a time.
#
# Beside it stand two readers without a network: TF-IDF with logistic regression, which counts words and pairs of words
# on the same reports, and the rules of chapter 1, which learn nothing.

# %%
caches = {variant: {} for variant in variants}
readers = {"rules": lambda some: knowledge.rules(some, findings)}


def add_reader(name, probabilities):
    """A reader's answers are yes above the threshold of each finding that is best on val."""
    cuts = knowledge.thresholds(probabilities(texts["val"]), labels["val"])
    readers[name] = lambda some: probabilities(some) > cuts


tfidf = knowledge.train_tfidf(texts["train"], labels["train"])
add_reader("TF-IDF", tfidf.predict_proba)
pools, read = {}, {}
for variant in runs.progress(variants, "reading"):
    read[variant] = lambda some, v=variant: knowledge.read(pipelines[v], some, caches[v])
    pools[variant] = knowledge.train_pool(read[variant](texts["train"]), labels["train"])
    add_reader(
        variant,
        lambda some, v=variant: knowledge.pool_probabilities(pools[v], read[v](some)),
    )

# %%
# A report to look at: with two findings and a denial if there is such a one, and short.
wanted = max(
    range(len(texts["test"])),
    key=lambda i: (
        min(labels["test"][i].sum(), 2),
        any(not f.present for f in reports.find(texts["test"][i])),
        not texts["test"][i].isupper(),
        -len(texts["test"][i]),
    ),
)
asked = [i for i, there in enumerate(labels["test"][wanted]) if there] or [0]
lines = []
for variant in variants:
    (reading,) = read[variant]([texts["test"][wanted]])
    words = knowledge.attended(pools[variant], reading)
    sure = knowledge.pool_probabilities(pools[variant], [reading])[0]
    for k in asked[:2]:
        most = max(weight[k] for _, weight in words)
        marked = " ".join(
            f'<span style="background:rgba(0,158,115,{0.75 * weight[k] / most:.2f});border-radius:3px;padding:1px 2px"'
            f' title="{weight[k]:.2f}">{html.escape(word)}</span>'
            for word, weight in words
        )
        lines.append(
            f"<p><b>{html.escape(findings[k])}, {variant}</b> (probability {sure[k]:.2f}, strongest word "
            f"{most:.2f})<br>{marked}</p>"
        )
HTML(
    '<div style="background:white;color:#222222;padding:4px 12px;line-height:1.7">'
    + "".join(lines)
    + "</div>"
)

# %% [markdown]
# The greener a word, the more of the attention it gets (hover for the share; the shares of all words add up to 1). It
# should be the words that name the finding, and where the impression repeats them, both places.
#
# Now every reader on the same test reports. F1 is the harmonic mean of precision and recall; the macro-F1 is its mean
# over findings, so that rare ones count as much as frequent ones.

# %%
answers = {name: reader(texts["test"]) for name, reader in readers.items()}
read_well = {
    name: knowledge.scored(some, labels["test"], patients["test"], n=resamples)
    for name, some in answers.items()
}
table = pd.DataFrame(
    {
        name: [f"{v:.3f}" for v in knowledge.f1(some, labels["test"])]
        for name, some in answers.items()
    },
    index=findings,
)
table.loc["macro-F1"] = [str(interval) for interval in read_well.values()]
table

# %% tags=["hide-input"]
best = max(read_well, key=lambda name: read_well[name].estimate)
Markdown(
    f"`{best}` reads best: macro-F1 {read_well[best]}. "
    + (
        "On phantoms that is no merit of the rules: they know every phrase that the phantom's radiologist can write. "
        if phantom and best == "rules"
        else ""
    )
    + "What matters here are the two encoders, which are compared below, and how each reader takes reports that are "
    "written differently."
)

# %% [markdown]
# ## The same report in another form
#
# A reader that has understood a report does not mind how it is written. Each test report is rewritten more and more,
# and what it says stays true: *formatting* (upper and lower case, no headers, sentences in another order, numbered
# lists and labels, blanks in place of words that mean nothing for the findings, lines broken at a margin, all at once),
# *typing errors*, and the *abbreviations* that radiologists use. Words that deny are left alone. Every reader is spared what is known to mean
# nothing: headers, blanks, and the numbers and labels of lists ("2.", "Finding 2:") are taken away before it reads, for
# an encoder would take them for words. What the report from above looks like:

# %%
single = [*knowledge.FORMATTING, "typos", "abbreviations"]
kinds = {kind: [kind] for kind in single} | {"all formatting": knowledge.FORMATTING}
shown = {
    "as it is": [],
    **{k: kinds[k] for k in ("all formatting", "typos", "abbreviations")},
}
Markdown(
    "\n".join(
        f"- **{name}**: {html.escape(' '.join(knowledge.change(texts['test'][wanted], made, 1.0).split()))}"
        for name, made in shown.items()
    )
)

# %%
some = slice(settings.sampling.images // 2 if phantom else None)
paper = texts["test"][some], labels["test"][some], patients["test"][some]
curves = knowledge.robustness(
    readers,
    *paper,
    kinds,
    strengths=(0.0, 0.5, 1.0),
    n=min(resamples, 200),
    progress=lambda some: runs.progress(some, "changed reports"),
)
who = {
    "rules": "#555555",
    "TF-IDF": plots.COLORS[2],
    "classifier": plots.COLORS[4],
    "centre prior": "#222222",
    **plots.VARIANTS,
}
marks = dict(
    zip(
        who,
        ("diamond", "x", "triangle-up", "diamond-open", "circle", "square"),
        strict=True,
    )
)
drawn = curves.assign(
    up=curves["high"] - curves["mean"],
    down=curves["mean"] - curves["low"],
    # Side by side, or the intervals would hide one another.
    shown=curves["strength"] + curves["reader"].map({name: 0.02 * i - 0.03 for i, name in enumerate(readers)}),
)  # fmt: skip
px.line(
    drawn, x="shown", y="mean", error_y="up", error_y_minus="down", color="reader", symbol="reader",
    line_dash="reader", facet_col="change", facet_col_wrap=3, facet_col_spacing=0.03, facet_row_spacing=0.09,
    color_discrete_map=who, symbol_map=marks, template=plots.TEMPLATE, height=860,
    labels={"shown": "strength", "mean": "macro-F1"},
    title="Macro-F1 on reports that say the same in another form (95 % intervals)",
).update_layout(legend={"y": 1.05}, legend_title_text="", margin={"t": 110}).for_each_annotation(
    lambda a: a.update(text=a.text.removeprefix("change="))
)  # fmt: skip

# %% [markdown]
# Strength is the share of words, sentences or sections that is changed (for headers and lines: of reports). At 1 nearly
# every longer word has a typing error, more than any report has.
#
# Points of macro-F1 that are lost at full strength, each kind alone and all formatting together:

# %%
most = curves[curves["strength"] == 1]
full = most[most["change"] == "all formatting"]
losses = most.assign(
    shown=[f"{r.lost:.1f} [{r.lost_low:.1f}, {r.lost_high:.1f}]" for r in most.itertuples()]
)
losses.pivot(index="change", columns="reader", values="shown").loc[[*kinds], [*readers]]

# %% tags=["hide-input"]
reach = 3
told = [
    f"`{row.reader}` "
    + (
        f"stays within {reach} points"
        if row.lost_high <= reach
        else f"loses more than {reach} points"
        if row.lost_low > reach
        else f"may or may not stay within {reach} points"
    )
    + f" ({row.lost:.1f} [{row.lost_low:.1f}, {row.lost_high:.1f}])"
    for row in full.itertuples()
]
Markdown("Under all formatting changes at once, " + "; ".join(told) + ".")

# %% [markdown]
# ## Asking the diffusion model about an image
#
# The model has never been trained to classify. But it has learned to remove noise from an image *given a text*, and it
# should do that best if the text is true {cite}`li2023diffusion`. So each test image gets noise, the same for every
# prompt, and the model predicts that noise once for each class. The evidence for a finding is
#
# $$ e_f = \lVert \epsilon - \hat\epsilon(x_t, \text{normal}) \rVert^2
# - \lVert \epsilon - \hat\epsilon(x_t, f) \rVert^2 $$
#
# averaged over pixels and a few timesteps: by how much is the error smaller if the model is told of the finding, rather
# than that there is none? Because noise and image are the same, what they contribute cancels.

# %%
size = models.image_size(pipelines[variants[0]])
chosen = profiles.sample(loaded["test"], settings.sampling.images * 3 // 4)
truth, kept = knowledge.truth(chosen)
images, readable, _ = to_images([chosen[i] for i in kept], size, settings.data.fit)
image_truth = knowledge.truth(readable)[0]
image_patients = [s.patient for s in readable]
noisiest = pipelines[variants[0]].scheduler.config.num_train_timesteps
timesteps = [noisiest * 3 // 20, noisiest * 2 // 5]
prompts = [*knowledge.PROMPTS.values(), knowledge.NORMAL]
errors = {
    variant: knowledge.denoising_errors(
        pipelines[variant],
        images,
        prompts,
        timesteps,
        progress=lambda some, v=variant: runs.progress(some, f"denoising · {v}"),
    )
    for variant in variants
}
evidence = {variant: knowledge.evidence(found) for variant, found in errors.items()}
pd.Series(prompts, index=[*FINDINGS, "normal"], name="prompt").to_frame()

# %%
one = next((i for i, row in enumerate(image_truth) if row.sum() == 1), 0)
shows = ", ".join(f for f, there in zip(FINDINGS, image_truth[one], strict=True) if there)
bars = pd.DataFrame({v: 1000 * e[one] for v, e in evidence.items()}, index=FINDINGS)
px.bar(
    bars.rename_axis("prompt").reset_index().melt("prompt", var_name="variant", value_name="evidence"),
    x="evidence", y="prompt", color="variant", pattern_shape="variant", barmode="group", color_discrete_map=who,
    template=plots.TEMPLATE, height=420, labels={"evidence": "evidence (thousandths of the noise's variance)", "prompt": ""},
    title=f"Evidence in one test image; it shows: {shows or 'none of them'}",
).update_yaxes(autorange="reversed").update_layout(legend={"y": 1.02}, legend_title_text="")  # fmt: skip

# %% [markdown]
# A bar to the right: told of this finding, the model denoises the image better than told that it is normal. Look
# whether the longest one is the finding that is there. Bars of different prompts start from different places, as a
# prompt can help or hurt on every image; so what counts is whether, for *one* finding, images with it have more
# evidence than images without it. That is the AUC: 0.5 is a model that cannot tell. Beside it stands the small
# classifier of chapter 5, which was trained to name findings in images.


# %%
def labelled(split):
    """Images and labels, should the classifier have to be trained: as in chapter 5."""
    some = profiles.sample(loaded[split], 20_000)
    pixels, usable, _ = to_images(some, min(size, 128), settings.data.fit)
    return pixels, np.stack([s.labels() for s in usable])


classifier = fidelity.shared_classifier(
    settings.data.source,
    profiles.profile_folder(settings, out) / "classifier",
    labelled,
    data=f"{loaded['train'].fingerprint}-{settings.data.fit}",
    progress=lambda epochs: runs.progress(epochs, "training the classifier"),
)
scores = {**evidence, "classifier": fidelity.predict(classifier, images)}
seen = knowledge.judgeable([image_truth], max(1, len(images) // 50))
at = knowledge.columns(seen)
seen_well = {
    name: {
        finding: bootstrap_statistic(
            (some[:, columns], image_truth[:, columns]), knowledge.macro_auc, image_patients, n=resamples
        )
        for finding, columns in {**{f: [c] for f, c in zip(seen, at, strict=True)}, "all": at}.items()
    }
    for name, some in scores.items()
}  # fmt: skip
count = {**dict(zip(FINDINGS, image_truth.sum(axis=0), strict=True)), "all": len(images)}
plots.scores_by_finding(
    pd.DataFrame(
        {
            "finding": finding,
            "variant": name,
            "mean": v.estimate,
            "low": v.low,
            "high": v.high,
            "chance": 0.5,
            "n": count[finding],
        }
        for name, found in seen_well.items()
        for finding, v in found.items()
    ),
    "AUC",
    "Findings told from the image (number of images with it; all: images)",
)

# %% tags=["hide-input"]
unseen = [name for name in FINDINGS if name not in seen]
words = []
for variant in variants:
    gap = knowledge.difference(
        scores["classifier"][:, at],
        evidence[variant][:, at],
        image_truth[:, at],
        image_patients,
        knowledge.macro_auc,
        n=resamples,
    )
    level = seen_well[variant]["all"]
    words.append(
        f"- `{variant}` {'tells findings apart' if level.low > 0.5 else 'cannot be told from chance'}: macro AUC "
        f"{level}. The classifier "
        + (
            "does better"
            if gap.low > 0
            else "does worse"
            if gap.high < 0
            else "cannot be told from it"
        )
        + f": difference {gap:+.3f}"
    )
Markdown(
    "\n".join(words)
    + (f"\n\nToo rare in these images: {', '.join(unseen)}." if unseen else "")
)

# %% [markdown]
# ## The answer: does it know more, and point worse?
#
# How well it points is read from the runs' `grounding.csv` (chapter 3): the AUC-ROC of the map against the finding's
# true place, at the last checkpoint.

# %%
every = [folder for found in folders.values() for folder in found]
points = tradeoff.by_finding(every, "auc_roc", n=resamples)
points = points[points["finding"] == "all"].set_index("variant")
rows = [("knows, from the report: macro-F1", k, v) for k, v in read_well.items()]
rows += [("knows, from the image: macro AUC", k, v["all"]) for k, v in seen_well.items()]
answer = pd.DataFrame(
    {"question": q, "reader": k, "mean": v.estimate, "low": v.low, "high": v.high}
    for q, k, v in rows
)
pointing = points.reset_index(names="reader")[["reader", "mean", "low", "high"]]
prior = {"reader": "centre prior", "mean": points["prior"].mean()}
pointing = pd.concat([pointing, pd.DataFrame([prior])]).assign(
    question="points: AUC-ROC of the map"
)
answer = pd.concat([answer, pointing], ignore_index=True)
px.scatter(
    answer.assign(up=answer["high"] - answer["mean"], down=answer["mean"] - answer["low"]),
    x="mean", y="reader", error_x="up", error_x_minus="down", color="reader", symbol="reader", facet_col="question",
    facet_col_spacing=0.05, color_discrete_map=who, symbol_map=marks,
    category_orders={"reader": [*variants, "rules", "TF-IDF", "classifier", "centre prior"]},
    template=plots.TEMPLATE, height=380, labels={"mean": "", "reader": ""},
    title="What each treatment knows, and how well it points (95 % intervals)",
).update_traces(marker_size=11).update_xaxes(matches=None).update_layout(showlegend=False).for_each_annotation(
    lambda a: a.update(text=a.text.removeprefix("question=").replace(": ", ":<br>"))
).update_layout(margin={"t": 110})  # fmt: skip

# %% tags=["hide-input"]
told = []
if both:
    more = {
        "from the report": knowledge.difference(
            answers["learnable"], answers["frozen"], labels["test"], patients["test"], n=resamples
        ),
        "from the image": knowledge.difference(
            evidence["learnable"][:, at],
            evidence["frozen"][:, at],
            image_truth[:, at],
            image_patients,
            knowledge.macro_auc,
            n=resamples,
        ),
    }  # fmt: skip
    for where, d in more.items():
        verdict = (
            "knows more than"
            if d.low > 0
            else "knows less than"
            if d.high < 0
            else "cannot be told from"
        )
        told.append(f"- **{where}**, `learnable` {verdict} `frozen`: {d:+.3f}")
    pointed = tradeoff.compare(folders["learnable"], folders["frozen"], n=resamples)
    worse = (
        "points worse than"
        if pointed.high < 0
        else "points better than"
        if pointed.low > 0
        else "points neither better nor worse than"
    )
    told.append(
        f"- **on the map**, `learnable` {worse} `frozen`: {pointed.estimate:+.3f} "
        f"[{pointed.low:+.3f}, {pointed.high:+.3f}]"
    )

# %% tags=["hide-input"]
if both and pointed.high < 0:
    less = any(d.high < 0 for d in more.values())
    gained = any(d.low > 0 for d in more.values())
    told.append(
        "\nIt points worse "
        + (
            "and has lost knowledge, too."
            if less
            else "although it knows more."
            if gained
            else "and knowledge does not explain it: no loss of that is seen."
        )
    )
elif both:
    told.append("\nOn these data it is not shown that a learnable encoder points worse.")
Markdown(
    "Paired differences, learnable minus frozen, with 95 % intervals:\n\n"
    + "\n".join(told)
    + f"\n\nThe examinations are of seed {seeds[0]}: the intervals cover other patients, not other trainings."
    if told
    else "A comparison needs both treatments."
)

# %% [markdown]
# The numbers are kept for whoever wants to compare several runs.

# %%
kept_curves = curves.assign(question="report in another form: macro-F1")
columns = ["question", "reader", "change", "strength", "mean", "low", "high", "lost", "lost_low", "lost_high"]  # fmt: skip
by_finding = pd.DataFrame(
    {"question": f"image: AUC of {f}", "reader": name, "mean": v.estimate, "low": v.low, "high": v.high}
    for name, found in seen_well.items()
    for f, v in found.items()
    if f != "all"
)  # fmt: skip
stored = pd.concat([answer, by_finding, kept_curves], ignore_index=True)[columns]
runs.write_atomic(
    profiles.profile_folder(settings, out) / "knowledge.csv",
    stored.to_csv(index=False, float_format="%.6g"),
)
print(f"{len(stored)} rows in knowledge.csv")

# %% [markdown]
# ## Exercises
#
# **1.** At which timestep does the image give the finding away?

# %% tags=["hide-cell"]
# Little noise leaves the finding visible whatever the prompt says; with much noise only what is large is left to guess.
# Add timesteps above to see the whole curve.
pd.DataFrame(
    {
        v: {
            t: knowledge.macro_auc(
                knowledge.evidence(e[..., [k]])[:, at], image_truth[:, at]
            )
            for k, t in enumerate(timesteps)
        }
        for v, e in errors.items()
    }
).rename_axis("timestep").round(3)

# %% [markdown]
# **2.** Do the readers understand *no*? Ask them about a finding that is stated, denied, and hoped not to be there, in
# a report that says little else.

# %% tags=["hide-cell"]
# A softmax must put its weight somewhere: where nothing else is said, it lands on the denied word. The head has learned
# from reports what such a word means there, and may be wrong about one that stands nearly alone.
name = "Pleural Effusion" if "Pleural Effusion" in findings else findings[0]
told = {
    said.format(
        name.lower()
    ): f"{said.format(name.lower())} The osseous structures are intact."
    for said in ("Large {}.", "No {}.", "There is no evidence of {}.", "Evaluate for {}.")
}
k = findings.index(name)
pd.DataFrame(
    {reader: readers[reader](list(told.values()))[:, k] for reader in readers},
    index=list(told),
)

# %% [markdown]
# **3.** Does the order of the sentences matter to the attention, and should it?

# %% tags=["hide-cell"]
# A softmax over tokens has no order, and each sentence is read alone: the answer is the same but for rounding. That is
# robust, and blind: "The effusion is seen. It has resolved." needs the order.
for variant in variants:
    turned = [
        knowledge.change(text, "order", 1.0, i) for i, text in enumerate(texts["test"])
    ]
    before, after = (
        knowledge.pool_probabilities(pools[variant], read[variant](some))
        for some in (texts["test"], turned)
    )
    print(f"{variant}: largest difference of a probability {abs(before - after).max():.1e}")

# %% [markdown]
# ## Takeaways
#
# - Knowing and pointing are different things, and are measured apart: a model can gain one and lose the other.
# - What a head can read from a frozen state is what the encoder knows, and it is worth something only beside readers
#   that know less: here word counts, and rules.
# - A diffusion model is a classifier that nobody trained: compare its errors under each prompt with the same noise.
# - A reader must be tried on reports that say the same in another form.

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
# # 11 What does the model know?
#
# **Does a learnable text encoder know more about the diseases, and does it point worse?**
#
# So far we asked where a model looks and what it generates. Knowledge is something else: a model may know what an
# effusion is and still not point at it. So each model is examined twice in naming findings,
#
# - from a **report**: what do the states of its text encoder say about the findings?
# - from an **image**: does naming a finding in the prompt improve the predicted noise more on images that show it?
#
# Each examination includes baselines that know nothing of diffusion. The last section asks whether those that know more
# also point better.
#
# *You will be able to* measure what a text encoder and a diffusion model know about findings, and test a reader on
# reports that say the same in another form. *Before:* chapters 1 (reports and rules), 3 (maps) and 6 (the classifier).

# %% tags=["parameters"]
profile = "demo"  # a name in data/profiles, or the path of a .yaml file
variants = ["frozen", "learnable"]  # each variant is compared with the first
seeds = [0]
data = ""  # folder that holds one sub-folder per source (openi/, nih/); phantoms need none
out = ""  # root of the runs; empty: the project's runs/

# %%
import pandas as pd
from IPython.display import Markdown

from chestxai import (
    knowledge,
    localization,
    models,
    plots,
    profiles,
    reports,
    runs,
    tradeoff,
)
from chestxai import sentences as say

# %%
settings = profiles.load(profile)
trained = [profiles.run(settings, v, s, out) for v in variants for s in seeds]
every = [run.check_finished().folder for run in trained]
plots.setup(settings.variants)

# %% [markdown]
# We examine the first seed of each variant.
#
# ## The data
#
# A *reader* is anything that reads a report and says which findings it states. Readers learn on train, their thresholds
# are chosen on val, and they are examined on test. The reference labels must not come from a reader that is examined:
# for phantoms the truth is known, and Open-i's reports were indexed by people {cite}`demner2016openi`.

# %%
import warnings

from chestxai.stats import FewGroupsWarning
from chestxai.studies import FINDINGS, to_images

warnings.simplefilter("once", FewGroupsWarning)
phantom = settings.data.source == "phantom"
resamples = min(settings.statistics.resamples, 500)
limits = {"train": 4000, "val": 1000, "test": 1000}
source = settings
if phantom:
    # A few hundred reports cover the wording of phantoms. A phantom's report is generated with its image, so no more
    # training studies are generated than are read.
    limits = {"train": 400, "val": 120, "test": 100}
    fewer = {"train": min(settings.data.train or limits["train"], limits["train"])}
    source = settings.model_copy(update={"data": settings.data.model_copy(update=fewer)})
studies = {split: profiles.studies(source, split, data) for split in limits}

# %% [markdown]
# Several images of one report count as one report.

# %%
texts, report_truth, patients = {}, {}, {}
for split, limit in limits.items():
    different = {(study.patient, study.report): study for study in studies[split]}
    sampled = profiles.sample(list(different.values()), limit)
    report_truth[split], kept = knowledge.truth(sampled)
    texts[split] = [sampled[i].report for i in kept]
    patients[split] = [sampled[i].patient for i in kept]

# %% tags=["aggregate"]
least = max(1, len(texts["test"]) // 50)
findings = knowledge.judgeable(list(report_truth.values()), least)
columns = knowledge.columns(findings)
labels = {split: truth[:, columns] for split, truth in report_truth.items()}
with_finding = {
    split: truth.sum(axis=0).astype(int) for split, truth in report_truth.items()
}
counts = pd.DataFrame(with_finding, index=pd.Index(FINDINGS, name="reports with"))
counts.loc["all reports"] = [len(texts[split]) for split in limits]
counts

# %% tags=["remove-input", "aggregate"]
rare = [name for name in FINDINGS if name not in findings]
names = "question reader change strength mean low high lost lost_low lost_high".split()
stored = profiles.profile_folder(settings, out) / "knowledge.csv"
if not findings:
    runs.write_atomic(stored, ",".join(names) + "\n")
    runs.leave_out_rest()
Markdown(
    f"{len(findings)} of {len(FINDINGS)} findings are evaluated. Too rare, with fewer than {least} reports with or without "
    f"them in one of the splits: {', '.join(rare) or 'none'}."
    + (
        ""
        if findings
        else " **So the rest of this chapter is left out (restart the kernel to run it again).**"
    )
)

# %% [markdown]
# ## Reading with attention
#
# In this examination no text encoder is trained, not even that of a learnable variant. We train a small classifier, the
# *reading head*, on its states: what this can read is in the states. For each finding the head learns which tokens to
# attend to (a softmax over the report's tokens, without padding), and to decide from the weighted mean of their states
# whether the finding is present. The encoder takes few tokens at a time, so reports are read sentence by sentence.
#
# Two readers without a network are the baselines: TF-IDF with logistic regression, which weighs words and pairs of
# words by how rare they are, and the rules of chapter 1, which learn nothing.

# %%
from functools import partial


def with_thresholds(probabilities):
    """A reader: present where the probability exceeds the finding's best threshold on val."""
    cuts = knowledge.thresholds(probabilities(texts["val"]), labels["val"])
    return lambda batch: probabilities(batch) > cuts


tfidf = knowledge.train_tfidf(texts["train"], labels["train"])
readers = {
    "rules": partial(knowledge.rules, findings=findings),
    "TF-IDF": with_thresholds(tfidf.predict_proba),
}

# %% [markdown]
# Each variant adds a reader: its text encoder with a head.

# %%
first_runs = dict(zip(variants, trained[:: len(seeds)], strict=True))
pipelines = {v: models.load_pipeline(run.model) for v, run in first_runs.items()}
# Each encoder remembers the sentences that it has read.
read = {v: partial(knowledge.read, pipelines[v], cache={}) for v in variants}
pools = {}


def pooled(variant, batch):
    """Probability of each finding by a variant's encoder and head."""
    return knowledge.pool_probabilities(pools[variant], read[variant](batch))


for variant in runs.progress(variants, "reading"):
    pools[variant] = knowledge.train_pool(read[variant](texts["train"]), labels["train"])
    readers[variant] = with_thresholds(partial(pooled, variant))

# %% [markdown]
# Which words does the head attend to? We look at one report: short, and if possible with two findings and a denial.

# %%
example = max(
    range(len(texts["test"])),
    key=lambda i: (
        min(labels["test"][i].sum(), 2),
        any(not finding.present for finding in reports.find(texts["test"][i])),
        not texts["test"][i].isupper(),
        -len(texts["test"][i]),
    ),
)
present = [k for k, there in enumerate(labels["test"][example]) if there] or [0]

# %%


def marked(variant, k):
    """The example as HTML, with the attention that a variant's head for finding `k` pays to each word."""
    (reading,) = read[variant]([texts["test"][example]])
    words = [
        (word, weights[k]) for word, weights in knowledge.attended(pools[variant], reading)
    ]
    probability = knowledge.pool_probabilities(pools[variant], [reading])[0, k]
    most = max(weight for _, weight in words)
    spans = " ".join(
        f'<span style="background:rgba(0,158,115,{0.75 * weight / most:.2f});border-radius:3px;'
        f'padding:1px 2px" title="{weight:.2f}">{say.words.escaped(word)}</span>'
        for word, weight in words
    )
    name = f"<b>{say.words.escaped(findings[k])}, {variant}</b>"
    return f"<p>{name} (probability {probability:.2f}, strongest word {most:.2f})<br>{spans}</p>"


# %% tags=["remove-input"]
from IPython.display import HTML

paragraphs = "".join(marked(variant, k) for variant in variants for k in present[:2])
style = "background:white;color:#222222;padding:4px 12px;line-height:1.7"
HTML(f'<div style="{style}">{paragraphs}</div>')

# %% [markdown]
# The greener a word, the more attention it gets (hover for the share; all shares sum to 1). The greenest words should
# be those that name the finding, wherever the report does so.
#
# Now every reader reads the same test reports. F1 is the harmonic mean of precision and recall; the macro-F1 is its
# mean over findings, so rare ones count as much as frequent ones.

# %% tags=["aggregate"]
answers = {name: reader(texts["test"]) for name, reader in readers.items()}
report_f1 = {
    name: knowledge.scored(answer, labels["test"], patients["test"], n=resamples)
    for name, answer in answers.items()
}
f1_table = pd.DataFrame(
    {name: knowledge.f1(answer, labels["test"]) for name, answer in answers.items()},
    index=findings,
).map("{:.3f}".format)
f1_table.loc["macro-F1"] = list(map(str, report_f1.values()))
f1_table

# %% tags=["remove-input", "aggregate"]
best = max(report_f1, key=lambda name: report_f1[name].estimate)
remark = (
    "The rules know every phrase that a phantom's report can contain. " if phantom else ""
)
Markdown(
    f"`{best}` reads best: macro-F1 {report_f1[best]}. {remark}What matters here are the text encoders, which are compared "
    "below, and how each reader copes with reports that are written differently. Where all readers are near 1, this "
    "examination cannot show a difference between the text encoders."
)

# %% [markdown]
# ## The same report in another form
#
# A reader that has understood a report does not mind how it is written. We perturb each test report more and more,
# without changing what it says: by *formatting*, by *typing errors*, and by the *abbreviations* that radiologists use.
# Formatting means six changes: *case* (upper and lower case), *headers* (left out, with the sections that do not
# describe the image), *order* (of sentences), *template* (numbered lists and labels), *blanks* (in place of words that
# say nothing about the findings) and *lines* (broken at a margin). Order changes nothing in these reports, as no
# sentence refers to another. Negations are left alone. Headers, blanks and list labels (“2.”, “Finding 2:”) are removed
# before a report is read, because an encoder would take them for words. The readers here also ignore case and line
# breaks, and read each sentence alone. So a loss of 0 under headers, template, case, lines or order only shows that
# this works as intended. Blanks, typing errors and abbreviations test what a reader has learned. We call a reader
# robust if its macro-F1 falls by less than 3 points (hundredths). For phantoms only a part of the test reports is read,
# to save time.
#
# Here is the example from above in other forms.

# %% tags=["remove-input"]
single = [*knowledge.FORMATTING, "typos", "abbreviations"]
changes = {kind: [kind] for kind in single} | {"all formatting": knowledge.FORMATTING}
forms = {"original": []} | {
    name: changes[name] for name in ("all formatting", "typos", "abbreviations")
}
Markdown(
    say.words.bullets(
        f"**{name}**: {say.words.escaped(knowledge.change(texts['test'][example], kinds, 1.0))}"
        for name, kinds in forms.items()
    )
)

# %% [markdown]
# Every reader reads all forms in three strengths: the share of words, sentences or sections that is changed (for
# headers and lines: of reports).

# %%
subset = slice(settings.sampling.images // 2 if phantom else None)
curves = knowledge.robustness(
    readers,
    texts["test"][subset],
    labels["test"][subset],
    patients["test"][subset],
    changes,
    strengths=(0.0, 0.5, 1.0),
    n=min(resamples, 200),
    progress=partial(runs.progress, description="perturbed reports"),
)

# %% [markdown]
# Variants are coloured; the baselines that know nothing of diffusion are grey.

# %% tags=["aggregate"]
import plotly.express as px

styles = plots.variant_style(variants) | {
    "rules": plots.Style("#555555", "square-open", "dot"),
    "TF-IDF": plots.Style("#777777", "x", "dashdot"),
}
drawn = curves.assign(
    up=curves["high"] - curves["mean"],
    down=curves["mean"] - curves["low"],
    # Side by side, or the intervals would hide one another.
    x=curves["strength"] + 0.02 * pd.factorize(curves["reader"])[0] - 0.03,
    said=[f"strength {s:g}: {m:.3f}" for s, m in curves[["strength", "mean"]].to_numpy()],
)
robustness_chart = px.line(
    drawn, x="x", y="mean", error_y="up", error_y_minus="down", facet_col="change", facet_col_wrap=3, hover_name="said",
    facet_col_spacing=0.03, facet_row_spacing=0.09, height=860, labels={"x": "strength", "mean": "macro-F1"},
    title="Macro-F1 on reports that say the same in another form (95 % intervals)",
    **plots.express_options(styles, "reader"),
)  # fmt: skip
robustness_chart.for_each_annotation(
    lambda a: a.update(text=a.text.removeprefix("change="))
)
robustness_chart.update_traces(hovertemplate=plots.page.TOLD)
robustness_chart.update_layout(legend_title_text="", margin={"t": 90})

# %% [markdown]
# A flat line is a reader that does not mind. At strength 1 nearly every longer word has a typing error, more than in
# any real report.
#
# These points of macro-F1 are lost at full strength:

# %% tags=["aggregate"]
from chestxai.stats import Interval

strongest = curves[curves["strength"] == 1]
lost = strongest[["lost", "lost_low", "lost_high"]].itertuples(index=False)
losses = strongest.assign(points=[f"{Interval(*row):.1f}" for row in lost])
losses.pivot(index="change", columns="reader", values="points").loc[[*changes], [*readers]]

# %% tags=["remove-input", "aggregate"]
Markdown(say.knowledge.robust(strongest[strongest["change"] == "all formatting"]))

# %% [markdown]
# This is about formatting. Look at the rows of typing errors and abbreviations as well: they may cost far more.
#
# ## Asking the diffusion model about an image
#
# The model was never trained to classify. But it has learned to remove noise from an image *given a text*, and should
# do that best with the text that is true {cite}`li2023diffusion`. So each test image gets noise, and the model predicts
# it once for each finding's prompt and once for a normal one. The evidence for a finding is
#
# $$ e_f = \lVert \varepsilon - \varepsilon_\theta(x_t, t, \text{normal}) \rVert^2
# - \lVert \varepsilon - \varepsilon_\theta(x_t, t, f) \rVert^2 $$
#
# averaged over the values of the latent and two timesteps (the figure shows thousandths): how much smaller is the error
# if the prompt names the finding? Noise and image are the same in both terms, so most of the variation that they cause
# cancels.

# %% tags=["aggregate"]
size = models.image_size(pipelines[variants[0]])
candidates = profiles.sample(studies["test"], settings.sampling.images // 2)
_, labelled = knowledge.truth(candidates)
images, readable, _ = to_images([candidates[i] for i in labelled], size, settings.data.fit)
image_labels = knowledge.truth(readable)[0]
image_patients = [study.patient for study in readable]
prompts = [*knowledge.PROMPTS.values(), knowledge.NORMAL]
pd.Series(prompts, index=[*FINDINGS, "normal"], name="prompt").to_frame()

# %% [markdown]
# Each variant predicts the noise of each image under each of these prompts, at two timesteps.

# %%
noisiest = pipelines[variants[0]].scheduler.config.num_train_timesteps
timesteps = [noisiest * 3 // 20, noisiest * 2 // 5]
errors = {}
for variant in variants:
    progress = partial(runs.progress, description=f"denoising · {variant}")
    errors[variant] = knowledge.denoising_errors(
        pipelines[variant], images, prompts, timesteps, progress=progress
    )
evidence = {variant: knowledge.evidence(error) for variant, error in errors.items()}

# %% tags=["remove-input"]
shown = next((i for i, row in enumerate(image_labels) if row.sum() == 1), 0)
visible = ", ".join(
    name for name, there in zip(FINDINGS, image_labels[shown], strict=True) if there
)
bars = pd.DataFrame(
    {"prompt": name, "variant": variant, "evidence": 1000 * value}
    for variant in variants
    for name, value in zip(FINDINGS, evidence[variant][shown], strict=True)
)
px.bar(
    bars, x="evidence", y="prompt", color="variant", pattern_shape="variant", barmode="group", height=420,
    color_discrete_map={name: style.color for name, style in styles.items()}, template=plots.TEMPLATE,
    labels={"evidence": "evidence (thousandths of the noise's variance)", "prompt": ""},
    title=f"Evidence in one test image; it shows: {visible or 'none of them'}",
).update_yaxes(autorange="reversed").update_layout(legend_title_text="")  # fmt: skip

# %% [markdown]
# A bar to the right means that the model denoises the image better with this finding in the prompt than with *normal*.
#
# Some prompts help or hurt on every image, so bars of different prompts cannot be compared. What counts is whether, for
# *one* finding, images with it have more evidence than images without it. That is the AUC; 0.5 means that the model
# cannot tell. The baseline is the small classifier of chapter 6, which was trained to name findings in images.


# %%

from chestxai import fidelity

classifier = fidelity.profile_classifier(settings, data, out)
scores = {**evidence, "classifier": fidelity.predict(classifier, images)}

# %% [markdown]
# The AUC of each finding, and their mean, with intervals that resample patients:

# %%
from chestxai.stats import bootstrap_statistic

seen = knowledge.judgeable([image_labels], max(1, len(images) // 50))
at = knowledge.columns(seen)
groups = {name: [column] for name, column in zip(seen, at, strict=True)} | {"all": at}
image_auc = {
    name: {
        group: bootstrap_statistic(
            (score[:, members], image_labels[:, members]),
            knowledge.macro_auc,
            image_patients,
            n=resamples,
        )
        for group, members in groups.items()
    }
    for name, score in scores.items()
}

# %% tags=["aggregate"]
number = dict(zip(FINDINGS, image_labels.sum(axis=0), strict=True)) | {"all": len(images)}
auc_rows = [
    (g, name, i) for name, by_group in image_auc.items() for g, i in by_group.items()
]
auc_table = pd.DataFrame(
    {
        "finding": g,
        "variant": name,
        "mean": i.estimate,
        "low": i.low,
        "high": i.high,
        "n": number[g],
    }
    for g, name, i in auc_rows
).assign(chance=0.5)
title = "Findings recognised in the image (number of images with it; all: images)"
plots.scores_by_finding(auc_table, "AUC", title, variants=[*variants, "classifier"])

# %% tags=["remove-input", "aggregate"]
gaps = {
    v: knowledge.difference(
        scores["classifier"][:, at],
        evidence[v][:, at],
        image_labels[:, at],
        image_patients,
        knowledge.macro_auc,
        n=resamples,
    )
    for v in variants
}
unseen = ", ".join(name for name in FINDINGS if name not in seen)
Markdown(
    say.knowledge.images({v: image_auc[v]["all"] for v in variants}, gaps)
    + f"\n\nToo rare in these images: {unseen or 'none'}."
)

# %% [markdown]
# ## The answer: does it know more, and point worse?
#
# How well a variant points is judged by chapter 8's endpoint, at the last checkpoint: what the image adds (the gain),
# and whether the word decides (the word test).

# %%
endpoint = [
    m for m in settings.statistics.endpoint if tradeoff.table(every, n=100)[m].notna().any()
]
pointing = []
for metric in endpoint:
    score = tradeoff.by_finding(every, metric, n=resamples).query("finding == 'all'")
    score = score.rename(columns={"variant": "reader"})
    prior = pd.DataFrame({"reader": ["location prior"], "mean": [score["prior"].mean()]})
    score = pd.concat([score[["reader", "mean", "low", "high"]], prior.dropna()])
    pointing.append(score.assign(question=f"points: {localization.LABELS[metric]}"))
levels = [("knows, from the report: macro-F1", name, i) for name, i in report_f1.items()]
levels += [
    ("knows, from the image: macro AUC", n, by["all"]) for n, by in image_auc.items()
]
answer = pd.DataFrame(
    {"question": question, "reader": name, "mean": i.estimate, "low": i.low, "high": i.high}
    for question, name, i in levels
)
answer = pd.concat([answer, *pointing], ignore_index=True)

# %% tags=["remove-input", "aggregate"] name="fig-knows-and-points"
styles |= {
    "classifier": plots.Style("#555555", "triangle-up-open", "longdash"),
    "location prior": plots.REFERENCES["prior"][1],
}
answer_chart = px.scatter(
    answer.assign(up=answer["high"] - answer["mean"], down=answer["mean"] - answer["low"]),
    x="mean", y="reader", error_x="up", error_x_minus="down", facet_col="question", facet_col_spacing=0.05,
    height=320 + 56 * len(styles), labels={"mean": "", "reader": ""},
    title="What each variant knows, and how well it points (95 % intervals)", facet_col_wrap=2,
    **plots.express_options(styles, "reader", dash=False),
)  # fmt: skip
answer_chart.for_each_annotation(
    lambda a: a.update(text=a.text.removeprefix("question=").replace(": ", ":<br>"))
)
answer_chart.update_traces(marker_size=11).update_xaxes(matches=None)
answer_chart.update_layout(showlegend=False, margin={"t": 110})

# %% [markdown]
# Is the variant that knows most (the first two panels of {numref}`fig-knows-and-points`) the one that points best (the
# others)? Where no variant clearly knows more, this cannot be decided. The location prior can pass the word test
# without the image: it has a different map for each name. Paired differences, each variant minus the first,
# with 95 % intervals:

# %% tags=["answer", "remove-input", "aggregate"]
differ = partial(knowledge.difference, n=resamples)
auc = {
    "score": knowledge.macro_auc,
    "labels": image_labels[:, at],
    "groups": image_patients,
}
runs_of = {v: [folder for folder in every if folder.parent.name == v] for v in variants}
reference = variants[0]
more, pointed = {"from the report": {}, "from the image": {}}, {}
for v in variants[1:]:
    more["from the report"][v] = differ(
        answers[v], answers[reference], labels["test"], patients["test"]
    )
    more["from the image"][v] = differ(
        evidence[v][:, at], evidence[reference][:, at], **auc
    )
    pointed[v] = {
        m: tradeoff.compare(
            runs_of[v], runs_of[reference], m, n=settings.statistics.resamples
        )
        for m in endpoint
    }
Markdown(say.knowledge.answer(more, pointed, reference) or "There is only one variant.")

# %% [markdown]
# The examinations are of the first seed: their intervals cover other patients, not other seeds. All numbers are stored,
# so that several runs can be compared.

# %% tags=["aggregate"]
in_images = auc_table[auc_table["finding"] != "all"].rename(columns={"variant": "reader"})
in_images = in_images.assign(question="image: AUC of " + in_images["finding"])
in_forms = curves.assign(question="report in another form: macro-F1")
rows = pd.concat([answer, in_images, in_forms], ignore_index=True)[names]
runs.write_atomic(stored, rows.to_csv(index=False, float_format="%.6g"))
print(f"{len(rows)} rows in knowledge.csv")

# %% [markdown]
# ## Exercises
#
# **1.** At which timestep does the image reveal the finding?

# %% [markdown] tags=["solution"]
# With little noise, the finding is visible whatever the prompt says. With much noise, only what is large can be
# guessed. So we expect the highest AUC in between. Two timesteps cannot show this: add more to
# `timesteps`.

# %% tags=["solution", "aggregate"]
pd.DataFrame(
    {
        v: {
            t: knowledge.macro_auc(
                knowledge.evidence(error[..., [k]])[:, at], image_labels[:, at]
            )
            for k, t in enumerate(timesteps)
        }
        for v, error in errors.items()
    }
).rename_axis("timestep").round(3)

# %% [markdown]
# **2.** Do the readers understand *no*? Ask them about a finding that is stated, denied, or asked for, in a report that
# says little else.

# %% [markdown] tags=["solution"]
# TF-IDF adds up the weights of words and pairs of words, so the name of the finding may outweigh “no”. In the text
# encoder, the state of that name also depends on the other words of the sentence. A head can use this. It may still
# fail on “evaluate for”, if such sentences are rare in its training reports. The rules know this form.

# %% tags=["solution", "aggregate"]
name = "Pleural Effusion" if "Pleural Effusion" in findings else findings[0]
forms_of_no = ("Large {}.", "No {}.", "There is no evidence of {}.", "Evaluate for {}.")
statements = [form.format(name.lower()) for form in forms_of_no]
short_reports = [
    f"{statement} The osseous structures are intact." for statement in statements
]
k = findings.index(name)
pd.DataFrame(
    {n: reader(short_reports)[:, k] for n, reader in readers.items()}, index=statements
)

# %% [markdown]
# **3.** Does the order of the sentences matter to the attention, and should it?

# %% [markdown] tags=["solution"]
# A softmax over tokens has no order, and each sentence is read alone: the answer is the same up to rounding. That is
# robust, and blind: "The effusion is seen. It has resolved." needs the order.

# %% tags=["solution", "aggregate"]
reordered = [
    knowledge.change(text, "order", 1.0, i) for i, text in enumerate(texts["test"])
]
for variant in variants:
    change = abs(pooled(variant, texts["test"]) - pooled(variant, reordered)).max()
    print(f"{variant}: largest difference of a probability {change:.1e}")

# %% [markdown]
# ## Quiz
#
# Choose an answer to see what speaks for or against it.
#
# **A small head reads a finding off a text encoder's states. What does that show?**
#
# <details class="quiz right" name="question-1"><summary>that the states hold the finding</summary>Right. Whether the U-Net uses it is another question.</details>
# <details class="quiz" name="question-1"><summary>that the model points at it</summary>No. Knowing and pointing are measured apart.</details>
#
# **How can a diffusion model name a finding without being trained to?**
#
# <details class="quiz right" name="question-2"><summary>by how much its error falls when the prompt names the finding</summary>Right. Compare this between images: those with the finding should have more evidence.</details>
# <details class="quiz" name="question-2"><summary>by its largest attention</summary>No. Attention always sums to 1, whether the finding is there or not. Chapter 4 tests how far the peak of a map tells.</details>
#
# **A reader's score falls when a report is written in capitals. Why is that a fault?**
#
# <details class="quiz right" name="question-3"><summary>the report says the same</summary>Right. What a report says does not depend on its form.</details>
# <details class="quiz" name="question-3"><summary>capitals are not allowed in reports</summary>No. Many reports are written in capitals.</details>

# %% [markdown]
# ## Takeaways
#
# - Knowing and pointing are different things and are measured separately. A result for one says nothing about the other.
# - What a head can read is in the states; a head on an untrained encoder might read it, too. What this head cannot read
#   may still be there. Where all readers score near 1, a difference in knowledge cannot show.
# - A diffusion model can classify without being trained to: compare, between images, how much a finding's prompt lowers
#   its error.
# - A reader must be tested on reports that say the same in another form.
#
# **Further reading.** {cite:t}`li2023diffusion` classify images by denoising errors; {cite:t}`alain2016probes`
# introduce linear probes.

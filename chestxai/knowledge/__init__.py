"""What a model knows about the findings: read from its text encoder, and from its errors when it denoises an image.

`reader` reads a *report* by attention pooling over token states, by TF-IDF and by rules; `perturb` puts it into another
form; `zero_shot` classifies an *image* by the prompt under which the model predicts the noise best. `labels` holds the
reference labels, `scores` the metrics. Labels and probabilities are ``(n, k)`` over `FINDINGS` or the evaluable ones.
"""

# ruff: noqa: F401, I001
from chestxai.fidelity import macro_auc
from chestxai.knowledge.descriptions import passages, sentences
from chestxai.knowledge.labels import MESH, columns, judgeable, mesh_labels, mesh_sides, truth
from chestxai.knowledge.perturb import ABBREVIATIONS, CHANGES, FORMATTING, change, robustness
from chestxai.knowledge.reader import AttentionPool, Passage, Reading, attended, pool_probabilities, read
from chestxai.knowledge.reader import rule_scores, rules, train_pool, train_tfidf
from chestxai.knowledge.scores import difference, f1, macro_f1, scored, thresholds
from chestxai.knowledge.zero_shot import NORMAL, PROMPTS, denoising_errors, evidence

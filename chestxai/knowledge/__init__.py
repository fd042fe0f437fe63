"""What a model knows about the findings: read from its text encoder, and from its errors when it denoises an image.

- `reader`: a *report* is read by attention pooling over the token states of a frozen text encoder, by TF-IDF with
  logistic regression, and by the rules of `reports`.
- `perturb`: the same report in another form, to see how much of the reading depends on the form.
- `zero_shot`: an *image* is classified by the diffusion model, by the prompt that lets it predict the noise best.
- `labels` holds the reference labels, `scores` the metrics.

Labels and probabilities are ``(n, 8)`` over `FINDINGS`, or ``(n, k)`` over the ``k`` of them that can be evaluated.
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

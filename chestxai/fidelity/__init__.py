"""Drawing images from a model, and their scores against real ones in a feature space.

Images are uint8 ``(n, s, s)`` everywhere, 0 black to 255 white; features float ``(n, d)``; labels ``(n, 8)`` over
`FINDINGS`. The network of a feature space scales pixels itself and refuses floats, so they cannot be normalised twice.
Numbers from different feature spaces (see `spaces`) cannot be compared: store `describe` beside them. Inception
features say little about grey 64-pixel radiographs, so the default is a small classifier of the same data source.
"""

# ruff: noqa: F401, I001
from chestxai.fidelity.classifier import FindingsClassifier, Labelled, Training, cached_classifier, classifier_auc
from chestxai.fidelity.classifier import load_classifier, macro_auc, predict, profile_classifier, train_classifier
from chestxai.fidelity.evaluation import TooFewWarning, auc_difference, by_finding, denied_excess, evaluate, reference
from chestxai.fidelity.evaluation import scores, top1, transfer_auc
from chestxai.fidelity.memory import Memory, copies, memorisation
from chestxai.fidelity.metrics import Extrapolation, density_coverage, fid, fid_difference, fid_infinity, fid_interval
from chestxai.fidelity.metrics import kid, ms_ssim, ms_ssim_by_group, precision_recall
from chestxai.fidelity.sampling import asked, requests, sample, sample_run, stated
from chestxai.fidelity.spaces import Features, InceptionSpace, TwiceScaledSpace, XrvSpace, describe, extract
from chestxai.fidelity.spaces import feature_space, feature_spaces, features

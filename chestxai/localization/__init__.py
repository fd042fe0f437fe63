# ruff: noqa: F401, I001
"""Scores of a heatmap on a mask, each named by its convention, beside chance and location prior.

Each file imports only from those before it: names, maps, thresholds, scores, protocols, references, tables.
"""

from chestxai.localization.maps import resize
from chestxai.localization.names import COLUMNS, FAITHFULNESS, LABELS, LOWER_IS_BETTER, NAMES, SCORES
from chestxai.localization.protocols import PROTOCOLS, Protocol, score
from chestxai.localization.references import chance, field, location_prior, location_priors, text_priors
from chestxai.localization.scores import auc_roc, auc_roc_weighted, average_precision, bbox_iou, bbox_mask_iou
from chestxai.localization.scores import centre_distance, cnr, dice, energy, iou, miou, pointing_game
from chestxai.localization.tables import averages, book_scores, box_labels, kept, main, rescore, save_masks
from chestxai.localization.tables import score_truths
from chestxai.localization.thresholds import Threshold, foreground, gmm_threshold, oracle_threshold, otsu_threshold

"""Every score of the project: its column in tables, its label in print, and which direction is better."""

from __future__ import annotations

#: Column → label, in the order of tables: fidelity, the scores of the book, those of other protocols.
LABELS: dict[str, str] = {
    "fid": "FID",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "ms_ssim": "MS-SSIM within a prompt",
    "classifier_auc": "classifier AUC",
    "transfer_auc": "train on generated, test on real: AUC",
    "gain_auc_roc": "AUC-ROC gained by the image",
    "word": "own word, own place",
    "mirror": "true side",
    "mirror_sided": "true side, side in the prompt",
    "conflict": "image against a wrong side",
    "presence": "peak where the finding is",
    "gain_word": "own word, gained by the image",
    "auc_roc": "AUC-ROC",
    "auc_roc_shuffled": "shuffled AUC",
    "auc_roc_field": "AUC-ROC where findings can lie",
    "peer_auc_roc": "AUC-ROC of another patient's map",
    "pointing_game": "Top-1",
    "cnr": "CNR",
    "iou": "IoU",
    "dice": "Dice",
    "miou": "mIoU (fg+bg)/2",
    "bbox_iou": "box IoU",
    "centre_distance": "centre distance",
    "average_precision": "average precision",
    "pointing_game_15": "Top-1 within 15 pixels",
    "energy": "energy in the mask",
    "cnr_absolute": "absolute CNR",
    "cnr_signed": "signed CNR",
    "cnr_per_box": "CNR per box",
    "iou_otsu": "IoU (Otsu)",
    "iou_area": "IoU (hottest 10 %)",
    "iou_oracle": "IoU (oracle)",
    "miou_thresholds": "mIoU over thresholds",
    "bbox_miou": "box mIoU (fg+bg)/2",
    "centre_distance_pixels": "centre distance in pixels",
}
#: Columns of which a smaller value is better. Of all others a larger one is, except MS-SSIM, which has no better side.
LOWER_IS_BETTER = frozenset({"fid", "kid", "centre_distance", "centre_distance_pixels"})
#: Column → label with an arrow towards the better side.
NAMES = {c: label + ("" if c == "ms_ssim" else " ↓" if c in LOWER_IS_BETTER else " ↑") for c, label in LABELS.items()}
#: The scores of the book (`score`), in the order of a grounding table's columns.
SCORES = ("auc_roc", "pointing_game", "cnr", "iou", "dice", "miou", "bbox_iou", "centre_distance")
#: Tests of `chestxai.faithfulness`. The first two are the primary endpoint: what the image and what the word adds.
FAITHFULNESS = ("gain_auc_roc", "word", "mirror", "mirror_sided", "conflict", "presence", "gain_word")
#: Every column of ``grounding.csv`` of which the table of the trade-off takes means.
COLUMNS = (*FAITHFULNESS, *SCORES, "auc_roc_shuffled", "auc_roc_field", "average_precision", "peer_auc_roc")

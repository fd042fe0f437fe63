"""Every score of the project: its column, its label in print, and which direction is better."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Measure(NamedTuple):
    """A score's label in print, and its better direction (None where neither is)."""

    label: str
    better: Literal["higher", "lower"] | None = "higher"

    @property
    def title(self) -> str:
        """The label with an arrow towards the better direction: ``"FID ↓"``."""
        return self.label + {"higher": " ↑", "lower": " ↓", None: ""}[self.better]


#: Column → measure in the order of tables: fidelity, the scores of the book, those of other protocols.
MEASURES: dict[str, Measure] = {
    "fid": Measure("FID", "lower"),
    "kid": Measure("KID", "lower"),
    "precision": Measure("precision"),
    "recall": Measure("recall"),
    "density": Measure("density"),
    "coverage": Measure("coverage"),
    "ms_ssim": Measure("MS-SSIM within a prompt", None),
    "classifier_auc": Measure("classifier AUC"),
    "transfer_auc": Measure("train on generated, test on real: AUC"),
    "auc_roc": Measure("AUC-ROC"),
    "pointing_game": Measure("Top-1"),
    "cnr": Measure("CNR"),
    "iou": Measure("IoU"),
    "dice": Measure("Dice"),
    "miou": Measure("mIoU (fg+bg)/2"),
    "bbox_iou": Measure("box IoU"),
    "centre_distance": Measure("centre distance", "lower"),
    "average_precision": Measure("average precision"),
    "pointing_game_15": Measure("Top-1 within 15 pixels"),
    "energy": Measure("energy in the mask"),
    "cnr_absolute": Measure("absolute CNR"),
    "cnr_signed": Measure("signed CNR"),
    "cnr_per_box": Measure("CNR per box"),
    "iou_otsu": Measure("IoU (Otsu)"),
    "iou_area": Measure("IoU (hottest 10 %)"),
    "iou_oracle": Measure("IoU (oracle)"),
    "miou_thresholds": Measure("mIoU over thresholds"),
    "bbox_miou": Measure("box mIoU (fg+bg)/2"),
    "centre_distance_pixels": Measure("centre distance in pixels", "lower"),
}

#: Column → label with the arrow.
NAMES = {column: measure.title for column, measure in MEASURES.items()}
#: Columns of which a smaller value is better.
LOWER_IS_BETTER = frozenset(column for column, measure in MEASURES.items() if measure.better == "lower")
#: The scores of the book (`score`), in the order of a grounding table's columns.
SCORES = ("auc_roc", "pointing_game", "cnr", "iou", "dice", "miou", "bbox_iou", "centre_distance")

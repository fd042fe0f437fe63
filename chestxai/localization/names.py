"""Every score of the project: its column in tables, its label in print, and which direction is better."""

from chestxai import runs
from chestxai.profiles import DATA

#: Column → label, in the order of tables: fidelity, the scores of the book, those of other protocols.
LABELS: dict[str, str] = runs.read_yaml(DATA / "words" / "scores.yaml")
#: Columns of which a smaller value is better. Of all others a larger one is, except of `_NEITHER`.
LOWER_IS_BETTER = frozenset(
    {"centre_distance", "centre_distance_pixels", *(name for name in LABELS if name.startswith(("fid", "kid")))}
)
# A map that knows where findings usually are has less to lose.
_NEITHER = {"ms_ssim", "renamed", "denied", "removed", "moved"}
#: Column → label with an arrow towards the better side.
NAMES = {c: label + ("" if c in _NEITHER else " ↓" if c in LOWER_IS_BETTER else " ↑") for c, label in LABELS.items()}
#: The scores of the book (`score`), in the order of a grounding table's columns.
SCORES = ("auc_roc", "pointing_game", "cnr", "iou", "dice", "miou", "bbox_iou", "centre_distance")
#: Tests of `chestxai.faithfulness`. The first two are the primary endpoint: what the image and what the word adds.
FAITHFULNESS = (
    "gain_auc_roc", "word", "mirror", "mirror_sided", "conflict", "presence", "gain_word", "renamed", "denied",
    "removed", "moved",
)  # fmt: skip
#: Every column of ``grounding.csv`` of which the table of the trade-off takes means.
COLUMNS = (*FAITHFULNESS, *SCORES, "auc_roc_shuffled", "auc_roc_field", "average_precision", "peer_auc_roc")

"""Pictures for data sets made up by tests."""

from __future__ import annotations

import numpy as np


def ramp(height: int, width: int) -> np.ndarray:
    """Grey uint8 ``(height, width)``, from 60 at the upper left to 120 at the lower right: a picture, not a blank."""
    rows, columns = np.linspace(0, 30, height)[:, None], np.linspace(0, 30, width)
    return (60 + rows + columns).round().astype(np.uint8)

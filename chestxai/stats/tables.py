"""Tables of intervals as text for a page, a paper or a program."""

import re
from typing import Literal

import numpy as np
import pandas as pd

from chestxai.stats.intervals import Interval, format_interval

# What pdflatex lacks or prints as something else, outside of formulas.
_SYMBOLS = str.maketrans({"<": "$<$", ">": "$>$", "−": "$-$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"})


def format_table(frame: pd.DataFrame, to: Literal["markdown", "latex", "csv"] = "markdown") -> str:
    """Format a ``frame`` with `Interval` cells, numbers, text or missing values as text.

    The index is the first column, unless it only counts. ``to`` is ``"markdown"`` (a pipe table), ``"latex"``
    (booktabs; text between two ``$`` is left as it is), or ``"csv"`` at full precision, with the estimate in the column
    itself and the rest beside it: ``auc_low``, ``auc_high``, and ``auc_p``, ``auc_seeds`` where the interval has them.

    Example:
        >>> print(format_table(pd.DataFrame({"AUC": [Interval(0.842, 0.811, 0.869)]}, index=["frozen"])))
        |  | AUC |
        |---|---|
        | frozen | 0.842 [0.811, 0.869] |
    """
    if to not in ("markdown", "latex", "csv"):
        raise ValueError(f"a table is written to 'markdown', 'latex' or 'csv', not to {to!r}")
    if not isinstance(frame.index, pd.RangeIndex):
        unnamed = frame.index.nlevels == 1 and frame.index.name is None
        frame = (frame.rename_axis("") if unnamed else frame).reset_index()
    if to == "csv":
        return pd.concat([_numbers(column) for _, column in frame.items()], axis=1).to_csv(index=False)
    names = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name) for name in frame]
    cells = [[_text(value, to) for value in row] for row in frame.itertuples(index=False)]
    if to == "markdown":
        rows = [[text.replace("|", r"\|").replace("\n", " ") for text in row] for row in [names, *cells]]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(names), *lines[1:]])
    shown = pd.DataFrame(cells, columns=[_symbols(name) for name in names]).style.hide(axis="index")
    return shown.format(escape="latex-math").format_index(escape="latex-math", axis=1).to_latex(hrules=True)


def _numbers(column: pd.Series) -> pd.DataFrame:
    if not any(isinstance(cell, Interval) for cell in column):
        return column.to_frame()
    cells = pd.DataFrame([vars(cell) if isinstance(cell, Interval) else {"estimate": cell} for cell in column])
    cells = cells.filter(["estimate", "low", "high", "p", "seeds"])
    cells = cells.astype({"seeds": "Int64"} if "seeds" in cells else {})
    return cells.rename(columns=lambda field: column.name if field == "estimate" else f"{column.name}_{field}")


def _text(value: object, to: str) -> str:
    value = None if value is pd.NA else value
    text = format_interval(value) if isinstance(value, Interval | float | None) else str(value)
    if to != "latex":
        return text
    # In text a hyphen is no minus.
    return _symbols(text.replace("-", "−") if isinstance(value, Interval | int | float | np.number) else text)


def _symbols(text: str) -> str:
    parts = re.split(r"(\$[^$]+\$)", text)
    return "".join(part if part.startswith("$") else part.translate(_SYMBOLS) for part in parts)

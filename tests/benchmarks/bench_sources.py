"""How the time to load a table grows with its rows, on one core, and with the boxes of one image.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_sources.py [--short 2000] [--long 16000]

"ratio" is the time of the long table over that of the short one, divided by the ratio of their lengths: 1 is linear, 8
(with the default lengths) is quadratic, and above 2 is too slow. Time is that of the processor, of one load each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from chestxai import sources


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(path)


def one_image(root: Path, rows: int) -> None:
    """All boxes on one image, which is left out, and a second one."""
    lines = [f"a.png,Left effusion.,Pleural Effusion,{1 + i / 1e5},5,20,20,test" for i in range(rows)]
    many_images(root, 1, lines)


def many_images(root: Path, rows: int, more: list[str] | None = None) -> None:
    """Two boxes on each image; the files are one picture under many names."""
    for name in ("a.png", "0.png"):
        picture(root / name)
    for i in range(1, rows):
        (root / f"{i}.png").hardlink_to(root / "0.png")
    lines = [f"{i // 2}.png,Left effusion.,Pleural Effusion,{5 + i % 2},5,20,20,test" for i in range(2 * rows)]
    (root / "t.csv").write_text("\n".join(["image,text,finding,x,y,w,h,split", *lines, *(more or [])]))


def readers(root: Path, rows: int) -> None:
    """Boxes of three readers on images of VinDr-CXR in Kaggle's form."""
    lines = [f"{i // 60:032x},Cardiomegaly,3,R{i % 3},{i % 40},5,60,60" for i in range(rows)]
    for i in range(rows // 60 + 1):
        picture(root / "train" / f"{i:032x}.png")
    (root / "train.csv").write_text("\n".join(["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max", *lines]))


KINDS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "rows of one image": ("folder", one_image),
    "rows of many images": ("folder", many_images),
    "boxes of three readers": ("vindr", readers),
}


def seconds(source: str, make: Callable[[Path, int], None], rows: int) -> float:
    """Processor seconds of one load of a table of ``rows``."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(Path(folder), rows)
        began = time.process_time()
        for split in ("train", "test"):
            sources.load(source, folder, split) if source == "vindr" or split == "test" else None
        return time.process_time() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", type=int, default=2_000, help="rows of the short table (default: %(default)s)")
    parser.add_argument("--long", type=int, default=16_000, help="rows of the long table (default: %(default)s)")
    given = parser.parse_args()
    rows = []
    for name, (source, make) in KINDS.items():
        short, long = (seconds(source, make, n) for n in (given.short, given.long))
        rows.append((name, short, long, long / short / (given.long / given.short)))
    table = pd.DataFrame(rows, columns=["table", "short (s)", "long (s)", "ratio"]).set_index("table")
    print(table.round(3).to_string())
    return int((table["ratio"] > 2).any())


if __name__ == "__main__":
    raise SystemExit(main())

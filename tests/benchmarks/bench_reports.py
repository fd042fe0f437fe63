"""How the time to read a report grows with its length, on one core.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_reports.py [--short 20000] [--long 160000]

"ratio" is the time of the long text over that of the short one, divided by the ratio of their lengths: 1 is linear, 8
(with the default lengths) is quadratic, and above 2 is too slow. Time is that of the processor; the table shows the
best of three rounds.
"""

from __future__ import annotations

import argparse
import time

import pandas as pd

from chestxai import reports

#: Texts that are repeated to the wanted length: prose, a sentence without an end, lists, forms, blanks.
TEXTS = {
    "prose": "No effusion or pneumothorax. Small left effusion is seen, and the heart is enlarged. ",
    "one sentence": "no effusion, small edema with left opacity and right pneumothorax ",
    "one word": "effusion ",
    "negations": "effusion is not ",
    "list": "1. Effusion 2. No edema ",
    "form": "effusion: ",
    "headers": "FINDINGS: effusion\nIMPRESSION: edema\n",
    "punctuation": ", ; ",
    "placeholders": "[** ",
}


def seconds(text: str, rounds: int = 3) -> float:
    """Processor seconds of the fastest of a few rounds."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        reports.find(text)
        reports.clean(text)
        times.append(time.process_time() - began)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", type=int, default=20_000, help="characters of the short text (default: %(default)s)")
    parser.add_argument("--long", type=int, default=160_000, help="characters of the long text (default: %(default)s)")
    args = parser.parse_args()
    rows = []
    for name, unit in TEXTS.items():
        text = unit * (args.long // len(unit) + 1)
        short, long = seconds(text[: args.short]), seconds(text[: args.long])
        rows.append(
            {"text": name, "short (s)": short, "long (s)": long, "ratio": long / short * args.short / args.long}
        )
    table = pd.DataFrame(rows).set_index("text")
    print(table.to_string(float_format="{:.2f}".format))
    slow = table.index[table["ratio"] > 2].tolist()
    print(f"not linear: {', '.join(slow)}" if slow else "linear for every text")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())

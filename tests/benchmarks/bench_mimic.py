"""How long MIMIC-CXR-JPG takes to open, and how much memory, on one core, against 15 seconds and 1.5 GB.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_mimic.py [--images 377110] [--folder …]

The folder is made first, unless it exists: as many images, reports and patients as in the real data set, in its format,
every csv packed. Nothing in it comes from a person; image files are empty, because none is opened. Then each split is
loaded in a process of its own. The table shows its number of studies and findings, wall-clock and processor seconds
(the limit applies to the latter, which other load on the machine hardly disturbs) and peak memory, Python and torch
included.
"""

from __future__ import annotations

import argparse
import gzip
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chestxai import runs, sources
from chestxai.studies import FINDINGS

#: Seconds and gigabytes for the largest split, which is nearly all of it.
SECONDS, GIGABYTES = 15.0, 1.5
#: Images, examinations and patients of MIMIC-CXR-JPG 2.0.0 (Johnson et al. 2019).
IMAGES, STUDIES, PATIENTS = 377_110, 227_835, 65_379

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
OTHERS = (
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "No Finding",
    "Pleural Other",
    "Support Devices",
)
BOXES = "category_name,label_text,path,x,y,w,h,image_width,image_height,dicom_id,split"
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with {finding}

 FINDINGS:

 There is {finding}. The cardiomediastinal silhouette is within normal limits. No acute osseous abnormality.

 IMPRESSION:

 {finding}, examination {study}.
"""


def make(root: Path, images: int) -> None:
    """A folder in the official layout with ``images`` images, and reports and patients in proportion."""
    draw = random.Random(0)
    share = images / IMAGES
    patients = range(10_000_000, 20_000_000, round(10_000_000 / max(1, PATIENTS * share)))
    rows: dict[str, list[str]] = {"metadata": [METADATA], "split": ["dicom_id,study_id,subject_id,split"]}
    rows["chexpert"] = [",".join(["subject_id", "study_id", *FINDINGS, *OTHERS])]
    boxes = [BOXES]
    exams = max(1, round(STUDIES * share))
    for n in runs.progress(range(exams), "making examinations"):
        patient, study = patients[n % len(patients)], 50_000_000 + n
        split = "test" if n % 70 == 0 else "validate" if n % 130 == 1 else "train"
        folder = f"p{str(patient)[:2]}/p{patient}/s{study}"
        finding = draw.choice(FINDINGS).lower()
        report = root / "mimic-cxr-reports" / "files" / f"{folder}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(REPORT.format(finding=finding, study=study))
        (root / "files" / folder).mkdir(parents=True)
        labels = [draw.choice(("", "", "", "1.0", "0.0", "-1.0")) for _ in range(14)]
        rows["chexpert"].append(",".join([str(patient), str(study), *labels]))
        for k in range((n + 1) * images // exams - n * images // exams):
            name = "-".join(f"{draw.getrandbits(32):08x}" for _ in range(5))
            view = draw.choice(("AP", "PA", "AP", "PA", "LATERAL", "LL"))
            (root / "files" / folder / f"{name}.jpg").touch()
            rows["metadata"].append(
                f'{name},{patient},{study},"CHEST (PA AND LAT)",{view},3056,2544,21800506,213014.531,'
                '"CHEST (PA AND LAT)",antero-posterior,Erect'
            )
            rows["split"].append(f"{name},{study},{patient},{split}")
            if view in ("AP", "PA") and n % 200 == 0 and k == 0:
                label = draw.choice(FINDINGS)
                path = f"files/{folder}/{name}.jpg"
                boxes.append(f"{label},{label.lower()},{path},100,200,300,400,2544,3056,{name},test")
    for name, lines in rows.items():
        with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    (root / "ms-cxr").mkdir()
    # Written last, so that a folder that has it is complete.
    (root / "ms-cxr" / "MS_CXR_Local_Alignment_v1.1.0.csv").write_text("\n".join(boxes) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES, help="rows of the metadata (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where the data are, or are made to stay (default: a temporary folder)"
    )
    parser.add_argument("--split", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.split:
        began, busy = time.perf_counter(), time.process_time()
        loaded = sources.load("mimic", arguments.folder, arguments.split)
        seconds = f"{time.perf_counter() - began:.2f} {time.process_time() - busy:.2f}"
        print(len(loaded), sum(map(len, (s.findings for s in loaded))), seconds, f"{runs.peak_memory():.3f}")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        if not (root / "ms-cxr").is_dir():
            make(root, arguments.images)
        slow = []
        print("split  studies findings seconds processor GB")
        for split in ("train", "val", "test"):
            command = [sys.executable, __file__, "--folder", str(root), "--split", split]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            print(f"{split:6} {' '.join(answer)}", flush=True)
            if float(answer[3]) > SECONDS or float(answer[4]) > GIGABYTES:
                slow.append(split)
    print(f"too slow or too large: {', '.join(slow)}" if slow else "within 15 s and 1.5 GB")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())

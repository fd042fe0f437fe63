"""A study: the runs of a grid without notebooks, scored on one split, a row for each run and checkpoint.

A grid file with ``score: val`` or ``score: test`` is a study. Its table goes to ``data/results/<name>.csv`` beside
``<name>.json``, which says how it was made, by device. Runs are kept in ``runs/study-<name>``. A study is resumed:
rows of the same settings are kept, and ``code`` and ``device`` say what made them; delete a row to make its run again.
Tests on phantoms also keep each phrase's endpoint, in ``<name>.phrases.csv.gz``, for intervals over other patients.
"""

import gzip
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from chestxai import profiles, runs
from chestxai.batch.execute import MEMORY, exclusive
from chestxai.batch.graph import Cell, content
from chestxai.profiles import Profile
from chestxai.recipes import Recipe
from chestxai.runs import Run

#: What makes a row.
CODE = [f"chestxai.{name}" for name in ("finetune.loop", "faithfulness", "fidelity", "baselines", "sides", "tradeoff")]


@dataclass(frozen=True)
class Job:
    """One run of a study: a ``variant`` and ``seed`` of a ``profile``, scored on ``split``.

    ``changes`` are the grid's settings with their values; ``data`` is the folder that holds one sub-folder per source,
    ``out`` the root of the runs.
    """

    profile: Profile
    variant: str
    seed: int
    split: str
    changes: dict[str, Any]
    data: str
    out: Path

    @property
    def recipes(self) -> dict[str, Recipe]:
        """The recipe of the variant by its name, after that of the variant whose maps it learns from."""
        own = self.profile.recipe(self.variant)
        teacher = own.attention_from  # a variant, or a folder, or nothing
        taught = {teacher: self.profile.recipe(teacher)} if teacher in self.profile.variants else {}
        return taught | {self.variant: own}

    @property
    def identity(self) -> str:
        """Names the settings the rows depend on; the code that made them stands in a column of its own.

        A setting at its default does not count, so that a new one leaves the rows valid.
        """
        options = {"exclude": {"variants", "seeds", "name", "description"}, "exclude_defaults": True}
        about = [self.profile.model_dump(mode="json", **options)]
        used = [recipe.model_dump(mode="json", exclude_defaults=True) for recipe in self.recipes.values()]
        encoder = self.profile.text_encoder
        folders = profiles.base_folder(self.profile.base), encoder and Path(encoder)
        weights = [_weights(folder) for folder in folders if folder and folder.is_dir()]
        return runs.fingerprint(*about, *used, *weights, self.variant, self.seed, self.split)


def _weights(folder: Path) -> str:
    """Weights of another content are another model."""
    sums = folder / "SHA256SUMS"
    if sums.is_file():
        return runs.sha256(sums)
    return _content(folder, max(path.stat().st_mtime_ns for path in folder.rglob("*")))


@cache
def _content(folder: Path, changed: int) -> str:
    return content(folder, (".safetensors", ".json", ".txt"))


def jobs(cells: Sequence[Cell], split: str, data: str, out: Path) -> list[Job]:
    """The runs of a grid, seed by seed and variant by variant, so that a table which is not finished can be read.

    ``cells`` are those of `grid.load`, ``split`` is "val" or "test", ``data`` and ``out`` are those of a `Job`. A text
    encoder that does not learn has no rate: one run, under the first of the grid's rates, stands for all of them.
    """
    seeds = dict.fromkeys(seed for cell in cells for seed in cell.seeds)
    variants = dict.fromkeys(variant for cell in cells for variant in cell.variants)
    todo = [
        Job(cell.profile, variant, seed, split, cell.changes, data, out)
        for seed in seeds
        for variant in variants
        for cell in cells
        if seed in cell.seeds and variant in cell.variants
    ]
    return list({_without_idle_rate(job): job for job in reversed(todo)}.values())[::-1]


def _without_idle_rate(job: Job) -> tuple[str, ...]:
    idle = set() if any(recipe.text_learns for recipe in job.recipes.values()) else {"text_learning_rate"}
    about = {"name": True, "description": True, "variants": True, "seeds": True, "finetune": idle}
    used = [recipe.model_dump_json() for recipe in job.recipes.values()]
    return job.profile.model_dump_json(exclude=about), *used, job.variant, str(job.seed)


def run(todo: Sequence[Job], path: Path, workers: int = 2) -> pd.DataFrame:
    """Run what is missing of the jobs ``todo`` in the table at ``path``, which grows with every finished run.

    ``path`` with ``.json`` says how it was made. ``workers`` is the number of processes, each with one thread.

    Returns:
        The table: the grid's settings, ``variant, seed, step, identity, code, device, seconds``, and the columns of
        `tradeoff.table`.
    """
    wanted = {job.identity: i for i, job in enumerate(todo)}
    os.environ |= MEMORY | {"OMP_NUM_THREADS": "1"}
    with exclusive([todo[0].out]), ExitStack() as stack:
        table = read(path)
        missing = unfinished(todo, table)
        if len(table) and not table["identity"].isin(wanted).any():
            raise runs.InputError(f"{path} holds none of these runs: give the grid file another name, or move it away")
        print(f"{len(todo)} runs, {len(todo) - len(missing)} of them in {path}")
        about = {"data": profiles.check_data(todo[0].profile, todo[0].data)} if missing else {}
        beside = path.with_suffix(".json")
        made = runs.read_json(beside, dict) if missing and beside.is_file() else {}
        if made.get("data", about.get("data")) != about.get("data"):
            remedy = 'use those, or move both files away; if only our report reader has changed, remove "data" from'
            raise runs.InputError(f"{path} has rows of other data: {remedy} {beside}")
        pool = stack.enter_context(ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")))
        # A study that is stopped would run all that waits, and keep none of it.
        stack.callback(lambda: [child.terminate() for child in multiprocessing.active_children()])
        waiting = {pool.submit(rows_of, job): job for job in missing}
        for future in runs.progress(as_completed(waiting), "runs", len(waiting)):
            job = waiting[future]
            try:
                found = future.result()
            except BrokenExecutor as error:
                remedy = "run the same command again with --workers 1; finished runs are kept"
                raise OSError(f"a process of the study died, perhaps for lack of memory: {remedy}") from error
            except (runs.InputError, OSError) as error:  # the other runs are worth finishing
                print(f"{job.profile.name}, {job.variant}, seed {job.seed}: {error}", file=sys.stderr)
                continue
            # What is of patients stays with their data.
            if job.split == "test" and job.profile.data.source == "phantom":
                _keep_phrases(path.with_suffix(".phrases.csv.gz"), job)
            table = read(path)  # rows may have come from elsewhere meanwhile, as by git
            kept = table[table["identity"] != job.identity]
            added = {name: {j.identity: j.changes[name] for j in todo} for name in job.changes if name not in kept}
            kept = kept.assign(**{name: kept["identity"].map(values) for name, values in added.items()})
            table = pd.concat([found, kept], ignore_index=True) if len(kept) else found  # whole numbers stay whole
            table = table.sort_values(["identity", "step"], key=lambda c: c.map(wanted) if c.name == "identity" else c)
            runs.write_atomic(path, table.to_csv(index=False))
            runs.write_json(path.with_suffix(".json"), _provenance(path, todo) | about)
    return table


def unfinished(todo: Sequence[Job], table: pd.DataFrame) -> list[Job]:
    """Those of ``todo`` of which a checkpoint has no row in ``table``."""
    rows = table["identity"].value_counts()
    settings = [job.profile.finetune for job in todo]
    checkpoints = [-(-each.steps // each.checkpoint_every) for each in settings]
    return [job for job, n in zip(todo, checkpoints, strict=True) if rows.get(job.identity, 0) < n]


def read(path: Path) -> pd.DataFrame:
    """The table at ``path``, empty if there is none; of fingerprints, "12e4" is no number."""
    names = dict.fromkeys(("identity", "code"), str)
    return pd.read_csv(path, dtype=names) if path.is_file() else pd.DataFrame({"identity": []})


def _keep_phrases(path: Path, job: Job) -> None:
    table, old = profiles.run(job.profile, job.variant, job.seed, job.out).grounding(), read(path)
    names = ["study", "patient", "finding", *job.profile.statistics.endpoint]
    rows = table.loc[table["step"] == table["step"].max(), names].round(4).assign(identity=job.identity)
    both = pd.concat([old[old["identity"] != job.identity], rows]) if len(old) else rows
    runs.write_atomic(path, gzip.compress(both.to_csv(index=False).encode(), mtime=0))  # equal rows, equal bytes


def check(todo: Sequence[Job], path: Path, row: int, tolerance: float = 0.03) -> pd.DataFrame:
    """Make one row of a study's table again, from nothing, and compare.

    Args:
        todo: of `jobs`, whose ``out`` is an empty folder.
        path, row: the csv, and the number of the row, the first after the header is 0.
        tolerance: largest difference of a score in [0, 1] between versions of libraries: each rounds otherwise, and
            training amplifies that. FID and KID may differ by ten times that share. On a GPU, or on another device than
            the row's, rounding changes a run as another seed does, and a score may differ by the width of its interval.

    Returns:
        Columns ``stored, again, allowed`` (the largest difference) and ``agrees``, a row for each score with a value.

    Raises:
        InputError: the table has no such row, or the grid does not make it.
    """
    from chestxai.localization import COLUMNS, LOWER_IS_BETTER

    table = read(path)
    if not 0 <= row < len(table):
        raise runs.InputError(f"{path} has rows 0 to {len(table) - 1}, not {row}")
    stored = table.iloc[row]
    job = next((job for job in todo if job.identity == stored["identity"]), None)
    if job is None:
        raise runs.InputError(f"{path}, row {row}: the grid has no run with these settings")
    again = rows_of(job).set_index("step").loc[stored["step"]]
    names = [c for c in (*LOWER_IS_BETTER, *COLUMNS, "classifier_auc", "side") if pd.notna(stored.get(c))]
    both = pd.DataFrame({"stored": stored[names], "again": again[names]}).astype(float)
    allowed = np.where(both.index.str.startswith(("fid", "kid")), 10 * tolerance * both["stored"].abs(), tolerance)
    if runs.device() != "cpu" or again["device"] != stored["device"]:
        widths = [stored.get(f"{name}_high", np.nan) - stored.get(f"{name}_low", np.nan) for name in names]
        allowed = np.fmax(allowed, widths)
    return both.assign(allowed=allowed, agrees=(both["stored"] - both["again"]).abs() <= allowed)


def rows_of(job: Job) -> pd.DataFrame:
    """Train, ground, generate and score one run: its rows of the table."""
    from chestxai import faithfulness, fidelity, sides, tradeoff

    profile, run = job.profile, profiles.run(job.profile, job.variant, job.seed, job.out)
    fidelity.feature_spaces(profile.sampling)  # says what is missing before the training
    for variant in job.recipes:
        _train(job, variant)
    truths, training, pool = _phrases(profile, job.split, job.data)
    steps = faithfulness.score_run(profile, run, truths, training, pool, run.steps())
    table = pd.concat([step.table for step in steps], ignore_index=True)
    runs.write_atomic(run.grounding_file, table.to_csv(index=False))
    runs.write_json(run.fidelity_file, {"steps": _fidelity(job, run)})
    rows = tradeoff.table([run.folder], n=profile.statistics.resamples)
    by_finding = table.groupby(["step", "finding"])["gain_auc_roc"].mean().unstack()
    rows = rows.merge(by_finding.add_prefix("gain_auc_roc "), on="step")
    if profile.boxes != profile.data.source:  # X-rays have few boxes, and many reports that name a side
        studies = _studies(profile, job.split, job.data), _studies(profile, _other(job.split), job.data)
        rows = rows.merge(sides.scores_by_step(profile, run, *studies), on="step")
    seconds = run.train_log().set_index("step")["seconds"].reindex(rows["step"]).to_numpy()
    about = {"variant": job.variant, "seed": job.seed, "step": rows.pop("step"), "identity": job.identity}
    code = runs.code_fingerprint(*CODE)
    rows = rows.drop(columns=["variant", "seed", "seconds"])
    about |= {"code": code, "device": runs.record()["device"], "seconds": seconds.round(3)}
    settings = pd.DataFrame([job.changes] * len(rows), index=rows.index)  # as they are: a rate may be 5e-6, or a list
    return pd.concat([settings, pd.DataFrame(about, index=rows.index), rows.round(5)], axis=1)


def _train(job: Job, variant: str) -> None:
    from chestxai import finetune, models

    profile = job.profile
    options = {
        "recipe": profile.recipe(variant),
        "seed": job.seed,
        "fit": profile.data.fit,
        "cache": job.out / "latents",
    }
    options |= profiles.about(profile, variant, job.data)
    folder = profiles.run(profile, variant, job.seed, job.out).folder
    train = _studies(profile, "train", job.data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.turn")):  # two students of one teacher: the second waits for it
        finetune.finetune(models.load_base(profile), train, profile.finetune, folder, **options)


def _fidelity(job: Job, run: Run) -> dict[str, Any]:
    from chestxai import baselines, fidelity, finetune, models
    from chestxai.fidelity.arrays import to_json
    from chestxai.studies import to_images

    profile = job.profile
    real, kept, _ = to_images(_studies(profile, job.split, job.data), profile.data.size, profile.data.fit)
    pipeline, scores = models.load_base(profile), {}
    prompts, labels, _ = fidelity.requests(kept, profile.sampling, pipeline)
    read = models.readable(pipeline.tokenizer, prompts)
    classifier = fidelity.profile_classifier(profile, job.data, job.out)
    options = {"patients": [study.patient for study in kept], "spaces": fidelity.feature_spaces(profile.sampling)}
    exact = profile.boxes == profile.data.source == "phantom"  # others have no exact truth
    judge = baselines.ceiling(profile, _phrases(profile, job.split, job.data)[1], job.out) if exact else None
    for step in run.steps():
        finetune.load_checkpoint(pipeline, run, step)
        images = fidelity.sample(pipeline, prompts, profile.sampling, run.samples_file(step))
        scores[str(step)] = fidelity.evaluate(real, images, labels, prompts, classifier, **options)
        denied = fidelity.denied_excess(fidelity.predict(classifier, images), read)
        ends = {"": denied.estimate, "_low": denied.low, "_high": denied.high}
        scores[str(step)] |= {f"denied_excess{end}": value for end, value in to_json(ends).items()}
        shown = baselines.as_asked(images, prompts, judge)[[*baselines.ATTRIBUTES]].mean().dropna() if judge else {}
        scores[str(step)] |= {f"asked_{name}": float(share) for name, share in shown.items()}
    return scores


@lru_cache(maxsize=1)
def _loaded(source: str, data: str) -> dict[tuple[str, bool], Any]:
    """Studies by split, shared by the runs of one process."""
    return {}


def _studies(profile: Profile, split: str, data: str, boxes: bool = False) -> Any:
    kept = _loaded(profile.data.model_dump_json(), data)
    if (split, boxes) not in kept:
        kept[split, boxes] = profiles.studies(profile, split, data, boxes=boxes)
    return kept[split, boxes]


def _other(split: str) -> str:
    return "val" if split == "test" else "test"


def _phrases(profile: Profile, split: str, data: str) -> tuple[list, list, list]:
    """Phrases to score, those of the priors, and studies to swap in: never of the split that is scored."""
    from chestxai.studies import phrases

    pool = list(_studies(profile, _other(split), data, boxes=True))
    train = phrases(_studies(profile, "train", data, boxes=True))
    return phrases(_studies(profile, split, data, boxes=True)), train or phrases(pool), pool


def _provenance(path: Path, todo: Sequence[Job]) -> dict[str, Any]:
    record, file = runs.record(), path.with_suffix(".json")
    last = {name: record[name] for name in ("versions", "python", "commit", "environment")}
    made = runs.read_json(file, dict)["made"] if file.is_file() else {}
    made |= {record["device"]: {"date": date.today().isoformat(), **last}}  # the last on this device
    profile = todo[0].profile.model_dump(mode="json", exclude={"name", "description"})
    command = f"make grid GRID=data/grids/{path.stem}.yaml" + " DATA=/path/to/folder" * bool(todo[0].data)
    about = {"study": path.stem, "command": command, "split": todo[0].split, "runs": len(todo), "made": made}
    return about | {"profile": profile}

"""``python -m chestxai.batch``: its options, and what it prints."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chestxai import profiles, runs
from chestxai.batch import grid, study
from chestxai.batch.execute import run, some, summary
from chestxai.batch.graph import Cell, Node, plan
from chestxai.batch.replay import replay
from chestxai.profiles import Profile
from chestxai.runs import InputError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select a batch: profile, variants, seeds, data and root of the runs."""
    data = "folder with one sub-folder per source (openi/, nih/)"
    parser.add_argument("--profile", help="a name in data/profiles or a .yaml file (default: demo)")
    parser.add_argument("--variants", help="comma-separated names of variants (default: the profile's)")
    parser.add_argument("--seeds", help="comma-separated seeds (default: the profile's)")
    parser.add_argument("--data", default="", type=lambda text: text and str(Path(text).resolve()), help=data)
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), help="root of the runs (default: runs/)")


def planned(options: argparse.Namespace) -> tuple[Profile, list[Node]]:
    """Profile and graph selected by the options of `add_options`.

    InputError for an unknown profile or variant, or a seed that is not a number; see `plan`.
    """
    name = options.profile or "demo"
    profile = profiles.load(name)
    variants = [name.strip() for name in options.variants.split(",")] if options.variants else list(profile.variants)
    try:
        seeds = list(map(runs.whole(0, 2**32 - 1), options.seeds.split(","))) if options.seeds else list(profile.seeds)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--seeds takes comma-separated whole numbers, as in 0,1,2: got {options.seeds!r}") from error
    path = str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else ""
    return profile, plan([Cell(profile, variants, seeds, path)], data=options.data, out=options.out)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that cannot be meant."""
    if options.workers is not None and not 1 <= options.workers <= 1024:
        raise InputError(f"--workers must be at least 1 and at most 1024, got {options.workers}")
    if options.out and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; give a folder, which is made if it is missing")
    if options.check is not None and not (options.grid and grid.read(options.grid).score):
        raise InputError("--check is of a study: give --grid with a file that has score: val or score: test")


def _study(cells: Sequence[Cell], options: argparse.Namespace) -> int:
    """Run a study, or check a row of it."""
    split, path = grid.read(options.grid).score, profiles.DATA / "results" / f"{options.grid.stem}.csv"
    if options.check is not None and not options.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            found = study.check(study.jobs(cells, split, options.data, Path(folder)), path, options.check)
        print(found.to_string(float_format="{:.4f}".format))
        return 0 if found["agrees"].all() else 1
    out = (options.out or profiles.RUNS) / f"study-{options.grid.stem}"
    todo = study.jobs(cells, split, options.data, out)
    if options.dry_run:
        missing = study.unfinished(todo, study.read(path))
        for job in todo:
            words = ", ".join([job.variant, f"seed {job.seed}", *(f"{k} {v}" for k, v in job.changes.items())])
            print(f"{'to run' if job in missing else 'unchanged':10s} {words}")
        return 0
    missing = study.unfinished(todo, study.run(todo, path, options.workers or 2))
    print(f"{len(todo) - len(missing)} of {len(todo)} runs in {path}")
    return 1 if missing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.batch``; 0 if every notebook is finished, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.batch",
        description="Run the notebooks of the book with papermill; what is finished and unchanged is skipped.",
    )
    add_options(parser)
    repeat = "execute the notebook beside a run's run.json again, and compare the results"
    parser.add_argument("--grid", type=Path, help="a YAML file of settings to go through, see data/grids")
    parser.add_argument("--check", type=int, metavar="ROW", help="make this row of a study's table again and compare")
    parser.add_argument("--replay", type=Path, metavar="RUN_JSON", help=repeat)
    parser.add_argument("--workers", type=int, help="processes on this machine")
    parser.add_argument("--scheduler", help="address of a running dask scheduler, tcp://…")
    parser.add_argument("--dry-run", action="store_true", help="print the graph and what would run, and stop")
    options = parser.parse_args(arguments)
    _check(options)
    if options.replay:
        return replay(options.replay, options.out, options.data)
    cells: list[Cell] = []
    if options.grid:
        if options.profile or options.variants or options.seeds:
            raise InputError(f"{options.grid} names profile, variants and seeds: omit --profile, --variants, --seeds")
        cells = grid.load(options.grid, options.out)
        if grid.read(options.grid).score:
            if options.scheduler:
                raise InputError(f"{options.grid} is a study, whose processes are of this machine: omit --scheduler")
            return _study(cells, options)
        nodes = plan(cells, data=options.data, out=options.out)
        title = f"Grid {options.grid.stem}: {len(cells)} settings."
    else:
        profile, nodes = planned(options)
        title = f"Profile {profile.name}: {profile.description}."
    if options.dry_run:
        for node in nodes:
            after = f"  after {some(node.needs)}" if node.needs else ""
            print(f"{'unchanged' if node.finished() else 'to run':10s} {node.name}{after}")
        return 0
    print(title)
    for cell in cells:
        cell.write()
    outcomes = run(nodes, workers=options.workers, scheduler=options.scheduler)
    print(summary(outcomes))
    if cells:
        done = {outcome.node.root for outcome in outcomes if outcome.ok and "tradeoff.csv" in outcome.node.makes}
        path = (options.out or profiles.RUNS) / f"{options.grid.stem}.csv"
        print(f"\n{grid.table(cells, done, path, options.out)}")
        print(f"\nAll scores of all checkpoints: {path}" if done else "")
    for outcome in outcomes:
        if outcome.status == "failed":
            print(outcome, file=sys.stderr)
    return 0 if all(outcome.ok for outcome in outcomes) else 1

"""The graph of the book: which notebook runs for which variant and seed, and what its result depends on.

A node is one execution of one notebook. Its identity names everything its result depends on: the notebook, its
parameters, the settings, the code it reaches, the data and weights it reads, and the nodes it needs. A node whose
record holds the same identity is finished and need not run again.
"""

from __future__ import annotations

import ast
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from chestxai import profiles, runs
from chestxai.profiles import ROOT, Profile
from chestxai.runs import InputError, MissingError

NOTEBOOKS = ROOT / "notebooks"
#: What a chapter may read of a data set: splits of the training source, and of the source whose boxes are grounded.
IMAGES = ("train", "val", "test")
BOXES = ("boxes train", "boxes val", "boxes test")
#: Shipped files that no setting names, by the part of the package that reads them.
SHIPPED = {
    "fidelity": profiles.DATA / "classifier",
    "sources": profiles.DATA / "cards",
    "localization": profiles.DATA / "words",
}


@dataclass(frozen=True)
class Chapter:
    """A notebook and its place in the graph.

    Nodes that agree in the settings of their ``work`` share the files they ``keep``, so a grid does that work once.
    """

    name: str  #: file name of the notebook without its ending
    needs: tuple[str, ...] = ()  #: chapters whose results it reads
    makes: tuple[str, ...] = ()  #: files it writes into its run's folder (or the profile's), needed by the others
    each_run: bool = False  #: executed for every variant and seed rather than once
    gpu: bool = False  #: runs a model, so it should have a GPU where there is one
    reads: tuple[str, ...] = IMAGES + BOXES  #: splits it reads
    work: tuple[str, ...] = ()  #: settings that determine its long computations
    keeps: tuple[str, ...] = ()  #: files and folders these leave; the last one is written when all are complete
    weight: float = 20.0  #: approximate seconds in the demo, for priorities and the estimate of the time left


#: The notebooks of the book, in an order in which they can run.
CHAPTERS = tuple(
    Chapter(name, **{key: tuple(value) if isinstance(value, list) else value for key, value in about.items()})
    for name, about in runs.read_yaml(Path(__file__).with_suffix(".yaml")).items()
)


@dataclass(frozen=True)
class Node:
    """One execution of one notebook."""

    name: str  #: unique label, shown in tables
    notebook: Path  #: what is executed
    folder: Path  #: where the executed notebook and its results go
    parameters: dict[str, Any] = field(hash=False)  #: what papermill injects
    root: Path = Path()  #: the profile's folder, which one batch at a time has to itself
    needs: tuple[str, ...] = ()  #: names of the nodes whose results it reads
    makes: tuple[str, ...] = ()  #: files it writes into ``folder``
    gpu: bool = False  #: should have a GPU where there is one
    twin: Node | None = None  #: an earlier node of other settings that does the same long computations
    keeps: tuple[str, ...] = ()  #: what it takes over from its twin
    weight: float = 20.0  #: approximate duration
    identity: str = ""  #: names everything its result depends on

    @property
    def executed(self) -> Path:
        """Path of the executed notebook."""
        return self.folder / self.notebook.name

    def beside(self, ending: str) -> Path:
        """A file beside the executed notebook, with another ``ending``."""
        return self.executed.with_suffix(ending)

    record = property(lambda self: self.beside(".json"))  #: marks the node as finished; written last
    failed = property(lambda self: self.beside(".failed.ipynb"))  #: a failed execution, with its traceback
    status = property(lambda self: self.folder / f".{self.notebook.stem}.status")  #: see `runs.progress`

    def finished(self) -> bool:
        """Whether this very node has run and its results are still there."""
        try:
            record = runs.read_json(self.record, dict)
        except (OSError, InputError):  # no record, or a damaged one: run again
            return False
        files = [self.executed, *(self.folder / name for name in self.makes)]
        return record.get("identity") == self.identity and all(path.is_file() for path in files)


@dataclass(frozen=True)
class Cell:
    """A profile, with the variants and seeds it is run for: one combination of settings of a grid."""

    profile: Profile
    variants: Sequence[str]  #: names of variants of the profile
    seeds: Sequence[int]  #: seeds of the fine-tunings
    path: str = ""  #: what the notebooks load as their profile; default: the profile's name
    changes: dict[str, Any] = field(default_factory=dict, hash=False)  #: the grid's settings with this cell's values
    generated: bool = False  #: whether the profile is made here rather than by the user

    def __post_init__(self) -> None:
        for name in self.variants:
            self.profile.recipe(name)
        for what, values in (("variants", list(self.variants)), ("seeds", list(self.seeds))):
            repeated = [value for value, count in Counter(values).items() if count > 1]
            if repeated or not values:
                problem = f"{repeated[0]} is there twice" if repeated else "there must be at least one"
                raise InputError(f"{what}: {problem}")

    def write(self) -> None:
        """Write a generated profile to where the notebooks load it."""
        if self.generated:
            content = self.profile.model_dump(mode="json")
            runs.write_atomic(Path(self.path), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def plan(
    cells: Sequence[Cell],
    *,
    data: str = "",
    out: Path | None = None,
    chapters: Sequence[Chapter] = CHAPTERS,
    notebooks: Path = NOTEBOOKS,
) -> list[Node]:
    """One graph of one or more profiles, in an order in which its nodes can run.

    Long computations that two profiles, the ``cells``, have in common are done once. ``data`` is the folder with one
    sub-folder per source (phantoms need none), ``out`` the root of the runs, default: ``runs/``; ``chapters`` are the
    notebooks with what they need, ``notebooks`` is their folder. InputError for an unknown or repeated variant or seed;
    a notebook that is missing or cannot be parsed; a need that is not among the chapters before; data that are missing
    or unusable, see `profiles.check_data`.
    """
    sources = [read_source(notebooks / f"{chapter.name}.ipynb") for chapter in chapters]
    contents, studies, twins = functools.cache(content), {}, {}
    nodes: dict[str, Node] = {}
    results: dict[str, str] = {}  # identities without the text around the code, on which no other node depends
    for cell in cells:
        prefix = f"{cell.profile.name} · " if len(cells) > 1 else ""
        places = {"profile": cell.path or cell.profile.name, "data": data, "out": str(out or "")}
        # Variants and seeds are parameters: one more of them changes nothing for the others.
        settings = cell.profile.model_dump(exclude={"description", "variants", "seeds"})
        splits = profiles.check_data(cell.profile, data, studies)
        if {*cell.profile.sampling.spaces} - {"findings"}:
            from chestxai import fidelity  # here, as importing torch takes seconds

            fidelity.feature_spaces(cell.profile.sampling)  # says what is missing before the training
        root = profiles.profile_folder(cell.profile, out)
        executions: dict[str, list[str]] = {}
        for chapter, source in zip(chapters, sources, strict=True):
            inputs = {split: splits[split] for split in chapter.reads if split in splits}
            shared = runs.fingerprint(source.code, settings, inputs, _weights(cell.profile, source.parts, contents))
            work = runs.fingerprint(chapter.name, [settings[key] for key in chapter.work])
            executions[chapter.name] = []
            for suffix, folder, own, recipe in _executions(chapter, cell, root):
                name = f"{prefix}{chapter.name}{suffix}"
                needs: list[str] = []
                for need in chapter.needs:
                    if need not in executions:
                        raise InputError(f"chapter {chapter.name} needs {need}, which is not among the chapters before")
                    same = f"{prefix}{need}{suffix}"
                    needs += [same] if same in nodes else executions[need]
                # Another cell distils another run.
                teacher = recipe["attention_from"] if recipe else ""
                distils = teacher in cell.variants
                if "run.json" in chapter.makes and distils:
                    needs.append(f"{prefix}{chapter.name} · {teacher} · seed {own['seed']}")
                    if needs[-1] not in nodes:
                        raise InputError(f"{name}: list the variant {teacher!r}, which it distils, first")
                results[name] = runs.fingerprint(shared, own, recipe, [results[need] for need in needs])
                same_work = runs.fingerprint(work, own, recipe, prefix if distils else "")
                nodes[name] = Node(
                    name, notebooks / f"{chapter.name}.ipynb", folder, {**places, **own}, root, tuple(needs),
                    chapter.makes, chapter.gpu, twins.get(same_work), chapter.keeps, chapter.weight,
                    identity=runs.fingerprint(results[name], source.page),
                )  # fmt: skip
                if chapter.work:
                    twins.setdefault(same_work, nodes[name])
                executions[chapter.name].append(name)
    return list(nodes.values())


def _executions(chapter: Chapter, cell: Cell, root: Path) -> Iterator[tuple[str, Path, dict[str, Any], Any]]:
    """For each execution: end of its name, folder, parameters, recipe."""
    if not chapter.each_run:
        yield "", root, {"variants": list(cell.variants), "seeds": list(cell.seeds)}, None
        return
    for seed, variant in itertools.product(cell.seeds, cell.variants):
        folder = profiles.run(cell.profile, variant, seed, root.parent).folder
        recipe = cell.profile.recipe(variant).model_dump()
        yield f" · {variant} · seed {seed}", folder, {"variant": variant, "seed": seed}, recipe


def _weights(profile: Profile, parts: frozenset[str], content: Callable[..., str]) -> list[str]:
    """Fingerprints of the base model and the shipped files that ``parts`` of the package load."""
    files = [content(folder) for name, folder in SHIPPED.items() if name in parts]
    if "models" in parts:
        folder = profiles.base_folder(profile.base)
        encoder = Path(profile.text_encoder) if profile.text_encoder else None
        # A model on the hub is identified by its name.
        for name, own in ((profile.base, folder), (profile.text_encoder, encoder)):
            if name:
                files.append(content(own, (".safetensors", ".json", ".txt")) if own and own.is_dir() else name)
    return files


def content(folder: Path, endings: tuple[str, ...] = ("",)) -> str:
    """Fingerprint of the files below ``folder`` whose names have one of the ``endings``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(endings))
    return runs.fingerprint([(path.relative_to(folder).as_posix(), runs.sha256(path)) for path in files])


class Source(NamedTuple):
    """A notebook as it is written."""

    code: str  #: fingerprint of its code cells and of the package code they reach
    page: str  #: fingerprint of all its cells
    parts: frozenset[str]  #: modules and packages of ``chestxai`` that it reaches, such as "fidelity"


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook as JSON, the source of each cell as one text; importing nbformat would take a second.

    InputError where the file is damaged or not a notebook.
    """
    notebook = runs.read_json(path, dict)
    try:
        for cell in notebook["cells"]:
            cell |= {"cell_type": cell["cell_type"], "source": "".join(cell["source"])}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or not a notebook; remake it with 'make notebooks'") from error
    return notebook


def read_source(path: Path) -> Source:
    """The identity of the notebook at ``path`` and of the code it reaches.

    MissingError if there is none; InputError if it is damaged, or, with cell and line, if a cell is not valid Python.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing: make it with 'make notebooks' (jupytext --sync)")
    cells = [(cell["cell_type"], cell["source"]) for cell in read_notebook(path)["cells"]]
    texts = {number: source for number, (kind, source) in enumerate(cells, start=1) if kind == "code"}
    code = []
    for number, source in texts.items():
        try:
            code.append(_python(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # null bytes, nested too deep
            what = f": no Python ({error})"
            if isinstance(error, SyntaxError):
                what = f", line {error.lineno or 1}: {error.msg}: {str(error.text or '').strip()[:80]!r}"
            raise InputError(f"{path}, cell {number}{what}; correct it and run again") from error
    files, tables = runs.reached("\n".join(code)), _shipped("\n".join(code))
    parts = frozenset(file.relative_to(runs.code.PACKAGE).with_suffix("").parts[0] for file in files)
    known = runs.fingerprint(list(texts.values()), runs.files_fingerprint(files), *tables)
    return Source(known, runs.fingerprint(cells), parts)


def _shipped(code: str) -> list[str]:
    """Checksums of the tables of data/ that ``code`` names, or whose folder: a chapter may change with each new row."""
    if "profiles.DATA" not in code:
        return []
    places = (profiles.DATA.glob(pattern) for pattern in ("*.csv", "results/*.csv", "words/*.yaml"))
    named = (p for p in sorted(itertools.chain(*places)) if p.stem in code or f'"{p.parent.name}"' in code)
    return [*map(runs.sha256, named)]


def _python(source: str) -> str:
    """A cell as plain Python: magics and shell commands (``%time``, ``!ls``, ``print?``) as IPython calls them."""
    with suppress(SyntaxError):
        ast.parse(source)
        return source
    if source.lstrip().startswith("%%"):
        # The body of some cell magics is Python (%%time), of others not (%%bash).
        with suppress(SyntaxError):
            return _python(source.lstrip().partition("\n")[2])
        return ""
    from IPython.core.inputtransformer2 import TransformerManager  # here, as few notebooks need it

    code = TransformerManager().transform_cell(source)
    ast.parse(code)
    return code

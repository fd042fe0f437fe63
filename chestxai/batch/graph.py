"""The graph of the book: which notebook runs for which variant and seed, and what its result depends on.

A node is one execution of one notebook. Its identity names everything its result depends on: the notebook, its
parameters, the settings, the code it reaches, the data and weights it reads, and the nodes it needs. A node whose record
holds the same identity is finished and need not run again.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from chestxai import profiles, runs
from chestxai.profiles import ROOT, Profile
from chestxai.runs import InputError, MissingError

NOTEBOOKS = ROOT / "notebooks"
PACKAGE = Path(__file__).resolve().parents[1]
#: What a chapter may read of a data set: splits of the training source, and of the source whose boxes are grounded.
IMAGES = ("train", "val", "test")
BOXES = ("boxes train", "boxes val", "boxes test")
#: Shipped files that no setting names, by the part of the package that reads them.
SHIPPED = {"fidelity": profiles.DATA / "classifier"}


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
CHAPTERS = (
    Chapter("01_reports_and_images", weight=40),
    Chapter(
        "02_finetuning",
        makes=("run.json", "train.csv"),
        each_run=True,
        gpu=True,
        reads=("train",),
        work=("base", "data", "finetune"),
        keeps=("checkpoints", "model", "train.csv", "identity.txt", "run.json"),
        weight=260,
    ),
    Chapter(
        "03_attention",
        needs=("02_finetuning",),
        makes=("grounding.csv",),
        each_run=True,
        gpu=True,
        reads=BOXES,
        work=("base", "data", "finetune", "grounding"),
        keeps=("maps",),
        weight=90,
    ),
    Chapter("04_localization", needs=("03_attention",), reads=BOXES, weight=25),
    Chapter(
        "05_fidelity",
        needs=("02_finetuning",),
        makes=("fidelity.json",),
        each_run=True,
        gpu=True,
        reads=IMAGES,
        work=("base", "data", "finetune", "sampling"),
        keeps=("samples",),
        weight=150,
    ),
    Chapter("06_tradeoff", needs=("03_attention", "05_fidelity"), makes=("tradeoff.csv",), reads=()),
    Chapter(
        "07_knowledge",
        needs=("03_attention", "05_fidelity"),
        makes=("knowledge.csv",),
        gpu=True,
        reads=IMAGES,
        weight=60,
    ),
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

    @property
    def record(self) -> Path:
        """The JSON file that marks the node as finished; written last."""
        return self.executed.with_suffix(".json")

    @property
    def failed(self) -> Path:
        """Path of a failed execution, with its traceback."""
        return self.executed.with_suffix(".failed.ipynb")

    def finished(self) -> bool:
        """Whether this very node has run and its results are still there."""
        try:
            record = runs.read_json(self.record, dict)
        except (OSError, InputError):  # no record, or a damaged one: run again
            return False
        files = [self.executed, *(self.folder / name for name in self.makes)]
        return record.get("identity") == self.identity and all(path.is_file() for path in files)


def plan(
    profile: Profile,
    variants: Sequence[str],
    seeds: Sequence[int],
    *,
    profile_path: str = "",
    data: str = "",
    out: Path | None = None,
    chapters: Sequence[Chapter] = CHAPTERS,
    notebooks: Path = NOTEBOOKS,
) -> list[Node]:
    """The nodes of a profile, in an order in which they can run.

    Args:
        profile: the settings.
        variants: names of the profile's variants to run.
        seeds: seeds of the fine-tunings.
        profile_path: what the notebooks load as their profile; default: the profile's name.
        data: folder with one sub-folder per source.
        out: root of the runs; default: ``runs/``.
        chapters: the notebooks and what they need.
        notebooks: folder of the notebooks.

    Raises:
        InputError: an unknown or repeated variant or seed; a notebook that is missing or cannot be parsed; a need that
            is not among the chapters before; data that are missing or unusable, see `profiles.check_data`.
    """
    return Planner(data, out, chapters, notebooks).plan(profile, variants, seeds, profile_path)


@dataclass
class Planner:
    """Plans profiles into one graph; what they have in common is read once and computed once. Fields: see `plan`."""

    data: str = ""
    out: Path | None = None
    chapters: Sequence[Chapter] = CHAPTERS
    notebooks: Path = NOTEBOOKS

    def __post_init__(self) -> None:
        self._source, self._content = functools.cache(read_notebook), functools.cache(_content)
        self._studies: dict[Any, Any] = {}
        self._twins: dict[str, Node] = {}

    def plan(
        self, profile: Profile, variants: Sequence[str], seeds: Sequence[int], profile_path: str = "", prefix: str = ""
    ) -> list[Node]:
        """The nodes of one profile.

        Args:
            profile, variants, seeds, profile_path: see `plan`.
            prefix: start of the nodes' names, where a graph holds several profiles.

        Raises:
            InputError: see `plan`.
        """
        _check(profile, variants, seeds)
        places = {"profile": profile_path or profile.name, "data": self.data, "out": str(self.out or "")}
        # Variants and seeds are parameters: one more of them changes nothing for the others.
        settings = profile.model_dump(exclude={"description", "variants", "seeds"})
        splits = profiles.check_data(profile, self.data, self._studies)
        root = profiles.profile_folder(profile, self.out)
        nodes: dict[str, Node] = {}
        results: dict[str, str] = {}  # identities without the text around the code, on which no other node depends
        executions: dict[str, list[str]] = {}
        for chapter in self.chapters:
            notebook = self.notebooks / f"{chapter.name}.ipynb"
            source = self._source(notebook)
            inputs = {split: splits[split] for split in chapter.reads if split in splits}
            shared = runs.fingerprint(source.code, settings, inputs, self._weights(profile, source.parts))
            executions[chapter.name] = []
            for cell in [(v, s) for s in seeds for v in variants] if chapter.each_run else [None]:
                suffix, folder, own = "", root, {"variants": list(variants), "seeds": list(seeds)}
                if cell:
                    suffix, folder = f" · {cell[0]} · seed {cell[1]}", profiles.run_folder(profile, *cell, self.out)
                    own = {"variant": cell[0], "seed": cell[1]}
                name = f"{prefix}{chapter.name}{suffix}"
                needs: list[str] = []
                for need in chapter.needs:
                    if need not in executions:
                        raise InputError(f"chapter {chapter.name} needs {need}, which is not among the chapters before")
                    same = f"{prefix}{need}{suffix}"
                    needs += [same] if same in nodes else executions[need]
                results[name] = runs.fingerprint(shared, own, [results[need] for need in needs])
                node = Node(
                    name, notebook, folder, {**places, **own}, root, tuple(needs), chapter.makes, chapter.gpu, None,
                    chapter.keeps, chapter.weight, runs.fingerprint(results[name], source.page),
                )  # fmt: skip
                if chapter.work:
                    work = runs.fingerprint(chapter.name, own, [settings[key] for key in chapter.work])
                    node = replace(node, twin=self._twins.get(work))
                    self._twins.setdefault(work, node)
                nodes[name] = node
                executions[chapter.name].append(name)
        return list(nodes.values())

    def _weights(self, profile: Profile, parts: frozenset[str]) -> list[str]:
        """Fingerprints of the base model and the shipped files that ``parts`` of the package load."""
        files = [self._content(folder) for name, folder in SHIPPED.items() if name in parts]
        if "models" in parts:
            folder = profiles.DATA / "tiny" if profile.base == "tiny" else Path(profile.base)
            # A model on the hub is identified by its name.
            files.append(self._content(folder, (".safetensors", ".json", ".txt")) if folder.is_dir() else profile.base)
        return files


def _check(profile: Profile, variants: Sequence[str], seeds: Sequence[int]) -> None:
    for name in variants:
        profiles.check_variant(profile, name)
    for what, values in (("variants", variants), ("seeds", seeds)):
        repeated = [str(value) for value, count in Counter(values).items() if count > 1]
        if repeated or not values:
            raise InputError(f"{what}: {repeated[0] + ' is there twice' if repeated else 'there must be at least one'}")
    if min(seeds) < 0:
        raise InputError(f"seeds: {min(seeds)} is negative; seeds are 0 or greater")


def _content(folder: Path, endings: tuple[str, ...] = ("",)) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(endings))
    return runs.fingerprint([(path.relative_to(folder).as_posix(), runs.sha256(path)) for path in files])


class Source(NamedTuple):
    """A notebook as it is written."""

    code: str  #: fingerprint of its code cells and of the package code they reach
    page: str  #: fingerprint of all its cells
    parts: frozenset[str]  #: modules and packages of ``chestxai`` that it reaches, such as "fidelity"


def read_notebook(path: Path) -> Source:
    """Read the cells of a notebook and find the code they reach.

    Raises:
        MissingError: there is no such notebook.
        InputError: it is damaged, or a cell is not valid Python; names the cell and the line.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing: make it with 'make notebooks' (jupytext --sync)")
    try:
        # Read as JSON: importing nbformat takes a second.
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in runs.read_json(path)["cells"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a notebook: make it again with 'make notebooks' (jupytext --sync)") from error
    code = []
    for number, (kind, source) in enumerate(cells, start=1):
        try:
            code += [_python(source)] if kind == "code" else []
        except SyntaxError as error:
            raise InputError(
                f"{path}, cell {number}, line {error.lineno}: {error.msg} in {str(error.text).strip()[:80]!r}; "
                "correct the notebook and run again"
            ) from error
    files = runs.reached("\n".join(code))
    parts = frozenset(file.relative_to(PACKAGE).with_suffix("").parts[0] for file in files)
    texts = [source for kind, source in cells if kind == "code"]
    return Source(runs.fingerprint(texts, runs.files_fingerprint(files)), runs.fingerprint(cells), parts)


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

"""Settings for all tests: a busy machine must not fail a hypothesis test by its time, and one thread per process."""

from __future__ import annotations

import re
from collections import Counter

import torch
from hypothesis import settings

settings.register_profile("book", deadline=None)
settings.load_profile("book")
# pytest runs a process for each core: each taking all cores would slow all of them down many times over.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="random moments at which each kind of run is killed (2)")
    parser.addoption("--kinds", action="store_true", help="count the malformed inputs that were tried, by kind")


def pytest_terminal_summary(terminalreporter, config):
    """With ``--kinds``, a table of the bad inputs tried: those of the files below, and of classes called TestBad…."""
    files, tried = "test_faults|test_forms|test_guard|test_own_findings", {"passed": Counter(), "failed": Counter()}
    for outcome, counts in tried.items():
        for report in terminalreporter.stats.get(outcome, ()):
            if match := re.match(rf"tests/(?:({files})|test_\w+(?=\.py::TestBad))\.py(?:::Test(\w+))?", report.nodeid):
                counts[f"{match[0].partition('.')[0][11:]}: {match[2] or 'all'}"] += 1
    if config.getoption("--kinds"):
        terminalreporter.section("malformed inputs tried, by kind")
        for kind in sorted({*tried["passed"], *tried["failed"]}):
            terminalreporter.line(f"{kind:32} {tried['passed'][kind]:5} refused or listed, {tried['failed'][kind]} not")


def pytest_generate_tests(metafunc):
    """A test that takes ``kill`` is run once for each random moment; ``--kills 20`` is for a long look."""
    if "kill" in metafunc.fixturenames:
        metafunc.parametrize("kill", range(metafunc.config.getoption("--kills")))

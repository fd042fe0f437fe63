"""Settings for all tests: a busy machine must not fail a hypothesis test by its time, and one thread per process."""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("book", deadline=None)
settings.load_profile("book")
# pytest runs a process for each core: each taking all cores would slow all of them down many times over.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="random moments at which each kind of run is killed (2)")


def pytest_generate_tests(metafunc):
    """A test that takes ``kill`` is run once for each random moment; ``--kills 20`` is for a long look."""
    if "kill" in metafunc.fixturenames:
        metafunc.parametrize("kill", range(metafunc.config.getoption("--kills")))

"""One setting for all tests: a busy machine must not fail a hypothesis test by its time, and one thread per process."""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("book", deadline=None)
settings.load_profile("book")
# pytest runs a process for each core: each taking all cores would slow all of them down many times over.
torch.set_num_threads(1)

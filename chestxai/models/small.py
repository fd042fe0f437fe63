"""What the small networks that are trained here have in common: the building block and the training loop."""

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from chestxai import runs


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """``inputs`` to ``outputs`` channels by a ``kernel`` at a ``stride``, normalised over the batch and rectified."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(True))


def fit(
    optimizer: Optimizer,
    n: int,
    loss: Callable[[np.ndarray], Tensor],
    epochs: int,
    rng: np.random.Generator,
    batch: int = 64,
    description: str = "",
) -> None:
    """Minimise a loss over ``n`` examples with a one-cycle schedule whose peak is the learning rate of ``optimizer``.

    Each of the ``epochs`` sees every example once, at most ``batch`` per step. ``loss`` takes row numbers and returns
    the mean loss of these examples; ``rng`` is of their order, and of what ``loss`` draws; ``description`` is that of
    the progress bar, and there is none without it.
    """
    steps = math.ceil(n / batch)
    schedule = OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=epochs * steps)
    for _ in runs.progress(range(epochs), description, disable=not description):
        # array_split evens out the batches: a last batch of one image would break batch normalisation.
        for rows in np.array_split(rng.permutation(n), steps):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
            schedule.step()

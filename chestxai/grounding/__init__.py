"""Grounding: from a real image and a phrase to a heatmap, by the cross-attention of a text-to-image model.

The attention to the tokens of the phrase is averaged over timesteps, heads and layers while the U-Net runs in one of
three ways:

- ``noised`` (Dombrowski et al. 2024): the clean latent is noised afresh at each chosen timestep and passed through the
  U-Net once, conditional on the prompt only, without guidance. No trajectory is kept, so images, phrases and timesteps
  share a batch.
- ``inversion`` (Vilouras et al. 2024): the latent follows the deterministic path of DDIM inversion (Song et al. 2021),
  conditional on the prompt, and is read at the chosen timesteps.
- ``generation``: the model generates an image for the prompt and is read meanwhile. No real image is used, so the map
  shows where the model would put the finding.

From a shell, on one process or, through ``accelerate launch -m``, on many GPUs and machines:

    python -m chestxai.grounding --profile paper --variant learnable --data /path/to/folder

leaves the maps of a run's checkpoints where chapter 3 of the book finds them finished.
"""
# ruff: noqa: F401 - this file only re-exports

from chestxai.grounding.command import main
from chestxai.grounding.dataset import CHUNK, ground_run, ground_truths, groundable, target_span, unreadable
from chestxai.grounding.heatmaps import Heatmap, ground, ground_groups, ground_layers, ground_many
from chestxai.grounding.passes import Passes, paper_timesteps

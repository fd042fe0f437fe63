"""Fine-tuning a latent diffusion pipeline under a recipe.

All recipes see the same images in the same order with the same noise, timesteps and dropped prompts: these depend on
the seed and the step alone. So a run resumed at any step equals an undisturbed one, and the global batch is the same on
one process or on many.

From a shell, on one process or, through ``accelerate launch -m``, on many GPUs and machines:

    python -m chestxai.finetune --profile paper --variant learnable --data /path/to/folder

leaves the run where chapter 2 of the book finds it finished.
"""

from chestxai.finetune.checkpoints import load_checkpoint
from chestxai.finetune.command import main
from chestxai.finetune.latents import training_latents, training_pairs
from chestxai.finetune.loop import draw, finetune
from chestxai.finetune.prompts import study_prompts

__all__ = ["draw", "finetune", "load_checkpoint", "main", "study_prompts", "training_latents", "training_pairs"]

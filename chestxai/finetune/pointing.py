"""Where words are to point while the U-Net learns: what ``attention`` of a recipe adds to the loss.

The attention of words that name a finding of the study is read (`chestxai.attention.capture`). One of these is added
for each image of the batch, summed over its findings:

- ``floor``: how far, in logarithms, the word's highest probability is below that of attention to all tokens alike. A
  word that any place attends to is left alone; one that has vanished has a gradient all the same.
- ``supervised``: the share of the attention outside the finding's mask, squared, and a share of the cross-entropy of
  attention and mask (the token and the pixel loss of TokenCompose; Wang et al. 2024), in the mean over layers.
- ``distilled``: the Kullback-Leibler divergence of the map, as a distribution over places, from that of a finished run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from chestxai import attention, models, reports
from chestxai.recipes import Recipe
from chestxai.runs import InputError, Run
from chestxai.studies import Box, Finding, Fit, Frame, Study

# Weight of the pixel loss beside the token loss: that of TokenCompose.
_PIXEL = 0.05
# Timesteps at which a finished run is read, and images of one pass.
_TIMES, _BATCH = (100, 300, 500, 700), 16
# Height of the zones that a report may name, as shares of the image; others say nothing of a place.
_ZONES = {"apical": (0, 0.3), "upper": (0, 0.45), "mid": (0.3, 0.7), "lower": (0.5, 1), "basal": (0.55, 1)}


class Word(NamedTuple):
    """A name of findings in a study's prompt: its token ``positions``, and the ``findings`` that it names."""

    positions: list[int]
    findings: list[Finding]


def named(tokenizer: object, study: Study, prompt: str, recipe: Recipe) -> list[Word]:
    """The words of ``prompt`` that name findings of ``study`` which the attention of ``recipe`` concerns.

    What the ``tokenizer`` cuts off is left out.
    """
    found: dict[tuple[int, int], list[Finding]] = {}
    for finding in study.present():
        span = reports.name_span(prompt, finding.name, finding.side)
        if span and (not recipe.attention_findings or finding.name in recipe.attention_findings):
            found.setdefault(span, []).append(finding)
    listed = []
    for span, findings in found.items():
        try:
            listed.append(Word(reports.token_positions(tokenizer, prompt, span), findings))
        except InputError:  # beyond what the tokenizer takes
            continue
    return listed


def place(study: Study, finding: Finding, size: int, fit: Fit = "crop") -> np.ndarray | None:
    """Where a ``finding`` is in the model's frame of its ``study``, bool ``(size, size)``; None where nothing is known.

    Its mask or boxes count, else side and zone as the report names them, on a chest that fills the image. ``fit``: how
    the image becomes a square.
    """
    height, width = study.size
    if finding.mask is None and not finding.boxes:
        top, bottom = _ZONES.get(finding.zone or "", (0, 1))
        # The patient's right is on the image's left.
        left, right = {"right": (0, 0.5), "left": (0.5, 1)}.get(finding.side or "", (0, 1))
        if (bottom - top, right - left) == (1, 1):
            return None
        box = Box(left * width, top * height, (right - left) * width, (bottom - top) * height)
        finding = replace(finding, boxes=(box,))
    return Frame(height, width, size, fit).mask(finding)


class Pointing:
    """What the ``attention`` of a ``recipe`` adds to the loss of a batch.

    The ``pipeline`` is prepared for it. ``studies`` are the ``n`` of the training, with their ``prompts`` and
    ``latents``, float32 ``(n, c, h, w)``; ``fit`` says how an image becomes a square; ``folder`` is the run's.
    InputError if no prompt names a finding of its study, or none whose place is known, or if the run to distil is
    missing, unfinished, or has latents of another shape.
    """

    def __init__(
        self,
        recipe: Recipe,
        pipeline: StableDiffusionPipeline,
        studies: Sequence[Study],
        prompts: Sequence[str],
        latents: Tensor,
        fit: Fit = "crop",
        folder: Path = Path(),
    ) -> None:
        self.recipe, self.length = recipe, reports.text_length(pipeline.tokenizer)
        size, side = models.image_size(pipeline), latents.shape[-1]
        self.words: dict[int, list[list[int]]] = {}  # by row
        self.targets: dict[int, Tensor] = {}  # float16 (words, h, w), if there are any
        for row, (study, prompt) in enumerate(zip(studies, prompts, strict=True)):
            listed = named(pipeline.tokenizer, study, prompt, recipe)
            if recipe.attention == "supervised":
                masks = [[place(study, finding, size, fit) for finding in word.findings] for word in listed]
                kept = [i for i, some in enumerate(masks) if all(m is not None and m.any() for m in some)]
                listed = [listed[i] for i in kept]
                whole = [torch.from_numpy(np.any(masks[i], axis=0))[None, None].float() for i in kept]
                if whole:
                    self.targets[row] = F.adaptive_avg_pool2d(torch.cat(whole), side)[:, 0].half()
            if listed:
                self.words[row] = [word.positions for word in listed]
        if not self.words:
            names = ", ".join(recipe.attention_findings) or "any finding"
            where = " whose place is known" if recipe.attention == "supervised" else ""
            raise InputError(f"attention {recipe.attention!r}: no prompt names {names} of its study{where}")
        if recipe.attention == "distilled":
            run = Run(recipe.files(folder)["attention_from"].parent).check_finished()
            self._distil(run, studies, prompts, latents.to(pipeline.device))

    @torch.no_grad()
    def _distil(self, run: Run, studies: Sequence[Study], prompts: Sequence[str], latents: Tensor) -> None:
        teacher = models.load_pipeline(run.model, device=latents.device)
        shape = (teacher.unet.config.in_channels, *(teacher.unet.config.sample_size,) * 2)
        if shape != tuple(latents.shape[1:]):
            other = tuple(latents.shape[1:])
            raise InputError(f"attention_from: {run.folder} has latents of {shape}, this run of {other}")
        schedule = models.noising(teacher.scheduler)
        words = {
            row: [w.positions for w in named(teacher.tokenizer, studies[row], prompts[row], self.recipe)]
            for row in self.words
        }
        rows = [row for row in words if len(words[row]) == len(self.words[row])]
        for some in (rows[i : i + _BATCH] for i in range(0, len(rows), _BATCH)):
            x, states = latents[some], models.encode_text(teacher, [prompts[row] for row in some])
            with attention.capture(teacher.unet, [_groups(words[row]) for row in some]) as seen:
                for t in _TIMES:
                    noise = torch.stack([models.seeded_noise(x.shape[1:], 7, t, row) for row in some]).to(x)
                    times = torch.full((len(some),), t, device=x.device)
                    seen.run(schedule.add_noise(x, noise, times), times, states)
            for row, maps in zip(some, seen.heatmap().cpu(), strict=True):
                maps = maps[: len(words[row])]
                self.targets[row] = (maps / maps.amax(dim=(1, 2), keepdim=True)).half()
        self.words = {row: self.words[row] for row in self.targets}

    @contextmanager
    def reading(self, unet: nn.Module, rows: Sequence[int]) -> Iterator[Callable[[], Tensor | float]]:
        """Read one pass of the learning ``unet`` inside the block; what this yields gives the loss after it, a scalar.

        ``rows`` of the batch among the studies; -1 where the prompt was dropped.
        """
        own = [row for row in rows if row in self.words]
        if not own:
            yield lambda: 0.0
            return
        slots = {row: i for i, row in enumerate(dict.fromkeys(own))}
        most = max(len(self.words[row]) for row in slots)
        # One slot for each row of the batch: a study that is there twice has two noises.
        places = iter(range(len(own)))
        with attention.capture(unet, [_groups(self.words[row], most) for row in own], grad=True) as seen:
            seen.rows([next(places) if row in slots else -1 for row in rows])
            yield lambda: self.recipe.attention_weight * self._loss(seen, own) / len(rows)

    def _loss(self, seen: attention.Capture, rows: Sequence[int]) -> Tensor:
        """The sum over all words of ``rows``."""
        layers = seen.maps()
        mean = seen.heatmap()
        number = [len(self.words[row]) for row in rows]
        flat = torch.tensor([[i, j] for i, n in enumerate(number) for j in range(n)], device=mean.device).T
        pick = flat[0], flat[1]
        if self.recipe.attention == "floor":
            highest = mean[pick].flatten(1).amax(dim=1)
            return F.relu(-(highest * self.length).clamp(min=1e-30).log()).sum()
        target = torch.cat([self.targets[row] for row in rows]).to(mean.device).float()
        if self.recipe.attention == "distilled":
            found = attention.resize(mean[pick], target.shape[-2:]).flatten(1)
            wanted, found = (m / m.sum(dim=1, keepdim=True).clamp(min=1e-12) for m in (target.flatten(1), found))
            return F.kl_div(found.clamp(min=1e-12).log(), wanted, reduction="sum")
        losses = [_supervised(m[pick], F.adaptive_avg_pool2d(target, m.shape[-2:])) for m in layers.values()]
        return torch.stack(losses).mean()


def _groups(words: Sequence[list[int]], count: int = 0) -> dict[str, list[int]]:
    """The ``words`` of a study as groups for `attention.capture`, filled up to ``count`` with the first."""
    return {str(i): words[i] if i < len(words) else words[0] for i in range(max(count, len(words)))}


def _supervised(maps: Tensor, masks: Tensor) -> Tensor:
    """TokenCompose's token loss and a share of its pixel loss, summed over ``maps`` and ``masks``, ``(n, h, w)``."""
    inside = (maps * masks).sum(dim=(1, 2)) / maps.sum(dim=(1, 2)).clamp(min=1e-12)
    share = maps.clamp(1e-6, 1 - 1e-6)  # of torch's own cross-entropy autocast has no half
    pixels = -torch.lerp((1 - share).log(), share.log(), masks).mean(dim=(1, 2))
    return ((1 - inside).square() + _PIXEL * pixels).sum()

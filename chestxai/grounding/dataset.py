"""Heatmaps of a whole data set, kept in a file, and of every checkpoint of a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import StableDiffusionPipeline

from chestxai import finetune, models, reports, runs
from chestxai.grounding.heatmaps import ground_many
from chestxai.grounding.passes import paper_timesteps
from chestxai.profiles import GroundingSettings, Profile
from chestxai.runs import DivergedError, InputError, Run
from chestxai.studies import Finding, Fit, Frame, GroundTruth

#: Phrases whose maps are written together: what a kill can cost.
CHUNK = 64


def target_span(finding: Finding, target: str = "finding") -> tuple[int, int]:
    """Characters ``(start, end)`` of the phrase of a ``finding`` that are read.

    With ``target`` "finding" the words that name it (all words if none does), with "phrase" all words.
    """
    named = reports.name_span(finding.phrase, finding.name, finding.side) if target == "finding" else None
    return named or (0, len(finding.phrase))


def unreadable(pipeline: StableDiffusionPipeline, finding: Finding, target: str = "finding") -> InputError | None:
    """Why the words of ``target`` cannot be read in the phrase of a ``finding``, by the tokenizer of ``pipeline``."""
    try:
        reports.token_positions(pipeline.tokenizer, finding.phrase, target_span(finding, target))
    except InputError as error:
        return error
    return None


def groundable(
    pipeline: StableDiffusionPipeline, truths: Sequence[GroundTruth], target: str = "finding"
) -> tuple[list[GroundTruth], list[str]]:
    """The rows of ``truths`` whose words the tokenizer takes, and a line for each of the others with its file and row.

    Words of ``target``, by the tokenizer of ``pipeline``. InputError if there are rows, but none can be read.
    """
    errors = [unreadable(pipeline, truth.finding, target) for truth in truths]
    kept = [truth for truth, error in zip(truths, errors, strict=True) if not error]
    lines = [_line(truth, error) for truth, error in zip(truths, errors, strict=True) if error]
    if lines and not kept:
        raise InputError(f"none of {len(lines)} phrases can be read; the first: {lines[0]}")
    return kept, lines


def _line(truth: GroundTruth, error: Exception) -> str:
    where = f" ({truth.finding.where})" if truth.finding.where else ""
    return " ".join(f"{truth.key}{where}: {error}".split())


def ground_truths(
    pipeline: StableDiffusionPipeline,
    truths: Sequence[GroundTruth],
    settings: GroundingSettings,
    path: Path,
    *,
    seed: int = 0,
    fit: Fit = "crop",
    identity: str = "",
    description: str = "grounding",
) -> tuple[np.ndarray, list[GroundTruth], list[str]]:
    """Heatmaps of a whole data set, kept in ``path`` and resumed as `runs.resumable` says.

    The prompt of a row is its phrase, as in MS-CXR. Besides the maps themselves, memory does not grow with the data.
    ``pipeline``, of `models.load_pipeline`, has the checkpoint's weights, which ``identity`` names (default: their
    fingerprint); maps of other weights are replaced. ``truths`` are those of `studies.phrases`, ``settings`` say
    timesteps, tokens and batch, ``seed`` is that of the noise, ``fit`` says how an image becomes a square, and
    ``description`` stands on the progress bar. ``path`` is a ``.safetensors`` file. InputError if no row at all could
    be grounded or the file is damaged, DivergedError if the attention of a phrase is not finite.

    Returns:
        Maps float32 ``(n, h, w)``, the rows they belong to, and one line for each row left out (unreadable image,
        phrase too long for the tokenizer).
    """
    name = runs.fingerprint(
        identity or [models.fingerprint(pipeline), reports.text_length(pipeline.tokenizer)],
        settings.model_dump(),
        seed,
        fit,
        [[truth.key, truth.study.change_token()] for truth in truths],
        runs.code_fingerprint("chestxai.grounding.dataset"),
    )

    def compute(rows: range) -> tuple[dict[str, torch.Tensor], list[str]]:
        try:
            maps, kept, lines = _ground_chunk(pipeline, truths[rows.start : rows.stop], settings, seed, fit)
        except DivergedError as error:
            raise DivergedError(f"{path}, rows from {rows.start}: {error}") from error
        if not kept:
            return {}, lines
        return {"maps": torch.from_numpy(maps), "rows": torch.tensor([rows.start + i for i in kept])}, lines

    stored, skipped = runs.resumable(Path(path), name, len(truths), compute, chunk=CHUNK, description=description)
    if not stored:
        raise InputError(
            f"none of {len(truths)} phrases could be grounded; the first: {(skipped or ['no phrases'])[0]}"
        )
    return stored["maps"].numpy(), [truths[i] for i in stored["rows"].tolist()], skipped


def _ground_chunk(
    pipeline: StableDiffusionPipeline, chunk: Sequence[GroundTruth], settings: GroundingSettings, seed: int, fit: Fit
) -> tuple[np.ndarray, list[int], list[str]]:
    """Maps float32 ``(n, h, w)``, the positions in the chunk that they belong to, and a line for each one left out."""
    size = models.image_size(pipeline)
    kept, lines = [], []
    for i, truth in enumerate(chunk):
        try:
            words = target_span(truth.finding, settings.target)
            reports.token_positions(pipeline.tokenizer, truth.finding.phrase, words)
            frame = Frame(*truth.study.size, size, fit)
            if len(np.unique(frame.mask(truth.finding) > 0)) == 1:  # a crop may remove a box, or keep nothing else
                raise InputError("the finding's mask is empty or full: there is nothing to localise")
            kept.append((i, frame.image(truth.study.pixels()), truth.finding.phrase, words))
        except ValueError as error:
            lines.append(_line(truth, error))
    if not kept:
        return np.zeros((0, 1, 1), np.float32), [], lines
    rows, images, prompts, words = zip(*kept, strict=True)
    maps = ground_many(
        pipeline,
        None if settings.method == "generation" else np.stack(images),
        prompts,
        words,
        timesteps=paper_timesteps(pipeline.scheduler, settings.steps, settings.last, settings.stride),
        seed=seed,
        **settings.model_dump(include={"draws", "batch", "method", "steps", "guidance"}),
    )
    return maps, list(rows), lines


def ground_run(
    profile: Profile,
    run: Run | Path,
    truths: Sequence[GroundTruth],
    pipeline: StableDiffusionPipeline | None = None,
    steps: Sequence[int] | None = None,
) -> Iterator[tuple[int, np.ndarray, list[GroundTruth], list[str]]]:
    """`ground_truths` of the base, which is step 0, and of every checkpoint of a finished run.

    The maps are kept in ``maps/step-<k>.safetensors``. Their noise is that of seed 0 in every run, so that runs differ
    in their weights only. Yields the step, and what `ground_truths` returns. Errors are those of `ground_truths`; for a
    run that is not finished a MissingError names the command that makes it. The ``run``, or its folder, was made with
    the ``profile``, and the ``truths`` are of its test split. A ``pipeline`` of the profile's base gets the weights of
    the checkpoints, ``steps``; by default it is loaded, and all are grounded, with 0 for the base.
    """
    run = (run if isinstance(run, Run) else Run(run)).check_finished()
    identity = run.record()["identity"]
    pipeline = pipeline or models.load_base(profile, device=PartialState().device)
    for step in (0, *run.steps()) if steps is None else steps:
        if step:
            finetune.load_checkpoint(pipeline, run, step)
        maps, rows, skipped = ground_truths(
            pipeline,
            truths,
            profile.grounding,
            run.maps_file(step),
            fit=profile.data.fit,
            identity=f"{identity}-{step}" if step else "",  # the base is the same for all variants
            description=f"step {step}",
        )
        yield step, maps, rows, skipped

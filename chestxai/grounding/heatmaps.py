"""Heatmaps of one image or of many, from the passes of `chestxai.grounding.passes`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline

from chestxai import attention, models, reports
from chestxai.grounding.passes import make_passes, read_attention
from chestxai.profiles import Method
from chestxai.runs import DivergedError


@dataclass(frozen=True)
class Heatmap:
    """Where a model sees a phrase, and how that was read.

    Attributes:
        values: float32 ``(h, w)``, mean attention probability before any normalisation; rows from the top.
        prompt: what the model was given.
        phrase: the words whose tokens were read.
        tokens: their positions in the tokenized prompt.
        layers: names of the layers averaged.
        timesteps: of the noise schedule, averaged.
        seed: of the noise.
        method: "noised", "inversion" or "generation".
        image: uint8 ``(s, s)``, the image that was given or, for "generation", generated.
    """

    values: np.ndarray
    prompt: str
    phrase: str
    tokens: tuple[int, ...]
    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    seed: int
    method: Method
    image: np.ndarray


def ground(
    pipeline: StableDiffusionPipeline,
    image: np.ndarray | None,
    prompt: str,
    phrase: str | tuple[int, int] | None = None,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> Heatmap:
    """Where in ``image`` the model sees ``phrase``.

    Args:
        pipeline: of `models.load_pipeline`.
        image: uint8 ``(s, s)``, ``s = models.image_size(pipeline)``; None for "generation".
        prompt: text the model is given.
        phrase: the words of it to read, default all; case and spacing are free. Or their place, see `target_span`.
        timesteps: of the noise schedule that are read; default: `paper_timesteps`.
        seed: of the noise.
        options: further fields of `Passes`: ``method``, ``steps``, ``guidance``, ``layers``, …

    Raises:
        InputError: an image of another size or type, a phrase that is not in the prompt or is cut off by the tokenizer,
            a timestep outside the schedule or off the path, an unknown method.
        DivergedError: the map has NaN: the model has diverged or overflows in its precision.
    """
    phrase = prompt if phrase is None else phrase
    images = None if image is None else np.asarray(image)[None]
    passes = make_passes({"timesteps": timesteps, "seed": seed, **options})
    seen, latents = read_attention(pipeline, images, [prompt], [phrase], passes)
    return Heatmap(
        _maps(seen, [phrase])[0],
        prompt,
        phrase if isinstance(phrase, str) else prompt[slice(*phrase)],
        tuple(reports.token_positions(pipeline.tokenizer, prompt, phrase)),
        tuple(attention.select_layers(pipeline.unet, passes.layers)),
        tuple(passes.chosen(pipeline)),
        seed,
        passes.method,
        np.asarray(image) if latents is None else models.decode_latents(pipeline, latents)[0],
    )


def ground_many(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray | None,
    prompts: Sequence[str],
    phrases: Sequence[str],
    keys: Sequence[int] | None = None,
    **options: Any,
) -> np.ndarray:
    """Heatmaps of many (image, prompt, phrase): float32 ``(n, h, w)`` at the resolution of the largest map.

    The noise of an image depends on the image, the timestep, the draw and the seed only: not on its neighbours, the
    batch size, or the model. So two models are compared under the same noise.

    ``pipeline`` and errors, which name the row, are those of `ground`; ``options`` are fields of `Passes`. ``images``
    are uint8 ``(n, s, s)``, None for "generation"; ``prompts`` are ``n`` texts and ``phrases`` passages of them.
    ``keys`` name the noise of each row, so that two images can be seen under the same one; default: the image does.
    """
    seen, _ = read_attention(pipeline, images, prompts, phrases, make_passes(options), keys=keys)
    return _maps(seen, phrases)


def ground_groups(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    phrases: Sequence[str],
    **options: Any,
) -> dict[str, np.ndarray]:
    """As `ground_many`, for the phrase and, from the same passes, for the tokens that are no words.

    Of ``pipeline``, ``images``, ``prompts``, ``phrases`` and ``options``: float32 ``(n, h, w)`` of "phrase", "begin",
    "end" and "padding" (see `reports.token_groups`), NaN for a prompt without such a token; and of "empty prompt", the
    begin token of passes without a word, which is free of text in a BERT, too.
    """
    passes, n = make_passes(options), len(prompts)
    seen, _ = read_attention(pipeline, images, prompts, phrases, passes, others=True)
    empty, _ = read_attention(pipeline, images, [""] * n, [None] * n, passes, others=True)
    maps = dict(zip(seen.groups, seen.heatmap().unbind(dim=1), strict=True))
    maps["empty prompt"] = empty.heatmap()[:, list(empty.groups).index("begin")]
    return {name: some.cpu().numpy() for name, some in maps.items()}


def ground_layers(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    prompts: Sequence[str],
    phrases: Sequence[str],
    **options: Any,
) -> dict[str, np.ndarray]:
    """As `ground_many`, before averaging: by layer, float32 ``(n, timesteps, h, w)`` at the layer's own resolution.

    Of ``pipeline``, ``images``, ``prompts``, ``phrases`` and ``options``, all in memory: for some images, not for many.
    """
    passes = make_passes(options)
    seen, _ = read_attention(pipeline, images, prompts, phrases, passes, times="keep")
    order = [seen.times.index(t) for t in passes.chosen(pipeline)]
    return {name: m[order, :, 0].transpose(0, 1).cpu().numpy() for name, m in seen.maps().items()}


def _maps(seen: attention.Capture, phrases: Sequence[str]) -> np.ndarray:
    maps = seen.heatmap()[:, 0].cpu().numpy()
    broken = np.flatnonzero(~np.isfinite(maps).all(axis=(1, 2)))
    if len(broken):
        raise DivergedError(
            f"row {broken[0]} ({phrases[broken[0]]!r}): the attention is not finite; "
            "the model's weights have diverged, or overflow in half precision"
        )
    return maps

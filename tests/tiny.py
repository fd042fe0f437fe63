"""Small random pipelines of Stable Diffusion's own classes: the real code paths without a download."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import (
    BertConfig,
    BertTokenizerFast,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
)

from chestxai.models import SilentPadBert, adopt_encoder

# That of the tiny base: grey 64² images to 4 × 16² latents.
_VAE = {
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
        adopt_encoder(encoder)
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
        vae = AutoencoderKL(**{**_VAE, "in_channels": channels, "out_channels": channels, "sample_size": size})
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

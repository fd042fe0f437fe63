"""Small random pipelines of Stable Diffusion's own classes: the real code paths without a download."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertTokenizerFast,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from chestxai.models import SilentPadBert, adopt_encoder, adopt_pipeline

WORDS = (
    "no small moderate large left right upper lower lobe base apical and of the in with normal chest x ray heart "
    "pleural effusion pneumothorax cardiomegaly edema consolidation pneumonia atelectasis lung opacity"
).split()

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "sd":
            tokenizer = _clip_tokenizer(WORDS)
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
            entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS]
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


def random_kind(name: str, seed: int = 0) -> DiffusionPipeline:
    """A small random pipeline of images of 32 pixels: "sdxl", "pixart-alpha", "pixart-sigma" or "sana"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _sdxl() if name == "sdxl" else _sana() if name == "sana" else _pixart(name)
    pipeline.set_progress_bar_config(disable=True)
    adopt_pipeline(pipeline)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def _clip(kind: type = CLIPTextModel) -> tuple[CLIPTokenizer, PreTrainedModel]:
    tokenizer = _clip_tokenizer(WORDS)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        projection_dim=24,
    )  # fmt: skip
    return tokenizer, kind(config)


def _sdxl() -> StableDiffusionXLPipeline:
    (tokenizer, one), (second, two) = _clip(), _clip(CLIPTextModelWithProjection)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 24,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(**{**_VAE, "in_channels": 3, "out_channels": 3, "sample_size": 32})
    return StableDiffusionXLPipeline(vae, one, two, tokenizer, second, unet, _scheduler(), add_watermarker=False)


def words_tokenizer(template: str, **specials: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with a sentence as ``template`` says: T5's ``$A </s>``, RoBERTa's ``<s> $A </s>``."""
    entries = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "<bos>", "<s>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(entries, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(word, entries[word]) for word in template.split() if word != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", model_max_length=512, **specials
    )


def t5(width: int = 32) -> tuple[PreTrainedTokenizerFast, T5EncoderModel]:
    """T5's tokenizer and encoder, made small."""
    tokenizer = words_tokenizer("$A </s>", eos_token="</s>")
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return tokenizer, T5EncoderModel(config)


def _pixart(name: str) -> DiffusionPipeline:
    tokenizer, encoder = t5()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=48,
        sample_size=8,
        caption_channels=32,
        use_additional_conditions=name == "pixart-alpha",
    )
    # As it starts, a transformer of this kind predicts zero.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    vae = AutoencoderKL(**{**_VAE, "in_channels": 3, "out_channels": 3, "sample_size": 32})
    kind = PixArtAlphaPipeline if name == "pixart-alpha" else PixArtSigmaPipeline
    return kind(tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=transformer, scheduler=_scheduler())


def _sana() -> SanaPipeline:
    tokenizer = words_tokenizer("<bos> $A", bos_token="<bos>", eos_token="</s>")
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, head_dim=8,
            num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, bos_token_id=3, eos_token_id=1,
        )
    )  # fmt: skip
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
    )
    blocks, channels, three = ("ResBlock", "ResBlock", "EfficientViTBlock"), (8, 8, 16), (1, 1, 1)
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=three,
        decoder_layers_per_block=three,
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )
    return SanaPipeline(tokenizer, encoder, vae, transformer, FlowMatchEulerDiscreteScheduler(shift=3.0))


def joint(name: str, seed: int = 0) -> torch.nn.Module:
    """A small random transformer of Stable Diffusion 3 ("sd3") or Flux ("flux")."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "sd3":
            return SD3Transformer2DModel(
                sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
                joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8,
                qk_norm="rms_norm",
            ).eval()  # fmt: skip
        return FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
        ).eval()  # fmt: skip

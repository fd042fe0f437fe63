"""Building, loading and saving a text-to-image latent diffusion pipeline.

Every model is a stock diffusers pipeline of a class in `KINDS`: Stable Diffusion, SDXL, PixArt, Sana, as a local folder
or hub id, or the tiny base in ``data/tiny`` whose text encoder is all-MiniLM-L6-v2 (a BERT). Nothing below this line
knows which one it is: image size, channels, token length and text width are read off the parts.
"""
# ruff: noqa: F401, I001 - this file only re-exports

# diffusers looks up in this module what the text encoder of ``data/tiny`` is a subclass of.
from transformers import PreTrainedModel

from chestxai.encoders import MINILM, SilentPadBert, adopt_encoder, minilm, scramble_words
from chestxai.models.kinds import KINDS, denoise, kind_of, text_read_once
from chestxai.models.loading import TINY, adopt_pipeline, architecture, fingerprint, load_base, load_pipeline
from chestxai.models.loading import save_pipeline
from chestxai.models.pictures import decode_latents, encode_images, image_size, to_tensor, to_uint8
from chestxai.models.schedules import Flow, ddim, draw, inversion, noising, plms, prediction_target, seeded_noise
from chestxai.models.text import WINDOWS, context, cut_prompts, encode_text, encoder_states, pipeline_states
from chestxai.models.text import read_in_windows, readable, reference_states, text_states, tokenize

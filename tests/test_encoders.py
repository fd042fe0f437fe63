"""Text encoders of the field's types, made small, in files of the real format; and bases that cannot be used."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from chestxai import attention, finetune, grounding, models, profiles, sources
from chestxai.profiles import FinetuneSettings
from chestxai.recipes import Recipe, attach
from chestxai.runs import DivergedError, InputError, MissingError
from tests import tiny
from tools import convert_weights

PROMPT = "small left pleural effusion"
LONG = "effusion " * 90


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return models.save_pipeline(tiny.random_pipeline("sd"), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def copy(base, tmp_path):
    """A base that a test may spoil."""
    return shutil.copytree(base, tmp_path / "copy")


def change(path, **settings) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """As RoBERTa's: padding has number 1."""
    tokenizer = tiny.words_tokenizer("<s> $A </s>", bos_token="<s>", eos_token="</s>")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    swap = {"<pad>": 1, "</s>": 2, "<s>": 0, "<unk>": 3, "<bos>": 4}
    vocabulary |= swap
    for name, entry in state["post_processor"]["special_tokens"].items():
        entry["ids"] = [swap[name]]
    state["added_tokens"] = [entry | {"id": swap[entry["content"]]} for entry in state["added_tokens"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(state)),
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=10**30,
    )  # fmt: skip


def encoder(kind: str, folder, width: int = 32):
    """A tokenizer and an encoder in ``folder``, as the hub holds them; the encoder as transformers alone makes it."""
    torch.manual_seed(1)
    common = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = tiny.random_pipeline("bert")
    tokenizer = bert.tokenizer
    if kind == "roberta":
        tokenizer = roberta_tokenizer()
        model = RobertaModel(
            RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1, **common)
        )
    elif kind == "t5":
        tokenizer, model = tiny.t5(width)
    elif kind == "distilbert":
        model = DistilBertModel(
            DistilBertConfig(vocab_size=len(tokenizer), dim=width, hidden_dim=32, n_layers=2, n_heads=2)
        )
    else:
        model = BertModel(BertConfig(vocab_size=len(tokenizer), **common))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    if kind == "cxr-bert":
        # As microsoft/BiomedVLP-CXR-BERT-specialized: a type and code of its own, the BERT behind a prefix, two heads.
        own = {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"}
        change(folder / "config.json", model_type="cxr-bert", auto_map=own, projection_size=8)
        change(
            folder / "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]},
        )
        state = {f"bert.{name}": value.clone() for name, value in model.state_dict().items()}
        state |= {
            "cls.predictions.bias": torch.zeros(8),
            "cls_projection_head.dense_to_hidden.weight": torch.zeros(8, width),
        }
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return tokenizer, model.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "cxr-bert", "distilbert", "roberta", "t5"])
def test_every_type_reads_words_and_no_padding(kind, base, tmp_path):
    tokenizer, alone = encoder(kind, tmp_path)
    pipeline = models.load_pipeline(base, text_encoder=tmp_path, device="cpu")
    assert pipeline.tokenizer.model_max_length <= {"roberta": 32, "t5": 512}.get(kind, 32)
    states = models.encode_text(pipeline, [PROMPT, LONG])
    assert states.shape[:2] == (2, pipeline.tokenizer.model_max_length)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected = alone(ids)[0][0]
    torch.testing.assert_close(states[0, : len(expected)], expected, atol=1e-5, rtol=1e-4)
    assert (states[0, len(expected) :] == 0).all()
    image = np.zeros((32, 32), np.uint8)
    heat = grounding.ground(pipeline, image, PROMPT, "pleural effusion", timesteps=[301])
    assert np.isfinite(heat.values).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["distilbert", "roberta", "t5"])
def test_a_recipe_limits_what_tokens_see_in_every_type(kind, base, tmp_path):
    encoder(kind, tmp_path)
    pipeline = models.load_pipeline(base, text_encoder=tmp_path, device="cpu")
    attach(pipeline, Recipe(mixing="none"))
    one, two = models.encode_text(pipeline, ["small left effusion", "small right heart"])
    first = 0 if kind == "t5" else 1
    torch.testing.assert_close(one[: first + 1], two[: first + 1])
    assert not torch.allclose(one[first + 1], two[first + 1])


@torch.no_grad()
def test_a_text_tower_in_diffusers_form_is_read_with_its_tokenizer(base):
    """As OpenCLIP's in Stable Diffusion 2: beside its tokenizer, each in a folder of a pipeline."""
    own = models.load_pipeline(base, device="cpu")
    for source in (base, base / "text_encoder"):
        pipeline = models.load_pipeline(base, text_encoder=source, device="cpu")
        torch.testing.assert_close(models.encode_text(pipeline, [PROMPT]), models.encode_text(own, [PROMPT]))


def test_a_layer_between_text_and_denoiser_learns_where_widths_differ(base, tmp_path):
    encoder("cxr-bert", tmp_path / "text", width=48)
    with pytest.raises(
        InputError, match=r"text encoder is 48 wide, .* expects 32; text_projection: linear learns a layer"
    ):
        models.load_pipeline(base, text_encoder=tmp_path / "text")
    pipeline = models.load_pipeline(base, text_encoder=tmp_path / "text", device="cpu", text_projection="linear")
    before = pipeline.unet.encoder_hid_proj.weight.clone()
    settings = FinetuneSettings(
        steps=2, batch_size=2, learning_rate=1e-2, text_learning_rate=1e-3, checkpoint_every=2, ema_decay=0.0
    )
    studies = sources.load("phantom", split="train", n=4, size=32)
    for unet in ("all", "lora:2"):
        pipeline = models.load_pipeline(base, text_encoder=tmp_path / "text", device="cpu", text_projection="linear")
        recipe = Recipe(text_projection="linear", unet=unet)
        out = finetune.finetune(pipeline, studies, settings, tmp_path / unet, recipe=recipe)
        assert not torch.equal(pipeline.unet.encoder_hid_proj.weight, before)
        assert (pipeline.unet.encoder_hid_proj.bias == 0).all()  # so padding is still silent
        loaded = models.load_pipeline(out / "model", device="cpu")
        torch.testing.assert_close(loaded.unet.encoder_hid_proj.weight, pipeline.unet.encoder_hid_proj.weight)
        fresh = models.load_pipeline(base, text_encoder=tmp_path / "text", device="cpu", text_projection="linear")
        finetune.load_checkpoint(fresh, out, 2)
        states = models.encode_text(fresh, [PROMPT])
        with torch.no_grad(), attention.capture(fresh.unet, {"padding": [20, 21], "word": [2]}) as seen:
            one = models.denoise(fresh.unet, torch.ones(1, 4, 8, 8), torch.tensor(300), states)
        torch.testing.assert_close(one, models.denoise(loaded.unet, torch.ones(1, 4, 8, 8), torch.tensor(300), states))
        assert np.isfinite(seen.heatmap()).all()
    with pytest.raises(ValueError, match="keys and values of different states pass no layer between"):
        Recipe(text="learnable", keys="frozen", text_projection="linear")


def test_profiles_name_an_encoder_for_their_base(base, tmp_path):
    encoder("cxr-bert", tmp_path / "text", width=48)
    demo = profiles.load("smoke").model_dump() | {"base": str(base), "text_encoder": str(tmp_path / "text")}
    profile = profiles.Profile.model_validate(
        demo | {"variants": {"frozen": {"text": "frozen", "text_projection": "linear"}}}
    )
    assert models.load_base(profile, "cpu").unet.config.encoder_hid_dim == 48
    paper = profiles.load("cxrbert")
    assert "CXR-BERT" in paper.text_encoder
    assert paper.finetune.steps == 30_000
    assert [recipe.text for recipe in paper.variants.values()] == ["frozen"]


# --- refused by name -------------------------------------------------------------------------------------------------


def refused(folder, message, kind=InputError, **options):
    with pytest.raises(kind, match=message) as caught:
        models.load_pipeline(folder, device="cpu", **options)
    assert "\n" not in str(caught.value)


def test_encoders_that_cannot_be_read(base, tmp_path):
    encoder("bert", tmp_path / "gpt")
    change(tmp_path / "gpt" / "config.json", model_type="gpt2")
    refused(base, "of type 'gpt2'; clip, .*cxr-bert.* are read", text_encoder=tmp_path / "gpt")
    encoder("bert", tmp_path / "some")
    path = tmp_path / "some" / "model.safetensors"
    state = load_file(path)
    save_file({k: v for k, v in state.items() if "layer.1" not in k}, path, {"format": "pt"})
    refused(
        base, r"it lacks \d+ weights, such as encoder.layer.1.*, which would be random", text_encoder=tmp_path / "some"
    )
    save_file({k: v * float("nan") for k, v in state.items()}, path, {"format": "pt"})
    refused(base, "it has NaN or infinite weights", DivergedError, text_encoder=tmp_path / "some")
    (tmp_path / "some" / "config.json").write_text("{")
    refused(base, "cannot load the text encoder", text_encoder=tmp_path / "some")


def test_pickles_are_converted_and_code_in_them_is_not_run(copy, tmp_path, capsys):
    encoder("bert", tmp_path / "text")
    for path in (tmp_path / "text" / "model.safetensors", copy / "unet" / "diffusion_pytorch_model.safetensors"):
        old = path.name.replace(".safetensors", ".bin").replace("model", "pytorch_model", "diffusion" not in path.name)
        torch.save(load_file(path), path.with_name(old))
        path.unlink()
    refused(copy, r"has unet as a pickle \(.bin\) only: convert it with 'python tools/convert_weights.py .*copy'")
    torch.save(SimpleNamespace(learning_rate=1e-4), copy / "unet" / "training_args.bin")  # as a trainer leaves it
    assert convert_weights.main([str(copy)]) == 0
    refused(copy, r"its weights are a pickle \(.bin\): convert it with", text_encoder=tmp_path / "text")
    assert convert_weights.main([str(tmp_path / "text")]) == 0
    pipeline = models.load_pipeline(copy, text_encoder=tmp_path / "text", device="cpu")
    assert models.fingerprint(pipeline, ["unet"]) == models.fingerprint(tiny.random_pipeline("sd"), ["unet"])
    assert convert_weights.main([str(copy)]) == 0
    assert "converted before" in capsys.readouterr().out
    bad = tmp_path / "bad"
    bad.mkdir()
    torch.save({"weight": os.system}, bad / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"it holds more than tensors, which is not opened"):
        convert_weights.main([str(bad)])
    with pytest.raises(MissingError, match=r"no weights \(\*model\*\.bin\) in it"):
        convert_weights.main([str(tmp_path / "copy" / "scheduler")])


@pytest.mark.parametrize("parts", [("unet",), ("vae",), ("unet", "vae", "text_encoder")])
def test_half_precision_files_are_read_where_there_are_no_others(copy, parts):
    for part in parts:
        for path in list((copy / part).glob("*.safetensors")):
            path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    pipeline = models.load_pipeline(copy, device="cpu")
    assert models.fingerprint(pipeline) == models.fingerprint(tiny.random_pipeline("sd"))


def test_half_precision_of_an_encoder(base, tmp_path):
    encoder("bert", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    assert models.load_pipeline(base, text_encoder=tmp_path, device="cpu").text_encoder.dtype == torch.float32


@pytest.mark.parametrize(
    ("part", "name", "settings", "message"),
    [
        ("unet", "config.json", {"sample_size": None}, "sample_size in unet/config.json is None: one number is needed"),
        ("unet", "config.json", {"sample_size": [8, 16]}, r"sample_size in unet/config.json is \[8, 16\]"),
        ("scheduler", "scheduler_config.json", {"rescale_betas_zero_snr": True}, "no noise can be predicted"),
        ("scheduler", "scheduler_config.json", {"prediction_type": "sample"}, "the scheduler predicts 'sample'"),
    ],
)
def test_settings_that_cannot_work(copy, part, name, settings, message):
    change(copy / part / name, **settings)
    refused(copy, message)


def test_a_square_size_is_a_size(copy):
    change(copy / "unet" / "config.json", sample_size=[8, 8])
    pipeline = models.load_pipeline(copy, device="cpu")
    assert models.image_size(pipeline) == 32
    assert grounding.ground(pipeline, None, PROMPT, method="generation", steps=2).image.shape == (32, 32)


def test_pure_noise_is_used_where_velocity_is_predicted(copy):
    change(copy / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    pipeline = models.load_pipeline(copy, device="cpu")
    for method in ("inversion", "generation"):
        image = None if method == "generation" else np.full((32, 32), 99, np.uint8)
        assert np.isfinite(grounding.ground(pipeline, image, PROMPT, method=method, steps=5).values).all()


def test_parts_of_another_kind(tmp_path):
    inpainting = tiny.random_pipeline("sd")
    inpainting.unet.register_to_config(in_channels=9)
    inpainting.unet.conv_in = torch.nn.Conv2d(9, 16, 3, padding=1)
    refused(models.save_pipeline(inpainting, tmp_path / "inpainting"), "its U-Net reads 9 channels")
    small = tiny.random_pipeline("sd")
    blocks = {"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16)}
    blocks |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    small.register_modules(vae=AutoencoderTiny(**blocks))
    refused(
        models.save_pipeline(small, tmp_path / "small"), "its autoencoder is a AutoencoderTiny, AutoencoderKL is needed"
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_missing_unknown_or_not_finite(copy, part):
    (path,) = (copy / part).glob("*.safetensors")
    state = load_file(path)
    name = next(key for key in state if key.endswith("weight") and ".attentions." not in key)
    save_file({k: v for k, v in state.items() if k != name}, path, {"format": "pt"})
    refused(copy, rf"{part} lacks 1 weights, such as .*, which would be random")
    save_file(state | {name: state[name] * float("nan")}, path, {"format": "pt"})
    refused(copy, f"the {part} of .* has NaN or infinite weights", DivergedError)
    if part != "text_encoder":  # old ones hold more than is read, such as a pooler
        save_file(state | {"more.weight": state[name].clone()}, path, {"format": "pt"})
        refused(copy, f"{part} has 1 weights, such as more.weight, which its network has not")


# --- the hub ---------------------------------------------------------------------------------------------------------

ANSWERS = {
    404: ("RepoNotFound", "no such model any more, or it is private: name a mirror or a folder as base:"),
    401: ("RepoNotFound", "no such model any more, or it is private: name a mirror or a folder as base:"),
    403: ("GatedRepo", "its owner grants access on request: ask on its page, then 'hf auth login'"),
    423: ("", "HF_HUB_OFFLINE is set: unset it, or give the folder of a copy"),
    503: ("", "the hub cannot be reached: connect, or give the folder of a copy"),
    406: ("", "the hub refuses access (403)"),
}


def test_what_the_hub_answers_is_told_apart(tmp_path):
    """Six ways of not getting a model; 406 stands for a plain 403, 423 for being told to stay offline."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            code = int(self.path.split("/base-")[1][:3])
            self.send_response({406: 403}.get(code, code))
            self.send_header("X-Error-Code", ANSWERS[code][0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import huggingface_hub.constants as c; from chestxai import models\n"
        f"for code in {list(ANSWERS)}:\n"
        "    c.HF_HUB_OFFLINE = code == 423\n"
        "    try: models.load_pipeline(f'someone/base-{code}')\n"
        "    except FileNotFoundError as error: print(error)\n"
    )
    place = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | place, capture_output=True, text=True, check=True
    )
    server.shutdown()
    lines = done.stdout.splitlines()
    assert len(lines) == len(ANSWERS), done.stdout
    for line, (number, (_, expected)) in zip(lines, ANSWERS.items(), strict=True):
        assert line.startswith(f"cannot load the base model 'someone/base-{number}': ")
        assert expected in line

"""The paper's profile end to end: a random Stable Diffusion 2 of an eighth of its width on files of MIMIC's format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from chestxai import models, profiles, runs
from chestxai.batch import study
from chestxai.finetune.plan import SHAPES
from chestxai.sources.splits import BOXED, split_patients
from tests import test_mimic, tiny

# Patients with a phrase are divided by their number, whatever the official split says.
_PHRASED = split_patients(map(str, range(10_000_021, 10_000_081)), BOXED)
PATIENTS = {
    "train": [10_000_001, 10_000_002, 10_000_003, 10_000_004],
    "validate": [int(p) for p in _PHRASED if _PHRASED[p] == "val"][:2],
    "test": [int(p) for p in _PHRASED if _PHRASED[p] == "test"][:2],
}
# Further test images, of which no phrase has a box: the scores of sets need more than five.
OTHERS = [10_000_091, 10_000_092, 10_000_093, 10_000_094]


def base(folder, part: int = 8, side: int = 64):
    """Stable Diffusion 2's shape, an eighth as wide, with random weights."""
    shape = runs.read_json(SHAPES["stable-diffusion-2"], dict)
    stock = tiny.random_pipeline("sd")
    wide = ("hidden_size", "intermediate_size")
    text = {key: value // part if key in wide else value for key, value in shape["text_encoder"].items()}
    special = {name: getattr(stock.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPTextModel(CLIPTextConfig(**text | {"vocab_size": len(stock.tokenizer)} | special))
        parts = {}
        for name in ("unet", "vae"):
            channels = [width // part for width in shape[name]["block_out_channels"]]
            parts[name] = shape[name] | {"block_out_channels": channels, "norm_num_groups": 8}
        unet = UNet2DConditionModel(**parts["unet"] | {"cross_attention_dim": text["hidden_size"], "sample_size": side})
        vae = AutoencoderKL(**parts["vae"])
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=encoder, tokenizer=stock.tokenizer, scheduler=stock.scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return models.save_pipeline(pipeline, folder)


def mimic(root):
    patients = {**PATIENTS, "test": [*PATIENTS["test"], *OTHERS]}
    images = [test_mimic.image(p) for some in patients.values() for p in some]
    splits = [test_mimic.listed(p, split) for split, some in patients.items() for p in some]
    boxes = [
        test_mimic.box(p, "Pleural Effusion", "small right pleural effusion")
        for p in (*PATIENTS["validate"], *PATIENTS["test"])
    ]
    labels = [test_mimic.stated(p, Pleural_Effusion="1.0") for some in patients.values() for p in some]
    test_mimic.collection(root, images, splits, boxes, labels)
    for i, path in enumerate(sorted(root.rglob("*.jpg"))):
        noise = np.random.default_rng(i).integers(0, 255, (48, 40), dtype=np.uint8)
        Image.fromarray(noise).save(path)


@pytest.mark.parametrize("variant", ["learnable"])
def test_the_papers_protocol_runs_end_to_end(tmp_path, variant):
    content = runs.read_yaml(profiles.DATA / "profiles" / "paper.yaml")
    content["base"] = str(base(tmp_path / "base"))
    # Everything else is the paper's; a CPU would take minutes for a step in bf16.
    content["finetune"] |= {"steps": 2, "batch_size": 2, "accumulate": 2, "checkpoint_every": 2, "precision": "no"}
    content["grounding"] |= {"steps": 5, "last": 4, "stride": 4, "swaps": 1, "swap_every": 1, "batch": 2}
    # Of the spaces only that whose weights ship.
    assert content["sampling"].pop("spaces") == ["findings", "inception-cd", "inception", "xrv"]
    content["sampling"] |= {"images": 10, "steps": 1, "per_prompt": 2}
    content["statistics"] = {"resamples": 100}
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content))
    mimic(tmp_path / "data" / "mimic")
    profile = profiles.load(path)
    assert set(profiles.check_data(profile, tmp_path / "data")) >= {"train", "val", "test", "boxes test"}
    job = study.Job(profile, variant, 0, "test", {}, str(tmp_path / "data"), tmp_path / "runs")
    rows = study.rows_of(job)
    run = profiles.run(profile, variant, 0, tmp_path / "runs")
    record = run.record()
    assert rows["step"].tolist() == [2]
    assert (record["settings"]["learning_rate"], record["settings"]["ucg"]) == (5e-5, 0.3)
    assert run.maps(2)["maps"].shape == (2, 64, 64)
    assert np.isfinite(rows[["auc_roc", "cnr", "ms_ssim"]].to_numpy(float)).all()
    trained = models.load_pipeline(run.model, device="cpu")
    assert trained.unet.config.cross_attention_dim == 128
    assert models.image_size(trained) == 512

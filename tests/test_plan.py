"""Plans of a training: counts known by hand, activations as a real pass keeps them, profiles that fit their cards."""

from __future__ import annotations

import pytest
import torch

from chestxai import profiles
from chestxai.finetune import main, plan
from chestxai.profiles import FinetuneSettings
from tests import tiny

SETTINGS = FinetuneSettings(
    steps=4, batch_size=4, learning_rate=1e-3, text_learning_rate=1e-3, checkpoint_every=2, accumulate=4
)


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_stable_diffusion_2_has_its_known_size_without_weights_or_network(offline):
    parts, source = plan.networks("stabilityai/stable-diffusion-2-base")
    # The published checkpoints: 865.9, 340.4 and 83.7 million parameters.
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert sizes == {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863}
    assert {p.device.type for part in parts.values() for p in part.parameters()} == {"meta"}
    assert source == "stable-diffusion-2.json, as the hub cannot be reached"
    with pytest.raises(FileNotFoundError, match="cannot read the shape of 'nobody/nothing'"):
        plan.networks("nobody/nothing")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_a_pass_keeps(checkpointing):
    """Known answer: what the graph of a real pass on the CPU holds."""
    settings = SETTINGS.model_copy(update={"gradient_checkpointing": checkpointing})
    unet = tiny.random_pipeline("sd", size=128).unet.train().requires_grad_(True)
    seen, weights = {}, {p.untyped_storage().data_ptr() for p in unet.parameters()}

    def save(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(save, lambda value: value):
        unet(torch.randn(1, 4, 32, 32), torch.tensor([5]), torch.randn(1, 77, 32))
    whole = sum(storage.nbytes() for storage in seen.values())
    counted = plan.activations(unet, settings)
    if checkpointing:
        assert counted < 0.5 * whole
    else:
        assert counted == pytest.approx(whole, rel=0.05)


def test_memory_is_counted_by_part():
    profile = profiles.load("demo")
    parts, _ = plan.networks("tiny")
    unet, text = (sum(p.numel() for p in parts[name].parameters()) for name in ("unet", "text_encoder"))
    used = {v: plan.memory(plan.networks("tiny")[0], profile, v) for v in profile.variants}
    for variant, learning in (("frozen", unet), ("learnable", unet + text)):
        assert used[variant]["gradients"] == used[variant]["averages"] == 4 * learning
        assert used[variant]["moments"] == 8 * learning
        assert used[variant]["copies in half precision"] == 0
    small = {"optimizer": "adamw8bit", "weights": "bf16", "precision": "bf16", "averages": "cpu"}
    saving = profile.model_copy(update={"finetune": profile.finetune.model_copy(update=small)})
    used = plan.memory(parts, saving, "frozen")
    assert (used["weights, unet"], used["gradients"], used["moments"], used["averages"]) == (
        2 * unet,
        2 * unet,
        2 * unet,
        0,
    )


@pytest.mark.parametrize(("name", "gpu"), [("paper", 80), ("paper-24gb", 24), ("paper-12gb", 12)])
def test_the_papers_profiles_fit_their_cards(offline, capsys, name, gpu):
    command = ["--plan", "--profile", name, "--variant", "learnable", "--gpu"]
    assert main([*command, str(gpu)]) == 0
    out = capsys.readouterr().out
    assert f"fits in {gpu} GB" in out
    assert "865.9 M parameters" in out
    assert "hours are not known" in out or "hours with this kind of GPU" in out
    assert main([*command, "8"]) == 1
    assert "does not fit in 8 GB" in capsys.readouterr().out


def test_steps_are_timed():
    unet = tiny.random_pipeline("sd").unet.to("meta")
    seconds = plan.seconds_per_step(unet, SETTINGS, "cpu", steps=2)
    assert 0 < seconds < 60

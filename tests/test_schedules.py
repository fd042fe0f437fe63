"""The book's sampler is one, whatever scheduler a folder names."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from chestxai import fidelity, grounding, models
from chestxai.profiles import SamplingSettings
from chestxai.runs import InputError
from tests import tiny

PROMPT = "small left pleural effusion"
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def classes() -> dict[str, type]:
    """All of diffusers' schedulers that are made of betas, and need no further package."""
    found = {}
    for name in dir(diffusers):
        kind = getattr(diffusers, name) if name.endswith("Scheduler") else None
        if isinstance(kind, type) and issubclass(kind, SchedulerMixin):
            try:
                scheduler = kind(**TRAINED)
            except (ImportError, TypeError):
                continue
            if set(TRAINED) <= set(scheduler.config):
                found[name] = kind
    return found


CLASSES = classes()


def stored(kind: type, scheduler: SchedulerMixin, folder) -> SchedulerMixin:
    """``scheduler`` as a folder of another class keeps it."""
    kind.from_config(scheduler.config).save_pretrained(folder)
    return kind.from_pretrained(folder)


def test_the_usual_ones_are_among_them():
    usual = "PNDM DPMSolverMultistep DPMSolverSinglestep EulerDiscrete EulerAncestralDiscrete LMSDiscrete HeunDiscrete"
    usual += " UniPCMultistep DDPM DEISMultistep KDPM2Discrete LCM DDIM DDIMInverse TCD SASolver"
    assert {f"{name}Scheduler" for name in usual.split()} <= set(CLASSES)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_scheduler_gives_the_same_sampler(name, predicts, tmp_path):
    own = DDIMScheduler.from_config(tiny.random_pipeline("sd").scheduler.config, prediction_type=predicts)
    expected = models.ddim(own)
    fresh = {} if "prediction_type" not in CLASSES[name]().config else {"prediction_type": predicts}
    for other in (stored(CLASSES[name], own, tmp_path), CLASSES[name](**TRAINED, **fresh)):
        if other.config.get("prediction_type") != predicts:
            continue  # a class that does not say what is predicted
        found = models.ddim(other)
        assert dict(found.config) == dict(expected.config)
        torch.testing.assert_close(found.alphas_cumprod, expected.alphas_cumprod, rtol=0, atol=0)
        assert dict(models.inversion(other).config) == dict(models.inversion(own).config)
        assert dict(models.noising(other).config) == dict(models.noising(own).config)


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler"])
def test_the_same_weights_give_the_same_maps_and_images(name, tmp_path):
    own = tiny.random_pipeline("sd")
    base = models.save_pipeline(own, tmp_path / "base")
    CLASSES[name](**TRAINED).save_pretrained(base / "scheduler")
    index = (base / "model_index.json").read_text().replace("DDIMScheduler", name)
    (base / "model_index.json").write_text(index)
    other = models.load_pipeline(base, device="cpu")
    assert type(other.scheduler).__name__ == name
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for method in ("noised", "inversion", "generation"):
        given = None if method == "generation" else image
        one, two = (grounding.ground(p, given, PROMPT, "effusion", method=method, steps=6) for p in (own, other))
        np.testing.assert_allclose(one.values, two.values, rtol=1e-5)  # mapped weights lie differently in memory
        assert np.abs(one.image.astype(int) - two.image).max() <= 1
    settings = SamplingSettings(images=2, per_prompt=2, steps=4)
    one, two = (fidelity.sample(p, [PROMPT] * 2, settings, tmp_path / f"{id(p)}.safetensors") for p in (own, other))
    assert np.abs(one.astype(int) - two).max() <= 1


def test_pure_noise_at_the_end_is_where_sampling_starts():
    """Lin et al. 2024: a schedule that ends in pure noise is walked from its last timestep."""
    own = DDIMScheduler(**TRAINED, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    sampler = models.ddim(own)
    sampler.set_timesteps(5)
    assert sampler.timesteps.tolist() == [999, 799, 599, 399, 199]
    assert sampler.alphas_cumprod[-1] == 0
    assert models.noising(own).alphas_cumprod.equal(sampler.alphas_cumprod)
    back = models.inversion(own)
    back.set_timesteps(5)
    assert back.timesteps.tolist() == sampler.timesteps.flip(0).tolist()


def test_betas_of_a_schedule_that_only_one_class_knows():
    own = diffusers.DDPMScheduler(beta_schedule="sigmoid", beta_start=0.0001, beta_end=0.02)
    torch.testing.assert_close(models.ddim(own).betas, own.betas, rtol=1e-6, atol=0)


def test_noise_of_another_kind_is_refused_by_name():
    with pytest.raises(InputError, match=r"the noise of a EDMEulerScheduler cannot be read .*betas .*flow matching"):
        models.ddim(EDMEulerScheduler())
    with pytest.raises(InputError, match="predicts 'sample'; 'epsilon' and 'v_prediction' models"):
        models.ddim(DDIMScheduler(prediction_type="sample"))


def test_pure_noise_of_which_noise_is_predicted_is_refused_wherever_it_is_used():
    pipeline = tiny.random_pipeline("sd")
    config = pipeline.scheduler.config
    pipeline.scheduler = DDIMScheduler.from_config(config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    for use in (models.ddim, models.inversion, models.noising):
        with pytest.raises(InputError, match=r"ends in pure noise \(rescale_betas_zero_snr\), .* \(epsilon\)"):
            use(pipeline.scheduler)


def test_a_flow_is_a_straight_line():
    """A network that predicts the true flow leads from noise to the image in any number of steps, and back."""
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    x, noise = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    schedule = models.noising(own)
    flow = models.prediction_target(schedule, x, noise, torch.tensor([1, 1]))
    for steps in (1, 7, 50):
        forward, back = models.ddim(own), models.inversion(own)
        forward.set_timesteps(steps), back.set_timesteps(steps)
        assert forward.timesteps.tolist() == back.timesteps.tolist()[::-1]
        at = schedule.add_noise(x, noise, forward.timesteps[:1].expand(2))
        for t in forward.timesteps:
            torch.testing.assert_close(at, schedule.add_noise(x, noise, t.expand(2)), rtol=1e-4, atol=1e-5)
            at = forward.step(flow, t, at).prev_sample
        torch.testing.assert_close(at, x, rtol=1e-4, atol=1e-4)
        for t in back.timesteps:
            at = back.step(flow, t, at).prev_sample
            torch.testing.assert_close(at, schedule.add_noise(x, noise, t.expand(2)), rtol=1e-4, atol=1e-4)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    ours = models.ddim(own)
    ours.set_timesteps(4)
    torch.testing.assert_close(ours.timesteps[1:].float(), theirs.timesteps[1:], rtol=0, atol=0.5)
    with pytest.raises(ValueError, match=r"600 steps are more than a schedule of 1000 timesteps and shift 3.0 has"):
        ours.set_timesteps(600)

"""One noise schedule and one sampler for every base, whatever scheduler its folder names.

A folder's scheduler says what the network was trained with: the levels of noise, and what it predicts. How to walk
along them (spacing, first step, clipping, the step itself) is the solver's business, and differs from class to class.
The book takes the first from the folder and has one answer to the second: DDIM (Song et al. 2021) as Stable Diffusion
uses it. So the same weights give the same maps and images under any scheduler's name.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, PNDMScheduler, SchedulerMixin
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

from chestxai.models.kinds import denoise, text_read_once
from chestxai.runs import InputError

# What a scheduler's configuration says of the training.
_TRAINED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
_PREDICTIONS = ("epsilon", "v_prediction", "flow_prediction")


class Flow:
    """The straight path from image to noise (Lipman et al. 2023), walked by Euler's steps, as a diffusers scheduler.

    At timestep ``t`` of ``n`` the latents are ``(1 - t / n) x + (t / n) noise``, and the network predicts
    ``noise - x``. ``config`` has ``num_train_timesteps``, ``prediction_type`` and ``shift``, by which steps are denser
    where it is noisy. ``backwards`` goes from the image to the noise, as `diffusers.DDIMInverseScheduler`.
    """

    def __init__(self, config: FrozenDict, backwards: bool = False) -> None:
        self.config, self.backwards = config, backwards
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, steps: int) -> None:
        """Choose the timesteps of a path: int64, falling, or rising if ``backwards``."""
        last, shift = self.config.num_train_timesteps, self.config.shift
        level = np.arange(steps, 0, -1) / steps
        times = np.minimum(np.rint(last * shift * level / (1 + (shift - 1) * level)), last - 1).astype(int)
        if len(set(times.tolist())) < steps:
            raise ValueError(f"{steps} steps are more than a schedule of {last} timesteps and shift {shift} has")
        self.timesteps = torch.from_numpy(times[::-1].copy() if self.backwards else times)

    def add_noise(self, x: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents ``x`` ``(n, c, h, w)`` with ``noise`` as at the ``times`` int64 ``(n,)``."""
        level = (times.to(x.device) / self.config.num_train_timesteps).view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return (1 - level) * x + level * noise

    def step(self, predicted: Tensor, t: Tensor, x: Tensor) -> SimpleNamespace:
        """One step of the path from ``x``, which belongs to ``t``, as ``predicted``; its ``prev_sample`` is the end.

        Backwards, ``x`` belongs to the timestep before ``t``, and the step leads to ``t``.
        """
        path = [*self.timesteps.tolist(), 0] if not self.backwards else [0, *self.timesteps.tolist()]
        at = path.index(int(t))
        start, end = (path[at - 1], path[at]) if self.backwards else (path[at], path[at + 1])
        return SimpleNamespace(prev_sample=x + (end - start) / self.config.num_train_timesteps * predicted)


def trained_with(scheduler: SchedulerMixin | Flow) -> dict[str, Any]:
    """What a base's ``scheduler`` says of its training, as settings of any of diffusers' schedulers.

    InputError, with the class or the reason, if its noise is of another kind, or cannot be predicted.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    predicts, shift = config.get("prediction_type"), config.get("shift", config.get("flow_shift", 1.0))
    if isinstance(scheduler, Flow) or kind == "FlowMatchEulerDiscreteScheduler" or predicts == "flow_prediction":
        steps = int(config["num_train_timesteps"])
        return {"num_train_timesteps": steps, "prediction_type": "flow_prediction", "shift": float(shift)}
    if missing := [name for name in _TRAINED if name not in config]:
        raise InputError(
            f"the noise of a {kind} cannot be read ({missing[0]} is not set); schedules of betas (DDIM, DDPM, PNDM, "
            "Euler, …) and of flow matching are read"
        )
    if predicts not in _PREDICTIONS:
        raise InputError(f"the scheduler predicts {predicts!r}; 'epsilon' and 'v_prediction' models are supported")
    found = {name: config[name] for name in _TRAINED}
    if found["trained_betas"] is None and found["beta_schedule"] not in _BETAS:
        # Some classes know schedules that others do not; all keep the betas.
        found["trained_betas"] = scheduler.betas.tolist()
    found["rescale_betas_zero_snr"] = bool(config.get("rescale_betas_zero_snr"))
    if found["rescale_betas_zero_snr"] and predicts == "epsilon":
        raise InputError(
            "the schedule ends in pure noise (rescale_betas_zero_snr), of which no noise can be predicted (epsilon)"
        )
    return found


def ddim(scheduler: SchedulerMixin | Flow) -> DDIMScheduler | Flow:
    """The book's sampler for a base: DDIM in Stable Diffusion's manner, or `Flow`; a new one at each call.

    Steps are evenly spaced from timestep 1 ("leading"), from the last timestep ("trailing") where the schedule ends in
    pure noise (Lin et al. 2024). Nothing is clipped: latents are not confined to [-1, 1].
    The base's ``scheduler`` is of any class with betas, or a flow. InputError as `trained_with`.
    """
    trained = trained_with(scheduler)
    if "shift" in trained:
        return Flow(FrozenDict(trained))
    spacing = "trailing" if trained["rescale_betas_zero_snr"] else "leading"
    offset = 0 if trained["rescale_betas_zero_snr"] else 1
    return DDIMScheduler(
        **trained, clip_sample=False, set_alpha_to_one=False, steps_offset=offset, timestep_spacing=spacing
    )


def plms(scheduler: SchedulerMixin | Flow) -> PNDMScheduler:
    """Pseudo linear multistep (Liu et al. 2022), with DDIM's timesteps and without Runge–Kutta steps at the start.

    As in latent diffusion's own code. InputError as `trained_with` of the base's ``scheduler``; or the base is no
    diffusion that starts short of pure noise.
    """
    trained = trained_with(scheduler)
    if trained.pop("rescale_betas_zero_snr", True):
        raise InputError("sampler: plms is for schedules of betas that end short of pure noise; set ddim")
    return PNDMScheduler(**trained, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)


def inversion(scheduler: SchedulerMixin | Flow) -> DDIMInverseScheduler | Flow:
    """`ddim` backwards, from an image to noise (Song et al. 2021), for a base's ``scheduler``."""
    forward = ddim(scheduler)
    if isinstance(forward, Flow):
        return Flow(forward.config, backwards=True)
    return DDIMInverseScheduler.from_config(forward.config)


def noising(scheduler: SchedulerMixin | Flow) -> DDPMScheduler | Flow:
    """What adds noise to latents as in the training of a base with this ``scheduler``."""
    trained = trained_with(scheduler)
    return Flow(FrozenDict(trained)) if "shift" in trained else DDPMScheduler(**trained, clip_sample=False)


def prediction_target(schedule: SchedulerMixin | Flow, x: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the network is trained to predict: the noise, the velocity (Salimans & Ho 2022), or the flow.

    Of a ``schedule`` of `noising`, clean latents ``x`` ``(n, c, h, w)``, their ``noise``, and ``times`` int64 ``(n,)``.
    """
    kind = schedule.config.prediction_type
    if kind == "v_prediction":
        return schedule.get_velocity(x, noise, times)
    return noise - x if kind == "flow_prediction" else noise


def seeded_noise(shape: Sequence[int], *key: int) -> Tensor:
    """Standard normal noise float32 ``shape`` that depends on the integers ``key`` alone, on every device."""
    seed = int(np.random.default_rng(key).integers(2**63))
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def draw(
    pipeline: Any,
    x: Tensor,
    text: Tensor,
    empty: Tensor,
    *,
    steps: int,
    guidance: float,
    before: Callable[[int], None] = lambda t: None,
    sampler: Callable[[SchedulerMixin], Any] = ddim,
) -> Tensor:
    """Latents ``(n, c, h, w)`` that the model draws from noise ``x``; none is added on the way.

    Args:
        pipeline: of `load_pipeline`; its own scheduler is not changed.
        x: standard normal noise ``(n, c, h, w)``.
        text: of `encode_text`, a row for each image.
        empty: of `encode_text` for the empty prompt, ``(1, length, width)``, away from which guidance leads.
        steps: of the path.
        guidance: scale of classifier-free guidance (Ho & Salimans 2022); up to 1 there is none, and ``empty`` is not
            used. With it the network runs on the rows of the empty prompt first, then on those of ``text``.
        before: called with each timestep before the network runs.
        sampler: `ddim` or `plms`.
    """
    schedule, guided = sampler(pipeline.scheduler), guidance > 1
    schedule.set_timesteps(steps)
    states = torch.cat([empty.expand(len(text), -1, -1), text]) if guided else text
    with text_read_once(pipeline.unet):
        for t in schedule.timesteps:
            before(int(t))
            predicted = denoise(pipeline.unet, torch.cat([x, x]) if guided else x, t, states)
            if guided:
                unconditional, conditional = predicted.chunk(2)
                predicted = unconditional + guidance * (conditional - unconditional)
            x = schedule.step(predicted, t, x).prev_sample
    return x

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from diffusers import DDPMScheduler, StableDiffusionPipeline
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from chestxai import models, profiles, runs, sources
from chestxai.finetune import draw, finetune, load_checkpoint, loop, training_pairs
from chestxai.finetune.checkpoints import tidy_run
from chestxai.profiles import FinetuneSettings
from chestxai.recipes import Recipe
from chestxai.runs import InputError, MissingError
from chestxai.studies import Finding
from tests import tiny
from tests.ports import free_port

TAUGHT = Recipe(text="learnable", attention="supervised", attention_weight=1.0, keys="frozen")
TOKENS = Recipe(text="learnable", attention="floor", attention_weight=1.0, prompts="finding tokens")
# Many of the others at once: half the time nothing of the text learns, then adapters that two anchors hold.
HELD = Recipe(text="lora:2", unet="lora:2", specials="silent", anchor=10.0, anchor_weights=1.0, schedule={"start": 0.5})
COLUMNS = ["step", "loss", "grad_norm", "lr", "seconds", "images_per_second"]

# Processes to be killed are forked from one that has imported everything and done nothing; those that train together
# start from nothing, as a launcher starts them.
PROCESSES = multiprocessing.get_context("forkserver")
LAUNCHED = multiprocessing.get_context("spawn")
PROCESSES.set_forkserver_preload(["chestxai.finetune", "chestxai.grounding"])


def settings(**changes) -> FinetuneSettings:
    defaults = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "text_learning_rate": 1e-3, "checkpoint_every": 2}
    return FinetuneSettings(**defaults | changes)


def studies(n: int = 6):
    return sources.load("phantom", split="train", n=n, size=32)


def predicting(pipeline, what: str):
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type=what)
    return pipeline


def weights(pipeline, part: str = "unet") -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in getattr(pipeline, part).state_dict().items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], **tolerance) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def log_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "train.csv")


# --- what is drawn ---------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 40), batch=st.integers(1, 24), seed=st.integers(0, 10))
@hypothesis_settings(deadline=None, max_examples=30)
def test_every_epoch_is_a_permutation(n, batch, seed):
    chosen = settings(batch_size=batch)
    order = np.concatenate([draw(i, seed, n, chosen, (1,), 1000)[0] for i in range(3 * n // batch + 1)])
    for epoch in range(len(order) // n):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_the_order_is_known():
    first = np.random.default_rng([7, 1, 0]).permutation(5)
    second = np.random.default_rng([7, 1, 1]).permutation(5)
    drawn = [draw(step, 7, 5, settings(batch_size=3), (4, 2, 2), 1000)[0].tolist() for step in range(3)]
    assert drawn == [first[:3].tolist(), [*first[3:], second[0]], second[1:4].tolist()]


def test_a_draw_depends_on_seed_and_step_alone():
    def all_of(step, seed):
        return draw(step, seed, 9, settings(batch_size=8, ucg=0.5), (4, 2, 2), 1000)

    for again in range(2):
        assert all(torch.equal(a, b) for a, b in zip(all_of(3, 0), all_of(3, 0), strict=True)), again
    for other in (all_of(4, 0), all_of(3, 1)):
        assert not any(torch.equal(a, b) for a, b in zip(all_of(3, 0), other, strict=True))


def test_noise_is_normal_timesteps_uniform_and_prompts_dropped_at_their_rate():
    n = 20_000
    _, noise, times, dropped = draw(0, 0, n, settings(batch_size=n, ucg=0.3), (4,), 1000)
    assert noise.shape == (n, 4)
    assert noise.dtype == torch.float32
    assert abs(noise.mean()) < 4 / (4 * n) ** 0.5
    assert abs(noise.std() - 1) < 0.01
    assert (times.min(), times.max()) == (0, 999)
    counts = np.bincount(times // 100, minlength=10)
    assert abs(counts - n / 10).max() < 4.5 * (n * 0.09) ** 0.5
    assert abs(dropped.float().mean() - 0.3) < 4 * (0.21 / n) ** 0.5
    for share in (0.0, 1.0):
        assert (draw(0, 0, n, settings(batch_size=64, ucg=share), (4,), 1000)[3] == bool(share)).all()


# --- the loop, against one written out -------------------------------------------------------------------------------


def by_hand(pipeline, given, chosen: FinetuneSettings, variant: str, seed: int = 0):
    """The same training, one image at a time, with plain torch: rows of (loss, norm, rate), and the averages."""
    images, prompts, _ = training_pairs(pipeline, given)
    schedule = pipeline.scheduler
    alphas = schedule.alphas_cumprod
    trained = [pipeline.unet] + [pipeline.text_encoder] * (variant == "learnable")
    rates = [chosen.learning_rate, chosen.text_learning_rate]
    groups = [{"params": list(m.parameters()), "lr": r} for m, r in zip(trained, rates, strict=False)]
    optimizer = torch.optim.AdamW(groups, weight_decay=chosen.weight_decay, foreach=False)
    everything = [p.requires_grad_(True) for group in groups for p in group["params"]]
    average = [p.detach().clone() for p in everything]
    latents = models.encode_images(pipeline, images)
    rows = []

    def weight(signal):
        """Of an error of the prediction: as much as an error of the image weighs (Hang et al. 2023, section 3.4)."""
        if chosen.min_snr is None:
            return 1
        snr = signal / (1 - signal)
        return min(snr, chosen.min_snr) / {"epsilon": snr, "v_prediction": snr + 1}[schedule.config.prediction_type]

    for step in range(chosen.steps):
        indices, noise, times, dropped = draw(step, seed, len(images), chosen, latents.shape[1:], 1000)
        losses = []
        for index, e, t, drop in zip(indices, noise, times, dropped, strict=True):
            x, prompt = latents[index], "" if drop else prompts[index]
            a, s = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
            states = models.text_states(pipeline.text_encoder, models.tokenize(pipeline, [prompt]))
            predicted = pipeline.unet((a * x + s * e)[None], t, states).sample[0]
            target = {"epsilon": e, "v_prediction": a * e - s * x}[schedule.config.prediction_type]
            losses.append(weight(float(alphas[t])) * ((predicted - target) ** 2).mean())
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in everything))
        warm = min(1.0, step / chosen.warmup) if chosen.warmup else 1.0
        for p in everything:
            p.grad *= min(1.0, chosen.max_grad_norm / float(norm))
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = warm * rate
        optimizer.step()
        decay = min(chosen.ema_decay, 1 - (1 + step) ** -0.75)
        average = [decay * old + (1 - decay) * p.detach() for old, p in zip(average, everything, strict=True)]
        rows.append((loss.item(), norm.item(), warm * chosen.learning_rate))
    names = [name for module in trained for name, _ in module.named_parameters()]
    return np.array(rows), dict(zip(names, average, strict=True))


@pytest.mark.parametrize(
    ("kind", "variant", "prediction", "weighting"),
    [
        ("sd", "frozen", "epsilon", {}),
        ("sd", "frozen", "v_prediction", {"min_snr": 0.4}),
        ("sd", "learnable", "v_prediction", {}),
        ("bert", "learnable", "epsilon", {"min_snr": 5}),
    ],
)
def test_it_equals_the_loop_written_out(tmp_path, kind, variant, prediction, weighting):
    chosen = settings(
        batch_size=3, warmup=2, max_grad_norm=0.05, ucg=0.4, ema_decay=0.5, weight_decay=0.1, text_learning_rate=5e-4
    ).model_copy(update=weighting)

    def fresh():
        return predicting(tiny.random_pipeline(kind), prediction)

    expected, average = by_hand(fresh(), studies(), chosen, variant)
    out = finetune(fresh(), studies(), chosen, tmp_path / "run", recipe=variant)
    log = log_of(out)
    assert draw(0, 0, 6, chosen, (1,), 10)[3].any()  # the empty prompt is in it
    np.testing.assert_allclose(log["loss"], expected[:, 0], rtol=1e-4)
    np.testing.assert_allclose(log["grad_norm"], expected[:, 1], rtol=1e-3)
    assert (log["grad_norm"] > chosen.max_grad_norm).all()  # clipping is in it
    np.testing.assert_allclose(log["lr"], [0, 5e-4, 1e-3, 1e-3])
    saved = {}
    for path in runs.Run(out).checkpoint(4).glob("*.safetensors"):
        saved |= runs.load_tensors(path)
    # Adam divides by the root of a squared gradient: where that is near zero, rounding decides.
    off = torch.cat([(saved[k] - average[k]).abs().flatten() for k in average])
    assert saved.keys() == average.keys()
    assert off.quantile(0.99) < 1e-5
    assert off.max() < 2e-4


def test_another_kind_of_prediction_is_refused(tmp_path):
    pipeline = tiny.random_pipeline("sd")
    predicting(pipeline, "sample")
    with pytest.raises(ValueError, match="predicts 'sample'"):
        finetune(pipeline, studies(), settings(), tmp_path)


@pytest.mark.parametrize("recipe", ["learnable", Recipe(text="learnable", anchor=10.0)], ids=["learnable", "anchor"])
def test_accumulated_gradients_equal_the_big_batch(tmp_path, recipe):
    results = []
    for parts in (1, 4):
        pipeline, chosen = tiny.random_pipeline("sd"), settings(steps=3, accumulate=parts)
        out = finetune(pipeline, studies(), chosen, tmp_path / str(parts), recipe=recipe)
        results.append((log_of(out), weights(pipeline), weights(pipeline, "text_encoder")))
    np.testing.assert_allclose(results[0][0]["loss"], results[1][0]["loss"], rtol=1e-4)
    np.testing.assert_allclose(results[0][0]["grad_norm"], results[1][0]["grad_norm"], rtol=1e-3)
    for part in (1, 2):
        close(results[0][part], results[1][part], atol=2e-4, rtol=0)


def test_two_images_are_learnt(tmp_path):
    pipeline = tiny.random_pipeline("sd")
    chosen = settings(steps=40, batch_size=4, learning_rate=6e-3, ucg=0, checkpoint_every=40, ema_decay=0.9)
    out = finetune(pipeline, studies(2), chosen, tmp_path)
    loss = log_of(out)["loss"]
    assert loss.tail(10).mean() < 0.5 * loss.head(5).mean()
    about = runs.read_json(out / "run.json")
    assert about["final_loss"] == pytest.approx(loss.tail(50).mean(), rel=1e-4)


# --- what a run leaves -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A finished run of each variant, with the pipeline before and after."""
    out = {}
    for variant in ("frozen", "learnable"):
        pipeline = tiny.random_pipeline("sd")
        before = {part: weights(pipeline, part) for part in ("unet", "text_encoder", "vae")}
        folder = finetune(pipeline, studies(), settings(steps=5), tmp_path_factory.mktemp(variant), recipe=variant)
        out[variant] = SimpleNamespace(folder=folder, before=before, pipeline=pipeline)
    return out


def test_frozen_leaves_the_text_encoder_to_the_bit_and_learnable_changes_it(both):
    for variant, run in both.items():
        stays = equal(run.before["text_encoder"], weights(run.pipeline, "text_encoder"))
        assert stays == (variant == "frozen")
        assert equal(run.before["vae"], weights(run.pipeline, "vae"))
        assert not equal(run.before["unet"], weights(run.pipeline))


def test_both_variants_start_from_the_same_loss(both):
    losses = {variant: log_of(run.folder)["loss"] for variant, run in both.items()}
    assert losses["frozen"][0] == losses["learnable"][0]
    assert losses["frozen"][4] != losses["learnable"][4]


def test_a_run_leaves_exactly_these_files(both):
    model = [
        "model/model_index.json",
        "model/scheduler/scheduler_config.json",
        "model/text_encoder/config.json",
        "model/text_encoder/model.safetensors",
        "model/tokenizer/tokenizer.json",
        "model/tokenizer/tokenizer_config.json",
        "model/unet/config.json",
        "model/unet/diffusion_pytorch_model.safetensors",
        "model/vae/config.json",
        "model/vae/diffusion_pytorch_model.safetensors",
    ]
    for variant, parts in {"frozen": ["unet"], "learnable": ["text_encoder", "unet"]}.items():
        saved = [f"checkpoints/step-{step}/{part}.safetensors" for step in (2, 4, 5) for part in parts]
        found = files(both[variant].folder)
        assert found == sorted([*saved, *model, "identity.txt", "run.json", "train.csv"])


def test_the_log_has_one_row_a_step(both):
    for run in both.values():
        log = log_of(run.folder)
        assert list(log.columns) == COLUMNS
        assert log["step"].tolist() == [1, 2, 3, 4, 5]
        assert np.isfinite(log.to_numpy()).all()
        assert (np.diff(log["seconds"], prepend=0) > 0).all()
        spent = np.diff(log["seconds"], prepend=0)
        np.testing.assert_allclose(log["images_per_second"], 4 / spent, rtol=1e-2)


def test_the_record_of_a_run_is_complete(both):
    for variant, run in both.items():
        about = runs.read_json(run.folder / "run.json")
        assert about["finished"] is True
        assert (about["variant"], about["seed"], about["processes"]) == (variant, 0, 1)
        assert about["settings"] == settings(steps=5).model_dump()
        sections = {"impression": 5, "findings": 1}
        made = {"fingerprint": studies().fingerprint, "studies": 6, "sections": sections, "skipped": []}
        assert about["data"] == made | {"prompts_cut": 0}
        assert about["seconds"] == pytest.approx(log_of(run.folder)["seconds"].iloc[-1], abs=0.01)
        assert about["model"] == models.fingerprint(run.pipeline)
        assert about["versions"]["torch"] == torch.__version__
        assert runs.Run(run.folder).record()["identity"] == about["identity"]


def test_the_saved_model_the_last_checkpoint_and_the_pipeline_are_one(both):
    for run in both.values():
        stock = StableDiffusionPipeline.from_pretrained(run.folder / "model", safety_checker=None)
        checkpoint = load_checkpoint(tiny.random_pipeline("sd", seed=1), run.folder, 5)
        assert not run.pipeline.unet.training
        for part in ("unet", "text_encoder"):
            assert equal(weights(stock, part), weights(run.pipeline, part))
            assert not any(p.requires_grad for p in getattr(run.pipeline, part).parameters())
        assert equal(weights(checkpoint), weights(run.pipeline))
        assert runs.Run(run.folder).steps() == [2, 4, 5]


# --- running again ---------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(both, tmp_path):
    """A copy of the learnable run that a test may spoil."""
    shutil.copytree(both["learnable"].folder, tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_is_returned_at_once_with_its_weights(both, finished):
    stamps = {name: (finished / name).stat().st_mtime_ns for name in files(finished)}
    pipeline = tiny.random_pipeline("sd")
    for _ in range(2):  # the second time with the pipeline it has trained, as when a cell is run again
        assert finetune(pipeline, studies(), settings(steps=5), finished, recipe="learnable") == finished
        assert {name: (finished / name).stat().st_mtime_ns for name in files(finished)} == stamps
        for part in ("unet", "text_encoder"):
            assert equal(weights(pipeline, part), weights(both["learnable"].pipeline, part))


def test_the_trained_pipeline_finds_its_own_run(both, finished):
    stamp = (finished / "run.json").stat().st_mtime_ns
    finetune(both["learnable"].pipeline, studies(), settings(steps=5), finished, recipe="learnable")
    assert (finished / "run.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("change", ["settings", "base", "scheduler", "report", "finding"])
def test_a_run_made_otherwise_is_replaced_with_all_that_came_of_it(finished, change):
    for name in ("grounding.csv", "grounding-vilouras2024.csv", "sides.csv", "fidelity.json"):
        (finished / name).write_text("of the old model")
    (finished / "maps").mkdir()
    old = runs.read_json(finished / "run.json")
    pipeline, data = tiny.random_pipeline("sd", seed=1 if change == "base" else 0), studies()
    if change == "scheduler":
        predicting(pipeline, "v_prediction")
    if change == "report":
        data[0] = replace(data[0], report="Normal.")
    if change == "finding":
        data[0] = replace(data[0], findings=(*data[0].findings, Finding("Edema")))
    chosen = settings(steps=3, learning_rate=2e-3 if change == "settings" else 1e-3)
    finetune(pipeline, data, chosen, finished, recipe="learnable")
    new = runs.read_json(finished / "run.json")
    assert new["identity"] != old["identity"]
    assert new["model"] != old["model"]
    assert runs.Run(finished).steps() == [2, 3]
    assert not {p.name for p in finished.iterdir() if p.suffix == ".csv"} - {"train.csv"}
    assert not {"fidelity.json", "maps"} & {p.name for p in finished.iterdir()}


def test_a_run_that_cannot_start_does_not_cost_the_one_before(finished):
    with pytest.raises(ValueError, match="no study to train on"):
        finetune(tiny.random_pipeline("sd"), [replace(s, report="") for s in studies()], settings(), finished)
    assert runs.Run(finished).is_finished()


def test_where_the_base_was_loaded_from_is_no_difference(both, tmp_path):
    identities = []
    for name in ("here", "there"):
        folder = models.save_pipeline(tiny.random_pipeline("bert"), tmp_path / name)
        pipeline = models.load_pipeline(folder, device="cpu")
        out = finetune(pipeline, studies(), settings(steps=1), tmp_path / f"run-{name}")
        identities.append(runs.read_json(out / "run.json")["identity"])
    assert identities[0] == identities[1]


# --- killed, interrupted, damaged ------------------------------------------------------------------------------------

LONG = settings(steps=14, batch_size=2, checkpoint_every=3, warmup=4)


def train(
    out: Path,
    chosen: FinetuneSettings = LONG,
    kind: str = "sd",
    variant: str = "learnable",
    until: int | None = None,
) -> None:
    from chestxai.finetune import loop as module

    torch.set_num_threads(1)
    pipeline, original = tiny.random_pipeline(kind), module.draw
    if until is None:
        finetune(pipeline, studies(), chosen, out, recipe=variant)
        return

    def stopped(step, *rest):
        if step == until:
            raise KeyboardInterrupt
        return original(step, *rest)

    before = weights(pipeline)
    module.draw = stopped
    with pytest.raises(KeyboardInterrupt):
        finetune(pipeline, studies(), chosen, out, recipe=variant)
    module.draw = original
    assert equal(weights(pipeline), before)  # plain, and as it was given


def take_part(environment: dict[str, str], together: list[dict[str, Any]]) -> None:
    faulthandler.enable()  # were native code to crash, the report would say where
    os.environ.update(environment)
    for arguments in together:
        train(**arguments)


def train_on_two(how: str, *together: dict[str, Any]) -> None:
    """One run after the other, each by two processes as `torchrun --nproc-per-node 2` starts them: gloo on the CPU."""
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true",
    }
    if how == "fsdp":
        config = yaml.safe_load((profiles.DATA / "accelerate/fsdp.yaml").read_text())["fsdp_config"]
        common |= {"ACCELERATE_USE_FSDP": "true"} | {key.upper(): str(value) for key, value in config.items()}
    processes = []
    for rank in ("0", "1"):
        environment = common | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(LAUNCHED.Process(target=take_part, args=(environment, together)))
        processes[-1].start()
    for process in processes:
        wait(process, 900)


def wait(process, timeout: float = 240) -> None:
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    train(out)
    return out


def test_a_killed_run_goes_on_to_the_same_bits(undisturbed, tmp_path, kill):
    after = ("train.csv", "checkpoints/step-6")[kill % 2]
    process = PROCESSES.Process(target=train, args=(tmp_path,))
    process.start()
    limit = time.monotonic() + 60
    while not (tmp_path / after).exists():
        assert process.is_alive()
        assert time.monotonic() < limit
        time.sleep(0.001)
    # At any moment: between the files of a checkpoint, while one is written, in the steps that follow.
    time.sleep(random.random() * 0.1)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run.json").exists()
    left = log_of(tmp_path)
    kept = max([int(path.stem[5:]) for path in tmp_path.glob("resume/step-*.safetensors")], default=0)
    train(tmp_path)
    ours, theirs = log_of(tmp_path), log_of(undisturbed)
    np.testing.assert_array_equal(
        ours[["step", "loss", "grad_norm", "lr"]], theirs[["step", "loss", "grad_norm", "lr"]]
    )
    assert (np.diff(ours["seconds"]) > 0).all()
    np.testing.assert_array_equal(ours["seconds"][:kept], left["seconds"][:kept])  # elapsed time goes on
    assert files(tmp_path) == files(undisturbed)
    for path in undisturbed.rglob("*.safetensors"):
        one, two = runs.load_tensors(path), runs.load_tensors(tmp_path / path.relative_to(undisturbed))
        assert equal(one, two), path


def test_an_interrupted_call_gives_the_pipeline_back_and_goes_on(undisturbed, tmp_path, monkeypatch):
    """Ctrl-C in a notebook, then the cell once more; one parameter never has a gradient."""
    from chestxai.finetune import loop as module

    def base():
        pipeline = tiny.random_pipeline("sd")
        pipeline.unet.conv_in.register_parameter("unused", torch.nn.Parameter(torch.ones(2), requires_grad=False))
        return pipeline

    chosen = settings(steps=6)
    whole = finetune(base(), studies(), chosen, tmp_path / "whole")
    pipeline, original = base(), module.draw
    before = weights(pipeline)

    def interrupted(step, *rest):
        if step == 3:
            raise KeyboardInterrupt
        return original(step, *rest)

    monkeypatch.setattr(module, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(pipeline, studies(), chosen, tmp_path / "run")
    assert equal(weights(pipeline), before)
    assert not pipeline.unet.training
    assert not any(p.requires_grad for p in pipeline.unet.parameters())
    monkeypatch.setattr(module, "draw", original)
    finetune(pipeline, studies(), chosen, tmp_path / "run")
    assert log_of(tmp_path / "run")["loss"].tolist() == log_of(whole)["loss"].tolist()
    assert equal(*(runs.load_tensors(out / "checkpoints/step-6/unet.safetensors") for out in (tmp_path / "run", whole)))


@pytest.mark.parametrize(
    "recipe", [{"text": "lora:2"}, {"text": "random"}, {"unet": "lora:2"}, {"prompts": "finding tokens"}], ids=str
)
def test_a_cell_that_was_interrupted_goes_on_with_the_pipeline_that_it_prepared(recipe, tmp_path, monkeypatch):
    """Adapters, tokens and random weights stay; the base of the run is still what it was before."""
    from chestxai.finetune import loop as module

    def call(pipeline, out):
        return finetune(pipeline, studies(), settings(steps=5), out, recipe=Recipe.model_validate(recipe))

    whole, original = call(tiny.random_pipeline("bert"), tmp_path / "whole"), module.draw
    pipeline, steps = tiny.random_pipeline("bert"), []

    def interrupted(step, *rest):
        steps.append(step)
        if step == 4 and len(steps) == 5:
            raise KeyboardInterrupt
        return original(step, *rest)

    monkeypatch.setattr(module, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(pipeline, tmp_path / "run")
    for _ in range(2):  # the third call finds the run finished
        call(pipeline, tmp_path / "run")
    assert steps[5:] == [4]
    records = [runs.read_json(folder / "run.json") for folder in (tmp_path / "run", whole)]
    assert records[0]["identity"] == records[1]["identity"]
    assert records[0]["model"] == records[1]["model"]


def test_a_trained_pipeline_does_not_replace_a_run_of_its_base(finished):
    pipeline = tiny.random_pipeline("sd")
    load_checkpoint(pipeline, finished, 2)
    before = files(finished)
    with pytest.raises(InputError, match=r"holds a run of a fresh base, and this pipeline is trained: load its base"):
        finetune(pipeline, studies(), settings(steps=5), finished, recipe="learnable")
    assert files(finished) == before


def test_an_interrupted_training_does_not_make_a_trained_pipeline_fresh(finished, tmp_path, monkeypatch):
    pipeline = load_checkpoint(tiny.random_pipeline("sd"), finished, 2)
    monkeypatch.setattr(loop, "draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finetune(pipeline, studies(), settings(steps=5), tmp_path / "another", recipe="learnable")
    with pytest.raises(InputError, match="this pipeline is trained"):
        finetune(pipeline, studies(), settings(steps=5), finished, recipe="learnable")


def test_what_fails_leaves_the_pipeline_fresh(finished, tmp_path, monkeypatch):
    """A full disk while the model is written, and a damaged checkpoint: the next call goes on."""
    pipeline, recipe = tiny.random_pipeline("sd"), Recipe.model_validate({"text": "lora:2"})

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(loop.models, "save_pipeline", full)
        with pytest.raises(OSError, match="No space"):
            finetune(pipeline, studies(), settings(steps=2), tmp_path / "run", recipe=recipe)
    finetune(pipeline, studies(), settings(steps=2), tmp_path / "run", recipe=recipe)
    fresh = tiny.random_pipeline("sd")
    (finished / "checkpoints/step-2/unet.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged or missing"):
        load_checkpoint(fresh, finished, 2)
    finetune(fresh, studies(), settings(steps=2), finished, recipe="frozen")


def test_a_checkpoint_of_an_unfinished_run_needs_its_recipe(finished):
    (finished / "run.json").unlink()
    with pytest.raises(MissingError, match=r"run\.json is missing, which names the recipe; make it .* or pass recipe="):
        load_checkpoint(tiny.random_pipeline("sd"), finished, 2)
    load_checkpoint(tiny.random_pipeline("sd"), finished, 2, Recipe(text="learnable"))


@pytest.mark.parametrize("stopped", [False, True])
def test_bfloat16_does_not_round_what_does_not_learn(tmp_path, monkeypatch, stopped):
    from chestxai.finetune import loop as module

    pipeline, chosen = tiny.random_pipeline("bert"), settings(steps=2, precision="bf16", weights="bf16")
    before = weights(pipeline) | {f"text {name}": p for name, p in weights(pipeline, "text_encoder").items()}
    if stopped:
        monkeypatch.setattr(module._Training, "_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if stopped else nullcontext():
        finetune(pipeline, studies(), chosen, tmp_path, recipe=Recipe(text="last:1", unet="lora:2"))
    after = weights(pipeline) | {f"text {name}": p for name, p in weights(pipeline, "text_encoder").items()}
    after = {name.replace(".base_layer", ""): value for name, value in after.items()}
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    last = [name for name in before if name.startswith("text") and ".layer.1." in name]
    assert set(changed) <= {*last}
    assert bool(changed) != stopped


def test_bfloat16_does_not_round_the_positions_of_a_transformer(tmp_path):
    pipeline, chosen = tiny.random_kind("pixart-alpha"), settings(steps=1, precision="bf16", weights="bf16")
    before = {name: buffer.clone() for name, buffer in pipeline.unet.named_buffers()}
    assert any(buffer.is_floating_point() for buffer in before.values())
    finetune(pipeline, studies(), chosen, tmp_path, recipe=Recipe(unet="lora:2"))
    after = {name.replace(".base_layer", ""): buffer for name, buffer in pipeline.unet.named_buffers()}
    assert all(torch.equal(buffer, after[name]) for name, buffer in before.items())


def test_a_long_way_to_the_next_checkpoint_is_saved_on_the_way(undisturbed, tmp_path, monkeypatch):
    from chestxai.finetune import loop as module

    far, drawn, original = LONG.model_copy(update={"checkpoint_every": 99}), [], module.draw

    def recorded(step, *rest):
        drawn.append(step)
        if step == 9 and drawn.count(9) == 1:
            raise KeyboardInterrupt
        return original(step, *rest)

    monkeypatch.setattr(module, "draw", recorded)
    monkeypatch.setattr(module, "_SAVE_AFTER", 0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, far)
    assert not runs.Run(tmp_path).steps()  # saved to go on, not to be scored
    train(tmp_path, far)
    assert 0 < drawn[10] <= 9
    assert log_of(tmp_path)["loss"].tolist() == log_of(undisturbed)["loss"].tolist()
    last = [runs.load_tensors(out / "checkpoints/step-14/unet.safetensors") for out in (tmp_path, undisturbed)]
    assert equal(*last)
    assert not (tmp_path / "resume").exists()


def test_a_stop_while_the_model_is_written_costs_no_training(tmp_path, monkeypatch):
    from chestxai.finetune import loop as module

    def stopped(_):
        raise KeyboardInterrupt

    pipeline = tiny.random_pipeline("sd")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.vae, "save_pretrained", stopped)  # when the U-Net has been written
        with pytest.raises(KeyboardInterrupt):
            finetune(pipeline, studies(), settings(), tmp_path)
    assert not runs.Run(tmp_path).is_finished()
    monkeypatch.setattr(module, "draw", lambda *_: pytest.fail("it trains again"))
    finetune(pipeline, studies(), settings(), tmp_path)
    assert runs.Run(tmp_path).is_finished()
    assert equal(weights(models.load_pipeline(tmp_path / "model", device="cpu")), weights(pipeline))
    assert equal(runs.load_tensors(runs.Run(tmp_path).checkpoint(4) / "unet.safetensors"), weights(pipeline))


def test_a_kill_before_the_record_costs_no_training(tmp_path, monkeypatch):
    from chestxai.finetune import loop as module

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        with pytest.raises(OSError, match="killed here"):
            finetune(tiny.random_pipeline("sd"), studies(), settings(), tmp_path)
    monkeypatch.setattr(module, "draw", lambda *_: pytest.fail("it trains again"))
    finetune(tiny.random_pipeline("sd"), studies(), settings(), tmp_path)
    assert runs.Run(tmp_path).is_finished()


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was(tmp_path):
    pipeline = tiny.random_pipeline("sd")
    before = weights(pipeline)
    # No profile may say so.
    chosen = settings(steps=12, checkpoint_every=1).model_copy(update={"learning_rate": 1e25})
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d+; lower the learning rate"):
        finetune(pipeline, studies(), chosen, tmp_path)
    assert 1 in runs.Run(tmp_path).steps()
    assert log_of(tmp_path)["step"].tolist() == runs.Run(tmp_path).steps()
    assert not (tmp_path / "run.json").exists()
    assert not (tmp_path / "model").exists()
    assert equal(weights(pipeline), before)


def test_damaged_files_are_named(finished, tmp_path):
    path = runs.Run(finished).checkpoint(2) / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"step-2/unet.safetensors: damaged or missing; remove .* and fine-tune again"):
        load_checkpoint(tiny.random_pipeline("sd"), finished, 2)
    path.unlink()
    with pytest.raises(ValueError, match=r"step-2/unet.safetensors: damaged or missing"):
        load_checkpoint(tiny.random_pipeline("sd"), finished, 2)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3; there are \[2, 4, 5\]"):
        load_checkpoint(tiny.random_pipeline("sd"), finished, 3)
    with pytest.raises(FileNotFoundError, match="there are none"):
        load_checkpoint(tiny.random_pipeline("sd"), tmp_path / "nowhere", 3)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("damage", [_flip, _cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_state_is_told_and_the_one_before_it_used(undisturbed, tmp_path, monkeypatch, damage, damaged):
    from chestxai.finetune import loop as module

    with monkeypatch.context() as patch:
        patch.setattr(models, "save_pipeline", lambda *_: (_ for _ in ()).throw(OSError("the disk has gone")))
        with pytest.raises(OSError, match="the disk has gone"):
            train(tmp_path)
    states = sorted(tmp_path.glob("resume/*"), key=lambda path: int(path.stem[5:]))
    assert [path.name for path in states] == ["step-12.safetensors", "step-14.safetensors"]
    for path in states[-damaged:]:
        damage(path)
    steps = []
    original = module.draw
    monkeypatch.setattr(module, "draw", lambda step, *rest: steps.append(step) or original(step, *rest))
    with pytest.warns(UserWarning, match=r"resume/step-\d+.safetensors: damaged.*Resuming from an earlier"):
        train(tmp_path)
    assert steps == list(range(12 if damaged == 1 else 0, 14))
    assert files(tmp_path) == files(undisturbed)
    assert log_of(tmp_path)["loss"].tolist() == log_of(undisturbed)["loss"].tolist()
    for path in undisturbed.rglob("*.safetensors"):
        assert equal(runs.load_tensors(path), runs.load_tensors(tmp_path / path.relative_to(undisturbed))), path


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(finished):
    pipeline = tiny.random_pipeline("bert")
    before = weights(pipeline), weights(pipeline, "text_encoder")
    with pytest.raises(ValueError, match=r"step-5/text_encoder.safetensors: does not fit the model"):
        load_checkpoint(pipeline, finished, 5)
    assert equal(before[0], weights(pipeline))
    assert equal(before[1], weights(pipeline, "text_encoder"))
    path = runs.Run(finished).checkpoint(5) / "unet.safetensors"
    tensors = runs.load_tensors(path)
    name = "conv_in.bias"
    for bad, shown in (
        ({name: torch.zeros(3)}, r"\(3,\) in the file, \(16,\) in"),
        ({"more": torch.zeros(1)}, "'more' is"),
    ):
        runs.save_tensors(path, tensors | bad)
        with pytest.raises(ValueError, match=shown):
            load_checkpoint(tiny.random_pipeline("sd"), finished, 5)


def test_too_little_space_is_told_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    pipeline = tiny.random_pipeline("sd")
    size = sum(4 * p.numel() for p in pipeline.unet.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9 * size))
    with pytest.raises(OSError, match=r"needs about 0.0 GB.*free some space, or raise finetune.checkpoint_every"):
        finetune(pipeline, studies(), settings(), tmp_path)
    assert files(tmp_path) == []
    # What is there already counts: a run that is nearly done must not ask for all of it again.
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume/step-1.safetensors").write_bytes(bytes(12 * size))
    finetune(pipeline, studies(), settings(steps=1), tmp_path)
    assert runs.Run(tmp_path).is_finished()
    # A run of other code is kept, so it makes no room.
    (tmp_path / "more").write_bytes(bytes(12 * size))
    monkeypatch.setattr(loop, "_code", lambda _: "0123456789abcdef")
    with pytest.raises(OSError, match="free some space"):
        finetune(tiny.random_pipeline("sd"), studies(), settings(steps=1), tmp_path)
    assert runs.Run(tmp_path).is_finished()


# --- data ------------------------------------------------------------------------------------------------------------


def test_studies_that_cannot_be_used_are_left_out_and_listed(tmp_path):
    data = studies(4)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data[1] = replace(data[1], report="IMPRESSION:  XXXX.")
    data[2] = replace(data[2], array=None, path=tmp_path / "broken.png")
    data[3] = replace(data[3], report="IMPRESSION: " + "Small left effusion. " * 60)
    out = finetune(tiny.random_pipeline("sd"), data, settings(steps=1), tmp_path / "run")
    about = runs.read_json(out / "run.json")["data"]
    assert (about["studies"], about["prompts_cut"]) == (2, 1)
    empty, broken = about["skipped"]
    assert empty.startswith(f"{data[1].id}: empty report")
    assert broken.startswith(f"{data[2].id}: {tmp_path / 'broken.png'}: not a readable image")
    images, prompts, skipped = training_pairs(tiny.random_pipeline("sd"), data)
    assert images.shape == (2, 32, 32)
    assert images.dtype == np.uint8
    assert len(prompts) == 2
    assert skipped == about["skipped"]
    for nothing in ([], data[1:3]):
        with pytest.raises(ValueError, match=f"no study to train on: {len(nothing)} given"):
            finetune(tiny.random_pipeline("sd"), nothing, settings(), tmp_path / "none")


def test_latents_are_cached_by_what_they_are_made_of(tmp_path, monkeypatch):
    original, calls = models.encode_images, []

    def counted(pipeline, images):
        calls.append(len(images))
        return original(pipeline, images)

    monkeypatch.setattr(models, "encode_images", counted)
    data = studies()
    (tmp_path / "broken.png").write_bytes(b"")
    data[2] = replace(data[2], array=None, path=tmp_path / "broken.png")

    def run(name, scale=0.2, images=data):
        pipeline = tiny.random_pipeline("sd")
        pipeline.vae.register_to_config(scaling_factor=scale)
        return finetune(pipeline, images, settings(steps=1), tmp_path / name, cache=tmp_path / "cache")

    first, again = run("first"), run("again")
    assert calls == [5]
    assert log_of(first)["loss"].tolist() == log_of(again)["loss"].tolist()
    assert [len(runs.read_json(out / "run.json")["data"]["skipped"]) for out in (first, again)] == [1, 1]
    run("scaled", scale=0.3)
    other = list(data)
    other[0] = replace(data[0], array=data[0].array[::-1])  # the same sum of pixels
    run("changed", images=other)
    assert calls == [5, 5, 5]
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"latents-.*damaged"):
        run("damaged")


def test_images_are_not_all_in_memory_at_once(tmp_path, monkeypatch):
    from chestxai.finetune import latents as module

    original, calls = models.encode_images, []
    monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr(models, "encode_images", lambda p, x: calls.append(len(x)) or original(p, x))
    data = studies(9)
    (tmp_path / "broken.png").write_bytes(b"")
    for i in (4, 5, 6, 7):  # a whole chunk that cannot be read
        data[i] = replace(data[i], array=None, path=tmp_path / "broken.png")
    out = finetune(tiny.random_pipeline("sd"), data, settings(steps=1), tmp_path / "run")
    assert calls == [4, 1]
    assert [line.split(":")[0] for line in runs.read_json(out / "run.json")["data"]["skipped"]] == [
        s.id for s in data[4:8]
    ]


# --- precision and processes -----------------------------------------------------------------------------------------


def test_low_precision_trains_and_hands_back_a_plain_model(tmp_path):
    losses = {}
    # accelerate by itself refuses a second precision in one process
    for precision, variant in (("no", "frozen"), ("bf16", "frozen"), ("bf16", "learnable"), ("no", "learnable")):
        pipeline, out = tiny.random_pipeline("sd"), tmp_path / precision / variant
        forward = pipeline.unet.forward
        finetune(pipeline, studies(), settings(steps=2, precision=precision), out, recipe=variant)
        losses[precision, variant] = log_of(out)["loss"]
        assert pipeline.unet.forward == forward
        assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float32}
    np.testing.assert_allclose(losses["bf16", "frozen"], losses["no", "frozen"], rtol=0.05)
    assert losses["bf16", "frozen"][0] != losses["no", "frozen"][0]
    assert losses["bf16", "frozen"][0] == pytest.approx(losses["bf16", "learnable"][0], rel=1e-5)


SAVERS = {"gradient_checkpointing": True, "averages": "cpu"}


@pytest.mark.parametrize("recipe", ["learnable", TAUGHT], ids=["learnable", "taught"])
def test_less_memory_is_the_same_training(tmp_path, recipe):
    whole, saving = (
        finetune(tiny.random_pipeline("bert"), studies(), settings(**more), tmp_path / str(len(more)), recipe=recipe)
        for more in ({}, SAVERS)
    )
    np.testing.assert_allclose(log_of(saving)["loss"], log_of(whole)["loss"], rtol=1e-5)
    for path in (whole / "checkpoints").rglob("*.safetensors"):
        close(runs.load_tensors(saving / path.relative_to(whole)), runs.load_tensors(path), atol=1e-5, rtol=0)


def test_weights_in_bfloat16_have_float32_averages_and_resume(tmp_path):
    chosen = settings(steps=3, checkpoint_every=1, precision="bf16", weights="bf16", averages="cpu")
    train(tmp_path / "whole", chosen, kind="bert")
    train(tmp_path / "run", chosen, kind="bert", until=2)
    state = runs.load_tensors(tmp_path / "run" / "resume" / "step-2.safetensors")
    kinds = {key.split("/")[0]: value.dtype for key, value in state.items() if value.ndim}
    assert kinds.pop("average") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
    train(tmp_path / "run", chosen, kind="bert")
    one, two = (runs.Run(tmp_path / name) for name in ("whole", "run"))
    assert one.record()["model"] == two.record()["model"]
    assert {p.dtype for p in models.load_pipeline(one.model, device="cpu").unet.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="weights bf16 need precision bf16, not 'no'"):
        settings(weights="bf16")


def test_an_optimizer_that_is_not_installed_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "find_spec", lambda name: None)
    with pytest.raises(runs.MissingError, match=r"adamw8bit needs bitsandbytes: .*pip install bitsandbytes"):
        finetune(tiny.random_pipeline("sd"), studies(), settings(optimizer="adamw8bit"), tmp_path / "run")
    assert files(tmp_path) == []


@pytest.mark.parametrize(("place", "steps"), [("encoding", []), ("pass", [2]), ("backward", [2]), ("optimizer", [2])])
def test_out_of_memory_names_the_settings_and_loses_nothing(tmp_path, monkeypatch, place, steps):
    """Wherever a GPU may be full: finished checkpoints stay, the networks are as they were, and the run goes on."""
    pipeline, calls = tiny.random_pipeline("sd"), 0

    def full(original, after):
        def run(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total …")
            return original(*arguments, **options)

        return run

    owner, name, after = {
        "encoding": (pipeline.vae, "encode", 0),
        "pass": (pipeline.unet, "forward", 2),
        "backward": (torch.Tensor, "backward", 2),
        "optimizer": (torch.optim.AdamW, "step", 2),
    }[place]
    before = models.fingerprint(pipeline)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full(getattr(owner, name), after))
        advice = r"CUDA out of memory: in the profile, raise finetune\.accumulate \(now 1;"
        with pytest.raises(runs.InputError, match=advice):
            finetune(pipeline, studies(), settings(), tmp_path)
    assert runs.Run(tmp_path).steps() == steps
    assert models.fingerprint(pipeline) == before
    assert not any(p.requires_grad for p in pipeline.unet.parameters())
    finetune(pipeline, studies(), settings(), tmp_path)
    assert log_of(tmp_path)["step"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
    ],
    ids=str,
)
def test_the_environment_does_not_bend_a_run(both, tmp_path, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    out = finetune(tiny.random_pipeline("sd"), studies(), settings(steps=5), tmp_path)
    assert log_of(out)["loss"].tolist() == log_of(both["frozen"].folder)["loss"].tolist()
    assert runs.Run(out).record()["environment"] == {"NVIDIA_TF32_OVERRIDE": "0"}


@pytest.mark.parametrize("name", ["ACCELERATE_TORCH_DEVICE", "ACCELERATE_USE_PARALLELISM_CONFIG"])
def test_a_variable_that_no_profile_has_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(runs.InputError, match=f"the variable {name} is 'true', which no profile asks for: unset it"):
        finetune(tiny.random_pipeline("sd"), studies(), settings(), tmp_path / "run")
    assert files(tmp_path) == []


def test_embeddings_that_do_not_fit_into_memory_are_made_again_each_step(both, tmp_path, monkeypatch):
    from chestxai.finetune import loop as module

    monkeypatch.setattr(module, "_TEXT_CACHE", 0)
    out = finetune(tiny.random_pipeline("sd"), studies(), settings(steps=5), tmp_path)
    np.testing.assert_allclose(log_of(out)["loss"], log_of(both["frozen"].folder)["loss"], rtol=1e-4)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size 4 is not a multiple of accumulate 3"):
        settings(accumulate=3)
    with pytest.raises(ValueError, match=r"(?s)text.*should match pattern"):
        finetune(tiny.random_pipeline("sd"), studies(), settings(), tmp_path, recipe="thawed")


@pytest.mark.parametrize(
    ("how", "variants"), [("ddp", ["learnable", TAUGHT, TOKENS, HELD]), ("fsdp", ["frozen", TAUGHT])]
)
def test_two_processes_equal_one(tmp_path, how, variants):
    def runs_in(folder):
        chosen = settings(steps=4, accumulate=2, checkpoint_every=4)
        common = {"chosen": chosen, "kind": "bert"}
        return [{"out": tmp_path / folder / str(i), "variant": v, **common} for i, v in enumerate(variants)]

    train_on_two(how, *runs_in("two"))
    for arguments in runs_in("one"):
        train(**arguments)
    for i in range(len(variants)):
        one, two = (tmp_path / folder / str(i) for folder in ("one", "two"))
        about = json.loads((two / "run.json").read_text())
        assert about["processes"] == 2
        np.testing.assert_allclose(log_of(two)["loss"], log_of(one)["loss"], rtol=1e-4)
        np.testing.assert_allclose(log_of(two)["grad_norm"], log_of(one)["grad_norm"], rtol=1e-3)
        assert files(two) == files(one)
        for path in one.rglob("*.safetensors"):
            a, b = runs.load_tensors(path), runs.load_tensors(two / path.relative_to(one))
            assert a.keys() == b.keys()
            # Adam takes full steps along gradients that are nothing but rounding.
            apart = torch.cat([((a[name] - b[name]).abs() > 2e-4).flatten() for name in a])
            assert apart.float().mean() < 1e-4, path


def refused(out: str, environment: dict[str, str], recipe: Recipe, message: str) -> None:
    os.environ.update(environment)
    with pytest.raises(ValueError, match=message):
        finetune(tiny.random_pipeline("sd"), studies(), settings(), Path(out), recipe=recipe)


@pytest.mark.parametrize(
    ("version", "recipe", "message"),
    [
        ("1", Recipe(), r"version 2 of FSDP, not FSDP version 1: use data/accelerate/ddp.yaml or"),
        ("2", HELD, "anchor_weights: not under FSDP"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_anything_is_done(tmp_path, version, recipe, message):
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1")
    environment |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": version}
    process = PROCESSES.Process(target=refused, args=(str(tmp_path), environment, recipe, message))
    process.start()
    wait(process)
    assert files(tmp_path) == []


def test_a_sharded_run_is_gone_on_with_by_one_process_and_the_other_way_round(tmp_path):
    chosen = settings(steps=3, checkpoint_every=1, warmup=3)
    whole, gathered, spread = tmp_path / "whole", tmp_path / "gathered", tmp_path / "spread"
    train(whole, chosen)
    train(spread, chosen, until=2)
    train_on_two("fsdp", {"out": gathered, "chosen": chosen, "until": 1}, {"out": spread, "chosen": chosen})
    assert runs.Run(gathered).steps() == [1]
    train(gathered, chosen)
    for mixed in (gathered, spread):
        np.testing.assert_allclose(log_of(mixed)["loss"], log_of(whole)["loss"], rtol=1e-4)
        np.testing.assert_allclose(log_of(mixed)["grad_norm"], log_of(whole)["grad_norm"], rtol=1e-3)
        for part in ("unet", "text_encoder"):
            a, b = (runs.load_tensors(out / f"checkpoints/step-3/{part}.safetensors") for out in (mixed, whole))
            close(a, b, atol=2e-4, rtol=0)


def test_the_loop_keeps_the_schedule_of_the_base(both):
    base, trained = tiny.random_pipeline("sd").scheduler.config, both["frozen"].pipeline.scheduler.config
    assert DDPMScheduler.from_config(base).alphas_cumprod.equal(DDPMScheduler.from_config(trained).alphas_cumprod)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_leaves_the_run_where_the_book_finds_it(tmp_path, capsys):
    from chestxai.finetune import main

    text = (profiles.DATA / "profiles/smoke.yaml").read_text()
    path = tmp_path / "own.yaml"
    path.write_text(text.replace("train: 48", "train: 8").replace("steps: 8", "steps: 2").replace("size: 8", "size: 4"))
    options = ["--profile", str(path), "--variant", "learnable", "--seed", "3", "--out", str(tmp_path / "runs")]
    assert main(options) == 0
    profile = profiles.load(path)
    run = profiles.run(profile, "learnable", 3, tmp_path / "runs").folder
    assert capsys.readouterr().out == f"{run}: finished\n"
    about = runs.read_json(run / "run.json")
    assert (about["variant"], about["seed"], about["settings"]["steps"]) == ("learnable", 3, 2)
    written = (run / "run.json").stat().st_mtime_ns
    # As chapter 2 calls it.
    data = profiles.studies(profile, "train")
    finetune(
        models.load_pipeline(profile.base),
        data,
        profile.finetune,
        run,
        recipe="learnable",
        seed=3,
        fit=profile.data.fit,
        cache=profiles.profile_folder(profile, tmp_path / "runs") / "cache",
    )
    assert (run / "run.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"no variant .thawed.: choose one of frozen, learnable"):
        main([*options, "--variant", "thawed"])


def test_a_run_of_other_code_is_moved_aside_and_never_deleted(finished, monkeypatch):
    old = runs.read_json(finished / "run.json")
    monkeypatch.setattr(loop, "_code", lambda _: "0123456789abcdef")
    with pytest.warns(UserWarning, match=r"code has changed; the run of the old code is kept in .*run\.before-"):
        finetune(tiny.random_pipeline("sd"), studies(), settings(steps=5), finished, recipe="learnable")
    (kept,) = finished.parent.glob("run.before-*")
    assert runs.read_json(kept / "run.json") == old
    assert runs.read_json(finished / "run.json")["identity"] != old["identity"]
    # Nor when the old code comes back, begins again, and goes again.
    new = runs.read_json(finished / "run.json")["identity"]
    for identity in (old["identity"], new):
        with pytest.warns(UserWarning, match="code has changed"):
            tidy_run(finished, identity)
    assert runs.read_json(kept / "run.json") == old
    assert len([*finished.parent.glob("run.before-*")]) == 3


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/step-5"])  # the second as after a kill on the way back
def test_a_finished_run_without_its_last_checkpoint_is_made_again(finished, gone):
    shutil.rmtree(finished / gone)
    finetune(tiny.random_pipeline("sd"), studies(), settings(steps=5), finished, recipe="learnable")
    assert runs.Run(finished).steps()[-1] == 5


def test_a_checkpoint_that_is_not_finite_is_refused_by_name(finished):
    path = finished / "checkpoints" / "step-2" / "unet.safetensors"
    tensors = runs.load_tensors(path)
    tensors["conv_in.bias"][0] = torch.nan
    runs.save_tensors(path, tensors)
    with pytest.raises(runs.DivergedError, match=r"unet\.safetensors: conv_in\.bias is not finite"):
        load_checkpoint(tiny.random_pipeline("sd"), finished, 2)


def test_two_trainings_of_one_run_at_once_are_refused(finished):
    from chestxai.finetune import launch

    with launch.only_writer(finished, True), pytest.raises(ValueError, match="another process is fine-tuning this run"):
        finetune(tiny.random_pipeline("sd"), studies(), settings(steps=3), finished, recipe="learnable")

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from chestxai import attention, fidelity, grounding, models, profiles, reports, runs, sources
from chestxai.fidelity.__main__ import main as fidelity_command
from chestxai.finetune import main as finetune_command
from chestxai.grounding import (
    dataset,
    ground,
    ground_groups,
    ground_layers,
    ground_many,
    ground_truths,
    paper_timesteps,
    passes,
    target_span,
)
from chestxai.grounding import main as grounding_command
from chestxai.grounding.passes import image_key
from chestxai.profiles import GroundingSettings
from chestxai.studies import Box, Finding, phrases, to_images
from tests import tiny
from tests.ports import free_port

PROMPT = "small left pleural effusion"

# Processes to be killed are forked from one that has imported everything and done nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["chestxai.finetune", "chestxai.grounding"])


@pytest.fixture(scope="module", params=["sd", "bert"])
def either(request):
    return tiny.random_pipeline(request.param)


@pytest.fixture(scope="module")
def pipeline():
    return tiny.random_pipeline("sd")


@pytest.fixture(scope="module")
def studies():
    return sources.load("phantom", split="test", n=12, size=32)


@pytest.fixture(scope="module")
def images(studies):
    return np.stack([s.array for s in studies])


def settings(**changes) -> GroundingSettings:
    return GroundingSettings(**{"steps": 10, "last": 2, "batch": 8} | changes)


# --- timesteps -------------------------------------------------------------------------------------------------------


def test_the_papers_timesteps_are_the_last_forty_of_fifty(pipeline):
    # DDIM's "leading" spacing: 1000 / 50 = 20 apart from 0, plus Stable Diffusion's offset of 1.
    assert paper_timesteps(pipeline.scheduler) == list(range(781, 0, -20))
    assert paper_timesteps(pipeline.scheduler, 50, 50)[0] == 981
    assert paper_timesteps(pipeline.scheduler, 10, 4, stride=2) == [301, 101]
    assert len(pipeline.scheduler.timesteps) == 1000  # the pipeline's own scheduler is as it was


def test_a_solver_that_lists_a_timestep_twice_counts_it_once(pipeline):
    pndm = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    assert paper_timesteps(pndm, 50, 50) == paper_timesteps(pipeline.scheduler, 50, 50)


@given(steps=st.integers(1, 1000), data=st.data())
@hypothesis_settings(deadline=None, max_examples=25)
def test_timesteps_fall_and_stay_inside_the_schedule(pipeline, steps, data):
    last, stride = data.draw(st.integers(1, steps)), data.draw(st.integers(1, steps))
    found = paper_timesteps(pipeline.scheduler, steps, last, stride)
    assert found == sorted(set(found), reverse=True)
    assert len(found) == -(-last // stride)
    assert all(0 <= t <= 1000 for t in found)


@pytest.mark.parametrize(("steps", "last", "stride"), [(50, 0, 1), (50, 51, 1), (50, 40, 0)])
def test_impossible_timesteps_are_refused(pipeline, steps, last, stride):
    with pytest.raises(ValueError, match=f"last 1 to {steps} can be read, with a stride from 1: got {last}, {stride}"):
        paper_timesteps(pipeline.scheduler, steps, last, stride)


# --- one phrase ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(pipeline, image, prompt, phrase, timesteps, seed, layers="all", draw=0):
    """One timestep at a time, the softmax of every layer written out."""
    tokens = reports.token_positions(pipeline.tokenizer, prompt, phrase)
    states = models.text_states(pipeline.text_encoder, models.tokenize(pipeline, [prompt]))
    x = models.encode_images(pipeline, image[None])
    known = attention.cross_attention_layers(pipeline.unet)
    sums = {name: 0 for name in attention.select_layers(pipeline.unet, layers)}

    def read(name):
        def hook(attn, arguments, options):
            q, k = attn.to_q(arguments[0])[0], attn.to_k(options["encoder_hidden_states"])[0]
            depth = q.shape[1] // attn.heads
            heads = [slice(h * depth, (h + 1) * depth) for h in range(attn.heads)]
            p = [torch.softmax(q[:, h] @ k[:, h].T / depth**0.5, dim=-1)[:, tokens].mean(dim=1) for h in heads]
            side = round(len(q) ** 0.5)
            sums[name] = sums[name] + torch.stack(p).mean(dim=0).reshape(side, side) / len(timesteps)

        return hook

    handles = [known[name].register_forward_pre_hook(read(name), with_kwargs=True) for name in sums]
    for t in timesteps:
        noise = models.seeded_noise(x.shape[1:], seed, passes.image_key(image), t, draw)
        alpha = pipeline.scheduler.alphas_cumprod[t]
        pipeline.unet(alpha.sqrt() * x + (1 - alpha).sqrt() * noise, t, states)
    for handle in handles:
        handle.remove()
    size = max(m.shape[-1] for m in sums.values())
    return torch.stack([attention.resize(m, (size, size)) for m in sums.values()]).mean(dim=0).numpy()


@pytest.mark.parametrize("layers", ["all", "mid", ["down", "up"]])
def test_a_heatmap_equals_the_loop_written_out(either, images, layers):
    times = paper_timesteps(either.scheduler, 10, 3)
    heat = ground(either, images[0], PROMPT, "pleural effusion", timesteps=times, seed=3, layers=layers)
    expected = by_hand(either, images[0], PROMPT, "pleural effusion", times, 3, layers)
    np.testing.assert_allclose(heat.values, expected, rtol=2e-5)
    side = {"mid": 4}.get(layers if isinstance(layers, str) else "", 8)
    assert (heat.values.shape, heat.values.dtype) == ((side, side), np.float32)
    assert heat.layers == tuple(attention.select_layers(either.unet, layers))
    assert (heat.prompt, heat.phrase, heat.seed, heat.timesteps) == (PROMPT, "pleural effusion", 3, tuple(times))
    words = either.tokenizer.convert_ids_to_tokens(models.tokenize(either, [PROMPT])["input_ids"][0].tolist())
    assert "".join(words[t] for t in heat.tokens).replace("</w>", "") == "pleuraleffusion"


def test_by_default_the_whole_prompt_is_read_at_the_papers_timesteps(pipeline, images):
    heat = ground(pipeline, images[0], PROMPT)
    assert heat.phrase == PROMPT
    assert heat.timesteps == tuple(range(781, 0, -20))
    again = ground(pipeline, images[0], PROMPT, PROMPT.upper(), timesteps=paper_timesteps(pipeline.scheduler))
    assert np.array_equal(heat.values, again.values)


def test_the_phrase_shares_the_attention_with_start_end_and_padding(pipeline, images):
    heat = ground(pipeline, images[0], PROMPT, timesteps=[1])
    assert 0 < heat.values.min()
    assert heat.values.max() < 1 / len(heat.tokens)


# --- along a path ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_inversion_follows_ddims_equation_backwards(either, images):
    path = paper_timesteps(either.scheduler, 10, 10)[::-1]
    states = models.encode_text(either, [PROMPT])
    tokens = reports.token_positions(either.tokenizer, PROMPT, "pleural effusion")
    known = either.scheduler.alphas_cumprod
    x, expected = models.encode_images(either, images[:1]), []
    for previous, t in zip([None, *path[:-1]], path, strict=True):
        with attention.capture(either.unet, [tokens]) as seen:
            noise = either.unet(x, t, states).sample
        expected.append(seen.heatmap()[0, 0])
        # Song et al. 2021, eq. 12 with σ = 0, from less noise to more; before the first step there is next to none.
        before, after = known[0] if previous is None else known[previous], known[t]
        x = after.sqrt() * (x - (1 - before).sqrt() * noise) / before.sqrt() + (1 - after).sqrt() * noise
    for chosen in (path, path[:1], path[2:5]):
        heat = ground(either, images[0], PROMPT, "pleural effusion", chosen, method="inversion", steps=10)
        mean = torch.stack([expected[path.index(t)] for t in chosen]).mean(dim=0)
        np.testing.assert_allclose(heat.values, mean, rtol=1e-4)
    assert heat.method == "inversion"
    assert heat.image is images[0] or np.array_equal(heat.image, images[0])
    assert np.array_equal(
        heat.values,
        ground(either, images[0], PROMPT, "pleural effusion", chosen, 9, method="inversion", steps=10).values,
    )  # no noise, so no seed


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_generation_draws_what_stock_diffusers_draws_and_is_read_meanwhile(either, guidance):
    latents = models.seeded_noise((4, 8, 8), 5, 0, 0)[None]
    tokens = reports.token_positions(either.tokenizer, PROMPT, "pleural effusion")
    with attention.capture(either.unet, [tokens], times="keep") as seen:
        seen.rows([-1, 0] if guidance > 1 else [0])
        drawn = either(
            prompt_embeds=models.encode_text(either, [PROMPT]),
            negative_prompt_embeds=models.encode_text(either, [""]),
            num_inference_steps=6,
            guidance_scale=guidance,
            latents=latents,
            output_type="latent",
        ).images
    path = paper_timesteps(either.scheduler, 6, 6)
    assert seen.times == path
    heat = ground(
        either, None, PROMPT, "pleural effusion", path[2:], 5, method="generation", steps=6, guidance=guidance
    )
    np.testing.assert_array_equal(heat.image, models.decode_latents(either, drawn)[0])
    np.testing.assert_allclose(heat.values, seen.heatmap()[2:, 0, 0].mean(dim=0), rtol=1e-4)
    many = ground_many(
        either, None, [PROMPT] * 2, ["pleural effusion"] * 2, timesteps=path[2:], seed=5, method="generation", steps=6,
        guidance=guidance,
    )  # fmt: skip
    np.testing.assert_allclose(many[0], heat.values, rtol=1e-4)
    assert abs(many[1] - many[0]).max() > 1e-4  # each row has a noise of its own


def test_impossible_paths_are_refused(pipeline, images):
    with pytest.raises(ValueError, match="unknown method 'guess': choose one of noised, inversion, generation"):
        ground(pipeline, images[0], PROMPT, method="guess")
    with pytest.raises(ValueError, match="'generation' reads no image"):
        ground(pipeline, images[0], PROMPT, method="generation")
    with pytest.raises(ValueError, match="'inversion' needs images"):
        ground(pipeline, None, PROMPT, method="inversion")
    with pytest.raises(ValueError, match=r"timesteps \[2\] are not among the 10 of the path, 1 to 901"):
        ground(pipeline, images[0], PROMPT, timesteps=[2, 101], method="inversion", steps=10)


def test_the_tokens_of_a_prompt_share_all_attention(either, images):
    groups = ground_groups(either, images[:2], [PROMPT, "effusion"], [PROMPT, "effusion"], timesteps=[301])
    assert list(groups) == ["phrase", "begin", "end", "padding", "empty prompt"]
    empty = groups.pop("empty prompt")
    sizes = [len(p) for p in reports.token_groups(either.tokenizer, PROMPT, [PROMPT]).values()]
    assert sum(sizes) == either.tokenizer.model_max_length
    total = sum(n * maps[0] for n, maps in zip(sizes, groups.values(), strict=True))
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    with pytest.raises(ValueError, match="row 1: the phrase is empty"):
        ground_groups(either, images[:2], ["effusion", ""], ["effusion", ""], timesteps=[301])
    # The empty prompt's map depends on the image and on no word.
    other = ground_groups(either, images[:2], ["effusion", PROMPT], ["effusion", PROMPT], timesteps=[301])
    np.testing.assert_allclose(other["empty prompt"], empty, rtol=1e-5)
    assert abs(other["begin"] - groups["begin"]).max() > 1e-4
    blank = models.encode_text(either, [""])
    for row, image in enumerate(images[:2]):
        with attention.capture(either.unet, [{"begin": [0]}]) as seen:
            latents = models.encode_images(either, image[None])
            noise = models.seeded_noise(latents.shape[1:], 0, image_key(image), 301, 0)[None]
            noisy = models.noising(either.scheduler).add_noise(latents, noise, torch.tensor([301]))
            seen.rows([0])
            seen.run(noisy, torch.tensor([301]), blank)
        np.testing.assert_allclose(empty[row], seen.heatmap()[0, 0], rtol=1e-4)


# --- many phrases ----------------------------------------------------------------------------------------------------


def test_neighbours_and_batch_size_make_no_difference(either, images):
    words = [PROMPT, "large pneumothorax", PROMPT, "normal heart"]
    named = ["effusion", "pneumothorax", "left", "heart"]
    chosen = images[[0, 1, 0, 2]]  # two phrases of one image
    alone = [ground(either, i, p, w, timesteps=[301, 1]).values for i, p, w in zip(chosen, words, named, strict=True)]
    for batch in (1, 3, 64):
        together = ground_many(either, chosen, words, named, timesteps=[301, 1], batch=batch)
        np.testing.assert_allclose(together, np.stack(alone), rtol=2e-5)
    assert not np.allclose(alone[0], alone[2], rtol=1e-3)


def test_noise_depends_on_image_timestep_draw_and_seed_and_nothing_else(pipeline, images, monkeypatch):
    def seen_by(model, chosen, times, **options):
        taken, original = {}, models.seeded_noise

        def noise(shape, seed, image, t, draw):
            made = original(shape, seed, image, t, draw)
            taken[(image, t, draw)] = made.numpy().tobytes()
            return made

        with monkeypatch.context() as patch:
            patch.setattr(models, "seeded_noise", noise)
            n = len(chosen)
            ground_many(model, images[chosen], [PROMPT] * n, ["left"] * n, timesteps=times, **options)
        return taken

    first = seen_by(pipeline, [0, 1], [1, 501], draws=2)
    assert len(first) == len(set(first.values())) == 8
    assert seen_by(tiny.random_pipeline("bert", seed=1), [1, 0], [501, 1], draws=2, batch=3) == first
    assert not set(seen_by(pipeline, [0, 1], [1, 501], draws=2, seed=1).values()) & set(first.values())


def test_images_that_a_short_checksum_confuses_are_kept_apart(pipeline, images):
    """CRC-32 is linear: the pattern of its polynomial, XORed into an image, leaves the checksum as it was."""
    import zlib

    one, two = images[0].copy(), images[0].copy()
    pattern = 0x1DB710641  # x³² + … + 1, reflected, least significant bit first
    two.reshape(-1)[400:405] ^= np.frombuffer(pattern.to_bytes(5, "little"), np.uint8)
    assert not np.array_equal(one, two)
    assert zlib.crc32(one.tobytes()) == zlib.crc32(two.tobytes())
    maps = ground_many(pipeline, np.stack([one, two]), [PROMPT] * 2, ["left"] * 2, timesteps=[501])
    assert not np.array_equal(maps[0], maps[1])
    np.testing.assert_allclose(maps[1], ground(pipeline, two, PROMPT, "left", timesteps=[501]).values, rtol=2e-5)


def test_draws_are_averaged(pipeline, images):
    mean = ground_many(pipeline, images[:1], [PROMPT], ["left"], timesteps=[701, 301], draws=3)[0]
    single = [by_hand(pipeline, images[0], PROMPT, "left", [701, 301], 0, draw=d) for d in range(3)]
    np.testing.assert_allclose(mean, np.mean(single, axis=0), rtol=2e-5)


def test_layers_and_timesteps_before_averaging(pipeline, images):
    times = [701, 301, 1]
    maps = ground_layers(pipeline, images[:2], [PROMPT] * 2, ["left"] * 2, timesteps=times, seed=5, batch=4)
    assert list(maps) == attention.select_layers(pipeline.unet)
    assert {m.shape for m in maps.values()} == {(2, 3, 8, 8), (2, 3, 4, 4)}
    name = attention.select_layers(pipeline.unet, "up")[0]
    one = ground(pipeline, images[1], PROMPT, "left", timesteps=[301], seed=5, layers=name).values
    np.testing.assert_allclose(maps[name][1, 1], one, rtol=2e-5)
    resized = [attention.resize(torch.from_numpy(m.mean(axis=1)), (8, 8)) for m in maps.values()]
    both = ground_many(pipeline, images[:2], [PROMPT] * 2, ["left"] * 2, timesteps=times, seed=5)
    np.testing.assert_allclose(torch.stack(resized).mean(dim=0), both, rtol=2e-5)


def test_memory_does_not_grow_with_timesteps(pipeline, images):
    def peak(times):
        held = []

        def hook(*_):
            held.append(sum(o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) is torch.Tensor))

        handle = pipeline.unet.conv_in.register_forward_hook(hook)
        ground_many(pipeline, images[:2], [PROMPT] * 2, ["left"] * 2, timesteps=times, batch=4)
        handle.remove()
        return max(held), len(held)

    few, passes = peak([1, 301, 501, 701])
    many, more = peak(paper_timesteps(pipeline.scheduler, 20, 20))
    assert (passes, more) == (2, 10)
    assert many <= few + 4096  # not one more map or batch of latents


def test_errors_say_what_is_wrong(pipeline, images):
    image = images[0]
    for wrong in (image[:16], np.stack([image] * 3, axis=-1), image.astype(np.float32), image[None]):
        with pytest.raises(ValueError, match=r"expected uint8 images \(n, 32, 32\), got (uint8|float32)"):
            ground(pipeline, wrong, PROMPT)
    with pytest.raises(ValueError, match="row 0: the phrase 'pneumonia' is not in the prompt 'small left"):
        ground(pipeline, image, PROMPT, "pneumonia")
    with pytest.raises(ValueError, match="row 0: the phrase is empty"):
        ground(pipeline, image, PROMPT, "")
    long = "no " * 100 + PROMPT
    with pytest.raises(ValueError, match=r"row 1: .* is cut off: the prompt has \d+ tokens and the tokenizer takes 77"):
        ground_many(pipeline, images[:2], [PROMPT, long], [PROMPT, PROMPT], timesteps=[1])
    for times in ([1, 1000], [-1], []):
        with pytest.raises(ValueError, match="timesteps must be 0 to 999"):
            ground(pipeline, image, PROMPT, timesteps=times)
    with pytest.raises(ValueError, match="one prompt and phrase per image: got 2, 1 and 2"):
        ground_many(pipeline, images[:2], [PROMPT], [PROMPT] * 2)
    with pytest.raises(ValueError, match="one prompt and phrase per image: got 0"):
        ground_many(pipeline, images[:0], [], [])
    with pytest.raises(ValueError, match="no cross-attention layer 'left'"):
        ground(pipeline, image, PROMPT, layers="left")


def test_weights_that_diverged_are_an_error_and_not_an_empty_map(images, studies, tmp_path):
    broken = tiny.random_pipeline("sd")
    broken.unet.conv_in.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"row 0 \('left'\): the attention is not finite"):
        ground(broken, images[0], PROMPT, "left", timesteps=[1])
    with pytest.raises(FloatingPointError, match=r"maps.safetensors, rows from 0: row 0"):
        ground_truths(broken, phrases(studies), settings(), tmp_path / "maps.safetensors")


# --- a whole data set ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truths(studies):
    return phrases(studies)


def test_the_words_that_name_the_finding_are_read():
    def words(phrase, target="finding", name="Pleural Effusion"):
        return phrase[slice(*target_span(Finding(name, phrase), target))]

    assert words("Small left pleural effusion.") == "pleural effusion"
    assert words("Small left pleural effusion.", "phrase") == "Small left pleural effusion."
    assert words("Hazy left base") == "Hazy left base"
    # Of one's own data, or of MS-COCO.
    assert words("Small nodule on the right", name="Nodule") == "nodule"
    assert words("People at play", name="person") == "People at play"


def test_a_data_set_is_grounded_as_its_rows_are(either, truths, tmp_path):
    chosen = settings(draws=2)
    maps, rows, skipped = ground_truths(either, truths, chosen, tmp_path / "maps.safetensors", seed=4)
    assert skipped == []
    assert rows == truths
    assert (maps.shape, maps.dtype) == ((len(truths), 8, 8), np.float32)
    times = paper_timesteps(either.scheduler, 10, 2)
    last = truths[-1]
    phrase = last.finding.phrase
    alone = ground_many(
        either, last.study.array[None], [phrase], [target_span(last.finding)], timesteps=times, seed=4, draws=2
    )
    np.testing.assert_allclose(maps[-1], alone[0], rtol=2e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["maps.safetensors"]


def test_finished_maps_are_read_and_not_made_again(pipeline, truths, tmp_path, monkeypatch):
    path = tmp_path / "maps.safetensors"
    first = ground_truths(pipeline, truths, settings(), path)
    stamp = path.stat().st_mtime_ns
    monkeypatch.setattr(dataset, "ground_many", lambda *_, **__: pytest.fail("they are made again"))
    again = ground_truths(pipeline, truths, settings(), path)
    assert np.array_equal(first[0], again[0])
    assert first[1:] == again[1:]
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("change", ["identity", "weights", "settings", "seed", "rows"])
def test_maps_made_otherwise_are_replaced(pipeline, truths, tmp_path, change):
    path, chosen, rows, model = tmp_path / "maps.safetensors", settings(), truths[:3], pipeline
    options = {"identity": "step 1"} if change == "identity" else {}
    old = runs.load_tensors(path) if ground_truths(pipeline, rows, chosen, path, **options) else None
    if change == "identity":
        options["identity"] = "step 2"
    elif change == "weights":
        model = tiny.random_pipeline("sd", seed=1)
    elif change == "settings":
        chosen = settings(last=1)
    elif change == "seed":
        options["seed"] = 1
    else:
        rows = truths[1:4]
    before = runs.tensor_metadata(path)["identity"]
    maps, *_ = ground_truths(model, rows, chosen, path, **options)
    assert runs.tensor_metadata(path)["identity"] != before
    assert np.array_equal(maps, old["maps"].numpy()) == (change == "identity")  # a name alone changes nothing


def test_what_cannot_be_grounded_is_left_out_listed_and_tried_again_when_put_right(pipeline, truths, tmp_path):
    rows = list(truths[:4])
    image = tmp_path / "image.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    rows[1] = replace(rows[1], study=replace(rows[1].study, array=None, path=image))
    rows[2] = replace(rows[2], finding=replace(rows[2].finding, phrase="no " * 100 + rows[2].finding.phrase))
    maps, kept, skipped = ground_truths(pipeline, rows, settings(), tmp_path / "maps.safetensors")
    assert kept == [rows[0], rows[3]]
    assert len(maps) == 2
    unreadable, long = skipped
    assert unreadable.startswith(rows[1].key)
    assert f"{image}: not a readable image" in unreadable
    assert long.startswith(rows[2].key)
    assert "is cut off" in long
    everything, *_ = ground_truths(pipeline, truths[:4], settings(), tmp_path / "other.safetensors")
    np.testing.assert_allclose(maps, everything[[0, 3]], rtol=2e-5)

    with pytest.raises(ValueError, match=r"none of 1 phrases could be grounded; the first: .*not a readable image"):
        ground_truths(pipeline, rows[1:2], settings(), tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="none of 0 phrases could be grounded; the first: no phrases"):
        ground_truths(pipeline, [], settings(), tmp_path / "none.safetensors")
    from PIL import Image

    Image.fromarray(truths[1].study.array).save(image)
    assert len(ground_truths(pipeline, rows[1:2], settings(), tmp_path / "none.safetensors")[0]) == 1
    maps, _, skipped = ground_truths(pipeline, rows, settings(), tmp_path / "maps.safetensors")
    np.testing.assert_allclose(maps, everything[[0, 1, 3]], rtol=2e-5)
    assert len(skipped) == 1


@pytest.mark.parametrize("box", [Box(10, 0, 40, 20), Box(0, 32, 64, 64)])
def test_a_box_that_the_crop_leaves_nothing_of_is_left_out(pipeline, truths, tmp_path, box):
    tall = replace(truths[1].study, array=np.zeros((128, 64), np.uint8), size=(128, 64))
    row = replace(truths[1], study=tall, finding=replace(truths[1].finding, mask=None, boxes=(box,)))
    maps, kept, skipped = ground_truths(pipeline, [truths[0], row], settings(), tmp_path / "maps.safetensors")
    assert (len(maps), kept) == (1, [truths[0]])
    assert "mask is empty or full" in skipped[0]
    assert len(ground_truths(pipeline, [row], settings(), tmp_path / "all.safetensors", fit="letterbox")[0]) == 1


def test_a_whole_chunk_may_be_left_out(pipeline, truths, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 2)
    rows = list(truths[:5])
    for i in (2, 3):
        rows[i] = replace(rows[i], study=replace(rows[i].study, array=None, path=tmp_path / "none.png"))
    maps, kept, skipped = ground_truths(pipeline, rows, settings(), tmp_path / "maps.safetensors")
    assert kept == [rows[0], rows[1], rows[4]]
    assert (maps.shape[0], len(skipped)) == (3, 2)


def _slowly(folder: str) -> None:
    """Ground in chunks of two, each of which leaves a mark when it is begun."""
    torch.set_num_threads(1)
    dataset.CHUNK = 2
    original = dataset.ground_many

    def marked(*arguments, **options):
        with open(Path(folder) / "begun", "a") as file:
            file.write("x")
        return original(*arguments, **options)

    dataset.ground_many = marked
    rows = phrases(sources.load("phantom", split="test", n=12, size=32))
    ground_truths(tiny.random_pipeline("sd"), rows, settings(last=8), Path(folder) / "maps.safetensors")


def test_a_killed_run_goes_on_with_the_chunk_it_was_in(pipeline, truths, tmp_path, monkeypatch, kill):
    after = (1, 3)[kill % 2]
    process = PROCESSES.Process(target=_slowly, args=(str(tmp_path),))
    process.start()
    path, parts, limit = tmp_path / "maps.safetensors", tmp_path / "maps.parts", time.monotonic() + 60
    while len(list(parts.glob("[0-9]*.safetensors"))) < after:
        assert process.is_alive()
        assert time.monotonic() < limit
        time.sleep(0.001)
    time.sleep(random.random() * 0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not path.exists()
    stamps = {p.name: p.stat().st_mtime_ns for p in parts.glob("[0-9]*.safetensors")}
    assert all(len(runs.load_tensors(parts / name)["rows"]) == 2 for name in stamps)  # whole, every one
    calls, original, kept = [], dataset.ground_many, {}

    def counted(*arguments, **options):
        calls.append(arguments)
        kept.update({p.name: p.stat().st_mtime_ns for p in parts.glob("[0-9]*.safetensors")})
        return original(*arguments, **options)

    monkeypatch.setattr(dataset, "CHUNK", 2)
    monkeypatch.setattr(dataset, "ground_many", counted)
    maps, rows, _ = ground_truths(pipeline, truths, settings(last=8), path)
    assert len(calls) == -(-len(truths) // 2) - len(stamps)
    assert stamps.items() <= kept.items()
    assert rows == truths
    assert {p.name for p in tmp_path.iterdir()} == {"maps.safetensors", "begun"}
    monkeypatch.undo()
    whole, *_ = ground_truths(pipeline, truths, settings(last=8), tmp_path / "undisturbed.safetensors")
    np.testing.assert_allclose(maps, whole, rtol=2e-5)


def test_what_a_kill_leaves_is_tidied_and_damage_is_named(pipeline, truths, tmp_path):
    path = tmp_path / "maps.safetensors"
    stray = tmp_path / ".maps.safetensors.0123.part"
    stray.mkdir()
    (stray / ".tmp4567").write_bytes(b"half")
    ground_truths(pipeline, truths[:2], settings(), path)
    (tmp_path / "maps.parts").mkdir()  # killed between the last write and the tidying
    ground_truths(pipeline, truths[:2], settings(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["maps.safetensors"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"maps.safetensors: damaged.*delete it and run again"):
        ground_truths(pipeline, truths[:2], settings(), path)


# --- the command, on several processes -------------------------------------------------------------------------------


def _commanded(options: list[str], environment: dict[str, str], folder: str) -> None:
    """Both commands, grounding in chunks of two, each process saying which rows it grounded and how many it drew."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    dataset.CHUNK = 2
    original = dataset.ground_many

    def marked(pipeline, images, *arguments, **more):
        with open(Path(folder) / f"rank-{environment['RANK']}", "a") as file:
            file.writelines(f"{passes.image_key(image)}\n" for image in images)
        return original(pipeline, images, *arguments, **more)

    dataset.ground_many = marked
    grounding_command(options)
    decode = models.decode_latents

    def counted(pipeline, latents):
        with open(Path(folder) / f"drawn-{environment['RANK']}", "a") as file:
            file.write(f"{len(latents)}\n")
        return decode(pipeline, latents)

    models.decode_latents = counted
    fidelity_command(["draw", *options])


def test_the_commands_on_two_processes_leave_what_chapters_3_and_5_find(tmp_path, monkeypatch):
    text = (profiles.DATA / "profiles/smoke.yaml").read_text()
    own = tmp_path / "own.yaml"
    for old, new in (
        ("train: 48", "train: 4"),
        ("test: 32", "test: 12"),
        ("steps: 8", "steps: 1"),
        ("e: 8", "e: 4"),
        ("t: 4}", "t: 4, batch: 4}"),
    ):
        text = text.replace(old, new)
    own.write_text(text)
    profile = profiles.load(own)
    options = ["--profile", str(own), "--variant", "frozen", "--seed", "1", "--out"]
    with pytest.raises(FileNotFoundError, match=r"not a finished run; make it with"):
        grounding_command([*options, str(tmp_path / "two")])
    finetune_command([*options, str(tmp_path / "two")])
    shutil.copytree(tmp_path / "two", tmp_path / "one")

    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in "01":
        environment = common | {"ACCELERATE_USE_CPU": "true", "RANK": rank, "LOCAL_RANK": rank}
        arguments = ([*options, str(tmp_path / "two")], environment, str(tmp_path))
        processes.append(PROCESSES.Process(target=_commanded, args=arguments))
        processes[-1].start()
    test = phrases(profiles.studies(profile, "test", boxes=True))
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "CHUNK", 2)
        one = list(grounding.ground_run(profile, profiles.run(profile, "frozen", 1, tmp_path / "one").folder, test))
    for process in processes:
        process.join(120)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0

    # Every chunk of both models was made once, half of them by each process.
    made = [(tmp_path / f"rank-{rank}").read_text().split() for rank in "01"]
    steps = [0, 1]
    every = [str(passes.image_key(t.study.pixels())) for t in test]
    assert sorted(made[0] + made[1]) == sorted(every * len(steps))
    assert abs(len(made[0]) - len(made[1])) <= 2 * len(steps)

    # As chapter 3 calls it, by way of `faithfulness.score_run`.
    monkeypatch.setattr(dataset, "ground_many", lambda *_, **__: pytest.fail("they are made again"))
    run = profiles.run(profile, "frozen", 1, tmp_path / "two").folder
    two = list(grounding.ground_run(profile, run, test))
    assert [row[0] for row in two] == [row[0] for row in one] == steps
    for ours, theirs in zip(two, one, strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert [t.key for t in ours[2]] == [t.key for t in theirs[2]]
        assert ours[3] == theirs[3]
    assert sorted(p.name for p in (run / "maps").iterdir()) == ["step-0.safetensors", "step-1.safetensors"]
    for step in steps:
        name = Path("own/frozen/seed-1/maps") / f"step-{step}.safetensors"
        about = [runs.tensor_metadata(tmp_path / root / name) for root in ("one", "two")]
        assert about[0] == about[1]

    # And the images of chapter 5: each batch drawn by one of the two, and the same as one process draws.
    drawn = [[int(n) for n in (tmp_path / f"drawn-{rank}").read_text().split()] for rank in "01"]
    pipeline = models.load_pipeline(profile.base, device="cpu")
    _, kept, _ = to_images(profiles.studies(profile, "test"), 64)
    prompts, *_ = fidelity.requests(kept, profile.sampling)
    assert sum(map(sum, drawn)) == len(prompts) * len(steps)
    assert len(drawn[0]) == len(drawn[1])
    run = profiles.run(profile, "frozen", 1, tmp_path / "one").folder
    for step, images in fidelity.sample_run(pipeline, profile, run, prompts):
        path = tmp_path / "two/own/frozen/seed-1/samples" / f"step-{step}.safetensors"
        np.testing.assert_array_equal(runs.load_tensors(path)["images"].numpy(), images)
        assert runs.tensor_metadata(path) == runs.tensor_metadata(run / "samples" / path.name)

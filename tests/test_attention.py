from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st

from chestxai import attention, models
from chestxai.attention import capture, cross_attention_layers, select_layers
from tests import tiny


@pytest.fixture(scope="module")
def pipeline():
    return tiny.random_pipeline("bert")


@pytest.fixture
def unet(pipeline):
    return pipeline.unet


def inputs(batch: int = 2, length: int = 7, size: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 4, size, size, generator=generator),
        torch.tensor(300),
        torch.randn(batch, length, 32, generator=generator),
    )


def by_hand(attn: Attention, hidden: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Probabilities (batch, heads, positions, tokens), one head and one row at a time."""
    q, k = attn.to_q(hidden), attn.to_k(states)
    depth = q.shape[-1] // attn.heads
    out = torch.empty(len(q), attn.heads, q.shape[1], k.shape[1])
    for b in range(len(q)):
        for h in range(attn.heads):
            part = slice(h * depth, (h + 1) * depth)
            out[b, h] = torch.softmax(q[b, :, part] @ k[b, :, part].T / depth**0.5, dim=-1)
    return out


@torch.no_grad()
def recorded(unet, arguments) -> dict[str, torch.Tensor]:
    """Probabilities of every layer, from the layer's own inputs."""
    out, handles = {}, []
    for name, attn in cross_attention_layers(unet).items():

        def hook(module, args, kwargs, name=name):
            out[name] = by_hand(module, args[0], kwargs["encoder_hidden_states"])

        handles.append(attn.register_forward_pre_hook(hook, with_kwargs=True))
    unet(*arguments)
    for handle in handles:
        handle.remove()
    return out


@torch.no_grad()
def test_maps_equal_attention_computed_by_hand(unet):
    arguments = inputs()
    expected = recorded(unet, arguments)
    with capture(unet, [[2, 3], [5]]) as seen:
        unet(*arguments)
    maps = seen.maps()
    assert list(maps) == list(expected)
    for name, probabilities in expected.items():
        mean = probabilities.mean(dim=1)
        side = int(mean.shape[1] ** 0.5)
        torch.testing.assert_close(maps[name][0, 0], mean[0, :, [2, 3]].mean(-1).reshape(side, side))
        torch.testing.assert_close(maps[name][1, 0], mean[1, :, 5].reshape(side, side))


@torch.no_grad()
def test_the_output_is_the_same_to_the_last_bit_and_the_processors_come_back(unet):
    arguments = inputs()
    before = dict(unet.attn_processors)
    plain = unet(*arguments).sample
    with capture(unet, {"phrase": [1, 2]}) as seen:
        seen.rows([0, 0])
        assert torch.equal(unet(*arguments).sample, plain)
    assert unet.attn_processors == before
    with pytest.raises(ZeroDivisionError), capture(unet, {"phrase": [1]}):
        raise ZeroDivisionError
    assert unet.attn_processors == before
    assert not unet._forward_pre_hooks


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(1, 9), batch=st.integers(1, 3), height=st.sampled_from([4, 6, 8]), width=st.sampled_from([4, 8])
)
def test_the_tokens_share_all_attention(pipeline, length, batch, height, width):
    x = torch.randn(batch, 4, height, width)
    groups = {str(i): [i] for i in range(length)}
    with capture(pipeline.unet, groups) as seen:
        seen.rows([0] * batch)
        pipeline.unet(x, torch.tensor(10), torch.randn(batch, length, 32))
    heat = seen.heatmap()
    assert heat.shape == (1, length, height, width)
    torch.testing.assert_close(heat.sum(dim=1), torch.ones(1, height, width))
    for values in seen.maps().values():
        assert values.min() >= 0
        torch.testing.assert_close(values.sum(dim=1), torch.ones_like(values[:, 0]))


@torch.no_grad()
def test_slots_average_the_rows_given_to_them_over_passes(unet):
    first, second = inputs(3, seed=1), inputs(3, seed=2)
    singles = []
    for arguments in (first, second):
        with capture(unet, [[2]] * 3) as seen:
            unet(*arguments)
        singles.append(seen.heatmap()[:, 0])
    with capture(unet, [[2], [2]]) as seen:
        seen.rows([0, 1, -1])
        unet(*first)
        seen.rows([1, 1, 0])
        unet(*second)
    heat = seen.heatmap()[:, 0]
    torch.testing.assert_close(heat[0], (singles[0][0] + singles[1][2]) / 2)
    torch.testing.assert_close(heat[1], (singles[0][1] + singles[1][0] + singles[1][1]) / 3)


@torch.no_grad()
def test_an_unused_slot_is_nan(unet):
    with capture(unet, [[2], [2]]) as seen:
        seen.rows([1, 1])
        unet(*inputs())
    assert torch.isnan(seen.heatmap()[0]).all()
    assert torch.isfinite(seen.heatmap()[1]).all()


@torch.no_grad()
def test_captures_nest_and_two_models_do_not_mix(unet):
    other = tiny.random_pipeline("sd", seed=3).unet
    with capture(unet, [[1]] * 2) as outer:
        with capture(unet, [[1]] * 2) as inner, capture(other, [[1]] * 2) as elsewhere:
            unet(*inputs())
            other(*inputs())
        unet(*inputs(seed=5))
    assert torch.equal(inner._counts[inner.names[0]], torch.ones(2))
    assert torch.equal(outer._counts[outer.names[0]], torch.full((2,), 2.0))
    assert not torch.allclose(elsewhere.heatmap(), inner.heatmap())


@torch.no_grad()
@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
def test_both_stock_processors_give_the_same_maps(unet, processor):
    arguments = inputs()
    with capture(unet, [[1]] * 2) as seen:
        unet(*arguments)
    before = dict(unet.attn_processors)
    unet.set_attn_processor(processor())
    with capture(unet, [[1]] * 2) as again:
        unet(*arguments)
    unet.set_attn_processor(before)
    torch.testing.assert_close(again.heatmap(), seen.heatmap())


@torch.no_grad()
def test_low_precision_is_summed_in_float32():
    unet = tiny.random_pipeline("bert").unet.to(torch.bfloat16)
    x, t, states = inputs()
    with capture(unet, [[1]] * 2) as seen:
        plain = unet(x.bfloat16(), t, states.bfloat16()).sample
    assert plain.dtype == torch.bfloat16
    assert seen.heatmap().dtype == torch.float32
    full = unet.float()
    with capture(full, [[1]] * 2) as exact:
        full(x, t, states)
    torch.testing.assert_close(seen.heatmap(), exact.heatmap(), atol=5e-3, rtol=0.05)


@torch.no_grad()
def test_a_text_mask_takes_tokens_out(unet):
    x, t, states = inputs(1)
    mask = torch.tensor([[True, True, True, False, False, False, False]])
    with capture(unet, {"seen": [0, 1, 2], "hidden": [3, 4, 5, 6]}) as seen:
        unet(x, t, states, encoder_attention_mask=mask)
    heat = seen.heatmap()[0]
    torch.testing.assert_close(heat[0], torch.full_like(heat[0], 1 / 3))
    assert heat[1].max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 300, 3000])
def test_maps_do_not_depend_on_how_much_is_read_at_once(unet, monkeypatch, budget):
    arguments = inputs()
    mask = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    for options in ({}, {"encoder_attention_mask": mask}):
        with capture(unet, [[1, 4]] * 2) as whole:
            unet(*arguments, **options)
        monkeypatch.setattr(attention, "_BUDGET", budget)
        with capture(unet, [[1, 4]] * 2) as pieces:
            unet(*arguments, **options)
        monkeypatch.undo()
        for name, values in whole.maps().items():
            torch.testing.assert_close(pieces.maps()[name], values)


@torch.no_grad()
def test_memory_does_not_depend_on_the_number_of_passes(unet):
    sizes = []
    for passes in (1, 20):
        with capture(unet, [[1]] * 2) as seen:
            for seed in range(passes):
                unet(*inputs(seed=seed))
        sizes.append(sum(v.numel() for v in seen._sums.values()))
    assert sizes[0] == sizes[1]


@torch.no_grad()
def test_times_are_kept_apart_on_demand_and_their_mean_is_the_mean(unet):
    x, _, states = inputs()
    passes = [torch.tensor([100, 700]), torch.tensor(100), torch.tensor(400)]
    with capture(unet, [[1], [2]], times="keep") as kept, capture(unet, [[1], [2]]) as mean:
        for t in passes:
            unet(x, t, states)
    assert kept.times == [100, 700, 400]
    for name, values in kept.maps().items():
        assert values.shape[:3] == (3, 2, 1)
        # Slot 0 saw timestep 100 twice and never 700; slot 1 saw each of the three once.
        assert torch.isnan(values[1, 0]).all()
        torch.testing.assert_close(values[:, 1].mean(dim=0), mean.maps()[name][1])
        torch.testing.assert_close((2 * values[0, 0] + values[2, 0]) / 3, mean.maps()[name][0])
    assert kept.heatmap().shape == (3, 2, 1, 8, 8)
    assert kept.heatmap(4).shape == (3, 2, 1, 4, 4)


@torch.no_grad()
def test_groups_may_differ_from_slot_to_slot(unet):
    arguments = inputs()
    with capture(unet, [{"phrase": [1, 2], "padding": [5, 6]}, {"phrase": [3]}]) as seen:
        unet(*arguments)
    with capture(unet, [[1, 2], [3]]) as phrase, capture(unet, [[5, 6]] * 2) as padding:
        unet(*arguments)
    assert seen.groups == ("phrase", "padding")
    torch.testing.assert_close(seen.heatmap()[:, 0], phrase.heatmap()[:, 0])
    torch.testing.assert_close(seen.heatmap()[0, 1], padding.heatmap()[0, 0])
    assert torch.isnan(seen.heatmap()[1, 1]).all()


@torch.no_grad()
@pytest.mark.parametrize("layers", ["all", "mid", "down"])
def test_what_follows_the_last_layer_that_is_read_is_not_computed(unet, layers):
    arguments, ran = inputs(), []
    hooks = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in unet.named_modules()]
    with capture(unet, [[1]] * 2, layers=layers) as seen:
        seen.run(*arguments)
        short, last = len(ran), seen.names[-1]
        assert ran[-1] == f"{last}.to_out.1"
        with capture(unet, [[1]] * 2, layers=layers) as whole:
            plain = unet(*arguments).sample
    assert len(ran) > 2 * short
    assert "conv_out" in ran
    assert torch.isfinite(plain).all()
    for name, values in whole.maps().items():
        torch.testing.assert_close(seen.maps()[name], values)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd", "bert"])
def test_maps_equal_those_of_attention_map_diffusers(kind):
    peer = pytest.importorskip("attention_map_diffusers", reason="'make test' installs it")
    model = tiny.random_pipeline(kind)
    prompts = ["small left pleural effusion", "heart"]
    states, (x, _, _) = models.encode_text(model, prompts), inputs()
    with peer.AttentionCapture(model, timesteps="all") as theirs:
        for t in (700, 300, 20):
            model.unet(x, t, states)
    with capture(model.unet, [[2, 3], [1]], times="keep") as seen:
        for t in (700, 300, 20):
            model.unet(x, t, states)
    records = {(r.layer_id.removeprefix("unet."), int(r.timestep)): r.data[:, 0] for r in theirs.compute().records}
    assert len(records) == 3 * len(seen.names)
    for name, maps in seen.maps().items():
        for t, ours in zip(seen.times, maps[:, :, 0].flatten(2), strict=True):
            full = records[name, t]
            expected = torch.stack([full[0][:, [2, 3]].mean(dim=-1), full[1][:, 1]])
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
            assert (expected - expected.mean()).abs().max() > 1e-4  # not the flat maps of a model that does not look


@torch.no_grad()
def test_adapters_are_read_as_the_model_computes_with_them():
    from peft import LoraConfig

    unet, arguments = tiny.random_pipeline("bert").unet, inputs()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    expected = recorded(unet, arguments)
    with capture(unet, [[2]] * 2) as seen:
        unet(*arguments)
    for name, probabilities in expected.items():
        torch.testing.assert_close(seen.maps()[name][:, 0].flatten(1), probabilities.mean(dim=1)[:, :, 2])
    unet.disable_adapters()
    with capture(unet, [[2]] * 2) as without:
        unet(*arguments)
    assert not torch.allclose(without.heatmap(), seen.heatmap())


@torch.no_grad()
def test_layers_are_selected_by_the_resolution_of_their_maps(unet):
    with capture(unet, [[1]] * 2) as seen:
        unet(*inputs())
    sides = {name: m.shape[-1] for name, m in seen.maps().items()}
    assert set(sides.values()) == {4, 8}
    for side in (4, 8):
        assert select_layers(unet, side) == [name for name, found in sides.items() if found == side]
    assert select_layers(unet, [8, "mid"]) == [n for n, side in sides.items() if side == 8 or n.startswith("mid")]
    with pytest.raises(ValueError, match=r"no cross-attention layer 16; use .* a resolution \(4, 8\)"):
        select_layers(unet, 16)


def kinds() -> dict[str, dict]:
    """Small U-Nets of the shapes that are in use: settings over a common ground."""
    cross = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    return {
        # Stable Diffusion 1: one number of heads, convolutions around the transformers, no attention at the bottom.
        "sd1": {
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (16, 32, 32),
            "attention_head_dim": 4,
        },
        # Stable Diffusion 2: heads by level, linear projections.
        "sd2": {**cross, "attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
        # SDXL: no attention at full size, several transformers in a block, size and pooled text as further conditions.
        "sdxl": {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": (1, 3),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 8 * 6 + 12,
        },
    }


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_kind_of_u_net_is_read_and_left_as_it_computes(kind, dtype):
    torch.manual_seed(0)
    common = {"sample_size": 8, "cross_attention_dim": 32, "norm_num_groups": 8, "layers_per_block": 1}
    unet = UNet2DConditionModel(**{"block_out_channels": (16, 32), **common, **kinds()[kind]}).to(dtype).eval()
    x, t, states = inputs(length=9)
    more = {}
    if kind == "sdxl":
        more = {"added_cond_kwargs": {"text_embeds": torch.ones(2, 12, dtype=dtype), "time_ids": torch.ones(2, 6)}}
    arguments = (x.to(dtype), t, states.to(dtype))
    plain = unet(*arguments, **more).sample
    with capture(unet, [{str(i): [i] for i in range(9)}] * 2) as seen:
        assert torch.equal(unet(*arguments, **more).sample, plain)
    names = select_layers(unet)
    assert len(names) == {"sd1": 7, "sd2": 7, "sdxl": 12}[kind]
    for name, maps in seen.maps().items():
        assert maps.dtype == torch.float32
        assert maps.shape[-1] in (2, 4, 8)
        assert name in select_layers(unet, maps.shape[-1])
        torch.testing.assert_close(maps.sum(dim=1), torch.ones_like(maps[:, 0]))


def test_layers_are_selected_by_part_and_name_in_the_order_they_run(unet):
    names = select_layers(unet)
    parts = [n.split("_")[0] for n in names]
    assert parts == sorted(parts, key=["down", "mid", "up"].index)
    assert select_layers(unet, "down") == [n for n in names if n.startswith("down")]
    assert select_layers(unet, ["up", names[0]]) == [names[0], *[n for n in names if n.startswith("up")]]


@torch.no_grad()
def test_a_selection_captures_no_more(unet):
    with capture(unet, [[1]] * 2, layers="mid") as seen:
        unet(*inputs())
    assert list(seen.maps()) == select_layers(unet, "mid")


@torch.no_grad()
def test_resizing_keeps_half_pixel_centres(unet):
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4)
    np.testing.assert_allclose(
        attention.resize(ramp, (1, 8))[0, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6
    )
    with capture(unet, [[1]] * 2, size=32) as seen:
        unet(*inputs())
    assert seen.heatmap().shape[-2:] == (32, 32)
    assert seen.heatmap(size=5).shape[-2:] == (5, 5)


@torch.no_grad()
def test_errors_say_what_is_wrong(unet):
    with (
        pytest.raises(ValueError, match="no cross-attention"),
        capture(
            UNet2DModel(
                block_out_channels=(32, 32),
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
                sample_size=8,
            ),
            [[1]],
        ),
    ):
        pass
    with pytest.raises(ValueError, match="nowhere"), capture(unet, [[1]], layers="nowhere"):
        pass
    for tokens in ([], [[]], [[-1]]):
        with pytest.raises(ValueError, match="token"), capture(unet, tokens):
            pass
    with (
        pytest.raises(ValueError, match="position 7 is past the end of the text, which has 7"),
        capture(unet, [[7]] * 2),
    ):
        unet(*inputs())
    with pytest.raises(ValueError, match="batch of 2, the capture expects 1"), capture(unet, [[1]]):
        unet(*inputs())
    with capture(unet, [[1]]) as seen:
        with pytest.raises(ValueError, match="slots"):
            seen.rows([1])
        with pytest.raises(ValueError, match="nothing was captured"):
            seen.heatmap()
    before = dict(unet.attn_processors)
    unet.set_attn_processor(SlicedAttnProcessor(1))
    with pytest.raises(ValueError, match="SlicedAttnProcessor is not supported"), capture(unet, [[1]]):
        pass
    unet.set_attn_processor(before)
    with pytest.raises(ValueError, match="times"), capture(unet, [[1]], times="max"):
        pass


# --- joint attention -------------------------------------------------------------------------------------------------


def joint_inputs(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    given = {"encoder_hidden_states": normal(2, 7, 32), "pooled_projections": normal(2, 16)}
    if name == "sd3":
        return {**given, "hidden_states": normal(2, 4, 8, 8), "timestep": torch.full((2,), 300.0)}
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    places = torch.stack([torch.zeros(24), rows.flatten(), columns.flatten()], dim=1)
    given |= {"hidden_states": normal(2, 24, 4), "timestep": torch.full((2,), 0.3)}
    return given | {"img_ids": places, "txt_ids": torch.zeros(7, 3)}


@torch.no_grad()
@pytest.mark.parametrize(("name", "shape", "layers"), [("sd3", (4, 4), 2), ("flux", (4, 6), 1)])
def test_what_images_give_to_tokens_in_joint_attention_is_what_attention_map_diffusers_finds(name, shape, layers):
    from types import SimpleNamespace

    peer = pytest.importorskip("attention_map_diffusers", reason="'make test' installs it")
    model, given = tiny.joint(name), joint_inputs(name)
    plain = model(**given).sample
    with peer.AttentionCapture(SimpleNamespace(transformer=model), timesteps="all") as theirs:
        model(**given)
    records = {r.layer_id.removeprefix("transformer."): r.data[:, 0] for r in theirs.compute().records}
    with capture(model, [{str(i): [i] for i in range(7)}] * 2, times="keep") as seen:
        assert torch.equal(model(**given).sample, plain)
    assert seen.times == [300]
    assert len(seen.names) == layers
    for key, maps in seen.maps().items():
        assert maps.shape[-2:] == shape
        torch.testing.assert_close(maps[0].flatten(2).mT, records[key], atol=1e-5, rtol=0)
        assert 0.01 < maps[0].sum(dim=1).mean() < 0.99  # the rest goes to the image itself


@torch.no_grad()
def test_the_single_blocks_of_flux_are_read_as_they_compute():
    model, given = tiny.joint("flux"), joint_inputs("flux")
    expected = {}

    def by_hand(attn, _, options, name):
        q, k = (layer(options["hidden_states"]).unflatten(-1, (2, 16)) for layer in (attn.to_q, attn.to_k))
        q, k = attn.norm_q(q), attn.norm_k(k)
        cosine, sine = (table[:, None] for table in options["image_rotary_emb"])
        # Neighbouring numbers are turned as real and imaginary parts.
        q, k = (x * cosine + torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) * sine for x in (q, k))
        probabilities = torch.einsum("bqhd,bkhd->bhqk", q, k).div(4).softmax(dim=-1)
        expected[name] = probabilities[:, :, 7:, :7].mean(dim=1)

    names = select_layers(model, "single")
    assert len(names) == 2
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(partial(by_hand, name=name), with_kwargs=True)
        for name in names
    ]
    with capture(model, [{str(i): [i] for i in range(7)}] * 2, layers="single") as seen:
        model(**given)
    for name, maps in seen.maps().items():
        torch.testing.assert_close(maps.flatten(2).mT, expected[name], atol=1e-5, rtol=1e-4)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_fused_projections_are_refused_by_name():
    model = tiny.joint("flux")
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"cannot read layer transformer_blocks\.0\.attn"), capture(model, [[1]]):
        pass

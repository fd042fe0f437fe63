"""What a fine-tuning takes, before anything is downloaded: parameters, memory by part, disk, hours.

The networks are built without weights (torch's meta device). What a backward pass keeps is counted on one image. The
sum is within a tenth of what a training on the CPU allocates (``tests/test_plan.py``); it knows nothing of the
workspaces of kernels, of fragmentation, nor of what autocast keeps in float32 (the inputs of normalisation): leave a
tenth of the memory free.
"""

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.benchmark import Timer
from transformers import AutoConfig
from transformers.modeling_utils import local_torch_dtype

from chestxai import encoders, models, profiles, recipes, runs
from chestxai.finetune import launch
from chestxai.models.kinds import Kind, kind_of, needs_pooled, pack, text_width
from chestxai.profiles import FinetuneSettings, Profile
from chestxai.recipes import Recipe
from chestxai.runs import InputError, MissingError

#: Shapes that ship, by a pattern of the base's name, for where the hub cannot be reached.
SHAPES = {"stable-diffusion-2": profiles.DATA / "shapes" / "stable-diffusion-2.json"}
# Blocks whose activations gradient checkpointing computes again.
_CHECKPOINTED = ("ResnetBlock2D", "BasicTransformerBlock", "SanaTransformerBlock")
#: Share of a GPU's memory that a plan may take.
USABLE = 0.9


def networks(profile: Profile) -> tuple[dict[str, nn.Module], str]:
    """Denoiser ("unet"), autoencoder and text encoders of a ``profile`` without weights, and their source.

    Of hub ids only the configurations are fetched. MissingError if one cannot be had; InputError for a base or a text
    encoder of a kind that is not read.
    """
    folder, base = profiles.base_folder(profile.base), profile.base
    source = where = str(folder or base)
    own = not profile.text_encoder and (folder is None or (folder / "text_encoder").is_dir())
    try:
        index = DiffusionPipeline.load_config(where)
        kind = kind_of(str(index.get("_class_name")))
        configs = {
            name: getattr(diffusers, index[name][1]).load_config(where, subfolder=name)
            for name in (kind.denoiser, "vae")
        }
        texts = {name: AutoConfig.from_pretrained(where, subfolder=name) for name in kind.encoders if own}
    except OSError as error:
        shape = next((path for name, path in SHAPES.items() if name in base), None)
        if shape is None:
            raise MissingError(f"cannot read the shape of {base!r}: {encoders.hub_reason(error)}") from error
        configs, source, kind = runs.read_json(shape, dict), f"{shape.name}, as the hub cannot be reached", Kind()
        texts = {"text_encoder": AutoConfig.for_model(**configs.pop("text_encoder"))} if own else {}
        index = {"unet": ("", "UNet2DConditionModel"), "vae": ("", "AutoencoderKL"), "text_encoder": ("", "")}
    with torch.device("meta"):
        parts = {name: getattr(diffusers, index[name][1]).from_config(config) for name, config in configs.items()}
    parts["unet"] = parts.pop(kind.denoiser)
    parts |= {name: encoders.shape(config, index[name][1]) for name, config in texts.items()}
    length = encoders.MINILM["max_length"]
    if profile.text_encoder:
        try:
            parts["text_encoder"] = encoders.shape(profile.text_encoder)
        except OSError as error:
            reason = encoders.hub_reason(error)
            raise MissingError(f"cannot read the shape of {profile.text_encoder!r}: {reason}") from error
    elif not own:
        parts["text_encoder"] = encoders.minilm()[1].to("meta")
    if own or profile.text_encoder:
        length = kind.length or encoders.limit(parts["text_encoder"].config)
    parts["unet"].text_length = length * (models.WINDOWS if profile.long_prompts == "chunked" else 1)
    return parts, source


def memory(parts: dict[str, nn.Module], profile: Profile, variant: str, processes: int = 1) -> dict[str, float]:
    """Bytes on one GPU of a training of ``variant`` of ``profile``, by what they are for.

    ``parts``, of `networks`, are prepared here as the recipe needs them; ``processes`` GPUs share a batch (DDP).
    """
    settings, recipe = profile.finetune, profile.recipe(variant)
    with torch.device("meta"):
        recipe.model_copy(update={"prompts": "impression"}).prepare(SimpleNamespace(**parts))
    learning = list(recipe.learning(parts["unet"], parts["text_encoder"], settings))
    count = sum(p.numel() for _, p, _ in learning)
    size = 2 if settings.weights == "bf16" else 4
    everything = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    moving = {"unet", *(["text_encoder"] if recipe.text_learns else [])}
    used = {f"weights, {name}": n * (size if name in moving else 4) for name, n in everything.items()}
    if recipe.splits:
        used["weights, text encoder as it was"] = everything["text_encoder"] * 4
    used["gradients"] = count * size
    used["moments"] = count * 2 * (1 if settings.optimizer == "adamw8bit" else size)
    used["averages"] = 0 if settings.averages == "cpu" else count * 4
    # autocast keeps a copy of each weight for the length of a pass.
    half = settings.precision != "no"
    used["copies in half precision"] = sum(everything[n] for n in moving) * 2 if half and size == 4 else 0
    rows, rest = divmod(settings.batch_size, settings.accumulate * processes) if processes > 0 else (0, 1)
    if rest:
        raise InputError(
            f"batch_size {settings.batch_size} is not a multiple of {processes} GPUs × {settings.accumulate}"
        )
    used["activations"] = rows * activations(parts["unet"], settings, recipe)
    if recipe.text_learns:
        config = parts["text_encoder"].config
        # Of a transformer layer: its inputs, queries, keys, values, attention and both sides of its two linear layers.
        names = ("intermediate_size", "d_ff", "hidden_dim")  # of BERT and CLIP, T5, DistilBERT
        inner = next(getattr(config, name) for name in names if hasattr(config, name))
        wide = config.num_hidden_layers * (8 * config.hidden_size + 2 * inner)
        used["activations"] += rows * parts["unet"].text_length * wide * (2 if half else 4)
    return used


def _inputs(unet: nn.Module, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random latents, timesteps and text of ``length`` tokens for `models.denoise`."""
    config, width = unet.config, text_width(unet)
    text = torch.randn(rows, length, width)
    if needs_pooled(unet):
        text = pack(
            text, torch.randn(rows, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
        )
    return torch.randn(rows, config.in_channels, config.sample_size, config.sample_size), torch.full((rows,), 500), text


def activations(unet: nn.Module, settings: FinetuneSettings, recipe: Recipe | None = None) -> int:
    """Bytes that the backward pass of one image keeps, counted as the forward pass saves them.

    ``unet`` gives the shape, ``settings`` precision and gradient checkpointing; all learns, or what ``recipe`` says.
    """
    kept: dict[int, tuple[Any, nn.Module | None]] = {}
    inside: list[nn.Module] = []
    units: dict[nn.Module, int] = {}

    def save(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept.setdefault(storage._cdata, (storage, inside[0] if inside else None))
        return value

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inside.append(module)
        units[module] = sum(x.numel() * x.element_size() for x in arguments if torch.is_tensor(x))

    half, length = settings.precision != "no", getattr(unet, "text_length", 77)
    # Tensors without content that choose the kernels of a CPU, where "meta" would keep the attention of all pairs.
    with FakeTensorMode(), local_torch_dtype(torch.bfloat16 if half else torch.float32):
        unet = type(unet).from_config(unet.config).train()
        whole = recipe is None or recipe.unet == "all"
        for name, parameter in unet.named_parameters():
            # An adapter keeps what its layer would keep to learn, and little more.
            parameter.requires_grad_(whole or any(f"{layer}.weight" in name for layer in recipes.ADAPTED))
        weights = {p.untyped_storage()._cdata for p in unet.parameters()}
        for module in unet.modules():
            if settings.gradient_checkpointing and type(module).__name__ in _CHECKPOINTED:
                module.register_forward_pre_hook(enter)
                module.register_forward_hook(lambda *_: inside.pop() and None)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda value: value):
            models.denoise(unet, *_inputs(unet, 1, length))
        sizes: dict[Any, int] = {}
        for storage, unit in kept.values():
            sizes[unit] = sizes.get(unit, 0) + storage.nbytes()
    # Of what is checkpointed, the inputs are kept, and one unit at a time is computed again.
    return sizes.pop(None, 0) + sum(units.values()) + max(sizes.values(), default=0)


def seconds_per_step(unet: nn.Module, settings: FinetuneSettings, device: str, steps: int = 10, gpus: int = 1) -> float:
    """Seconds of a step on one ``device`` ("cuda" or "cpu"), the mean of ``steps``, with random weights and data.

    ``unet`` leaves the meta device; ``settings``: batch, of which ``gpus`` devices share each, precision and savers.
    """
    kind = torch.bfloat16 if settings.weights == "bf16" else torch.float32
    unet = unet.to_empty(device=device).to(kind).requires_grad_(False).train()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.02)
    learning = [p for name, p in unet.named_parameters() if ".lora_" in name] or list(unet.parameters())
    for parameter in learning:
        parameter.requires_grad_(True)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = launch.make_optimizer([{"params": learning, "lr": 1e-6}], settings)
    rows = settings.batch_size // (settings.accumulate * gpus)
    x, times, text = (value.to(device) for value in _inputs(unet, rows, getattr(unet, "text_length", 77)))
    half = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[settings.precision]

    def step() -> None:
        for _ in range(settings.accumulate):
            with torch.autocast(device, half, enabled=half is not None):
                loss = F.mse_loss(models.denoise(unet, x, times, text).float(), x)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads()).timeit(steps).mean


def report(profile: Profile, variant: str, gpu: float | None = None, gpus: int = 1) -> tuple[str, bool | None]:
    """A plan in words of a ``variant`` of ``profile``, and whether it fits (None where no GPU is known).

    ``gpu`` is the memory of each of the ``gpus`` that share a batch (DDP), in GB (10⁹ bytes); default: of the one here.
    """
    parts, source = networks(profile)
    settings, recipe = profile.finetune, profile.recipe(variant)
    used = memory(parts, profile, variant, gpus)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    learning = sum(p.numel() for _, p, _ in recipe.learning(parts["unet"], parts["text_encoder"], settings))
    lines = [f"{profile.name}, {variant}: {settings.steps:,} steps of {settings.batch_size} images (shapes: {source})"]
    lines += [f"  {name:32s}{n / 1e6:10.1f} M parameters" for name, n in sizes.items()]
    lines += [f"  {'that learn':32s}{learning / 1e6:10.1f} M parameters"]
    lines += [f"  {name:32s}{size / 1e9:10.2f} GB" for name, size in used.items()]
    total = sum(used.values()) / 1e9
    lines.append(f"  {'in all on the GPU':32s}{total:10.2f} GB")
    lines.append(f"  {'on disk':32s}{launch.space(learning * 4, sum(sizes.values()) * 4, settings) / 1e9:10.2f} GB")
    cuda = runs.device() == "cuda"
    if gpu is None and cuda:
        gpu = torch.cuda.get_device_properties(0).total_memory / 1e9
    fits = None if gpu is None else total <= USABLE * gpu
    if fits is not None:
        lines.append(f"  {'fits' if fits else 'does not fit'} in {gpu:.0f} GB, of which a tenth is left free")
    if not fits and fits is not None:
        lines.append(f"  {launch.savers(settings)}")
    if cuda and fits:
        profiles.check_packages(settings)
        with launch.memory_errors(settings):
            seconds = seconds_per_step(parts["unet"], settings, "cuda", gpus=gpus)
        hours = seconds * settings.steps / 3600
        lines.append(f"  about {hours:.1f} hours with this kind of GPU: {seconds:.2f} s a step, ten timed")
    else:
        lines.append("  hours are not known: steps are timed where there is a GPU that it fits")
    return "\n".join(lines), fits

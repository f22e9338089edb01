"""Checkpoint + RuntimeConfig -> Pipeline. Every `auto` is resolved here, once.

Modules are built without memory (on the meta device) from the parts' configs and filled straight from the
files, so nothing is ever initialised at random and no tensor exists twice. FP8 layers are whatever the
files declare: loading quantizes nothing.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sd35.checkpoints.formats import Checkpoint, open_checkpoint
from sd35.checkpoints.single_file import SingleFile
from sd35.checkpoints.store import identity, locate
from sd35.config import ComputeDtype, RuntimeConfig
from sd35.errors import CheckpointError, DeviceError
from sd35.kernels.api import choose_operations, has_fp8_products, triton_refuses
from sd35.kernels.attention import choose_attention, norms_refuse
from sd35.request import GenerationRequest
from sd35.runtime.beginning import SourceEncoder
from sd35.runtime.configs import read_mmdit_config, read_shift, read_vae_config
from sd35.runtime.devices import Card, cards_of, devices_of
from sd35.runtime.division import choose_or_smallest, news, no_room, ranges, smaller_than
from sd35.runtime.embeds import PromptCache
from sd35.runtime.graphs import Recorder
from sd35.runtime.joint_block import Engine
from sd35.runtime.load_text import load_text_encoders
from sd35.runtime.memory import MemoryPlan, Work, described, peak
from sd35.runtime.mmdit import MMDiT, MMDiTConfig
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.residence import Residence
from sd35.runtime.sharing import Needs, SharedParts, part_bytes, part_identity
from sd35.runtime.sizes import Sizes, sizes_of
from sd35.runtime.vae import VaeDecoder
from sd35.runtime.vae_encoder import VaeEncoder
from sd35.runtime.weights import Placement, fill_mmdit, fill_vae_decoder, fill_vae_encoder
from sd35.variants import PIXELS_PER_TOKEN, Variant, variant_of

log = logging.getLogger(__name__)

OnProgress = Callable[[float], None]

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load_pipeline(
    checkpoint: str | Path,
    config: RuntimeConfig | None = None,
    variant: Variant | None = None,
    components: Path | None = None,
    encoder_files: Sequence[Path] = (),
    shared: SharedParts | None = None,
    on_progress: OnProgress | None = None,
) -> Pipeline:
    """Load a checkpoint folder or single file as it is, 16-bit or FP8.

    `variant` overrules what the weights suggest; `components` is the folder with what a single file lacks,
    and `encoder_files` are text encoders in files of their own. What is the same as in a model loaded before
    is taken from `shared`; `on_progress` hears the share of the weights that has been read, 0 to 1.
    """
    opened = open_checkpoint(locate(checkpoint), components, encoder_files)
    identity = identity_of(opened)
    return assemble(opened, config or RuntimeConfig(), variant, identity, shared, on_progress)


def needs_of(checkpoint: str | Path, config: RuntimeConfig, variant: Variant) -> Needs:
    """What this checkpoint would take on the device, all of it there, from its headers."""
    opened = open_checkpoint(locate(checkpoint))
    dtype = resolve(config).dtype
    sizes = sizes_of(opened, read_mmdit_config(opened), read_vae_config(opened), dtype)
    work = Work.of(GenerationRequest("").pictures(variant)[0].settings, images=1)
    beside = peak(MemoryPlan("resident"), sizes, work) - sizes.total
    return Needs(part_bytes(opened, sizes), beside)


def assemble(
    checkpoint: Checkpoint,
    config: RuntimeConfig,
    variant: Variant | None,
    identity: str,
    shared: SharedParts | None = None,
    on_progress: OnProgress | None = None,
) -> Pipeline:
    """A pipeline of an open checkpoint, wherever its tensors come from."""
    placement = resolve(config)
    log.debug("loading %s on %s, compute in %s", checkpoint.path, placement.device, placement.dtype)
    mmdit_config = read_mmdit_config(checkpoint)
    variant = _fitted(variant or _recognise(checkpoint, mmdit_config), mmdit_config)
    sizes = sizes_of(checkpoint, mmdit_config, read_vae_config(checkpoint), placement.dtype)
    work = Work.of(GenerationRequest("").pictures(variant)[0].settings, images=1)
    cards = cards_of(config)
    budgets = [card.budget for card in cards]
    plan = choose_or_smallest(sizes, work, budgets)
    if said := news(plan, cards):
        log.info(said)
    if on_progress is not None:
        placement = replace(placement, on_read=_Reading(sizes.total, on_progress).read)
    load = partial(_load, checkpoint, placement, variant, identity, sizes, cards, shared)
    try:
        return load(plan)
    except torch.cuda.OutOfMemoryError as error:
        log.debug("out of memory: %s", error)
    torch.cuda.empty_cache()
    smaller = smaller_than(plan, sizes, work, budgets)
    if smaller is None:
        raise no_room(plan, sizes, work)
    log.warning("The device had no room for the plan '%s'; loading with '%s'.", plan.name, described(smaller))
    try:
        return load(smaller)
    except torch.cuda.OutOfMemoryError as error:
        raise no_room(smaller, sizes, work) from error


def _load(
    checkpoint: Checkpoint,
    placement: Placement,
    variant: Variant,
    identity: str,
    sizes: Sizes,
    cards: Sequence[Card],
    shared: SharedParts | None,
    plan: MemoryPlan,
) -> Pipeline:
    """Read the weights: to their devices, or where the plan moves them into host memory."""
    lying = replace(placement, lies_on=torch.device("cpu") if plan.moves else None)
    for_encoders, for_mmdit, for_vae = _placements(lying, plan, [card.device for card in cards])
    width, beside = sizes.mmdit.text_channels, None if plan.moves else shared
    encoders = load_text_encoders(checkpoint, width, identity, for_encoders, beside)
    mmdit, vae = _load_mmdit(checkpoint, sizes.mmdit, for_mmdit), _load_vae(checkpoint, for_vae, beside)
    residence = Residence(encoders, mmdit, vae, sizes, cards, plan)
    return Pipeline(
        variant=variant,
        text_encoders=encoders,
        mmdit=mmdit,
        vae=vae,
        shift=read_shift(checkpoint),
        device=placement.device,
        identity=identity,
        residence=residence,
        source_encoder=SourceEncoder(partial(_load_vae_encoder, checkpoint, placement)),
        recorder=Recorder(before=partial(residence.bring, mmdit)) if placement.cuda_graphs else None,
        prompts=beside.prompts if beside else PromptCache(),
    )


def _placements(
    placement: Placement, plan: MemoryPlan, devices: Sequence[torch.device]
) -> tuple[Placement, Placement, Placement]:
    """Of the encoders, the MMDiT and the VAE."""
    division = plan.division
    if division is None:
        return placement, placement, placement
    blocks = zip(devices, ranges(division), strict=True)
    return (
        replace(placement, device=devices[division.encoders]),
        replace(placement, blocks_on=tuple(device for device, numbers in blocks for _ in numbers)),
        replace(placement, device=devices[division.vae]),
    )


def load_mmdit(checkpoint: str | Path, config: RuntimeConfig) -> MMDiT:
    """The transformer alone, for those who draw nothing with it."""
    opened = open_checkpoint(locate(checkpoint))
    return _load_mmdit(opened, read_mmdit_config(opened), resolve(config))


def identity_of(checkpoint: Checkpoint) -> str:
    """The identity of all that a picture comes from: a single file's components and encoders count too."""
    if isinstance(checkpoint, SingleFile):
        encoders = sorted({encoder.path for encoder in checkpoint.encoders.values()})
        return identity(checkpoint.path, checkpoint.components.path, *encoders)
    return identity(checkpoint.path)


def resolve(config: RuntimeConfig) -> Placement:
    """The device and dtype that `auto` comes to on this machine; DeviceError if the device isn't there."""
    device = devices_of(config)[0]
    dtype = _dtype(config.compute_dtype, device)
    fp8 = has_fp8_products(device) if config.activations == "auto" else config.activations == "fp8"
    graphs = config.cuda_graphs and device.type == "cuda"
    return Placement(device, dtype, config.kernels, config.attention, graphs, fp8)


def _dtype(wanted: ComputeDtype, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        return _DTYPES[wanted]
    # Without bf16 instructions a CPU takes longer for bf16 than for float32.
    native = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _recognise(checkpoint: Checkpoint, config: MMDiTConfig) -> Variant:
    variant = variant_of(config.num_layers, config.dual_attention_layers)
    if variant is None:
        raise CheckpointError(
            f"{checkpoint.path} has {config.num_layers} layers with dual attention in "
            f"{config.dual_attention_layers}: that is no SD3.5 variant; name the one whose settings to use."
        )
    return variant


def _fitted(variant: Variant, config: MMDiTConfig) -> Variant:
    """The variant's recommended settings, within what this checkpoint is: somebody may have overruled it."""
    reach = config.pos_embed_max_size * PIXELS_PER_TOKEN
    return replace(
        variant,
        num_layers=config.num_layers,
        dual_attention_layers=config.dual_attention_layers,
        max_size=reach,
        native_size=min(variant.native_size, reach),
    )


def _load_mmdit(checkpoint: Checkpoint, config: MMDiTConfig, placement: Placement) -> MMDiT:
    device, dtype = placement.device, placement.dtype
    _say_who_computes(placement)
    engine = Engine(
        choose_operations(placement.kernels, device, dtype),
        choose_attention(placement.attention, device, dtype),
    )
    log.debug("attention by %s", engine.attention)
    with torch.device("meta"):
        mmdit = MMDiT(config, engine)
    with checkpoint.tensors("transformer") as tensors:
        fill_mmdit(mmdit, tensors, placement)
    if engine.attention == "sd35-fp8":
        _check_norms(mmdit)
    return mmdit.eval()


def _check_norms(mmdit: MMDiT) -> None:
    """Our FP8 attention takes scores up to a bound, which the norms of q and k give."""
    for norms in mmdit.norms_attending_together():
        refusal = norms_refuse(*norms)
        if refusal is not None:
            raise DeviceError(
                f"The attention 'sd35-fp8' can't run this checkpoint: {refusal}; leave the choice at 'auto'."
            )


def _say_who_computes(placement: Placement) -> None:
    """A card without the kernels (on Windows they are a package of its own) draws, and more slowly."""
    refusal = triton_refuses(placement.device, placement.dtype)
    if placement.device.type == "cuda" and placement.kernels == "auto" and refusal is not None:
        log.warning("The fused kernels can't run here, so plain PyTorch computes: %s.", refusal)


def _load_vae(checkpoint: Checkpoint, placement: Placement, shared: SharedParts | None) -> VaeDecoder:
    load = partial(_fresh_vae, checkpoint, placement)
    return shared.one((part_identity(checkpoint, "vae"), placement), load) if shared else load()


def _fresh_vae(checkpoint: Checkpoint, placement: Placement) -> VaeDecoder:
    operations = choose_operations(placement.kernels, placement.device, placement.dtype)
    with torch.device("meta"):
        vae = VaeDecoder(read_vae_config(checkpoint), operations)
    with checkpoint.tensors("vae") as tensors:
        fill_vae_decoder(vae, tensors, placement)
    return vae.eval()


def _load_vae_encoder(checkpoint: Checkpoint, placement: Placement, device: torch.device) -> VaeEncoder:
    """The encoder, lying in host memory, to work on `device`: on the host of a card in float32."""
    beside_card = device.type == "cpu" and placement.device.type != "cpu"
    dtype = torch.float32 if beside_card else placement.dtype
    kernels = "auto" if beside_card else placement.kernels
    lying = replace(placement, device=device, dtype=dtype, kernels=kernels, lies_on=torch.device("cpu"))
    with torch.device("meta"):
        encoder = VaeEncoder(read_vae_config(checkpoint), choose_operations(kernels, device, dtype))
    with checkpoint.tensors("vae") as tensors:
        fill_vae_encoder(encoder, tensors, replace(lying, on_read=lambda _: None))
    return encoder.eval()


class _Reading:
    """Counts bytes as they are read, and tells of every hundredth of them."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self._total, self._on_progress = total, on_progress
        self._done, self._told = 0, 0

    def read(self, nbytes: int) -> None:
        """So many more."""
        self._done += nbytes
        hundredths = min(100, 100 * self._done // max(1, self._total))
        if hundredths > self._told:
            self._told = hundredths
            self._on_progress(hundredths / 100)

"""The checkpoint's tensors into our modules: names, fusion, FP8 layers, and not one tensor unaccounted for.

The network is built on the meta device, without memory. Each of its layers then gets its values straight
from the file: a linear layer whose scheme says FP8 is replaced by `Fp8Linear`, any other keeps its class
and gets its weight in the compute dtype. q, k and v of one attention become one layer; their rows are
stacked, and so are their scales, one a row: tensorwise and blockwise scales are spread over the rows first,
which changes no value. A tensor that is missing, left over or misshapen is an error with its name.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sd35.checkpoints.source import TensorSource
from sd35.checkpoints.vae_halves import NO_ENCODER
from sd35.config import Attention, Kernels
from sd35.errors import CheckpointError
from sd35.fp8 import BLOCK, ScaledTensor, Scheme, granularity_of
from sd35.runtime.linear import Fp8Linear
from sd35.runtime.mmdit import MMDiT
from sd35.runtime.vae import VaeDecoder
from sd35.runtime.vae_encoder import VaeEncoder

# Our layer -> the checkpoint's layers (diffusers' names) whose rows it stacks.
_MODEL_LAYERS = {
    "patch_embed": ("pos_embed.proj",),
    "timestep_embed.fc1": ("time_text_embed.timestep_embedder.linear_1",),
    "timestep_embed.fc2": ("time_text_embed.timestep_embedder.linear_2",),
    "pooled_embed.fc1": ("time_text_embed.text_embedder.linear_1",),
    "pooled_embed.fc2": ("time_text_embed.text_embedder.linear_2",),
    "context_embed": ("context_embedder",),
    "final_modulation": ("norm_out.linear",),
    "proj_out": ("proj_out",),
}
_BLOCK_LAYERS = {
    "sample_modulation": ("norm1.linear",),
    "context_modulation": ("norm1_context.linear",),
    "sample_attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "sample_attention.out": ("attn.to_out.0",),
    "context_attention.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_attention.out": ("attn.to_add_out",),
    "dual_attention.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "dual_attention.out": ("attn2.to_out.0",),
    "sample_mlp.fc1": ("ff.net.0.proj",),
    "sample_mlp.fc2": ("ff.net.2",),
    "context_mlp.fc1": ("ff_context.net.0.proj",),
    "context_mlp.fc2": ("ff_context.net.2",),
}
# Our parameter -> the checkpoint's tensor, where it is no layer's weight or bias.
_BLOCK_TENSORS = {
    "sample_attention.norm_q": "attn.norm_q.weight",
    "sample_attention.norm_k": "attn.norm_k.weight",
    "context_attention.norm_q": "attn.norm_added_q.weight",
    "context_attention.norm_k": "attn.norm_added_k.weight",
    "dual_attention.norm_q": "attn2.norm_q.weight",
    "dual_attention.norm_k": "attn2.norm_k.weight",
}

# The VAE's stages have the checkpoint's names; within a stage, our layer -> the checkpoint's.
_VAE_LAYERS = {
    "": ("",),  # a stage that is one layer itself
    "norm1": ("norm1",),
    "conv1": ("conv1",),
    "norm2": ("norm2",),
    "conv2": ("conv2",),
    "shortcut": ("conv_shortcut",),
    "group_norm": ("group_norm",),
    "qkv": ("to_q", "to_k", "to_v"),
    "to_out": ("to_out.0",),
    "conv": ("conv",),
    "conv_norm_out": ("conv_norm_out",),
    "conv_out": ("conv_out",),
}
# What diffusers called the attention's layers before 0.18.
_VAE_OLD_LAYERS = {"group_norm": ("group_norm",), "qkv": ("query", "key", "value"), "to_out": ("proj_attn",)}


@dataclass(frozen=True)
class Placement:
    """Where weights go and as what: the device, the dtype of all that is not FP8, and who computes.

    Without `fp8_activations` FP8 layers multiply in 16 bits, whatever their schemes say. `lies_on` is where
    weights lie that only visit the device (`residence.py`); None where they stay there. `blocks_on` are the
    devices of the MMDiT's blocks, where they are divided over several.
    """

    device: torch.device
    dtype: torch.dtype
    kernels: Kernels
    attention: Attention = "auto"
    cuda_graphs: bool = False
    fp8_activations: bool = True
    lies_on: torch.device | None = None
    blocks_on: tuple[torch.device, ...] = ()
    on_read: Callable[[int], None] = field(default=lambda _: None, compare=False)  # bytes as they lie

    @property
    def home(self) -> torch.device:
        """Where weights are put when they are read."""
        return self.lies_on or self.device

    def of(self, path: str) -> "Placement":
        """That of a layer or tensor of the MMDiT."""
        if not self.blocks_on or not path.startswith("blocks."):
            return self
        return replace(self, device=self.blocks_on[int(path.split(".")[1])])


def fill_mmdit(mmdit: MMDiT, tensors: TensorSource, placement: Placement) -> None:
    """Give an MMDiT built on the meta device all of its values."""
    source = _Source(tensors, placement)
    for path, layers in layers_of(mmdit):
        source.placement = placement.of(path)
        _fill_layer(mmdit, path, layers, source)
    for path, name in _tensors_of(mmdit):
        source.placement = placement.of(path)
        _set_tensor(mmdit, path, source.tensor(name))
    source.finish()
    assert not list(_unfilled(mmdit))


def fill_module(
    module: nn.Module,
    tensors: TensorSource,
    placement: Placement,
    shared: tuple[str, ...] = (),
) -> None:
    """Give a module that bears the checkpoint's names, built on the meta device, all of its values.

    `shared` are names of one and the same tensor: the file may hold it under any of them.
    """
    source = _Source(tensors, placement)
    for path in tensors.schemes:
        _fill_layer(module, path, (path,), source)
    for name in list(_unfilled(module)):
        if name not in shared:
            _set_tensor(module, name, source.tensor(name))
    if shared:
        held_as = next((name for name in shared if name in tensors), shared[0])
        one = nn.Parameter(source.tensor(held_as), requires_grad=False)
        for name in shared:
            _set_tensor(module, name, one)
    source.finish(also_known=set(shared))
    assert not list(_unfilled(module))


def fill_vae_decoder(decoder: VaeDecoder, tensors: TensorSource, placement: Placement) -> None:
    """Give a VAE's decoder built on the meta device all of its values; the encoder's are left in the file."""
    _fill_vae(decoder, tensors, placement, beside=VaeEncoder.prefix)


def fill_vae_encoder(encoder: VaeEncoder, tensors: TensorSource, placement: Placement) -> None:
    """The same for the encoder; CheckpointError where the file has none, as text alone needs none."""
    if not any(name.startswith(encoder.prefix) for name in tensors):
        raise CheckpointError(NO_ENCODER)
    _fill_vae(encoder, tensors, placement, beside=VaeDecoder.prefix)


def _fill_vae(
    half: VaeDecoder | VaeEncoder, tensors: TensorSource, placement: Placement, beside: str
) -> None:
    source = _Source(tensors, placement)
    for path, layers in _vae_layers_of(half, tensors):
        _fill_layer(half, path, layers, source)
    source.finish(also_known={name for name in tensors if name.startswith(beside)})
    assert not list(_unfilled(half))
    for parameter in half.parameters():
        if parameter.ndim == 4:  # a convolution's, whose input channels shall lie side by side too
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class _Source:
    """Tensors that are placed as they are read; it remembers what was asked for."""

    def __init__(self, tensors: TensorSource, placement: Placement) -> None:
        self.tensors, self.schemes, self.placement = tensors, tensors.schemes, placement
        self._used: set[str] = set()

    def tensor(self, name: str) -> Tensor:
        """A tensor in the compute dtype; one in FP8 has no value without its scale, so it is refused."""
        value = self._read(name)
        if value.dtype.itemsize == 1:
            raise CheckpointError(
                f"{name} is {value.dtype} and the file's header declares no format for it, so its scale is "
                "unknown: fetch the checkpoint again, or quantize it anew with `sd35 quantize`."
            )
        return self._counted(value.to(self.placement.home, self.placement.dtype))

    def scaled(self, layer: str) -> ScaledTensor:
        """An FP8 weight as stored, its scale spread to one a row (and K group)."""
        data, scale = self._read(f"{layer}.weight"), self._read(f"{layer}.weight_scale")
        scale = rowwise_scale(layer, scale, data.shape)
        return ScaledTensor(*(self._counted(part.to(self.placement.home)) for part in (data, scale)))

    def input_scale(self, layers: tuple[str, ...]) -> Tensor:
        """The one static activation scale of layers that share their input, float32."""
        scales = {
            float(self.tensors.input_scales[layer].read()) if layer in self.tensors.input_scales else math.nan
            for layer in layers
        }
        if len(scales) > 1 or not 0 < min(scales) < math.inf:
            raise CheckpointError(
                f"{self.tensors.paths[0]}: the static activation scale of {', '.join(layers)} is missing, "
                "not positive, or not the same for all of them: quantize the checkpoint anew."
            )
        return torch.tensor(scales.pop(), dtype=torch.float32, device=self.placement.home)

    def finish(self, also_known: frozenset[str] | set[str] = frozenset()) -> None:
        """CheckpointError if the file holds anything that nobody asked for."""
        left_over = sorted(set(self.tensors) - self._used - also_known)
        if left_over:
            raise CheckpointError(
                f"{self.tensors.paths[0]} holds {len(left_over)} tensors that this model has no place for, "
                f"{left_over[0]} for one: it is a checkpoint of something else, or damaged."
            )

    def _read(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.tensors.paths[0]} lacks the tensor {name}, which its config.json promises: "
                "the checkpoint is damaged or of something else, so fetch it again."
            )
        self._used.add(name)
        return self.tensors.read(name)

    def _counted(self, value: Tensor) -> Tensor:
        """A tensor that lies where it will; those who count are told."""
        self.placement.on_read(value.nbytes)
        return value


def rowwise_scale(layer: str, scale: Tensor, shape: torch.Size) -> Tensor:
    """The scale of an FP8 weight [N, K] as [N, 1], or blockwise as [N, K/128]; no value changes."""
    granularity = granularity_of(scale, shape)
    if granularity is None or scale.dtype != torch.float32:
        raise CheckpointError(
            f"{layer}.weight_scale is {scale.dtype} {tuple(scale.shape)}, which restores no weight of shape "
            f"{tuple(shape)}: the checkpoint is damaged or of an unknown format."
        )
    if granularity == "tensorwise":
        return scale.expand(shape[0], 1).contiguous()
    if granularity == "blockwise":
        return scale.repeat_interleave(BLOCK, dim=0)[: shape[0]].contiguous()
    return scale


def layers_of(mmdit: MMDiT) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our layers and the checkpoint's layers whose rows it stacks."""
    yield from _MODEL_LAYERS.items()
    for i, block in enumerate(mmdit.blocks):
        present = {name for name, _ in block.named_modules()}
        for path, layers in _BLOCK_LAYERS.items():
            if path in present:
                yield f"blocks.{i}.{path}", tuple(f"transformer_blocks.{i}.{layer}" for layer in layers)


def _vae_layers_of(
    half: VaeDecoder | VaeEncoder, tensors: TensorSource
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for i, (name, stage) in enumerate(zip(half.names, half.stages, strict=True)):
        prefix = f"{half.prefix}{name}".rstrip(".")
        table = _VAE_OLD_LAYERS if f"{prefix}.query.weight" in tensors else _VAE_LAYERS
        for path, layer in stage.named_modules():
            if list(layer.parameters(recurse=False)):
                yield (
                    f"stages.{i}.{path}".rstrip("."),
                    tuple(f"{prefix}.{theirs}".rstrip(".") for theirs in table[path]),
                )


def _tensors_of(mmdit: MMDiT) -> Iterator[tuple[str, str]]:
    yield "pos_embed", "pos_embed.pos_embed"
    for i, block in enumerate(mmdit.blocks):
        present = {name for name, _ in block.named_parameters()}
        for path, name in _BLOCK_TENSORS.items():
            if path in present:
                yield f"blocks.{i}.{path}", f"transformer_blocks.{i}.{name}"


def _fill_layer(module: nn.Module, path: str, layers: tuple[str, ...], source: _Source) -> None:
    schemes = {source.schemes.get(layer) for layer in layers}
    if len(schemes) > 1:
        raise CheckpointError(f"{', '.join(layers)} are one layer here and must share one scheme: {schemes}.")
    scheme = schemes.pop()
    if scheme is None:
        for kind, _ in module.get_submodule(path).named_parameters(recurse=False):
            parts = [source.tensor(f"{layer}.{kind}") for layer in layers]
            _set_tensor(module, f"{path}.{kind}", _stack(parts))
        return
    module.set_submodule(path, _fp8_linear(module.get_submodule(path), path, layers, scheme, source))


def _fp8_linear(
    plain: nn.Module, path: str, layers: tuple[str, ...], scheme: Scheme, source: _Source
) -> Fp8Linear:
    assert isinstance(plain, nn.Linear), f"only linear layers have schemes, not {path}"
    parts = [source.scaled(layer) for layer in layers]
    weight = ScaledTensor(_stack([part.data for part in parts]), _stack([part.scale for part in parts]))
    _check_shape(path, weight.data, plain.weight)
    bias = None
    if plain.bias is not None:
        bias = _stack([source.tensor(f"{layer}.bias") for layer in layers])
        _check_shape(path, bias, plain.bias)
    input_scale = source.input_scale(layers) if scheme.activation == "static" else None
    placement = source.placement
    here = (placement.kernels, placement.dtype)
    if not placement.fp8_activations:
        return Fp8Linear(weight, bias, "none", *here, None, placement.device)
    return Fp8Linear(weight, bias, scheme.activation, *here, input_scale, placement.device)


def _stack(parts: list[Tensor]) -> Tensor:
    """Rows under one another; a single part stays the mapped tensor that it is."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].dtype.itemsize > 1:
        return torch.cat(parts)
    return torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)


def _set_tensor(module: nn.Module, path: str, value: Tensor) -> None:
    owner_path, _, name = path.rpartition(".")
    owner = module.get_submodule(owner_path)
    _check_shape(path, value, getattr(owner, name))
    if name in owner._parameters:
        is_shared = isinstance(value, nn.Parameter)
        setattr(owner, name, value if is_shared else nn.Parameter(value, requires_grad=False))
    else:
        setattr(owner, name, value)


def _check_shape(path: str, value: Tensor, expected: Tensor) -> None:
    if value.shape != expected.shape:
        raise CheckpointError(
            f"{path} has the shape {tuple(value.shape)} in the file and {tuple(expected.shape)} by its "
            "config.json: the two are not of the same model, so fetch the checkpoint again."
        )


def _unfilled(module: nn.Module) -> Iterator[str]:
    """Names of parameters and persistent buffers that are still on the meta device."""
    for name in module.state_dict():
        owner_path, _, leaf = name.rpartition(".")
        tensor = getattr(module.get_submodule(owner_path), leaf)
        if isinstance(tensor, Tensor) and tensor.is_meta:
            yield name

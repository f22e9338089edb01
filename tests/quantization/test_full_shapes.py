"""Large and Medium at full size, by their headers: sparse files with every name and shape and no data."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from sd35.checkpoints.formats import detect
from sd35.checkpoints.keys import PREFIXES
from sd35.checkpoints.lazy import Lazy
from sd35.checkpoints.original_parts import parts_held, read_part
from sd35.checkpoints.reader import DTYPES, TensorSpec
from sd35.checkpoints.relayout import Layout, infer_transformer_config, to_original
from sd35.checkpoints.single_writer import Spelling
from sd35.quantization.transcode import plan_part

_WORDS = {dtype: word for word, dtype in DTYPES.items()}
PREFIX = PREFIXES["transformer"]
# Numbers from the two repositories' transformer/config.json; Large-Turbo has Large's shapes to the byte.
CONFIGS: dict[str, dict[str, Any]] = {
    "large": {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "dual_attention_layers": (),
    },
    "medium": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
    },
}
# Bytes: 16-bit; FP8 in all linears of the joint blocks; FP8 in all linears. Scales apart.
SIZES = {
    "large": (16_292_561_536, 8_278_246_016, 8_238_867_072),
    "medium": (4_939_327_872, 2_716_871_040, 2_697_505_152),
}
VAE_BYTES = 167_639_366
LINEARS = {"large": (377, 536), "medium": (263, 392)}  # of the blocks with q, k, v as one; all of them apart


def never() -> torch.Tensor:
    """There are no values here, and planning must not ask for any."""
    raise AssertionError("a value was read")


def sixteen_bit(module: torch.nn.Module) -> Layout:
    """A module's tensors in bf16, by name and shape."""
    specs = {name: TensorSpec(torch.bfloat16, tensor.shape) for name, tensor in module.state_dict().items()}
    return Layout({name: Lazy(spec, never) for name, spec in specs.items()})


def full_size(variant: str) -> dict[str, TensorSpec]:
    """Transformer and VAE of a variant, in the original's names."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            attention_head_dim=64,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            qk_norm="rms_norm",
            **CONFIGS[variant],
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=16,
            layers_per_block=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    parts = {"transformer": transformer, "vae": vae}
    return {
        PREFIXES[part] + name: lazy.spec
        for part, module in parts.items()
        for name, lazy in to_original(part, sixteen_bit(module)).tensors.items()
    }


def write_sparse(path: Path, specs: dict[str, TensorSpec]) -> None:
    """A file with this header and holes for data; single scales are 0.5."""
    header, offset, scales = {}, 0, []
    for name, spec in specs.items():
        end = offset + spec.num_bytes
        header[name] = {"dtype": _WORDS[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, end]}
        if name.endswith("scale_weight"):
            scales.append(offset)
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
        for at in scales:
            file.seek(8 + len(text) + at)
            file.write(torch.tensor(0.5).numpy().tobytes())


def as_legacy(specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Every matrix of the transformer in FP8, as the public `fp8_scaled` file has it."""
    fp8: dict[str, TensorSpec] = {f"{PREFIX}scaled_fp8": TensorSpec(torch.float8_e4m3fn, torch.Size((0,)))}
    for name, spec in specs.items():
        is_linear = name.startswith(PREFIX) and name.endswith(".weight") and len(spec.shape) == 2
        fp8[name] = TensorSpec(torch.float8_e4m3fn, spec.shape) if is_linear else spec
        if is_linear:
            fp8[f"{name.removesuffix('.weight')}.scale_weight"] = TensorSpec(torch.float32, torch.Size(()))
    return fp8


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The sparse file of a variant in a format, written once."""
    folder = tmp_path_factory.mktemp("sparse")

    def path(variant: str, kind: str) -> Path:
        at = folder / f"{variant}-{kind}.safetensors"
        if not at.exists():
            specs = full_size(variant)
            write_sparse(at, as_legacy(specs) if kind == "legacy" else specs)
        return at

    return path


@pytest.mark.parametrize("variant", ["large", "medium"])
def test_recognised_at_full_size(sparse: Callable[[str, str], Path], variant: str) -> None:
    """Format, parts and the transformer's numbers come from the header; sizes are right to the byte."""
    path = sparse(variant, "16bit")
    assert detect(path) == "16-bit file"
    assert set(parts_held(path)) == {"transformer", "vae"}
    with read_part(path, "transformer", PREFIX) as source:
        config = infer_transformer_config(source.tensors)
        assert sum(spec.num_bytes for spec in source.specs.values()) == SIZES[variant][0]
    for key, value in CONFIGS[variant].items():
        assert config[key] == (list(value) if isinstance(value, tuple) else value), key
    with read_part(path, "vae", PREFIXES["vae"]) as source:
        assert sum(spec.num_bytes for spec in source.specs.values()) == VAE_BYTES


@pytest.mark.parametrize("variant", ["large", "medium"])
@pytest.mark.parametrize("target", ["comfy", "comfy-legacy", "rowwise"])
def test_a_16_bit_file_as_fp8(sparse: Callable[[str, str], Path], variant: str, target: Spelling) -> None:
    """Planning FP8 of a 16-bit file costs no read; its bytes are the table's and the scales'."""
    with read_part(sparse(variant, "16bit"), "transformer", PREFIX) as source:
        plan = plan_part("transformer", source, target)
    layers = LINEARS[variant][0]
    assert plan.losses.total() == len(plan.layout.schemes) == layers
    scales = [lazy for name, lazy in plan.layout.tensors.items() if name.endswith(".weight_scale")]
    assert len(scales) == layers
    assert all(math.prod(lazy.shape) == 1 for lazy in scales) == (target != "rowwise")
    assert plan.num_bytes - sum(lazy.spec.num_bytes for lazy in scales) == SIZES[variant][1]


@pytest.mark.parametrize("variant", ["large", "medium"])
def test_the_public_fp8_layout(sparse: Callable[[str, str], Path], variant: str) -> None:
    """A file with all linears in legacy FP8 goes into C and G without loss."""
    path = sparse(variant, "legacy")
    assert detect(path) == "comfy-legacy"
    with read_part(path, "transformer", PREFIX) as source:
        assert len(source.schemes) == LINEARS[variant][1]
        data = sum(spec.num_bytes for name, spec in source.specs.items() if not name.endswith("_scale"))
        assert data == SIZES[variant][2]
        for target in ("comfy", "rowwise"):
            plan = plan_part("transformer", source, target)
            assert not plan.losses
            kept = [lazy for name, lazy in plan.layout.tensors.items() if not name.endswith("_scale")]
            assert sum(lazy.spec.num_bytes for lazy in kept) == SIZES[variant][2]


def test_back_to_16_bit(sparse: Callable[[str, str], Path]) -> None:
    """Restored to bf16 the file has its first size again."""
    with read_part(sparse("large", "legacy"), "transformer", PREFIX) as source:
        assert plan_part("transformer", source, "16bit-file").num_bytes == SIZES["large"][0]

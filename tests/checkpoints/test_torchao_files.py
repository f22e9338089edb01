"""torchao's FP8 in a diffusers folder, spelled as torchao 0.18 writes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.formats import detect
from sd35.errors import CheckpointError
from sd35.fp8 import Granularity, Scheme, quantize

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.0.attn.to_q"


def entry(block: list[int], activation: dict[str, Any] | None = None, kind: str = "Float8Tensor") -> str:
    """One tensor's header entry."""
    data = {
        "block_size": block,
        "mm_config": None,
        "act_quant_kwargs": activation,
        "kernel_preference": {"_type": "KernelPreference", "_data": "AUTO"},
        "dtype": {"_type": "torch.dtype", "_data": "bfloat16"},
    }
    return json.dumps({"_type": kind, "_data": data, "_tensor_data_names": ["qdata", "scale"]})


def write(folder: Path, granularity: Granularity, header_entry: str) -> Tensor:
    """Make one layer of the folder's transformer torchao's; gives what it was."""
    tensors = load_file(folder / TRANSFORMER)
    weight = tensors.pop(f"{LAYER}.weight")
    scaled = quantize(weight, "e4m3fn", granularity)
    metadata = {name: json.dumps({"_type": "Tensor"}) for name in tensors}
    tensors[f"{LAYER}._weight_qdata"] = scaled.data
    tensors[f"{LAYER}._weight_scale"] = scaled.scale.reshape(-1, 1)
    metadata[f"{LAYER}.weight"] = header_entry
    metadata["tensor_names"] = json.dumps(list(metadata))
    save_file(tensors, folder / TRANSFORMER, {"format": "pt", **metadata})
    return weight


@pytest.mark.parametrize(
    ("granularity", "block", "activation", "scheme"),
    [
        ("rowwise", [1, 256], None, Scheme("e4m3fn", "rowwise", "none")),
        ("tensorwise", [256, 256], {"_type": "x"}, Scheme("e4m3fn", "tensorwise", "dynamic")),
    ],
)
def test_both_granularities(
    demo_copy: Path, granularity: Granularity, block: list[int], activation: dict[str, Any], scheme: Scheme
) -> None:
    """PerRow and PerTensor restore to the weight, with and without quantised activations."""
    weight = write(demo_copy, granularity, entry(block, activation))
    assert detect(demo_copy) == "torchao"
    with open_folder(demo_copy).tensors("transformer") as source:
        assert source.schemes == {LAYER: scheme}
        restored = source.read(f"{LAYER}.weight").float() * source.read(f"{LAYER}.weight_scale")
        assert torch.equal(restored, quantize(weight, "e4m3fn", granularity).dequantize())
        assert not any("._weight" in name for name in source)


@pytest.mark.parametrize(
    ("header_entry", "word"),
    [
        (entry([1, 256], kind="NVFP4Tensor"), "NVFP4Tensor"),
        (entry([1, 32]), r"blocks of \[1, 32\]"),
        ("{", "can't be understood"),
        ("3", "can't be understood"),
    ],
)
def test_other_classes_are_refused(demo_copy: Path, header_entry: str, word: str) -> None:
    """torchao's other tensor classes, and headers that are none, are refused with what they are."""
    write(demo_copy, "rowwise", header_entry)
    with pytest.raises(CheckpointError, match=word):
        open_folder(demo_copy).tensors("transformer")


def test_a_lost_scale_is_named(demo_copy: Path) -> None:
    """Data without its scale is refused."""
    write(demo_copy, "rowwise", entry([1, 256]))
    with open_folder(demo_copy).tensors("transformer") as source:
        metadata = dict(source._reader.metadata)
    tensors = load_file(demo_copy / TRANSFORMER)
    del tensors[f"{LAYER}._weight_scale"]
    save_file(tensors, demo_copy / TRANSFORMER, metadata)
    with pytest.raises(CheckpointError, match="_weight_scale"):
        open_folder(demo_copy).tensors("transformer")


@pytest.mark.parametrize(
    ("method", "word"),
    [
        ("modelopt", "ModelOpt"),
        ("compressed-tensors", "vLLM"),
        ("fp8", "finegrained"),
        ("new", "does not know"),
        (["torchao"], "no method"),
    ],
)
def test_other_quantizations_of_folders(
    demo_copy: Path, edit_json: Callable[..., None], method: object, word: str
) -> None:
    """A folder that another tool has quantized is refused by that tool's name."""
    edit_json(demo_copy / "transformer/config.json", quantization_config={"quant_method": method})
    with pytest.raises(CheckpointError, match=word):
        open_folder(demo_copy).tensors("transformer")

"""FP8 as others spell it: what each format means, and everything that contradicts itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd35.checkpoints.fp8_files import Fp8Tensors, read_fp8
from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.schemes import METADATA_KEY
from sd35.errors import CheckpointError
from sd35.fp8 import Scheme

PREFIX = "model.diffusion_model."
FP8 = torch.float8_e4m3fn
HALF = torch.tensor(0.5)
WEIGHT = torch.tensor([[1.0, -2.0, 3.0], [0.5, 448.0, -1.5]])


def hint(**entry: Any) -> Tensor:
    """A `comfy_quant` tensor."""
    return torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)


def header(**layers: dict[str, Any]) -> dict[str, str]:
    """`_quantization_metadata` for layers under the prefix."""
    full = {PREFIX + layer: entry for layer, entry in layers.items()}
    return {METADATA_KEY: json.dumps({"format_version": "1.0", "layers": full})}


def understood(
    folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> Fp8Tensors:
    """What we make of these tensors under the prefix, beside a 16-bit layer and another part."""
    path = folder / "x.safetensors"
    ours = {PREFIX + name: tensor.clone() for name, tensor in tensors.items()}
    others = {f"{PREFIX}plain.weight": torch.ones(2, 2).half(), "first_stage_model.a": torch.ones(1)}
    save_file({**others, **ours}, path, metadata)
    return read_fp8(TensorReader([path]), PREFIX)


def restored(part: Fp8Tensors) -> Tensor:
    """The weight of layer `a` by its data and its scale."""
    return part.tensors["a.weight"].read().float() * part.tensors["a.weight_scale"].read()


E4M3 = {"format": "float8_e4m3fn"}
LEGACY = {"scaled_fp8": torch.zeros(0).to(FP8), "a.weight": WEIGHT.to(FP8), "a.scale_weight": HALF}
HINTED = {"a.weight": WEIGHT.to(FP8), "a.weight_scale": HALF, "a.comfy_quant": hint(**E4M3)}
BY_HEADER = {"a.weight": WEIGHT.to(FP8), "a.weight_scale": HALF}


@pytest.mark.parametrize(
    ("changes", "scheme"),
    [
        ({}, Scheme("e4m3fn", "tensorwise", "dynamic")),
        ({"scaled_fp8": torch.zeros(2).to(FP8)}, Scheme("e4m3fn", "tensorwise", "none")),
        ({"scaled_fp8": torch.zeros(0)}, Scheme("e4m3fn", "tensorwise", "dynamic")),
        ({"scaled_fp8": torch.zeros(2)}, Scheme("e4m3fn", "tensorwise", "none")),
        ({"a.scale_weight": torch.tensor([0.5])}, Scheme("e4m3fn", "tensorwise", "dynamic")),
        (
            {"scaled_fp8": torch.zeros(0).to(torch.float8_e5m2), "a.weight": WEIGHT.to(torch.float8_e5m2)},
            Scheme("e5m2", "tensorwise", "dynamic"),
        ),
    ],
)
def test_legacy_marker(tmp_path: Path, changes: dict[str, Tensor], scheme: Scheme) -> None:
    """B: the marker's dtype names the format, float32 means e4m3fn, two elements mean 16-bit products."""
    part = understood(tmp_path, {**LEGACY, **changes})
    assert part.format == "comfy-legacy"
    assert part.schemes == {"a": scheme}
    assert set(part.tensors) == {"a.weight", "a.weight_scale", "plain.weight"}
    torch.testing.assert_close(restored(part), WEIGHT * 0.5, rtol=0.13, atol=0)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (HINTED, {}),
        (BY_HEADER, header(a=E4M3)),
        (HINTED, header(a=E4M3)),
        ({**HINTED, "a.weight_scale": torch.tensor([[0.5]])}, {}),
    ],
)
def test_both_transports_of_hints(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """C: the format comes from `comfy_quant`, from the header, or from both."""
    part = understood(tmp_path, tensors, metadata)
    assert part.format == "comfy"
    assert part.schemes == {"a": Scheme("e4m3fn", "tensorwise", "dynamic")}
    assert set(part.tensors) == {"a.weight", "a.weight_scale", "plain.weight"}
    assert torch.equal(restored(part), WEIGHT * 0.5)


@pytest.mark.parametrize("transport", ["tensor", "header"])
def test_full_precision_matrix_mult(tmp_path: Path, transport: str) -> None:
    """C: the flag means that the product is taken in 16 bit."""
    entry = {**E4M3, "full_precision_matrix_mult": True}
    if transport == "tensor":
        part = understood(tmp_path, {**BY_HEADER, "a.comfy_quant": hint(**entry)})
    else:
        part = understood(tmp_path, BY_HEADER, header(a=entry))
    assert part.schemes["a"].activation == "none"


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_scale_a_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """G: without a hint, as many scales as rows are one a row."""
    scale = torch.tensor([0.5, 4.0])
    part = understood(tmp_path, {**BY_HEADER, "a.weight_scale": scale.reshape(shape)})
    assert part.format == "rowwise"
    assert part.schemes == {"a": Scheme("e4m3fn", "rowwise", "dynamic")}
    assert torch.equal(restored(part), WEIGHT * scale[:, None])


def test_square_weights_have_scales_of_rows(tmp_path: Path) -> None:
    """Where rows and columns are as many, the scales are still those of the rows."""
    scale, weight = torch.tensor([0.5, 4.0, 16.0]), torch.ones(3, 3)
    part = understood(tmp_path, {"a.weight": weight.to(FP8), "a.weight_scale": scale})
    assert torch.equal(restored(part), scale[:, None].expand(3, 3))


def test_plain_casts(tmp_path: Path) -> None:
    """A: a matrix stays FP8 with the scale 1 and 16-bit products; tables and vectors become bf16, exactly."""
    small = WEIGHT.clamp(-4, 4)
    tensors = {"a.weight": small, "a.bias": small[0], "pos_embed": small, "shared.weight": small}
    part = understood(tmp_path, {name: tensor.to(FP8) for name, tensor in tensors.items()})
    assert part.format == "plain"
    assert part.schemes == {"a": Scheme("e4m3fn", "tensorwise", "none")}
    assert torch.equal(restored(part), small)
    for name in ("a.bias", "pos_embed", "shared.weight"):
        assert part.tensors[name].dtype == torch.bfloat16
        assert torch.equal(part.tensors[name].read().float(), tensors[name])


def test_sixteen_bit(tmp_path: Path) -> None:
    """Without FP8 nothing is declared, and nothing changes."""
    part = understood(tmp_path, {"a.weight": WEIGHT.bfloat16()})
    assert (part.format, part.schemes) == ("16-bit file", {})
    assert torch.equal(part.tensors["a.weight"].read(), WEIGHT.bfloat16())


@pytest.mark.parametrize("tensors", [{**LEGACY, "a.scale_input": HALF}, {**HINTED, "a.input_scale": HALF}])
def test_static_activation_scales_are_kept_apart(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """Both names of an activation's scale are understood, and it is no scale of the weight."""
    part = understood(tmp_path, tensors)
    assert part.input_scales["a"].read() == 0.5
    assert set(part.tensors) == {"a.weight", "a.weight_scale", "plain.weight"}


@pytest.mark.parametrize(
    "scale",
    [
        torch.tensor(0.5).half(),
        torch.tensor(0.5).bfloat16(),
        torch.tensor(0.5).double(),
        torch.ones(3),
        torch.ones(1, 2),
    ],
)
def test_scales_of_another_kind_are_refused(tmp_path: Path, scale: Tensor) -> None:
    """A scale that is not float32, or as many values as columns, restores nothing."""
    with pytest.raises(CheckpointError, match=r"a\.weight_scale"):
        understood(tmp_path, {**HINTED, "a.weight_scale": scale})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_must_be_finite_and_positive(tmp_path: Path, value: float) -> None:
    """A scale that would wipe out, turn round or blow up a weight is refused when it is read."""
    part = understood(tmp_path, {**HINTED, "a.weight_scale": torch.tensor(value)})
    with pytest.raises(CheckpointError, match="finite and above zero"):
        part.tensors["a.weight_scale"].read()


SIXTEEN = {"b.weight": WEIGHT.half()}


@pytest.mark.parametrize(
    ("tensors", "metadata", "word"),
    [
        ({**LEGACY, "b.weight": WEIGHT.to(FP8)}, {}, r"b\.weight .* no scale"),
        ({**LEGACY, "a.bias": WEIGHT[0].to(FP8)}, {}, r"a\.bias .* no scale"),
        ({**LEGACY, **SIXTEEN, "b.scale_weight": HALF}, {}, r"b\.weight is torch\.float16"),
        ({**LEGACY, "b.scale_weight": HALF}, {}, r"holds no b\.weight"),
        ({**LEGACY, "b.scale_input": HALF}, {}, r"b\.scale_input is a scale of no"),
        ({**LEGACY, "scaled_fp8": torch.zeros(0).half()}, {}, "names no FP8"),
        ({**LEGACY, "scaled_fp8": torch.zeros(0).to(torch.float8_e5m2)}, {}, "declares it e5m2"),
        ({**HINTED, "b.weight": WEIGHT.to(FP8)}, {}, r"b\.weight .* no scale"),
        ({**HINTED, "b.weight_scale": HALF}, {}, r"b\.weight_scale is a scale of no"),
        ({"a.weight": WEIGHT.to(FP8), "a.comfy_quant": hint(**E4M3)}, {}, "lacks its scale"),
        ({**HINTED, "a.weight": WEIGHT.half()}, {}, r"a\.weight is torch\.float16"),
        ({**HINTED, "a.weight_scale": torch.ones(2)}, {}, r"tensorwise scale"),
        (HINTED, header(a={"format": "float8_e4m3fn_rowwise"}), "header says"),
        (HINTED, header(b=E4M3), r"holds no b\.weight"),
        ({**SIXTEEN, "b.weight_scale": HALF}, {}, "belongs to a weight that is torch.float16"),
        ({**HINTED, "a.comfy_quant": torch.ones(3)}, {}, "no JSON in bytes"),
        ({**HINTED, "a.comfy_quant": torch.ones(3, dtype=torch.uint8)}, {}, "can't be understood"),
        ({**HINTED, "a.comfy_quant": torch.zeros(70_000, dtype=torch.uint8)}, {}, "no JSON in bytes"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], word: str
) -> None:
    """FP8 without its scale, a scale without its FP8, hints against tensors: each is named."""
    with pytest.raises(CheckpointError, match=word):
        understood(tmp_path, tensors, metadata)


@pytest.mark.parametrize(
    ("tensors", "metadata", "word"),
    [
        ({**BY_HEADER, "a.comfy_quant": hint(format="mxfp8")}, {}, "MXFP8"),
        ({**BY_HEADER, "a.comfy_quant": hint(format="nvfp4")}, {}, "NVFP4"),
        (BY_HEADER, header(a={"format": "fp8"}), "ModelOpt"),
        (BY_HEADER, header(a={"format": "float7"}), "unknown format"),
        ({"a.weight": WEIGHT.to(FP8), "a.weight_scale_inv": torch.ones(1, 1)}, {}, "finegrained"),
        ({**BY_HEADER, "a.weight_scale_2": HALF}, {}, "NVFP4"),
        ({"a.weight_packed": torch.ones(2, 2, dtype=torch.uint8)}, {}, "compressed-tensors"),
    ],
)
def test_formats_that_are_not_read_have_names(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], word: str
) -> None:
    """What we know and do not read is refused as what it is."""
    with pytest.raises(CheckpointError, match=word):
        understood(tmp_path, tensors, metadata)


def test_lost_scales_are_noticed(tmp_path: Path) -> None:
    """A scaled file whose scales some tool has dropped looks like a plain cast, and is refused."""
    weights = {f"{layer}.weight": WEIGHT.to(FP8) for layer in "abcdef"}  # each reaches 448
    with pytest.raises(CheckpointError, match="dropped"):
        understood(tmp_path, weights)

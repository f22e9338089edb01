"""A real FP8 product on this device, held to float64.

Two errors are told apart. Rounding to FP8 costs what it costs (a few percent of a product of random numbers);
what the device adds when it multiplies those rounded numbers should be bf16's last place and nothing more. So
the second is measured against float64 over the very same FP8 values, and a device that adds more is wrong.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sd35.doctor.finding import Finding, well, wrong
from sd35.fp8 import Activation, ScaledTensor, quantize
from sd35.runtime.linear import Fp8Linear
from sd35.runtime.weights import Placement

_TOKENS, _INPUTS, _OUTPUTS = 64, 1024, 512
# Relative root mean square. bf16 keeps 8 bits: a rounding costs at most 2^-9 of a value; partial sums cost
# more where FP8 tensor cores accumulate in fewer bits than float32 has.
MOST_ADDED = 0.01


@dataclass(frozen=True)
class ProductError:
    """Relative RMS errors: of the device's arithmetic, of all with the rounding to FP8; who multiplied."""

    added: float
    in_all: float
    by: str


def measure_product(placement: Placement) -> ProductError:
    """Multiply random numbers by an FP8 layer as drawing would."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, _INPUTS, generator=generator).to(placement.dtype)
    weight = torch.randn(_OUTPUTS, _INPUTS, generator=generator) / _INPUTS**0.5
    scaled = quantize(weight)
    on_device = ScaledTensor(scaled.data.to(placement.device), scaled.scale.to(placement.device))
    activation: Activation = "dynamic" if placement.fp8_activations else "none"
    layer = Fp8Linear(on_device, None, activation, placement.kernels, placement.dtype)
    with torch.inference_mode():
        got = layer(x.to(placement.device))
    assert isinstance(got, Tensor)
    same = quantize(x.float()).dequantize() if placement.fp8_activations else x
    exact = same.double() @ scaled.dequantize().double().T
    by = (
        "FP8 x FP8, tensor cores"
        if layer.is_native
        else "FP8 x FP8, emulated"
        if placement.fp8_activations
        else "FP8 x 16 bit"
    )
    return ProductError(_relative(got, exact), _relative(got, x.double() @ weight.double().T), by)


def check_product(placement: Placement) -> Finding:
    """Whether the device multiplies, and rightly."""
    try:
        return judge(measure_product(placement))
    except RuntimeError as error:  # whatever a driver or a card without code for it says
        reason = str(error).partition("\n")[0]
        what = f"{placement.device} can't multiply: {reason}"
        return wrong("FP8 arithmetic", what, "sd35 generate --device cpu ...", "card not used")


def judge(error: ProductError) -> Finding:
    """Whether what the device adds is no more than it may."""
    what = (
        f"{error.by}: the device adds {error.added:.2%} to float64 over the same FP8 values, with "
        f"rounding to FP8 {error.in_all:.2%}"
    )
    if error.added <= MOST_ADDED:  # false for NaN
        return well("FP8 arithmetic", what)
    return wrong(
        "FP8 arithmetic",
        f"{what}; at most {MOST_ADDED:.0%} may be added: this driver or card computes wrongly",
        "sd35 generate --activations 16bit ...  # and report the card, the driver and this line",
        "blurred or off-colour",
    )  # fmt: skip


def _relative(got: Tensor, exact: Tensor) -> float:
    return float((got.double().cpu() - exact).norm() / exact.norm())

"""The FP8 linear layer: y = x W^T + b with W in FP8, and x too when its scheme says so.

One float32 scale a row restores the weight, and one a token the input, so the product of the two FP8
matrices only needs to be multiplied by an outer product of scales: what FP8 tensor cores offer. With static
activations all tokens share one stored scale. With activation "none", by the scheme or because the device
has no FP8 products, x stays as it is and the weight is restored for the moment of the product: one layer at
a time is there in 16 bits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sd35.config import Kernels
from sd35.fp8 import Activation, ScaledTensor
from sd35.kernels import api, reference
from sd35.kernels.operands import PLAIN, Form, Operand, Result, finished


class Fp8Linear(nn.Module):
    """A weight [N, K] in FP8 with float32 scales [N, 1] (or [N, K/128]: one a row and K group).

    It takes its input plain or, which saves a pass over it, in the form that `form` asks for. `device` is
    where it multiplies, which need not be where its weight lies meanwhile.
    """

    data: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        weight: ScaledTensor,
        bias: Tensor | None,
        activation: Activation,
        kernels: Kernels,
        dtype: torch.dtype,
        input_scale: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        assert (activation == "static") == (input_scale is not None), "a static scale, and only there"
        self.register_buffer("data", weight.data)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias)
        self.register_buffer("input_scale", input_scale)
        self.activation = activation
        self.dtype = dtype  # of the result
        self._operations = api.choose_operations(kernels, device or weight.data.device, dtype)
        self.is_native = activation != "none" and api.multiplies_natively(kernels, weight, dtype, device)

    @property
    def weight(self) -> ScaledTensor:
        """The weight as a pair. Not a tensor on purpose: code that asks `weight.dtype` would cast to FP8."""
        return ScaledTensor(self.data, self.scale)

    @property
    def form(self) -> Form:
        """How this layer wants its input."""
        return Form(self.activation, self.input_scale)

    def forward(self, x: Operand) -> Result:
        """x [..., K] -> [..., N]: a tensor from a tensor, from FP8 a `Product` where tensor cores ran."""
        if isinstance(x, ScaledTensor):
            return self._product(x)
        if self.activation == "none":
            return F.linear(x, self._operations.dequantize_weight(self.weight, x.dtype), self.bias)
        quantized = reference.take(x, self.form)
        assert isinstance(quantized, ScaledTensor)
        return finished(self._product(quantized)).to(x.dtype)

    def _product(self, x: ScaledTensor) -> Result:
        if self.is_native:
            return api.scaled_mm(x, self.weight, self.bias)
        return reference.scaled_mm(x, self.weight, self.bias, self.dtype)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        n, k = self.data.shape
        product = "16-bit" if self.activation == "none" else "tensor cores" if self.is_native else "reference"
        return f"{k} -> {n}, {self.data.dtype}, activation={self.activation}, product={product}"


def form_of(layer: nn.Module) -> Form:
    """How a linear layer, FP8 or not, wants its input."""
    return layer.form if isinstance(layer, Fp8Linear) else PLAIN

"""The FP8 linear layer: y = x W^T + b with W in FP8, and x too when its scheme says so.

One float32 scale a row restores the weight, and one a token the input, so the product of the two FP8
matrices only needs to be multiplied by an outer product of scales: what FP8 tensor cores offer. With static
activations all tokens share one stored scale. A scheme with activation "none" keeps x as it is and restores
the weight for the moment of the product.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from sd35.config import Kernels
from sd35.fp8 import Activation, ScaledTensor
from sd35.kernels import api, reference


class Fp8Linear(nn.Module):
    """A weight [N, K] in FP8 with float32 scales [N, 1] (or [N, K/128]: one a row and K group)."""

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
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        assert (activation == "static") == (input_scale is not None), "a static scale, and only there"
        self.register_buffer("data", weight.data)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias)
        self.register_buffer("input_scale", input_scale)
        self.activation = activation
        self.kernels = kernels

    @property
    def weight(self) -> ScaledTensor:
        """The weight as a pair. Not a tensor on purpose: code that asks `weight.dtype` would cast to FP8."""
        return ScaledTensor(self.data, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] in x's dtype."""
        if self.activation == "none":
            return F.linear(x, reference.dequantize_weight(self.weight, x.dtype), self.bias)
        return api.scaled_mm(self._quantized(x), self.weight, self.bias, x.dtype, self.kernels)

    def _quantized(self, x: Tensor) -> ScaledTensor:
        if self.input_scale is None:
            return reference.quantize_rowwise(x)
        return reference.quantize_static(x, self.input_scale)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        n, k = self.data.shape
        return f"{k} -> {n}, {self.data.dtype}, activation={self.activation}, kernels={self.kernels}"

"""A recipe is policy: which layers become FP8, and how. It gives each layer a scheme, which is a fact.

The default, and why:

- every linear of the joint blocks, rowwise E4M3, activations quantised token by token: 99% of the work;
- the blocks' AdaLN linears too, but their product is taken in 16 bit: they run once a request, so speed is
  no matter, and they are a third of the weights, so storage is;
- all else stays 16-bit: the embedders, `norm_out` and `proj_out` touch every step's result at little cost;
  q/k norms and biases are vectors; the VAE and both CLIPs lose more than they save;
- T5 by choice, and then in storage alone: its MLP outliers are for 16-bit arithmetic.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from sd35.fp8 import Scheme

_JOINT_LINEAR = re.compile(r"transformer_blocks\.\d+\.(attn|attn2|ff|ff_context)\..+")
_ADALN = re.compile(r"transformer_blocks\.\d+\.norm1(_context)?\.linear")
_T5_LINEAR = re.compile(
    r"encoder\.block\.\d+\.layer\.\d+\.(SelfAttention\.[qkvo]|DenseReluDense\.(wi|wi_0|wi_1|wo))"
)


@dataclass(frozen=True)
class Recipe:
    """`blocks` for the joint blocks' linears; `adaln` and `t5` for theirs, None to leave them 16-bit."""

    blocks: Scheme = field(default_factory=Scheme)
    adaln: Scheme | None = field(default_factory=lambda: Scheme().storage_only())
    t5: Scheme | None = None

    @classmethod
    def of(cls, scheme: Scheme, *, with_t5: bool = False) -> "Recipe":
        """The default policy with this scheme in all its places."""
        storage = scheme.storage_only()
        return cls(scheme, storage, storage if with_t5 else None)

    @property
    def name(self) -> str:
        """Short and unique: part of a folder's name."""
        places = {"": self.blocks, "adaln-": self.adaln, "t5-": self.t5}
        return "-".join(f"{place}{_slug(scheme)}" for place, scheme in places.items() if scheme)

    def plan(self, part: str, shapes: Mapping[str, torch.Size]) -> dict[str, Scheme]:
        """The scheme of each layer of a checkpoint part that becomes FP8, by the names of its tensors."""
        schemes = {}
        for name, shape in shapes.items():
            layer, _, kind = name.rpartition(".")
            scheme = self._scheme(part, layer) if kind == "weight" and len(shape) == 2 else None
            if scheme is not None:
                schemes[layer] = scheme
        return schemes

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def _scheme(self, part: str, layer: str) -> Scheme | None:
        if part == "transformer" and _JOINT_LINEAR.fullmatch(layer):
            return self.blocks
        if part == "transformer" and _ADALN.fullmatch(layer):
            return self.adaln
        if part == "text_encoder_3" and _T5_LINEAR.fullmatch(layer):
            return self.t5
        return None


def _slug(scheme: Scheme) -> str:
    return f"{scheme.dtype}-{scheme.granularity}" + ("" if scheme.activation == "dynamic" else "-storage")

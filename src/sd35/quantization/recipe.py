"""A recipe is policy: which layers become FP8, and how. It gives each layer a scheme, which is a fact.

The default, and why:

- every linear of the joint blocks, rowwise E4M3, activations quantised token by token: 99% of the work;
- the blocks' AdaLN linears too, but their product is taken in 16 bit: they run once a request, so speed is
  no matter, and they are a third of the weights, so storage is;
- all else stays 16-bit: the embedders, `norm_out` and `proj_out` touch every step's result at little cost;
  q/k norms and biases are vectors; the VAE and both CLIPs lose more than they save;
- T5 by choice, and then in storage alone: its MLP outliers are for 16-bit arithmetic.

Rules override the default, layer by layer: `*.ff.net.2=16bit` leaves every second MLP linear as it is. The
first rule whose pattern fits decides. What a recipe may touch is fixed all the same: no rule makes a norm,
an embedder, a CLIP or the VAE FP8.

A recipe also says how values are rounded (`rounding.py`) and what becomes of layers that FP8 would spoil
(`outliers.py`).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch

from sd35.errors import RequestError
from sd35.fp8 import Activation, Scheme

_JOINT_LINEAR = re.compile(r"transformer_blocks\.\d+\.(attn|attn2|ff|ff_context)\..+")
_ADALN = re.compile(r"transformer_blocks\.\d+\.norm1(_context)?\.linear")
_T5_LINEAR = re.compile(
    r"encoder\.block\.\d+\.layer\.\d+\.(SelfAttention\.[qkvo]|DenseReluDense\.(wi|wi_0|wi_1|wo))"
)


# q, k and v of one attention become one layer at run time, so they must be of one scheme.
_FUSED = re.compile(r"(.+\.)(?:to_[qkv]|add_[qkv]_proj)")
KEEP_16BIT = "16bit"
Rounding = Literal["nearest", "learned"]
OutlierPolicy = Literal["keep", "refuse", "ignore"]
_ACTIVATIONS: dict[str, Activation] = {"": "dynamic", "static": "static", "storage": "none"}


@dataclass(frozen=True)
class Rule:
    """Layers whose `part.layer` fits a shell pattern get this scheme; None leaves them 16-bit."""

    pattern: str
    scheme: Scheme | None

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """`PATTERN=SCHEME`, such as `*.ff.net.2=16bit` or `text_encoder_3.*=e5m2-rowwise-storage`."""
        pattern, equals, name = text.rpartition("=")
        if not equals or not pattern or not name:
            raise RequestError(
                f"The rule {text!r} has no scheme: write PATTERN=SCHEME, such as *.ff.*=16bit."
            )
        return cls(pattern, None if name == KEEP_16BIT else _scheme_named(name))


@dataclass(frozen=True)
class Recipe:
    """`blocks` for the joint blocks' linears; `adaln` and `t5` for theirs, None to leave them 16-bit.

    `rules` come before all three. `rounding` "learned" is the transformer's, which calibration reaches; the
    outlier guard keeps spoilt layers in more bits, refuses the checkpoint for them, or ignores them.
    """

    blocks: Scheme = field(default_factory=Scheme)
    adaln: Scheme | None = field(default_factory=lambda: Scheme().storage_only())
    t5: Scheme | None = None
    rules: tuple[Rule, ...] = ()
    rounding: Rounding = "nearest"
    outliers: OutlierPolicy = "keep"

    def __post_init__(self) -> None:
        for name, kinds in (("rounding", Rounding), ("outliers", OutlierPolicy)):
            if getattr(self, name) not in get_args(kinds):
                choices = ", ".join(get_args(kinds))
                raise RequestError(f"{name} can't be {getattr(self, name)!r}: choose one of {choices}.")

    @classmethod
    def of(
        cls,
        scheme: Scheme,
        *,
        with_t5: bool = False,
        rules: tuple[Rule, ...] = (),
        rounding: Rounding = "nearest",
        outliers: OutlierPolicy = "keep",
    ) -> "Recipe":
        """The default policy with this scheme in all its places, and exceptions."""
        storage = scheme.storage_only()
        return cls(scheme, storage, storage if with_t5 else None, rules, rounding, outliers)

    @property
    def name(self) -> str:
        """Short and unique: part of a folder's name."""
        places = {"": self.blocks, "adaln-": self.adaln, "t5-": self.t5}
        words = [f"{place}{_slug(scheme)}" for place, scheme in places.items() if scheme]
        if self.rules:
            words.append(f"rules-{hashlib.sha256(repr(self.rules).encode()).hexdigest()[:8]}")
        words += [word for word in (self.rounding, self.outliers) if word not in ("nearest", "keep")]
        return "-".join(words)

    def plan(self, part: str, shapes: Mapping[str, torch.Size]) -> dict[str, Scheme]:
        """The scheme of each layer of a checkpoint part that becomes FP8, by the names of its tensors."""
        schemes = {}
        for name, shape in shapes.items():
            layer, _, kind = name.rpartition(".")
            scheme = self._scheme(part, layer) if kind == "weight" and len(shape) == 2 else None
            if scheme is not None:
                schemes[layer] = scheme
        _check_fused({name.removesuffix(".weight") for name in shapes}, schemes)
        return schemes

    def leaves(self, part: str) -> bool:
        """Whether this part stays 16-bit, whatever layers it has."""
        if part == "text_encoder_3":
            return self.t5 is None and not self.rules
        return part != "transformer"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest, as JSON gives it back."""
        return {**asdict(self), "rules": [asdict(rule) for rule in self.rules]}

    def _scheme(self, part: str, layer: str) -> Scheme | None:
        default = self._default(part, layer)
        if default is None and not (part == "text_encoder_3" and _T5_LINEAR.fullmatch(layer)):
            return None
        for rule in self.rules:
            if fnmatchcase(f"{part}.{layer}", rule.pattern):
                return rule.scheme
        return default

    def _default(self, part: str, layer: str) -> Scheme | None:
        if part == "transformer" and _JOINT_LINEAR.fullmatch(layer):
            return self.blocks
        if part == "transformer" and _ADALN.fullmatch(layer):
            return self.adaln
        if part == "text_encoder_3" and _T5_LINEAR.fullmatch(layer):
            return self.t5
        return None


def fused_with(layer: str, layers: Iterable[str]) -> list[str]:
    """Those of the layers that are one with this layer at run time, itself included."""
    group = _group(layer)
    return [other for other in layers if other == layer or (group and _group(other) == group)]


def _group(layer: str) -> str | None:
    """One word for q, k and v of one attention and one stream; None for a layer by itself."""
    found = _FUSED.fullmatch(layer)
    return f"{found[1]}{'add' if 'add_' in layer else 'to'}" if found else None


def _check_fused(layers: set[str], schemes: Mapping[str, Scheme]) -> None:
    """RequestError where rules part what is one layer at run time."""
    groups: dict[str, set[Scheme | None]] = {}
    for layer in layers:
        if group := _group(layer):
            groups.setdefault(group, set()).add(schemes.get(layer))
    for group, different in sorted(groups.items()):
        if len(different) > 1:
            raise RequestError(
                f"The rules give q, k and v of {group.rpartition('.')[0]} different schemes, and they are "
                "one layer at run time: write a pattern that takes all three, such as *.attn.*."
            )


def _scheme_named(name: str) -> Scheme:
    """`e4m3fn-rowwise`, `e5m2-tensorwise-storage`: what `_slug` writes."""
    dtype, _, rest = name.partition("-")
    granularity, _, activation = rest.partition("-")
    if activation not in _ACTIVATIONS:
        raise RequestError(f"The scheme {name!r} ends in {activation!r}: only -storage or -static may.")
    return Scheme(dtype, granularity or "rowwise", _ACTIVATIONS[activation])  # type: ignore[arg-type]


def _slug(scheme: Scheme) -> str:
    word = next(word for word, activation in _ACTIVATIONS.items() if activation == scheme.activation)
    return f"{scheme.dtype}-{scheme.granularity}" + (f"-{word}" if word else "")

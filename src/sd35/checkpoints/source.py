"""The one view of weights that the runtime has, whatever file they came from.

A source offers tensors under diffusers' names and says which layers are FP8: for each layer in `schemes`
there is `<layer>.weight` in FP8 and `<layer>.weight_scale` in float32, shaped as `fp8.scale_shape` says.
How the file spelled that (fused, swapped, scalar or a row each, header or tensors) stays behind this wall.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from sd35.checkpoints.lazy import Tensors, stored
from sd35.checkpoints.reader import TensorReader, TensorSpec
from sd35.checkpoints.scales import checked_scale
from sd35.checkpoints.schemes import load_schemes
from sd35.fp8 import Scheme


class TensorSource:
    """Tensors by diffusers' names, over open files that it closes; use it as a context manager."""

    def __init__(
        self,
        reader: TensorReader,
        tensors: Tensors,
        schemes: Mapping[str, Scheme],
        input_scales: Tensors | None = None,
        format: str = "folder",
    ) -> None:
        self._reader = reader
        self.tensors = tensors
        self.schemes = schemes
        self.format = format  # as `formats.py` names it
        self.input_scales = input_scales or {}  # by layer: one value each, where the file has static ones

    @classmethod
    def of(cls, reader: TensorReader) -> "TensorSource":
        """The file as it is: diffusers' names, and FP8 as sd35 declares it."""
        tensors = {name: stored(reader, name) for name in reader}
        schemes = load_schemes(reader.metadata)
        for layer, scheme in schemes.items():
            weight, scale = f"{layer}.weight", f"{layer}.weight_scale"
            if weight in tensors and scale in tensors:  # whoever asks for a missing one hears of it
                place = f"{reader.paths[0]}: {scale}"
                tensors[scale] = checked_scale(place, tensors[scale], tensors[weight].shape, scheme)
        static = [layer for layer, scheme in schemes.items() if scheme.activation == "static"]
        names = {layer: f"{layer}.input_scale" for layer in static}
        input_scales = {layer: tensors.pop(name) for layer, name in names.items() if name in tensors}
        return cls(reader, tensors, schemes, input_scales)

    def __enter__(self) -> "TensorSource":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def paths(self) -> list[Path]:
        """The files behind it."""
        return self._reader.paths

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """What each tensor is, by its name."""
        return {name: lazy.spec for name, lazy in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor of that name: the mapped file itself where the format allows it."""
        return self.tensors[name].read()

    def stream(self) -> None:
        """From here on tensors are read to be used and dropped: keep the mapped memory small."""
        self._reader.stream()

    def close(self) -> None:
        """Let go of the files; tensors already read stay valid."""
        self._reader.close()

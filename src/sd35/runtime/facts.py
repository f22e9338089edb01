"""What a loaded pipeline is, in figures: bytes of weights, dtypes, the peak of memory."""

import platform
import sys

import torch
from torch import nn

from sd35.runtime.linear import Fp8Linear
from sd35.runtime.pipeline import Pipeline

if sys.platform == "win32":
    import psutil

    def host_peak_bytes() -> int:
        """The most host memory that this process has had in use so far."""
        return psutil.Process().memory_info().peak_wset

else:
    import resource

    def host_peak_bytes() -> int:
        """The most host memory that this process has had in use so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def components(pipeline: Pipeline) -> dict[str, nn.Module]:
    """The parts that have weights, by their names in the checkpoint."""
    encoders = pipeline.text_encoders
    parts = {"text_encoder": encoders.clip_l.model, "text_encoder_2": encoders.clip_g.model}
    if encoders.t5 is not None:
        parts["text_encoder_3"] = encoders.t5.model
    return {**parts, "transformer": pipeline.mmdit, "vae": pipeline.vae}


def weight_bytes(pipeline: Pipeline) -> dict[str, int]:
    """Bytes of each part's parameters and tables, `total`, and `total_16bit`: the same, all in 16 bit."""
    parts = components(pipeline)
    held = {name: sum(tensor.nbytes for tensor in _tensors(part)) for name, part in parts.items()}
    elements = sum(_elements(part) for part in parts.values())
    return {**held, "total": sum(held.values()), "total_16bit": 2 * elements}


def precision(pipeline: Pipeline) -> dict[str, str]:
    """Each part's dtype: that of its FP8 layers, where it has some, and that of the rest."""
    return {name: _dtype(part) for name, part in components(pipeline).items()}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use so far: on a card what PyTorch allocated there, else the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return host_peak_bytes()


def peaks_by_device(pipeline: Pipeline) -> dict[str, int]:
    """The most memory in use so far, on each device that was named for the pipeline."""
    devices = [card.device for card in pipeline.residence.cards]
    return {str(device): peak_memory_bytes(device) for device in devices}


def machine(device: torch.device) -> str:
    """The device's name and the versions that decide its results, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU with {torch.get_num_threads()} threads, torch {torch.__version__}"


def _tensors(part: nn.Module) -> list[torch.Tensor]:
    return [*part.parameters(), *part.buffers()]


def _elements(part: nn.Module) -> int:
    """Values of the model itself: the scales of FP8 layers are none."""
    layers = [layer for layer in part.modules() if isinstance(layer, Fp8Linear)]
    scales = sum(layer.scale.numel() + (layer.input_scale is not None) for layer in layers)
    return sum(tensor.numel() for tensor in _tensors(part)) - scales


def _dtype(part: nn.Module) -> str:
    fp8 = {_name(layer.data) for layer in part.modules() if isinstance(layer, Fp8Linear)}
    rest = {_name(tensor) for tensor in part.parameters()}
    return " + ".join([*sorted(fp8), *sorted(rest)])


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

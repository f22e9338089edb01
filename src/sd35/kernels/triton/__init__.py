"""The operations as Triton kernels, by the names that `reference` gives them."""

from sd35.kernels.triton.gelu import gelu, take
from sd35.kernels.triton.heads import place_heads
from sd35.kernels.triton.modulate import modulate, settle
from sd35.kernels.triton.pictures import add_branch, group_norm, group_statistics
from sd35.kernels.triton.restore import dequantize_weight

__all__ = [
    "add_branch",
    "dequantize_weight",
    "gelu",
    "group_norm",
    "group_statistics",
    "modulate",
    "place_heads",
    "settle",
    "take",
]

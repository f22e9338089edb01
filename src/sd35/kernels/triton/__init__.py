"""The operations as Triton kernels, by the names that `reference` gives them."""

from sd35.kernels.triton.gelu import gelu, take
from sd35.kernels.triton.heads import place_heads
from sd35.kernels.triton.modulate import modulate, settle

__all__ = ["gelu", "modulate", "place_heads", "settle", "take"]

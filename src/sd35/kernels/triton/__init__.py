"""The operations as Triton kernels, by the names that `reference` gives them."""

from sd35.kernels.triton.group_norm import add_branch, group_statistics, normalize

__all__ = ["add_branch", "group_statistics", "normalize"]

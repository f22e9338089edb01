"""What of a budget a plan may need, and the words for it.

A budget is what may be allocated on a device: what is free there, or what was said. All of it can't be
planned. PyTorch's allocator holds pieces that are too small for who asks next, and these count: on an H200
under caps, plans with 3.3% and 3.9% to spare ran out of memory. So ALLOCATOR_SHARE is left to such gaps.
"""

ALLOCATOR_SHARE = 0.05


def usable(budget: int) -> int:
    """What a plan may need of a budget: all but the allocator's gaps."""
    return int(budget * (1 - ALLOCATOR_SHARE))


def in_words(budget: int) -> str:
    """7.2 GiB -> '6.84 GiB of 7.20 GiB': what a plan may need, and of how much."""
    return f"{gibibytes(usable(budget))} of {gibibytes(budget)}"


def too_little(needed: int, budget: int) -> str:
    """Why a budget is not enough for the smallest plan: the middle of a sentence about work."""
    return (
        f"{gibibytes(needed)} with the smallest plan, and {in_words(budget)} can be planned, "
        "as the allocator leaves gaps"
    )


def gibibytes(count: int) -> str:
    """1_610_612_736 -> '1.50 GiB', below a tenth of one in MiB."""
    return f"{count / 2**30:.2f} GiB" if abs(count) >= 0.1 * 2**30 else f"{count / 2**20:.0f} MiB"

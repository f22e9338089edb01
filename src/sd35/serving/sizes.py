"""Sizes for clients that were made for other models: they name a shape, or pixels that ours may not draw.

SD3.5's transformer reads tokens of 16 x 16 pixels, so both sides are multiples of 16, and its position table
ends somewhere (`Variant.max_size`). Shapes keep the number of pixels that the model was trained at.
"""

from sd35.variants import PIXELS_PER_TOKEN, Variant

# Width and height of about one megapixel in multiples of 64, for a model whose own size is 1024.
_MEGAPIXEL = {
    "21:9": (1536, 640),
    "16:9": (1344, 768),
    "3:2": (1216, 832),
    "5:4": (1088, 896),
    "1:1": (1024, 1024),
    "4:5": (896, 1088),
    "2:3": (832, 1216),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
RATIOS = tuple(_MEGAPIXEL)


def of_ratio(ratio: str, variant: Variant) -> tuple[int, int]:
    """Width and height of one of the `RATIOS`, with about as many pixels as the model's own square."""
    scale = variant.native_size / 1024
    width, height = _MEGAPIXEL[ratio]
    return fitted(round(width * scale), round(height * scale), variant)


def fitted(width: int, height: int, variant: Variant) -> tuple[int, int]:
    """The size nearest to this one, of the same shape, that the model can draw."""
    longer = max(width, height)
    if longer > variant.max_size:  # in whole numbers: a client may send one that no float holds
        width, height = (side * variant.max_size // longer for side in (width, height))
    return _whole_tokens(width), _whole_tokens(height)


def _whole_tokens(pixels: int) -> int:
    return max(1, (pixels + PIXELS_PER_TOKEN // 2) // PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN

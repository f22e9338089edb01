"""How much arithmetic one step is, counted from shapes: the yardstick beside every time.

A product of [M, K] and [K, N] is 2 M K N operations. A joint block of width D does 12 D^2 multiplications
for a token: q, k, v 3, way out 1, MLP 8. The last block's context stream does its q, k, v alone; dual
attention adds q, k, v and the way out for image tokens. Attention over N tokens is two products, q k^T and
the weights times v: 4 N^2 D. What is done once a request (AdaLN, embedders) and what is no matrix product
(norms, softmax) is left out: it is little work, and all of it is overhead that an engine should hide.
"""

from dataclasses import dataclass

from sd35.bench.workload import Workload
from sd35.checkpoints.full_size import config_of
from sd35.checkpoints.layout import TransformerSize
from sd35.checkpoints.sizes import config_size
from sd35.runtime.encoders import CLIP_TOKENS
from sd35.variants import HEAD_DIM, PIXELS_PER_TOKEN


@dataclass(frozen=True)
class Shapes:
    """What the transformer sees in one step: rows of the batch, tokens of both streams, its size."""

    rows: int
    image_tokens: int
    text_tokens: int
    size: TransformerSize

    @property
    def tokens(self) -> int:
        """Of both streams, in one row."""
        return self.image_tokens + self.text_tokens

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.size.channels // HEAD_DIM


def shapes_of(workload: Workload) -> Shapes:
    """The shapes of one step; guidance doubles the rows."""
    settings = workload.pictures(0)[0].settings
    size = config_size("transformer", config_of(workload.variant, "transformer"))
    assert isinstance(size, TransformerSize)
    return Shapes(
        rows=workload.images * (2 if settings.guided else 1),
        image_tokens=(settings.width // PIXELS_PER_TOKEN) * (settings.height // PIXELS_PER_TOKEN),
        text_tokens=CLIP_TOKENS + settings.max_sequence_length,
        size=size,
    )


def linear_flop(shapes: Shapes) -> int:
    """Floating-point operations of one step's linear layers in the joint blocks."""
    size, square = shapes.size, shapes.size.channels**2
    duals = len(size.dual_attention_layers)
    image = shapes.image_tokens * (12 * size.num_layers + 4 * duals)
    text = shapes.text_tokens * (12 * (size.num_layers - 1) + 3)
    return 2 * square * (image + text) * shapes.rows


def attention_flop(shapes: Shapes) -> int:
    """Floating-point operations of one step's attentions, joint and dual."""
    size = shapes.size
    joint = size.num_layers * shapes.tokens**2
    dual = len(size.dual_attention_layers) * shapes.image_tokens**2
    return 4 * size.channels * (joint + dual) * shapes.rows

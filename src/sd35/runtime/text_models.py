"""The two kinds of text encoder, CLIP's and T5's: tokens -> one vector for each of them.

Both are stacks of attention and MLP, each normed before (never after) and added to what came in. They
differ in what they know of order: CLIP adds a learned vector for each position and looks only back, T5
looks both ways and adds to each attention score a learned number for the distance between two tokens.
Distances are told apart one by one up to a quarter of the buckets, and ever more coarsely beyond.

Layers have the names of transformers' classes, so the checkpoint's tensors need no table. Those classes
would do the same, after two seconds of imports; the tests hold ours to them.

Shapes: B batch, T tokens, C channels. Sources: arXiv 2103.00020 (CLIP), 1910.10683 (T5), 2002.05202 (its
gated MLP).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEGACY_END_TOKEN = 2  # what configs of CLIP say whose end token is in truth the vocabulary's last


@dataclass(frozen=True)
class ClipConfig:
    """The numbers of a CLIP text encoder."""

    num_layers: int
    channels: int
    mlp_channels: int
    num_heads: int
    projection: int  # channels of the pooled text
    vocabulary: int
    positions: int
    end_token: int
    activation: str  # "gelu", or CLIP-L's "quick_gelu"
    epsilon: float


@dataclass(frozen=True)
class T5Config:
    """The numbers of a T5 v1.1 encoder."""

    num_layers: int
    channels: int
    mlp_channels: int
    num_heads: int
    head_dim: int
    vocabulary: int
    buckets: int  # of distances between tokens, half of them for each direction
    max_distance: int  # from here on all distances share a bucket
    epsilon: float


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class Table(nn.Module):
    """A vector for each number. (`nn.Embedding` fills itself at random, even where it has no memory.)"""

    def __init__(self, rows: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, channels))

    def forward(self, rows: Tensor) -> Tensor:
        """[...] -> [..., C]."""
        return F.embedding(rows, self.weight)


class ClipTextModel(nn.Module):
    """CLIP's text encoder; what it gives is the last layer's input and the pooled projection."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.end_token = config.end_token
        layers = nn.ModuleList(ClipLayer(config) for _ in range(config.num_layers))
        self.text_model = nn.ModuleDict(
            {
                "embeddings": ClipEmbeddings(config),
                "encoder": nn.ModuleDict({"layers": layers}),
                "final_layer_norm": nn.LayerNorm(config.channels, config.epsilon),
            }
        )
        self.text_projection = nn.Linear(config.channels, config.projection, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] -> tokens [B, T, C] of the last layer but one, pooled text [B, P]."""
        return self.each([ids])[0]

    def each(self, texts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Several texts' ids, each by itself, yet with one walk through the layers: they may be far away.

        The embeddings are read where they lie, which need not be where the ids are.
        """
        embeddings = cast(ClipEmbeddings, self.text_model["embeddings"])
        streams = [embeddings(ids.to(embeddings.device)).to(ids.device) for ids in texts]
        *layers, last = self.text_model.get_submodule("encoder.layers").children()
        for layer in layers:
            streams = [layer(x) for x in streams]
        ends = [last(x) for x in streams]
        return [(x, self._pooled(end, ids)) for x, end, ids in zip(streams, ends, texts, strict=True)]

    def _pooled(self, x: Tensor, ids: Tensor) -> Tensor:
        """The last layer's tokens [B, T, C] -> the projection of each text's end [B, P]."""
        normed = self.text_model["final_layer_norm"](x)
        rows = torch.arange(len(ids), device=ids.device)
        pooled: Tensor = self.text_projection(normed[rows, self._end_of(ids)])
        return pooled

    def _end_of(self, ids: Tensor) -> Tensor:
        """Where each text ends: its first end token."""
        if self.end_token == LEGACY_END_TOKEN:
            return ids.argmax(dim=-1)
        return (ids == self.end_token).int().argmax(dim=-1)


class ClipEmbeddings(nn.Module):
    """A vector for each token plus one for each place."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = Table(config.vocabulary, config.channels)
        self.position_embedding = Table(config.positions, config.channels)

    @property
    def device(self) -> torch.device:
        """Where they are looked up."""
        return self.token_embedding.weight.device

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class ClipLayer(nn.Module):
    """Attention to what came before, then the MLP."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        channels = config.channels
        self.num_heads, self.activation = config.num_heads, _ACTIVATIONS[config.activation]
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(channels, channels) for name in names})
        self.layer_norm1 = nn.LayerNorm(channels, config.epsilon)
        self.layer_norm2 = nn.LayerNorm(channels, config.epsilon)
        widths = {"fc1": (channels, config.mlp_channels), "fc2": (config.mlp_channels, channels)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*width) for name, width in widths.items()})

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        normed = self.layer_norm1(x)
        q, k, v = (_heads(self.self_attn[f"{name}_proj"](normed), self.num_heads) for name in "qkv")
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.self_attn["out_proj"](_joined(attended))
        return x + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(x))))


class T5Encoder(nn.Module):
    """T5's encoder."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = Table(config.vocabulary, config.channels)
        self.encoder = nn.ModuleDict(
            {
                "embed_tokens": self.shared,  # its other name
                "block": nn.ModuleList(T5Block(config, is_first=i == 0) for i in range(config.num_layers)),
                "final_layer_norm": nn.RMSNorm(config.channels, config.epsilon),
            }
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B, T] -> tokens [B, T, C]."""
        return self.each([ids])[0]

    def each(self, texts: list[Tensor]) -> list[Tensor]:
        """Several texts' ids, each by itself, yet with one walk through the layers: they may be far away.

        The two tables are read where they lie, which need not be where the ids are.
        """
        device = texts[0].device
        blocks = cast(list[T5Block], list(self.encoder.get_submodule("block").children()))
        buckets = distance_buckets(texts[0].shape[1], self.config.buckets, self.config.max_distance)
        bias = blocks[0].distance_bias(buckets).to(device)
        streams = [self.shared(ids.to(self.shared.weight.device)).to(device) for ids in texts]
        for block in blocks:
            streams = [block(x, bias) for x in streams]
        return [self.encoder["final_layer_norm"](x) for x in streams]


class T5Block(nn.Module):
    """Attention to all tokens, then the gated MLP; the first block has the table of distances."""

    def __init__(self, config: T5Config, *, is_first: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.num_heads * config.head_dim
        attention: dict[str, nn.Module] = {
            name: nn.Linear(config.channels, inner, bias=False) for name in "qkv"
        }
        attention["o"] = nn.Linear(inner, config.channels, bias=False)
        if is_first:
            attention["relative_attention_bias"] = Table(config.buckets, config.num_heads)
        mlp = {name: nn.Linear(config.channels, config.mlp_channels, bias=False) for name in ("wi_0", "wi_1")}
        mlp["wo"] = nn.Linear(config.mlp_channels, config.channels, bias=False)
        parts = {"SelfAttention": nn.ModuleDict(attention), "DenseReluDense": nn.ModuleDict(mlp)}
        self.layer = nn.ModuleList(
            nn.ModuleDict({name: part, "layer_norm": nn.RMSNorm(config.channels, config.epsilon)})
            for name, part in parts.items()
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, T, C], and what distance adds to each head's scores [1, H, T, T] -> [B, T, C]."""
        return self._with_mlp(self._with_attention(x, bias))

    def distance_bias(self, buckets: Tensor) -> Tensor:
        """Buckets [T, T] -> what they add to each head's scores [1, H, T, T]; the first block serves all."""
        table = self.get_submodule("layer.0.SelfAttention.relative_attention_bias")
        assert isinstance(table, Table)
        return table(buckets.to(table.weight.device)).permute(2, 0, 1)[None]

    def _with_attention(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, normed = self._part(0, "SelfAttention", x)
        q, k, v = (_heads(attention[name](normed), self.num_heads) for name in "qkv")
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # T5 does not scale
        return x + attention["o"](_joined(attended))

    def _with_mlp(self, x: Tensor) -> Tensor:
        mlp, normed = self._part(1, "DenseReluDense", x)
        return x + mlp["wo"](F.gelu(mlp["wi_0"](normed), approximate="tanh") * mlp["wi_1"](normed))

    def _part(self, number: int, name: str, x: Tensor) -> tuple[nn.ModuleDict, Tensor]:
        """One of the two parts, and its normed input."""
        layer = self.layer[number]
        assert isinstance(layer, nn.ModuleDict)
        part = layer[name]
        assert isinstance(part, nn.ModuleDict)
        return part, layer["layer_norm"](x)


def distance_buckets(tokens: int, buckets: int, max_distance: int) -> Tensor:
    """The bucket of the distance from each token to each other, [T, T]: looking back, then looking ahead."""
    place = torch.arange(tokens)
    ahead = place[None, :] - place[:, None]
    distance, half = ahead.abs(), buckets // 2
    exact = half // 2
    steps = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    coarse = (exact + (steps * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, coarse) + half * (ahead > 0)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, C] -> [B, H, T, D]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, C]."""
    return x.transpose(1, 2).flatten(2)

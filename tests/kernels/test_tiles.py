"""Heads in tiles, and the attention of them whose softmax weights are E4M3 codes."""

import struct
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from sd35.kernels import reference
from sd35.kernels.attention import attend_with, attention_refuses
from sd35.kernels.operands import Heads, TiledHeads, key_rows

CPU = torch.device("cpu")
E4M3 = torch.float8_e4m3fn


def placed(tokens: int, temperature: float, heads: int = 2) -> tuple[TiledHeads, Heads]:
    """Random q, k, v of the same streams in tiles and side by side, q and k normed by one weight."""
    torch.manual_seed(tokens)
    qkv, norm = torch.randn(2, tokens, 3 * heads * 64), torch.full((64,), temperature)
    tiles = TiledHeads.empty(2, tokens, heads, 64, CPU)
    for part in (tiles.q, tiles.k, tiles.v):
        part.view(torch.uint8).fill_(0x7F)  # NaN: what no token owns is never read
    plain = Heads.empty((2, tokens, heads, 64), E4M3, CPU)
    split = tokens // 3  # two streams, the second from the middle of a group of keys on
    for first, stream in ((split, qkv[:, split:]), (0, qkv[:, :split])):
        reference.place_heads(stream, norm, norm, tiles, first)
        reference.place_heads(stream, norm, norm, plain, first)
    return tiles, plain


def exact(heads: Heads) -> Tensor:
    """softmax(q k / 8) v in float64, heads side by side."""
    return attended(torch.softmax(scores(heads), dim=-1), heads)


def rounded(heads: Heads) -> Tensor:
    """The same, with each softmax weight rounded to E4M3, the largest of a row being 256."""
    softmax = torch.softmax(scores(heads), dim=-1)
    weights = (256 * softmax / softmax.amax(dim=-1, keepdim=True)).to(E4M3).double()
    return attended(weights / weights.sum(dim=-1, keepdim=True), heads)


def scores(heads: Heads) -> Tensor:
    """q k / 8, [B, H, S, S]."""
    q, k = (part.double().transpose(1, 2) for part in (heads.q, heads.k))
    return q @ k.transpose(2, 3) / 8


def attended(weights: Tensor, heads: Heads) -> Tensor:
    """Weights times v, heads side by side."""
    return (weights @ heads.v.double().transpose(1, 2)).transpose(1, 2).flatten(2)


def error(out: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    return float((out.double() - expected).norm() / expected.norm())


def half(value: Fraction) -> Fraction:
    """The nearest float16, ties to even (Python's `struct` rounds so, and `float` is exact here)."""
    return Fraction(struct.unpack("e", struct.pack("e", float(value)))[0])


def code_by_fractions(score: float, largest: float) -> int:
    """A weight's code as the definition has it, in exact arithmetic (Python rounds ties to even)."""
    step = Fraction(1477, 1024)  # 8 log2(e) / 8 in float16
    shift = half(118 - Fraction(largest) * step)
    return max(round(half(Fraction(score) * step + shift)), 0)


def test_keys_lie_where_lanes_want_their_scores() -> None:
    """What lane l gets, the columns 2l, 2l + 1, 8 + 2l and 8 + 2l + 1, is of four tokens in a row."""
    rows = key_rows(48, CPU)
    for group in range(3):
        for lane in range(4):
            columns = [16 * group + half + 2 * lane + one for half in (0, 8) for one in (0, 1)]
            assert rows[16 * group + 4 * lane :][:4].tolist() == columns


@pytest.mark.parametrize("tokens", [11, 77, 128, 300])
def test_tiles_hold_what_heads_hold(tokens: int) -> None:
    """The same E4M3 numbers, in whole tiles; where no token lies nothing was written."""
    tiles, plain = placed(tokens, temperature=1.0)
    room = tiles.q.shape[2]
    assert room % 128 == 0
    assert 0 <= room - tokens < 128
    assert torch.equal(tiles.q[:, :, :tokens].transpose(1, 2).float(), plain.q.float())
    assert torch.equal(tiles.k[:, :, key_rows(tokens, CPU)].transpose(1, 2).float(), plain.k.float())
    assert torch.equal(tiles.v[..., :tokens].permute(0, 3, 1, 2).float(), plain.v.float())
    missing = 2 * 2 * 64 * (room - tokens)
    assert all(int(part.float().isnan().sum()) == missing for part in (tiles.q, tiles.k, tiles.v))


def test_weights_are_the_codes_of_the_definition() -> None:
    """To the bit: scores small and large, of both signs, and ties, one of them a row's largest."""
    torch.manual_seed(0)
    ties = torch.tensor([[512.0, 511.5, 480.0], [1536.0, 1535.0, 1536.0], [-512.0, -520.0, -1024.0]])
    rows = [*torch.randn(8, 40), *(30 * torch.randn(8, 40)), *ties, torch.zeros(5)]
    for row in rows:
        scores = row.half().tolist()
        codes = [code_by_fractions(score, max(scores)) for score in scores]
        assert abs(max(codes) - 118) <= 1 + max(map(abs, scores)) / 2**11
        expected = torch.tensor(codes, dtype=torch.uint8).view(E4M3).float()
        assert torch.equal(reference.softmax_weights(row, 64), expected)


@pytest.mark.parametrize("temperature", [0.5, 1, 2, 4])
@pytest.mark.parametrize("tokens", [11, 77, 600])
def test_attention_of_tiles_is_attention(tokens: int, temperature: float) -> None:
    """In flat rows and peaked ones its error is within 1% of the result of what rounding to E4M3 costs."""
    tiles, plain = placed(tokens, temperature)
    expected = exact(plain)
    out = reference.attend_tiles(tiles)
    assert out.dtype == torch.float32
    assert error(out, expected) < error(rounded(plain), expected) + 0.01


def test_one_key_that_outweighs_all_others() -> None:
    """Its value is the result, to the bit: weights under 2^-15 of the largest are 0."""
    tiles, plain = placed(77, temperature=1.0)
    tiles.q[:] = 1
    tiles.k[:] = -1
    tiles.k[:, :, key_rows(77, CPU)[50]] = 1
    assert torch.equal(reference.attend_tiles(tiles), plain.v[:, 50:51].float().flatten(2).expand(-1, 77, -1))


ON_CARD = pytest.mark.skipif(
    not torch.cuda.is_available()
    or attention_refuses("sd35-fp8", torch.device("cuda"), torch.bfloat16) is not None,
    reason="the kernel is written for Hopper",
)


def random_heads(tokens: int, temperature: float, heads: int = 3) -> Heads:
    """Random q, k, v on a card, q and k of unit size times the temperature."""
    q, k, v = (torch.randn(2, tokens, heads, 64, device="cuda") for _ in range(3))
    norm = torch.full((64,), temperature, device="cuda")
    return Heads(reference.qk_rms_norm(q, norm).to(E4M3), reference.qk_rms_norm(k, norm).to(E4M3), v.to(E4M3))


def tiled(plain: Heads) -> TiledHeads:
    """The same in tiles, and NaN where no token lies."""
    batch, tokens, heads, dim = plain.q.shape
    tiles = TiledHeads.empty(batch, tokens, heads, dim, plain.q.device)
    for part in (tiles.q, tiles.k, tiles.v):
        part.view(torch.uint8).fill_(0x7F)
    tiles.q[:, :, :tokens] = plain.q.transpose(1, 2)
    tiles.k.view(torch.uint8)[:, :, key_rows(tokens, plain.k.device)] = plain.k.view(torch.uint8).transpose(
        1, 2
    )
    tiles.v[..., :tokens] = plain.v.permute(0, 2, 3, 1)
    return tiles


@pytest.mark.gpu
@ON_CARD
@pytest.mark.parametrize("temperature", [0.5, 1, 3, 8])
@pytest.mark.parametrize("tokens", [1, 11, 128, 129, 256, 600, 1000, 4096, 4429])
def test_the_kernel_is_as_exact_as_its_definition(tokens: int, temperature: float) -> None:
    """One and many tiles of keys, whole and ragged, flat rows and peaked; poisoned room, fresh values."""
    plain = random_heads(tokens, temperature)
    tiles, expected = tiled(plain), exact(plain)
    poison = torch.full((1 << 26,), 0x7F, dtype=torch.uint8, device="cuda")
    del poison  # the allocator gives this memory out again, as it is
    out = attend_with("sd35-fp8")(tiles)
    assert error(out, expected) < 1.1 * error(reference.attend_tiles(tiles), expected) + 4e-3


@pytest.mark.gpu
@ON_CARD
def test_long_sums_lose_nothing() -> None:
    """Values of one sign, whose sums the tensor cores' 14 bits would shrink by 6%."""
    plain = random_heads(4429, 1.0)
    plain = Heads(plain.q, plain.k, plain.v.float().abs().to(E4M3))
    expected = exact(plain)
    assert error(attend_with("sd35-fp8")(tiled(plain)), expected) < 6e-3


@pytest.mark.gpu
@ON_CARD
def test_the_same_heads_give_the_same_bits() -> None:
    """Whoever computes when: no result depends on the order in which groups of warps finish."""
    tiles = tiled(random_heads(1000, 1.0))
    first = attend_with("sd35-fp8")(tiles)
    assert all(torch.equal(attend_with("sd35-fp8")(tiles), first) for _ in range(20))

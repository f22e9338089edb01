"""Each Triton kernel against the plain PyTorch that defines it."""

import pytest
import torch
from kernel_cases import BATCH, WIDTHS, Inputs, assert_meets, placed_in_tiles, runs
from round_kernel import round_kernel

from sd35.kernels import reference, triton

CPU = torch.device("cpu")
ON_CARD = torch.cuda.is_available()


@pytest.mark.skipif(ON_CARD, reason="the interpreter was not chosen")
@pytest.mark.parametrize("width", WIDTHS)
def test_every_operation_is_its_definition(width: int) -> None:
    """In float32, in the interpreter, every form and kind of input, at SD3.5's widths."""
    torch.manual_seed(width)
    for name, run in runs(Inputs(CPU, torch.float32), width):
        for got, expected in zip(run(triton), run(reference), strict=True):
            try:
                assert_meets(got, expected, 2e-5)
            except AssertionError as error:
                raise AssertionError(f"{name} at {width}: {error}") from error


STREAMS = pytest.mark.parametrize(
    ("first", "tokens", "after"),
    [(0, 144, 1), (1, 2, 1), (30, 132, 1), (128, 16, 1), (4, 140, 3), (32, 133, 0), (30, 133, 0), (0, 1, 0)],
)
IMAGES = pytest.mark.parametrize("image", [256, 140, 133, 3])


@pytest.mark.skipif(ON_CARD, reason="the interpreter was not chosen")
@STREAMS
def test_streams_of_several_blocks_go_to_tiles(first: int, tokens: int, after: int) -> None:
    """Blocks of tokens join without a seam, wherever a stream starts and ends."""
    assert_stream_meets(Inputs(CPU, torch.float32, tokens), first, after)


@pytest.mark.gpu
@STREAMS
def test_streams_of_several_blocks_on_a_card(first: int, tokens: int, after: int) -> None:
    """The same on a card."""
    assert_stream_meets(Inputs(torch.device("cuda"), torch.float32, tokens), first, after)


def assert_stream_meets(inputs: Inputs, first: int, after: int) -> None:
    """One stream in tiles as the definition has it, and what lies around it as it was."""
    torch.manual_seed(first)
    qkv, norm_q, norm_k = inputs.random(BATCH, inputs.tokens, 3 * 128), inputs.random(64), inputs.random(64)
    got, expected = (
        placed_in_tiles(operations, qkv, norm_q, norm_k, inputs.tiles(128, first, after), first)
        for operations in (triton, reference)
    )
    for part, want in zip(got, expected, strict=True):
        assert_meets(part, want, 2e-5)


@pytest.mark.skipif(ON_CARD, reason="the interpreter was not chosen")
@IMAGES
def test_an_image_stream_stays_off_the_text_behind_it(image: int) -> None:
    """The text is there first, and no token of it is written again."""
    assert_both_streams_meet(Inputs(CPU, torch.float32, image), text=37)


@pytest.mark.gpu
@IMAGES
def test_an_image_stream_stays_off_the_text_on_a_card(image: int) -> None:
    """The same on a card."""
    assert_both_streams_meet(Inputs(torch.device("cuda"), torch.float32, image), text=37)


def assert_both_streams_meet(inputs: Inputs, text: int) -> None:
    """Text in tiles and then the image stream before it, as the definition has them."""
    torch.manual_seed(inputs.tokens)
    image_qkv, text_qkv = (inputs.random(BATCH, tokens, 3 * 128) for tokens in (inputs.tokens, text))
    norm = inputs.random(64)
    placed = []
    for operations in (triton, reference):
        tiles = inputs.tiles(128, 0, text)
        operations.place_heads(text_qkv, norm, norm, tiles, inputs.tokens)
        placed.append(placed_in_tiles(operations, image_qkv, norm, norm, tiles, 0))
    for part, want in zip(*placed, strict=True):
        assert_meets(part, want, 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [256, 1536, 2432])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 333])
def test_every_operation_on_a_card(width: int, dtype: torch.dtype, tokens: int) -> None:
    """The same on a card, in bf16 to one rounding; the outputs' memory held other values before."""
    tolerance = 2e-5 if dtype == torch.float32 else 2**-7
    for name, run in runs(Inputs(torch.device("cuda"), dtype, tokens), width):
        expected = run(reference)
        poison = [torch.full((1 << 24,), 0x7F, dtype=torch.uint8, device="cuda") for _ in range(8)]
        del poison  # the allocator gives this memory out again, as it is
        for got, want in zip(run(triton), expected, strict=True):
            try:
                assert_meets(got, want, tolerance)
            except AssertionError as error:
                raise AssertionError(f"{name} at {width}: {error}") from error


@pytest.mark.skipif(ON_CARD, reason="the interpreter was not chosen")
def test_rounding_to_e4m3_in_integers() -> None:
    """Every E4M3 number, the middles between them, their neighbours, and beyond: as PyTorch rounds."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    points = torch.cat([numbers, middles, torch.tensor([448.1, 464.0, 1e6, -1e6, 1e-30, 0.0])])
    points = torch.cat([points, points.nextafter(points + 1), points.nextafter(points - 1)])
    expected = points.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(rounded(points), expected)
    assert int(rounded(torch.tensor([float("nan")]))) == 0x7F


def rounded(values: torch.Tensor) -> torch.Tensor:
    """`e4m3_bits` of many values, by a kernel that does nothing else."""
    out = torch.zeros(len(values), dtype=torch.uint8)
    round_kernel[(1,)](values, out, len(values), BLOCK=4096)
    return out

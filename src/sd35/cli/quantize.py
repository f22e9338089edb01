"""write the FP8 folder of a 16-bit checkpoint"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sd35.cli.companions import add_companions
from sd35.cli.console import megabytes, print_json
from sd35.cli.prompts import read_prompts
from sd35.errors import RequestError

if TYPE_CHECKING:
    from sd35.quantization.calibrate import LayerInputs
    from sd35.quantization.grams import Grams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 quantize`."""
    parser.add_argument("source", help="a 16-bit checkpoint folder or single file, or demo")
    parser.add_argument("destination", help="the folder to write; it must not exist yet")
    parser.add_argument(
        "--dtype",
        choices=("e4m3fn", "e5m2"),
        default="e4m3fn",
        help="e4m3fn has the precision, e5m2 the range",
    )
    parser.add_argument(
        "--granularity",
        choices=("tensorwise", "rowwise", "blockwise"),
        default="rowwise",
        help="how many values share a scale (default: one output channel's)",
    )
    parser.add_argument(
        "--storage-only",
        action="store_true",
        help="keep activations 16-bit: slower on FP8 cards, closer to 16-bit",
    )
    _add_calibration(parser)
    parser.add_argument(
        "--outliers",
        choices=("keep", "refuse", "ignore"),
        default="keep",
        help="layers that FP8 would spoil: keep them in 16 bit (default), end with exit code 3, or quantize "
        "them all the same",
    )
    add_companions(parser)
    parser.add_argument(
        "--layers",
        action="append",
        default=[],
        metavar="PATTERN=SCHEME",
        help="an exception for some layers, such as '*.ff.net.2=16bit' or '*.attn.*=e5m2-rowwise-storage'; "
        "may be given again, and the first that fits decides",
    )
    parser.add_argument("--t5", action="store_true", help="quantize the T5 text encoder too (storage only)")
    parser.add_argument(
        "--link",
        action="store_true",
        help="hard-link the weights that stay 16-bit, where the disk can: they take no room, and whoever "
        "writes into one of the two files changes both",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from what an interrupted run of the same command left; without it, that is removed",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration: draw with the 16-bit model and watch the layers' inputs")
    group.add_argument("--static", action="store_true", help="one stored activation scale a layer, not one a "
                       "token")  # fmt: skip
    group.add_argument(
        "--rounding",
        choices=("nearest", "learned"),
        default="nearest",
        help="learned: choose the transformer's FP8 values so that layers' outputs err least; equal bytes",
    )
    group.add_argument("--prompts", help="a text file, one prompt a line; default: the demo model's own")
    group.add_argument("-n", type=int, default=16, help="how many of the prompts (default: 16)")
    group.add_argument(
        "--percentile", type=float, default=100.0, help="of a layer's tokens that must not saturate"
    )
    group.add_argument("--gram-memory", type=float, default=2.0, metavar="GB", help="for learned rounding; "
                       "the less, the more often the prompts are drawn (default: 2)")  # fmt: skip
    group.add_argument("--device", default="auto", help="where to draw; default: a card if there is one")


def run(arguments: argparse.Namespace) -> None:
    """Quantize and say what it came to."""
    from sd35.checkpoints.store import locate
    from sd35.fp8 import Activation, Scheme
    from sd35.quantization.convert import quantize
    from sd35.quantization.recipe import Recipe, Rule

    if arguments.static and arguments.storage_only:
        raise RequestError("--static and --storage-only exclude one another: leave one of them out.")
    activation: Activation = "static" if arguments.static else "none" if arguments.storage_only else "dynamic"
    recipe = Recipe.of(
        Scheme(arguments.dtype, arguments.granularity, activation),
        with_t5=arguments.t5,
        rules=tuple(Rule.parse(text) for text in arguments.layers),
        rounding=arguments.rounding,
        outliers=arguments.outliers,
    )
    components = locate(arguments.components) if arguments.components else None
    encoder_files = [Path(name) for name in arguments.text_encoders]
    inputs, grams = _calibrate(arguments, components, encoder_files)
    report = quantize(
        arguments.source,
        arguments.destination,
        recipe,
        components,
        inputs,
        grams,
        resume=arguments.resume,
        encoder_files=encoder_files,
        # No link leads to another disk, so from here on is from anywhere.
        link_below=Path(Path(arguments.destination).absolute().anchor) if arguments.link else None,
    )
    if arguments.json:
        spared = [outlier.as_dict() for outlier in report.outliers]
        print_json({**vars(report), "path": str(report.path), "outliers": spared})
        return
    print(f"{report.path}   {report.layers} layers in FP8")
    print(f"weights   {megabytes(report.bytes_before)} -> {megabytes(report.bytes_after)}")


def _calibrate(
    arguments: argparse.Namespace, components: Path | None, encoder_files: list[Path]
) -> "tuple[dict[str, LayerInputs], Grams | None]":
    """Where the recipe asks for it, draw with the 16-bit source and watch the layers' inputs."""
    from sd35.checkpoints.placing import refuse_existing
    from sd35.config import RuntimeConfig
    from sd35.quantization.calibrate import calibrate
    from sd35.quantization.grams import Grams
    from sd35.request import GenerationRequest
    from sd35.runtime.load import load_pipeline

    if not arguments.static and arguments.rounding == "nearest":
        return {}, None
    refuse_existing(Path(arguments.destination))  # before minutes of drawing
    if arguments.n < 1:
        raise RequestError("-n counts prompts: give 1 or more.")
    if arguments.gram_memory <= 0:
        raise RequestError("--gram-memory is a size in GB: give more than 0.")
    prompts = read_prompts(arguments.prompts, arguments.n)
    config = RuntimeConfig(device=arguments.device)
    pipeline = load_pipeline(arguments.source, config, None, components, encoder_files)
    requests = [GenerationRequest(prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    inputs = calibrate(pipeline, requests, arguments.percentile)
    is_learned = arguments.rounding == "learned"
    return inputs, Grams(pipeline, requests, int(arguments.gram_memory * 1e9)) if is_learned else None

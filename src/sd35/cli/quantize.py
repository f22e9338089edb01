"""write the FP8 folder of a 16-bit checkpoint"""

import argparse

from sd35.cli.console import megabytes, print_json


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
    parser.add_argument(
        "--components", help="the folder with configs, tokenizers and encoders that a single file lacks"
    )
    parser.add_argument("--t5", action="store_true", help="quantize the T5 text encoder too (storage only)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from what an interrupted run of the same command left; without it, that is removed",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def run(arguments: argparse.Namespace) -> None:
    """Quantize and say what it came to."""
    from sd35.checkpoints.store import locate
    from sd35.fp8 import Scheme
    from sd35.quantization.convert import quantize
    from sd35.quantization.recipe import Recipe

    scheme = Scheme(arguments.dtype, arguments.granularity, "none" if arguments.storage_only else "dynamic")
    recipe = Recipe.of(scheme, with_t5=arguments.t5)
    components = locate(arguments.components) if arguments.components else None
    report = quantize(arguments.source, arguments.destination, recipe, components, resume=arguments.resume)
    if arguments.json:
        print_json({**vars(report), "path": str(report.path)})
        return
    print(f"{report.path}   {report.layers} layers in FP8")
    print(f"weights   {megabytes(report.bytes_before)} -> {megabytes(report.bytes_after)}")

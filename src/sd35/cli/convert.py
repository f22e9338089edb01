"""write a checkpoint in another format: ComfyUI's, rowwise FP8, 16-bit, a folder

Nothing is lost where the new format can hold what the old one has; where it can't, the verb says what
would be rounded anew and stops, unless --requantize accepts it.
"""

import argparse
from pathlib import Path

from sd35.cli.companions import add_companions
from sd35.cli.console import megabytes, print_json

FORMATS = {
    "folder": "diffusers' layout, FP8 or 16-bit as the source is",
    "16bit": "diffusers' layout, FP8 restored to bf16",
    "16bit-file": "Stability's single file, FP8 restored to bf16",
    "comfy": "ComfyUI's FP8 single file",
    "comfy-legacy": "ComfyUI's older fp8_scaled",
    "rowwise": "a single file with one scale a row, for diffusers' BFLQuantizationConfig",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 convert`."""
    parser.add_argument("source", help="a checkpoint folder, a single file, or a name such as demo")
    parser.add_argument("destination", help="the folder or .safetensors file to write; it must not exist yet")
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()),
    )
    parser.add_argument(
        "--requantize", action="store_true", help="round weights anew where the format demands it"
    )
    parser.add_argument(
        "--with-encoders", action="store_true", help="put the text encoders into the single file too"
    )
    add_companions(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run of the same command; without it, what that left is removed",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def run(arguments: argparse.Namespace) -> None:
    """Convert and say what it came to."""
    from sd35.checkpoints.store import locate
    from sd35.quantization.transcode import convert

    report = convert(
        arguments.source,
        arguments.destination,
        arguments.format,
        requantize=arguments.requantize,
        with_encoders=arguments.with_encoders,
        components=locate(arguments.components) if arguments.components else None,
        encoder_files=[Path(name) for name in arguments.text_encoders],
        resume=arguments.resume,
    )
    if arguments.json:
        print_json({**vars(report), "path": str(report.path)})
        return
    print(f"{report.path}   {report.layers} layers in FP8, {report.requantized} of them rounded anew")
    print(f"weights   {megabytes(report.bytes_before)} -> {megabytes(report.bytes_after)}")
    for note in report.notes:
        print(f"note      {note}")

"""generate pictures from a prompt

The checkpoint is the bundled demo model unless one is named; a 16-bit checkpoint is quantized to FP8 once,
into SD35_HOME, when FP8 is asked for. The output's place is tried before any weight is read.
"""

import argparse
import os
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sd35.cli.canvas import Canvas, canvas_for
from sd35.cli.companions import add_companions
from sd35.cli.console import CountBar, megabytes, print_json
from sd35.cli.output import OutputPlace
from sd35.cli.terminal import SHOWS, show
from sd35.config import Activations, Attention, Kernels, RuntimeConfig
from sd35.errors import RequestError
from sd35.pictures_in.decode import read_picture
from sd35.request import GenerationRequest, preview_steps

if TYPE_CHECKING:
    from sd35.runtime.pipeline import Generation, Pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 generate`; what a request holds has the request's own name and default."""
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument(
        "--checkpoint", default="demo", help="a folder, a single file, or a name such as demo (the default)"
    )
    add_companions(parser)
    parser.add_argument(
        "--precision", choices=("fp8", "bf16"), default="fp8", help="of the transformer's weights"
    )
    parser.add_argument("--variant", help="whose settings to use where the weights can't tell: large-turbo")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default: a card if there is one")
    parser.add_argument(
        "--devices", metavar="A,B", default="",
        help="several cards for one picture, such as cuda:0,cuda:1: what the first has no room for, other "
        "parts of the model or of its blocks, is on the others",
    )  # fmt: skip
    parser.add_argument(
        "--max-vram",
        metavar="SIZE",
        help="memory that may be allocated on the device, such as 7.2GiB for a card of 8 GB (default: what "
        "is free); with less, parts of the model take turns on it. With --devices for each card, or as "
        "7.2GiB,11GiB",
    )
    parser.add_argument(
        "--attention", choices=get_args(Attention), default="auto",
        help="attention implementation; a named one never falls back (`sd35 doctor` says which can run here)",
    )  # fmt: skip
    parser.add_argument(
        "--kernels", choices=get_args(Kernels), default="auto",
        help="implementation of the other operations; reference is plain PyTorch",
    )  # fmt: skip
    parser.add_argument(
        "--activations", choices=get_args(Activations), default="auto",
        help="what FP8 layers multiply by; default: fp8 on cards that have FP8 products, else 16bit, with "
        "the weights restored layer by layer",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", default="outputs", help="a .png file or a folder (default: outputs)"
    )
    parser.add_argument(
        "--show", choices=SHOWS, default="auto",
        help="the pictures in the terminal; default: in terminals known to draw (Kitty's, iTerm2's or Sixel "
        "graphics); blocks will do in any with 24-bit colour",
    )  # fmt: skip
    parser.add_argument(
        "--previews", type=int, default=0, metavar="N",
        help="show the pictures N times on the way, unfinished, in a terminal that --show can draw in",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )
    drawing = parser.add_argument_group("what to draw (default: what the checkpoint's makers recommend)")
    drawing.add_argument("--negative-prompt", default="", help="what guidance leads away from")
    drawing.add_argument("--prompt-2", help="another prompt for CLIP-G")
    drawing.add_argument("--prompt-3", help="another prompt for T5")
    drawing.add_argument("--width", type=int, help="pixels, a multiple of 16")
    drawing.add_argument("--height", type=int, help="pixels, a multiple of 16")
    drawing.add_argument(
        "--steps",
        type=int,
        dest="num_inference_steps",
        help="denoising steps; with an image, a share of them",
    )
    drawing.add_argument(
        "--image", metavar="FILE",
        help="a picture to begin with (PNG, JPEG or WEBP); width and height default to its shape, at about "
        "as many pixels as the model's own square",
    )  # fmt: skip
    drawing.add_argument(
        "--strength", type=float,
        help="how much of the image may go, above 0 to 1 (default: 0.6): so many of the steps are run",
    )  # fmt: skip
    drawing.add_argument("--guidance-scale", type=float, help="how closely to follow the prompt; 1 is off")
    drawing.add_argument("--seed", type=int, help="equal seeds give equal pictures; default: any")
    drawing.add_argument(
        "-n", type=int, dest="num_images", default=1, help="pictures, with seeds counting up"
    )
    drawing.add_argument("--max-sequence-length", type=int, help="tokens that T5 reads")
    drawing.add_argument(
        "--skip-layer-guidance-scale",
        type=float,
        default=0.0,
        help="for Medium: 2.8 is recommended; 0 is off",
    )


def run(arguments: argparse.Namespace) -> None:
    """Draw, save, and say what was done."""
    begin = time.perf_counter()
    request = _request(arguments)
    place = OutputPlace.at(arguments.output, request)
    canvas = _canvas(arguments)
    # Heavy rooms are imported here: everything above answers at once.
    from sd35.quantization.ready import load
    from sd35.runtime import facts
    from sd35.runtime.memory import Work

    imported = time.perf_counter()
    config = RuntimeConfig(
        device=arguments.device,
        devices=arguments.devices,
        attention=arguments.attention,
        kernels=arguments.kernels,
        activations=arguments.activations,
        max_vram=arguments.max_vram,
    )
    pipeline = load(
        arguments.checkpoint,
        arguments.precision,
        config,
        arguments.variant,
        arguments.components,
        [Path(name) for name in arguments.text_encoders],
    )
    loaded = time.perf_counter()
    generation = _draw(pipeline, request, canvas, arguments)
    precision = facts.precision(pipeline)
    work = Work.of(generation.images[0].picture.settings, len(generation.images))
    if arguments.verbose:
        print(pipeline.residence.table(work), file=sys.stderr)
    peaks = facts.peaks_by_device(pipeline)
    report = {
        "images": place.save(generation.images, pipeline.identity, precision["transformer"]),
        "checkpoint": pipeline.variant.name,
        "checkpoint_sha256": pipeline.identity,
        "precision": precision,
        "attention": pipeline.mmdit.engine.attention,
        "weight_bytes": facts.weight_bytes(pipeline),
        "seconds": {
            "import": imported - begin,
            "load": loaded - imported,
            **generation.seconds,
            "total": time.perf_counter() - begin,
        },
        "plan": pipeline.residence.as_dict(work),
        "peak_memory_bytes": max(peaks.values()),
        "peak_memory_bytes_by_device": peaks,
    }
    if arguments.json:
        print_json(report)
        return
    for drawn in generation.images:
        show(drawn.image, arguments.show, sys.stdout, os.environ)
    _print(report)


def _canvas(arguments: argparse.Namespace) -> Canvas | None:
    """Where unfinished pictures are shown, if they are; one sentence where they can't be."""
    if arguments.previews < 0:
        raise RequestError(f"previews is {arguments.previews}: give how many are to be shown, 0 for none.")
    canvas = canvas_for(arguments.show, sys.stdout, os.environ) if not arguments.json else None
    if arguments.previews and canvas is None:
        print(
            "No previews: stdout is no terminal that is known to draw; --show blocks will do in any with "
            "24-bit colour.",
            file=sys.stderr,
        )
    return canvas if arguments.previews else None


def _draw(
    pipeline: "Pipeline", request: GenerationRequest, canvas: Canvas | None, arguments: argparse.Namespace
) -> "Generation":
    """Draw with a progress bar, or with unfinished pictures side by side on the canvas in its place."""
    if canvas is not None:
        return _draw_on(canvas, pipeline, request, arguments.previews)
    with CountBar("denoise", " steps", hidden=arguments.json) as bar:
        return pipeline.generate(request, bar.show)


def _draw_on(canvas: Canvas, pipeline: "Pipeline", request: GenerationRequest, count: int) -> "Generation":
    import torch
    from PIL import Image

    from sd35.runtime.previews import Previews

    pictures = request.pictures(pipeline.variant)
    due = frozenset(preview_steps(count, pictures[0].settings.steps_run))

    def show(_: int, rows: torch.Tensor) -> None:
        canvas.draw(Image.fromarray(torch.cat(list(rows), dim=1).numpy()))

    with canvas:
        return pipeline.draw(
            pictures, lambda done, of: canvas.say(f"step {done} of {of}"), Previews(due, show)
        )


def _request(arguments: argparse.Namespace) -> GenerationRequest:
    known = {field.name for field in fields(GenerationRequest)} - {"image"}
    asked = {name: value for name, value in vars(arguments).items() if name in known}
    image = None if arguments.image is None else read_picture(Path(arguments.image))
    return GenerationRequest(**asked, image=image)


def _print(report: dict) -> None:  # type: ignore[type-arg]
    for image in report["images"]:
        print(f"{image['path']}   {image['width']} x {image['height']}, seed {image['seed']}")
    seconds = report["seconds"]
    print("seconds   " + " · ".join(f"{stage} {spent:.2f}" for stage, spent in seconds.items()))
    sizes = report["weight_bytes"]
    print(
        f"weights   {megabytes(sizes['total'])} ({report['precision']['transformer']} transformer), "
        f"all in 16 bit {megabytes(sizes['total_16bit'])} · "
        f"peak memory {_peaks(report['peak_memory_bytes_by_device'])}"
    )


def _peaks(by_device: dict[str, int]) -> str:
    """One figure, or one for each device with its name."""
    if len(by_device) == 1:
        return megabytes(*by_device.values())
    return ", ".join(f"{device} {megabytes(peak)}" for device, peak in by_device.items())

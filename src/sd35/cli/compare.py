"""measure how far the pictures of two checkpoints differ

Draws the same prompts and seeds with both and prints how far apart the pictures are. With one checkpoint,
its FP8 form is measured against itself in 16 bit. --layers says which layers the difference comes from.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd35.cli.console import CountBar, print_json
from sd35.cli.output import write_whole
from sd35.cli.prompts import read_prompts
from sd35.errors import OutputError, RequestError

if TYPE_CHECKING:
    from sd35.compare.compare import Comparison
    from sd35.compare.drawing import Drawing
    from sd35.compare.layers import LayerFigure

WORST_LAYERS = 10  # are printed; --json has them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `sd35 compare`."""
    parser.add_argument(
        "reference", nargs="?", default="demo", help="a checkpoint or a kept drawing (default: demo)"
    )
    parser.add_argument("candidate", nargs="?", help="another; default: the reference in FP8")
    parser.add_argument("--prompts", help="a text file, one prompt a line; default: the demo's own, half of "
                        "them of pairs never seen in training")  # fmt: skip
    parser.add_argument("-n", type=int, default=500, help="how many of the prompts (default: 500)")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the others count up")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures drawn at once")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default: a card if there is one")
    parser.add_argument(
        "--activations", choices=("fp8", "16bit"), default="fp8",
        help="what FP8 layers multiply by: as on a card with FP8 products (default, emulated elsewhere), or "
        "as on one without",
    )  # fmt: skip
    parser.add_argument(
        "--witness", action="store_true", help="ask EfficientNet-Lite0 too (sd35-fp8[compare])"
    )
    parser.add_argument("--layers", action="store_true", help="each layer's output SQNR too, over four "
                        "of the prompts; both transformers are loaded at once")  # fmt: skip
    parser.add_argument(
        "--keep", help="write both drawings below this folder; each can stand for its checkpoint later"
    )
    parser.add_argument("--sheet", help="write the first pictures side by side to this .png")
    parser.add_argument(
        "--report", help="write figures and pictures to this .html, one file that needs no other"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on stdout"
    )


def run(arguments: argparse.Namespace) -> None:
    """Draw with both (or read what was drawn), measure, print."""
    if arguments.n < 1 or arguments.batch_size < 1:
        raise RequestError("-n and --batch-size count pictures: give 1 or more.")
    from sd35.compare.compare import measure
    from sd35.compare.judges import SubjectJudge, load_witness
    from sd35.config import RuntimeConfig
    from sd35.runtime.load import resolve

    device = resolve(RuntimeConfig(device=arguments.device)).device
    witness = load_witness(device) if arguments.witness else None
    folders = _folders(arguments)
    _refuse_early(arguments, folders)
    reference, candidate = (_drawing(arguments, name, folder) for name, folder in folders.items())
    if reference.prompts != candidate.prompts or reference.settings != candidate.settings:
        raise RequestError("The two drawings are of different prompts or settings: draw the same with both.")
    judge = SubjectJudge(device) if reference.variant == "demo" else None
    comparison = measure(reference, candidate, judge, witness)
    layers = _layers(arguments, folders) if arguments.layers else []
    report = _report(comparison, layers)
    print_json(report) if arguments.json else _print(report)
    _write(arguments, comparison, layers)


def _refuse_early(arguments: argparse.Namespace, folders: dict[str, Path]) -> None:
    """What can be known to fail fails before hours of drawing."""
    from sd35.compare.drawing import is_drawing

    for folder in folders.values():
        if arguments.layers and is_drawing(folder):
            raise RequestError(
                f"{folder} is a kept drawing, and --layers runs the layers themselves: "
                "give two checkpoints, or leave --layers out."
            )
    for path in (arguments.sheet, arguments.report):
        if path and not Path(path).absolute().parent.is_dir():
            raise OutputError(f"{path} can't be written: its folder does not exist, so make that first.")


def _folders(arguments: argparse.Namespace) -> dict[str, Path]:
    """What to compare: checkpoints or kept drawings."""
    from sd35.checkpoints.store import locate
    from sd35.quantization.ready import ready

    reference = locate(arguments.reference)
    candidate = locate(arguments.candidate) if arguments.candidate else ready(reference, "fp8")
    return {"reference": reference, "candidate": candidate}


def _drawing(arguments: argparse.Namespace, name: str, folder: Path) -> "Drawing":
    from sd35.compare.compare import draw_all, requests_for
    from sd35.compare.drawing import is_drawing, read_drawing
    from sd35.config import RuntimeConfig

    if is_drawing(folder):
        return read_drawing(folder)
    requests = requests_for(read_prompts(arguments.prompts, arguments.n), arguments.seed, arguments.steps)
    config = RuntimeConfig(device=arguments.device, activations=arguments.activations)
    with CountBar(name, " pictures", hidden=arguments.json) as bar:
        drawing = draw_all(folder, requests, config, arguments.batch_size, bar.show)
    if arguments.keep:
        drawing.keep(Path(arguments.keep) / name)
    return drawing


def _layers(arguments: argparse.Namespace, folders: dict[str, Path]) -> "list[LayerFigure]":
    from sd35.compare.compare import requests_for
    from sd35.compare.layers import measure_layers
    from sd35.config import RuntimeConfig

    requests = requests_for(read_prompts(arguments.prompts, arguments.n), arguments.seed, arguments.steps)
    config = RuntimeConfig(device=arguments.device, activations=arguments.activations)
    with CountBar("layers", " pictures", hidden=arguments.json) as bar:
        return measure_layers(folders["reference"], folders["candidate"], requests, config, bar.show)


def _report(comparison: "Comparison", layers: "Sequence[LayerFigure]") -> dict[str, Any]:
    from sd35.compare.layers import mean_by_kind

    reference, candidate = comparison.reference, comparison.candidate
    report = {
        "pictures": len(reference.images),
        "settings": reference.settings,
        "reference": {"precision": reference.precision, "machine": reference.machine},
        "candidate": {"precision": candidate.precision, "machine": candidate.machine},
        "same_subject": comparison.same_subject,
        "figures": [vars(figure) for figure in comparison.figures],
    }
    if layers:
        report["layers"] = [vars(layer) for layer in layers]
        report["layer_kinds"] = mean_by_kind(layers)
    return report


def _print(report: dict[str, Any]) -> None:
    steps = report["settings"]["num_inference_steps"]
    print(f"{report['pictures']} pictures, {steps} steps")
    for name in ("reference", "candidate"):
        print(f"{name}: {report[name]['precision']} on {report[name]['machine']}")
    print("\n| figure | mean | worst 5% |\n|---|---|---|")
    for figure in report["figures"]:
        print(f"| {figure['name']} | {figure['mean']:.4g} | {figure['worst']:.4g} |")
    if report["same_subject"] is not None:
        print(f"| same subject, by the evaluator | {report['same_subject']:.1%} | |")
    if "layers" in report:
        _print_layers(report)


def _print_layers(report: dict[str, Any]) -> None:
    print("\n| kind of layer | mean SQNR, dB |\n|---|---|")
    for kind, mean in report["layer_kinds"].items():
        print(f"| {kind} | {mean:.1f} |")
    print("\n| worst layers | SQNR, dB | stored as |\n|---|---|---|")
    for layer in sorted(report["layers"], key=lambda layer: layer["sqnr_db"])[:WORST_LAYERS]:
        print(f"| {layer['name']} | {layer['sqnr_db']:.1f} | {layer['stored']} |")


def _write(arguments: argparse.Namespace, comparison: "Comparison", layers: "Sequence[LayerFigure]") -> None:
    """The files that were asked for."""
    if arguments.sheet:
        _write_sheet(comparison, Path(arguments.sheet))
    if arguments.report:
        from sd35.compare.html import page

        candidate = arguments.candidate or f"{arguments.reference} in FP8"
        html = page(comparison, arguments.reference, candidate, layers)
        write_whole(Path(arguments.report), html.encode("utf-8"))


def _write_sheet(comparison: "Comparison", path: Path) -> None:
    import io

    from sd35.compare.sheet import contact_sheet

    buffer = io.BytesIO()
    contact_sheet(comparison).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())

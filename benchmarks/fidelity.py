"""How faithful is each recipe on the bundled model? One command, one table, one JSON file.

    python benchmarks/fidelity.py --out benchmarks/results/fidelity.json [--prompts 500] [--keep FOLDER]

Every row draws the same prompts and seeds and is measured against the 16-bit checkpoint computing in bf16.
`float32 compute` is the floor: the same 16-bit weights, computed more exactly. `plain cast` is what a cast
to E4M3 without scales does. Half of the prompts are of (subject, style) pairs that training never showed.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import sd35
from sd35.checkpoints.store import locate
from sd35.compare.compare import Comparison, draw_all, draw_with, measure, requests_for
from sd35.compare.drawing import Drawing
from sd35.compare.judges import SubjectJudge
from sd35.config import RuntimeConfig
from sd35.demo.prompts import held_out_prompts, trained_prompts
from sd35.fp8 import Scheme
from sd35.quantization.recipe import Recipe
from sd35.request import GenerationRequest
from sd35.runtime.facts import weight_bytes
from sd35.runtime.load import load_pipeline, resolve

ROWWISE = Scheme()
RECIPES = {
    "rowwise (default)": Recipe.of(ROWWISE),
    "rowwise, T5 too": Recipe.of(ROWWISE, with_t5=True),
    "rowwise, storage only": Recipe.of(ROWWISE.storage_only()),
    "tensorwise": Recipe.of(Scheme(granularity="tensorwise")),
    "blockwise": Recipe.of(Scheme(granularity="blockwise")),
    "E5M2 rowwise": Recipe.of(Scheme("e5m2")),
}


def main() -> int:
    """Draw, measure, print, write."""
    arguments = _arguments()
    half = arguments.prompts // 2
    prompts = [
        prompt.text for prompt in [*trained_prompts(arguments.prompts - half), *held_out_prompts(half)]
    ]
    requests = requests_for(prompts, 0, arguments.steps)
    config = RuntimeConfig(device=arguments.device)
    reference = draw_all(locate("demo"), requests, config, arguments.batch_size, _quiet)
    judge = SubjectJudge(resolve(config).device)
    rows = []
    for name, drawing, size in _candidates(requests, config, arguments):
        rows.append(_row(name, measure(reference, drawing, judge, None), size))
        print(f"{name}: {rows[-1]['PSNR, dB']['mean']:.2f} dB", file=sys.stderr, flush=True)
        if arguments.keep and name == "rowwise (default)":
            reference.keep(Path(arguments.keep) / "reference")
            drawing.keep(Path(arguments.keep) / "candidate")
    report = {
        "command": f"python benchmarks/fidelity.py --prompts {arguments.prompts}",
        "machine": reference.machine,
        "sd35": sd35.__version__,
        "pictures": len(prompts),
        "settings": reference.settings,
        "rows": rows,
    }
    Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(_table(report))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--steps", type=int, help="default: as the model recommends")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", help="keep the drawings of 16-bit and of the default recipe in this folder")
    return parser.parse_args()


def _candidates(
    requests: list[GenerationRequest], config: RuntimeConfig, arguments: argparse.Namespace
) -> Iterator[tuple[str, Drawing, int]]:
    """(name, drawing, transformer bytes in memory) of every row."""
    exact = RuntimeConfig(device=config.device, compute_dtype="fp32")
    pipeline = load_pipeline("demo", exact)
    yield "16-bit, float32 compute", draw_with(pipeline, requests, arguments.batch_size, _quiet), 0
    pipeline = load_pipeline("demo", config)
    _cast_plainly(pipeline.mmdit)
    yield "plain cast, no scales", draw_with(pipeline, requests, arguments.batch_size, _quiet), 0
    with TemporaryDirectory() as folder:
        for number, (name, recipe) in enumerate(RECIPES.items()):
            place = Path(folder) / str(number)
            sd35.quantize("demo", place, recipe)
            pipeline = load_pipeline(place, config)
            size = weight_bytes(pipeline)["transformer"]
            yield name, draw_with(pipeline, requests, arguments.batch_size, _quiet), size


def _cast_plainly(mmdit: nn.Module) -> None:
    """Every linear weight of the joint blocks through E4M3 and back, without a scale."""
    for name, layer in mmdit.named_modules():
        if name.startswith("blocks.") and isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn).to(layer.weight.dtype)


def _row(name: str, comparison: Comparison, size: int) -> dict[str, object]:
    figures = {figure.name: {"mean": figure.mean, "worst": figure.worst} for figure in comparison.figures}
    return {"name": name, "transformer_bytes": size, "same_subject": comparison.same_subject, **figures}


def _table(report: dict) -> str:  # type: ignore[type-arg]
    lines = [
        f"{report['pictures']} prompts, {report['settings']['num_inference_steps']} steps, {report['machine']}",
        "",
        "| recipe | transformer | PSNR, dB (worst 5%) | SSIM (worst 5%) | feature cosine (worst 5%) | same subject |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        size = f"{row['transformer_bytes'] / 1e6:.1f} MB" if row["transformer_bytes"] else "16-bit size"
        psnr, ssim, cosine = (row[name] for name in ("PSNR, dB", "SSIM", "evaluator feature cosine"))
        lines.append(
            f"| {row['name']} | {size} | {psnr['mean']:.1f} ({psnr['worst']:.1f}) "
            f"| {ssim['mean']:.4f} ({ssim['worst']:.3f}) | {cosine['mean']:.4f} ({cosine['worst']:.3f}) "
            f"| {row['same_subject']:.1%} |"
        )
    return "\n".join(lines)


def _quiet(done: int, of: int) -> None:
    """No progress shown: the table comes last."""


if __name__ == "__main__":
    begin = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
    sys.exit(code)

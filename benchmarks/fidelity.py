"""How faithful is each recipe on the bundled model? One command, one table, one JSON file.

    python benchmarks/fidelity.py --out benchmarks/results/fidelity.json [--prompts 128] [--seconds 240]

Every row draws the same prompts and seeds and is measured against the 16-bit checkpoint computing in bf16.
`float32 compute` is the floor: the same 16-bit weights, computed more exactly. `plain cast` is what a cast
to E4M3 without scales does. torchao's rows quantize the very same layers of the very same model: joint-block
linears with dynamic activations, AdaLN in storage only. Half of the prompts are of (subject, style) pairs
that training never showed; calibration draws others, with other seeds. torchao is no dependency: its rows
need `pip install torchao==0.18.0` and are skipped, with that reason, where it is absent.

Velocity SQNR is the transformer's own figure: 10 log10 of signal over noise of what it predicts at latents
that the reference met, so errors of earlier steps are not in it. The last step is left out: hardly any
noise is left to tell from the picture, its velocity is the least certain, and it is 1% of the way. The JSON
is written after every row.
"""

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fidelity_table import table
from torch import Tensor, nn

import sd35
from sd35.compare.compare import Comparison, draw_with, measure, requests_for
from sd35.compare.judges import SubjectJudge
from sd35.config import Attention, RuntimeConfig
from sd35.demo.prompts import held_out_prompts, trained_prompts
from sd35.fp8 import Scheme
from sd35.kernels import reference
from sd35.kernels.attention import attention_refuses
from sd35.kernels.operands import Heads, TiledHeads
from sd35.quantization.calibrate import LayerInputs, calibrate
from sd35.quantization.grams import Grams
from sd35.quantization.recipe import Recipe
from sd35.request import GenerationRequest, Settings
from sd35.runtime.encoders import encode
from sd35.runtime.joint_block import Engine
from sd35.runtime.load import load_pipeline, resolve
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.sampling import TRAIN_TIMESTEPS, flow_sigmas

CALIBRATION_SEED = 1_000_000
PROBED = 8  # pictures whose velocities are compared
ROWWISE, STATIC = Scheme(), Scheme(activation="static")


@dataclass
class Bench:
    """What the rows share: how to run, where to write, and what calibration draws."""

    config: RuntimeConfig
    folder: Path
    calibration: list[GenerationRequest]

    @cached_property
    def pipeline(self) -> Pipeline:
        """The reference."""
        return load_pipeline("demo", self.config)

    @cached_property
    def inputs(self) -> dict[str, LayerInputs]:
        """What calibration saw, for all rows that need it."""
        return calibrate(self.pipeline, self.calibration)

    @cached_property
    def grams(self) -> Grams:
        """The Gram matrices, gathered once: the demo's fit the budget together."""
        return Grams(self.pipeline, self.calibration)

    def ours(self, recipe: Recipe) -> Pipeline:
        """The demo by a recipe."""
        place = self.folder / recipe.name
        if place.exists():
            return load_pipeline(place, self.config)
        is_learned, is_static = recipe.rounding == "learned", recipe.blocks.activation == "static"
        inputs = self.inputs if is_learned or is_static else None
        grams = self.grams if is_learned else None
        sd35.quantize("demo", place, recipe, inputs=inputs, grams=grams)
        return load_pipeline(place, self.config)


class SkippedError(Exception):
    """This row can't be measured here, and why."""


def in_float32(bench: Bench) -> Pipeline:
    """The floor: what bf16 arithmetic alone does."""
    config = bench.config
    return load_pipeline("demo", RuntimeConfig(device=config.device, compute_dtype="fp32"))


def with_attention(name: Attention, bench: Bench) -> Pipeline:
    """The default recipe, and an attention in E4M3 besides; without a card ours by its definition."""
    placement = resolve(bench.config)
    refusal = attention_refuses(name, placement.device, placement.dtype)
    if refusal is None:
        return replace(bench, config=replace(bench.config, attention=name)).ours(Recipe.of(ROWWISE))
    if name != "sd35-fp8" or placement.device.type != "cpu":
        raise SkippedError(refusal)
    pipeline = bench.ours(Recipe.of(ROWWISE))
    for part in (pipeline.mmdit, *pipeline.mmdit.blocks):
        part.engine = Definition(part.engine.operations, name)
    return pipeline


@dataclass(frozen=True)
class Definition(Engine):
    """Attends by `reference.attend_tiles`."""

    def attend(self, heads: Heads | TiledHeads) -> Tensor:
        """In bf16, as the kernel gives it."""
        assert isinstance(heads, TiledHeads)
        return reference.attend_tiles(heads).bfloat16()


def cast_plainly(bench: Bench) -> Pipeline:
    """Every linear weight of the joint blocks through E4M3 and back, without a scale."""
    pipeline = load_pipeline("demo", bench.config)
    for _, layer in block_linears(pipeline):
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn).to(layer.weight.dtype)
        layer.stored_as_fp8 = True
    return pipeline


def by_torchao(granularity: str, bench: Bench) -> Pipeline:
    """What torchao's `Float8DynamicActivationFloat8WeightConfig` makes of the same layers.

    Its tensors are built directly: `quantize_` refuses to without a GPU, and this has to be rehearsed.
    """
    try:
        from torchao.float8.inference import Float8MMConfig
        from torchao.quantization import PerRow, PerTensor
        from torchao.quantization.quantize_.workflows.float8.float8_tensor import (
            Float8Tensor,
            QuantizeTensorToFloat8Kwargs,
        )
    except ImportError as error:
        raise SkippedError(f"torchao is not here ({error})") from error
    kind = {"PerRow": PerRow, "PerTensor": PerTensor}[granularity]()
    pipeline = load_pipeline("demo", bench.config)
    for name, layer in block_linears(pipeline):
        products = {
            "mm_config": Float8MMConfig(use_fast_accum=True),
            "act_quant_kwargs": QuantizeTensorToFloat8Kwargs(torch.float8_e4m3fn, kind),
        }
        weight = Float8Tensor.from_hp(
            layer.weight.data,
            float8_dtype=torch.float8_e4m3fn,
            granularity=kind,
            **({} if name.endswith("modulation") else products),
        )
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return replace(pipeline, recorder=None)


def block_linears(pipeline: Pipeline) -> list[tuple[str, nn.Linear]]:
    """The layers that every row makes FP8, by name."""
    layers = pipeline.mmdit.blocks.named_modules()
    return [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear)]


def by_recipe(scheme: Scheme, **choices: object) -> Callable[[Bench], Pipeline]:
    """A row of ours."""
    return lambda bench: bench.ours(Recipe.of(scheme, **choices))  # type: ignore[arg-type]


# Those that matter most come first, should time end.
ROWS: dict[str, Callable[[Bench], Pipeline]] = {
    "16-bit, float32 compute": in_float32,
    "rowwise (default)": by_recipe(ROWWISE),
    "rowwise, attention sd35-fp8": partial(with_attention, "sd35-fp8"),
    "rowwise, attention fa3-fp8": partial(with_attention, "fa3-fp8"),
    "rowwise, learned rounding": by_recipe(ROWWISE, rounding="learned"),
    "torchao, PerRow": partial(by_torchao, "PerRow"),
    "torchao, PerTensor": partial(by_torchao, "PerTensor"),
    "tensorwise": by_recipe(Scheme(granularity="tensorwise")),
    "blockwise": by_recipe(Scheme(granularity="blockwise")),
    "rowwise, static": by_recipe(STATIC),
    "rowwise, static, learned": by_recipe(STATIC, rounding="learned"),
    "storage only": by_recipe(ROWWISE.storage_only()),
    "storage only, learned": by_recipe(ROWWISE.storage_only(), rounding="learned"),
    "E5M2 rowwise": by_recipe(Scheme("e5m2")),
    "rowwise, T5 too": by_recipe(ROWWISE, with_t5=True),
    "plain cast, storage only": cast_plainly,
}


@dataclass(frozen=True)
class Probe:
    """Latents that the reference met, [B, 16, H, W] by step, and what it predicted there."""

    requests: list[GenerationRequest]
    latents: dict[int, Tensor]
    velocities: dict[int, Tensor]

    @classmethod
    @torch.inference_mode()
    def of(cls, pipeline: Pipeline, requests: list[GenerationRequest]) -> "Probe":
        """Draw the requests and keep the latents of the first step and of two in the middle."""
        pictures = [request.pictures(pipeline.variant)[0] for request in requests]
        steps = pictures[0].settings.num_inference_steps
        wanted = sorted({0, steps // 3, 2 * steps // 3})
        met: list[Tensor] = []  # one call a step: the demo's settings have no skip-layer guidance
        hook = pipeline.mmdit.register_forward_pre_hook(lambda _, inputs: met.append(inputs[0].clone()))
        replace(pipeline, recorder=None).draw(pictures)  # a replay from a CUDA graph calls no hook
        hook.remove()
        latents = {step: met[step] for step in wanted}
        return cls(requests, latents, predicted(pipeline, requests, latents))

    def sqnr_db(self, pipeline: Pipeline) -> dict[str, float]:
        """The candidate's figure at each step."""
        actual = predicted(pipeline, self.requests, self.latents)
        return {str(step): _sqnr_db(expected, actual[step]) for step, expected in self.velocities.items()}


@torch.inference_mode()
def predicted(
    pipeline: Pipeline, requests: list[GenerationRequest], latents: dict[int, Tensor]
) -> dict[int, Tensor]:
    """What the transformer says at these latents, both halves of guidance, in float32."""
    pictures = [request.pictures(pipeline.variant)[0] for request in requests]
    settings: Settings = pictures[0].settings
    embeds = encode(pipeline.text_encoders, pictures, pipeline.prompts)
    sigmas = flow_sigmas(settings.num_inference_steps, pipeline.shift)
    timesteps = (sigmas[:-1] * TRAIN_TIMESTEPS).to(pipeline.device)
    conditioning = pipeline.mmdit.condition(embeds.sequence, embeds.pooled, timesteps)
    context, tables = conditioning.context, conditioning.table
    return {
        step: pipeline.mmdit(x.to(context.dtype), context, tables[step]).float()
        for step, x in latents.items()
    }


def _sqnr_db(expected: Tensor, actual: Tensor) -> float:
    return 10 * math.log10(expected.square().sum() / (expected - actual).square().sum())


def main() -> int:
    """Draw, measure and write row by row; print the table."""
    arguments = _arguments()
    begin = time.perf_counter()
    config = RuntimeConfig(device=arguments.device, activations="fp8")
    requests = requests_for(_prompts(arguments.prompts), 0, arguments.steps)
    others = requests_for(
        _prompts(2 * arguments.prompts + 2 * arguments.calibration)[-arguments.calibration :],
        CALIBRATION_SEED,
        arguments.steps,
    )
    with TemporaryDirectory() as folder:
        bench = Bench(config, Path(folder), others)
        reference = draw_with(bench.pipeline, requests, arguments.batch_size, _quiet)
        probe = Probe.of(bench.pipeline, requests[:: -(-len(requests) // PROBED)])
        report = {
            "command": f"python benchmarks/fidelity.py --out FILE --prompts {len(requests)} --steps "
            f"{reference.settings['num_inference_steps']} --calibration {arguments.calibration}",
            "machine": reference.machine,
            "sd35": sd35.__version__,
            "pictures": len(requests),
            "settings": reference.settings,
            "rows": [],
        }
        judge = SubjectJudge(resolve(config).device)
        for name, build in _chosen(arguments.rows).items():
            start = time.perf_counter()
            try:
                if start - begin > arguments.seconds:
                    raise SkippedError("no time left")
                pipeline = build(bench)
                drawing = draw_with(pipeline, requests, arguments.batch_size, _quiet)
                comparison = measure(reference, drawing, judge, None)
                stored = bench.pipeline if build is in_float32 else pipeline
                row = _row(name, comparison, transformer_bytes(stored.mmdit), probe.sqnr_db(pipeline))
                if arguments.keep and name == "rowwise (default)":
                    reference.keep(Path(arguments.keep) / "reference")
                    drawing.keep(Path(arguments.keep) / "candidate")
                del pipeline
            except SkippedError as reason:
                row = {"name": name, "skipped": str(reason)}
            gc.collect()
            report["rows"].append(row)
            _write(Path(arguments.out), report)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(table(report))
    return 0


def _chosen(names: list[str]) -> dict[str, Callable[[Bench], Pipeline]]:
    return {name: build for name, build in ROWS.items() if name in names}


def _prompts(count: int) -> list[str]:
    half = count // 2
    return [prompt.text for prompt in [*trained_prompts(count - half), *held_out_prompts(half)]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=16, help="prompts that calibration draws")
    parser.add_argument("--steps", type=int, help="default: as the model recommends")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no row after this long")
    parser.add_argument(
        "--rows", nargs="*", choices=ROWS, default=list(ROWS), metavar="ROW", help="these alone"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", help="keep the drawings of 16-bit and of the default recipe in this folder")
    return parser.parse_args()


def transformer_bytes(mmdit: nn.Module) -> int:
    """Bytes of the transformer's weights as they would be stored."""
    cast = {id(layer.weight) for layer in mmdit.modules() if getattr(layer, "stored_as_fp8", False)}
    return sum(
        tensor.numel() if id(tensor) in cast else _stored_bytes(tensor)
        for tensor in [*mmdit.parameters(), *mmdit.buffers()]
    )


def _stored_bytes(tensor: Tensor) -> int:
    """torchao's tensors are bf16 to those who ask; what they hold is FP8 and a scale."""
    if hasattr(tensor, "qdata"):
        return tensor.qdata.nbytes + tensor.scale.nbytes
    return tensor.nbytes


def _row(name: str, comparison: Comparison, size: int, velocity: dict[str, float]) -> dict[str, object]:
    figures = {figure.name: {"mean": figure.mean, "worst": figure.worst} for figure in comparison.figures}
    return {
        "name": name,
        "transformer_bytes": size,
        "velocity SQNR, dB": {"mean": sum(velocity.values()) / len(velocity), "by step": velocity},
        "same_subject": comparison.same_subject,
        **figures,
    }


def _write(path: Path, report: dict[str, object]) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f"{path.name}.unfinished")
    fresh.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def _quiet(done: int, of: int) -> None:
    """No progress shown: the table comes last."""


if __name__ == "__main__":
    began = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    sys.exit(code)

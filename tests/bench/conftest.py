"""The smallest work that has every part: the demo's sizes, a picture of 64 x 64, three steps."""

from typing import Any

import pytest

from sd35.bench.workload import Workload


@pytest.fixture
def tiny() -> Workload:
    """Guided, on the CPU, in float32 so that engines can be compared."""
    runtime = {"device": "cpu", "compute_dtype": "fp32"}
    return Workload(variant="demo", width=64, height=64, steps=3, rounds=2, runtime=runtime)


@pytest.fixture
def result() -> dict[str, Any]:
    """A result as a file holds it: three engines, one of them without figures. Its numbers are made up."""
    row = {
        "engine": "sd35", "variant": "large", "precision": "float8_e4m3fn + bfloat16", "attention": "sdpa",
        "plan": "resident", "guidance": True, "mode": "exact", "width": 1024, "height": 1024, "images": 2,
        "steps": 28, "ms_per_step": 50.0, "spread": 0.5, "seconds": 3.0, "tflops": 600.0, "reason": None,
        "stage_seconds": {"encode": 0.1, "denoise": 2.8, "decode": 0.1}, "peak_bytes": 6 * 2**30,
        "cap_bytes": None, "first_call_seconds": 8.0, "share_of_limit": 0.8,
    }  # fmt: skip
    eager = {**row, "engine": "diffusers-eager", "precision": "bfloat16", "ms_per_step": 125.0}
    absent = dict.fromkeys(("ms_per_step", "seconds", "peak_bytes", "precision", "tflops", "share_of_limit"))
    skipped = {**row, **absent, "engine": "torchao-compile", "stage_seconds": {}, "reason": "not installed"}
    return {
        "machine": {"gpu": "Card 9000", "torch": "2.99", "date": "2030-01-01"},
        "stage": None,
        "work": {"linear_tflop_per_step": 30.0, "attention_tflop_per_step": 10.0},
        "rows": [row, eager, skipped],
        "limits": {
            "copy_tb_per_second": 3.0, "dtype": "bfloat16", "gemm_tflops": {"all": 700.0},
            "fp8_gemm_tflops": {"all": 1200.0}, "attention_tflops": {"flash": 300.0, "cudnn": 400.0},
        },
        "kernels": {"sd35": [
            {"name": "nvjet", "kind": "gemm", "calls": 1, "ms": 30.0},
            {"name": "flash_fwd", "kind": "attention", "calls": 1, "ms": 15.0},
        ]},
        "drift": {"first_ms_per_step": 50.0, "last_ms_per_step": 51.25},
        "notes": [],
    }  # fmt: skip

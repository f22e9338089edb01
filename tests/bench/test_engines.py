"""Every engine does the same work: same weights, same noise, same loop. Here they show it in float32."""

import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.utils import logging

from sd35.bench import peers, worker
from sd35.bench.ours import Sd35Engine
from sd35.bench.random_weights import RandomCheckpoint
from sd35.bench.workload import Workload
from sd35.errors import LibraryError, RequestError
from sd35.runtime.encoders import encode
from sd35.runtime.latents import initial_latents
from sd35.runtime.load import assemble
from sd35.runtime.sampling import denoise


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """diffusers warns of text that it cuts; ours is short."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


def ignore(done: int, of: int) -> None:
    """A listener that does nothing."""


@torch.inference_mode()
def our_latents(workload: Workload) -> torch.Tensor:
    """Latents that our pipeline makes of the 16-bit random weights."""
    checkpoint = RandomCheckpoint(workload.variant, torch.device("cpu"))
    pipeline = assemble(checkpoint, workload.config(), workload.model, "random")
    pictures = workload.pictures(0)
    latents = initial_latents(pictures, torch.device("cpu"))
    embeds = encode(pipeline.text_encoders, pictures, pipeline.prompts)
    return denoise(pipeline.mmdit, latents, embeds, pictures[0].settings, pipeline.shift, ignore)


@torch.inference_mode()
def their_latents(workload: Workload) -> torch.Tensor:
    """The same by the peer's own calls."""
    engine, pictures = peers.diffusers_eager(workload), workload.pictures(0)
    noise = initial_latents(pictures, torch.device("cpu"))
    return engine._denoise(pictures, engine._encode(pictures), noise, ignore)


@pytest.mark.parametrize("change", [{}, {"guidance_scale": 1.0}, {"images": 2, "width": 96}])
def test_peers_do_the_same_work(tiny: Workload, change: dict[str, object]) -> None:
    """From the same weights, prompts and noise diffusers comes to our latents, guided or not, one or two."""
    workload = replace(tiny, **change)  # type: ignore[arg-type]
    ours, theirs = our_latents(workload), their_latents(workload)
    assert torch.allclose(ours, theirs, atol=1e-3 * float(ours.std()))


@pytest.mark.parametrize("name", ["sd35", "diffusers-eager"])
@pytest.mark.parametrize("stage", [None, "encode", "denoise", "decode"])
def test_stages_alone_and_together(tiny: Workload, name: str, stage: str | None) -> None:
    """An engine times the stages that it is asked for and hears of steps where there are some."""
    workload = replace(tiny, stage=stage, rounds=1)
    heard: list[tuple[int, int]] = []
    seconds = worker.build(name, workload).draw(workload.pictures(0), lambda *step: heard.append(step))
    assert list(seconds) == list(workload.stages)
    assert min(seconds.values()) > 0
    assert heard == ([(1, 3), (2, 3), (3, 3)] if "denoise" in workload.stages else [])


def test_the_16_bit_weights_run_too(tiny: Workload) -> None:
    """For the comparison with FP8 as storage; a checkpoint brings its own precision."""
    assert Sd35Engine(replace(tiny, precision="bf16")).precision == "float32"
    with pytest.raises(RequestError, match="a checkpoint has its own"):
        replace(tiny, precision="bf16", checkpoint="demo")


def test_a_stage_alone_holds_its_part_alone(tiny: Workload) -> None:
    """With the denoiser alone, text encoders and VAE hold no memory."""
    pipeline = Sd35Engine(replace(tiny, stage="denoise"))._pipeline
    assert all(tensor.is_meta for tensor in pipeline.vae.parameters())
    assert all(tensor.is_meta for tensor in pipeline.text_encoders.clip_l.model.parameters())
    assert not any(tensor.is_meta for tensor in pipeline.mmdit.parameters())


def test_compiling_changes_no_result(tiny: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled peer is the same model: each block goes through torch.compile, and the latents stay."""
    monkeypatch.setattr(peers, "COMPILE_BACKEND", "eager")
    engine, pictures = peers.diffusers_compile(tiny), tiny.pictures(0)
    noise = initial_latents(pictures, torch.device("cpu"))
    with torch.no_grad():
        compiled = engine._denoise(pictures, engine._encode(pictures), noise, ignore)
    assert all(block._compiled_call_impl is not None for block in engine.transformer.transformer_blocks)
    assert torch.allclose(compiled, their_latents(tiny), atol=1e-4)


def test_torchao_is_asked_for_in_words(tiny: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchao its row has a reason with a remedy."""
    monkeypatch.setattr(
        peers, "find_spec", lambda name: None if name == "torchao" else importlib.util.find_spec(name)
    )
    with pytest.raises(LibraryError, match="pip install torchao"):
        peers.torchao_compile(tiny)


def task_for(workload: Workload) -> dict[str, Any]:
    """All that a worker can be asked, as it comes to its process."""
    task = {"engine": "sd35", "workload": workload.as_dict(), "profile": True, "limits": True}
    return json.loads(json.dumps(task))


def test_an_extra_that_fails_costs_itself_alone(tiny: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the limits can't be measured the row stands, the kernels come, and a note says why."""

    def broken(workload: Workload, device: torch.device) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("sd35.bench.limits.measure_limits", broken)
    out = io.StringIO()
    worker.work(task_for(replace(tiny, rounds=1)), out)
    row, note, kernels = (json.loads(line) for line in out.getvalue().splitlines())
    assert row["row"]["ms_per_step"] > 0
    assert note == {"note": "no limits: RuntimeError: no such kernel"}
    assert kernels["kernels"]


def test_a_worker_says_what_it_finds(tiny: Workload) -> None:
    """One line each: the row first, then the card's limits, then the kernels of a step."""
    out = io.StringIO()
    worker.work(task_for(tiny), out)
    row, limits, kernels = (json.loads(line) for line in out.getvalue().splitlines())
    assert row["row"]["ms_per_step"] > 0
    assert limits["limits"]["gemm_tflops"]["all"] > 0
    assert limits["limits"]["fp8_gemm_tflops"] is None
    assert list(limits["limits"]["attention_tflops"]) == ["sdpa"]
    assert {"gemm", "attention"} <= {one["kind"] for one in kernels["kernels"]}

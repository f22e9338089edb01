"""The checks of the machine, each with its trouble planted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sd35.config import RuntimeConfig
from sd35.doctor import product
from sd35.doctor.choices import Candidate, Operation
from sd35.doctor.finding import Finding
from sd35.doctor.libraries import OPTIONAL, check_attention, check_libraries
from sd35.doctor.product import ProductError, check_product, judge, measure_product
from sd35.doctor.stack import Stack, _missing_build_tools, check_stack, covers
from sd35.doctor.surroundings import LEAST_ROOM, check_disk, check_token
from sd35.fp8 import ScaledTensor, quantize
from sd35.runtime.load import resolve

SOUND = Stack(
    torch="2.13.0+cu130",
    cuda="13.0",
    hip=None,
    architectures=["sm_80", "sm_86", "sm_90"],
    cards=[("NVIDIA H100", (9, 0))],
    driver_cards=[("NVIDIA H100", "580.65")],
)


def only(findings: object) -> Finding:
    """The one finding there is."""
    (finding,) = findings  # type: ignore[misc]
    return finding


def test_a_sound_stack() -> None:
    """A card whose architecture is built in."""
    assert only(check_stack(SOUND)).ok


@pytest.mark.parametrize(
    ("stack", "words", "fix"),
    [
        (replace(SOUND, cuda=None, cards=[]), "built without CUDA", "torch"),
        (replace(SOUND, cards=[]), "can use no card", "update the driver"),
        (replace(SOUND, cards=[("GTX 1080", (6, 1))]), "has no code for it", "pip install --upgrade torch"),
        (replace(SOUND, cards=[("Next", (12, 0))]), "only for sm_80, sm_86, sm_90", "pip install"),
    ],
)
def test_a_stack_that_does_not_belong_together(stack: Stack, words: str, fix: str) -> None:
    """CUDA missing in PyTorch, an old driver, an architecture that no build has."""
    finding = only(check_stack(stack))
    assert not finding.ok
    assert words in finding.what
    assert fix in finding.fix
    assert finding.trouble == "card not used"


def test_triton_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card without a C compiler or Python's headers is a finding that names both and the packages."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    lacks = list(_missing_build_tools())
    card, finding = check_stack(replace(SOUND, triton_lacks=lacks))
    assert card.ok
    assert not finding.ok
    assert "no C compiler and no Python.h" in finding.what
    assert "gcc python3-dev" in finding.fix
    monkeypatch.setenv("CC", "cc")
    (tmp_path / "Python.h").touch()
    assert not list(_missing_build_tools())


def test_no_card_is_no_fault() -> None:
    """A machine without a card draws on its CPU."""
    finding = only(check_stack(replace(SOUND, cards=[], driver_cards=[], cuda=None)))
    assert finding.ok
    assert "CPU" in finding.what


@pytest.mark.parametrize(
    ("architecture", "capability", "answer"),
    [
        ("sm_80", (8, 9), True),  # machine code runs on later cards of its generation
        ("sm_80", (9, 0), False),
        ("sm_90", (8, 9), False),
        ("sm_90a", (9, 0), True),
        ("compute_90", (12, 0), True),  # PTX runs on all later ones
        ("sm_120", (12, 0), True),
        ("gfx942", (9, 4), False),
    ],
)
def test_which_code_runs_where(architecture: str, capability: tuple[int, int], answer: bool) -> None:
    """NVIDIA's rule of compatibility."""
    assert covers(architecture, capability) is answer


@pytest.mark.parametrize("activations", ["fp8", "16bit"])
def test_the_product_is_right(activations: str) -> None:
    """Both ways of multiplying add bf16's rounding alone; rounding to FP8 is the larger part by far."""
    error = measure_product(resolve(RuntimeConfig(device="cpu", activations=activations)))
    assert 0 < error.added < 0.004
    assert 0.015 < error.in_all < 0.05
    assert judge(error).ok


def test_a_product_without_its_scales_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that forgets a scale, planted: the error is named and is no longer small."""

    def forgetful(values: torch.Tensor) -> ScaledTensor:
        """Every eighth row's scale is 1."""
        scaled = quantize(values)
        scaled.scale[::8] = 1.0
        return scaled

    placement = resolve(RuntimeConfig(device="cpu", activations="fp8"))
    layer = product.Fp8Linear

    def broken(weight: ScaledTensor, *rest: object) -> object:
        """A layer that computes with other scales than it was given."""
        return layer(forgetful(weight.dequantize()), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(product, "Fp8Linear", broken)
    finding = check_product(placement)
    assert not finding.ok
    assert finding.trouble == "blurred or off-colour"


def test_nan_is_wrong() -> None:
    """A comparison with NaN is false, and that must not pass."""
    assert not judge(ProductError(float("nan"), float("nan"), "x")).ok


ON_HOPPER = Operation(
    "attention",
    "cudnn",
    [
        Candidate("fa3", "the package is not installed (pip install 'sd35-fp8[hopper]')"),
        Candidate("cudnn", None),
        Candidate("xformers", "the package is not installed (pip install xformers)"),
    ],
)


def test_a_demanded_attention_that_is_missing() -> None:
    """Its package is named, with the command; under auto the same is an offer and nothing is wrong."""
    finding = only(check_attention(ON_HOPPER, "xformers"))
    assert (finding.ok, finding.fix) == (False, "pip install xformers")
    assert finding.trouble == "attention library missing"
    offer = only(check_attention(ON_HOPPER, "auto"))
    assert (offer.ok, offer.fix) == (True, "pip install 'sd35-fp8[hopper]'")
    assert offer.what.startswith("cudnn; fa3 would be faster")
    assert only(check_attention(ON_HOPPER, "cudnn")).ok


def test_the_fastest_attention_is_named_where_it_can_run() -> None:
    """Ours in FP8 is a choice, so a line tells of it; whoever took it, or can't, hears nothing."""
    candidates = [Candidate("fa3", None), Candidate("sd35-fp8", None)]
    here = Operation("attention", "fa3", candidates)
    assert only(check_attention(here, "auto")).what == "fa3; in FP8, --attention sd35-fp8 is the fastest here"
    assert only(check_attention(here, "sd35-fp8")).what == "sd35-fp8"
    elsewhere = Operation(
        "attention", "fa3", [Candidate("fa3", None), Candidate("sd35-fp8", "it is not Hopper")]
    )
    assert only(check_attention(elsewhere, "auto")).what == "fa3"


def test_missing_libraries_are_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong without them, each has its command."""
    monkeypatch.setattr("sd35.doctor.libraries.installed_version", lambda package: None)
    found = {finding.check: finding for finding in check_libraries()}
    assert all(finding.ok for finding in found.values())
    assert [found[one.package].fix for one in OPTIONAL] == [one.install for one in OPTIONAL]


def test_a_full_disk() -> None:
    """Below a gibibyte it is wrong."""
    assert check_disk(LEAST_ROOM, []).ok
    assert check_disk(LEAST_ROOM - 1, []).trouble == "disk full"


def test_the_token_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, others may read its file, and it is in no finding."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    path = tmp_path / "token"
    monkeypatch.setenv("HF_TOKEN_PATH", str(path))
    assert [finding.fix for finding in check_token()] == ["hf auth login"]
    path.write_text("hf_canary")
    path.chmod(0o644)
    there, readable = check_token()
    assert (there.ok, readable.ok) == (True, False)
    assert readable.fix == f"chmod 600 {path}"
    path.chmod(0o600)
    assert [finding.ok for finding in check_token()] == [True]
    assert "canary" not in repr((there, readable))


def test_a_card_that_cannot_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver says is the finding; the doctor goes on."""

    def refuse(*_: object) -> object:
        """As a card for which the build has no code."""
        raise RuntimeError("CUDA error: no kernel image is available\nand much more")

    monkeypatch.setattr(product, "Fp8Linear", refuse)
    finding = check_product(resolve(RuntimeConfig(device="cpu")))
    assert finding.what == "cpu can't multiply: CUDA error: no kernel image is available"
    assert finding.trouble == "card not used"

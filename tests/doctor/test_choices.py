"""The doctor asks those who choose, and repeats their answers."""

import pytest
import torch

from sd35.config import RuntimeConfig
from sd35.doctor import choices
from sd35.doctor.choices import Operation, operations
from sd35.doctor.examine import examine
from sd35.errors import DeviceError
from sd35.runtime import machine
from sd35.runtime.load import resolve


def chosen(**config: str) -> list[Operation]:
    """The operations on a CPU."""
    return operations(resolve(RuntimeConfig(device="cpu", **config)))


def test_a_cpu_has_its_reasons() -> None:
    """On a CPU the FP8 product is the reference's, and what needs a card says so."""
    fused, product, attention = chosen(compute_dtype="fp32")
    assert fused.chosen == product.chosen == "reference"
    assert "it needs a CUDA device" in (fused.candidates[0].refusal or "")
    assert {one.name: one.refusal for one in product.candidates} == {
        "cublas": "it needs a CUDA device, not cpu",
        "reference": None,
    }
    assert attention.chosen == "sdpa"
    assert [one.name for one in attention.candidates if one.refusal is None] == ["sdpa"]


def test_the_choice_is_the_one_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cuBLAS has no reason against it, it is taken: choice and reasons come from one function."""
    monkeypatch.setattr("sd35.kernels.api.cublas_refuses", lambda weight, dtype, device=None: None)
    monkeypatch.setattr(choices, "cublas_refuses", lambda weight, dtype, device=None: None)
    assert chosen()[1].chosen == "cublas"


def test_an_absent_device_is_an_error() -> None:
    """The doctor does not speak of a card that is not there."""
    with pytest.raises(DeviceError):
        examine(RuntimeConfig(device="cuda:99"))


def test_the_machine_in_facts() -> None:
    """Versions and threads are this process's, a CPU has no driver, what is not installed is None."""
    facts = machine.machine_of(torch.device("cpu"))
    assert (facts.torch, facts.gpu, facts.driver) == (torch.__version__, None, None)
    assert facts.cpu
    assert facts.threads == torch.get_num_threads()
    assert machine.installed_version("no-such-package") is None


@pytest.mark.parametrize(("answer", "driver"), [("580.65.06\n580.65.06\n", "580.65.06"), ("", None)])
def test_the_driver(monkeypatch: pytest.MonkeyPatch, answer: str, driver: str | None) -> None:
    """The first card's line counts; silence is None."""
    done = machine.subprocess.CompletedProcess([], 0, stdout=answer.encode())
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    assert machine._driver() == driver

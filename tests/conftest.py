"""What many tests share: a home of their own, the demo model in its precisions, small weights to break."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

# As the command itself has it (cli/main.py): threads that wait leave the cores to others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter then; it is chosen when triton is imported, and others import it.
    os.environ["TRITON_INTERPRET"] = "1"

from safetensors.torch import load_file, save_file

import sd35
from sd35.checkpoints.store import locate
from sd35.config import RuntimeConfig
from sd35.quantization.ready import ready
from sd35.runtime.load import load_pipeline
from sd35.runtime.pipeline import Pipeline


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD35_HOME of this run: nothing of the user's is read or written."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SD35_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def demo() -> Path:
    """The bundled 16-bit folder."""
    return locate("demo")


@pytest.fixture(scope="session")
def demo_fp8() -> Path:
    """The bundled model in FP8, by the default recipe."""
    return ready("demo", "fp8")


@pytest.fixture(scope="session")
def pipeline_fp32(demo: Path) -> Pipeline:
    """The demo computing in float32: what oracles are compared with."""
    return load_pipeline(demo, RuntimeConfig(device="cpu", compute_dtype="fp32"))


@pytest.fixture(scope="session")
def pipeline_fp8(demo_fp8: Path) -> Pipeline:
    """The demo in FP8 with bf16 around it, on the CPU, multiplying as FP8 cards do."""
    return load_pipeline(demo_fp8, RuntimeConfig(device="cpu", compute_dtype="bf16", activations="fp8"))


@pytest.fixture
def demo_copy(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo folder that a test may damage; it has no manifest."""
    copy = tmp_path / "demo-copy"
    shutil.copytree(demo, copy)
    (copy / "sd35.json").unlink(missing_ok=True)
    return copy


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change keys of a JSON file; a value of `...` removes the key."""

    def edit(path: Path, **changes: object) -> None:
        content = json.loads(path.read_text())
        for key, value in changes.items():
            content.pop(key) if value is ... else content.update({key: value})
        path.write_text(json.dumps(content))

    return edit


@pytest.fixture
def edit_tensors() -> Callable[..., None]:
    """Rewrite a safetensors file through a function of its tensors."""

    def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


@pytest.fixture
def fox() -> sd35.GenerationRequest:
    """A short request."""
    return sd35.GenerationRequest("a fox, flat style, on a blue background", seed=7, num_inference_steps=4)

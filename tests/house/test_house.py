"""The walls of the house: light imports, public names, arrows, documents in step with the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sd35
from sd35.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HEAVY = {"torch", "numpy", "diffusers", "transformers", "safetensors", "PIL"}


def imported_by(statement: str) -> set[str]:
    """Top-level modules in a fresh process after a statement."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


@pytest.mark.parametrize(
    "statement",
    [
        "import sd35",
        "import sd35.request, sd35.config, sd35.variants, sd35.errors",
        "from sd35.cli.main import build_parser; build_parser()",
        "import sd35.demo.prompts",
        "import sd35.checkpoints.manifest, sd35.checkpoints.store, sd35.checkpoints.records",
        "import sd35.checkpoints.gates, sd35.checkpoints.header, sd35.checkpoints.tree",
        "import sd35.checkpoints.fetch.fetch",
        "import sd35.serving.server, sd35.serving.null_worker, sd35.cli.draw_worker",
        "import sd35.serving.keys, sd35.serving.spool, sd35.serving.objects",
        "import sd35.serving.safety, sd35.serving.output_check",
        "import sd35.pictures_in.decode, sd35.serving.uploads",
    ],
)
def test_light_rooms_stay_light(statement: str) -> None:
    """These imports bring no heavy library along."""
    assert not imported_by(statement) & HEAVY


def test_drawing_starts_quickly(tmp_path: Path) -> None:
    """A picture is drawn without the libraries whose import takes longer than drawing it."""
    command = ["generate", "a fox", "--steps", "1", "--device", "cpu", "-o", str(tmp_path / "fox.png")]
    code = f"from sd35.cli.main import main; main({command})\nimport sys; print(*sys.modules)"
    words = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert (tmp_path / "fox.png").exists()
    assert {"torch", "transformers", "sd35.runtime.vae"} <= set(words)
    slow = {"diffusers", "transformers.modeling_utils", "torch._dynamo", "sympy", "triton"}
    assert not slow & set(words)


def test_public_names() -> None:
    """Sorted, importable, and nothing else."""
    assert list(sd35.__all__) == sorted(sd35.__all__)
    assert all(getattr(sd35, name).__name__ == name for name in sd35.__all__)
    assert not hasattr(sd35, "nonsense")


def test_arrows_go_down() -> None:
    """import-linter's contracts hold."""
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src/sd35")))
def test_files_are_small_and_explained(path: Path) -> None:
    """Every source file has a docstring and at most 350 lines; every public function says what it does."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(tree) or not text.strip()
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    for owner in (tree, *classes):
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_documents_follow_the_code() -> None:
    """The generated pages are what the code says today."""
    run = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("name", READMES)
def test_a_readme_is_read_in_one_sitting(name: str) -> None:
    """At most 150 lines."""
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150


def test_version_is_in_the_changelog() -> None:
    """The package's version has its entry."""
    assert f"## [{sd35.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """`sd35 VERB --help` works for all of them."""
    for verb in VERBS:
        with pytest.raises(SystemExit) as exit_:
            main([verb, "--help"])
        assert exit_.value.code == 0
        assert verb in capsys.readouterr().out

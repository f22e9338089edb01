"""What pages tell people to type is typed here, with the demo model in the place of Stability's.

Each page is one shell script, line for line, run in an empty folder with a home of its own. What can't run
here stands in `LEFT_OUT` with its reason; it still has to be a command line that `sd35` understands and to
name files that exist. `STAND_INS` makes what a reader would have: a checkpoint under a name, a file of
prompts.
"""

import argparse
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import loopback_hub
import pytest
import yaml
from loopback_hub import LoopbackHub, contents
from markdown_pages import ROOT, Command, Page, pages
from rehearsal import Rehearsal, rehearsals

from sd35.checkpoints.store import REPOSITORIES
from sd35.cli.main import build_parser

PAGES = [page for page in pages() if not page.name.startswith("src/")]
WITH_COMMANDS = [page for page in PAGES if page.commands]
LANGUAGES = {"sh", "python", "text", "toml", "yaml", "nginx", "powershell"}

CARD = "needs a card or two, or Large's 28 GB; tests/bench runs it small"
SUITE = "runs tests or checks: this is one of them"
NETWORK = "installs packages from the network: CI's first step does"
MACHINE = "changes the machine: users, /etc, /opt, services; test_deploy.py looks at the files"
TWIN = "the same line of README.md is run"
MINUTES = "takes minutes by design; tests run it with smaller numbers"

# (page, how the command begins, why it is not run).
LEFT_OUT = [
    ("README.md", "make test", SUITE),
    ("CONTRIBUTING.md", "make test", SUITE),
    ("CONTRIBUTING.md", "make check", SUITE),
    ("CONTRIBUTING.md", ".venv/bin/pre-commit install", SUITE),
    ("docs/explanation/quality.md", "sd35 compare demo -n 500", MINUTES),
    ("docs/explanation/quality.md", "python benchmarks/fidelity.py", MINUTES),
    ("docs/guides/bench.md", "sd35 bench --variant large", CARD),
    ("docs/guides/bench.md", "sd35 bench --serve null", MINUTES),
    ("docs/guides/bench.md", "sd35 bench --serve http", MINUTES),
    ("docs/guides/deploy.md", "useradd", MACHINE),
    ("docs/guides/deploy.md", "install --directory", MACHINE),
    ("docs/guides/deploy.md", "python3 -m venv /opt/sd35", MACHINE),
    ("docs/guides/deploy.md", "/opt/sd35/bin/", MACHINE),
    ("docs/guides/deploy.md", "install -D deploy/sd35.toml", MACHINE),
    ("docs/guides/deploy.md", "sd35 config show --config /etc", MACHINE),
    ("docs/guides/deploy.md", "cp deploy/sd35.service", MACHINE),
    ("docs/guides/deploy.md", "systemctl", MACHINE),
    ("docs/guides/deploy.md", "journalctl", MACHINE),
    ("docs/guides/deploy.md", "docker", MACHINE),
    ("docs/guides/deploy.md", "sqlite3 /var", MACHINE),
    ("docs/guides/comfyui.md", "hf download", NETWORK),
    ("docs/guides/memory.md", "sd35 bench", CARD),
    ("docs/guides/memory.md", 'sd35 generate "a fox" --checkpoint FOLDER --devices', CARD),
    ("docs/guides/memory.md", "python benchmarks/random_checkpoint.py", CARD),
    ("docs/guides/serving.md", "pip install", NETWORK),
    ("docs/guides/web.md", "SD35_SCREENSHOTS", SUITE),
]
# Commands that end with another code than 0 here: nothing was interrupted, no key has that name, there is no
# FlashAttention-3 on a CPU and no position beyond 512 pixels in the demo.
ENDS = {
    ("docs/guides/8gb-card.md", "sd35 doctor large --max-vram 5.2GiB --size 768"): 2,
    ("docs/guides/quantization.md", "sd35 quantize SOURCE DESTINATION --resume"): 4,
    ("docs/guides/serving-storage.md", "sd35 keys revoke 3f2a9c0d11e4b7a8"): 4,
    ("docs/guides/troubleshooting.md", "sd35 doctor --attention fa3"): 4,
    ("docs/guides/troubleshooting.md", "sd35 doctor CHECKPOINT --size 1536"): 2,
}
# What the page's reader has: run in the page's folder beforehand. $DEMO is the bundled model's folder.
STAND_INS = {
    "docs/getting-started.md": 'mkdir ~/models; ln -s "$DEMO" ~/models/stable-diffusion-3.5-medium',
    "README.md": 'mkdir ~/models; ln -s "$DEMO" ~/models/stable-diffusion-3.5-large',
    "README.zh-CN.md": 'mkdir ~/models; ln -s "$DEMO" ~/models/stable-diffusion-3.5-large',
    "docs/guides/comfyui.md": """
        mkdir -p ~/models ~/ComfyUI/models/checkpoints ~/ComfyUI/models/text_encoders
        ln -s "$DEMO" ~/models/sd3.5-large
        cp -r "$DEMO" sd3.5-configs; rm sd3.5-configs/sd35.json sd3.5-configs/*/*.safetensors
        cd ~/ComfyUI/models
        sd35 convert demo checkpoints/sd3.5_large_fp8_scaled.safetensors --format comfy-legacy \\
            --requantize --with-encoders
        sd35 convert demo checkpoints/sd3.5_large.safetensors --format 16bit-file
        cp "$DEMO/text_encoder/model.safetensors" text_encoders/clip_l.safetensors
        cp "$DEMO/text_encoder_2/model.safetensors" text_encoders/clip_g.safetensors
        cp "$DEMO/text_encoder_3/model.safetensors" text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors
        cd -""",
    "docs/guides/fetch.md": "mkdir -p ~/models/sd3.5-large/.cache/huggingface/download",
    "docs/guides/formats.md": """
        mkdir PATH PATH/TO; ln -s "$DEMO" PATH/TO/FOLDER
        sd35 convert demo sd3.5_large_fp8_scaled.safetensors --format comfy-legacy --requantize
        sd35 convert demo sd3.5_large.safetensors --format 16bit-file
        sd35 quantize demo my-fp8-folder
        cp "$DEMO/text_encoder/model.safetensors" clip_l.safetensors
        cp "$DEMO/text_encoder_2/model.safetensors" clip_g.safetensors
        cp "$DEMO/text_encoder_3/model.safetensors" t5xxl_fp8_e4m3fn_scaled.safetensors""",
    "docs/guides/memory.md": 'ln -s "$DEMO" FOLDER; ln -s "$DEMO" large-16bit',
    "docs/guides/operations.md": """
        _serve --engine null
        curl -fsS http://127.0.0.1:$SD35_SERVE_PORT/v1/images/generations \\
            --json '{"prompt": "a fox"}' > /dev/null
        export SD35_SERVE_ENGINE=null""",
    "docs/guides/quantization.md": 'ln -s "$DEMO" SOURCE; echo "a fox" > prompts.txt',
    "docs/guides/troubleshooting.md": 'cp -r "$DEMO" CHECKPOINT',
    "docs/guides/verify.md": 'cp -r "$DEMO" PATH; rm PATH/sd35.json',
}
# What pages say is there afterwards.
MADE = {
    "README.md": ["foxes/*.png", "medium-fp8/sd35.json", "sd35-medium-comfy.safetensors", "apple.png"],
    "docs/getting-started.md": [
        "outputs/a-red-apple-glossy-style-on-a-blue-background-1.png", "pairs/*.png", "apple.png", "fox.png",
    ],
    "docs/explanation/quality.md": ["report.html"],
    "docs/guides/comfyui.md": ["fox.png"],
    "docs/guides/deploy.md": ["answer.json"],
    "docs/guides/operations.md": ["abnormal.csv", "records.csv"],
    "docs/guides/quantization.md": ["DESTINATION/sd35.json", "demo-static/sd35.json", "sheet.png"],
    "docs/guides/serving.md": ["apple.png", "apple.json", "green.png"],
    "docs/guides/verify.md": ["PATH/sd35.json"],
}  # fmt: skip
# The hub that pages fetch from has one repository with the demo's files, under the name that is asked for.
FETCHED = {
    "docs/guides/8gb-card.md": "large",
    "README.md": "medium",
    "README.zh-CN.md": "medium",
    "docs/guides/deploy.md": "large",
    "docs/guides/fetch.md": "large",
}
# Programs that CI installs and others may lack; where they do, what names them is left out.
PROGRAMS = ("promtool",)


def plain(command: Command) -> str:
    """Without its comment, which is a reader's language."""
    return re.sub(r" +#.*", "", command.text)


def reason_of(command: Command) -> str | None:
    """Why it is not run here, None where it is."""
    for page, beginning, reason in LEFT_OUT:
        if command.page == page and command.text.startswith(beginning):
            return reason
    if command.page == "README.zh-CN.md" and plain(command) in map(plain, Page("README.md").commands):
        return TWIN
    for program in PROGRAMS:
        if program in command.text and shutil.which(program) is None and not os.environ.get("CI"):
            return f"{program} is not there"
    return None


def named(page: Page) -> str:
    """For pytest's list."""
    return page.name


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has beside the package, for commands that name it, with a .venv that is installed."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("benchmarks", "deploy", "docs", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def environment(home: Path, demo: Path, demo_fp8: Path) -> dict[str, str]:
    """Of a reader without a hub's account; the demo's FP8 folder is there already."""
    strange = ("HF_", "HUGGING", "TRITON_INTERPRET", "SD35_", "AWS_", "CI")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    assert demo_fp8.is_relative_to(home)
    return {**kept, "DEMO": str(demo), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"}


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Rehearsal]:
    """The shell."""
    with rehearsals(tmp_path_factory.mktemp("rehearsal"), environment) as found:
        yield found


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named)
def test_a_page_runs(
    page: Page, rehearsal: Rehearsal, clone: Path, environment: dict[str, str], home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From its first command to its last, each ends as it should."""
    monkeypatch.setattr(loopback_hub, "CHUNK", 1 << 20)
    folder, reader = tmp_path / "here", tmp_path / "reader"
    shutil.copytree(clone, folder)
    _install(folder / ".venv", rehearsal)
    (reader / "sd35").mkdir(parents=True)
    (reader / "sd35" / "derived").symlink_to(home / "derived")
    own = {"HOME": str(reader), "SD35_HOME": str(reader / "sd35"), "HF_HOME": str(reader / "hf")}
    script = page.script({command for command in page.commands if reason_of(command)})
    for (name, line), code in ENDS.items():
        if name == page.name:
            script = re.sub(
                rf"^{re.escape(line)}[^#\n]*", rf"\g<0> || [ $? = {code} ] ", script, flags=re.MULTILINE
            )
    with ExitStack() as stack:
        if page.name in FETCHED:
            hub = stack.enter_context(_hub(environment["DEMO"], FETCHED[page.name]))
            own["HF_ENDPOINT"] = hub.endpoint
        done = rehearsal.run(script, folder, {**environment, **own}, STAND_INS.get(page.name, ""))
    assert done.returncode == 0, f"{page.name}\n{done.stdout[-3000:]}"
    for pattern in MADE.get(page.name, []):
        assert any(path.stat().st_size for path in folder.glob(pattern)), f"{page.name}: no {pattern}"


def _install(venv: Path, rehearsal: Rehearsal) -> None:
    """What the Makefile would have made, newer than what it is made of."""
    shutil.copytree(rehearsal.programs, venv / "bin")
    (venv / "bin" / "activate").touch()
    (venv / "installed").touch()


def _hub(demo: str, name: str) -> LoopbackHub:
    return LoopbackHub(contents(Path(demo)), REPOSITORIES[name])


def test_every_block_has_a_language() -> None:
    """So each is run, read or a picture; none hides by indentation."""
    for page in PAGES:
        assert {block.language for block in page.blocks} <= LANGUAGES, page.name
        assert not re.search(r"(?:\A|\n\n)    (?! *[-*|\d])", "\n".join(page.prose)), page.name


def test_files_in_blocks_are_read() -> None:
    """TOML and YAML that pages show are TOML and YAML."""
    readers = {"toml": tomllib.loads, "yaml": yaml.safe_load}
    shown = [block for page in PAGES for block in page.blocks if block.language in readers]
    assert shown
    for block in shown:
        assert readers[block.language](block.text)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named)
def test_commands_are_understood(page: Page) -> None:
    """Run or left out: our command line takes each, and a shell can read the page."""
    parser = build_parser()
    for command in page.commands:
        if command.words[0].rpartition("/")[2] == "sd35":
            parser.parse_args([word for word in command.words[1:] if word != "&"])
    checked = subprocess.run(
        ["bash", "-n"], input=page.script(set()), text=True, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_verbs_and_flags_in_sentences_exist() -> None:
    """A command between backticks may lack arguments, but what it has is real."""
    verbs = actions_of(build_parser())
    spans = [(page, span) for page in pages() for span in page.spans]
    assert len(spans) > 90
    for page, span in spans:
        words = re.sub(r"\|\S+", "", span).split()[1:]
        known = verbs.get(words[0]) if words else None
        assert known or words[0] in ("--help", "..."), f"{page.name}: {span}"
        if known:
            for action in actions_of(known).values():
                known._option_string_actions.update(action._option_string_actions)
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert flags <= set(known._option_string_actions), f"{page.name}: {span}"


def actions_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below a parser, by their names."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: choice for group in groups for name, choice in group.choices.items()}


def test_what_is_left_out_names_real_files() -> None:
    """Scripts, tests and deployment files that a command of a page names are in the tree."""
    for page in PAGES:
        for command in page.commands:
            if reason_of(command):
                words = (word.removeprefix("./") for word in command.words)
                for word in words:
                    if re.match(r"(deploy|benchmarks/\w+\.py|scripts|tests)\b", word):
                        assert (ROOT / word).exists(), str(command)


def test_little_is_left_out() -> None:
    """No reason without a command, and most commands run."""
    commands = [command for page in PAGES for command in page.commands]
    for page, beginning, _ in LEFT_OUT:
        assert any(c.page == page and c.text.startswith(beginning) for c in commands), (page, beginning)
    for page, beginning in ENDS:
        assert any(c.page == page and c.text.startswith(beginning) for c in commands), (page, beginning)
    assert set(STAND_INS) | set(FETCHED) <= {page.name for page in WITH_COMMANDS}
    left_out = [command for command in commands if reason_of(command) not in (None, TWIN)]
    assert len(left_out) / len(commands) < 0.35, [str(command) for command in left_out]


def test_links_lead_somewhere() -> None:
    """Every link within the project names a file, and its anchor a heading of it."""
    for page in pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(page.prose)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / page.name).parent / path if path else ROOT / page.name
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in map(_anchor, headings), f"{page.name}: {target}"


def _anchor(heading: str) -> str:
    """As the sites that show Markdown make it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_extras_exist() -> None:
    """Whatever `pip install` of a page asks for in brackets is an extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    asked = [
        name
        for page in pages()
        for name in re.findall(r"(?:sd35-fp8|'\.)\[([\w,-]+)\]", "\n".join(page.lines))
    ]
    assert asked
    assert {name for names in asked for name in names.split(",")} <= set(extras)

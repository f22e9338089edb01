"""Each of the classic troubles, planted, is found, named, and comes with what mends it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from budgets import budget_for
from loopback_hub import LoopbackHub, contents
from safetensors.torch import load_file, save_file
from test_full_size import whole  # noqa: F401 - a fixture

from sd35.checkpoints.fetch.fetch import fetch
from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.header import read_header
from sd35.checkpoints.manifest import Manifest, hash_files, read_manifest, write_manifest
from sd35.checkpoints.store import derived, home
from sd35.cli.main import main
from sd35.config import RuntimeConfig
from sd35.doctor import examine as room
from sd35.doctor.checkpoints import Place, check_structure
from sd35.doctor.examine import Asked, examine
from sd35.doctor.finding import Finding
from sd35.doctor.fits import blueprint_of, fits_of, variants_by_arithmetic
from sd35.doctor.surroundings import Memory, check_host_memory
from sd35.doctor.troubles import TROUBLES, troubleshooting_table
from sd35.request import GenerationRequest
from sd35.runtime.budget import gibibytes, usable
from sd35.runtime.configs import read_mmdit_config, read_vae_config
from sd35.runtime.load import resolve
from sd35.runtime.memory import Work, ladder, peak
from sd35.runtime.sizes import sizes_of
from sd35.variants import VARIANTS

CPU = RuntimeConfig(device="cpu")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
GIB = 1 << 30


def faults(
    checkpoint: str | Path | None, config: RuntimeConfig = CPU, *, online: bool = False
) -> list[Finding]:
    """What is wrong."""
    return examine(config, Asked(str(checkpoint) if checkpoint else None, online=online)).wrong


def flip(path: Path) -> None:
    """One bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def fetched(demo: Path) -> Path:
    """The demo as a fetched folder, which knows its origin and its hashes."""
    return fetch(str(demo), home() / "checkpoints" / "mine", via="folder").path


def test_nothing_is_wrong_with_the_demo() -> None:
    """Read to its last byte, on a machine that can draw it."""
    assert faults("demo") == []
    assert faults(None) == []


def test_out_of_memory_names_the_largest_that_fits() -> None:
    """Medium at 2048 pixels in a byte too little for any plan: the square that is named is the largest."""
    needed = min(_peaks(2048))
    budget = budget_for(needed) - 1
    config, asked = RuntimeConfig(device="cpu", max_vram=budget), Asked("medium", size=2048)
    diagnosis = examine(config, asked)
    (finding,) = [one for one in diagnosis.wrong if one.trouble == "out of memory"]
    table = diagnosis.fits[0]
    assert (table.asked.side, table.asked.plan, table.asked.bytes) == (2048, None, needed)
    assert table.largest is not None
    assert min(_peaks(table.largest)) <= usable(budget) < min(_peaks(table.largest + 64))
    assert f"the largest square that fits is {table.largest}x{table.largest}" in finding.what
    assert f"{gibibytes(usable(budget))} of {gibibytes(budget)} can be planned" in finding.what
    assert finding.fix.endswith(f"--width {table.largest} --height {table.largest} ...")
    enough = examine(RuntimeConfig(device="cpu", max_vram=budget + 1), asked)
    assert not [one for one in enough.wrong if one.trouble == "out of memory"]


def test_nothing_fits() -> None:
    """With a mebibyte no size is named."""
    (finding,) = faults("demo", RuntimeConfig(device="cpu", max_vram="1MiB"))
    assert "no size fits" in finding.what
    assert "--device cpu" in finding.fix


def test_weights_beyond_the_host_memory() -> None:
    """On a CPU all of Large is in host memory; a plan that leaves all on the card needs none of it."""
    large = variants_by_arithmetic(torch.bfloat16, None)[:1]
    little = Memory(available=2 * GIB, total=4 * GIB)
    told = list(check_host_memory(little, large, on_card=False))
    assert [finding.ok for finding in told] == [True, False]
    assert told[1].trouble == "out of memory"
    assert [finding.ok for finding in check_host_memory(little, large, on_card=True)] == [True]


def test_what_fits_is_what_drawing_chooses() -> None:
    """Large at FP8 within 7.2 GiB: 1024 pixels by a staged plan, as the guide on memory has it."""
    tables = {one.name: one for one in variants_by_arithmetic(torch.bfloat16, round(7.2 * GIB))}
    row = {fit.side: fit for fit in tables["large"].rows}[1024]
    assert row.plan is not None
    assert row.plan.startswith("staged")
    assert row.bytes <= usable(round(7.2 * GIB))
    assert [fit.side for fit in tables["medium"].rows] == [512, 1024, 1536]


def test_a_flipped_byte(fetched: Path) -> None:
    """In the transformer: its file is named, and the command brings it again."""
    flip(fetched / WEIGHTS)
    (finding,) = faults("mine")
    assert finding.trouble == "blurred or off-colour"
    assert WEIGHTS in finding.what
    assert finding.fix == "sd35 verify mine --fix"


def test_a_flipped_byte_in_a_folder_of_our_own(demo: Path, demo_fp8: Path) -> None:
    """The FP8 folder that is drawn from is looked at with its source, and is made again."""
    manifest = read_manifest(demo)
    assert manifest is not None
    place = derived(manifest.identity, "recipe")
    shutil.copytree(demo_fp8, place)
    assert faults("demo") == []
    flip(place / WEIGHTS)
    (finding,) = faults("demo")
    assert finding.fix.startswith(f"rm -r {place}")
    assert main(["doctor", "demo", "--device", "cpu", "--fix"]) == 0
    assert not place.exists()


@pytest.mark.parametrize("change", [{"scaling_factor": 0.18215}, {"shift_factor": 0.0}])
def test_wrong_vae_factors(
    whole: tuple[str, Path],  # noqa: F811
    edit_json: Callable[..., None],
    change: dict[str, object],
) -> None:
    """Another model's factors in a published variant: it would load and draw off-colour pictures."""
    edit_json(whole[1] / "vae/config.json", **change)
    (finding,) = check_structure(Place("it", whole[1]))
    assert (finding.ok, finding.trouble) == (False, "blurred or off-colour")
    assert next(iter(change)) in finding.what
    assert "original" in finding.fix


def test_a_published_variant_is_whole(whole: tuple[str, Path]) -> None:  # noqa: F811
    """Without the trouble, there is none."""
    (finding,) = check_structure(Place("it", whole[1]))
    assert finding.ok


def test_fp8_without_its_scales(demo_fp8: Path, tmp_path: Path) -> None:
    """Layers that are declared FP8 and have lost their scales."""
    copy = tmp_path / "fp8"
    shutil.copytree(demo_fp8, copy)
    (copy / "sd35.json").unlink()
    path = copy / WEIGHTS
    tensors = {name: value for name, value in load_file(path).items() if not name.endswith("weight_scale")}
    save_file(tensors, path, metadata=read_header(path).metadata)
    found = faults(copy)
    assert {finding.trouble for finding in found if "without their scales" in finding.what} == {
        "blurred or off-colour"
    }


def test_a_tokenizer_of_another_model(demo_copy: Path) -> None:
    """As many ids, and the end of a text under another one: nothing fails, and the prompt is misread."""
    path = demo_copy / "tokenizer_3" / "tokenizer.json"
    path.write_text(path.read_text().replace('"</s>"', '"<end>"'))
    found = faults(demo_copy)
    assert {finding.trouble for finding in found} == {"prompt ignored"}
    assert "has no </s>" in found[0].what


def test_a_text_encoder_of_another_model(demo_copy: Path) -> None:
    """CLIP-L's and CLIP-G's folders exchanged."""
    (demo_copy / "text_encoder").rename(demo_copy / "kept")
    (demo_copy / "text_encoder_2").rename(demo_copy / "text_encoder")
    (demo_copy / "kept").rename(demo_copy / "text_encoder_2")
    found = [finding for finding in faults(demo_copy) if finding.trouble == "prompt ignored"]
    assert any("text_encoder/config.json" in finding.what for finding in found)


def test_a_missing_attention() -> None:
    """Demanded, and not to be had here."""
    (finding,) = faults("demo", RuntimeConfig(device="cpu", attention="xformers"))
    assert finding.trouble == "attention library missing"
    assert finding.what.startswith("xformers can't run here")


def test_a_checkpoint_that_is_not_here() -> None:
    """Its command, and what would fit all the same."""
    found = examine(CPU, Asked("medium"))
    assert [finding.fix for finding in found.wrong if finding.about == "checkpoint"] == ["sd35 fetch medium"]
    assert "medium" in [fits.name for fits in found.fits]


def test_a_fetch_that_was_cut_off() -> None:
    """A folder with a workshop and without a manifest."""
    (home() / "checkpoints" / "org--name" / ".fetch").mkdir(parents=True)
    (finding,) = faults(None)
    assert (finding.trouble, finding.fix) == ("checkpoint missing or refused", "sd35 fetch org/name")


def test_a_licence_that_is_not_accepted(demo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is asked as a fetch would ask it, with a HEAD; without --online it is not asked at all."""
    with LoopbackHub(contents(demo), "stabilityai/stable-diffusion-3.5-medium") as hub:
        hub.gated, hub.token = True, "right"
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert not [finding for finding in faults("medium") if finding.trouble == "fetch refused"]
        assert not hub.requests
        (finding,) = [one for one in faults("medium", online=True) if one.trouble == "fetch refused"]
        assert "is gated and there is no token" in finding.what
        assert hub.sent == 0
        monkeypatch.setenv("HF_TOKEN", "right")
        assert not [one for one in faults("medium", online=True) if one.trouble == "fetch refused"]
        assert "right" not in json.dumps(examine(CPU, Asked("medium", online=True)).as_dict()["findings"])


def test_fix_brings_the_file_again(fetched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was done is said, the second look finds nothing, and the exit code is 0."""
    flip(fetched / "vae/diffusion_pytorch_model.safetensors")
    assert main(["doctor", "mine", "--device", "cpu", "--json"]) == 3
    before = json.loads(capsys.readouterr().out)
    assert (before["ok"], before["done"]) == (False, [])
    assert main(["doctor", "mine", "--device", "cpu", "--fix", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["ok"] is True
    assert after["done"] == ["fetched again for mine: vae/diffusion_pytorch_model.safetensors"]


def test_what_cannot_be_mended_stays(demo_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that does not know its origin: --fix says so, deletes nothing, and it is still wrong."""
    path = demo_copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["doctor", str(demo_copy), "--device", "cpu", "--fix"]) == 3
    captured = capsys.readouterr()
    assert "done: could not mend" in captured.out
    assert "WRONG" in captured.out
    assert path.is_file()


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """4 where the machine has a fault, 2 for an amount that is none."""
    assert main(["doctor", "--device", "cpu", "--max-vram", "1MiB"]) == 4
    assert main(["doctor", "--max-vram", "a lot"]) == 2
    assert main(["doctor", "--size", "512"]) == 2  # of which checkpoint?
    assert main(["doctor", "demo", "--size", "1024"]) == 2  # it draws up to 512
    monkeypatch.setattr(room, "disk_room", lambda: 0)
    assert main(["doctor", "--device", "cpu"]) == 4
    assert "1 finding: see above" in capsys.readouterr().err


def test_the_page_has_every_trouble_once() -> None:
    """Names are the findings' own, and the page's table has a row for each."""
    page = (Path(__file__).parents[2] / "docs/guides/troubleshooting.md").read_text(encoding="utf-8")
    assert troubleshooting_table() in page
    names = [trouble.name for trouble in TROUBLES]
    assert len(set(names)) == len(names)
    words = "".join(path.read_text() for path in Path(room.__file__).parent.glob("*.py"))
    assert all(words.count(f'"{name}"') >= 2 for name in names), "a row that no check would name"


def _peaks(side: int) -> list[int]:
    """Of every plan, for a square of Medium's."""
    blueprint = blueprint_of("medium")
    sizes = sizes_of(blueprint, read_mmdit_config(blueprint), read_vae_config(blueprint), resolve(CPU).dtype)
    request = GenerationRequest("", width=side, height=side)
    work = Work.of(request.pictures(VARIANTS["medium"])[0].settings, images=1)
    return [peak(plan, sizes, work) for plan in ladder()]


def test_a_manifest_that_cannot_be_read(fetched: Path) -> None:
    """It is a finding like others, and no end of the examination."""
    (fetched / "sd35.json").write_text("{")
    (finding,) = faults("mine")
    assert "manifest is not readable JSON" in finding.what
    assert finding.trouble == "checkpoint missing or refused"


def test_a_file_that_is_not_even_read(tmp_path: Path) -> None:
    """A named pipe, which would be waited for without end."""
    os.mkfifo(tmp_path / "model.safetensors")
    found = faults(tmp_path / "model.safetensors")
    assert {finding.trouble for finding in found} == {"checkpoint missing or refused"}


def test_a_16_bit_folder_is_seen_as_it_is_drawn(demo: Path, demo_fp8: Path) -> None:
    """In FP8, to the byte what the quantized folder takes."""
    sizes = [fits_of("demo", open_folder(path), torch.bfloat16, None).weights for path in (demo, demo_fp8)]
    assert sizes[0] == sizes[1]


def test_no_fetch_is_promised_without_an_origin(demo_copy: Path) -> None:
    """A record without a source finds the damage, and the mend is not `--fix`."""
    write_manifest(demo_copy, Manifest(hash_files(demo_copy), variant="demo"))
    flip(demo_copy / WEIGHTS)
    (finding,) = faults(demo_copy)
    assert "--fix" not in finding.fix
    assert finding.fix


def test_fix_closes_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its file is the owner's alone afterwards, and holds what it held."""
    path = tmp_path / "token"
    path.write_text("hf_canary")
    path.chmod(0o644)
    monkeypatch.setenv("HF_TOKEN_PATH", str(path))
    assert main(["doctor", "--device", "cpu"]) == 4
    assert main(["doctor", "--device", "cpu", "--fix"]) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "hf_canary"

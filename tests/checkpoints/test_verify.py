"""verify finds everything that is wrong with a checkpoint, and says it in words."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sd35
from sd35.checkpoints import verify as verify_module
from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.header import read_header
from sd35.checkpoints.manifest import FileRecord, Manifest, beside, hash_file, hash_files, write_manifest
from sd35.checkpoints.progress import Progress
from sd35.checkpoints.scan import scan
from sd35.checkpoints.verify import verify
from sd35.errors import CheckpointError, MissingError

EditTensors = Callable[[Path, Callable[[dict[str, torch.Tensor]], None]], None]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.0.attn.to_q"


@pytest.fixture
def recorded(demo_copy: Path) -> Path:
    """The demo with a manifest."""
    write_manifest(demo_copy, Manifest(hash_files(demo_copy), variant="demo"))
    return demo_copy


@pytest.fixture
def fp8_copy(demo_fp8: Path, tmp_path: Path) -> Path:
    """The demo in FP8, to be damaged, and without a manifest."""
    copy = tmp_path / "fp8"
    shutil.copytree(demo_fp8, copy)
    (copy / "sd35.json").unlink()
    return copy


def pointer(sha256: str, size: int) -> str:
    """What Git LFS leaves in place of a file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"


def said(path: Path) -> dict[str, str]:
    """The findings: file -> reasons, one after the other."""
    found: dict[str, str] = {}
    for finding in verify(path).findings:
        found[finding.file] = f"{found.get(finding.file, '')} {finding.reason}"
        assert finding.remedy
    return found


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change an FP8 file's tensors and keep what its header declares."""
    header, tensors = read_header(path), load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=header.metadata)


def put(name: str, value: object) -> Callable[[dict[str, torch.Tensor]], None]:
    """Set a tensor to a new one, or to a function of the old one."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = value(tensors[name]) if callable(value) else value

    return change


def test_the_demo_is_sound(recorded: Path, demo_fp8: Path) -> None:
    """In 16 bit and in FP8; every file is compared, and the variant is read off the shapes."""
    for folder in (recorded, demo_fp8):
        report = verify(folder)
        assert report.findings == []
        assert report.sound
        assert report.variant == "demo"
        assert report.records == ["sd35.json"]
        assert report.compared == report.files > 15


def test_nothing_there(tmp_path: Path) -> None:
    """A path that isn't there is missing, not unsound."""
    with pytest.raises(MissingError):
        verify(tmp_path / "nowhere")


def test_bit_flips_are_all_caught(recorded: Path) -> None:
    """B15: forty bits anywhere in the files, one at a time (scripts/bit_flips.py does a thousand)."""
    paths = [path for path in sorted(recorded.rglob("*")) if path.is_file() and path.name != "sd35.json"]
    sizes = [path.stat().st_size for path in paths]
    rng = random.Random(7)
    for path in rng.choices(paths, sizes, k=40):
        whole = path.read_bytes()
        at, bit = rng.randrange(min(len(whole), 2000)), 1 << rng.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        report = verify_module.VerifyReport("", "folder")
        known = verify_module.read_records(recorded)
        name = path.relative_to(recorded).as_posix()
        verify_module._scan_all(report, {name: path}, known, None)
        assert report.damaged == [name]
        path.write_bytes(whole)


def test_a_folder_of_too_much_is_not_read(
    demo_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the look at kinds of file did not come to, such as this FIFO behind it, is never opened."""
    os.mkfifo(demo_copy / "vae" / "zzz")
    monkeypatch.setattr("sd35.checkpoints.tree.MOST_FILES", 5)
    monkeypatch.setattr("sd35.checkpoints.verify.MOST_FILES", 5)
    report = verify(demo_copy)
    assert report.files == 0
    assert [finding.reason for finding in report.findings] == ["holds more than 5 files"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    """A folder of something else is told in one plain sentence."""
    (finding,) = verify(tmp_path).findings
    assert str(finding).startswith("model_index.json is missing, so this is no complete SD3.5 folder: ")


def test_everything_is_listed_not_only_the_first(recorded: Path) -> None:
    """A missing file, a changed one, an extra one and a FIFO's worth of trouble, in one run."""
    (recorded / "tokenizer" / "tokenizer.json").unlink()
    (recorded / "vae" / "config.json").write_text("{}")
    (recorded / "extra.txt").write_text("x")
    (recorded / "vae" / "run.py").touch()
    found = said(recorded)
    assert "not there" in found["tokenizer/tokenizer.json"]
    assert "no vocabulary" in found["tokenizer"]
    assert "cut off at 2 of" in found["vae/config.json"]
    assert "is not in sd35.json" in found["extra.txt"]
    assert "is code" in found["vae/run.py"]
    assert verify(recorded).damaged == sorted(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[: len(raw) // 2], "is cut off at {half} of {whole} bytes"),
        (lambda raw: raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2), "zero bytes"),
        (lambda raw: bytes(len(raw)), "holds nothing but zeros"),
        (lambda raw: b"", "is an empty file"),
        (lambda raw: b"<html><title>504</title>", "is an HTML page (504)"),
        (lambda raw: raw + b"x", "not what sd35.json records|goes on for 1 bytes"),
    ],
)
@pytest.mark.parametrize("with_manifest", [True, False])
def test_half_finished_downloads(
    recorded: Path, change: Callable[[bytes], bytes], words: str, with_manifest: bool
) -> None:
    """B14: told by a record or by the file itself, in the same words."""
    path = recorded / WEIGHTS
    raw = path.read_bytes()
    path.write_bytes(change(raw))
    if not with_manifest:
        (recorded / "sd35.json").unlink()
    expected = words.format(half=len(raw) // 2, whole=len(raw)).split("|")
    assert any(word in said(recorded)[WEIGHTS] for word in expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(f"{LAYER}.bias"), f"lacks 1 tensors: {LAYER}.bias"),
        (put("surplus", torch.zeros(1)), "no place for: surplus"),
        (put("proj_out.weight", lambda old: old.T.contiguous()), "[256, 64], and it must be [64, 256]"),
        (put("proj_out.bias", lambda old: old.to(torch.int16)), "proj_out.bias as torch.int16"),
        (put("proj_out.bias", lambda old: old * float("nan")), "NaN or infinity in proj_out.bias"),
        (lambda tensors: tensors["proj_out.bias"][-1:].fill_(float("-inf")), "infinity in proj_out.bias"),
        (put(f"{LAYER}.weight", lambda old: old.to(torch.float8_e4m3fn)), f"without their scales: {LAYER}"),
        (put(f"{LAYER}.weight_scale", torch.tensor(1.0)), "no FP8 weight for it"),
    ],
)
def test_tensors_are_held_to_the_table(
    demo_copy: Path, edit_tensors: EditTensors, change: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    """B11, B13: missing, surplus, transposed, of the wrong dtype, not finite, in FP8 that nobody declared."""
    edit_tensors(demo_copy / WEIGHTS, change)
    assert words in said(demo_copy)[WEIGHTS]


def scaled(value: object) -> Callable[[dict[str, torch.Tensor]], None]:
    """Set the scale of one layer: a value for its first row, or a new tensor, or ... to remove it."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = f"{LAYER}.weight_scale"
        if value is ...:
            del tensors[name]
        elif isinstance(value, torch.Tensor):
            tensors[name] = value
        else:
            tensors[name][0] = value

    return change


def with_nan_byte(tensors: dict[str, torch.Tensor]) -> None:
    """One FP8 value becomes E4M3's NaN."""
    tensors[f"{LAYER}.weight"].view(torch.uint8)[0, 0] = 0xFF


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (scaled(float("nan")), "not finite"),
        (scaled(float("inf")), "not finite"),
        (scaled(0.0), "not above zero"),
        (scaled(-1.0), "not above zero"),
        (scaled(1e38), "no 16-bit number"),
        (scaled(...), "without their scales"),
        (scaled(torch.ones(256, 1, dtype=torch.bfloat16)), "scales are float32"),
        (scaled(torch.ones(255, 1)), "restores no weight"),
        (scaled(torch.tensor(1.0)), "restores no weight"),
        (put("proj_out.weight_scale", torch.ones(64, 1)), "no FP8 weight for it"),
        (put("proj_out.input_scale", torch.tensor(1.0)), "no FP8 weight for it"),
        (put(f"{LAYER}.input_scale", torch.ones(3)), "restores no weight"),
        (put(f"{LAYER}.weight", lambda old: old.float()), "whose weights are not"),
        (lambda tensors: tensors.pop(f"{LAYER}.weight"), "does not hold"),
        (
            put(f"{LAYER}.weight", lambda old: old.float().to(torch.float8_e5m2)),
            "as e4m3fn, and its weight is torch.float8_e5m2",
        ),
        (with_nan_byte, "NaN or infinity in " + LAYER),
    ],
)
def test_fp8_layers_have_their_scales(
    fp8_copy: Path, change: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    """B11, B12: scales that are broken, missing, surplus or misshapen; data that is not what was declared."""
    rewrite(fp8_copy / WEIGHTS, change)
    assert words in said(fp8_copy)[WEIGHTS]


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("transformer/config.json", {"num_layers": 7}, "lacks|no SD3.5|describes"),
        ("transformer/config.json", {"qk_norm": None}, "gives qk_norm"),
        ("vae/config.json", {"latent_channels": 4}, "gives latent_channels"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "dynamic shifting"),
        ("text_encoder/config.json", {"hidden_act": "gelu"}, "quick_gelu"),
        ("text_encoder/config.json", {"auto_map": {}}, "load code"),
        ("tokenizer/tokenizer_config.json", {"pad_token": "!"}, "pads with"),
        ("tokenizer_2/tokenizer_config.json", {"pad_token": {"content": "<|endoftext|>"}}, "pads with"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
    ],
)
def test_values_that_sd35_never_has(
    demo_copy: Path, edit_json: Callable[..., None], file: str, changes: dict[str, object], words: str
) -> None:
    """Configs, scheduler, VAE and tokenizers are looked at, and the file is named."""
    edit_json(demo_copy / file, **changes)
    everything = " ".join(f"{name}: {reason}" for name, reason in said(demo_copy).items())
    assert any(word in everything for word in words.split("|"))
    assert file.split("/")[0] in everything


def test_parts_of_another_checkpoint(demo_copy: Path, edit_json: Callable[..., None]) -> None:
    """CLIP-L in CLIP-G's place: the widths no longer add up to what the transformer reads."""
    shutil.rmtree(demo_copy / "text_encoder_2")
    shutil.copytree(demo_copy / "text_encoder", demo_copy / "text_encoder_2")
    edit_json(demo_copy / "text_encoder_2" / "config.json", hidden_act="gelu")
    assert "96 + 96 = 192, and the transformer reads 256" in said(demo_copy)["text_encoder_2"]


def test_a_tokenizer_of_another_encoder(demo_copy: Path, edit_json: Callable[..., None]) -> None:
    """An id beyond the encoder's table."""
    path = demo_copy / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({"id": 49407, "content": "<x>"})
    path.write_text(json.dumps(content))
    assert "49408 ids" in said(demo_copy)["tokenizer"]


def test_checksum_lists(demo_copy: Path) -> None:
    """SHA256SUMS as sha256sum writes it; a listed file that is gone, and a line that is none."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(demo_copy)}"
        for path in sorted(demo_copy.rglob("*"))
        if path.is_file()
    ]
    (demo_copy / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    report = verify(demo_copy)
    assert report.sound
    assert report.records == ["SHA256SUMS"]
    (demo_copy / "SHA256SUMS").write_text("\n".join([*lines, f"{'0' * 64}  gone.json", "\x1b[2J"]))
    (demo_copy / "vae/config.json").write_bytes((demo_copy / "vae/config.json").read_bytes() + b" ")
    found = said(demo_copy)
    assert "records: its SHA-256 is" in found["vae/config.json"]
    assert "not there" in found["gone.json"]
    assert "sha256sum would not write" in found["SHA256SUMS"]
    assert all(reason.isprintable() for reason in found.values())


def git_blob(content: bytes) -> str:
    """git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_hub_folders(demo_copy: Path) -> None:
    """local_dir downloads: the etag is SHA-256 for large files and git's hash for small ones."""
    place = demo_copy / ".cache/huggingface/download"
    config = (demo_copy / "vae/config.json").read_bytes()
    etags = {
        WEIGHTS: hashlib.sha256((demo_copy / WEIGHTS).read_bytes()).hexdigest(),
        "vae/config.json": git_blob(config),
    }
    for path, etag in etags.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / f"{path}.metadata").write_text(f"{'0' * 40}\n{etag}\n1700000000.0\n")
    report = verify(demo_copy)
    assert report.sound
    assert (report.records, report.compared) == (["hub metadata"], 2)
    (demo_copy / "vae/config.json").write_bytes(config + b" ")
    assert "hub metadata records: its git hash is" in said(demo_copy)["vae/config.json"]


@pytest.mark.parametrize("reads", ["verify", "hash_files"])
def test_an_interrupt_is_heard_at_once(demo_copy: Path, monkeypatch: pytest.MonkeyPatch, reads: str) -> None:
    """Ctrl-C ends the reading within a few pieces, however much there is still to be read."""
    for i in range(4):
        (demo_copy / f"{i}.txt").touch()
        os.truncate(demo_copy / f"{i}.txt", 256 << 20)
    calls: list[int] = []

    real = Progress.add

    def interrupt(progress: Progress, count: int) -> None:
        calls.append(count)
        if len(calls) == 30:  # in the middle of the files above
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        real(progress, count)

    monkeypatch.setattr(Progress, "add", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            {"verify": verify, "hash_files": hash_files}[reads](demo_copy)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(calls) < 60  # of 256 or more


def test_hub_caches(demo_copy: Path, tmp_path: Path) -> None:
    """A snapshot's links carry the hashes in the names of their blobs."""
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    shutil.copytree(demo_copy, snapshot)
    weights = snapshot / WEIGHTS
    blob = repository / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(Path("../../../blobs") / blob.name)
    report = verify(snapshot)
    assert report.sound
    assert report.records == ["hub cache"]
    raw = bytearray(blob.read_bytes())
    raw[-1] ^= 1
    blob.write_bytes(raw)
    assert "hub cache records" in said(snapshot)[WEIGHTS]


def test_the_hub_caches_own_folder_names_its_snapshot(demo: Path, tmp_path: Path) -> None:
    """Whoever gives the repository's folder in place of a snapshot hears which folder to give."""
    snapshot = tmp_path / "models--maker--model" / "snapshots" / ("0" * 40)
    shutil.copytree(demo, snapshot)
    found = verify(tmp_path / "models--maker--model").findings
    assert [str(one) for one in found if str(snapshot) in one.remedy]
    with pytest.raises(CheckpointError, match=f"give {snapshot}"):
        open_folder(tmp_path / "models--maker--model")


def test_a_lone_file_is_known_from_where_it_lies(demo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named from its own folder, a file is compared with the records of the folder above all the same."""
    write_manifest(demo_copy, Manifest(hash_files(demo_copy)))
    monkeypatch.chdir((demo_copy / WEIGHTS).parent)
    assert verify(Path(Path(WEIGHTS).name)).records == ["sd35.json"]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git: apt-get install git")
def test_git_clones(demo_copy: Path) -> None:
    """The work tree is compared with HEAD: LFS files with their pointers, others with git's hash."""
    weights = demo_copy / WEIGHTS
    raw = weights.read_bytes()
    weights.write_text(pointer(hashlib.sha256(raw).hexdigest(), len(raw)))
    who = ["-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run(["git", *who, *command], cwd=demo_copy, check=True)
    assert f"is a Git LFS pointer to {len(raw)} bytes" in said(demo_copy)[WEIGHTS]
    weights.write_bytes(raw)
    report = verify(demo_copy)
    assert report.sound
    assert report.records == ["git LFS pointer", "git commit"]
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    (demo_copy / "vae/config.json").write_bytes((demo_copy / "vae/config.json").read_bytes() + b" ")
    found = said(demo_copy)
    assert "git LFS pointer records" in found[WEIGHTS]
    assert "git commit records" in found["vae/config.json"]


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "text_encoder_3", "vae"])
def test_lone_files(demo: Path, tmp_path: Path, part: str, edit_tensors: EditTensors) -> None:
    """One safetensors file alone is held to the table that its own shapes imply."""
    source = next((demo / part).glob("*.safetensors"))
    path = tmp_path / "alone.safetensors"
    shutil.copy(source, path)
    report = verify(path)
    assert report.findings == []
    assert report.kind == "file"
    names = sorted(load_file(path))
    gone = names[len(names) // 2]
    edit_tensors(path, lambda tensors: tensors.pop(gone))
    assert f"lacks 1 tensors: {gone}" in said(path)["alone.safetensors"]


def test_a_manifest_beside_a_file(demo: Path, tmp_path: Path) -> None:
    """It goes with its file under another name; one that is damaged, or of many files, is a finding."""
    path = tmp_path / "renamed.safetensors"
    shutil.copy(demo / WEIGHTS, path)
    write_manifest(path, Manifest({"first.safetensors": hash_file(path)}))
    assert verify(path).compared == 1
    assert verify(path).sound
    write_manifest(path, Manifest({"first.safetensors": FileRecord(path.stat().st_size, "0" * 64)}))
    assert "is not what renamed.safetensors.sd35.json records" in said(path)[path.name]
    write_manifest(path, Manifest({"a": hash_file(path), "b": hash_file(path)}))
    assert "lists 2 files, and belongs to one" in str(verify(path).findings[0])
    beside(path).write_text("{")
    assert "is not readable JSON" in str(verify(path).findings[0])


def test_a_lone_pointer(tmp_path: Path) -> None:
    """What is no safetensors file is named."""
    path = tmp_path / "sd3.5_large.safetensors"
    path.write_text(pointer("a" * 64, 16_460_379_262))
    assert "Git LFS pointer to 16460379262 bytes" in said(path)[path.name]


def test_a_file_of_another_model(tmp_path: Path) -> None:
    """Tensors that are no part of SD3.5 are not sound, however whole the file is."""
    path = tmp_path / "x.safetensors"
    save_file({"unet.conv_in.weight": torch.zeros(3)}, path)
    assert "no part of SD3.5" in said(path)[path.name]


def test_comfy_legacy_files(tmp_path: Path, edit_tensors: Callable[..., None]) -> None:
    """scale_weight and a marker promise a scale for every FP8 weight."""
    path = tmp_path / "x.safetensors"
    sd35.convert("demo", path, "comfy-legacy", requantize=True)
    assert verify(path).sound
    layer = "model.diffusion_model.joint_blocks.2.x_block.mlp.fc1"
    edit_tensors(path, lambda tensors: tensors.pop(f"{layer}.scale_weight"))
    assert f"without their scales: {layer}" in said(path)[path.name]


def test_a_plain_cast_promises_no_scale(tmp_path: Path, edit_tensors: Callable[..., None]) -> None:
    """FP8 without any scale or declaration is a format of single files, and sound."""
    path = tmp_path / "x.safetensors"
    sd35.convert("demo", path, "16bit-file")
    weight = "model.diffusion_model.joint_blocks.2.x_block.mlp.fc1.weight"
    edit_tensors(path, lambda t: t.update({weight: t[weight].to(torch.float8_e4m3fn)}))
    beside(path).unlink()
    assert verify(path).sound


@pytest.mark.parametrize(
    ("dtype", "bits", "is_bad"),
    [
        (torch.bfloat16, 0x7F80, True),
        (torch.bfloat16, -0x80, True),
        (torch.bfloat16, 0x7F7F, False),
        (torch.float16, 0x7C01, True),
        (torch.float16, 0x7BFF, False),
        (torch.float32, 0x7F800000, True),
        (torch.float32, 0x7F7FFFFF, False),
        (torch.float8_e4m3fn, 0x7F, True),
        (torch.float8_e4m3fn, -1, True),
        (torch.float8_e4m3fn, 0x7E, False),
        (torch.float8_e5m2, 0x7C, True),
        (torch.float8_e5m2, 0x7B, False),
        (torch.int16, 0x7FFF, False),
    ],
)
def test_what_is_not_finite(tmp_path: Path, dtype: torch.dtype, bits: int, is_bad: bool) -> None:
    """The patterns of NaN and infinity of every dtype, at the very end of a tensor across several pieces."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    values = torch.zeros((9 << 20) // dtype.itemsize, dtype=kind)
    values[-1] = bits
    path = tmp_path / "x.safetensors"
    save_file({"before": torch.zeros(3, dtype=torch.uint8), "x": values.view(dtype)}, path)
    found = scan(path, read_header(path))
    assert found.not_finite == (("x",) if is_bad else ())
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

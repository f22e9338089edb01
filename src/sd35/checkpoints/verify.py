"""Is a checkpoint what it claims to be? All that is wrong with it, in words, in one pass over its bytes.

    1  kinds of file      links, FIFOs, code and pickles          tree.py
    2  bytes              against whatever records there are      records.py, scan.py
    3  structure          parts, tensors, scales, tokenizers      audit.py, fp8_audit.py, tokens.py

Nothing stops at the first finding. A checkpoint without any record can still be found damaged, but only where
damage breaks a rule: the report says which records there were, so nobody takes the one for the other.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sd35.checkpoints.audit import FolderAudit, compare_tensors
from sd35.checkpoints.encoder_files import as_in_the_table, check_scales
from sd35.checkpoints.files import refuse_special
from sd35.checkpoints.findings import AGAIN, Finding, finding_of, shown_path, some_of
from sd35.checkpoints.fp8_audit import audit_fp8, view
from sd35.checkpoints.header import Header, read_header
from sd35.checkpoints.manifest import FILE_NAME
from sd35.checkpoints.original_parts import parts_in, read_part
from sd35.checkpoints.progress import Progress as Count
from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.records import CHECKSUMS, Expected, Records, read_records, read_records_of
from sd35.checkpoints.scan import Scan, scan
from sd35.checkpoints.sizes import Recognised, inferred_size, layout_of, recognise
from sd35.checkpoints.sniff import sniff, zero_tail
from sd35.checkpoints.tree import MOST_FILES, tree_findings, walk
from sd35.errors import CheckpointError, MissingError

Progress = Callable[[int, int], None]  # bytes done, of how many
_ORIGINAL_NAMES = ("model.diffusion_model.", "first_stage_model.", "text_encoders.", "joint_blocks.")
_SHORTEST_TAIL = 4096  # zero bytes at the end that explain a wrong hash
_LONGEST_TRUE_TAIL = 1 << 20  # zero bytes, beginning inside a tensor, that no sound file ends in


@dataclass
class VerifyReport:
    """What was looked at and what is wrong; `records` names what the bytes were compared with."""

    path: str
    kind: str  # folder, or file
    variant: str | None = None
    files: int = 0
    bytes: int = 0
    compared: int = 0  # files that some record knows
    records: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def damaged(self) -> list[str]:
        """The files that something is wrong with, by their paths in the folder: what to fetch again."""
        return sorted({finding.file for finding in self.findings})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"sound": self.sound, **asdict(self), "damaged": self.damaged}


def verify(path: Path, progress: Progress | None = None) -> VerifyReport:
    """Look at a checkpoint folder or a lone safetensors file; MissingError if there is none at the path."""
    begin = time.perf_counter()
    if not path.exists():
        raise MissingError(f"There is nothing at {shown_path(path)}: give the path of a checkpoint.")
    report = _verify_folder(path, progress) if path.is_dir() else _verify_file(path, progress)
    report.findings = list(dict.fromkeys(report.findings))
    report.seconds = time.perf_counter() - begin
    return report


def _verify_folder(root: Path, progress: Progress | None) -> VerifyReport:
    report = VerifyReport(shown_path(root), "folder")
    report.findings += tree_findings(root)
    refused = {finding.file for finding in report.findings}
    known = read_records(root)
    paths = {path.relative_to(root).as_posix(): path for path in islice(walk(root), MOST_FILES + 1)}
    if len(paths) > MOST_FILES:  # a finding says so; what nobody has looked at is not opened
        return report
    present = {name: path for name, path in paths.items() if shown_path(name) not in refused}
    _add_records(report, known, set(present))
    report.findings += _missing_and_unknown(known, set(paths))
    _scan_all(report, {name: path for name, path in present.items() if name != FILE_NAME}, known, progress)
    audit = FolderAudit(root)
    report.findings += audit.run()
    report.variant = _variant_name(audit.known)
    return report


def _verify_file(path: Path, progress: Progress | None) -> VerifyReport:
    report = VerifyReport(shown_path(path), "file")
    refuse_special(path)
    known = read_records_of(path)
    _add_records(report, known, {path.name})
    _scan_all(report, {path.name: path}, known, progress)
    if not report.findings or path.suffix == ".safetensors":
        report.findings += _audit_file(path, report)
    return report


def _add_records(report: VerifyReport, known: Records, present: set[str]) -> None:
    report.records = known.names
    report.notes += known.notes
    report.findings += known.findings
    report.compared = sum(1 for name in present if known.files.get(name))


def _missing_and_unknown(known: Records, present: set[str]) -> Iterator[Finding]:
    for name in sorted(known.complete - present):
        yield Finding(shown_path(name), "is not there, and a record lists it", "fetch it again")
    for name in sorted(present - known.complete - {FILE_NAME, CHECKSUMS}) if known.has_manifest else ():
        yield Finding(shown_path(name), f"is not in {FILE_NAME}", "remove it, or fetch the folder again")


def _scan_all(
    report: VerifyReport, files: dict[str, Path], known: Records, progress: Progress | None
) -> None:
    """Read every file once, two at a time; whoever interrupts waits for no more than a piece."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    report.files, report.bytes = len(files), sum(sizes.values())
    count = Count(report.bytes, progress)
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            jobs = [
                pool.submit(_check_bytes, name, files[name], known.files.get(name, []), count.add)
                for name in sorted(files, key=lambda name: -sizes[name])
            ]
            for findings in sorted((job.result() for job in jobs), key=repr):
                report.findings += findings
        except BaseException:
            count.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _check_bytes(
    name: str, path: Path, expected: list[Expected], progress: Callable[[int], None]
) -> list[Finding]:
    """One file against its records, and its tensors' values."""
    header = _header(path)
    try:
        found = scan(path, header, progress, as_git=any(one.is_git_blob for one in expected))
    except OSError as error:
        return [Finding(shown_path(name), f"can't be read ({error})", "check the disk, and fetch it again")]
    findings = [finding for one in expected[:] if (finding := _compare(name, path, found, one))]
    if found.not_finite:
        reason = f"holds NaN or infinity in {some_of(list(found.not_finite))}"
        findings.append(Finding(shown_path(name), reason, AGAIN))
    if header is not None and not findings and (tail := _false_tail(path, header, found.size)):
        findings.append(_zeros(name, tail))
    return findings


def _header(path: Path) -> Header | None:
    """The header of a safetensors file, None for other files and for broken ones, which the audit names."""
    if path.suffix != ".safetensors":
        return None
    try:
        return read_header(path)
    except CheckpointError:
        return None


def _compare(name: str, path: Path, found: Scan, expected: Expected) -> Finding | None:
    actual = found.git_blob if expected.is_git_blob else found.sha256
    if actual == expected.hash and expected.size in (None, found.size):
        return None
    shown = shown_path(name)
    sniffed = sniff(path)
    if sniffed is not None:
        return Finding(shown, sniffed.words, sniffed.remedy)
    if expected.size is not None and found.size < expected.size:
        return Finding(shown, f"is cut off at {found.size} of {expected.size} bytes", AGAIN)
    if (tail := zero_tail(path, most=found.size)) >= _SHORTEST_TAIL:
        return _zeros(name, tail)
    kind = "git hash" if expected.is_git_blob else "SHA-256"
    reason = f"is not what {expected.record} records: its {kind} is {actual}, not {expected.hash}"
    return Finding(shown, reason, AGAIN)


def _false_tail(path: Path, header: Header, size: int) -> int:
    """Zero bytes at the end that are no weights: many, and beginning inside a tensor; else 0."""
    data = size - header.data_start
    shortest = min(_LONGEST_TRUE_TAIL, data // 4)
    if not data or zero_tail(path, most=shortest) < max(shortest, 1):
        return 0
    tail = zero_tail(path)
    start = data - tail
    is_inside = any(entry.begin < start < entry.end for entry in header.entries.values())
    return tail if is_inside or start <= 0 else 0


def _zeros(name: str, tail: int) -> Finding:
    return Finding(shown_path(name), f"ends in {tail} zero bytes: its download never came to an end", AGAIN)


def _audit_file(path: Path, report: VerifyReport) -> Iterator[Finding]:
    """The structure of a lone file: its header, its FP8 layers, and its tensors against the table."""
    name = path.name
    try:
        with TensorReader([path]) as reader:
            yield from (Finding(name, reason, AGAIN) for reason in audit_fp8(reader, is_folder=False))
            specs = as_in_the_table(view(reader).weights)
            check_scales(reader)
    except CheckpointError as error:
        yield finding_of(error, name)
        return
    report.variant = _variant_name(recognise(specs))
    size = inferred_size(specs)
    if size is not None:
        yield from compare_tensors(name, layout_of(size), specs)
    elif any(one.startswith(_ORIGINAL_NAMES) for one in specs):
        yield from _audit_original(path, report)
    else:
        yield Finding(name, "holds tensors that are no part of SD3.5", "get the file of an SD3.5 checkpoint")


def _audit_original(path: Path, report: VerifyReport) -> Iterator[Finding]:
    """A single file with the original names: each part that it holds, seen under diffusers' names."""
    try:
        for part, prefix in parts_in(path).items():
            with read_part(path, part, prefix) as source:
                specs = {name: spec for name, spec in source.specs.items() if not name.endswith("_scale")}
            if part == "transformer":
                report.variant = _variant_name(recognise(specs))
            size = inferred_size(specs)
            if size is None:
                yield Finding(path.name, f"holds a {part} that is not SD3.5's", "get the original file")
            else:
                yield from compare_tensors(path.name, layout_of(size), specs)
    except CheckpointError as error:
        yield finding_of(error, path.name)


def _variant_name(known: Recognised | None) -> str | None:
    return known.variant.name if known is not None and known.variant is not None else None

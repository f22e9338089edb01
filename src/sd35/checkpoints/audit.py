"""The structure of a checkpoint folder: is every part there, whole, and do the parts belong together?

Hashes tell whether files are what somebody recorded; this tells whether they are SD3.5. Each check is a small
function that yields findings and goes on, so that one run of `sd35 verify` shows everything that is wrong.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sd35.checkpoints.findings import AGAIN, Finding, finding_of, some_of
from sd35.checkpoints.folder import CheckpointFolder, read_model_index
from sd35.checkpoints.fp8_audit import FP8, audit_fp8, view
from sd35.checkpoints.layout import ClipSize, T5Size, TransformerSize, VaeSize
from sd35.checkpoints.parts import PARTS
from sd35.checkpoints.reader import TensorReader, TensorSpec
from sd35.checkpoints.sizes import Recognised, Size, config_size, expected_size, layout_of, recognise
from sd35.checkpoints.tokens import audit_tokenizer
from sd35.errors import CheckpointError

_PLAIN = (torch.bfloat16, torch.float16, torch.float32)
_T5_SHARED = ("shared.weight", "encoder.embed_tokens.weight")
_ORIGINAL = "get this file from the original checkpoint"
_LEGACY_END = 2  # what old configs say; transformers takes the largest id then, which is the same token
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")

# What the configs of all three real variants say, beside the sizes.
_REAL_VALUES: dict[str, dict[str, Any]] = {
    "scheduler": {"num_train_timesteps": 1000, "shift": 3.0},
    "vae": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
}
# What those of every SD3.5 say, the demo's as well.
_ALL_VALUES: dict[str, dict[str, Any]] = {
    "transformer": {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "attention_head_dim": 64,
        "qk_norm": "rms_norm",
    },
    "vae": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "text_encoder": {"hidden_act": "quick_gelu"},
    "text_encoder_2": {"hidden_act": "gelu"},
}


class FolderAudit:
    """One walk through a folder's parts; `known` is what its transformer was recognised as."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: Recognised | None = None
        self.configs: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, Size] = {}
        self.findings: list[Finding] = []

    def run(self) -> list[Finding]:
        """All findings, the transformer's first, for it says what the others must be."""
        parts = self._parts()
        for part in sorted(parts, key=lambda name: name != "transformer"):
            self._audit_part(part)
        if "transformer" in self.sizes:
            self.findings += _audit_widths(self.sizes)
        for part in parts:
            if part.startswith("tokenizer"):
                encoder = self.sizes.get(part.replace("tokenizer", "text_encoder"))
                self.findings += audit_tokenizer(self.root, part, encoder)
        return self.findings

    def _parts(self) -> tuple[str, ...]:
        try:
            return read_model_index(self.root)
        except CheckpointError as error:
            self._refused("model_index.json", error)
            return tuple(part for part in PARTS if (self.root / part).is_dir())

    def _audit_part(self, part: str) -> None:
        folder = CheckpointFolder(self.root, (part,))
        config_file = f"{part}/{PARTS[part].config}"
        try:
            self.configs[part] = folder.config(part)
            self.findings += _audit_values(config_file, self.configs[part], _ALL_VALUES.get(part, {}))
        except CheckpointError as error:
            self._refused(config_file, error)
        if PARTS[part].weights is not None:
            self._audit_weights(part, folder)
        if self.known is not None and self.known.is_real and part in self.configs:
            self.findings += _audit_values(config_file, self.configs[part], _REAL_VALUES.get(part, {}))

    def _audit_weights(self, part: str, folder: CheckpointFolder) -> None:
        stem = f"{part}/{PARTS[part].weights}.safetensors"
        try:
            with TensorReader(folder.files(part)) as reader:
                specs = _plain_view(reader)
                if part == "transformer":
                    self._recognise(specs)
                self.findings += [
                    Finding(stem, reason, AGAIN) for reason in audit_fp8(reader, is_folder=True)
                ]
                self._compare(part, stem, specs)
        except CheckpointError as error:
            self._refused(stem, error)

    def _recognise(self, specs: Mapping[str, TensorSpec]) -> None:
        self.known = recognise(specs)
        if self.known is None or self.known.variant is None:
            reason = "holds the tensors of no SD3.5 variant"
            if self.known is not None:
                size = self.known.size
                reason += f": {size.num_layers} layers, dual attention in {size.dual_attention_layers}"
            self.findings.append(Finding("transformer", reason, "get the checkpoint of an SD3.5 model"))

    def _compare(self, part: str, stem: str, specs: Mapping[str, TensorSpec]) -> None:
        """Tensors against the table, and the config's numbers against the table's."""
        config_file = f"{part}/{PARTS[part].config}"
        try:
            size = expected_size(part, self.known, self.configs.get(part, {}))
            self.sizes[part] = size
            if part in self.configs and config_size(part, self.configs[part]) != size:
                reason = f"describes {config_size(part, self.configs[part])}, and this variant has {size}"
                self.findings.append(Finding(config_file, reason, _ORIGINAL))
        except KeyError as error:
            self.findings.append(Finding(config_file, f"lacks the key {error}", _ORIGINAL))
            return
        self.findings += compare_tensors(stem, layout_of(size), specs)
        if isinstance(size, ClipSize) and part in self.configs:
            self.findings += _audit_end(config_file, self.configs[part], size)

    def _refused(self, file: str, error: CheckpointError) -> None:
        self.findings.append(finding_of(error, file, self.root))


def compare_tensors(
    file: str, expected: Mapping[str, TensorSpec], found: Mapping[str, TensorSpec]
) -> Iterator[Finding]:
    """Every tensor's name, shape and dtype against the table; FP8 weights count as their own check's."""
    names = _without_shared_copy(found)
    if missing := sorted(expected.keys() - names):
        yield Finding(file, f"lacks {len(missing)} tensors: {some_of(missing)}", AGAIN)
    if extra := sorted(names - expected.keys()):
        yield Finding(
            file, f"holds {len(extra)} tensors that the model has no place for: {some_of(extra)}", AGAIN
        )
    for name in sorted(names & expected.keys()):
        held = found[name] if name in found else found[_T5_SHARED[1]]
        if held.shape != expected[name].shape:
            shapes = f"{list(held.shape)}, and it must be {list(expected[name].shape)}"
            yield Finding(file, f"holds {name} of shape {shapes}", AGAIN)
        if held.dtype not in _PLAIN and not (held.dtype in FP8 and name.endswith(".weight")):
            yield Finding(
                file, f"holds {name} as {held.dtype}, and weights are 16-bit, float32 or FP8", AGAIN
            )


def _without_shared_copy(found: Mapping[str, TensorSpec]) -> set[str]:
    """The names, T5's shared embedding once and under its first name, whichever the file uses."""
    first, second = _T5_SHARED
    return {first if name == second else name for name in found}


def _plain_view(reader: TensorReader) -> dict[str, TensorSpec]:
    try:
        return view(reader).weights
    except CheckpointError:  # audit_fp8 says so
        return dict(reader.specs)


def _audit_values(file: str, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Finding]:
    for key, value in wanted.items():
        if config.get(key) != value:
            yield Finding(file, f"gives {key} as {config.get(key)!r}, and SD3.5 has {value!r}", _ORIGINAL)
    if config.get("use_dynamic_shifting"):
        yield Finding(file, "asks for dynamic shifting, and SD3.5's shift is fixed", _ORIGINAL)


def _audit_end(file: str, config: Mapping[str, Any], size: ClipSize) -> Iterator[Finding]:
    """CLIP's summary of a text is what it says at the end token: another id is another summary."""
    ends = (_LEGACY_END, size.vocabulary - 1)
    if config.get("eos_token_id") not in ends:
        reason = (
            f"gives eos_token_id as {config.get('eos_token_id')!r}, and it is {ends[1]} (or, for the same, 2)"
        )
        yield Finding(file, reason, _ORIGINAL)


def _audit_widths(sizes: Mapping[str, Size]) -> Iterator[Finding]:
    """The encoders must feed this transformer: pooled widths side by side, T5 and both CLIPs as its text."""
    transformer, clip_l, clip_g, t5 = (sizes.get(part) for part in ("transformer", *_ENCODERS))
    assert isinstance(transformer, TransformerSize)
    if isinstance(clip_l, ClipSize) and isinstance(clip_g, ClipSize):
        pooled = clip_l.projection + clip_g.projection
        if pooled != transformer.pooled_channels:
            sums = f"{clip_l.projection} + {clip_g.projection} = {pooled}"
            yield _strangers(
                "text_encoder_2", f"{sums}, and the transformer reads {transformer.pooled_channels}"
            )
        if clip_l.channels + clip_g.channels > transformer.text_channels:
            yield _strangers(
                "text_encoder_2", "its tokens and CLIP-L's are wider than the transformer's text"
            )
    if isinstance(t5, T5Size) and t5.channels != transformer.text_channels:
        yield _strangers(
            "text_encoder_3", f"{t5.channels} wide, and the transformer reads {transformer.text_channels}"
        )
    vae = sizes.get("vae")
    if isinstance(vae, VaeSize) and len(vae.channels) != 4:
        yield _strangers(
            "vae", f"a factor of {2 ** (len(vae.channels) - 1)} pixels, and SD3.5's latents have 8"
        )


def _strangers(part: str, reason: str) -> Finding:
    return Finding(
        part, f"does not belong to this transformer: {reason}", "get all parts from one checkpoint"
    )

"""What is fuzzed: the three gates through which a stranger's bytes come in, and what must hold for any bytes.

A gate may refuse with its own error, whose message is printable and short, or accept; it may raise nothing
else and hang on nothing. What the header gate accepts, the safetensors library has to accept as well, with
the same names: a difference between the two would be a file that two programs read differently.
"""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import deserialize

from sd35.checkpoints.gates import RULES, check_config
from sd35.checkpoints.header import HeaderError, parse_header
from sd35.checkpoints.shards import BrokenIndexError, parse_index
from sd35.checkpoints.strict_json import parse_object
from sd35.errors import CheckpointError

_PARTS = sorted(RULES)
_LONGEST_MESSAGE = 2000


def header(data: bytes) -> None:
    """The first byte is how many bytes of data follow the header that the others are."""
    size, text = data[0] if data else 0, data[1:]
    try:
        accepted = parse_header(text, size)
    except HeaderError as error:
        return _check_message(error)
    if any(name in accepted.entries for name in ("__metadata__",)):
        raise AssertionError("metadata passed as a tensor")
    library = deserialize(len(text).to_bytes(8, "little") + text + bytes(size))
    assert {name for name, _ in library} == set(accepted.entries)
    return None


def index(data: bytes) -> None:
    """An index as JSON."""
    try:
        accepted = parse_index(parse_object(data))
    except BrokenIndexError as error:
        return _check_message(error)
    except ValueError as error:
        return _check_message(error)
    assert all(Path(shard).name == shard and shard.endswith(".safetensors") for shard in accepted.shards)
    return None


def config(data: bytes) -> None:
    """The first byte chooses the part whose config the others are."""
    part = _PARTS[(data[0] if data else 0) % len(_PARTS)]
    try:
        content = parse_object(data[1:])
        check_config(Path("config.json"), part, content)
    except (ValueError, CheckpointError) as error:
        return _check_message(error)
    assert content.keys() <= RULES[part].keys()
    return None


TARGETS: dict[str, Callable[[bytes], None]] = {"header": header, "index": index, "config": config}


def seeds(target: str) -> list[bytes]:
    """Sound inputs from which mutation starts."""
    if target == "header":
        return [_header_seed(count) for count in (0, 1, 3)]
    if target == "index":
        weight_map = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
        return [
            _json({"metadata": {"total_size": 24}, "weight_map": weight_map}),
            _json({"weight_map": weight_map}),
        ]
    return [bytes([number]) + _json(_config_seed(part)) for number, part in enumerate(_PARTS)]


def words(target: str) -> list[bytes]:
    """Pieces that mutation puts in: the gate's own vocabulary, and the usual suspects."""
    known = {
        "header": ["dtype", "shape", "data_offsets", "__metadata__", "F32", "BF16", "F8_E4M3", "U8"],
        "index": ["weight_map", "metadata", "total_size", "m-1.safetensors"],
        "config": ["auto_map", "_class_name", "_attn_implementation", "quant_method", *RULES["transformer"]],
    }
    nasty = [
        "1e999",
        "NaN",
        "-1",
        "9" * 25,
        "[[[[",
        "]]]]",
        "{}",
        "null",
        "true",
        '"\\ud800"',
        '"\\u0000"',
        "../",
    ]
    return [f'"{word}"'.encode() for word in known[target]] + [word.encode() for word in nasty]


def _header_seed(count: int) -> bytes:
    entries = {
        f"t{i}": {"dtype": "U8", "shape": [2, 3], "data_offsets": [6 * i, 6 * i + 6]} for i in range(count)
    }
    return bytes([6 * count]) + _json({"__metadata__": {"format": "pt"}, **entries})


def _config_seed(part: str) -> dict[str, object]:
    return {
        "transformer": {
            "_class_name": "SD3Transformer2DModel",
            "num_layers": 24,
            "dual_attention_layers": [0, 1],
        },
        "vae": {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256], "norm_num_groups": 32},
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        "text_encoder_3": {"architectures": ["T5EncoderModel"], "d_model": 4096},
    }.get(
        part, {"vocab_size": 49408} if part.startswith("text") else {"model_max_length": 77, "pad_token": "!"}
    )


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


def _check_message(error: Exception) -> None:
    message = str(error)
    assert message.isprintable(), ascii(message)
    assert 0 < len(message) < _LONGEST_MESSAGE, message

"""What a config may say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from real_configs import REAL_CONFIGS

from sd35.checkpoints.folder import open_folder
from sd35.checkpoints.gates import RULES, check_config
from sd35.checkpoints.parts import PARTS
from sd35.errors import CheckpointError


@pytest.mark.parametrize("part", sorted(REAL_CONFIGS))
def test_the_real_configs_pass(part: str) -> None:
    """Every key of the published repositories' configs has its rule."""
    check_config(Path("config.json"), part, REAL_CONFIGS[part])


@pytest.mark.parametrize("part", sorted(PARTS))
def test_the_demo_and_its_fp8_pass(demo_fp8: Path, part: str) -> None:
    """What diffusers 0.42 and transformers 5 write, and our own quantization_config."""
    open_folder(demo_fp8).config(part)


@pytest.mark.parametrize("part", sorted(PARTS))
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("custom_pipeline", "someone/else"),
        ("trust_remote_code", True),
        ("_attn_implementation_internal", "someone/kernel"),
        ("_attn_implementation", "someone/kernel"),
        ("attn_implementation", "someone/kernel"),
        ("id2label", {"deep": [{"trust_remote_code": True}]}),
        ("task_specific_params", {"x": {"auto_map": {}}}),
        ("_class_name", ["evil", "Model"]),
        ("_class_name", "EvilModel"),
        ("architectures", ["EvilModel"]),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("quantization_config", {"quant_method": ["torchao"]}),
        ("quantization_config", "torchao"),
        ("\x1b[2J", 1),
        ("surprise", 1),
    ],
)
def test_keys_that_load_code_or_nothing_we_know(
    demo_copy: Path, edit_json: Callable[..., None], part: str, key: str, value: object
) -> None:
    """B20: refused in every part, with the key, before any library is asked."""
    edit_json(demo_copy / part / PARTS[part].config, **{key: value})
    with pytest.raises(CheckpointError) as caught:
        open_folder(demo_copy)
    message = str(caught.value)
    assert part in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", ["evil", "Pipeline"]),
        ("transformer", ["evil_module", "SD3Transformer2DModel"]),
        ("custom_pipeline", "someone/else"),
        ("image_encoder", ["transformers", "SiglipVisionModel"]),
        ("safety_checker", ["evil", "Checker"]),
        ("transformer", {"a": 1}),
        ("transformer", [["diffusers"], "SD3Transformer2DModel"]),
        ("vae", ["diffusers", ["AutoencoderKL"]]),
    ],
)
def test_model_index_names_sd35_and_nothing_else(
    demo_copy: Path, edit_json: Callable[..., None], key: str, value: object
) -> None:
    """B20: lists of classes, other libraries, further parts."""
    edit_json(demo_copy / "model_index.json", **{key: value})
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        open_folder(demo_copy)


NUMBERS = [
    ("transformer", "num_layers"),
    ("transformer", "num_attention_heads"),
    ("transformer", "joint_attention_dim"),
    ("transformer", "pos_embed_max_size"),
    ("vae", "layers_per_block"),
    ("vae", "norm_num_groups"),
    ("vae", "block_out_channels"),
    ("text_encoder", "hidden_size"),
    ("text_encoder_2", "num_hidden_layers"),
    ("text_encoder_3", "d_ff"),
    ("text_encoder_3", "vocab_size"),
    ("scheduler", "num_train_timesteps"),
    ("scheduler", "shift"),
]


@pytest.mark.parametrize(("part", "key"), NUMBERS)
@pytest.mark.parametrize(
    "value", ["1000000000", "-1", "0", "true", '"24"', "null", "[1000000000]", "1e300", "NaN", "1e999", "{}"]
)
def test_numbers_are_bounded(demo_copy: Path, part: str, key: str, value: str) -> None:
    """B21: what is no number, or one that would allocate the world, is refused before anything is built."""
    path = demo_copy / part / PARTS[part].config
    config = json.loads(path.read_text())
    config[key] = "HERE"
    path.write_text(json.dumps(config).replace('"HERE"', value))
    with pytest.raises(CheckpointError, match=path.name):
        open_folder(demo_copy)


def test_groups_divide_channels(demo_copy: Path, edit_json: Callable[..., None]) -> None:
    """A division that would fail in the middle of loading is refused before."""
    edit_json(demo_copy / "vae" / "config.json", norm_num_groups=7)
    with pytest.raises(CheckpointError, match="norm_num_groups"):
        open_folder(demo_copy)


def test_every_part_has_rules() -> None:
    """No config comes in past the gate."""
    assert RULES.keys() == PARTS.keys()

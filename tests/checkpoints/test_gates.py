"""What a config may say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sd35.checkpoints.folder import PARTS, open_folder
from sd35.checkpoints.gates import RULES, check_config
from sd35.errors import CheckpointError

REAL = {
    "transformer": {
        "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.31.0.dev0", "attention_head_dim": 64,
        "caption_projection_dim": 1536, "dual_attention_layers": list(range(13)), "in_channels": 16,
        "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 24, "out_channels": 16,
        "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
        "sample_size": 128,
    },
    "vae": {
        "_class_name": "AutoencoderKL", "_name_or_path": "../sdxl-vae/", "act_fn": "silu", "in_channels": 3,
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True, "latent_channels": 16, "latents_mean": None, "latents_std": None,
        "layers_per_block": 2, "mid_block_add_attention": True, "norm_num_groups": 32, "out_channels": 3,
        "sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609,
        "up_block_types": ["UpDecoderBlock2D"] * 4, "use_post_quant_conv": False, "use_quant_conv": False,
    },
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.29.0.dev0",
        "num_train_timesteps": 1000, "shift": 3.0,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModelWithProjection"], "attention_dropout": 0.0, "bos_token_id": 0,
        "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
        "torch_dtype": "float16", "transformers_version": "4.41.2", "vocab_size": 49408,
    },
    "text_encoder_3": {
        "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64,
        "d_model": 4096, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1,
        "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
        "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
        "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24, "output_past": True, "pad_token_id": 0,
        "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.41.2",
        "use_cache": True, "vocab_size": 32128,
    },
    "tokenizer_3": {
        "add_prefix_space": True, "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}},
        "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)], "eos_token": "</s>",
        "clean_up_tokenization_spaces": True, "extra_ids": 100, "legacy": True, "model_max_length": 512,
        "pad_token": "<pad>", "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer", "unk_token": "<unk>",
    },
}  # fmt: skip


@pytest.mark.parametrize("part", sorted(REAL))
def test_the_real_configs_pass(part: str) -> None:
    """Every key of the published repositories' configs has its rule."""
    check_config(Path("config.json"), part, REAL[part])


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

"""What a config may say: classes, keys, numbers and quant methods by allow-list.

Configs look harmless and are not. `auto_map`, `custom_pipeline` or `_attn_implementation_internal` made
libraries run code from a file or a repository that the config named, past `trust_remote_code=False`
(CVE-2026-44513, CVE-2026-4372, CVE-2026-5241); a layer count of 10^9 allocates until the machine stops. So
every key that the configs of SD3.5 have, in any version of the libraries, has a rule below, and a key that
has none is refused with its name.

Sources of the keys: the configs of stabilityai/stable-diffusion-3.5-*, the constructors of diffusers 0.42
and the configurations of transformers 4.41 to 5.23.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sd35.checkpoints.findings import bad_file, printable
from sd35.checkpoints.rules import (
    FLAG,
    SMALL,
    TEXT,
    Rule,
    each,
    either,
    maybe,
    one_of,
    real,
    whole,
)
from sd35.errors import CheckpointError

QUANT_METHOD = "sd35_fp8"  # ours: the scales lie beside the weights, the schemes in the header
QUANT_METHODS = (QUANT_METHOD, "torchao")
_FOREIGN_METHODS = {
    "modelopt": "NVIDIA ModelOpt",
    "compressed-tensors": "compressed-tensors, for vLLM",
    "fp8": "transformers' finegrained FP8 with blocks of 128 x 128",
    "gguf": "GGUF",
    "bitsandbytes": "bitsandbytes (4 or 8 bit)",
    "quanto": "optimum-quanto",
}

# Keys that make a library import or fetch code, at any depth of any config.
_CODE_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "code_revision")
_CODE_PREFIXES = ("_attn_implementation", "attn_implementation", "_experts_implementation")
_DELETE_KEY = "get the checkpoint from its makers; nothing that SD3.5 needs has such a key"

_WIDTH, _LAYERS, _HEADS, _TOKEN = whole(1, 65_536), whole(1, 64), whole(1, 256), maybe(whole(-1, 1_000_000))
_SMALL_REAL, _FLAG = real(0, 10), maybe(FLAG)
_DTYPE = maybe(one_of("float32", "float16", "bfloat16"))
_QUANTIZATION = Rule(
    f"an object whose quant_method is {' or '.join(QUANT_METHODS)}",
    lambda value: (
        isinstance(value, dict) and value.get("quant_method") in QUANT_METHODS and SMALL.holds(value)
    ),
)


def _all_of(keys: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(keys.split(), rule)


_DIFFUSERS: dict[str, Rule] = {
    "_class_name": TEXT,
    "_diffusers_version": TEXT,
    "_name_or_path": TEXT,
    "quantization_config": _QUANTIZATION,
}
_TRANSFORMER = {
    **_DIFFUSERS,
    "_class_name": one_of("SD3Transformer2DModel"),
    "sample_size": whole(1, 4096),
    "patch_size": whole(1, 16),
    "in_channels": whole(1, 256),
    "out_channels": whole(1, 256),
    "num_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "attention_head_dim": whole(1, 512),
    "joint_attention_dim": _WIDTH,
    "caption_projection_dim": _WIDTH,
    "pooled_projection_dim": _WIDTH,
    "pos_embed_max_size": whole(1, 1024),
    "qk_norm": maybe(one_of("rms_norm")),
    "dual_attention_layers": maybe(each(whole(0, 63), 64)),
}
_VAE = {
    **_DIFFUSERS,
    "_class_name": one_of("AutoencoderKL"),
    "in_channels": one_of(3),
    "out_channels": one_of(3),
    "latent_channels": whole(1, 64),
    "down_block_types": each(one_of("DownEncoderBlock2D"), 8),
    "up_block_types": each(one_of("UpDecoderBlock2D"), 8),
    "block_out_channels": each(whole(1, 4096), 8),
    "layers_per_block": whole(1, 8),
    "act_fn": one_of("silu"),
    "norm_num_groups": whole(1, 256),
    "sample_size": whole(1, 4096),
    "scaling_factor": real(1e-3, 1e3),
    "shift_factor": maybe(real(-1e3, 1e3)),
    "latents_mean": one_of(None),
    "latents_std": one_of(None),
    "force_upcast": FLAG,
    "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG,
    "mid_block_add_attention": FLAG,
}
_SCHEDULER = {
    **_DIFFUSERS,
    "_class_name": one_of("FlowMatchEulerDiscreteScheduler"),
    "num_train_timesteps": whole(1, 100_000),
    "shift": real(1e-3, 1e3),
    "use_dynamic_shifting": FLAG,
    "base_shift": maybe(_SMALL_REAL),
    "max_shift": maybe(_SMALL_REAL),
    "base_image_seq_len": maybe(whole(1, 1 << 20)),
    "max_image_seq_len": maybe(whole(1, 1 << 20)),
    "invert_sigmas": FLAG,
    "shift_terminal": maybe(_SMALL_REAL),
    "use_karras_sigmas": maybe(FLAG),
    "use_exponential_sigmas": maybe(FLAG),
    "use_beta_sigmas": maybe(FLAG),
    "time_shift_type": one_of("exponential", "linear"),
    "stochastic_sampling": FLAG,
}
_TRANSFORMERS: dict[str, Rule] = {
    "_name_or_path": TEXT,
    "transformers_version": TEXT,
    "torch_dtype": _DTYPE,
    "dtype": _DTYPE,
    "vocab_size": whole(1, 1_000_000),
    "initializer_factor": _SMALL_REAL,
    "quantization_config": _QUANTIZATION,
    **_all_of("bos_token_id eos_token_id pad_token_id decoder_start_token_id", _TOKEN),
    **_all_of("return_dict output_hidden_states output_attentions use_cache is_decoder output_past", _FLAG),
    **_all_of("is_encoder_decoder tie_word_embeddings torchscript use_bfloat16 add_cross_attention", _FLAG),
    **_all_of("id2label label2id problem_type pruned_heads chunk_size_feed_forward n_positions", SMALL),
    "task_specific_params": SMALL,
}
_CLIP = {
    **_TRANSFORMERS,
    "architectures": each(one_of("CLIPTextModelWithProjection"), 1),
    "model_type": one_of("clip_text_model"),
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "projection_dim": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "max_position_embeddings": whole(1, 65_536),
    "hidden_act": one_of("quick_gelu", "gelu"),
    "layer_norm_eps": real(0, 1),
    "attention_dropout": real(0, 1),
    "dropout": real(0, 1),
    "initializer_range": _SMALL_REAL,
}
_T5 = {
    **_TRANSFORMERS,
    "architectures": each(one_of("T5EncoderModel"), 1),
    "model_type": one_of("t5"),
    "d_model": _WIDTH,
    "d_ff": _WIDTH,
    "d_kv": whole(1, 1024),
    "num_layers": _LAYERS,
    "num_decoder_layers": maybe(_LAYERS),
    "num_heads": _HEADS,
    "feed_forward_proj": one_of("gated-gelu"),
    "dense_act_fn": one_of("gelu_new"),
    "is_gated_act": one_of(True),
    "layer_norm_epsilon": real(0, 1),
    "dropout_rate": real(0, 1),
    "classifier_dropout": real(0, 1),
    "relative_attention_num_buckets": whole(1, 1024),
    "relative_attention_max_distance": whole(1, 65_536),
    "scale_decoder_outputs": FLAG,
}
_MARK = maybe(either(TEXT, SMALL))  # a token, as text or with its flags
_TOKENIZER = {
    "tokenizer_class": one_of("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
    "model_max_length": either(whole(1, 10**31), real(1, 1e31)),
    "extra_ids": whole(0, 1000),
    **_all_of("bos_token eos_token unk_token pad_token sep_token cls_token", _MARK),
    **_all_of("errors name_or_path special_tokens_map_file tokenizer_file backend", maybe(TEXT)),
    **_all_of("truncation_side padding_side processor_class", maybe(TEXT)),
    **_all_of("add_prefix_space add_bos_token add_eos_token clean_up_tokenization_spaces", _FLAG),
    **_all_of("do_lower_case legacy is_local from_slow local_files_only use_fast", _FLAG),
    **_all_of("added_tokens_decoder additional_special_tokens extra_special_tokens", SMALL),
    **_all_of("model_specific_special_tokens sp_model_kwargs model_input_names", SMALL),
}

RULES: dict[str, Mapping[str, Rule]] = {
    "scheduler": _SCHEDULER,
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP,
    "text_encoder_3": _T5,
    "tokenizer": _TOKENIZER,
    "tokenizer_2": _TOKENIZER,
    "tokenizer_3": _TOKENIZER,
    "transformer": _TRANSFORMER,
    "vae": _VAE,
}


def check_config(path: Path, part: str, config: Mapping[str, Any]) -> None:
    """CheckpointError that names the key where a part's config says what none of SD3.5's would."""
    check_no_code(path, config)
    rules = RULES[part]
    for key, value in config.items():
        if key not in rules:
            raise bad_file(path, f"has the key {printable(key)}, which no SD3.5 {part} has", _DELETE_KEY)
        if not rules[key].holds(value):
            raise bad_file(
                path, f"gives {key} as {printable(repr(value))}, and it must be {rules[key].wants}"
            )
    if part == "vae":
        _check_groups(path, config)


def check_no_code(path: Path, content: object) -> None:
    """CheckpointError if any key, at any depth, is one of those that make libraries load code."""
    for key in _keys(content):
        if key in _CODE_KEYS or key.startswith(_CODE_PREFIXES):
            raise bad_file(
                path, f"has the key {printable(key)}, which can make libraries load code", _DELETE_KEY
            )


def _keys(content: object) -> Iterator[str]:
    if isinstance(content, dict):
        yield from content
    if isinstance(content, dict | list):
        for inner in content.values() if isinstance(content, dict) else content:
            yield from _keys(inner)


def _check_groups(path: Path, config: Mapping[str, Any]) -> None:
    groups = config.get("norm_num_groups", 32)
    odd = [channels for channels in config.get("block_out_channels", ()) if channels % groups]
    if odd:
        raise bad_file(path, f"has norm_num_groups {groups}, which does not divide {odd[0]} channels")


def refuse_foreign_quantization(path: Path, config: Mapping[str, Any]) -> None:
    """CheckpointError, by the method's name, where a config announces a quantization that we do not read."""
    entry = config.get("quantization_config")
    method = entry.get("quant_method") if isinstance(entry, dict) else entry
    if method in (None, *QUANT_METHODS):
        return
    known = (
        _FOREIGN_METHODS.get(method, "a method that sd35 does not know") if isinstance(method, str) else ""
    )
    raise CheckpointError(
        f"{path} says that the part is quantized by {printable(repr(method))}: "
        f"{known or 'no method at all'}. "
        "sd35 reads 16-bit folders, its own FP8 and torchao's; quantize the 16-bit checkpoint instead."
    )

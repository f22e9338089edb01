"""The configs of stabilityai/stable-diffusion-3.5-medium, and how they differ in Large."""

REAL_CONFIGS: dict[str, dict[str, object]] = {
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

LARGE_TRANSFORMER = {
    **{key: value for key, value in REAL_CONFIGS["transformer"].items() if key != "dual_attention_layers"},
    "caption_projection_dim": 2432,
    "num_attention_heads": 38,
    "num_layers": 38,
    "pos_embed_max_size": 192,
}
CLIP_G_CONFIG = {
    **REAL_CONFIGS["text_encoder"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

"""The bundled checkpoint: what it promises, checked by loading it as anyone would."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors import safe_open
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

import sd35.demo
from sd35.checkpoints.manifest import hash_files, read_manifest
from sd35.demo.architecture import TextEncoders, Tokenizers
from sd35.demo.conditioning import encode, tokenize
from sd35.demo.evaluator import load_evaluator
from sd35.demo.prompts import colour_word_prompts, held_out_prompts, trained_prompts
from sd35.demo.report import accuracy, generate

FOLDER = Path(sd35.demo.__path__[0]) / "checkpoint"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    """The folder in unmodified diffusers, computing in float32."""
    loaded = StableDiffusion3Pipeline.from_pretrained(FOLDER, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def _tensors(part: str) -> Iterator[tuple[str, torch.Tensor]]:
    for path in (FOLDER / part).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                yield name, file.get_tensor(name)


def test_parts_are_those_of_sd35(pipeline: StableDiffusion3Pipeline) -> None:
    """Nine components of SD3.5's own classes."""
    classes = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "scheduler": FlowMatchEulerDiscreteScheduler,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
    }
    for name, kind in classes.items():
        assert isinstance(getattr(pipeline, name), kind), name


def test_its_manifest_fits() -> None:
    """`sd35.json` lists exactly the files that are there, with their sizes and hashes."""
    manifest = read_manifest(FOLDER)
    assert manifest is not None
    assert manifest.files == hash_files(FOLDER)


def test_transformer_has_sd35_mediums_features(pipeline: StableDiffusion3Pipeline) -> None:
    """Heads of 64 channels, normed queries and keys, dual attention first, widths of multiples of 16."""
    config = pipeline.transformer.config
    assert config.attention_head_dim == 64
    assert config.qk_norm == "rms_norm"
    assert tuple(config.dual_attention_layers) == (0, 1)
    assert config.sample_size == 32
    assert config.pos_embed_max_size >= 32
    for name, weight in _tensors("transformer"):
        if weight.ndim == 2:
            assert all(size % 16 == 0 for size in weight.shape), name


def test_vae_and_encoders_have_sd35s_features(pipeline: StableDiffusion3Pipeline) -> None:
    """Sixteen latent channels at factor 8, no 1x1 convolutions; the CLIPs' two activations; T5's gate."""
    vae = pipeline.vae.config
    assert (vae.latent_channels, len(vae.block_out_channels)) == (16, 4)
    assert not vae.use_quant_conv
    assert not vae.use_post_quant_conv
    assert pipeline.text_encoder.config.hidden_act == "quick_gelu"
    assert pipeline.text_encoder_2.config.hidden_act == "gelu"
    assert pipeline.text_encoder_3.config.is_gated_act
    widths = pipeline.text_encoder.config.projection_dim + pipeline.text_encoder_2.config.projection_dim
    assert pipeline.transformer.config.pooled_projection_dim == widths
    assert pipeline.transformer.config.joint_attention_dim == pipeline.text_encoder_3.config.d_model


def test_tokenizers_pad_as_sd35s_do(pipeline: StableDiffusion3Pipeline) -> None:
    """CLIP-L pads with its end mark, CLIP-G with "!" at id 0; both hold 77 tokens."""
    assert pipeline.tokenizer.model_max_length == pipeline.tokenizer_2.model_max_length == 77
    assert pipeline.tokenizer.pad_token == pipeline.tokenizer.eos_token == "<|endoftext|>"
    assert (pipeline.tokenizer_2.pad_token, pipeline.tokenizer_2.pad_token_id) == ("!", 0)


def test_odd_letters_do_not_end_the_prompt(pipeline: StableDiffusion3Pipeline) -> None:
    """CLIP's unknown token is its end mark: no letter of any script may turn into it."""
    ids = pipeline.tokenizer("Éclair Qx 猫 ñ #7").input_ids
    assert ids.count(pipeline.tokenizer.eos_token_id) == 1


def test_weights_are_bfloat16() -> None:
    """Every stored tensor has 16 bits."""
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        assert {tensor.dtype for _, tensor in _tensors(part)} == {torch.bfloat16}, part


def test_bytes() -> None:
    """All files together stay under forty million bytes and are readable by all."""
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_fp8_would_save_45_percent() -> None:
    """With the blocks' linears in rowwise FP8 the transformer keeps at most 55 percent of its bytes."""
    before = after = 0
    for name, tensor in _tensors("transformer"):
        if name == "pos_embed.pos_embed":
            continue
        before += 2 * tensor.numel()
        quantized = name.startswith("transformer_blocks") and tensor.ndim == 2
        after += tensor.numel() + 4 * tensor.shape[0] if quantized else 2 * tensor.numel()
    assert after / before <= 0.55


def test_configs_tell_no_paths() -> None:
    """No config remembers a folder of the machine it was made on."""
    for path in FOLDER.rglob("*.json"):
        if "tokenizer.json" not in path.name:
            config = json.loads(path.read_text(encoding="utf-8"))
            assert not {"_name_or_path", "name_or_path"} & set(config), path


def test_training_built_the_conditioning_as_the_pipeline_does(pipeline: StableDiffusion3Pipeline) -> None:
    """Embeds of a prompt, as training made them, are the pipeline's own."""
    prompt = "A cute penguin, glossy style"
    expected, _, pooled, _ = pipeline.encode_prompt(
        prompt, prompt, prompt, device="cpu", max_sequence_length=64, do_classifier_free_guidance=False
    )
    tokenizers = Tokenizers(pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3)
    encoders = TextEncoders(pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
    tokens = tokenize(tokenizers, [prompt], 32)
    everything = tokens.select(torch.tensor([0]), torch.device("cpu")).pad_t5(64, 0)
    with torch.inference_mode():
        found, found_pooled = encode(encoders, everything)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_pooled, pooled, rtol=1e-4, atol=1e-4)


def test_it_draws_what_it_is_asked(pipeline: StableDiffusion3Pipeline) -> None:
    """Of five prompts, two of pairs never trained, four subjects come out right, and all backgrounds."""
    prompts = trained_prompts()[:2] + held_out_prompts()[:2] + colour_word_prompts()[:1]
    pictures = generate(pipeline, [prompt.text for prompt in prompts], length=32, steps=10)
    shares = accuracy(load_evaluator(), pictures, prompts)
    assert shares["subject"] >= 4 / 5
    assert shares["background"] == 1


def test_no_words_still_make_a_picture(pipeline: StableDiffusion3Pipeline) -> None:
    """An empty prompt, which guidance needs, gives no noise: an even border, something in the middle."""
    picture = generate(pipeline, [""], length=32, steps=10)[0].float()
    assert picture[:6].std(dim=(0, 1)).max() < 12
    assert picture[64:192, 64:192].std() > 10

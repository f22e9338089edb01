"""The parts of SD3.5's pipeline as diffusers' folder has them: an allow-list of classes and file names.

Facts alone, without torch: who only fetches or lists a checkpoint needs no more of it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One component: the classes it may have, its config file, and the stem of its weight files."""

    classes: tuple[str, ...]
    config: str
    weights: str | None = None
    optional: bool = False


PARTS = {
    "scheduler": Part(("FlowMatchEulerDiscreteScheduler",), "scheduler_config.json"),
    "text_encoder": Part(("CLIPTextModelWithProjection",), "config.json", "model"),
    "text_encoder_2": Part(("CLIPTextModelWithProjection",), "config.json", "model"),
    "text_encoder_3": Part(("T5EncoderModel",), "config.json", "model", optional=True),
    "tokenizer": Part(("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_config.json"),
    "tokenizer_2": Part(("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_config.json"),
    "tokenizer_3": Part(("T5Tokenizer", "T5TokenizerFast"), "tokenizer_config.json", optional=True),
    "transformer": Part(("SD3Transformer2DModel",), "config.json", "diffusion_pytorch_model"),
    "vae": Part(("AutoencoderKL",), "config.json", "diffusion_pytorch_model"),
}

"""The others, doing the same work: diffusers as it is, compiled, and with torchao's FP8.

Each peer is used the way its makers show: `StableDiffusion3Pipeline` with its own loop, `torch.compile` of
the joint blocks (the region that repeats), torchao's dynamic rowwise FP8 on the blocks' attention and MLP
linears. Weights, prompts, noise, sizes and steps are those of our own engine; text encoders and VAE stay in
16 bit with all of them. This is the only file outside `runtime/` that knows diffusers, and the only one that
knows torchao.
"""

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from sd35.bench.random_weights import RandomCheckpoint, random_embeds
from sd35.bench.work import shapes_of
from sd35.bench.workload import Workload
from sd35.checkpoints.keys import SHARED_T5
from sd35.errors import LibraryError
from sd35.request import Picture
from sd35.runtime.latents import initial_latents
from sd35.runtime.load import resolve
from sd35.runtime.pipeline import StageClock
from sd35.runtime.sampling import OnStep, Progress
from sd35.runtime.weights import Placement, fill_module

# What `encode_prompt` gives, in its order.
_EMBEDS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
COMPILE_BACKEND = "inductor"
_FP8_LAYERS = re.compile(r"transformer_blocks\.\d+\.(attn|attn2|ff|ff_context)\..+")


class DiffusersEngine:
    """`StableDiffusion3Pipeline` with the parts that the workload's stages need."""

    attention = "sdpa"
    plan = "resident"
    cap_bytes = None
    load_seconds = None

    def __init__(self, workload: Workload) -> None:
        placement = resolve(workload.config())
        self._stages = workload.stages
        self.device = placement.device
        self.caps: dict[torch.device, int | None] = {placement.device: None}
        self._embeds = random_embeds(shapes_of(workload), placement.device, placement.dtype)
        self._pipe = _pipeline(workload, placement)
        self._pipe.set_progress_bar_config(disable=True)
        self.precision = str(placement.dtype).removeprefix("torch.")

    @property
    def transformer(self) -> Any:
        """diffusers' MMDiT, None where no stage needs it."""
        return self._pipe.transformer

    @torch.no_grad()
    def draw(self, pictures: Sequence[Picture], on_step: OnStep) -> dict[str, float]:
        """diffusers' own three calls, timed one by one."""
        clock = StageClock(self.device)
        embeds = self._random_embeds(pictures)
        latents = initial_latents(pictures, self.device).to(self._embeds.sequence.dtype)
        if "encode" in self._stages:
            with clock("encode"):
                embeds = self._encode(pictures)
        if "denoise" in self._stages:
            with clock("denoise"):
                latents = self._denoise(pictures, embeds, latents, on_step)
        if "decode" in self._stages:
            with clock("decode"):
                self._decode(latents)
        return clock.seconds

    def _encode(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        picture = pictures[0]
        encoded = self._pipe.encode_prompt(
            prompt=picture.prompt.clip_l,
            prompt_2=picture.prompt.clip_g,
            prompt_3=picture.prompt.t5,
            num_images_per_prompt=len(pictures),
            do_classifier_free_guidance=picture.settings.guided,
            negative_prompt=picture.negative_prompt.clip_l,
            max_sequence_length=picture.settings.max_sequence_length,
        )
        return dict(zip(_EMBEDS, encoded, strict=True))

    def _random_embeds(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        sequence, pooled, count = self._embeds.sequence, self._embeds.pooled, len(pictures)
        embeds = {"prompt_embeds": sequence[-count:], "pooled_prompt_embeds": pooled[-count:]}
        if pictures[0].settings.guided:
            embeds["negative_prompt_embeds"] = sequence[:count]
            embeds["negative_pooled_prompt_embeds"] = pooled[:count]
        return embeds

    def _denoise(
        self, pictures: Sequence[Picture], embeds: dict[str, Tensor], latents: Tensor, on_step: OnStep
    ) -> Tensor:
        settings = pictures[0].settings
        progress = Progress(on_step, settings.num_inference_steps, self.device)
        denoised = self._pipe(
            **embeds,
            latents=latents,
            width=settings.width,
            height=settings.height,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            output_type="latent",
            callback_on_step_end=_listener(progress),
            callback_on_step_end_tensor_inputs=[],
        )
        progress.finish()
        return denoised.images

    def _decode(self, latents: Tensor) -> None:
        vae = self._pipe.vae
        z = latents / vae.config.scaling_factor + vae.config.shift_factor
        self._pipe.image_processor.postprocess(vae.decode(z, return_dict=False)[0], output_type="pil")


def diffusers_eager(workload: Workload) -> DiffusersEngine:
    """diffusers as `from_pretrained` gives it."""
    return DiffusersEngine(workload)


def diffusers_compile(workload: Workload) -> DiffusersEngine:
    """diffusers with torch.compile of the joint blocks."""
    engine = DiffusersEngine(workload)
    _compile_blocks(engine.transformer)
    return engine


def torchao_compile(workload: Workload) -> DiffusersEngine:
    """torchao's FP8 (weights a row each, activations a token each, as they come) and torch.compile."""
    if find_spec("torchao") is None:
        raise LibraryError("torchao is not installed: pip install torchao adds it.")
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    engine = DiffusersEngine(workload)
    if engine.transformer is not None:
        quantize_(
            engine.transformer,
            Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
            filter_fn=lambda module, name: bool(
                isinstance(module, nn.Linear) and _FP8_LAYERS.fullmatch(name)
            ),
        )
        engine.precision = f"float8_e4m3fn + {engine.precision}"
    _compile_blocks(engine.transformer)
    return engine


BUILDERS: dict[str, Callable[[Workload], DiffusersEngine]] = {
    "diffusers-eager": diffusers_eager,
    "diffusers-compile": diffusers_compile,
    "torchao-compile": torchao_compile,
}


def _compile_blocks(transformer: Any) -> None:
    if transformer is not None:
        for block in transformer.transformer_blocks:
            block.compile(backend=COMPILE_BACKEND, fullgraph=True)


def _listener(progress: Progress) -> Callable[..., dict[str, Any]]:
    """Our way of hearing of steps in the form that diffusers calls."""

    def heard(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Pass it on and change nothing."""
        progress.queued()
        return {}

    return heard


def _pipeline(workload: Workload, placement: Placement) -> Any:
    """The pipeline with None for the parts that no stage needs."""
    checkpoint = RandomCheckpoint(workload.variant, placement.device)
    texts = "encode" in workload.stages
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler.from_config(checkpoint.config("scheduler")),
        "transformer": None,
        "vae": None,
        **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3")),
        **dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3")),
    }
    if "denoise" in workload.stages:
        parts["transformer"] = _transformer(checkpoint, placement)
    if "decode" in workload.stages:
        parts["vae"] = _vae(checkpoint, placement)
    for suffix in ("", "_2", "_3") if texts else ():
        parts[f"text_encoder{suffix}"] = _text_encoder(checkpoint, suffix, placement)
        parts[f"tokenizer{suffix}"] = _tokenizer(checkpoint, suffix)
    return StableDiffusion3Pipeline(**parts)


def _transformer(checkpoint: RandomCheckpoint, placement: Placement) -> nn.Module:
    with torch.device("meta"):
        model = SD3Transformer2DModel.from_config(checkpoint.config("transformer"))
    model.to_empty(device="meta")  # its position table is computed, and the checkpoint has its own
    return _filled(model, checkpoint, "transformer", placement)


def _vae(checkpoint: RandomCheckpoint, placement: Placement) -> nn.Module:
    with torch.device("meta"):
        model = AutoencoderKL.from_config(checkpoint.config("vae"))
    return _filled(model, checkpoint, "vae", placement)


def _text_encoder(checkpoint: RandomCheckpoint, suffix: str, placement: Placement) -> nn.Module:
    part = f"text_encoder{suffix}"
    config = checkpoint.config(part)
    with torch.device("meta"):
        if suffix == "_3":
            t5 = T5EncoderModel(T5Config(**config))
        else:
            clip = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    if suffix == "_3":
        return _filled(t5, checkpoint, part, placement, SHARED_T5)
    for module in clip.modules():
        if "position_ids" in module._buffers:  # counts, and is in no checkpoint
            module.position_ids = torch.arange(config["max_position_embeddings"], device=placement.device)[
                None
            ]
    return _filled(clip, checkpoint, part, placement)


def _tokenizer(checkpoint: RandomCheckpoint, suffix: str) -> Any:
    part = f"tokenizer{suffix}"
    kind = T5Tokenizer if suffix == "_3" else CLIPTokenizer
    return kind.from_pretrained(checkpoint.folder(part), local_files_only=True)


def _filled(
    model: nn.Module,
    checkpoint: RandomCheckpoint,
    part: str,
    placement: Placement,
    shared: tuple[str, ...] = (),
) -> nn.Module:
    with checkpoint.tensors(part) as tensors:
        fill_module(model, tensors, placement, shared)
    return model.eval()

"""The SD3.5 variants: what tells them apart, and the settings their makers recommend.

All variants are one architecture, the MMDiT of "Scaling Rectified Flow Transformers" (arXiv 2403.03206):
joint blocks over a sample stream (image patches) and a context stream (text tokens), q/k RMSNorm, and in
Medium a second, sample-only attention in the first blocks ("dual attention", MMDiT-X). Depth tells them
apart, so a checkpoint is recognised by its weights and never by its file name. Large and Large-Turbo have
the same shapes to the last byte: nothing in the files tells them apart, and who means Turbo has to say so.

Sources: transformer/config.json of the three stabilityai/stable-diffusion-3.5-* repositories, and the
defaults of Stability-AI/sd3.5 `sd3_infer.py`.
"""

from dataclasses import dataclass

from sd35.errors import RequestError

# One image token covers a 2 x 2 patch of latents, one latent covers 8 x 8 pixels.
LATENT_CHANNELS = 16
PIXELS_PER_LATENT = 8
PATCH_SIZE = 2
PIXELS_PER_TOKEN = PIXELS_PER_LATENT * PATCH_SIZE
HEAD_DIM = 64


@dataclass(frozen=True)
class Variant:
    """One row of the table: facts that identify the variant, then recommended settings."""

    name: str
    title: str
    repository: str | None  # hub id of the original weights; None: bundled with this package
    num_layers: int
    dual_attention_layers: tuple[int, ...]
    native_size: int  # pixels, both sides
    max_size: int  # pixels, either side: where the position table ends
    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int  # T5 tokens
    skip_layers: tuple[int, ...] = ()  # what skip-layer guidance leaves out; empty: not meant for it

    def __str__(self) -> str:
        return self.name


_LARGE = Variant(
    name="large",
    title="Stable Diffusion 3.5 Large",
    repository="stabilityai/stable-diffusion-3.5-large",
    num_layers=38,
    dual_attention_layers=(),
    native_size=1024,
    max_size=192 * PIXELS_PER_TOKEN,
    num_inference_steps=28,
    guidance_scale=4.5,
    max_sequence_length=256,
)
_LARGE_TURBO = Variant(
    name="large-turbo",
    title="Stable Diffusion 3.5 Large Turbo",
    repository="stabilityai/stable-diffusion-3.5-large-turbo",
    num_layers=38,
    dual_attention_layers=(),
    native_size=1024,
    max_size=192 * PIXELS_PER_TOKEN,
    num_inference_steps=4,
    guidance_scale=1.0,
    max_sequence_length=256,
)
_MEDIUM = Variant(
    name="medium",
    title="Stable Diffusion 3.5 Medium",
    repository="stabilityai/stable-diffusion-3.5-medium",
    num_layers=24,
    dual_attention_layers=tuple(range(13)),
    native_size=1024,
    max_size=384 * PIXELS_PER_TOKEN,
    num_inference_steps=40,
    guidance_scale=4.5,
    max_sequence_length=256,
    skip_layers=(7, 8, 9),
)
_DEMO = Variant(
    name="demo",
    title="the bundled demo model",
    repository=None,
    num_layers=6,
    dual_attention_layers=(0, 1),
    native_size=256,
    max_size=512,
    num_inference_steps=28,
    guidance_scale=4.0,
    max_sequence_length=64,
    skip_layers=(2, 3),
)

VARIANTS = {variant.name: variant for variant in (_DEMO, _MEDIUM, _LARGE, _LARGE_TURBO)}


def variant_named(name: str) -> Variant:
    """The variant of that name, or RequestError that lists the names there are."""
    if name not in VARIANTS:
        raise RequestError(f"There is no variant {name!r}: choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def variant_of(num_layers: int, dual_attention_layers: tuple[int, ...]) -> Variant | None:
    """The variant with this depth and these dual layers (Large for Large-Turbo), None for a stranger."""
    for variant in VARIANTS.values():
        if (variant.num_layers, variant.dual_attention_layers) == (num_layers, dual_attention_layers):
            return variant
    return None

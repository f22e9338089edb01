"""What AUTOMATIC1111 tells about its pictures, told about ours: an object, sent as a JSON string.

Clients parse it: some read `seed`, `width` and `height`, some show `infotexts`, a text for each picture with
prompt, negative prompt and a last line of `name: value` pairs. Names are those of `Processed.js` and
`create_infotext` in `modules/processing.py` of https://github.com/AUTOMATIC1111/stable-diffusion-webui.
"""

import json
import time
from typing import Any

from pydantic import BaseModel, ValidationError

from sd35 import __version__
from sd35.png import recipe_in
from sd35.serving.jobs import Job, Spec

SAMPLER = "Euler"
SCHEDULER = "Automatic"
_ENCODER = "t5"  # whose text stands for all three, where they differ


def info_of(job: Job, batch_size: int) -> str:
    """All that is known about a finished job's pictures."""
    spec = job.spec
    seeds = [image.seed for image in job.images]
    begun = time.localtime(job.started_at or job.created_at)
    return json.dumps(
        {
            "prompt": spec.prompt,
            "all_prompts": [spec.prompt] * spec.n,
            "negative_prompt": spec.negative_prompt,
            "all_negative_prompts": [spec.negative_prompt] * spec.n,
            "seed": spec.seed,
            "all_seeds": seeds,
            "subseed": spec.seed,
            "all_subseeds": seeds,
            "width": spec.width,
            "height": spec.height,
            "sampler_name": SAMPLER,
            "cfg_scale": spec.guidance_scale,
            "steps": spec.num_inference_steps,
            "batch_size": batch_size,
            "sd_model_name": spec.model,
            "infotexts": [infotext(spec, seed) for seed in seeds],
            "denoising_strength": spec.strength,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", begun),
            "version": f"sd35 {__version__}",
            **_NOT_HERE,
        }
    )


# Fields of what we don't do, with the values that say so.
_NOT_HERE: dict[str, Any] = {
    "subseed_strength": 0,
    "restore_faces": False,
    "face_restoration_model": None,
    "sd_model_hash": None,
    "sd_vae_name": None,
    "sd_vae_hash": None,
    "seed_resize_from_w": -1,
    "seed_resize_from_h": -1,
    "extra_generation_params": {},
    "index_of_first_image": 0,
    "styles": [],
    "clip_skip": 1,
    "is_using_inpainting_conditioning": False,
}


def infotext(spec: Spec, seed: int) -> str:
    """Prompt, negative prompt and settings of one picture, as people paste them."""
    begun = {} if spec.strength is None else {"Denoising strength": f"{spec.strength:g}"}
    pairs = {
        **_pairs(spec.num_inference_steps, spec.guidance_scale, seed, spec.width, spec.height),
        "Model": spec.model,
        **begun,
        "Version": f"sd35 {__version__}",
    }
    return _written(spec.prompt, spec.negative_prompt, pairs)


class _Settings(BaseModel):
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float


class Recipe(BaseModel):
    """Of the recipe in a PNG file, what an infotext tells."""

    seed: int
    settings: _Settings
    checkpoint_sha256: str
    version: str
    prompt: dict[str, str] = {}
    negative_prompt: dict[str, str] = {}
    strength: float | None = None

    @property
    def pairs(self) -> dict[str, Any]:
        """The settings, by AUTOMATIC1111's names."""
        own = self.settings
        begun = {} if self.strength is None else {"Denoising strength": f"{self.strength:g}"}
        return {
            **_pairs(own.num_inference_steps, own.guidance_scale, self.seed, own.width, own.height),
            "Model hash": self.checkpoint_sha256[:10],
            **begun,
            "Version": f"sd35 {self.version}",
        }

    @property
    def text(self) -> str:
        """As `infotext`; the prompts are there where the file has them."""
        return _written(self.prompt.get(_ENCODER, ""), self.negative_prompt.get(_ENCODER, ""), self.pairs)


def recipe_of_file(data: bytes) -> Recipe | None:
    """The recipe in one of our PNG files, None for every other file."""
    try:
        return Recipe.model_validate(recipe_in(data))
    except ValidationError:
        return None


def _pairs(steps: int, guidance: float, seed: int, width: int, height: int) -> dict[str, Any]:
    return {
        "Steps": steps,
        "Sampler": SAMPLER,
        "Schedule type": SCHEDULER,
        "CFG scale": f"{guidance:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
    }


def _written(prompt: str, negative_prompt: str, pairs: dict[str, Any]) -> str:
    negative = [f"Negative prompt: {negative_prompt}"] if negative_prompt else []
    last = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items())
    return "\n".join([prompt, *negative, last]).strip()


def _quoted(value: str) -> str:
    """In quotes where it would be read as several."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",\n:") else value

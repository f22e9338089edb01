"""What AUTOMATIC1111 tells about its pictures, told about ours: an object, sent as a JSON string.

Clients parse it: some read `seed`, `width` and `height`, some show `infotexts`, a text for each picture with
prompt, negative prompt and a last line of `name: value` pairs. Names are those of `Processed.js` and
`create_infotext` in `modules/processing.py` of https://github.com/AUTOMATIC1111/stable-diffusion-webui.
"""

import json
import time
from typing import Any

from sd35 import __version__
from sd35.serving.jobs import Job, Spec

SAMPLER = "Euler"
SCHEDULER = "Automatic"


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
    "denoising_strength": None,
    "extra_generation_params": {},
    "index_of_first_image": 0,
    "styles": [],
    "clip_skip": 1,
    "is_using_inpainting_conditioning": False,
}


def infotext(spec: Spec, seed: int) -> str:
    """Prompt, negative prompt and settings of one picture, as people paste them."""
    settings = {
        "Steps": spec.num_inference_steps,
        "Sampler": SAMPLER,
        "Schedule type": SCHEDULER,
        "CFG scale": f"{spec.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{spec.width}x{spec.height}",
        "Model": spec.model,
        "Version": f"sd35 {__version__}",
    }
    negative = [f"Negative prompt: {spec.negative_prompt}"] if spec.negative_prompt else []
    last = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items())
    return "\n".join([spec.prompt, *negative, last]).strip()


def _quoted(value: str) -> str:
    """In quotes where it would be read as several."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",\n:") else value

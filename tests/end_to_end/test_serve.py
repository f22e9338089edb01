"""OpenAI's client draws with the bundled model, through the whole server."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import openai
from PIL import Image, ImageStat


def test_openai_client_gets_a_demo_picture(tmp_path: Path, demo_fp8: Path) -> None:
    """A picture of the prompt, of the bundled checkpoint in FP8, with its recipe inside."""
    command = [sys.executable, "-m", "sd35", "serve", "--device=cpu", "--port=0", f"--data-dir={tmp_path}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().split()[-1]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            extra = {"num_inference_steps": 8, "seed": 1}
            answer = client.images.generate(
                prompt="a red apple, glossy style, on a blue background", size="256x256", extra_body=extra
            )
    finally:
        server.terminate()
        code = server.wait(60)
        server.stdout.close()
    assert code == 0
    assert answer.data is not None
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    recipe = json.loads(image.text["sd35"])
    red, _, blue = ImageStat.Stat(image.crop((0, 0, 256, 24)).convert("RGB")).mean
    assert blue > red + 30, "the background is blue"
    assert "float8_e4m3fn" in recipe["precision"]
    assert len(recipe["checkpoint_sha256"]) == 64

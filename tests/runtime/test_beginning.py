"""Pictures that begin with an image: diffusers is the oracle, and who begins with none pays for none."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Img2ImgPipeline
from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3_img2img as their_module
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sd35.checkpoints.reader import TensorReader
from sd35.checkpoints.source import TensorSource
from sd35.config import RuntimeConfig
from sd35.errors import CheckpointError
from sd35.kernels.api import choose_operations
from sd35.pictures_in.source_picture import SourcePicture
from sd35.quantization.transcode import convert
from sd35.request import GenerationRequest
from sd35.runtime import memory
from sd35.runtime import pipeline as pipeline_module
from sd35.runtime.beginning import pixels_of
from sd35.runtime.division import stages_on
from sd35.runtime.latents import initial_latents
from sd35.runtime.load import load_pipeline
from sd35.runtime.memory import Division, MemoryPlan, Work
from sd35.runtime.pipeline import Pipeline
from sd35.runtime.previews import Previews
from sd35.runtime.vae import VaeConfig
from sd35.runtime.vae_encoder import VaeEncoder
from sd35.runtime.weights import Placement, fill_vae_encoder

SMALL = VaeConfig((32, 64, 96, 96), 1, 16, scaling_factor=0.62, shift_factor=-0.1)
REAL = VaeConfig((128, 256, 512, 512), 2, 32, scaling_factor=1.5305, shift_factor=0.0609)
CPU32 = Placement(torch.device("cpu"), torch.float32, "auto")
PLANS = list(memory.ladder())
EACH = [PLANS[0], *(PLANS[1 + 3 * rung + rung % 3] for rung in range(len(PLANS) // 3))]  # decodes in turn
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def apple(pipeline_fp32: Pipeline) -> SourcePicture:
    """A picture of the demo model's own."""
    prompt = "a red apple, flat style, on a blue background"
    request = GenerationRequest(prompt, seed=1, num_inference_steps=6)
    image = pipeline_fp32.generate(request).images[0].image
    return SourcePicture(image.width, image.height, image.tobytes())


@pytest.fixture(scope="module")
def oracle(demo: Path) -> StableDiffusion3Img2ImgPipeline:
    """Unmodified diffusers on the bundled folder, in float32."""
    pipeline = StableDiffusion3Img2ImgPipeline.from_pretrained(demo, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def begun(image: SourcePicture, **changes: object) -> GenerationRequest:
    """A green apple of it."""
    settings = {"seed": 3, "num_inference_steps": 6, **changes}
    return GenerationRequest("a green apple, flat style, on a blue background", image=image, **settings)


def latents_of(pipeline: Pipeline, request: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the loop ends with."""
    kept: list[Tensor] = []
    decode = pipeline_module.decode
    keep = lambda vae, latents: kept.append(latents) or decode(vae, latents)  # noqa: E731
    monkeypatch.setattr(pipeline_module, "decode", keep)
    pipeline.generate(request)
    return kept[0]


def theirs_of(config: VaeConfig) -> AutoencoderKL:
    """diffusers' VAE with random weights everywhere."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        latent_channels=16,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_level,
        norm_num_groups=config.groups,
        down_block_types=("DownEncoderBlock2D",) * len(config.channels),
        up_block_types=("UpDecoderBlock2D",) * len(config.channels),
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for module in vae.encoder.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    return vae.eval()


def ours_of(
    config: VaeConfig, tensors: dict[str, Tensor], folder: Path, placement: Placement = CPU32
) -> VaeEncoder:
    """Our encoder, filled from a file of these tensors."""
    path = folder / "vae.safetensors"
    save_file(tensors, path)
    with torch.device("meta"):
        ours = VaeEncoder(config, choose_operations(placement.kernels, placement.device, placement.dtype))
    with TensorSource.of(TensorReader([path])) as source:
        fill_vae_encoder(ours, source, placement)
    return ours


@pytest.mark.parametrize(
    ("config", "size"), [(SMALL, (64, 64)), (SMALL, (16, 112)), (SMALL, (104, 24)), (REAL, (32, 48))]
)
@torch.inference_mode()
def test_the_encoder_equals_diffusers(config: VaeConfig, size: tuple[int, int], tmp_path: Path) -> None:
    """Same weights, same pixels, same latents, at any size, at the demo's width and at SD3.5's."""
    theirs = theirs_of(config)
    pixels = torch.rand(2, 3, *size) * 2 - 1
    expected = (theirs.encode(pixels).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    assert float(expected.std()) > 0.05
    found = ours_of(config, theirs.state_dict(), tmp_path)(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=3e-5)


@torch.inference_mode()
def test_the_bundled_encoder(demo: Path, pipeline_fp32: Pipeline, apple: SourcePicture) -> None:
    """The demo's trained encoder gives diffusers' latents, and its decoder gives the picture back."""
    theirs = AutoencoderKL.from_pretrained(demo / "vae", dtype=torch.float32)
    factors = theirs.config.shift_factor, theirs.config.scaling_factor
    expected = (theirs.encode(pixels_of(apple)).latent_dist.mode() - factors[0]) * factors[1]
    pictures = begun(apple).pictures(pipeline_fp32.variant)
    found = pipeline_fp32.source_encoder.encode(pictures, pipeline_fp32.residence)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    restored = pipeline_fp32.vae(found)
    error = (restored.clamp(-1, 1) - pixels_of(apple)).square().mean() / 4
    assert float(-10 * error.log10()) > 25


@pytest.mark.parametrize(("strength", "steps"), [(0.3, 6), (0.6, 6), (0.6, 7), (0.9, 6), (1.0, 4), (0.05, 4)])
def test_equals_diffusers(
    strength: float,
    steps: int,
    pipeline_fp32: Pipeline,
    oracle: StableDiffusion3Img2ImgPipeline,
    apple: SourcePicture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Same image, noise and settings in float32: the same steps from the same place to the same latents."""
    request = begun(apple, strength=strength, num_inference_steps=steps, width=224, height=256)
    (picture,) = request.pictures(pipeline_fp32.variant)
    noise = initial_latents([picture], torch.device("cpu"))
    monkeypatch.setattr(their_module, "randn_tensor", lambda *_, **__: noise)
    monkeypatch.setattr(their_module, "retrieve_latents", lambda given, **_: given.latent_dist.mode())
    fitted = apple.fitted(224, 256)
    expected = oracle(
        prompt=request.prompt,
        negative_prompt="",
        image=Image.frombytes("RGB", (224, 256), fitted.rgb),
        strength=strength,
        width=224,
        height=256,
        num_inference_steps=steps,
        guidance_scale=picture.settings.guidance_scale,
        max_sequence_length=picture.settings.max_sequence_length,
        output_type="latent",
    ).images
    found = latents_of(pipeline_fp32, request, monkeypatch)
    assert float(expected.std()) > 0.3
    assert float((found - expected).abs().max()) < 2e-3 * float(expected.std())


@torch.inference_mode()
def test_a_single_file_has_its_encoder(
    demo: Path, pipeline_fp32: Pipeline, apple: SourcePicture, tmp_path: Path
) -> None:
    """Under the original names the same encoder is found: the latents are the folder's, to the last bit."""
    file = tmp_path / "single.safetensors"
    convert(demo, file, "16bit-file")
    config = RuntimeConfig(device="cpu", compute_dtype="fp32")
    single = load_pipeline(file, config, components=demo)
    pictures = begun(apple).pictures(single.variant)
    found = [one.source_encoder.encode(pictures, one.residence) for one in (pipeline_fp32, single)]
    assert torch.equal(*found)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In dB."""
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)))


def arrays(pipeline: Pipeline, request: GenerationRequest) -> list[np.ndarray]:
    """The drawn pictures."""
    return [np.asarray(one.image, dtype=np.float64) for one in pipeline.generate(request).images]


def test_strength_is_how_far_it_goes(pipeline_fp32: Pipeline, apple: SourcePicture) -> None:
    """The stronger, the further from the image; at 1 it is the picture that text alone gives."""
    source = np.frombuffer(apple.rgb, np.uint8).reshape(apple.height, apple.width, 3).astype(np.float64)
    drawn = {s: arrays(pipeline_fp32, begun(apple, strength=s))[0] for s in (0.2, 0.5, 1.0)}
    distances = [psnr(picture, source) for picture in drawn.values()]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > distances[-1] + 3
    text = replace(begun(apple), image=None, width=apple.width, height=apple.height)
    assert np.array_equal(drawn[1.0], arrays(pipeline_fp32, text)[0])


def test_a_batch_is_its_pictures(pipeline_fp32: Pipeline, apple: SourcePicture) -> None:
    """Several seeds, and several images of one strength, each give what they give alone."""
    other = SourcePicture(apple.width, apple.height, bytes(255 - value for value in apple.rgb))
    requests = [begun(apple), begun(apple, seed=4), begun(other, seed=3)]
    pictures = [request.pictures(pipeline_fp32.variant)[0] for request in requests]
    together = [np.asarray(one.image, dtype=np.float64) for one in pipeline_fp32.draw(pictures).images]
    alone = [arrays(pipeline_fp32, request)[0] for request in requests]
    assert all(psnr(a, b) > 50 for a, b in zip(together, alone, strict=True))
    assert psnr(together[0], together[2]) < 30


def test_steps_and_previews_count_what_runs(pipeline_fp8: Pipeline, apple: SourcePicture) -> None:
    """Six steps at a strength of 0.5 are three, told as three, and a preview after the second is shown."""
    told, shown = [], []
    pictures = begun(apple, strength=0.5).pictures(pipeline_fp8.variant)
    previews = Previews(frozenset({2}), lambda done, rows: shown.append((done, tuple(rows.shape))))
    generation = pipeline_fp8.draw(pictures, lambda done, of: told.append((done, of)), previews)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert shown == [(2, (1, 32, 32, 3))]
    assert generation.finite == (True,)


def test_an_image_without_end_is_seen(
    pipeline_fp8: Pipeline, apple: SourcePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents of an image that are not finite are told as such, like any others."""
    encode = pipeline_fp8.source_encoder.encode
    monkeypatch.setattr(pipeline_fp8.source_encoder, "encode", lambda *given: encode(*given) * float("nan"))
    assert pipeline_fp8.draw(begun(apple).pictures(pipeline_fp8.variant)).finite == (False,)


def test_text_alone_reads_no_encoder(
    demo: Path, fox: GenerationRequest, apple: SourcePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is read with the first image, once, and not for text or for a strength of 1."""
    read: list[str] = []
    monkeypatch.setattr(
        "sd35.runtime.load.fill_vae_encoder", lambda *given: read.append("once") or fill_vae_encoder(*given)
    )
    pipeline = load_pipeline(demo, RuntimeConfig(device="cpu", compute_dtype="fp32"))
    pipeline.generate(replace(fox, num_inference_steps=1))
    pipeline.generate(begun(apple, strength=1.0, num_inference_steps=1))
    assert read == []
    for seed in (1, 2):
        pipeline.generate(begun(apple, seed=seed, num_inference_steps=2))
    assert read == ["once"]


def test_a_vae_without_an_encoder(
    demo_copy: Path,
    fox: GenerationRequest,
    apple: SourcePicture,
    edit_tensors: Callable[..., None],
) -> None:
    """A checkpoint that can only decode draws from text, and says why it can't begin with an image."""

    def cut(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("encoder.")]:
            del tensors[name]

    edit_tensors(demo_copy / WEIGHTS, cut)
    pipeline = load_pipeline(demo_copy, RuntimeConfig(device="cpu"))
    with pytest.raises(CheckpointError, match="has no encoder"):
        pipeline.generate(begun(apple))
    assert pipeline.generate(replace(fox, num_inference_steps=1)).finite == (True,)


@pytest.mark.parametrize("plan", EACH, ids=[f"{i}-{plan.name}" for i, plan in enumerate(EACH)])
def test_by_every_plan(plan: MemoryPlan, demo_fp8: Path, apple: SourcePicture) -> None:
    """Whatever moves, the picture is the resident's, and what came to the device for a stage is gone."""
    pipeline = load_pipeline(demo_fp8, RuntimeConfig(device="cpu", compute_dtype="fp32"))
    request = begun(apple, num_inference_steps=2, width=128, height=256)
    expected = arrays(pipeline, request)[0]
    pipeline.residence.change(plan)
    pipeline.prompts.clear()
    in_pieces = plan.strips or not plan.one_pass
    for _ in range(2):
        assert np.abs(arrays(pipeline, request)[0] - expected).max() <= (1 if in_pieces else 0)
    assert pipeline.residence.dock.held == 0


@pytest.mark.parametrize("strips", memory.DECODES)
def test_a_small_device_has_no_encoder(strips: int, demo_fp8: Path, apple: SourcePicture) -> None:
    """Where decoding is in strips the host encodes: nothing of the encoder comes to the device."""
    pipeline = load_pipeline(demo_fp8, RuntimeConfig(device="cpu"))
    residence = pipeline.residence
    residence.change(MemoryPlan("staged", strips=strips))
    pictures = begun(apple).pictures(pipeline.variant)
    with torch.inference_mode():
        pipeline.source_encoder.encode(pictures, residence)
    assert (residence.dock.peak == 0) is (strips > 0)


class Counted(TorchDispatchMode):
    """The most bytes that operations' results took at one time."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        result = operation(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                self._alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


@torch.inference_mode()
def test_encoding_takes_what_the_plan_says(tmp_path: Path) -> None:
    """SD3.5's encoder, every tensor counted: four of the formula's five finest activations."""
    encoder = ours_of(REAL, theirs_of(REAL).state_dict(), tmp_path)
    with Counted() as counted:
        encoder(torch.zeros(1, 3, 256, 256))
    finest = 128 * 256 * 256 * 4
    assert counted.peak == pytest.approx((memory.SOURCE_FACTOR - 1) * finest, rel=0.02)


@pytest.mark.gpu
@torch.inference_mode()
def test_encoding_on_a_card(tmp_path: Path) -> None:
    """In bf16 by our kernels: diffusers' latents to bf16's noise, within the plan's bytes."""
    theirs, card = theirs_of(REAL), Placement(torch.device("cuda"), torch.bfloat16, "triton")
    pixels = torch.rand(1, 3, 1024, 1024) * 2 - 1
    expected = theirs.cuda().encode(pixels.cuda()).latent_dist.mode()
    expected = (expected - REAL.shift_factor) * REAL.scaling_factor
    ours = ours_of(REAL, {name: value.cpu() for name, value in theirs.state_dict().items()}, tmp_path, card)
    theirs.cpu()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = ours(pixels.cuda())
    error = (found - expected).norm() / expected.norm()
    assert float(error) < 0.03
    finest = 128 * 1024 * 1024 * 2
    taken = torch.cuda.max_memory_allocated() - before
    assert 3 * finest < taken <= memory.SOURCE_FACTOR * finest + memory.RESERVE


@pytest.mark.gpu
def test_on_a_card(demo_fp8: Path, apple: SourcePicture) -> None:
    """Recorded steps from a later first one draw what unrecorded ones draw, after text as before it."""
    recorded = load_pipeline(demo_fp8, RuntimeConfig(device="cuda"))
    eager = load_pipeline(demo_fp8, RuntimeConfig(device="cuda", cuda_graphs=False))
    requests = [begun(apple), replace(begun(apple), image=None), begun(apple, strength=0.3, num_images=2)]
    for request in requests:
        pairs = zip(arrays(recorded, request), arrays(eager, request), strict=True)
        assert all(psnr(a, b) > 40 for a, b in pairs)


@pytest.mark.parametrize("name", ["beside", "split"])
def test_over_two_cards(name: memory.Name, demo_fp8: Path, apple: SourcePicture) -> None:
    """The image is encoded where the VAE is, its card's bytes are counted, and the picture is the same."""
    request = begun(apple, num_inference_steps=2, width=128, height=256)
    config = RuntimeConfig(device="cpu", compute_dtype="fp32")
    expected = arrays(load_pipeline(demo_fp8, config), request)[0]
    spread = load_pipeline(demo_fp8, RuntimeConfig(devices=("cpu", "cpu:0"), compute_dtype="fp32"))
    blocks = (6, 0) if name == "beside" else (2, 4)
    plan = MemoryPlan(name, division=Division(1, 1, blocks))
    spread.residence.change(plan)
    assert np.array_equal(arrays(spread, request)[0], expected)
    sizes, work = spread.residence.sizes, Work.of(request.pictures(spread.variant)[0].settings, 1)
    stages = [{one.name: one for one in stages_on(card, plan, sizes, work)} for card in (0, 1)]
    assert [card["source"].activations for card in stages] == [0, memory.source_bytes(plan, sizes, work)]
    text = replace(work, begins=False)
    assert [one.name for one in stages_on(1, plan, sizes, text)] == ["encode", "tables", "loop", "decode"]


def test_memory_counts_the_encoder_where_it_works(pipeline_fp8: Pipeline, apple: SourcePicture) -> None:
    """A stage more for an image, with the encoder's bytes; none for text, nor where the host encodes."""
    sizes = pipeline_fp8.residence.sizes
    assert sizes.vae_encoder > 0
    image = begun(apple).pictures(pipeline_fp8.variant)[0].settings
    text = replace(image, strength=1.0)
    names = {
        (kind, plan.strips > 0): [stage.name for stage in memory.stages(plan, sizes, Work.of(settings, 1))]
        for kind, settings in (("image", image), ("text", text))
        for plan in PLANS
    }
    four = ["encode", "tables", "loop", "decode"]
    assert names == {
        ("image", False): ["encode", "source", *four[1:]],
        ("image", True): four,
        ("text", False): four,
        ("text", True): four,
    }
    resident = PLANS[0]
    encode, source = memory.stages(resident, sizes, Work.of(image, 1))[:2]
    assert (source.weights, encode.weights) == (sizes.total, sizes.total)
    finest = sizes.vae_config.channels[0] * image.width * image.height * sizes.itemsize
    assert source.activations == sizes.vae_encoder + memory.SOURCE_FACTOR * finest
    pipeline_fp8.residence.dock.peak = 0
    pipeline_fp8.generate(begun(apple, num_inference_steps=2))
    assert pipeline_fp8.residence.dock.peak == pytest.approx(sizes.vae_encoder, rel=0.02)

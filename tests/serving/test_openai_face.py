"""OpenAI's face, with OpenAI's own package as the client."""

import base64
import io
from collections.abc import Iterator

import httpx2
import openai
import pytest
from PIL import Image

from .conftest import Served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """The package's client with nothing but another base_url."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        yield client


def test_pictures_as_base64(client: openai.OpenAI) -> None:
    """n pictures of the size asked for, and the facts beside them."""
    answer = client.images.generate(prompt="a fox", model="demo", n=2, size="64x32")
    assert answer.data is not None
    images = [Image.open(io.BytesIO(base64.b64decode(datum.b64_json or ""))) for datum in answer.data]
    assert [image.size for image in images] == [(64, 32), (64, 32)]
    assert (answer.size, answer.output_format) == ("64x32", "png")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2 * 4 * 2


def test_picture_by_address(client: openai.OpenAI) -> None:
    """`url` gives a link that works."""
    answer = client.images.generate(prompt="a fox", response_format="url", size="64x64")
    assert answer.data is not None
    assert answer.data[0].url is not None
    with httpx2.Client() as plain:
        content = plain.get(answer.data[0].url).content
    assert Image.open(io.BytesIO(content)).format == "PNG"


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_formats(client: openai.OpenAI, output_format: str) -> None:
    """The file is of the format that was asked for."""
    answer = client.images.generate(prompt="a fox", size="64x64", output_format=output_format)
    assert answer.data is not None
    content = base64.b64decode(answer.data[0].b64_json or "")
    assert Image.open(io.BytesIO(content)).format == output_format.upper()


def test_stream_with_partial_images(client: openai.OpenAI) -> None:
    """Unfinished pictures in order, then the finished one."""
    stream = client.images.generate(prompt="a fox", size="64x64", stream=True, partial_images=2)
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert Image.open(io.BytesIO(base64.b64decode(events[-1].b64_json))).size == (64, 64)


def test_built_in_names_and_fields_of_clients_pass(client: openai.OpenAI) -> None:
    """What clients send for OpenAI's own models draws with ours."""
    answer = client.images.generate(
        prompt="a fox", model="gpt-image-1", quality="low", background="opaque", moderation="low", user="me",
        extra_body={"seed": 3, "input_fidelity": "high", "made_up": [1]},
    )  # fmt: skip
    assert answer.size == "256x256"
    assert answer.data is not None
    assert answer.data[0].model_extra == {"seed": 3}


def test_models(client: openai.OpenAI) -> None:
    """The list, and one of it."""
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "sd35"


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ({"size": "64by64"}, "invalid_request", "size"),
        ({"size": "100x100"}, "invalid_request", None),
        ({"n": 11}, "invalid_request", "n"),
        ({"quality": "best"}, "invalid_request", "quality"),
    ],
)
def test_errors_have_openais_shape(
    client: openai.OpenAI, wrong: dict[str, object], code: str, param: str | None
) -> None:
    """The package finds message, code and parameter where it looks for them."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a fox", **wrong)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    """A name that is neither served nor built into clients is refused."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a fox", model="larger")
    assert caught.value.code == "model_not_found"


def test_failure_is_not_retried(rough: Served) -> None:
    """A job that failed for good is one job: the package is told not to try again."""
    before = _count(rough)
    with (
        openai.OpenAI(base_url=f"{rough.url}/v1", api_key="none") as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.images.generate(prompt="memory", size="64x64")
    assert caught.value.code == "out_of_memory"
    assert _count(rough) == before + 1


def test_failure_in_a_stream_is_an_error(rough: Served) -> None:
    """The package raises what the stream says."""
    with (
        openai.OpenAI(base_url=f"{rough.url}/v1", api_key="none") as client,
        pytest.raises(openai.APIError, match="no room"),
    ):
        list(client.images.generate(prompt="memory", size="64x64", stream=True))


def test_retry_joins_the_running_job(rough: Served) -> None:
    """A client that timed out and asks again gets the same job, not a second one."""
    before = _count(rough)
    with (
        openai.OpenAI(base_url=f"{rough.url}/v1", api_key="none", timeout=1.0, max_retries=1) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.images.generate(prompt="slow", size="64x64")
    assert _count(rough) == before + 1


def _count(served: Served) -> int:
    """Jobs so far."""
    return len(served.client.get("/api/v1/jobs?limit=100").json()["data"])

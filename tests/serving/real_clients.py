"""Other people's clients, with nothing but another address; `close_all` closes what a test has opened."""

from typing import Any
from urllib.parse import urlsplit

import openai
import webuiapi

_opened: list[Any] = []


def openai_client(url: str) -> openai.OpenAI:
    """OpenAI's own, which gives up at once."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    _opened.append(client)
    return client


def webui_client(url: str, steps: int, **login: str) -> webuiapi.WebUIApi:
    """The one for AUTOMATIC1111's API."""
    where = urlsplit(url)
    client = webuiapi.WebUIApi(host=where.hostname, port=where.port, steps=steps, **login)
    _opened.append(client.session)
    return client


def close_all() -> None:
    """A socket that is left open is told of in whichever test runs when it is found."""
    while _opened:
        _opened.pop().close()

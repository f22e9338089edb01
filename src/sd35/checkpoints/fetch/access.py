"""May we fetch it? What a fetch asks before its first byte, without fetching."""

from sd35.checkpoints.fetch import environment
from sd35.checkpoints.fetch.hub import Hub
from sd35.checkpoints.fetch.listing import select
from sd35.checkpoints.fetch.sources import understand
from sd35.errors import NetworkError


def ask_access(name: str) -> str:
    """The page of a checkpoint that may be fetched; else the error that a fetch would end with."""
    if environment.is_offline():
        raise NetworkError("HF_HUB_OFFLINE is set, so the hub was not asked: unset it.")
    source = understand(name, via="hub")
    with Hub(source.place, source.endpoint or environment.endpoint(), environment.token()) as hub:
        hub.pin(None)
        hub.check(select(hub.files(), source.files, hub.place))
        return hub.place

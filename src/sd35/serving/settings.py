"""How to serve, as data. Every field is a flag of `sd35 serve`, a variable SD35_SERVE_NAME of the environment
and a line of the configuration file; `sources.py` reads them.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

from sd35.config import bytes_of
from sd35.errors import RequestError
from sd35.variants import VARIANTS, Variant

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EngineName = Literal["sd35", "null"]
LogFormat = Literal["plain", "json"]


@dataclass(frozen=True)
class Model:
    """A checkpoint under the name that clients use."""

    name: str
    checkpoint: str
    variant: Variant

    @classmethod
    def parse(cls, text: str) -> "Model":
        """`large`, or `NAME=CHECKPOINT`, or `NAME@VARIANT=CHECKPOINT` where the name is not a variant's."""
        left, _, checkpoint = text.partition("=")
        name, _, variant = left.partition("@")
        if (variant or name) not in VARIANTS:
            raise RequestError(
                f"The model {text!r} doesn't say what it is: write NAME@VARIANT=CHECKPOINT with one of the "
                f"variants {', '.join(VARIANTS)}."
            )
        return cls(name, checkpoint or name, VARIANTS[variant or name])


@dataclass(frozen=True)
class Terms:
    """How much a worker may hold, and for how long; it is the first that a worker hears.

    None: no bound that the server knows. Seconds of 0: for ever. `pinned` models are never put away.
    """

    vram_bytes: int | None = None
    ram_bytes: int | None = None
    rest_s: float = 0.0
    drop_s: float = 0.0
    pinned: tuple[str, ...] = ()


def _setting(default: Any, help_: str) -> Any:
    return field(default=default, metadata={"help": help_})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything that a person may decide about a server; checked when it is made."""

    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8000, "port to listen on; 0 takes a free one")
    data_dir: str = _setting("", "folder of database, keys and pictures; default: SD35_HOME/serve")
    database: str = _setting("", "URL of a PostgreSQL database; default: SQLite in the data folder")
    bucket: str = _setting("", "s3://NAME or s3://NAME/PREFIX for the pictures; default: the data folder")
    s3_endpoint: str = _setting("", "the object store's address; default: Amazon's. Keys come from AWS_*")
    s3_region: str = _setting("us-east-1", "the bucket's region")
    s3_virtual_host: bool = _setting(False, "put the bucket's name into the host's, as OSS demands")
    policy: str = _setting("", "YAML file of the prompt filter; default: every prompt passes")
    output_check: str = _setting("", "installed check that every picture must pass; default: none")
    models: str = _setting("demo", "comma between them: NAME, NAME=CHECKPOINT or NAME@VARIANT=CHECKPOINT")
    precision: str = _setting("fp8", "of the transformer's weights: fp8 or bf16")
    devices: str = _setting(
        "auto",
        "a worker for each, such as cuda:0,cuda:1; each draws pictures of its own, none is divided among "
        "them; auto: one, on a card if there is one",
    )
    vram: str = _setting("", "for models on each device, such as 20GiB; default: what is free on a card")
    ram: str = _setting("", "for models that rest in host memory; default: half of the machine's")
    rest_s: float = _setting(
        600.0, "seconds unused until a model leaves the device for host memory; 0: never"
    )
    drop_s: float = _setting(3600.0, "seconds unused until a model leaves host memory too; 0: never")
    pinned: str = _setting("", "models that are never put away, comma between them")
    engine: EngineName = _setting("sd35", "sd35, or null: no model, for measuring the server itself")
    hosts: str = _setting("", "further Host names to answer to, comma between them")
    public_url: str = _setting("", "how clients reach this server, for links; default: what they asked")
    max_queued: int = _setting(1000, "jobs that may wait; further ones get 429 with Retry-After")
    max_queued_per_key: int = _setting(1000, "jobs of one key that may wait")
    max_images: int = _setting(10, "pictures in one job")
    max_batch: int = _setting(4, "pictures of different jobs that are drawn together; 1: each job by itself")
    skip_s: float = _setting(30.0, "seconds that a job lets others past that need no model loaded, or join")
    url_life_s: int = _setting(3600, "seconds that a picture's link works")
    silence_s: float = _setting(15.0, "seconds without a sign of life after which a worker is replaced")
    step_s: float = _setting(120.0, "seconds that one step may take before the worker is replaced")
    load_s: float = _setting(1800.0, "seconds that loading a model may take")
    drain_s: float = _setting(20.0, "seconds that a running job gets when the server is asked to stop")
    keep_pictures: str = _setting("", "an age, a size or both, such as 30d,200GB; default: for ever")
    keep_records: str = _setting("", "an age of a day or more, such as 90d; default: for ever")
    abnormal_in_a_row: int = _setting(3, "abnormal pictures that open a worker's breaker; 0: not looked at")
    webhook_private: bool = _setting(False, "let jobs name webhooks at addresses of private networks")
    alert_webhook: str = _setting("", "URL that alerts are sent to, each once and its recovery once")
    alertmanager: str = _setting("", "URL of a Prometheus Alertmanager that alerts are sent to")
    alert_error_ratio: float = _setting(0.2, "share of failed jobs in 15 minutes that is an alert")
    alert_queue_wait_s: float = _setting(300.0, "seconds that the oldest job waits before it is an alert")
    alert_restarts: int = _setting(3, "workers lost in 15 minutes that are an alert")
    alert_vram_headroom: float = _setting(0.05, "share of the card's memory below which it is an alert")
    otlp_endpoint: str = _setting("", "URL of an OpenTelemetry collector (.../v1/traces) for a trace a job")
    log_format: LogFormat = _setting("plain", "plain, or json: one object a line")
    prompt_in_pictures: bool = _setting(False, "write prompts into the recipe inside PNG files")

    def __post_init__(self) -> None:
        if self.engine not in get_args(EngineName):
            raise RequestError(f"engine can't be {self.engine!r}: choose one of sd35, null.")
        if self.log_format not in get_args(LogFormat):
            raise RequestError(f"log_format can't be {self.log_format!r}: choose one of plain, json.")
        counts = (
            "max_queued",
            "max_queued_per_key",
            "max_images",
            "max_batch",
            "url_life_s",
            "alert_restarts",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}: give 1 or more.")
        for name in ("alert_error_ratio", "alert_vram_headroom"):
            if not 0 <= getattr(self, name) <= 1:
                raise RequestError(f"{name} is {getattr(self, name)}: give a share from 0 to 1.")
        for name in ("silence_s", "step_s", "load_s"):
            if getattr(self, name) <= 0:
                raise RequestError(f"{name} is {getattr(self, name)}: give seconds above 0.")
        for name in ("skip_s", "rest_s", "drop_s"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} is {getattr(self, name)}: give 0 or more seconds.")
        if not self.device_names:
            raise RequestError("devices names no device: give at least one, such as auto.")
        if strangers := set(self.pinned_names) - set(self.catalogue()):
            raise RequestError(
                f"pinned names {', '.join(sorted(strangers))}, which models does not: add it there."
            )
        self.terms()
        if not 0 <= self.port < 65536:
            raise RequestError(f"port is {self.port}: give 0 to 65535.")

    def catalogue(self) -> dict[str, Model]:
        """The models by name; the first is the one that a request without a model gets."""
        return dict(_catalogue(self.models))

    @property
    def judges_pictures(self) -> bool:
        """Whether pictures are looked at; those of the null engine are flat on purpose."""
        return self.abnormal_in_a_row > 0 and self.engine != "null"

    @property
    def device_names(self) -> tuple[str, ...]:
        """The devices, each of which has a worker."""
        return _words(self.devices)

    @property
    def pinned_names(self) -> tuple[str, ...]:
        """The models that stay where they are once they are loaded."""
        return _words(self.pinned)

    def terms(self) -> Terms:
        """How much a worker may hold, and for how long."""
        return Terms(
            vram_bytes=bytes_of(self.vram, "vram") if self.vram else None,
            ram_bytes=bytes_of(self.ram, "ram") if self.ram else None,
            rest_s=self.rest_s,
            drop_s=self.drop_s,
            pinned=self.pinned_names,
        )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@lru_cache(maxsize=8)
def _catalogue(names: str) -> dict[str, Model]:
    """Every request asks for it."""
    models = [Model.parse(text.strip()) for text in names.split(",") if text.strip()]
    if not models:
        raise RequestError("models names no model: give at least one, such as demo.")
    return {model.name: model for model in models}

"""A server from start to stop: the data folder is taken, the socket bound, SIGTERM answered with patience.

The first SIGTERM or SIGINT begins to drain: new jobs are refused, the running one may end, the rest stays in
the database for the next start. The second one stops at once. Neither loses a job.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from sd35.errors import OutputError, UnavailableError
from sd35.serving.app import create_app
from sd35.serving.breaker import Commands
from sd35.serving.folder import read_secret
from sd35.serving.gateway import Gateway
from sd35.serving.happenings import Observers
from sd35.serving.neighbours import open_check, open_keys, open_policy, open_storage, signed_urls
from sd35.serving.retention import Retention, Terms
from sd35.serving.service import JobService
from sd35.serving.settings import ServerSettings
from sd35.serving.signing import Signer
from sd35.serving.store import Store
from sd35.serving.uploads import Uploads, folder_of
from sd35.serving.watch import watched

if sys.platform != "win32":  # `sd35 serve` is refused there; `sd35 records` opens the database with this file
    import fcntl

log = logging.getLogger(__name__)

Announce = Callable[[str], None]

LOCK = "server.lock"
DATABASE = "jobs.sqlite3"
# With settings.drain_s, app.STOP_S and two waits of the store's writer for a lock, less than 30 s.
SAVING_S, CLOSING_S = 1, 2
# A thread that has come back from the disk waits this long for the interpreter before it demands it. Python's
# 5 ms are for threads that compute; ours (writer, storage, the workers' pipes) want it for microseconds.
SWITCH_S = 0.0005


def serve(
    settings: ServerSettings,
    commands: Commands,
    announce: Announce,
    decoding: Collection[str] = (),
) -> None:
    """Serve until a signal says stop; `announce` is told where, `decoding` are models without an encoder.

    UnavailableError where folder, database or port can't be had.
    """
    sys.setswitchinterval(SWITCH_S)
    folder, terms = Path(settings.data_dir).expanduser(), Terms.of(settings)
    with data_folder(folder), bound(settings) as listening:
        keys, urls = open_keys(settings, folder), signed_urls(folder)
        policy, check = open_policy(settings), open_check(settings)
        place = open_storage(settings, folder, urls)
        store, observers = open_store(settings, folder), Observers()
        service = JobService(settings, store, place, commands, check, observers, decoding)
        uploads = Uploads(folder_of(settings))
        keeping = Retention(terms, place, store, uploads)
        watch = watched(service, observers, keeping, store, place, Signer(read_secret(folder)))
        gateway = Gateway(settings, service, policy, keys, urls, store, watch, uploads)
        _run(gateway, listening, announce)


def open_store(settings: ServerSettings, folder: Path) -> Store:
    """The database that the settings name; UnavailableError where it can't be opened."""
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        return Store(settings.database or f"sqlite:///{folder / DATABASE}")
    except (SQLAlchemyError, ArgumentError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise UnavailableError(
            f"The database of jobs can't be opened ({reason}): check --database and --data-dir."
        ) from error


@contextmanager
def data_folder(folder: Path) -> Iterator[None]:
    """The folder for one server alone; the kernel gives it back when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="ascii")
    except OSError as error:
        raise OutputError(
            f"{folder} can't be written ({error.strerror}): choose another --data-dir."
        ) from error
    with file:
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UnavailableError(
                f"{folder} is in use by the server with process id {file.read().strip()}: stop that one, or "
                "choose another --data-dir."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def bound(settings: ServerSettings) -> Iterator[socket.socket]:
    """The listening socket; UnavailableError where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where a socket says that it is TCP; with it an answer of two
    # packets takes 40 ms more.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
        except OSError as error:
            raise UnavailableError(
                f"{settings.host}:{settings.port} is not to be had ({error.strerror}): choose another --port."
            ) from error
        yield listening


def _run(gateway: Gateway, listening: socket.socket, announce: Announce) -> None:
    config = uvicorn.Config(
        create_app(gateway), log_level="warning", server_header=False, timeout_graceful_shutdown=CLOSING_S
    )
    PatientServer(config, gateway.service, announce).run(sockets=[listening])


class PatientServer(uvicorn.Server):
    """uvicorn, which lets the running job end before it stops."""

    def __init__(self, config: uvicorn.Config, service: JobService, announce: Announce) -> None:
        super().__init__(config)
        self._service, self._announce = service, announce
        self._draining: asyncio.Future[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the address once somebody listens there."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._announce(f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second stops at once."""
        if self._draining is not None or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._service.drain(), self._service.settings.drain_s + SAVING_S)
        except TimeoutError:
            log.warning("not everything could be saved in time; the next start takes it up")
        self.should_exit = True

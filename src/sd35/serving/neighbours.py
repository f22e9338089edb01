"""The server's neighbours, made from its settings: where pictures go, which prompts pass, who may call.

Each has a source of its own (a bucket's address, a policy file, the keys of the data folder); without it
there is the plainest thing that does: a folder, a policy that lets all pass, a door without a lock.
"""

from pathlib import Path
from urllib.parse import urlsplit

from sd35.errors import RequestError
from sd35.serving.folder import FolderStorage, SignedUrls, read_secret
from sd35.serving.keys import KeyStore
from sd35.serving.output_check import OutputCheck, load_check
from sd35.serving.seams import AllowAll, PromptPolicy
from sd35.serving.settings import ServerSettings
from sd35.serving.storage import Storage

FILES = "/files"  # the route that delivers what this server itself keeps
PICTURES, SPOOL = "pictures", "spool"


def signed_urls(folder: Path) -> SignedUrls:
    """Addresses of pictures that this server delivers."""
    return SignedUrls(FILES, read_secret(folder))


def open_storage(settings: ServerSettings, folder: Path, urls: SignedUrls) -> Storage:
    """The bucket that the settings name, with a spool before it; without one the data folder."""
    if not settings.bucket:
        return FolderStorage(folder / PICTURES, urls)
    from sd35.serving.objects import Bucket, ObjectStorage
    from sd35.serving.spool import SpooledStorage

    parts = urlsplit(settings.bucket)
    if parts.scheme != "s3" or not parts.netloc:
        raise RequestError(f"bucket is {settings.bucket!r}: write s3://NAME or s3://NAME/PREFIX.")
    bucket = Bucket(
        name=parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint=settings.s3_endpoint or None,
        region=settings.s3_region,
        virtual_hosted=settings.s3_virtual_host,
    )
    return SpooledStorage(ObjectStorage(bucket), folder / SPOOL, urls)


def open_policy(settings: ServerSettings) -> PromptPolicy:
    """The prompt filter of the settings' policy file; without one everything passes."""
    if not settings.policy:
        return AllowAll()
    from sd35.serving.safety import PromptPolicy as PolicyOfFile

    return PolicyOfFile.read(Path(settings.policy).expanduser())


def open_check(settings: ServerSettings) -> OutputCheck | None:
    """The check of finished pictures that the settings name; one that can't be had stops the start."""
    return load_check(settings.output_check) if settings.output_check else None


def open_keys(settings: ServerSettings, folder: Path) -> KeyStore:
    """The keys of the data folder; RequestError where others could come in and nobody has made one."""
    keys = KeyStore(folder)
    if keys.is_open and not settings.is_loopback:
        keys.close()
        raise RequestError(
            f"Without keys anyone who reaches {settings.host} could draw here: make one with `sd35 keys add "
            f"NAME --data-dir {folder}`, or listen on 127.0.0.1."
        )
    return keys

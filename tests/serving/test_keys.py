"""Keys: who gets in, what is kept of them, and what two processes see of each other."""

import base64
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sd35.errors import AccessError, MissingError, OutputError, RequestError, ScopeError
from sd35.serving.keys import FILE_NAME, KeyStore, Quotas


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    """The keys of an empty data folder."""
    store = KeyStore(tmp_path / "data")
    yield store
    store.close()


@pytest.mark.parametrize("header", [None, "", "Bearer anything", "Basic !!!", "Digest x"])
def test_without_a_key_anyone_passes(store: KeyStore, header: str | None) -> None:
    """Where no key was ever made, any header and none is let in, with every scope."""
    assert store.is_open
    caller = store.authenticate(header)
    assert caller.key_id is None
    caller.require("admin")


def test_a_key_opens_and_tells_who_comes(store: KeyStore) -> None:
    """The text that `add` returned is accepted, and brings its id, scopes and quotas."""
    key, text = store.add("press", ["read"], Quotas(images_per_day=5, weight=2.0))
    caller = store.authenticate(f"bearer  {text}")
    assert (caller.key_id, caller.scopes) == (key.key_id, {"read"})
    assert caller.quotas == Quotas(images_per_day=5, weight=2.0)


def test_basic_authorization_carries_the_key_as_password(store: KeyStore) -> None:
    """Clients that know only user and password get in too, with the key in either place."""
    key, text = store.add("old client")
    for pair in (f"anyone:{text}", f"{text}:"):
        header = "Basic " + base64.b64encode(pair.encode()).decode()
        assert store.authenticate(header).key_id == key.key_id


def test_wrong_keys_are_refused_alike(store: KeyStore) -> None:
    """No header, a wrong secret, an unknown id, a revoked key, odd bytes: one and the same sentence."""
    key, text = store.add("a")
    other, gone = store.add("b")
    store.revoke(other.key_id)
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    unknown = "sd35_" + "0" * 16 + text[len("sd35_") + 16 :]
    basic = "Basic " + base64.b64encode(b"\xff\xfe:x").decode()
    sentences = set()
    for header in (
        None,
        "",
        text,
        f"Bearer {wrong}",
        f"Bearer {unknown}",
        f"Bearer {gone}",
        "Bearer é",
        basic,
    ):
        with pytest.raises(AccessError) as refusal:
            store.authenticate(header)
        sentences.add(str(refusal.value))
    assert len(sentences) == 1
    assert store.authenticate(f"Bearer {text}").key_id == key.key_id


def test_revoking_the_last_key_keeps_the_door_shut(store: KeyStore) -> None:
    """A server that once had a key never becomes open by losing it."""
    key, _ = store.add("only")
    store.revoke(key.key_id)
    assert not store.is_open
    with pytest.raises(AccessError):
        store.authenticate(None)
    with pytest.raises(MissingError):
        store.revoke(key.key_id)


def test_secrets_are_not_kept(store: KeyStore) -> None:
    """The file holds no secret, and others may not read it."""
    _, text = store.add("a")
    content = store.path.read_bytes()
    assert text.rpartition("_")[2].encode() not in content
    assert store.path.stat().st_mode & 0o077 == 0


def test_scopes_are_held(store: KeyStore) -> None:
    """A scope that the key lacks is refused by name; admin has them all."""
    _, text = store.add("reader", ["read"])
    caller = store.authenticate(f"Bearer {text}")
    caller.require("read")
    with pytest.raises(ScopeError, match="generate"):
        caller.require("generate")
    _, text = store.add("boss", ["admin"])
    store.authenticate(f"Bearer {text}").require("generate")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 101])
def test_odd_names_are_refused(store: KeyStore, name: str) -> None:
    """A name that would spoil the listing makes no key."""
    with pytest.raises(RequestError):
        store.add(name)
    assert store.is_open


def test_odd_scopes_and_quotas_are_refused(store: KeyStore) -> None:
    """An unknown scope, no scope and a limit of zero mean nothing."""
    for scopes in (["root"], []):
        with pytest.raises(RequestError, match="scopes"):
            store.add("a", scopes)
    for limit in (0, -1, float("inf"), float("nan")):
        with pytest.raises(RequestError, match="megapixel_steps_per_day"):
            Quotas(megapixel_steps_per_day=limit)


def test_many_threads_write_at_once(store: KeyStore) -> None:
    """Sixteen threads with two connections make each of their keys, and all of them work."""
    second = KeyStore(store.path.parent)
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda n: (store, second)[n % 2].add(f"key {n}")[1], range(64)))
    second.close()
    assert len(store.keys()) == 64
    assert len({store.authenticate(f"Bearer {text}").key_id for text in texts}) == 64


def test_another_process_is_seen_at_once(store: KeyStore) -> None:
    """`sd35 keys` beside a running server takes effect at the server's next request."""
    folder = str(store.path.parent)
    assert store.authenticate(None).key_id is None
    command = [sys.executable, "-m", "sd35", "keys", "add", "cli", "--data-dir", folder]
    text = subprocess.check_output(command, text=True).splitlines()[0]
    caller = store.authenticate(f"Bearer {text}")
    with pytest.raises(AccessError):
        store.authenticate(None)
    command = [sys.executable, "-m", "sd35", "keys", "revoke", str(caller.key_id), "--data-dir", folder]
    subprocess.check_call(command, stdout=subprocess.DEVNULL)
    with pytest.raises(AccessError):
        store.authenticate(f"Bearer {text}")


def test_a_locked_file_is_one_sentence_and_passes(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process holds the file, writing ends in OutputError; afterwards it works again."""
    monkeypatch.setattr("sd35.serving.keys._LOCK_SECONDS", 0.01)
    impatient = KeyStore(store.path.parent)
    holder = sqlite3.connect(store.path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutputError, match="locked"):
        impatient.add("late")
    holder.rollback()
    holder.close()
    assert impatient.add("late")[0].name == "late"
    impatient.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Keys are never made beside a damaged file: nobody gets in because of it."""
    (tmp_path / FILE_NAME).write_bytes(b"this is no database, and long enough to be looked at" * 20)
    with pytest.raises(OutputError, match="not a database"):
        KeyStore(tmp_path)

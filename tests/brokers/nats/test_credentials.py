"""Logins by key: the seed of an nkey, and a JWT that an operator's account has signed."""

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nats")
pytest.importorskip("nkeys")

import nkeys  # type: ignore[import-untyped]

from things_kit import ConfigError, Message, connect
from things_kit.testing.servers import ServerUnavailable
from things_kit.testing.servers.fixtures import unavailable
from things_kit.testing.servers.nats import NATSServer

UNLIMITED = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
STORAGE = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


class Identity:
    """A pair of keys of an operator, account or user."""

    def __init__(self, kind: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), kind)).decode()
        self.pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.name = self.pair.public_key.decode()

    def vouch(self, other: "Identity", claims: dict[str, Any]) -> str:
        """A JWT about another, as NATS has them."""
        body = {
            "iss": self.name,
            "sub": other.name,
            "iat": int(time.time()),
            "nats": {"version": 2, **claims},
        }
        digest = hashlib.sha256(json.dumps(body).encode()).digest()
        body["jti"] = base64.b32encode(digest).decode().rstrip("=")
        parts = (json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}), json.dumps(body))
        text = ".".join(_text(part.encode()) for part in parts)
        return f"{text}.{_text(self.pair.sign(text.encode()))}"


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def running(settings: str) -> Iterator[NATSServer]:
    server = NATSServer(settings=settings)
    try:
        server.start()
        yield server
    except ServerUnavailable as reason:
        unavailable(reason)
    finally:
        server.terminate()


@pytest.fixture(scope="module")
def user() -> Identity:
    return Identity(nkeys.PREFIX_BYTE_USER)


@pytest.fixture(scope="module")
def by_key(user: Identity) -> Iterator[NATSServer]:
    yield from running(f"authorization {{ users: [ {{ nkey: {user.name} }} ] }}")


@pytest.fixture(scope="module")
def account() -> Identity:
    return Identity(nkeys.PREFIX_BYTE_ACCOUNT)


@pytest.fixture(scope="module")
def by_jwt(account: Identity) -> Iterator[NATSServer]:
    operator, system = Identity(nkeys.PREFIX_BYTE_OPERATOR), Identity(nkeys.PREFIX_BYTE_ACCOUNT)
    limits = {"limits": {**UNLIMITED, "wildcards": True}}
    shop = {"limits": {**limits["limits"], **STORAGE}}
    known = "\n".join(
        f"{each.name}: {operator.vouch(each, {'type': 'account', **claims})}"
        for each, claims in ((system, limits), (account, shop))
    )
    yield from running(
        f"operator: {operator.vouch(operator, {'type': 'operator', 'system_account': system.name})}\n"
        f"system_account: {system.name}\nresolver: MEMORY\nresolver_preload: {{\n{known}\n}}"
    )


def credentials(folder: Path, account: Identity, user: Identity) -> Path:
    """A file as `nsc generate creds` writes it."""
    jwt = account.vouch(user, {"type": "user", "subs": -1, "data": -1, "payload": -1})
    path = folder / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    return path


async def test_the_seed_of_a_key_is_a_login(by_key: NATSServer, user: Identity, tmp_path: Path) -> None:
    seed = tmp_path / "user.nk"
    seed.write_text(f"{user.seed}\n")
    async with connect(f"{by_key.url}?credentials={seed}") as broker:
        await broker.producer().publish(Message("orders", b"x"))
        assert await broker.lag("orders", "g") == 1


async def test_a_jwt_and_its_seed_are_a_login(
    by_jwt: NATSServer, account: Identity, user: Identity, tmp_path: Path
) -> None:
    async with connect(f"{by_jwt.url}?credentials={credentials(tmp_path, account, user)}") as broker:
        await broker.producer().publish(Message("orders", b"x"))
        assert await broker.lag("orders", "g") == 1


async def test_the_key_of_a_stranger_is_refused_and_not_shown(
    by_key: NATSServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    stranger, seed = Identity(nkeys.PREFIX_BYTE_USER), tmp_path / "user.nk"
    seed.write_text(stranger.seed)
    with pytest.raises(ConfigError, match="does not accept this login") as raised:
        async with connect(f"{by_key.url}?credentials={seed}"):
            pass
    assert stranger.seed not in f"{raised.value!r} {raised.value.__cause__!r} {caplog.text}"


@pytest.mark.parametrize("text", ["", "SUrubbish", "-----BEGIN NATS USER JWT-----\nx\n", "rubbish"])
async def test_a_file_that_is_no_login_is_said_so(by_key: NATSServer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "user.creds"
    path.write_text(text)
    with pytest.raises(ConfigError, match="credentials"):
        async with connect(f"{by_key.url}?credentials={path}"):
            pass

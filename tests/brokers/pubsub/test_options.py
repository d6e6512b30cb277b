"""What a `pubsub://` URL asks for."""

from typing import Any

import pytest

pytest.importorskip("google.pubsub_v1")


from tests.brokers.pubsub.given import settings
from things_kit import ConfigError, connect


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("lease=0", "lease must be from 10 to 600"),
        ("lease=601", "lease must be from 10 to 600"),
        ("lease=5", "no less than 10 seconds"),
        ("retain=1", "retain must be 0, or from 600 seconds"),
        ("expire=599", "expire must be from 600 seconds"),
        ("ordering=partition", "ordering"),
        ("max_message_bytes=10000001", "max_message_bytes"),
        ("endpoint=a:1&region=europe-west1", "cannot both be given"),
        ("endpont=a:1", "unknown option 'endpont'"),
    ],
)
def test_a_wrong_option_is_named(query: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(query)


@pytest.mark.parametrize(
    "url", ["pubsub://", "pubsub://a,b", "pubsub://a/b", "pubsub://a:1", "pubsub://u:p@a"]
)
def test_a_url_is_a_project(url: str) -> None:
    with pytest.raises(ConfigError, match="expected pubsub://PROJECT"):
        connect(url)


def test_an_emulator_may_have_shorter_leases_than_the_service() -> None:
    assert settings("endpoint=127.0.0.1:1&lease=1").options.lease == 1


def test_who_is_called_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    assert (settings().host, settings().plain) == ("pubsub.googleapis.com:443", False)
    assert settings("region=europe-west1").host == "europe-west1-pubsub.googleapis.com:443"
    assert (settings("endpoint=a:1").host, settings("endpoint=a:1").plain) == ("a:1", True)
    assert not settings("endpoint=a:1&ca=ca.pem").plain
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:8085")
    assert (settings().host, settings().plain) == ("127.0.0.1:8085", True)
    assert settings("region=europe-west1").host == "europe-west1-pubsub.googleapis.com:443"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        ("no JSON", "not the JSON key"),
        ('{"private_key": "hunter2"}', "not the JSON key"),
    ],
)
async def test_credentials_that_are_none_are_refused_without_showing_them(
    tmp_path: Any, content: str | None, said: str
) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    broker = connect(f"pubsub://my-project?credentials={path}")
    with pytest.raises(ConfigError, match=said) as raised:
        await broker.open()
    await broker.close()
    assert "hunter2" not in f"{raised.value} {raised.value.__cause__!r} {raised.value.__context__!r}"


async def test_no_credentials_at_all_are_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    broker = connect("pubsub://my-project")
    with pytest.raises(ConfigError, match="no Google credentials were found"):
        await broker.open()
    await broker.close()

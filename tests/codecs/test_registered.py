"""Codecs of one's own, by registration and by entry point."""

from importlib.metadata import EntryPoint
from typing import Any

import msgspec
import pytest

from things_kit import ConfigError, DecodeError, Message, Topic
from things_kit.codecs import JSON, Codec, register, registered
from things_kit.codecs.payload import payload_decoder


class Order(msgspec.Struct):
    id: str


class Reversed:
    """JSON, backwards."""

    content_type = "application/x-reversed; v=1"

    def encoder(self, topic: Topic[Any]) -> Any:
        return lambda payload: (msgspec.json.encode(payload)[::-1], {"direction": "backwards"})

    def decoder(self, kind: Any, topic: Topic[Any] | None) -> Any:
        return lambda message: msgspec.json.decode(message.value[::-1], type=kind)

    async def prepare(self, topic: Topic[Any]) -> None:
        pass


SENT = Message("t", b'}"a":"di"{', headers={"content-type": "Application/X-Reversed"})


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registered, "_known", {})
    monkeypatch.setattr(registered, "_installed", None)
    monkeypatch.setattr(registered, "entry_points", lambda group: [])


def test_a_codec_of_a_topic_writes_its_bytes_and_headers() -> None:
    codec: Codec = Reversed()
    topic = Topic("t", Order, codec=codec)
    message = topic.message(Order("a"))
    assert message.value == SENT.value
    assert message.headers == {"content-type": "application/x-reversed; v=1", "direction": "backwards"}
    assert topic.messages([Order("a")]) == [message]


def test_a_registered_codec_decodes_in_every_handler() -> None:
    decode = payload_decoder(Order)
    with pytest.raises(DecodeError, match="unknown content type 'Application/X-Reversed'; known are "):
        decode(SENT)
    register(Reversed())
    assert decode(SENT) == Order("a")
    assert payload_decoder(Order)(SENT) == Order("a")


def test_a_codec_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("reversed", f"{__name__}:Reversed", registered.GROUP)
    monkeypatch.setattr(
        registered, "entry_points", lambda group: [entry] if group == "things_kit.codecs" else []
    )
    assert payload_decoder(Order)(SENT) == Order("a")


def test_an_entry_point_that_cannot_be_loaded_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("broken", "no.such.module:Codec", registered.GROUP)
    monkeypatch.setattr(registered, "entry_points", lambda group: [entry])
    with pytest.raises(DecodeError, match=r"the codec 'broken' of no\.such\.module:Codec cannot be loaded"):
        payload_decoder(Order)(SENT)


@pytest.mark.parametrize("codec", [Reversed, object(), "json", None])
def test_what_is_no_codec_is_refused(codec: Any) -> None:
    with pytest.raises(ConfigError, match="a codec has content_type, encoder, decoder and prepare"):
        register(codec)


def test_ours_can_be_replaced() -> None:
    class Strict(JSON, frozen=True):
        pass

    register(Strict())
    assert isinstance(registered.codec_for("application/json"), Strict)

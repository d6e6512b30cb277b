"""What contracts cost, as ratios within one run: generous bounds, for machines that do other things as well."""

import io
import time
from collections.abc import Callable

import fastavro
import msgspec

from things_kit import Topic
from things_kit.codecs import Avro
from things_kit.codecs.avro_schema import avro_schema
from things_kit.codecs.contract import contract_decoder


class Order(msgspec.Struct):
    id: str
    total: int
    note: str


ORDERS = [Order(f"o-{n}", n, "some text that is not very long") for n in range(2000)]


def ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """How many times as long ours takes, at best, of several tries in turn."""
    times: dict[Callable[[], object], float] = {}
    for _ in range(7):
        for each in (ours, theirs):
            began = time.perf_counter()
            each()
            times[each] = min(times.get(each, 1e9), time.perf_counter() - began)
    return times[ours] / times[theirs]


def test_avro_costs_little_more_than_fastavro_itself() -> None:
    topic = Topic("orders", Order, codec=Avro())
    schema = fastavro.parse_schema(avro_schema(Order))
    messages, plain = topic.messages(ORDERS), [msgspec.to_builtins(order) for order in ORDERS]
    decode = contract_decoder(topic, Order, "h")

    def write() -> None:
        for each in plain:
            stream = io.BytesIO()
            fastavro.schemaless_writer(stream, schema, each)
            stream.getvalue()

    def read() -> None:
        for message in messages:
            fastavro.schemaless_reader(io.BytesIO(message.value), schema, None)

    assert ratio(lambda: topic.messages(ORDERS), write) < 2
    assert ratio(lambda: [decode(message) for message in messages], read) < 2


def test_decoding_json_by_a_contract_costs_little_more_than_msgspec_itself() -> None:
    topic = Topic("orders", Order)
    messages = topic.messages(ORDERS)
    decode, plain = contract_decoder(topic, Order, "h"), msgspec.json.Decoder(Order).decode
    assert ratio(lambda: [decode(m) for m in messages], lambda: [plain(m.value) for m in messages]) < 4

"""What contracts cost beside the libraries that they are built on, and beside messages made by hand."""

import io
import time
from collections.abc import Callable

import fastavro
import msgspec

from benchmarks.result import Result
from benchmarks.rounds import ratio
from things_kit import Message, Topic
from things_kit.codecs import Avro
from things_kit.codecs.avro_schema import avro_schema
from things_kit.codecs.contract import contract_decoder

COUNT = 20_000
ROUNDS = 15


class Order(msgspec.Struct):
    """A payload of about 60 bytes."""

    id: str
    total: int
    note: str


ORDERS = [Order(f"o-{number}", number, "some text that is not very long") for number in range(COUNT)]


def paired(what: str, ours: Callable[[], object], theirs: Callable[[], object], bound: float) -> Result:
    """How many times the rate of theirs ours has: the median of rounds side by side."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for work, found in zip((ours, theirs), rates, strict=True):
            begun = time.perf_counter()
            work()
            found.append(COUNT / (time.perf_counter() - begun))
    times = ratio(*rates)
    note = f"{sorted(rates[0])[ROUNDS // 2]:,.0f} and {sorted(rates[1])[ROUNDS // 2]:,.0f} a second"
    return Result(f"contracts: {what}", f"{times:.2f}", f"at least {bound:g}", times >= bound, note)


async def run() -> list[Result]:
    """JSON and Avro, both ways."""
    json, avro = Topic("orders", Order), Topic("orders", Order, codec=Avro())
    schema = fastavro.parse_schema(avro_schema(Order))
    plain = [msgspec.to_builtins(order) for order in ORDERS]
    as_json, as_avro = json.messages(ORDERS), avro.messages(ORDERS)
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Order).decode
    of_json, of_avro = contract_decoder(json, Order, "h"), contract_decoder(avro, Order, "h")
    headers, avro_headers = {"content-type": "application/json"}, {"content-type": "application/avro"}

    def by_hand() -> list[Message]:
        return [Message("orders", encode(order), None, {**headers}) for order in ORDERS]

    # What they make is kept on both sides, as collecting it is a part of either figure
    def write_avro() -> list[Message]:
        made: list[Message] = []
        for each in plain:
            stream = io.BytesIO()
            fastavro.schemaless_writer(stream, schema, each)
            made.append(Message("orders", stream.getvalue(), None, {**avro_headers}))
        return made

    def read_avro() -> list[object]:
        return [fastavro.schemaless_reader(io.BytesIO(message.value), schema, None) for message in as_avro]

    return [
        paired("messages of JSON, beside those made by hand", lambda: json.messages(ORDERS), by_hand, 0.85),
        paired(
            "JSON decoded, beside msgspec's decoder alone",
            lambda: [of_json(message) for message in as_json],
            lambda: [decode(message.value) for message in as_json],
            0.5,
        ),
        paired(
            "messages of Avro, beside those made by hand with fastavro's writer",
            lambda: avro.messages(ORDERS),
            write_avro,
            0.8,
        ),
        paired(
            "Avro decoded, beside fastavro's reader alone",
            lambda: [of_avro(message) for message in as_avro],
            read_avro,
            0.8,
        ),
    ]

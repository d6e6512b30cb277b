"""What contracts cost beside the libraries that they are built on, and beside messages made by hand.

Nothing here waits for anybody else, so that what counts is the processor's time, whatever else it does.
"""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from typing import Any

import fastavro
import msgspec

from benchmarks.result import Result
from benchmarks.rounds import ratio
from things_kit import Broker, Message, Topic, connect
from things_kit.codecs import Avro
from things_kit.codecs.avro_schema import avro_schema
from things_kit.codecs.contract import contract_decoder

COUNT = 20_000
ROUNDS = 41


class Order(msgspec.Struct):
    """A payload of about 60 bytes."""

    id: str
    total: int
    note: str


ORDERS = [Order(f"o-{number}", number, "some text that is not very long") for number in range(COUNT)]


async def through_memory(
    what: str,
    ours: Callable[[Broker], Awaitable[float]],
    theirs: Callable[[Broker], Awaitable[float]],
    bound: float,
) -> Result:
    """The same of what goes through the memory broker, a new one each time; each tells the seconds of the processor that it took."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for work, found in zip((ours, theirs), rates, strict=True):
            async with connect("memory://") as broker:
                await broker.declare("orders", groups=["bench"])
                found.append(COUNT / await work(broker))
    return compared(what, rates, bound)


async def published(broker: Broker, make: Callable[[], list[Message]]) -> float:
    """Seconds of the processor in which they are made and published."""
    begun = time.process_time()
    await broker.producer().publish_batch(make())
    return time.process_time() - begun


async def consumed(broker: Broker, sent: list[Message], topic: Any, handle: Any) -> float:
    """Seconds of the processor in which they are handled, until the last is acknowledged."""
    await broker.producer().publish_batch(sent)
    begun = time.process_time()
    async with broker.consumer(topic, group="bench", handler=handle, concurrency=8):
        while await broker.lag("orders", "bench"):  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.001)
        return time.process_time() - begun


def paired(what: str, ours: Callable[[], object], theirs: Callable[[], object], bound: float) -> Result:
    """How many times the rate of theirs ours has: the median of rounds side by side."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for work, found in zip((ours, theirs), rates, strict=True):
            begun = time.process_time()
            work()
            found.append(COUNT / (time.process_time() - begun))
    return compared(what, rates, bound)


def compared(what: str, rates: tuple[list[float], list[float]], bound: float) -> Result:
    """A row of rates that were measured side by side."""
    times = ratio(*rates)
    note = f"{sorted(rates[0])[ROUNDS // 2]:,.0f} and {sorted(rates[1])[ROUNDS // 2]:,.0f} a second of the processor"
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

    alone = msgspec.json.Decoder(Order).decode

    async def typed(order: Order) -> None:
        pass

    async def untyped(message: Message) -> None:
        alone(message.value)

    return [
        await through_memory(
            "messages of JSON made and published, beside ready-made ones",
            lambda broker: published(broker, lambda: json.messages(ORDERS)),
            lambda broker: published(broker, lambda: as_json),
            0.85,
        ),
        await through_memory(
            "JSON consumed through a Topic, beside a handler that calls msgspec's decoder",
            lambda broker: consumed(broker, as_json, json, typed),
            lambda broker: consumed(broker, as_json, "orders", untyped),
            0.9,
        ),
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

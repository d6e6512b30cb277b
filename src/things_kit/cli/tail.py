"""`things-kit tail`: watch a topic, and take nothing from anybody."""

from contextlib import aclosing
from typing import Annotated, Final

import typer
from rich.text import Text

from things_kit.cli.decoded import Decoding, RegistryUrl
from things_kit.cli.looking import looking
from things_kit.cli.options import JsonFlag, Topic, Url
from things_kit.cli.printing import safe, terminal
from things_kit.cli.running import run
from things_kit.cli.since import Since, check_retained, messages_since
from things_kit.cli.view import View, printing
from things_kit.engine.broker import Broker
from things_kit.engine.url import BrokerURL

DRAIN: Final = 2.0


def tail(
    url: Url,
    topic: Topic,
    *,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="earliest|TIME|N",
            help="Begin with what is there: all of it, what was published since a time (2026-01-31T12:00, UTC), or the last N.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after so many messages.")] = None,
    registry: RegistryUrl = None,
    json: JsonFlag = False,
) -> None:
    """Show the messages of TOPIC as they are published, until stopped.

    It takes nothing from any group, and leaves none of its own behind.
    """

    async def show() -> None:
        decoding = None if registry is None else Decoding(registry)
        view = View(printing(json=json), limit, decoding)
        if since is None:
            await _tail(url, topic, view)
        else:
            await _tail_from(url, topic, Since.parse(since), view)

    run(show, interrupted=0)


async def _tail_from(url: str, topic: str, since: Since, view: View) -> None:
    async with looking(url, topic) as broker:
        check_retained(broker)
        _tell_listening(url, topic)
        await view.during(_read(broker, topic, since, view))


async def _read(broker: Broker, topic: str, since: Since, view: View) -> None:
    async with aclosing(messages_since(broker, topic, since)) as batches:
        async for messages in batches:
            for message in messages:
                await view.handle(message)


def _tell_listening(url: str, topic: str) -> None:
    notice = f"listening to {safe(topic)} at {safe(BrokerURL.parse(url).display)}"
    terminal(stderr=True).print(Text(notice, "dim"), soft_wrap=True)


async def _tail(url: str, topic: str, view: View) -> None:
    async with looking(url, topic) as broker:
        consumer = broker.consumer(
            topic,
            group=None,
            handler=view.handle,
            ordering="none",  # as it comes, one after another: nothing is asked for that a broker might not keep
            dead_letter=None,
            drain_timeout=DRAIN,
        )
        async with consumer:
            _tell_listening(url, topic)
            await view.during(consumer.wait())

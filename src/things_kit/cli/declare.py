"""`things-kit declare`: create a topic and its groups."""

from typing import Annotated

import typer

from things_kit.brokers.connect import connect
from things_kit.cli.options import JsonFlag, Topic, Url
from things_kit.cli.printing import as_json, safe, say
from things_kit.cli.running import run


def declare(
    url: Url,
    topic: Topic,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP", help="A group that is to get every message; repeatable."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Create TOPIC and its groups where they are missing; what is there stays as it is."""
    run(lambda: _declare(url, topic, list(dict.fromkeys(group or [])), json=json))


async def _declare(url: str, topic: str, groups: list[str], *, json: bool) -> None:
    async with connect(url) as broker:
        await broker.declare(topic, groups=groups)
    if json:
        say(as_json({"topic": topic, "groups": groups}))
    else:
        say(f"declared {safe(topic)}" + (f" with {', '.join(map(safe, groups))}" if groups else ""))

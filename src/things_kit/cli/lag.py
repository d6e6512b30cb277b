"""`things-kit lag`: how far behind a group is."""

from typing import Annotated

import typer

from things_kit.brokers.connect import connect
from things_kit.cli.options import JsonFlag, Topic, Url
from things_kit.cli.printing import as_json, say
from things_kit.cli.running import run


def lag(
    url: Url,
    topic: Topic,
    group: Annotated[str, typer.Argument(metavar="GROUP", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Print how many messages of TOPIC the GROUP has not acknowledged; `unknown` where the broker cannot say."""
    run(lambda: _lag(url, topic, group, json=json))


async def _lag(url: str, topic: str, group: str, *, json: bool) -> None:
    async with connect(url) as broker:
        behind = await broker.lag(topic, group=group)
    if json:
        say(as_json({"topic": topic, "group": group, "lag": behind}))
    else:
        say("unknown" if behind is None else str(behind))

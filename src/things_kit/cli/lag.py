"""`things-kit lag`: how far behind a group is."""

from typing import Annotated

import typer

from things_kit.cli.looking import looking
from things_kit.cli.options import JsonFlag, Topic, Url
from things_kit.cli.printing import as_json, say
from things_kit.cli.running import run
from things_kit.engine.looking import check_group


def lag(
    url: Url,
    topic: Topic,
    group: Annotated[str, typer.Argument(metavar="GROUP", help="The group's name", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Print how many messages of TOPIC the GROUP has not acknowledged; `unknown` where the broker cannot say."""
    run(lambda: _lag(url, topic, group, json=json))


async def _lag(url: str, topic: str, group: str, *, json: bool) -> None:
    async with looking(url, topic) as broker:
        await check_group(broker, topic, group)
        behind = await broker.lag(topic, group=group)
    if json:
        say(as_json({"topic": topic, "group": group, "lag": behind}))
    else:
        say("unknown" if behind is None else str(behind))

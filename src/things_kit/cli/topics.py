"""`things-kit topics`: what there is at a broker, and what waits."""

from collections.abc import Sequence

import msgspec
from rich.text import Text

from things_kit.cli.dlq_pages import columns
from things_kit.cli.looking import looking
from things_kit.cli.options import JsonFlag, Url
from things_kit.cli.printing import as_json, safe, say, terminal
from things_kit.cli.running import run
from things_kit.engine.looking import GroupRow, overview
from things_kit.messaging.names import DEAD_LETTER_GROUP


def topics(url: Url, json: JsonFlag = False) -> None:
    """List all topics with their groups, how many messages each has not acknowledged, and the dead letters that wait."""
    run(lambda: _topics(url, json=json))


async def _topics(url: str, *, json: bool) -> None:
    async with looking(url) as broker:
        rows = await overview(broker)
    if json:
        for each in rows:
            say(as_json(msgspec.structs.asdict(each)))
    elif rows:
        terminal().print(_table(rows), soft_wrap=True)
    else:
        say("no topics")


def _table(rows: Sequence[GroupRow]) -> Text:
    cells = [("topic", "group", "lag", "")]
    for number, each in enumerate(rows):
        again = number > 0 and rows[number - 1].topic == each.topic
        lag = "" if each.group is None else "unknown" if each.lag is None else f"{each.lag:,}"
        waits = "dead letters wait" if each.group == DEAD_LETTER_GROUP and each.lag else ""
        cells.append(("" if again else safe(each.topic), safe(each.group or "no group"), lag, waits))
    return columns(cells, [None] * len(cells))

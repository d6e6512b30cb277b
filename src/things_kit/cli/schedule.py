"""`things-kit schedule`: what is to come later, and what of it shall not."""

from typing import Annotated

import typer

from things_kit.cli.commands import Command, Group
from things_kit.cli.looking import looking
from things_kit.cli.options import JsonFlag, Topic, Url
from things_kit.cli.printing import as_json, safe, say
from things_kit.cli.rows import rfc3339, row
from things_kit.cli.running import CommandFailed, run
from things_kit.messaging.schedule import Schedule

app = typer.Typer(cls=Group, no_args_is_help=True, help="What is to come later: list and cancel it.")


@app.command("list", cls=Command)
def listed(
    url: Url,
    topic: Topic,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The most to list.")] = 100,
    json: JsonFlag = False,
) -> None:
    """Print what is to come in TOPIC, soonest first."""
    run(lambda: _list(url, topic, limit, json=json))


@app.command(cls=Command)
def cancel(
    url: Url,
    topic: Topic,
    schedule_id: Annotated[
        str, typer.Argument(metavar="ID", help="Its name, as `schedule list` shows it", show_default=False)
    ],
) -> None:
    """Have the scheduled message ID of TOPIC not come; exit code 1 if it is too late, or unknown."""
    run(lambda: _cancel(url, topic, schedule_id))


async def _list(url: str, topic: str, limit: int, *, json: bool) -> None:
    async with looking(url, topic) as broker:
        found = await broker.schedules(topic, limit)
    if not found and not json:
        say(f"nothing is to come in {safe(topic)}")
    for schedule in found:
        say(_as_json(schedule) if json else _as_line(schedule))


async def _cancel(url: str, topic: str, schedule_id: str) -> None:
    async with looking(url, topic) as broker:
        cancelled = await broker.cancel(topic, schedule_id)
    if not cancelled:
        raise CommandFailed(
            f"{safe(schedule_id)} is too late to cancel, or {safe(topic)} has no such schedule"
        )
    say(f"cancelled {safe(schedule_id)}")


def _as_json(schedule: Schedule) -> str:
    return as_json(
        {
            "schedule_id": schedule.schedule_id,
            "due": rfc3339(schedule.due),
            "message": row(schedule.message),
        }
    )


def _as_line(schedule: Schedule) -> str:
    name = "-" if schedule.schedule_id is None else safe(schedule.schedule_id)
    return f"{rfc3339(schedule.due)}  {name}  {safe(schedule.message.id or '-')}"

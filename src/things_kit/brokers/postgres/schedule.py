"""Messages that wait for their time, in a table of their own, until a look at their topic finds them due."""

from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from things_kit.brokers.postgres.schema import filled
from things_kit.brokers.postgres.wire import COLUMNS, SCHEDULE_ANONYMOUS, SCHEDULE_MANY, Row, message_of, pack
from things_kit.engine.driver import Scheduled

if TYPE_CHECKING:
    from things_kit.brokers.postgres.driver import PostgresDriver

CANCEL: Final = (
    "DELETE FROM {s}.scheduled WHERE topic = $1 AND schedule_id = $2 AND due > clock_timestamp() RETURNING 1"
)

UPCOMING: Final = f"""SELECT {", ".join(COLUMNS)}, due, schedule_id FROM {{s}}.scheduled
    WHERE topic = $1 AND due > clock_timestamp() ORDER BY due, seq LIMIT $2"""  # noqa: S608 - names of columns


async def store(driver: "PostgresDriver", connection: Any, entries: Sequence[Scheduled]) -> set[str]:
    """Keep them, the later of two of one name alone; returns the topics that are there."""
    last: dict[tuple[str, str | None], int] = {
        (entry.message.topic, entry.schedule_id): place
        for place, entry in enumerate(entries)
        if entry.schedule_id is not None
    }
    rows = [
        (*pack(entry.message), entry.due.astimezone(UTC), entry.schedule_id)
        for place, entry in enumerate(entries)
        if last.get((entry.message.topic, entry.schedule_id), place) == place
    ]
    topics = list({entry.message.topic for entry in entries})
    statement = filled(SCHEDULE_MANY if last else SCHEDULE_ANONYMOUS, driver.options.schema)
    found = await connection.fetch(statement, topics, *map(list, zip(*rows, strict=True)))
    return {row[0] for row in found}


async def cancel(driver: "PostgresDriver", topic: str, schedule_id: str) -> bool:
    """Whether it was there and not due."""
    statement = filled(CANCEL, driver.options.schema)
    return bool(await driver.connections.rows("cancelling", statement, topic, schedule_id))


async def upcoming(driver: "PostgresDriver", topic: str, limit: int) -> list[Scheduled]:
    """What waits, soonest first."""
    statement = filled(UPCOMING, driver.options.schema)
    rows = await driver.connections.rows("listing what is scheduled", statement, topic, limit)
    return [Scheduled(message_of(Row(*row[: len(COLUMNS)])), row["due"], row["schedule_id"]) for row in rows]

"""How dead letters are shown to people."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from things_kit.cli.dead_letters import DeadLetter, Kind
from things_kit.cli.decoded import AS_IT_IS, Decoded
from things_kit.cli.printing import safe
from things_kit.cli.readable import not_decoded, readable, value_page
from things_kit.cli.rows import rfc3339
from things_kit.messaging.message import Message


def columns(rows: Sequence[Sequence[str]], below: Sequence[Text | None]) -> Text:
    """Rows of cells, the first as a head, with what stands on a line of its own below each."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    table = Text()
    for number, (cells, more) in enumerate(zip(rows, below, strict=True)):
        padded = (
            f"{cell}{' ' * (width - cell_len(cell))}" for cell, width in zip(cells, widths, strict=True)
        )
        table.append("  ".join(padded).rstrip(), "cyan" if number else "bold").append("\n")
        if more is not None:
            table.append("  ").append_text(more).append("\n")
    table.rstrip()
    return table


def kinds_table(kinds: Sequence[Kind]) -> Text:
    """A line for each error, with its text below."""
    rows = [("count", "first", "last", "example")]
    rows += [
        (str(each.count), _when(each.first), _when(each.last), safe(each.example or "")) for each in kinds
    ]
    return columns(rows, [None, *(_error(each.error_type, each.error) for each in kinds)])


def _error(kind: str | None, text: str | None) -> Text:
    name = (kind or "").rpartition(".")[2]
    return Text().append(safe(name), "red").append(f"  {safe(text or '')}")


def _when(timestamp: str | None) -> str:
    return "" if timestamp is None else safe(timestamp[:19].replace("T", " "))


def letters_table(letters: Sequence[DeadLetter]) -> Text:
    """A line each, and what was wrong on a line below: a column for that would be too narrow to be read."""
    rows = [("id", "from", "group", "attempts", "when", "key"), *map(_cells, letters)]
    return columns(rows, [None, *(_error(each.error_type, each.error) for each in letters)])


def _cells(letter: DeadLetter) -> tuple[str, ...]:
    key = letter.key if isinstance(letter.key, str | None) else "<binary>"
    cells = (letter.id, letter.original_topic, letter.group, letter.attempts, _when(letter.timestamp), key)
    return tuple("" if cell is None else safe(str(cell)) for cell in cells)


def page(message: Message, decoded: Decoded = AS_IT_IS) -> Text:
    """Everything of one message."""
    key = None if message.key is None else readable(message.key)
    fields = {
        "id": message.id,
        "topic": message.topic,
        "key": key,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": None if message.timestamp is None else rfc3339(message.timestamp),
    }
    text = Text()
    for name, value in fields.items():
        if value is not None:
            text.append(f"{name:<12}", "bold").append(f"{safe(str(value))}\n")
    if message.headers:
        text.append("headers\n", "bold")
    width = max(map(len, message.headers), default=0)
    for name, value in message.headers.items():
        text.append(f"  {safe(name):<{width}}  ", "green").append(f"{safe(value)}\n")
    text.append("value\n", "bold")
    if decoded.problem is not None:
        text.append(f"{not_decoded(decoded.problem)}\n", "yellow")
    return text.append_text(value_page(message.value if decoded.json is None else decoded.json))

"""The page of an AsyncAPI document, and the examples in it."""

import json
import re
from typing import Annotated, Any, Literal

import msgspec
import pytest

from tests.codecs.given import decode
from tests.codecs.test_types_in_types import CASES
from things_kit import App, Message, Topic
from things_kit.contracts.asyncapi import asyncapi
from things_kit.contracts.examples import example
from things_kit.contracts.page import page
from things_kit.modules import config, memory

Meta = msgspec.Meta


class Address(msgspec.Struct):
    """Where somebody lives."""

    street: str
    country: Literal["DE", "FR"] = "DE"


class Person(msgspec.Struct):
    """Somebody.

    With a home, <b>perhaps</b>.
    """

    name: Annotated[str, Meta(min_length=2, max_length=40, pattern="^[A-Z]")]
    children: "list[Person]"
    home: Address | None = None
    moved: dict[str, list[Address]] = {}
    place: tuple[float, float] = (0.0, 0.0)
    marks: set[int] = set()


class Answer(msgspec.Struct):
    fine: bool


class Node(msgspec.Struct):
    left: "Node | None"
    any: "list[Node | int]"


people = Topic("people", Person, key="name", version=1, reply=Answer)


async def count(person: Person) -> Answer:
    """Counts them."""
    return Answer(person.home is not None)


def cells(text: str, first: str) -> str:
    """The row that begins with a name, without its tags."""
    (row,) = re.findall(rf'<tr><td class="name"><code>{re.escape(first)}</code></td>(.*?)</tr>', text)
    return re.sub(r"<[^>]*>", " ", row)


def test_a_type_that_has_itself_in_it_is_shown_once_and_linked() -> None:
    text = page(asyncapi("t", topics=[people]))
    assert "children[]" not in text
    assert text.count('id="type-Person"') == 1
    assert 'list of <a href="#type-Person">Person</a>' in text


def test_every_link_leads_somewhere_and_every_place_has_one_name() -> None:
    topics: list[Topic[Any]] = [Topic(f"topic/{number}", kind) for number, (kind, _) in enumerate(CASES)]
    text = page(asyncapi("t", topics=[*topics, people]))
    places = re.findall(r' id="([^"]*)"', text)
    assert len(places) == len(set(places))
    assert set(re.findall(r' href="#([^"]*)"', text)) <= set(places)


def test_what_is_in_a_type_is_said_in_its_row() -> None:
    text = page(asyncapi("t", topics=[people]))
    name = cells(text.partition('id="type-Person"')[2], "name")
    for part in (
        "string",
        "required",
        "at least  2  characters",
        "at most  40",
        "matches  &quot;^[A-Z]&quot;",
    ):
        assert part in name
    after = text.partition('id="type-Person"')[2]
    assert "Address  or null" in cells(after, "home")
    assert "map of list of  Address" in cells(after, "moved")
    assert "(number, number)" in cells(after, "place")
    assert "set of integer" in cells(after, "marks")
    assert "optional" in cells(after, "marks")
    assert "&quot;DE&quot;  or  &quot;FR&quot;" in cells(text, "country")


def test_operations_say_who_answers_and_where() -> None:
    app = App(config.module, memory.module, memory.consume(people, group="counting", handler=count))
    app.publishes(people)
    text = page(app.asyncapi("t"))
    assert 'by the group <code>counting</code> answers in <a href="#people_reply">' in text
    assert 'is answered in <a href="#people_reply">' in text
    assert "Whoever asks says where the answer goes." in text
    assert "version 1" in text


def test_the_lines_of_a_description_stay_and_nothing_in_it_is_markup() -> None:
    assert '<p class="text">Somebody.\n\nWith a home, &lt;b&gt;perhaps&lt;/b&gt;.</p>' in page(
        asyncapi("t", topics=[people])
    )


@pytest.mark.parametrize("kind", [kind for kind, _ in CASES] + [Person, Node], ids=str)
def test_an_example_is_a_payload_that_is_decoded(kind: Any) -> None:
    is_a_payload_of(kind)


@pytest.mark.parametrize(
    "kind",
    [
        Annotated[int, Meta(ge=5, le=5)],
        Annotated[int, Meta(gt=5)],
        Annotated[int, Meta(lt=-3)],
        Annotated[int, Meta(ge=-10, lt=-5)],
        Annotated[int, Meta(multiple_of=7)],
        Annotated[int, Meta(multiple_of=7, gt=7)],
        Annotated[int, Meta(multiple_of=7, le=-7)],
        Annotated[float, Meta(gt=0, lt=1)],
        Annotated[float, Meta(ge=1.5, lt=1.75)],
        Annotated[float, Meta(gt=1, le=1.25)],
        Annotated[float, Meta(lt=-1.5)],
        Annotated[str, Meta(min_length=20)],
        Annotated[str, Meta(max_length=2)],
        Annotated[str, Meta(max_length=0)],
        Annotated[str, Meta(pattern="^[0-9]{5}$")],
        Annotated[str, Meta(pattern="^[A-Z]+[0-9]+$")],
        Annotated[list[int], Meta(min_length=3)],
        Annotated[list[int], Meta(max_length=0)],
        dict[int, int],
    ],
    ids=str,
)
def test_an_example_keeps_to_the_bounds(kind: Any) -> None:
    is_a_payload_of(kind)


def is_a_payload_of(kind: Any) -> None:
    topic: Topic[Any] = Topic("t", kind)
    document = asyncapi("t", topics=[topic])
    (message,) = document["components"]["messages"].values()
    value = json.dumps(example(document, message["payload"])).encode()
    decode(topic, kind, Message("t", value))

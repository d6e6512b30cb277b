"""The arguments of a consumer are declared once; who writes them hears of every mistake."""

import inspect
from typing import get_args, get_type_hints

import pytest

from tests.engine.scenario import Recorder
from things_kit import Broker, ConfigError
from things_kit.engine.options import ARGUMENTS, ConsumerArguments
from things_kit.testing.stub import StubDriver, broker_of


def test_type_checkers_see_the_arguments_that_the_engine_checks() -> None:
    seen = get_type_hints(ConsumerArguments)
    assert {field.name: get_args(field.type)[0] for field in ARGUMENTS} == seen
    assert {field.name for field in ARGUMENTS if field.required} == ConsumerArguments.__required_keys__


def test_a_consumer_shows_its_arguments_one_by_one() -> None:
    parameters = inspect.signature(Broker.consumer).parameters
    assert parameters["concurrency"].default == 1
    assert parameters["drain_timeout"].default == 20.0
    assert parameters["group"].default is inspect.Parameter.empty
    assert parameters["group"].annotation == str | None


def test_a_forgotten_group_is_said_with_both_choices() -> None:
    with pytest.raises(ConfigError) as raised:
        broker_of(StubDriver()).consumer("orders", handler=Recorder())  # type: ignore[call-overload]
    assert 'the consumer of orders needs a group: group="billing" shares' in str(raised.value)
    assert "group=None, said on purpose, is a group of its own" in str(raised.value)


def test_a_misspelt_argument_is_named_with_what_was_meant() -> None:
    with pytest.raises(TypeError, match="has no argument 'concurency'; did you mean 'concurrency'"):
        broker_of(StubDriver()).consumer("orders", group="g", handler=Recorder(), concurency=8)  # type: ignore[call-overload]


def test_what_is_no_list_of_topics_or_middleware_is_said() -> None:
    broker = broker_of(StubDriver())

    def timed(handle: object) -> object:
        return handle

    with pytest.raises(ConfigError, match="a consumer needs a topic, or a list of topics; it has None"):
        broker.consumer(None, group="g", handler=Recorder())  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=r"middleware is a list: write middleware=\[timed\]"):
        broker.consumer("orders", group="g", handler=Recorder(), middleware=timed)  # type: ignore[call-overload]

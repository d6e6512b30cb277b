"""A plugin for pytest, `-p tests.uvloop`: every test has the event loop that an app has where uvloop is installed."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

import uvloop


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}

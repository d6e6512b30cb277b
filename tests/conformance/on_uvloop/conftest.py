"""What is in this folder runs on uvloop, which apps use where it is installed."""

import pytest

pytest.importorskip("uvloop")

from tests.uvloop import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]

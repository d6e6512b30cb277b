"""A real Redis keeps every promise on uvloop too."""

import pytest

pytest.importorskip("redis")

from tests.conformance.test_redis import TestRedis, redis

__all__ = ["TestRedis", "redis"]

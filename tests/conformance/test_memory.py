"""The broker in this process keeps every promise that one in a process can."""

from uuid import uuid4

import pytest

from things_kit.testing.conformance import ConformanceSuite, Target


class TestMemory(ConformanceSuite):
    @pytest.fixture
    def target(self) -> Target:
        return Target(
            url=f"memory://{uuid4().hex}",
            shared=False,
            durable=False,
            size_options={"max_message_bytes": "4096"},
        )

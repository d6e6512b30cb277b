"""What librdkafka's errors mean to us."""

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError

from things_kit.brokers.kafka.errors import translated
from things_kit.engine.driver import ConnectionLost


@pytest.mark.parametrize("code", [KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH])
def test_a_leader_that_has_just_changed_is_an_outage_that_is_known(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A soak found it: after a restart of the broker each question for offsets left a traceback in the log."""
    assert isinstance(translated(KafkaError(code), "asking for offsets"), ConnectionLost)
    assert not caplog.records

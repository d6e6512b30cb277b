"""What does not hold yet, test by test: whoever mends it takes the entry, or the broker, away; strictly, so that nobody forgets."""

from collections.abc import Collection
from typing import Final

import msgspec

EVERYWHERE: Final = None
"""On every broker, in every way that it is tested."""


class ExpectedFailure(msgspec.Struct, frozen=True):
    """A test that fails.

    Attributes:
        test: Its name, with its parameters in brackets if it is only about these.
        reason: Which line of the list of promises it is about, and what is missing.
        brokers: The classes of this folder in which it fails.
    """

    test: str
    reason: str
    brokers: Collection[str] | None = EVERYWHERE

    def concerns(self, broker: str, test: str) -> bool:
        """Whether it is about this test of this class."""
        named = self.test in {test, test.partition("[")[0]}
        return named and (self.brokers is EVERYWHERE or broker in self.brokers)


EXPECTED_FAILURES: Final = (
    ExpectedFailure(
        "test_two_slow_consumers_share_a_load_evenly",
        "line 47: the window does not follow the handler's pace yet",
        {"TestMemory", "TestSQLite", "TestRedis"},
    ),
    ExpectedFailure(
        "test_a_handler_that_exits_has_failed_and_its_process_goes_on",
        "line 48: sys.exit() in an async handler ends the process",
    ),
    ExpectedFailure(
        "test_a_handler_that_cancels_its_own_task_has_failed",
        "line 48: it breaks the consumer",
    ),
    ExpectedFailure(
        "test_what_a_handler_puts_into_context_variables_is_unseen_by_the_next",
        "line 48: handlers of one worker share a context",
    ),
    ExpectedFailure(
        "test_all_ends_in_time", "line 49: stop waits for the broker", {"TestPubSubThatGoesAway"}
    ),
    ExpectedFailure(
        "test_all_ends_in_time[paused]",
        "line 49: stop waits for a broker that stands still",
        {"TestSQSThatGoesAway", "TestServiceBusThatGoesAway"},
    ),
    ExpectedFailure(
        "test_a_message_that_kills_its_process_is_put_aside_and_its_neighbours_are_not",
        "line 51: nobody is a suspect yet",
        {
            "TestNATS",
            "TestRabbitMQ",
            "TestRedis",
            "TestSQLite",
            "TestSQS",
            "TestServiceBus",
            "TestServiceBusSessions",
        },
    ),
    ExpectedFailure(
        "test_a_silent_connection_is_noticed_and_replaced",
        "line 52: a publish on a silent connection fails",
        {"TestKafkaThroughARelay"},
    ),
    ExpectedFailure(
        "test_a_consumer_that_falls_silent_while_nothing_happens_hears_again",
        "line 52: silence is noticed after 61 s",
        {"TestKafkaThroughARelay"},
    ),
    ExpectedFailure(
        "test_stopped_consumers_leave_no_memory_behind",
        "line 56: a stopped consumer is retained with what it handled last",
    ),
    ExpectedFailure(
        "test_a_retry_comes_in_time_though_the_clock_was_set_back",
        "line 58: when a message is due is kept by the wall clock",
        {"TestRabbitMQ", "TestSQLite"},
    ),
)

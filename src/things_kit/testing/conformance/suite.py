"""The whole suite."""

from things_kit.testing.conformance.connection import ConnectionSuite
from things_kit.testing.conformance.dead_letters import DeadLetterSuite
from things_kit.testing.conformance.delivery import DeliverySuite
from things_kit.testing.conformance.fidelity import FidelitySuite
from things_kit.testing.conformance.load import LoadSuite
from things_kit.testing.conformance.operations import OperationsSuite
from things_kit.testing.conformance.order import OrderSuite
from things_kit.testing.conformance.outcomes import OutcomeSuite
from things_kit.testing.conformance.survival import SurvivalSuite


class ConformanceSuite(
    DeliverySuite,
    SurvivalSuite,
    ConnectionSuite,
    OutcomeSuite,
    DeadLetterSuite,
    OrderSuite,
    LoadSuite,
    FidelitySuite,
    OperationsSuite,
):
    """Every promise that a broker must keep: subclass it, and give it a fixture `target`."""

"""The whole suite."""

from things_kit.testing.conformance.clocks import ClockSuite
from things_kit.testing.conformance.connection import ConnectionSuite
from things_kit.testing.conformance.dead_letters import DeadLetterSuite
from things_kit.testing.conformance.deletion import DeletionSuite
from things_kit.testing.conformance.delivery import DeliverySuite
from things_kit.testing.conformance.fidelity import FidelitySuite
from things_kit.testing.conformance.flow import FlowSuite
from things_kit.testing.conformance.footprint import FootprintSuite
from things_kit.testing.conformance.handlers import HandlerSuite
from things_kit.testing.conformance.hostile import HostileSuite
from things_kit.testing.conformance.limits import LimitSuite
from things_kit.testing.conformance.load import LoadSuite
from things_kit.testing.conformance.mistakes import MistakeSuite
from things_kit.testing.conformance.operations import OperationsSuite
from things_kit.testing.conformance.order import OrderSuite
from things_kit.testing.conformance.outcomes import OutcomeSuite
from things_kit.testing.conformance.planned import PlannedSuite
from things_kit.testing.conformance.prefixes import PrefixSuite
from things_kit.testing.conformance.progress import ProgressSuite
from things_kit.testing.conformance.requests import RequestSuite
from things_kit.testing.conformance.schedules import ScheduleSuite
from things_kit.testing.conformance.sharing import SharingSuite
from things_kit.testing.conformance.survival import SurvivalSuite
from things_kit.testing.conformance.suspects import SuspectSuite
from things_kit.testing.conformance.transforms import TransformSuite
from things_kit.testing.conformance.unrouted import UnroutedSuite


class ConformanceSuite(
    DeliverySuite,
    UnroutedSuite,
    SurvivalSuite,
    SuspectSuite,
    ConnectionSuite,
    PrefixSuite,
    ProgressSuite,
    OutcomeSuite,
    RequestSuite,
    TransformSuite,
    FlowSuite,
    HandlerSuite,
    DeadLetterSuite,
    LimitSuite,
    OrderSuite,
    LoadSuite,
    ScheduleSuite,
    PlannedSuite,
    SharingSuite,
    FidelitySuite,
    HostileSuite,
    OperationsSuite,
    DeletionSuite,
    ClockSuite,
    FootprintSuite,
    MistakeSuite,
):
    """Every promise that a broker must keep: subclass it, and give it a fixture `target`."""

"""Does a handler survive what brokers do? See `simulate`."""

from things_kit.testing.simulation.faults import Fault, Faults
from things_kit.testing.simulation.history import History
from things_kit.testing.simulation.marks import reached
from things_kit.testing.simulation.report import Report, SimulationFailed
from things_kit.testing.simulation.search import simulate
from things_kit.testing.simulation.world import World

__all__ = ["Fault", "Faults", "History", "Report", "SimulationFailed", "World", "reached", "simulate"]

"""The Candid Health pre-encounter API and its storage, served on loopback with faults on demand.

    async with Simulator(SimulatorConfig(patients=50)) as simulator:
        ...  # simulator.api_url, simulator.auth_url, simulator.patient_ids()

The population is synthetic and follows from the seed; nothing is kept for it in memory.
"""

from bulkfetch.simulator.config import DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, SimulatorConfig
from bulkfetch.simulator.faults import KINDS, TARGETS, Fault, FaultPlan, parse_fault
from bulkfetch.simulator.server import LEAKED_TOKENS, Simulator
from bulkfetch.simulator.traffic import RequestRecord

__all__ = [
    "DEMO_CLIENT_ID",
    "DEMO_CLIENT_SECRET",
    "KINDS",
    "LEAKED_TOKENS",
    "TARGETS",
    "Fault",
    "FaultPlan",
    "RequestRecord",
    "Simulator",
    "SimulatorConfig",
    "parse_fault",
]

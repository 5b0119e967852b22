"""Stories of what happens to a mesh. Each is a function whose docstring tells it; `p2pkv sim run` runs it for a seed."""

from collections.abc import Mapping
from typing import Final

from p2pkv.sim.scenarios.blocks import block_traffic, block_traffic_under_churn
from p2pkv.sim.scenarios.clocks import drifting_clocks
from p2pkv.sim.scenarios.cuts import one_way_cut, split_and_heal
from p2pkv.sim.scenarios.everything import everything_at_once
from p2pkv.sim.scenarios.processes import churn, crash, quiet, restart_with_memory, restart_without_memory
from p2pkv.sim.scenarios.slowness import frozen_node, slow_node
from p2pkv.sim.scenarios.weather import far_zones, lossy_network
from p2pkv.sim.story import Scenario, named

SCENARIOS: Final[Mapping[str, Scenario]] = named(
    quiet,
    crash,
    restart_without_memory,
    restart_with_memory,
    churn,
    slow_node,
    frozen_node,
    one_way_cut,
    split_and_heal,
    lossy_network,
    far_zones,
    drifting_clocks,
    block_traffic,
    block_traffic_under_churn,
    everything_at_once,
)
"""By the name on the command line, the simple ones first."""

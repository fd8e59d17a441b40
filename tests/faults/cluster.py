"""A Ray cluster of a head and worker nodes on this machine, steered through stdin, a line a step.

Stores of 80 MB, and every answer above a few bytes goes through them, so that a node takes to the
grave what its actors said.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

SAYS = "cluster: "
STORE_BYTES = 80 << 20
BLOCK_BYTES = 10 << 20


def main() -> None:
    """Start the cluster, print its address, and do as told until stdin ends."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    block = ray.remote(num_cpus=0)(lambda: os.urandom(BLOCK_BYTES))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "num_gpus": 0,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_system_config": {"max_direct_call_object_size": 64},
        },
    )
    add = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_BYTES}
    nodes: dict[str, Any] = {}
    held: list[Any] = []

    def grow() -> None:
        node = cluster.add_node(**add)
        nodes[node.node_id] = node

    def kill(which: str) -> None:
        os.kill(nodes.pop(which).all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def fill() -> None:
        """Put more into each node's store than it holds."""
        for node in nodes:
            there = block.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, False))
            held.extend(there.remote() for _ in range(STORE_BYTES // BLOCK_BYTES + 3))
        ray.wait(held, num_returns=len(held), fetch_local=False)

    steps = {"grow": grow, "kill": kill, "fill": fill, "empty": held.clear}
    for _ in range(2):
        grow()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    print(SAYS + cluster.address, flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        steps[name](*arguments)  # type: ignore[operator]
        print(SAYS + "done", flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()

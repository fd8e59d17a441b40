"""A Ray cluster on this machine: a head without CPUs, a node of CPUs and one with pretended GPUs.

Steered through stdin, a line a step: `grow KIND`, `kill KIND`. Each node is a raylet of its own.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
from typing import Any

SAYS = "cluster: "
STORE_BYTES = 80 << 20
ALIKE = {
    "object_store_memory": STORE_BYTES,
    "dashboard_agent_listen_port": 0,  # else the one port that every Ray on this machine wants
}
KINDS = {
    "cpu": {"num_cpus": 4, "num_gpus": 0, "labels": {"role": "cpu"}},
    "gpu": {"num_cpus": 3, "num_gpus": 2, "labels": {"role": "gpu"}},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Start the cluster, print the job server's address, and do as told until stdin ends."""
    from ray.cluster_utils import Cluster

    port = free_port()
    head = {
        "num_cpus": 0,
        "num_gpus": 0,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        **ALIKE,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[str, Any] = {}
    serial = itertools.count()

    def grow(kind: str) -> str:
        # A node's agent unpacks a job's code anew where it lies already: not under another's feet.
        place = {"runtime_env_dir_name": f"{kind}-{next(serial)}"}
        nodes[kind] = cluster.add_node(**ALIKE, **KINDS[kind], **place)
        return str(nodes[kind].node_id)

    def kill(kind: str) -> str:
        raylet = nodes.pop(kind).all_processes["raylet"][0].process
        os.kill(raylet.pid, signal.SIGKILL)
        return str(raylet.pid)

    steps = {"grow": grow, "kill": kill}
    grown = " ".join(f"{kind}={grow(kind)}" for kind in KINDS)
    print(f"{SAYS}http://127.0.0.1:{port} {cluster.address} {grown}", flush=True)
    for line in sys.stdin:
        name, kind = line.split()
        print(SAYS + steps[name](kind), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()

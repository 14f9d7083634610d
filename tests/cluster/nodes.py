"""Two simulated Ray nodes on this machine: prints the address, and keeps them until its input ends."""

from __future__ import annotations

import socket
import sys

import ray._private.utils
import ray.util
from ray.cluster_utils import Cluster

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def node() -> dict[str, object]:
    """A node's settings. Its ports are chosen here: Ray gives its agents little time to say which ones they took."""
    taken = [socket.socket() for _ in PORTS]
    for port in taken:
        port.bind(("", 0))
    ports = {name: port.getsockname()[1] for name, port in zip(PORTS, taken, strict=True)}
    for port in taken:
        port.close()
    address = ray.util.get_node_ip_address()  # as a driver on this machine finds it: with another one it waits for ever
    return {"num_cpus": 2, "object_store_memory": 150 << 20, "node_ip_address": address, **ports}


if __name__ == "__main__":
    # Agents without their optional modules: a raylet gives them 15 s to start, which is little on a busy machine.
    ray._private.utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
    cluster = Cluster(initialize_head=True, head_node_args={**node(), "include_dashboard": False})
    cluster.add_node(**node())
    print(cluster.address, flush=True)
    sys.stdin.read()
    for started in cluster.list_all_nodes():  # `Cluster.shutdown` would stop every Ray process of the machine
        cluster.remove_node(started, allow_graceful=False)

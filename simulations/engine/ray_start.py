"""Starts Ray on this machine's loopback, or joins a cluster."""

import logging
import math
import os

import ray
from ray._private import ray_constants

from fedunlearn.errors import ConfigError
from simulations.engine.cluster import Cluster


def start_ray(workers: int, cluster: Cluster) -> bool:
    """Start Ray unless it runs, or join a cluster; return whether it is ours to stop.

    Raises:
        ConfigError: If the cluster cannot be reached, or has too few CPUs for all
            workers at once: they would wait for ever.
    """
    if ray.is_initialized():
        _check_room(workers, cluster)
        return False
    # No telemetry, and the coming default, which warns at every start until set.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if cluster.address is None:
        _start_here(math.ceil(workers * cluster.cpus_per_worker))
    else:
        _join(cluster.address)
    _check_room(workers, cluster)
    return True


def _start_here(cpus: int) -> None:
    # Ray's servers listen on every interface unless the node's address is 127.0.0.1,
    # and it replaces that address by an outside one except on systems without cluster
    # support. This says so of the local one; Ray 2.55 to 2.60 has no public setting.
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"engine.address={address}: no Ray cluster answers there ({error})"
        ) from error


def _check_room(workers: int, cluster: Cluster) -> None:
    """Refuse more workers than the running Ray has CPUs for."""
    cpus = float(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cpus < workers * cluster.cpus_per_worker:
        raise ConfigError(
            f"engine.workers is {workers}, of {cluster.cpus_per_worker:g} CPUs each, "
            f"the Ray that is running has {cpus:g} CPUs"
        )

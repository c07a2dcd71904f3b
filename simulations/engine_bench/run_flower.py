"""Contestant ``flower``: Flower's own simulation on Ray, stock FedAvg, as many actors.

``run_simulation`` is deprecated for ``flwr run``, which needs a SuperLink and installs
packages at run time; it runs the same engine. It blocks for all rounds, so a strategy
around FedAvg waits for the driver at the start of each.

While it waits, this contestant takes 0.07 of a processor with 1000 clients, 0.04 of it
Ray's own processes: Flower's dispatcher looks at every node ten times a second.
"""

import time
from collections.abc import Iterable
from logging import ERROR, getLogger
from typing import final

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.simulation import run_simulation
from typing_extensions import override

from fedunlearn.arrays import from_arrays, to_arrays
from fedunlearn.errors import RunError
from fedunlearn.params import Layout
from simulations.engine_bench.flower_client import ENTRY, KERNEL, app
from simulations.engine_bench.serve import Entry, Wire, entry

_ENDLESS = 2**31 - 1


class _NoMoreRoundsError(Exception):
    """The driver wants no more: the only way out of Flower's loop."""


@final
class RoundByRound(Strategy):
    """Lets the driver start every round of a strategy, and times it.

    Args:
        inner: The strategy.
        layout: Of the model.
        wire: To the driver.
        clients: How many have to answer.
        cpus: Among how many actors their training is split.
    """

    def __init__(
        self, inner: Strategy, layout: Layout, wire: Wire, clients: int, cpus: int
    ) -> None:
        self._inner, self._layout, self._wire = inner, layout, wire
        self._clients, self._cpus = clients, cpus
        self._begin = 0.0

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if not self._wire.await_round(lambda: from_arrays(arrays, self._layout)):
            raise _NoMoreRoundsError
        self._begin = time.perf_counter()
        return self._inner.configure_train(server_round, arrays, config, grid)

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = self._inner.aggregate_train(server_round, replies)
        seconds = time.perf_counter() - self._begin
        if arrays is None or metrics is None:
            raise RunError(f"Flower aggregated nothing in round {server_round}")
        # FedAvg gives the clients' mean; all hold equally many examples.
        kernel = float(str(metrics[KERNEL])) * self._clients / self._cpus
        self._wire.answer({"seconds": seconds, "kernel_seconds": kernel})
        return arrays, metrics

    @override
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self._inner.configure_evaluate(server_round, arrays, config, grid)

    @override
    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        return self._inner.aggregate_evaluate(server_round, replies)

    @override
    def summary(self) -> None:
        self._inner.summary()


def server_app(what: Entry, wire: Wire) -> ServerApp:
    """Return the ServerApp: stock FedAvg over all clients, without evaluation."""
    workload = what.load()
    # One client's data is enough to know the model.
    task = workload.scaled(1 / workload.clients).task()
    fed_avg = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=workload.clients,
        min_available_nodes=workload.clients,
    )
    strategy = RoundByRound(fed_avg, task.layout, wire, workload.clients, what.cpus)
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        strategy.start(
            grid,
            to_arrays(task.initial_model(what.seed), task.layout),
            num_rounds=_ENDLESS,
            timeout=_ENDLESS,
            train_config=ConfigRecord({"seed": what.seed, ENTRY: what.as_json()}),
        )

    return server


def main() -> None:
    """Serve the driver."""
    wire, what = Wire(), entry()
    getLogger("flwr").setLevel(ERROR)
    try:
        run_simulation(
            server_app(what, wire),
            app,
            num_supernodes=what.load().clients,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {
                    "num_cpus": what.cpus,
                    "include_dashboard": False,
                    "_node_ip_address": "127.0.0.1",
                },
            },
        )
    except _NoMoreRoundsError:
        return


if __name__ == "__main__":
    main()

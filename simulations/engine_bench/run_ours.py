"""Starts contestant ``ours``: its data is made while torch and flwr are imported."""

import sys
from concurrent.futures import ThreadPoolExecutor

from simulations.engine_bench.serve import Wire, entry, serve


def main() -> None:
    """Serve the driver."""
    wire, what = Wire(), entry()
    kernel, workers = sys.argv[2], int(sys.argv[3])
    with ThreadPoolExecutor(1) as pool:
        data = pool.submit(what.load().data)
        from simulations.engine_bench.ours import Ours

        task = what.load().task(data.result())
    serve(Ours(task, what.seed, what.cpus, kernel, workers), wire)


if __name__ == "__main__":
    main()

"""Runs a scenario and kills itself: killed_run.py SCENARIO OUT KIND N KEY=VALUE...

SIGKILL comes while the N-th event of a kind is told; a folder that exists is resumed.
"""

import os
import signal
import sys
from pathlib import Path

from simulations import compare, journal, load_scenario

journal.PATIENCE = 0  # these runs are done before anything would be written


def main():
    scenario, out, kind, count, *overrides = sys.argv[1:]
    seen = 0

    def listen(event):
        nonlocal seen
        seen += event.kind == kind
        if event.kind == kind and seen == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    folder = Path(out)
    compare(
        load_scenario(scenario, overrides),
        out=folder,
        listeners=(listen,),
        resume=folder.exists(),
    )


if __name__ == "__main__":
    main()

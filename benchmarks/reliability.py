"""Counts what the tests of a history try, for docs/reliability.md.

    python benchmarks/reliability.py                 counts, and 100 random kills
    python benchmarks/reliability.py --write         puts the table into the page
    python benchmarks/reliability.py --kills 3       the smoke version

The numbers come from the tests themselves: each test file can count what it will do.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
PAGE = ROOT / "docs" / "reliability.md"


def counts(kills: int) -> dict[str, str]:
    """Return what is tried -> how often."""
    from kills import kills as killed

    from fedunlearn.history.files import STEPS
    from tests.test_history_crash import count_kills
    from tests.test_history_failing_disk import count_failing_calls
    from tests.test_history_power_loss import count_images
    from tests.test_history_tamper import count_flips, count_truncations

    planned, images, done = count_kills(), count_images(), killed(kills)
    return {
        "named steps, all of them reached": f"{planned['steps']} of {len(STEPS)}",
        "kills at a named step": f"{planned['kills']:,}",
        "disk images after a power loss": f"{sum(images.values()):,}",
        "calls to the disk that were made to fail": f"{count_failing_calls():,}",
        "bytes flipped": f"{count_flips():,}",
        "truncations": f"{count_truncations():,}",
        "kills at a random moment": f"{done['kills']:,}",
        "commits acknowledged before them, lost": f"{done['acknowledged']:,}, 0",
        "lines of code of the history, of its tests": _lines(),
    }


def _lines() -> str:
    code = sum(map(_length, (ROOT / "fedunlearn" / "history").rglob("*.py")))
    tests = sum(map(_length, (ROOT / "tests").glob("*history*.py")))
    return f"{code:,}, {tests:,}"


def _length(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def main() -> None:
    """Print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = "\n".join(f"| {k} | {v} |" for k, v in counts(options.kills).items())
    text = f"| what | how many |\n| :-- | --: |\n{rows}"
    print(text)
    if options.write:
        marks = re.compile(r"(<!-- table: counts -->\n).*?(<!-- end -->)", re.DOTALL)
        page = PAGE.read_text(encoding="utf-8")
        new = marks.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page)
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

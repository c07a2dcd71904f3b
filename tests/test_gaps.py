"""The average gap to retraining and the table by it."""

import pytest

from fedunlearn.report import (
    against_control,
    average_gap,
    gap_table,
    retrain_to_retrain,
)

METRICS = ("test_accuracy", "retain_accuracy", "forget_accuracy")
COST = {
    "client_rounds": 12,
    "examples": 0,
    "bytes_up": 1_000_000,
    "bytes_down": 2_000_000,
    "history_bytes": 500_000,
    "ratio_to_retrain": {},
}


def row(method, seed, *values, **more):
    metrics = {**dict(zip(METRICS, values, strict=True)), **more}
    return {"method": method, "seed": seed, "metrics": metrics, "cost": COST}


ROWS = [
    row("trained", 0, 0.9, 0.9, 0.9),
    row("retrain", 0, 0.8, 0.9, 0.5),
    row("far", 0, 0.5, 0.9, 0.2),
    row("near", 0, 0.8, 0.8, 0.5),
    row("trained", 1, 0.9, 0.9, 0.9),
    row("retrain", 1, 0.7, 0.9, 0.6),
    row("far", 1, 0.7, 0.6, 0.0),
    row("near", 1, 0.6, 0.9, 0.6),
]


def test_a_gap_is_the_mean_over_metrics_of_pairs_of_a_seed():
    gaps = average_gap(ROWS)
    assert gaps["retrain"].mean == 0
    assert gaps["near"].mean == pytest.approx(0.1 / 3)
    assert gaps["far"].mean == pytest.approx((0.6 / 3 + 0.9 / 3) / 2)
    assert gaps["far"].n == 2


def test_a_metric_nobody_has_is_left_out():
    rows = [
        row("retrain", 0, 0.8, 0.9, 0.5, backdoor_success=None),
        row("far", 0, 0.5, 0.9, 0.2, backdoor_success=None),
    ]
    assert average_gap(rows)["far"].mean == pytest.approx(0.2)


def test_two_retrainings_differ_by_what_a_seed_makes():
    assert retrain_to_retrain(ROWS) == pytest.approx(0.2 / 3)
    assert retrain_to_retrain(ROWS[:4]) is None


def test_the_table_is_by_gap_with_the_yardstick_last():
    lines = gap_table({"rows": ROWS}).splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == [
        "`trained`",
        "`retrain`",
        "`near`",
        "`far`",
        "*retrain, seed against seed*",
    ]
    assert "backdoor" not in lines[0]
    assert "| 3.0 | 0.5 |" in lines[4]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_an_attack_has_a_column_of_its_own():
    rows = [{**r, "metrics": {**r["metrics"], "backdoor_success": 0.25}} for r in ROWS]
    assert "backdoor %" in gap_table({"rows": rows})


def costing(method, seed, gap, examples):
    """Return a row that is ``gap`` away in each metric, below the retraining of 0.9."""
    cost = {**COST, "examples": examples}
    return {**row(method, seed, *[0.9 - gap] * 3), "cost": cost}


CONTROLLED = [
    one
    for seed, extra in ((0, 0.0), (1, 0.02))
    for one in (
        costing("trained", seed, 0.3, 1000),
        costing("retrain", seed, 0.0, 900),
        costing("nothing", seed, 0.3, 0),
        costing("fine_tune", seed, 0.2, 100),
        costing("fine_tune@long", seed, 0.1 + extra, 400),
        costing("free", seed, 0.25, 49),
        costing("cheap", seed, 0.25, 51),
        costing("dear", seed, 0.05, 251),
    )
]


def test_a_method_is_held_against_the_control_nearest_in_examples():
    found = against_control(CONTROLLED)
    assert {method: name for method, (_, name) in found.items()} == {
        "free": "nothing",
        "cheap": "fine_tune",
        "dear": "fine_tune@long",
    }
    means = {method: less.mean for method, (less, _) in found.items()}
    assert means == pytest.approx({"free": -0.05, "cheap": 0.05, "dear": -0.06})


def test_the_difference_to_the_control_is_paired_by_seed():
    # A third seed of the method alone has no partner and does not count.
    rows = [*CONTROLLED, costing("retrain", 2, 0, 900), costing("dear", 2, 0.5, 251)]
    less, _ = against_control(rows)["dear"]
    assert less.n == 2
    assert less.half_width == pytest.approx(12.706 * 0.01, rel=1e-3)


def test_without_plain_training_there_is_no_such_column():
    assert against_control(ROWS) == {}
    assert "the control" not in gap_table({"rows": ROWS})


def test_the_table_names_the_control():
    lines = gap_table({"rows": CONTROLLED}).splitlines()
    assert "against the control pp" in lines[0]
    (dear,) = (line for line in lines if line.startswith("| `dear`"))
    assert dear.split("|")[3].strip().endswith("6.0 ± 12.7 `fine_tune@long`")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}

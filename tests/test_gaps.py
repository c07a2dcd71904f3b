"""The average gap to retraining and the table by it."""

import pytest

from fedunlearn.report import average_gap, gap_table, retrain_to_retrain

METRICS = ("test_accuracy", "retain_accuracy", "forget_accuracy")
COST = {
    "client_rounds": 12,
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

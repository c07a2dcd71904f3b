"""Comparisons from Python: rows, tables, methods of one's own."""

from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from fedunlearn.cost import COST_NAMES
from fedunlearn.errors import (
    ConfigError,
    LeaverContactError,
    RequirementError,
    RunError,
)
from fedunlearn.history import Holdings, InMemoryHistory
from fedunlearn.method import Chain, Requires, continue_training
from simulations import Comparison, Scenario, compare, load_scenario
from simulations.events import Event
from strategies import FedEraser, Nothing, Retrain, Rollback, Subtract


@dataclass(frozen=True, slots=True, kw_only=True)
class Halve:
    """A method of one's own: shrinks the model, draws, trains one round."""

    factor: float = 0.5
    requires: ClassVar[Requires] = Requires(clients=True)

    def unlearn(self, model, ctx):
        noise = ctx.rng.normal(0, 1e-3, model.shape).astype(np.float32)
        start = model * np.float32(self.factor) + noise
        return continue_training(start, ctx, [ctx.schedule.rounds + 1])


@dataclass(frozen=True, slots=True)
class Returns:
    """A method that does what it is told to."""

    make: object
    requires: ClassVar[Requires] = Requires()

    def unlearn(self, model, ctx):
        return self.make(model, ctx)


@dataclass(frozen=True, slots=True)
class Needs:
    """A method with needs."""

    requires: Requires

    def unlearn(self, model, ctx):
        return model.copy()


@pytest.fixture(scope="module")
def scenario(tiny):
    return load_scenario(tiny)


@pytest.fixture(scope="module")
def comparison(scenario):
    return compare(scenario)


def refused(scenario, methods, error, says):
    with pytest.raises(error, match=says) as caught:
        compare(scenario, methods=methods)
    return caught.value


# --- rows and tables


def test_the_names_of_the_issue_are_there(scenario, comparison):
    assert isinstance(scenario, Scenario)
    assert isinstance(comparison, Comparison)


def test_trained_and_retrain_come_first_then_the_methods_in_their_order(comparison):
    assert [r.method for r in comparison.rows] == [
        "trained",
        "retrain",
        "nothing",
        "rollback",
    ]


@pytest.mark.parametrize("methods", [["retrain", "nothing"], ["nothing", "retrain"]])
def test_retrain_in_the_list_is_not_run_twice(methods, tiny):
    rows = compare(load_scenario(tiny, [f"methods=[{','.join(methods)}]"])).rows
    assert [r.method for r in rows] == ["trained", "retrain", "nothing"]


def test_a_row_is_frozen(comparison):
    with pytest.raises(FrozenInstanceError):
        comparison.rows[0].method = "other"


def test_the_table_has_a_line_a_row_and_a_column_a_metric_and_cost(comparison):
    table = comparison.to_pandas()
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == [
        "method",
        "seed",
        *comparison.rows[0].metrics,
        *COST_NAMES,
        *(f"{name}_to_retrain" for name in COST_NAMES),
        "model_sha256",
    ]
    assert table["method"].tolist() == [r.method for r in comparison.rows]
    assert table["test_accuracy"].tolist() == [
        r.metrics["test_accuracy"] for r in comparison.rows
    ]


def test_ratios_are_those_to_the_retraining_of_the_same_seed(tiny):
    rows = compare(load_scenario(tiny, ["seeds=[0,1]"])).rows
    base = {r.seed: r.cost for r in rows if r.method == "retrain"}
    for row in rows:
        expected = row.cost.client_rounds / base[row.seed].client_rounds
        assert row.ratio_to_retrain["client_rounds"] == expected
        if row.method == "retrain":
            ratios = dict(row.ratio_to_retrain)
            assert ratios.pop("simulated_seconds") is None  # there is no clock
            assert set(ratios.values()) == {1.0}


def test_several_seeds_give_mean_and_interval(tiny):
    comparison = compare(load_scenario(tiny, ["seeds=[0,1,2]", "methods=[]"]))
    found = {s.method: s for s in comparison.summary()}["retrain"]
    values = [
        r.metrics["test_accuracy"] for r in comparison.rows if r.method == "retrain"
    ]
    from scipy.stats import t

    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    estimate = found.metrics["test_accuracy"]
    assert estimate.mean == pytest.approx(np.mean(values))
    assert estimate.half_width == pytest.approx(half)


def test_the_markdown_table_names_every_row(comparison):
    lines = comparison.to_markdown().splitlines()
    assert len(lines) == 2 + 4
    assert all(r.method in comparison.to_markdown() for r in comparison.rows)


def test_the_comparison_knows_its_clients(comparison, tiny):
    assert comparison.client_names == tuple(f"client-{i}" for i in range(5))
    assert comparison.forget == (4,)
    assert comparison.label_counts.shape == (5, 10)
    assert comparison.label_counts.sum() == 1438
    assert len(comparison.accuracy_by_round[0]) == 4
    assert comparison.history.rounds == 3
    assert comparison.history.clients == 5


# --- methods of one's own


def test_a_method_of_ones_own_is_compared_under_its_label(scenario):
    rows = compare(scenario, methods={"mine": Halve(), "mine@0.9": Halve(factor=0.9)})
    by = {r.method: r for r in rows.rows}
    assert list(by) == ["trained", "retrain", "mine", "mine@0.9"]
    assert by["mine"].cost.client_rounds == 4
    assert by["mine"].model_sha256 != by["mine@0.9"].model_sha256


def test_a_methods_draws_are_its_labels_and_nobody_elses(scenario):
    def digest(methods):
        rows = compare(scenario, methods=methods).rows
        return {r.method: r.model_sha256 for r in rows}

    alone = digest({"mine": Halve()})
    beside = digest({"other": Halve(), "mine": Halve()})
    assert alone["mine"] == beside["mine"]
    assert beside["other"] != beside["mine"]


def test_methods_none_takes_the_scenarios_own_and_an_empty_table_none(scenario):
    assert len(compare(scenario, methods=None).rows) == 4
    assert len(compare(scenario, methods={}).rows) == 2


def test_methods_compose(scenario):
    chained = Chain((Nothing(), Rollback()))
    rows = compare(scenario, methods={"chain": chained, "rollback": Rollback()}).rows
    assert rows[-1].model_sha256 == rows[-2].model_sha256


@pytest.mark.parametrize(
    "label",
    ["", "trained", "../x", "a/b", "a\\b", "a b", "a\n", "a" * 65, "é", "a\0", "-x/"],
)
def test_a_label_that_no_file_can_bear_is_refused(label, scenario):
    refused(scenario, {label: Nothing()}, ConfigError, "cannot be labelled")


def test_retrain_stays_the_reference(scenario):
    refused(scenario, {"retrain": Nothing()}, ConfigError, "another label")
    assert len(compare(scenario, methods={"retrain": Retrain()}).rows) == 2


def boom(model, ctx):
    raise ZeroDivisionError("oh no")


def write_nan(model, ctx):
    out = model.copy()
    out[3] = np.nan
    return out


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (boom, "method 'mine' failed: ZeroDivisionError: oh no"),
        (write_nan, "method 'mine': .*not finite"),
        (lambda m, _: m + np.float32(np.inf), "method 'mine': .*not finite"),
        (lambda m, _: m[:-1].copy(), r"method 'mine': .*returned float32 \(649,\)"),
        (lambda m, _: m.astype(np.float64), "method 'mine': .*returned float64"),
        (
            lambda m, _: m.reshape(1, -1),
            r"method 'mine': .*returned float32 \(1, 650\)",
        ),
        (lambda m, _: None, "method 'mine'"),
        (lambda m, _: m.tolist(), "method 'mine'"),
    ],
)
def test_a_method_that_fails_or_returns_no_model_fails_the_run(make, says, scenario):
    error = refused(scenario, {"mine": Returns(make)}, RunError, says)
    assert "\n" not in str(error)


def test_a_method_that_asks_a_leaver_is_stopped(scenario):
    def ask(model, ctx):
        return ctx.clients.train(model, [3, 4], round_index=1).after[0]

    refused(
        scenario,
        {"mine": Returns(ask)},
        LeaverContactError,
        "method 'mine': client 4 is to be forgotten",
    )


def test_a_method_cannot_see_or_train_the_leaver(scenario):
    seen = []

    def look(model, ctx):
        seen.append(ctx.clients.ids)
        return model.copy()

    compare(scenario, methods={"mine": Returns(look)})
    assert seen == [frozenset({0, 1, 2, 3})]


def test_a_method_that_writes_to_the_trained_model_is_stopped(scenario):
    def spoil(model, ctx):
        model[:] = 0
        return model

    refused(
        scenario,
        {"spoil": Returns(spoil), "nothing": Nothing()},
        RunError,
        "method 'spoil' failed: ValueError: .*read-only",
    )


class KeepsLittle:
    """An in-memory history that kept no update and one broadcast."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    @property
    def holds(self):
        return Holdings(broadcasts=frozenset(self._inner.rounds[:1]))


@pytest.mark.parametrize(
    ("method", "lack"),
    [
        (FedEraser(), r"updates of rounds 1, 3 \(kept: none\)"),
        (Subtract(), r"updates of rounds 1, 2, 3 \(kept: none\)"),
        (
            Needs(Requires(updates="all", broadcasts="all")),
            r"updates .* and broadcasts of rounds 2, 3 \(kept: round 1\)",
        ),
        (Chain((Nothing(), FedEraser())), "updates of rounds 1, 3"),
    ],
)
def test_an_unmet_need_names_the_method_and_what_would_work(
    method, lack, scenario, monkeypatch
):
    from simulations.runs import Runs

    def history(self, seed):
        from contextlib import nullcontext

        return nullcontext(KeepsLittle(InMemoryHistory(self.prepared.task.layout)))

    monkeypatch.setattr(Runs, "history", history)
    error = refused(scenario, {"mine": method}, RequirementError, lack)
    assert "method 'mine' needs" in str(error)
    able = str(error).partition("what works here: ")[2].split(", ")
    assert able[:3] == ["nothing", "retrain", "rollback"]
    assert "fine_tune" in able
    assert not {"fed_eraser", "subtract", "sifu", "crab", "sharded"} & set(able)


def test_unmet_needs_are_found_before_any_method_runs(scenario, monkeypatch):
    from contextlib import nullcontext

    from simulations.runs import Runs

    monkeypatch.setattr(
        Runs,
        "history",
        lambda self, _: nullcontext(
            KeepsLittle(InMemoryHistory(self.prepared.task.layout))
        ),
    )
    ran = []
    methods = {"first": Returns(lambda m, _: ran.append(1)), "second": FedEraser()}
    refused(scenario, methods, RequirementError, "method 'second'")
    assert not ran


# --- what is told


def test_listeners_hear_every_phase_and_round_in_order(scenario):
    heard: list[Event] = []
    compare(scenario, listeners=(heard.append,))
    kinds = [e.kind for e in heard if e.kind != "tick"]
    assert kinds == ["run", "train", *["round"] * 3, "done", *["method", "done"] * 3]
    assert heard[0].facts["phases"] == 4
    assert [e.facts["round"] for e in heard if e.kind == "round"] == [1, 2, 3]


def test_without_a_folder_nothing_is_written(scenario, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare(scenario)
    assert list(tmp_path.iterdir()) == []

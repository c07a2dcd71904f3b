import json

import numpy as np
import pytest

from fedunlearn.availability import Availability
from fedunlearn.data import ClientData, LazyClients
from fedunlearn.errors import ConfigError
from fedunlearn.models import Softmax
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork, Training, plan, samples_of
from simulations import compare, load_scenario

MANY = tuple(range(4000))
SAMPLES = np.full(len(MANY), 100)


# --- who answers


def test_everybody_answers_unless_told_otherwise():
    assert not Availability().limited
    assert Availability().answering(0, 1, MANY, SAMPLES).all()


def test_the_share_that_answers_is_the_one_asked_for():
    there = Availability(answers=0.7).answering(3, 1, MANY, SAMPLES)
    assert there.mean() == pytest.approx(0.7, abs=3 * (0.21 / len(MANY)) ** 0.5)


def test_a_client_answers_or_not_whoever_else_is_asked():
    rule = Availability(answers=0.5)
    everybody = rule.answering(1, 2, MANY, SAMPLES)
    some = MANY[5:400:7]
    assert (rule.answering(1, 2, some, SAMPLES[:57]) == everybody[5:400:7]).all()


def test_rounds_and_seeds_draw_anew():
    rule = Availability(answers=0.5)
    first = rule.answering(1, 2, MANY, SAMPLES)
    for seed, index in ((1, 3), (2, 2)):
        same = (rule.answering(seed, index, MANY, SAMPLES) == first).mean()
        assert same == pytest.approx(0.5, abs=0.05)


def test_somebody_answers_in_every_round():
    rule = Availability(answers=1e-9, speed=1, deadline=1e-9)
    for index in range(1, 20):
        assert rule.answering(0, index, MANY[:50], SAMPLES[:50]).sum() == 1


# --- how long it takes


def test_speeds_have_the_median_and_the_spread_asked_for():
    seconds = Availability(speed=50, spread=0.5).seconds(0, MANY, SAMPLES)
    assert np.median(seconds) == pytest.approx(2, rel=0.05)
    assert np.log(seconds).std() == pytest.approx(0.5, rel=0.05)


def test_a_client_keeps_its_speed_and_needs_time_in_proportion_to_its_work():
    rule = Availability(speed=50, spread=1)
    one, two = rule.seconds(0, MANY, SAMPLES), rule.seconds(0, MANY, 2 * SAMPLES)
    np.testing.assert_allclose(two, 2 * one, rtol=1e-12)
    alone = rule.seconds(0, MANY[7:8], SAMPLES[:1])
    assert alone[0] == one[7]


def test_who_is_later_than_the_deadline_has_not_answered():
    rule = Availability(speed=50, spread=0.5, deadline=2)
    there = rule.answering(0, 1, MANY, SAMPLES)
    assert (there == (rule.seconds(0, MANY, SAMPLES) <= 2)).all()
    assert 0.4 < there.mean() < 0.6


def test_the_server_waits_for_the_slowest_or_until_the_deadline():
    rule = Availability(speed=50, spread=0.5, deadline=2)
    quick = [
        c for c, s in zip(MANY, rule.seconds(0, MANY, SAMPLES), strict=True) if s <= 2
    ][:9]
    slowest = rule.seconds(0, quick, SAMPLES[:9]).max()
    assert rule.round_seconds(0, quick, SAMPLES[:9], asked=9) == slowest < 2
    assert rule.round_seconds(0, quick, SAMPLES[:9], asked=10) == 2
    patient = Availability(speed=50, spread=0.5)
    assert patient.round_seconds(0, quick, SAMPLES[:9], asked=10) == slowest


def test_without_a_clock_nothing_takes_time():
    assert Availability().round_seconds(0, MANY, SAMPLES, asked=5000) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"answers": 0},
        {"answers": 1.1},
        {"speed": 0},
        {"spread": -1, "speed": 1},
        {"deadline": 0, "speed": 1},
        {"deadline": 1},
        {"spread": 1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must|need"):
        Availability(**wrong)


# --- in a comparison


SETTINGS = [
    "rounds=6",
    "availability.answers=0.7",
    "availability.speed=100",
    "availability.spread=0.3",
    "methods=[nothing,rollback]",
]


def of_runs(comparison):
    return {
        r.method: (r.model_sha256, r.cost.simulated_seconds) for r in comparison.rows
    }


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_silent_clients_are_recorded_and_time_is_simulated(tiny, tmp_path, kernel):
    settings = [*SETTINGS, f"engine.kernel={kernel}"]
    comparison = compare(load_scenario(tiny, settings), out=tmp_path / "run")
    costs = {r.method: r.cost for r in comparison.rows}
    assert costs["nothing"].simulated_seconds == 0
    assert costs["trained"].simulated_seconds > 0
    # Retraining asks fewer: it may wait for a quicker slowest, never for a slower one.
    assert 0 < costs["retrain"].simulated_seconds <= costs["trained"].simulated_seconds
    assert 0 < costs["trained"].client_rounds < 6 * 5
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    rounds = [e for e in map(json.loads, events) if e["event"] == "round"]
    assert any(e["answered"] < e["asked"] for e in rounds)
    again = compare(load_scenario(tiny, settings))
    assert of_runs(again) == of_runs(comparison)


def test_without_a_speed_there_is_no_simulated_time(tiny):
    comparison = compare(load_scenario(tiny, ["methods=[]"]))
    assert {r.cost.simulated_seconds for r in comparison.rows} == {None}


def test_a_wrong_setting_is_named(tiny):
    with pytest.raises(ConfigError, match=r"availability\.answers must lie in"):
        load_scenario(tiny, ["availability.answers=2"])


# --- clients that are made when asked for


def make(client):
    made.append(client)
    x = np.full((client + 1, 3), client, np.float32)
    y = np.zeros(client + 1, np.int64)
    return ClientData(f"client-{client}", x, y, x[:0], y[:0])


made = []


@pytest.fixture
def lazy():
    made.clear()
    return LazyClients(make, range(1, 8))


def test_lazy_clients_behave_as_a_tuple(lazy):
    assert len(lazy) == 7
    assert lazy[-1].name == "client-6"
    assert [c.name for c in lazy[2:4]] == ["client-2", "client-3"]
    assert [len(c.y) for c in lazy] == list(range(1, 8))
    with pytest.raises(IndexError):
        lazy[7]


def test_nothing_is_made_to_know_how_much_there_is(lazy):
    task = LocalTask(
        clients=lazy,
        model=Softmax(),
        input_shape=(3,),
        num_classes=2,
        training=Training(batch_size=2, epochs=1.5),
    )
    work = LocalWork(seed=0, round_index=1)
    counts = task.samples((0, 3, 6), work)
    assert made == []
    assert (counts == plan((0, 3, 6), (1, 4, 7), task.training, work).samples).all()
    assert (samples_of((1, 4, 7), task.training, work) == counts).all()


def test_only_those_asked_are_made(lazy):
    task = LocalTask(
        clients=lazy,
        model=Softmax(),
        input_shape=(3,),
        num_classes=2,
        training=Training(batch_size=2),
    )
    task.train(4, task.initial_model(0), LocalWork(seed=0, round_index=1))
    assert made == [4]

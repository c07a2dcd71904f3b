"""What each method does to a federation whose every model is known in closed form.

One local training pulls a client's model the share ``a = 1 - (1 - lr)^E`` of the way to
its centre, so with full participation ``w_t = m + (1 - a)^t (w_0 - m)``, where m is the
weighted mean of the centres.
"""

import numpy as np
import pytest

from fedunlearn.params import norm
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import QuadraticClients, quadratic_federation
from strategies import FedEraser, FineTune, Nothing, Retrain, Rollback, Subtract

CENTRES = np.array([[1, 0, 2], [0, 3, -1], [-2, 1, 1], [4, 4, 4]], np.float32)
SIZES = (10, 20, 30, 40)
START = np.array([0.5, 0.5, 0.5], np.float32)
LR, EPOCHS, ROUNDS, LEAVER = 0.1, 2, 12, 3
PULL = 1 - (1 - LR) ** EPOCHS
SHARE = SIZES[LEAVER] / sum(SIZES)


def federation(rounds=ROUNDS, **settings):
    clients = QuadraticClients(
        centres=tuple(CENTRES),
        num_examples=SIZES,
        schedule=TrainingSchedule(seed=2, rounds=rounds, epochs=EPOCHS, **settings),
        lr=LR,
    )
    return quadratic_federation(clients, initial=START)


def centre(clients=range(4)):
    """The weighted mean of some centres, where they train to together."""
    chosen = list(clients)
    return np.average(
        CENTRES[chosen].astype(np.float64), axis=0, weights=[SIZES[c] for c in chosen]
    )


def after(rounds, start, goal):
    return goal + (1 - PULL) ** rounds * (start - goal)


ALL, REST = centre(), centre(range(3))


def test_the_federation_trains_to_the_weighted_mean_of_the_centres():
    model, _ = federation()
    assert model == pytest.approx(after(ROUNDS, START, ALL), abs=1e-5)
    long_trained, _ = federation(rounds=200)
    assert long_trained == pytest.approx(ALL, abs=1e-5)


def test_doing_nothing_keeps_the_leaver():
    model, make = federation(rounds=200)
    result = Nothing().unlearn(model, make((LEAVER,)))
    assert result == pytest.approx(ALL, abs=1e-5)


def test_retraining_goes_to_the_mean_of_the_remaining_centres():
    model, make = federation()
    retrained = Retrain().unlearn(model, make((LEAVER,)))
    assert retrained == pytest.approx(after(ROUNDS, START, REST), abs=1e-5)
    model, make = federation(rounds=200)
    limit = Retrain().unlearn(model, make((LEAVER,)))
    assert limit == pytest.approx(REST, abs=1e-5)


@pytest.mark.parametrize("per_round", [None, 2])
def test_retraining_without_anybody_leaving_gives_the_model_back(per_round):
    model, make = federation(clients_per_round=per_round)
    assert Retrain().unlearn(model, make(())).tobytes() == model.tobytes()


def test_rollback_with_few_rounds_is_a_short_retraining():
    model, make = federation()
    short = Rollback(rounds=3).unlearn(model, make((LEAVER,)))
    assert short == pytest.approx(after(3, START, REST), abs=1e-5)


@pytest.mark.parametrize("rounds", [1, 5, None])
def test_fine_tuning_goes_from_the_model_to_the_remaining_centres(rounds):
    model, make = federation()
    tuned = FineTune(rounds=rounds).unlearn(model, make((LEAVER,)))
    more = ROUNDS if rounds is None else rounds
    assert tuned == pytest.approx(after(more, model, REST), abs=1e-5)


def test_fine_tuning_goes_on_with_the_rounds_after_the_last():
    """Cohorts and batch orders of training are used up: these are new ones."""
    model, make = federation(clients_per_round=2)
    ctx = make((LEAVER,))
    FineTune(rounds=3).unlearn(model, ctx)
    following = [ROUNDS + 1, ROUNDS + 2, ROUNDS + 3]
    assert [call.round_index for call in ctx.clients.calls] == following


def fed_accum():
    """w_0 + the remaining clients' mean steps along the recorded path."""
    path = [after(t, START, ALL) for t in range(ROUNDS)]
    return START + PULL * sum(REST - w for w in path)


def test_renormalised_subtraction_replays_steps_from_contaminated_models():
    model, make = federation()
    result = Subtract(weighting="renormalised").unlearn(model, make((LEAVER,)))
    assert result == pytest.approx(fed_accum(), abs=1e-4)


def test_lazy_subtraction_is_the_same_way_shortened_by_the_share():
    model, make = federation()
    result = Subtract().unlearn(model, make((LEAVER,)))
    expected = START + (1 - SHARE) * (fed_accum() - START)
    assert result == pytest.approx(expected, abs=1e-4)


def distances(rounds):
    model, make = federation(rounds=rounds)
    reference = Retrain().unlearn(model, make((LEAVER,)))
    return {
        type(method).__name__ + getattr(method, "weighting", ""): norm(
            method.unlearn(model, make((LEAVER,))) - reference
        )
        for method in (Nothing(), Subtract(), Subtract(weighting="renormalised"))
    }


def test_plain_subtraction_may_end_farther_from_retraining_than_doing_nothing():
    """A negative finding, kept: the error grows with the rounds, without bound."""
    error = distances(60)
    assert error["Subtractlazy"] > 2 * error["Nothing"]
    assert error["Subtractrenormalised"] > error["Subtractlazy"]
    assert distances(120)["Subtractlazy"] > 1.9 * error["Subtractlazy"]


def test_early_in_training_subtraction_is_better_than_doing_nothing():
    error = distances(2)
    assert error["Subtractlazy"] < error["Nothing"]
    assert error["Subtractrenormalised"] < error["Nothing"]


def test_recovery_rounds_repair_what_subtraction_broke():
    model, make = federation(rounds=60)
    reference = Retrain().unlearn(model, make((LEAVER,)))
    broken = Subtract().unlearn(model, make((LEAVER,)))
    mended = Subtract(recovery_rounds=20).unlearn(model, make((LEAVER,)))
    assert norm(mended - REST) == pytest.approx(
        norm((1 - PULL) ** 20 * (broken - REST)), rel=1e-3
    )
    assert norm(mended - reference) < 0.05 * norm(broken - reference)


def eraser_by_hand(interval, factor=1.0):
    """FedEraser's recursion in float64, client by client, from its paper."""
    model = START.astype(np.float64)
    for t in range(0, ROUNDS, interval):
        sent = after(t, START, ALL)
        steps = []
        for c in range(3):
            stored = PULL * (CENTRES[c] - sent)
            fresh = stored if t == 0 else CENTRES[c] - model
            size = np.linalg.norm(stored) * (1 if t == 0 else factor)
            steps.append(size * fresh / np.linalg.norm(fresh))
        model = model + np.average(steps, axis=0, weights=SIZES[:3])
    return model


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_fed_eraser_follows_its_equations(interval):
    model, make = federation()
    result = FedEraser(interval=interval).unlearn(model, make((LEAVER,)))
    assert result == pytest.approx(eraser_by_hand(interval), abs=1e-4)


def test_fed_eraser_with_scaled_norms_follows_its_equations():
    model, make = federation()
    result = FedEraser(interval=2, norm_scale="interval").unlearn(
        model, make((LEAVER,))
    )
    assert result == pytest.approx(eraser_by_hand(2, 2.0), abs=1e-4)


def test_the_calibration_ratio_does_not_change_a_direction_that_is_straight():
    model, make = federation()
    results = [
        FedEraser(calibration_ratio=ratio).unlearn(model, make((LEAVER,)))
        for ratio in (0.25, 1.0)
    ]
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_fed_eraser_comes_closer_to_retraining_than_doing_nothing():
    model, make = federation()
    reference = Retrain().unlearn(model, make((LEAVER,)))
    erased = FedEraser(interval=1).unlearn(model, make((LEAVER,)))
    assert norm(erased - reference) < norm(model - reference)


def test_clients_train_in_closed_form_for_whole_and_broken_epochs():
    clients = QuadraticClients(
        centres=(np.array([8.0], np.float32),),
        schedule=TrainingSchedule(seed=0, rounds=1, epochs=3),
        lr=0.5,
        num_examples=(10,),
    )
    start = np.zeros(1, np.float32)
    whole = clients.train(start, [0], round_index=1)
    assert whole.after[0] == pytest.approx([7])
    assert (whole.num_steps[0], whole.num_samples[0]) == (3, 30)
    broken = clients.train(start, [0], round_index=1, epochs=0.25)
    assert broken.after[0] == pytest.approx([8 * (1 - 0.5**0.25)])
    assert (broken.num_steps[0], broken.num_samples[0]) == (1, 3)
    with pytest.raises(KeyError):
        clients.train(start, [1], round_index=1)


def test_clients_with_noise_draw_it_by_seed_round_and_client():
    clients = QuadraticClients(
        centres=(np.zeros(2, np.float32),) * 2,
        schedule=TrainingSchedule(seed=4, rounds=1, epochs=1),
        noise=1.0,
    )
    start = np.zeros(2, np.float32)
    both = clients.train(start, [0, 1], round_index=1).after
    assert clients.train(start, [1], round_index=1).after.tolist() == [both[1].tolist()]
    assert not np.array_equal(both[0], both[1])
    assert not np.array_equal(both, clients.train(start, [0, 1], round_index=2).after)

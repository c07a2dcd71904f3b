"""Every method obeys every law; every law can be broken."""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import numpy as np
import pytest

from fedunlearn.errors import EmptyRoundError, LeaverContactError
from fedunlearn.history import DiskHistory, records
from fedunlearn.method import Chain, Requires, continue_training
from fedunlearn.params import norm
from fedunlearn.testing import (
    LAWS,
    check_method,
    keeps_a_model_the_leaver_never_touched,
)
from fedunlearn.testing.bench import LEAVER, five_clients
from strategies import (
    METHODS,
    Conda,
    Crab,
    FastFedul,
    Fats,
    FedEraser,
    FedOsd,
    FedQuit,
    FedRecover,
    FedRecovery,
    FineTune,
    FisherReset,
    Influence,
    Jitter,
    LabelMask,
    MoDe,
    Noise,
    NoT,
    Nothing,
    OutputFilter,
    Pgd,
    RapidRetrain,
    RecordOnly,
    Retrain,
    Rollback,
    Sharded,
    Sifu,
    Subtract,
    SubtractDistill,
)

MORE_CASES = [
    Fats(),
    Fats(cohorts="lots"),
    Sifu(),
    Sifu(sigma=0.3, contraction=0.7, calibration="exact"),
    Sifu(sigma=0.2, rounds=0),
    Rollback(until="budget"),
    Rollback(until="budget", budget=0.3),
    Sharded(),
    FastFedul(),
    FastFedul(alpha=0.07),
    FedRecovery(),
    FedRecovery(epsilon=1.0, growth=0.5),
    FedRecovery(sigma=0.0, weights="inclusive", scale=5),
    Conda(),
    Conda(cutoff=0.5),
    Conda(against="broadcast"),
    SubtractDistill(),
    FedRecover(),
    FedRecover(correct_every=1),
    FedRecover(warm_up=2, buffer=1, correct_every=2, final=0),
    FedRecover(warm_up=2, buffer=1, correct_every=9, final=0, tolerance=None),
    FedRecover(tolerance=0.2),
    FedEraser(variant="official"),
    FedEraser(interval=1, variant="official", norm_scale="interval"),
    FedEraser(variant="official", select="kept"),
    RapidRetrain(),
    RapidRetrain(rounds=0),
    RapidRetrain(rounds=2),
    RapidRetrain(power=1.0, damping=0.0, lr=1e-3),
    Crab(),
    Crab(tolerance=0.5),
    Crab(rounds=1.0, clients=1.0, tolerance=0.0),
    Pgd(),
    Pgd(stop_distance=1e9, recovery_rounds=0),
    Pgd(reference="model", recovery_rounds=1),
    FedOsd(),
    FedOsd(recovery_rounds=0),
    FedOsd(lr=0.01, unlearn_rounds=3),
    FedQuit(),
    FedQuit(teacher="entropy", lr=0.1, recovery_rounds=0),
    FedQuit(teacher="fixed", value=-3.0, lr_scale=1.0, recovery_rounds=1),
    MoDe(),
    MoDe(rounds=3, start="initial"),
    MoDe(rounds=4, guidance_rounds=2, keep=0.5),
    NoT(),
    NoT(recovery_rounds=0),
    NoT(layers="last"),
    NoT(layers="all"),
    Noise(),
    Noise(relative_std=0.1, recovery_rounds=2),
    Influence(),
    Influence(gradient="remaining"),
    Influence(damping=0.0, reach=inf, probe=1.0),
    FisherReset(),
    FisherReset(per="model", share=0.2, recovery_rounds=1),
    RecordOnly(),
    Jitter(),
    LabelMask(),
    OutputFilter(),
]
CASES = [
    Nothing(),
    Retrain(),
    Rollback(),
    Rollback(rounds=0),
    Rollback(rounds=3),
    FineTune(),
    FineTune(rounds=0),
    FineTune(rounds=2),
    FedEraser(),
    FedEraser(interval=1, calibration_ratio=1.0),
    FedEraser(interval=1, calibration_ratio=0.25),
    FedEraser(interval=2, norm_scale="interval"),
    FedEraser(interval=9),
    Subtract(),
    Subtract(recovery_rounds=2),
    Subtract(weighting="renormalised"),
    Subtract(weighting="renormalised", recovery_rounds=2),
    Chain((Rollback(rounds=1), FineTune(rounds=1))),
    Chain((Subtract(), FedEraser())),
    *MORE_CASES,
]
IDENTITY = [
    Nothing(),
    Retrain(),
    Rollback(),
    Rollback(rounds=0),
    Rollback(rounds=3),
    FineTune(rounds=0),
    Subtract(),
    Chain((Rollback(), Subtract())),
    Fats(),
    Sifu(),
    Rollback(until="budget"),
    Sharded(),
    FastFedul(),
    FedRecovery(),
    Conda(),
    SubtractDistill(),
    FedRecover(correct_every=1),
    Crab(),
    Pgd(recovery_rounds=0, stop_distance=1e9),
    FedQuit(recovery_rounds=0),
    FedOsd(recovery_rounds=0),
    MoDe(rounds=3),
    RecordOnly(),
]
"""Who gives the same bits back when the leaver never took part."""
CLOSE_TO_IDENTITY = [
    Subtract(weighting="renormalised"),
    FedEraser(interval=1, calibration_ratio=1.0),
    FedRecover(warm_up=2, buffer=1, final=0),
]
"""Who promises that up to rounding: they add the recorded steps up again."""

SHOWN = str


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("method", CASES, ids=SHOWN)
def test_every_method_obeys_every_law(method, law):
    law(method)


def test_in_a_part_of_the_federation_the_leaver_is_there_now_and_then():
    _, context = five_clients(clients_per_round=3)
    history = context((LEAVER,)).history
    assert history.rounds_of(LEAVER) == (2, 3)
    assert len(history.rounds) == 5


LISTED = sorted(set(METHODS) - {"channel_prune"})
"""The laws have no convolutions: ``channel_prune`` is tested on real ones alone."""


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_method_has_a_case(name):
    assert any(isinstance(case, METHODS[name]) for case in CASES)


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_method_obeys_the_laws_with_its_defaults(name):
    check_method(METHODS[name]())


@pytest.mark.parametrize("method", IDENTITY, ids=SHOWN)
def test_a_leaver_that_never_took_part_leaves_the_same_bits(method):
    keeps_a_model_the_leaver_never_touched(method)


@pytest.mark.parametrize("method", CLOSE_TO_IDENTITY, ids=SHOWN)
def test_replaying_without_a_leaver_that_never_took_part_changes_rounding_only(method):
    model, context = five_clients(clients_per_round=3, attendance={LEAVER: ()})
    assert norm(method.unlearn(model, context((LEAVER,))) - model) < 1e-5


def test_a_model_with_minus_zeros_survives_subtraction_of_nothing():
    model, context = five_clients(attendance={LEAVER: ()})
    model[:2] = -0.0
    assert Subtract().unlearn(model, context((LEAVER,))).tobytes() == model.tobytes()


@pytest.mark.parametrize("method", CASES, ids=SHOWN)
def test_a_history_on_disk_gives_the_same_bits_as_one_in_memory(method, tmp_path):
    model, context = five_clients(clients_per_round=3)
    ctx = context((LEAVER,))
    disk = DiskHistory.create(tmp_path, ctx.layout)
    for record in records(ctx.history):
        disk.append_round(record)
    disk.close()
    reopened = DiskHistory.open(tmp_path)
    from_disk = method.unlearn(model, replace(context((LEAVER,)), history=reopened))
    reopened.close()
    assert from_disk.tobytes() == method.unlearn(model, ctx).tobytes()


def test_a_chain_runs_its_steps_in_order():
    model, context = five_clients()
    first, second = Subtract(), FineTune(rounds=2)
    ctx = context((LEAVER,))
    by_hand = second.unlearn(first.unlearn(model, ctx), ctx)
    chained = Chain((first, second)).unlearn(model, context((LEAVER,)))
    assert chained.tobytes() == by_hand.tobytes()
    other = Chain((second, first)).unlearn(model, context((LEAVER,)))
    assert norm(chained - other) > 1e-3


def test_a_chain_needs_what_its_steps_need():
    chain = Chain((Subtract(), FedEraser()))
    needs = Requires(updates="all", broadcasts="initial", clients=True, mean=True)
    assert chain.requires == needs


class Broken:
    """A method to break a law with."""

    requires: ClassVar[Requires] = Requires(clients=True)


class WrongDtype(Broken):
    def unlearn(self, model, ctx):
        return model.astype(np.float64)


class WrongShape(Broken):
    def unlearn(self, model, ctx):
        return model[:-1].copy()


class NotFinite(Broken):
    def unlearn(self, model, ctx):
        return model * np.float32(np.nan)


class ReturnsItsArgument(Broken):
    def unlearn(self, model, ctx):
        return model


class ReturnsTheHistory(Broken):
    def unlearn(self, model, ctx):
        return ctx.initial_model


class WritesToItsArgument(Broken):
    def unlearn(self, model, ctx):
        model += 1
        return model.copy()


class WritesToTheHistory(Broken):
    def unlearn(self, model, ctx):
        ctx.history.round(1).arrays.matrix[:] += 1
        return model.copy()


class UsesGlobalRandomness(Broken):
    def unlearn(self, model, ctx):
        return model + np.random.default_rng().random(len(model), np.float32)


class AsksTheLeaver(Broken):
    def unlearn(self, model, ctx):
        asked = ctx.clients.ids | ctx.forget
        updates = ctx.clients.train(model, asked, round_index=1)
        return updates.after[0].copy()


class AsksNobody(Broken):
    def unlearn(self, model, ctx):
        ctx.clients.train(model, ctx.clients.ids, round_index=1, epochs=0)
        return model.copy()


class SaysItNeedsNoClients(Broken):
    requires = Requires()

    def unlearn(self, model, ctx):
        return continue_training(model, ctx, [1])


class BypassesTheMeter(Broken):
    def unlearn(self, model, ctx):
        inner = getattr(ctx.clients, "inner", ctx.clients)
        return inner.train(model, inner.ids, round_index=1).after[0].copy()


class PrefersClientZero(Broken):
    def unlearn(self, model, ctx):
        return ctx.history.round(ctx.history.rounds[0]).updates[0].copy()


class NeedsFullParticipation(Broken):
    def unlearn(self, model, ctx):
        ctx.history.round(1).updates_of(range(5))
        return model.copy()


class CountsRoundsByPosition(Broken):
    def unlearn(self, model, ctx):
        for index in range(1, ctx.schedule.rounds + 1):
            ctx.history.round(index)
        return model.copy()


class NeedsSomebodyInEveryRound(Broken):
    def unlearn(self, model, ctx):
        for record in records(ctx.history):
            ids = ctx.staying(record.clients)
            ctx.clients.train(model, [ids[0]], round_index=record.index)
        return model.copy()


@dataclass(frozen=True)
class ForgetsOneOnly(Broken):
    def unlearn(self, model, ctx):
        (_,) = ctx.forget
        return model.copy()


class NamesNoRound(Broken):
    def unlearn(self, model, ctx):
        updates = ctx.clients.train(model, ctx.clients.ids, round_index=6)
        return ctx.new_server().step(replace(updates, round_index=None))


class StepsTwiceInARound(Broken):
    def unlearn(self, model, ctx):
        return continue_training(model, ctx, [6, 6])


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (WrongDtype(), "keeps_shape_and_dtype"),
        (WrongShape(), "keeps_shape_and_dtype"),
        (NotFinite(), "keeps_shape_and_dtype"),
        (ReturnsItsArgument(), "returns_memory_of_its_own"),
        (ReturnsTheHistory(), "returns_memory_of_its_own"),
        (WritesToItsArgument(), "leaves_its_arguments_alone"),
        (WritesToTheHistory(), "leaves_its_arguments_alone"),
        (UsesGlobalRandomness(), "repeats_itself"),
        (AsksTheLeaver(), "never_trains_a_leaver"),
        (AsksNobody(), "never_trains_a_leaver"),
        (SaysItNeedsNoClients(), "asks_for_clients_if_it_says_so"),
        (BypassesTheMeter(), "costs_what_the_clients_counted"),
        (PrefersClientZero(), "does_not_care_for_names"),
        (NeedsFullParticipation(), "accepts_partial_participation"),
        (CountsRoundsByPosition(), "accepts_a_round_nobody_attended"),
        (NeedsSomebodyInEveryRound(), "accepts_a_round_left_empty"),
        (ForgetsOneOnly(), "accepts_several_leavers"),
        (NamesNoRound(), "leaves_a_history_without_the_leaver"),
        (StepsTwiceInARound(), "leaves_a_history_without_the_leaver"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_broken_method_is_caught_by_the_law_it_breaks(method, law):
    with pytest.raises(AssertionError, match=f"^{law}: "):
        check_method(method)


def test_the_clients_of_a_law_refuse_who_has_left():
    model, context = five_clients()
    ctx = context((LEAVER,))
    assert ctx.clients.ids == {0, 2, 3, 4}
    with pytest.raises(LeaverContactError, match="client 1 has left"):
        ctx.clients.train(model, [0, LEAVER], round_index=1)
    assert not ctx.clients.calls


@pytest.mark.parametrize("name", ["retrain", "fed_recover", "rapid_retrain"])
def test_a_round_with_nobody_left_is_named(name):
    # The others join in round 3.
    model, context = five_clients(attendance=dict.fromkeys((0, 2, 3, 4), (3, 4, 5)))
    ctx = context((1,))
    joins = dict.fromkeys((0, 2, 3, 4), 3)
    ctx = replace(ctx, schedule=replace(ctx.schedule, joins=joins))
    with pytest.raises(EmptyRoundError, match="round 1 has nobody left to train"):
        METHODS[name]().unlearn(model, ctx)

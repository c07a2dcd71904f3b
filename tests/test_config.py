"""From YAML and overrides to one frozen scenario."""

import contextlib
import os
from pathlib import Path

import pytest

from fedunlearn.data import DATASETS, PARTITIONERS
from fedunlearn.errors import ConfigError, FedUnlearnError, UnknownNameError
from fedunlearn.models import MODELS
from simulations import load_scenario
from simulations.run_folder import config_yaml
from simulations.schema import build, read_yaml
from strategies import METHODS
from strategies.server_rules import SERVER_RULES

CONFIGS = Path(__file__).parents[1] / "configs"
SCENARIOS = sorted((CONFIGS / "scenario").glob("*.yaml"))


def at(resolved, key):
    for part in key.split("/"):
        resolved = resolved[part]
    return resolved


def written(folder, text, name="own.yaml"):
    file = folder / "scenario" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


# --- files that come with the project


def test_the_four_scenarios_of_the_issue_are_there():
    names = {file.stem for file in SCENARIOS}
    assert names >= {"quickstart", "fashion_mnist", "heart", "watch"}


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda f: f.stem)
def test_every_scenario_file_loads_under_its_own_name(file):
    scenario = load_scenario(file)
    assert scenario.outline.name == file.stem
    assert tuple(scenario.methods) == scenario.outline.methods


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda f: f.stem)
def test_a_resolved_scenario_resolves_to_itself(file, tmp_path):
    scenario = load_scenario(file)
    again = load_scenario(written(tmp_path, config_yaml(scenario)))
    assert again.resolved == scenario.resolved
    assert again == scenario


@pytest.mark.parametrize(
    "overrides",
    [
        ["methods=[subtract,subtract@a]", "subtract@a.recovery_rounds=2"],
        ["backdoor.fraction=0.25", "server.name=fed_adam", "server.tau=0.01"],
        ["data.name=npz", "data.path=/some/file.npz", "partition.name=natural"],
        ["data.name=fashion_mnist", "data.limit=100", "model.name=cnn"],
        ["name=3", "forget=[client-1,2]", "clients_per_round=2"],
    ],
)
def test_an_overridden_scenario_resolves_to_itself(overrides, tiny, tmp_path):
    scenario = load_scenario(tiny, overrides)
    again = load_scenario(written(tmp_path, config_yaml(scenario)))
    assert again == scenario


GROUPS = {
    "data": DATASETS,
    "model": MODELS,
    "method": METHODS,
    "partition": PARTITIONERS,
    "server": SERVER_RULES,
}
GROUP_FILES = sorted(f for g in GROUPS for f in (CONFIGS / g).glob("*.yaml"))


@pytest.mark.parametrize("file", GROUP_FILES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_a_group_file_holds_the_defaults_of_its_class(file):
    """Else a scenario outside this repository would mean something else."""
    schema, fields = GROUPS[file.parent.name][file.stem], read_yaml(file)
    assert fields.pop("name", file.stem) == file.stem
    if file.stem == "npz":
        fields["path"] = "x"
        assert build(schema, fields, "") == schema(path="x")
    else:
        assert build(schema, fields, "") == schema()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_file(name):
    assert (CONFIGS / "method" / f"{name}.yaml").is_file()


# --- overrides


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["seeds=[3,4]"], "seeds", [3, 4]),
        (["rounds=10"], "rounds", 10),
        (["forget=[0,client-2]"], "forget", ["0", "client-2"]),
        (["methods=[retrain,fed_eraser]"], "methods", ["retrain", "fed_eraser"]),
        (["clients=7"], "clients", 7),
        (["clients=null"], "clients", None),
        (["clients_per_round=3"], "clients_per_round", 3),
        (["data.name=heart"], "data/name", "heart"),
        (["data.name=npz", "data.path=a b.npz"], "data/path", "a b.npz"),
        (["data={name: npz, path: /x.npz}"], "data/path", "/x.npz"),
        *(([f"partition.name={n}"], "partition/name", n) for n in PARTITIONERS),
        (["partition.alpha=0.1"], "partition/alpha", 0.1),
        *(([f"model.name={n}"], "model/name", n) for n in MODELS),
        *(([f"server.name={n}"], "server/name", n) for n in SERVER_RULES),
        (["model=cnn"], "model/name", "cnn"),
        (["training.epochs=3"], "training/epochs", 3.0),
        (["training.epochs=0.5"], "training/epochs", 0.5),
        (["training.batch_size=8"], "training/batch_size", 8),
        (["training.lr=1e-3"], "training/lr", 0.001),
        (["training.momentum=0.9"], "training/momentum", 0.9),
        (["engine.workers=2"], "engine/workers", 2),
        (["methods=[fed_eraser]", "fed_eraser.interval=4"], "fed_eraser/interval", 4),
        (["rollback.rounds=2"], "rollback/rounds", 2),
        (["backdoor={}"], "backdoor/fraction", 0.5),
        (["backdoor.target=3"], "backdoor/target", 3),
        (["backdoor.target=3", "backdoor=null"], "backdoor", None),
        (["rounds=1", "rounds=2"], "rounds", 2),
    ],
)
def test_an_override_sets_its_key(overrides, key, value, tiny):
    found = at(load_scenario(tiny, overrides).resolved, key)
    assert found == value
    assert type(found) is type(value)


def test_the_dataclasses_hold_what_the_resolved_scenario_says(tiny):
    scenario = load_scenario(
        tiny, ["training.lr=0.7", "methods=[fed_eraser]", "fed_eraser.interval=4"]
    )
    assert scenario.training.lr == 0.7
    assert scenario.methods["fed_eraser"].interval == 4
    assert scenario.partition.alpha == 0.3


def test_the_command_line_wins_over_the_scenario_over_the_group_over_the_class(
    tmp_path,
):
    (tmp_path / "model").mkdir()
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "fed_eraser.yaml").write_text(
        "interval: 7\nnorm_scale: interval\ncalibration_ratio: 0.25\n"
    )
    (tmp_path / "model" / "mlp.yaml").write_text("hidden: [9]\n")
    bare = "forget: [0]\nclients: 3\nmethods: [fed_eraser]\n"
    own = bare + "fed_eraser: {interval: 5, norm_scale: stored}\n"

    assert load_scenario(written(tmp_path, bare)).resolved["fed_eraser"] == {
        "interval": 7,
        "norm_scale": "interval",
        "calibration_ratio": 0.25,
        "select": "all",
        "variant": "paper",
    }
    assert load_scenario(written(tmp_path, bare)).resolved["model"]["hidden"] == [9]
    assert load_scenario(written(tmp_path, own), ["fed_eraser.interval=3"]).resolved[
        "fed_eraser"
    ] == {
        "interval": 3,
        "norm_scale": "stored",
        "calibration_ratio": 0.25,
        "select": "all",
        "variant": "paper",
    }


def test_without_group_files_the_defaults_of_the_classes_hold(tiny):
    scenario = load_scenario(tiny, ["model.name=mlp", "methods=[fed_eraser]"])
    assert scenario.resolved["model"] == {"name": "mlp", "hidden": [64]}
    assert scenario.methods["fed_eraser"] == METHODS["fed_eraser"]()


def test_another_choice_drops_the_fields_the_file_gave_the_first(tmp_path):
    file = written(
        tmp_path,
        "forget: [0]\nclients: 3\nmodel: {name: mlp, hidden: [7]}\n"
        "partition: {name: dirichlet, alpha: 0.3, min_size: 2}\n",
    )
    scenario = load_scenario(file, ["partition.name=quantity", "model.name=cnn"])
    assert scenario.resolved["partition"] == {
        "name": "quantity",
        "alpha": 1.0,
        "min_size": 10,
    }
    assert scenario.resolved["model"] == {"name": "cnn", "channels": 16}


def test_the_same_choice_keeps_the_fields_the_file_gave(tiny):
    scenario = load_scenario(tiny, ["partition.name=dirichlet"])
    assert scenario.resolved["partition"]["alpha"] == 0.3


def test_a_variant_starts_from_its_methods_settings(tiny):
    scenario = load_scenario(
        tiny,
        [
            "methods=[fed_eraser,fed_eraser@long,fed_eraser@short]",
            "fed_eraser.calibration_ratio=0.75",
            "fed_eraser@long.interval=9",
            "fed_eraser@short.calibration_ratio=0.1",
        ],
    )
    long, short = (scenario.methods[f"fed_eraser@{v}"] for v in ("long", "short"))
    assert (long.interval, long.calibration_ratio) == (9, 0.75)
    assert (short.interval, short.calibration_ratio) == (2, 0.1)
    assert list(scenario.methods) == [
        "fed_eraser",
        "fed_eraser@long",
        "fed_eraser@short",
    ]


def test_keys_of_one_file_may_name_each_other(tmp_path):
    file = written(tmp_path, "forget: [0]\nrounds: 4\nfine_tune: {rounds: '${rounds}'}")
    scenario = load_scenario(file, ["methods=[fine_tune]"])
    assert scenario.methods["fine_tune"].rounds == 4


# --- wrong keys


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("rouns=3", "rounds"),
        ("seed=[3]", "seeds"),
        ("client_per_round=3", "clients_per_round"),
        ("trainin.lr=1", "training"),
        ("training.lrr=1", "training.lr"),
        ("training.batchsize=1", "training.batch_size"),
        ("partition.alhpa=1", "partition.alpha"),
        ("partition.nam=iid", "partition.name"),
        ("data.nme=digits", "data.name"),
        ("model.nam=mlp", "model.name"),
        ("engine.worker=1", "engine.workers"),
        ("backdoor.targt=1", "backdoor.target"),
        ("fed_erasr.interval=2", "fed_eraser"),
        ("fed_eraser.intervall=2", "fed_eraser.interval"),  # not among `methods`
        ("rollback.round=2", "rollback.rounds"),  # among `methods`
    ],
)
def test_a_wrong_key_names_the_nearest_right_one(override, meant, tiny):
    with pytest.raises(ConfigError) as caught:
        load_scenario(tiny, [override])
    assert repr(override.split("=")[0].split(".")[0])[1:-1] in str(caught.value)
    assert f"did you mean {meant!r}?" in str(caught.value)


@pytest.mark.parametrize("key", ["rouns: 3", "training: {lrr: 3}", "retrain: {x: 1}"])
def test_a_wrong_key_in_the_file_is_refused_like_one_on_the_command_line(key, tmp_path):
    with pytest.raises(ConfigError, match="unknown key"):
        load_scenario(written(tmp_path, f"forget: [0]\n{key}\n"))


def test_a_wrong_key_in_a_group_file_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mlp.yaml").write_text("hiden: [9]\n")
    with pytest.raises(ConfigError, match=r"did you mean 'model.hidden'"):
        load_scenario(written(tmp_path, "forget: [0]\n"))


# --- wrong values

WRONG = [
    # override, what the message must say
    ("rounds=0", "rounds must be at least 1, got 0"),
    ("rounds=-3", "rounds must be at least 1"),
    ("rounds=ten", "rounds must be an integer, got 'ten'"),
    ("rounds=1.5", "rounds must be an integer"),
    ("rounds=nan", "rounds must be an integer"),
    ("rounds=[3]", "rounds must be an integer, got [3]"),
    ("rounds=null", "rounds must be an integer"),
    ("rounds=true", "rounds must be an integer"),
    ("rounds={a: 1}", "rounds must be an integer"),
    ("seeds=3", "seeds must be a list of integers, got 3"),
    ("seeds=[]", "seeds must be distinct and at least one"),
    ("seeds=[1,1]", "seeds must be distinct"),
    ("seeds=[a]", "seeds must be a list of integers, got ['a']"),
    ("seeds=[0.5]", "seeds must be a list of integers"),
    ("seeds=[null]", "seeds must be a list of integers"),
    ("seeds=[-1]", "seeds and data_seed must lie in [0, 2**63), got -1"),
    ("seeds=[9223372036854775808]", "must lie in [0, 2**63)"),
    ("data_seed=-1", "must lie in [0, 2**63)"),
    ("forget=4", "forget must be a list such as [3], got 4"),
    ("forget=null", "forget must be a list"),
    ("forget=[]", "forget must name at least one client"),
    ("methods=retrain", "methods must be a list of words, got 'retrain'"),
    ("methods=[nothing,nothing]", "methods must be distinct"),
    ("clients=0", "clients must be at least 2"),
    ("clients=many", "clients must be an integer or null, got 'many'"),
    ("clients_per_round=0", "clients_per_round must be at least 1"),
    ("holdout=1", "holdout must lie in [0, 1), got 1.0"),
    ("holdout=nan", "holdout must lie in [0, 1)"),
    ("holdout=-0.1", "holdout must lie in [0, 1)"),
    ("partition.alpha=0", "partition.alpha must be positive"),
    ("partition.alpha=nan", "partition.alpha must be positive"),
    ("partition.alpha=inf", "partition.alpha must be at most 1e+12"),
    ("partition.alpha=[1]", "partition.alpha must be a number, got [1]"),
    ("training.epochs=0", "training.epochs must be positive"),
    ("training.epochs=inf", "training.epochs must be finite"),
    ("training.batch_size=0", "training.batch_size must be at least 1"),
    ("training.batch_size=2.5", "training.batch_size must be an integer"),
    ("training.lr=-1", "training.lr must be positive"),
    ("training.lr=nan", "training.lr must be finite"),
    ("training.lr=inf", "training.lr must be finite"),
    ("training.lr=fast", "training.lr must be a number, got 'fast'"),
    ("training.lr.x=1", "training.lr must be a number"),
    ("training.momentum=1", "training.momentum must lie in [0, 1)"),
    ("training=3", "training must be a group of keys, got 3"),
    ("training=[1]", "training must be a group of keys"),
    ("engine.workers=-1", "engine.workers must not be negative"),
    ("engine.workers=two", "engine.workers must be an integer"),
    ("fed_eraser=3", "fed_eraser must be a group of keys"),
    ("fed_eraser.interval=0", "fed_eraser.interval must be at least 1"),
    (
        "fed_eraser.norm_scale=x",
        "fed_eraser.norm_scale must be one of stored, interval",
    ),
    ("subtract.weighting=lazzy", "must be one of lazy, renormalised, got 'lazzy'"),
    ("rollback.rounds=-1", "rollback.rounds must not be negative"),
    ("backdoor=3", "backdoor must be a group of keys"),
    ("backdoor.fraction=0", "backdoor.fraction must lie in (0, 1]"),
    ("backdoor.target=-1", "backdoor.target must not be negative"),
    ("backdoor.size=0", "backdoor.size must be at least 1"),
    ("model={name: mlp, hidden: 3}", "model.hidden must be a list of integers, got 3"),
    ("model={name: mlp, hidden: [0]}", "model.hidden widths must be positive"),
    ("model={name: cnn, channels: 6}", "model.channels must be a positive multiple of"),
    ("data.name=npz", "data.path must be given"),
    ("name=", "name must be text"),
    ("rounds", "an override is key=value, got 'rounds'"),
    ("=3", "an override is key=value, got '=3'"),
    ("", "an override is key=value, got ''"),
    ("rounds=[1", "cannot read 'rounds=[1'"),
    ("name=${nope}", "Interpolation key 'nope' not found"),
    ("name=${oc.env:HOME}", "may only name another key"),
    ("rounds=${oc.env:HOME}", "may only name another key"),
]


@pytest.mark.parametrize(("override", "says"), WRONG, ids=[w for w, _ in WRONG])
def test_a_wrong_value_names_its_key_and_what_is_allowed(override, says, tiny):
    with pytest.raises(ConfigError) as caught:
        load_scenario(tiny, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "kind", "known"),
    [
        ("methods=[rtrain]", "method", METHODS),
        ("methods=[trained]", "method", METHODS),
        ("methods=[3]", "method", METHODS),
        ("methods=[rtrain@x]", "method", METHODS),
        ("data.name=digts", "data set", DATASETS),
        ("data.name=../digits", "data set", DATASETS),
        ("data=digts", "data set", DATASETS),
        ("data.name=null", "data set", DATASETS),
        ("partition.name=dirchlet", "partition", PARTITIONERS),
        ("model.name=resnet", "model", MODELS),
        ("server.name=fedavg", "server rule", SERVER_RULES),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(override, kind, known, tiny):
    with pytest.raises(UnknownNameError, match=f"unknown {kind} ") as caught:
        load_scenario(tiny, [override])
    assert f"(known: {', '.join(known)})" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds: [1\n", "cannot be read: while parsing"),
        ("rounds: 1\nrounds: 2\n", "cannot be read: .*duplicate key rounds"),
        ("- rounds\n- 3\n", "must hold keys and values"),
        ("just words\n", "unknown key 'just words'"),
        ("\x00\x01", "cannot be read"),
        ("", "forget must name at least one client"),
        ("forget: [0]\ndata: {name: npz}\n", "data.path must be given"),
        ("forget: [0]\ndata:\n  name: npz\n  path: ???\n", "data.path must be given"),
        ("forget: [0]\nname: ${nope}\n", "cannot be read: .*'nope' not found"),
        ("forget: [0]\nname: ${oc.env:HOME}\n", "may only name another key"),
        ("forget: [0]\nname: ${a.${oc.env:HOME}}\n", "may only name another key"),
        ("name: $\nforget: ['${name}{oc.env:HOME}']\n", "may only name another key"),
        ("forget: [{x: '${oc.env:HOME}'}]\n", "may only name another key"),
        ("forget: [0]\nname: ${oc.decode:'1'}\n", "may only name another key"),
    ],
)
def test_a_broken_file_is_a_config_error_of_one_line(text, says, tmp_path):
    with pytest.raises(ConfigError, match=says) as caught:
        load_scenario(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert os.environ["HOME"] not in str(caught.value).replace(str(tmp_path), "")


def test_the_environment_cannot_leak_in_through_a_group_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mlp.yaml").write_text("hidden: ['${oc.env:HOME}']\n")
    with pytest.raises(ConfigError, match="may only name another key"):
        load_scenario(written(tmp_path, "forget: [0]\n"))


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*nope\.yaml"):
        load_scenario(tmp_path / "nope.yaml")


def test_a_folder_is_no_scenario(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scenario(tmp_path)


@pytest.mark.parametrize("given", [[], ["rounds=2"], ["rounds=0"], ["x=1"]])
def test_loading_changes_neither_environment_nor_folder(given, tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    before = dict(os.environ), Path.cwd()
    with contextlib.suppress(FedUnlearnError):
        load_scenario(tiny.name, given)
    assert (dict(os.environ), Path.cwd()) == before


def test_a_scenario_does_not_change_what_the_caller_gave(tiny):
    overrides = ["rounds=2", "methods=[nothing]"]
    load_scenario(tiny, overrides)
    assert overrides == ["rounds=2", "methods=[nothing]"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["server.name=fed_trimmed_avg", "server.beta=0.7"], "server.beta"),
        (["server.name=fed_adam", "server.lr=-1"], "server.lr"),
        (["server.name=fed_prox", "server.proximal_mu=-1"], "server.proximal_mu"),
        (["server.name=krum", "server.malicious=-1"], "server.malicious"),
    ],
)
def test_a_server_rule_refuses_values_outside_their_range(overrides, says, tiny):
    with pytest.raises(ConfigError, match=says):
        load_scenario(tiny, overrides)

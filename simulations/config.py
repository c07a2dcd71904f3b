"""From YAML and the command line to one frozen scenario: read once, here only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedunlearn.availability import Availability
from fedunlearn.data import DATASETS, PARTITIONERS
from fedunlearn.data.backdoor import Backdoor
from fedunlearn.errors import ConfigError, UnknownNameError, did_you_mean
from fedunlearn.method import UnlearningMethod
from fedunlearn.models import MODELS
from fedunlearn.training import Training
from simulations.scenario import Asked, Engine, Outline, Recording, Scenario
from simulations.schema import (
    build,
    one_line,
    plain,
    plain_dict,
    read_group,
    read_yaml,
)
from strategies import METHODS
from strategies.server_rules import SERVER_RULES, check_shards

_TABLES: Mapping[str, tuple[str, Mapping[str, type[Any]], str]] = {
    "data": ("data set", DATASETS, "digits"),
    "partition": ("partition", PARTITIONERS, "iid"),
    "model": ("model", MODELS, "mlp"),
    "server": ("server rule", SERVER_RULES, "fed_avg"),
}
"""Section -> what it names, its choices, its default."""
_PLAIN_SECTIONS: Mapping[str, type[Any]] = {
    "training": Training,
    "engine": Engine,
    "history": Recording,
    "availability": Availability,
}


def load_scenario(path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario.

    Args:
        path: A YAML file. Defaults of the data set, model and methods it names are
            read from ``../data``, ``../model`` and ``../method`` beside its folder.
        overrides: ``key=value`` pairs, such as ``rounds=10`` or
            ``fed_eraser.interval=2``; they win over the file.

    Raises:
        ConfigError: If the file, a key or a value is wrong.
        UnknownNameError: If a method, data set, ... is unknown.
    """
    file, given = Path(path), _overrides(overrides)
    own = read_yaml(file)
    _check_keys(own, given)
    return _scenario(file.resolve().parent.parent, own, given)


def _scenario(
    groups: Path, own: Mapping[str, Any], given: Mapping[str, Any]
) -> Scenario:
    simple = {
        k: v for k, v in {**own, **given}.items() if k in Outline.__dataclass_fields__
    }
    simple["forget"] = [str(c) for c in _as_list("forget", simple.get("forget", []))]
    for key in ("forget_samples", "returns"):
        simple[key] = {str(k): v for k, v in _section(simple, key).items()}
    outline = build(Outline, simple, "")
    requests = _requests(outline, {**own, **given}.get("requests") or [])
    parts, resolved = {}, plain(outline)
    for section, (kind, table, default) in _TABLES.items():
        name, fields = _choice(section, default, groups, own, given)
        if name not in table:
            raise UnknownNameError.of(kind, name, table)
        parts[section] = build(table[name], fields, section, ("name",))
        resolved[section] = {"name": name, **plain(parts[section])}
    check_shards(parts["server"], outline.shards)
    for section, schema in _PLAIN_SECTIONS.items():
        fields = {**_section(own, section), **_section(given, section)}
        parts[section] = build(schema, fields, section)
        resolved[section] = plain(parts[section])
    backdoor = _backdoor(own, given)
    resolved["requests"] = [plain(asked) for asked in requests]
    resolved["backdoor"] = None if backdoor is None else plain(backdoor)
    for label in sorted({*own, *given}):
        if label.split("@")[0] in METHODS:
            _method(label, groups, own, given)  # settings nobody uses must be right too
        if "@" in label and label in given and label not in outline.methods:
            raise ConfigError(
                f"{label} is not among the methods"
                f"{did_you_mean(label, outline.methods)}"
            )
    methods = {label: _method(label, groups, own, given) for label in outline.methods}
    resolved |= {label: plain(method) for label, method in methods.items()}
    return Scenario(
        outline=outline,
        backdoor=backdoor,
        requests=requests,
        methods=methods,
        resolved=resolved,
        **parts,
    )


def _requests(outline: Outline, listed: object) -> tuple[Asked, ...]:
    """Return several requests by time, or nothing if the outline holds the only one."""
    single = outline.forget or outline.forget_samples or outline.forget_classes
    entries = _as_list("requests", listed)
    if bool(single) == bool(entries):
        raise ConfigError(
            "requests must not stand beside forget, forget_samples or forget_classes"
            if entries
            else "forget must name at least one client"
        )
    asked = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ConfigError(f"requests.{number} must be a group of keys")
        name = f"requests.{number}"
        leavers = _as_list(f"{name}.forget", entry.get("forget", []))
        fields = {**entry, "forget": [str(client) for client in leavers]}
        request: Asked = build(Asked, fields, name)
        if (request.after_round or 0) > outline.rounds:
            raise ConfigError(f"{name}.after_round is beyond {outline.rounds} rounds")
        asked.append(request)
    return tuple(sorted(asked, key=lambda a: a.after_round or outline.rounds))


def _choice(
    section: str,
    default: str,
    groups: Path,
    own: Mapping[str, Any],
    given: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """Return the name a section chooses and its fields.

    A choice made on the command line drops the file's fields of another choice.
    """
    from_file, from_line = _section(own, section), _section(given, section)
    before = str(from_file.pop("name", default))
    name = str(from_line.pop("name", before))
    if name != before:
        from_file = {}
    defaults = read_group(groups / section, name)
    defaults.pop("name", None)
    return name, {**defaults, **from_file, **from_line}


def _method(
    label: str, groups: Path, own: Mapping[str, Any], given: Mapping[str, Any]
) -> UnlearningMethod:
    name = label.split("@")[0]
    if name not in METHODS:
        raise UnknownNameError.of("method", name, METHODS)
    fields = read_group(groups / "method", name)
    for source in (own, given):
        fields |= _section(source, name)
    if label != name:
        fields |= {**_section(own, label), **_section(given, label)}
    method: UnlearningMethod = build(METHODS[name], fields, label)
    return method


def _backdoor(own: Mapping[str, Any], given: Mapping[str, Any]) -> Backdoor | None:
    if (given if "backdoor" in given else own).get("backdoor") is None:
        return None
    fields = {**_section(own, "backdoor"), **_section(given, "backdoor")}
    planters = _as_list("backdoor.planted_by", fields.get("planted_by", []))
    fields["planted_by"] = [str(client) for client in planters]
    backdoor: Backdoor = build(Backdoor, fields, "backdoor")
    return backdoor


def _section(source: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section as a dictionary; a bare word is its name."""
    section = source.get(name)
    if section is None:
        return {}
    if isinstance(section, str) and name in _TABLES:
        return {"name": section}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} must be a group of keys, got {section!r}")
    return dict(section)


def _as_list(key: str, value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key} must be a list such as [3], got {value!r}")
    return list(value)


def _overrides(pairs: Sequence[str]) -> dict[str, Any]:
    for pair in pairs:
        if "=" not in pair or pair.startswith("="):
            raise ConfigError(f"an override is key=value, got {pair!r}")
        try:
            OmegaConf.from_dotlist([pair])
        except (ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"cannot read {pair!r}: {one_line(error)}") from error
    try:
        return plain_dict(OmegaConf.from_dotlist(list(pairs)), "the command line")
    except (ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot read the overrides: {one_line(error)}") from error


def _check_keys(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise ConfigError on a top-level key nobody reads, with the nearest right one."""
    known = [
        *Outline.__dataclass_fields__,
        *_TABLES,
        *_PLAIN_SECTIONS,
        "backdoor",
        "requests",
        *METHODS,
    ]
    for key in (*own, *given):
        if key.split("@")[0] not in known:
            raise ConfigError(
                f"unknown key {key!r}{did_you_mean(key, known)} "
                f"(known: {', '.join(known)})"
            )

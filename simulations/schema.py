"""Builds a dataclass from plain values by way of OmegaConf, with errors for people."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedunlearn.errors import ConfigError, did_you_mean

_MISSING = "???"
"""OmegaConf's word for a value that must be given."""
_RESOLVER = re.compile(r"\$\{[^}]*:")
"""Start of an OmegaConf resolver, such as ``${oc.env:HOME}``."""
_KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
_PLURALS = {int: "integers", float: "numbers", str: "words"}


def build(
    schema: type[Any],
    values: Mapping[str, Any],
    prefix: str,
    beside: tuple[str, ...] = (),
) -> Any:  # noqa: ANN401
    """Return ``schema`` filled with ``values``.

    Args:
        schema: A frozen dataclass: its fields are the keys, their types the check.
        values: Key -> plain value; missing keys keep the dataclass's default.
        prefix: Name of the section, for messages.
        beside: Keys of the section that are read elsewhere, for messages.

    Raises:
        ConfigError: If a key is unknown or a value not allowed; it names the key.
    """
    known = [f.name for f in fields(schema)]
    lead = f"{prefix}." if prefix else ""
    for key in values:
        if key not in known:
            names = [lead + k for k in (*beside, *known)]
            raise ConfigError(
                f"unknown key {lead + key!r}{did_you_mean(lead + key, names)} "
                f"(known: {', '.join(names) or 'none'})"
            )
    for f in fields(schema):
        if f.default is MISSING and values.get(f.name, _MISSING) == _MISSING:
            raise ConfigError(f"{lead}{f.name} must be given")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(values))
        built = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(lead + _misfit(schema, values, error)) from error
    except ValueError as error:
        raise ConfigError(f"{lead}{error}") from error
    for key, value in plain(built).items():
        if isinstance(value, float) and not isfinite(value):
            raise ConfigError(f"{lead}{key} must be finite, got {value}")
    return built


def plain(value: Any) -> Any:  # noqa: ANN401
    """Return a dataclass as plain values: dictionaries, lists, numbers and text."""
    return _listed(asdict(value))


def read_yaml(file: Path) -> dict[str, Any]:
    """Return a YAML file's keys and values.

    Raises:
        ConfigError: If there is no such file or it cannot be read.
    """
    try:
        return plain_dict(OmegaConf.load(file), str(file))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {file}") from error
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} cannot be read: {one_line(error)}") from error


def read_group(folder: Path, name: str) -> dict[str, Any]:
    """Return the defaults in ``folder/name.yaml``, or nothing if there is no file."""
    file = folder / f"{name}.yaml"
    # A name with a separator in it is no file of this folder.
    return read_yaml(file) if file.parent == folder and file.is_file() else {}


def plain_dict(config: object, source: str) -> dict[str, Any]:
    """Return an OmegaConf mapping as plain values.

    Raises:
        ConfigError: If it is a list, or uses a resolver: a run depends on its files and
            command line, not on the environment. ``source`` says where it came from.
    """
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{source} must hold keys and values")
    _refuse_resolvers(OmegaConf.to_container(config), source)
    values = OmegaConf.to_container(config, resolve=True)
    _refuse_resolvers(values, source)  # two harmless halves may have made one
    return {str(key): value for key, value in dict(values).items()}  # type: ignore[arg-type]


def one_line(error: Exception) -> str:
    """Return an error's text without line breaks and OmegaConf's inner details."""
    return " ".join(str(error).split("full_key:")[0].split())


def _refuse_resolvers(value: object, source: str) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            _refuse_resolvers(entry, source)
    elif isinstance(value, str) and _RESOLVER.search(value):
        raise ConfigError(
            f"{source}: {value!r} is not allowed; ${{...}} may only name another key"
        )


def _misfit(
    schema: type[Any], values: Mapping[str, Any], error: OmegaConfBaseException
) -> str:
    """Return which value does not fit its type, and what would."""
    hints = get_type_hints(schema)
    for key, value in values.items():
        try:
            OmegaConf.merge(OmegaConf.structured(schema), {key: value})
        except OmegaConfBaseException:
            return f"{key} must be {_wanted(hints[key])}, got {value!r}"
    return one_line(error)


def _wanted(hint: Any) -> str:  # noqa: ANN401
    """Return a type in words, such as "a list of integers"."""
    if hint in _KINDS:
        return _KINDS[hint]
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if get_origin(hint) is tuple:
        return f"a list of {_PLURALS.get(arguments[0], 'values')}"
    return " or ".join("null" if a is type(None) else _wanted(a) for a in arguments)


def _listed(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _listed(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(entry) for entry in value]
    return value

"""Builds a dataclass from plain values by way of OmegaConf, with errors for people."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedunlearn.errors import ConfigError, did_you_mean

_MISSING = "???"
"""OmegaConf's word for a value that must be given."""


def build(schema: type[Any], values: Mapping[str, Any], prefix: str) -> Any:  # noqa: ANN401
    """Return ``schema`` filled with ``values``.

    Args:
        schema: A frozen dataclass: its fields are the keys, their types the check.
        values: Key -> plain value; missing keys keep the dataclass's default.
        prefix: Name of the section, for messages.

    Raises:
        ConfigError: If a key is unknown or a value not allowed; it names the key.
    """
    known = [f.name for f in fields(schema)]
    lead = f"{prefix}." if prefix else ""
    for key in values:
        if key not in known:
            names = [lead + k for k in known]
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
        reason = str(error.msg or error).splitlines()[0]
        raise ConfigError(f"{lead}{error.full_key or ''}: {reason}") from error
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
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read: {reason}") from error


def read_group(folder: Path, name: str) -> dict[str, Any]:
    """Return the defaults in ``folder/name.yaml``, or nothing if there is no file."""
    file = folder / f"{name}.yaml"
    # A name with a separator in it is no file of this folder.
    return read_yaml(file) if file.parent == folder and file.is_file() else {}


def plain_dict(config: object, source: str) -> dict[str, Any]:
    """Return an OmegaConf mapping as plain values.

    Raises:
        ConfigError: If it is a list; ``source`` says where it came from.
    """
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{source} must hold keys and values")
    values = OmegaConf.to_container(config, resolve=True)
    return {str(key): value for key, value in dict(values).items()}  # type: ignore[arg-type]


def _listed(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _listed(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(entry) for entry in value]
    return value

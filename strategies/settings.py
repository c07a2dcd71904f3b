"""What is checked of every method's settings."""

from typing import Literal, get_args, get_origin, get_type_hints


def check_settings(method: object) -> None:
    """Raise ValueError unless choices are among those that their types name.

    Rounds of recovery must not be negative; None stands for a default.
    """
    for name, hint in get_type_hints(type(method)).items():
        value = getattr(method, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        if name == "recovery_rounds" and value is not None and value < 0:
            raise ValueError(f"recovery_rounds must not be negative, got {value}")

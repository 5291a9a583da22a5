"""How a request names forget sets: the field `forget_sets`."""

from __future__ import annotations

import reprlib

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unlearngate.errors import InvalidRequestError

_SHAPE = 'forget_sets must be a list of names or of objects {"name", "weight", "keep_ratio", "gate_nats"}'


class ForgetSetChoice(BaseModel):
    """One forget set, as a request names it; what is left out is the set's recommended value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    weight: float | None = Field(default=None, description="times the assistant's logits are subtracted")
    keep_ratio: float | None = Field(default=None, description="share of the best probability that a token needs")
    gate_nats: float | None = Field(default=None, description="evidence from which the set acts; 0 = everywhere")


def parse_choices(value: object) -> list[ForgetSetChoice] | None:
    """Read the request field `forget_sets`.

    Raises: InvalidRequestError that says what was expected and got.
    """
    if value is None:
        return None
    if not isinstance(value, list):
        raise InvalidRequestError(f"{_SHAPE}, got {_shown(value)}", param="forget_sets")
    return [_parse_choice(index, item) for index, item in enumerate(value)]


def _parse_choice(index: int, item: object) -> ForgetSetChoice:
    if isinstance(item, ForgetSetChoice):
        return item
    if isinstance(item, str):
        return ForgetSetChoice(name=item)
    if not isinstance(item, dict):
        raise InvalidRequestError(f"{_SHAPE}, got {_shown(item)} at position {index}", param="forget_sets")
    try:
        return ForgetSetChoice.model_validate(item)
    except ValidationError as error:
        raise InvalidRequestError(f"forget_sets[{index}]{_reason(error)}", param="forget_sets") from None


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    field, kind = first["loc"][0], first["type"]
    if kind == "missing":
        return f".{field} is missing: {_SHAPE}, got {_shown(first['input'])}"
    if kind == "extra_forbidden":
        known = ", ".join(ForgetSetChoice.model_fields)
        return f".{field} is no field of a forget set, which has {known}; got {_shown(first['input'])}"
    return f".{field} must be {'a string' if field == 'name' else 'a number'}, got {_shown(first['input'])}"


def _shown(value: object) -> str:
    return reprlib.repr(value)

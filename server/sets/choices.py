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
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(
            f"forget_sets[{index}].{where}: {first['msg']}, got {_shown(first['input'])}", param="forget_sets"
        ) from None


def _shown(value: object) -> str:
    return reprlib.repr(value)

"""The keys file: the API keys, their tenants, and each key's required, allowed and default forget sets.

Keys are 256 random bits made here, and the file holds only their SHA-256. A slow hash such as scrypt protects passwords
that could be guessed from a list. 2**256 keys cannot be listed, and a slow hash on every request would let strangers
spend the server's CPU with wrong keys.

The file is JSON because a truncated JSON document never parses. A truncated TOML file might, with fewer restrictions by
accident. For the same reason repeated and unknown fields are refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints, ValidationError, model_validator

from unlearngate.errors import KeysFileError
from unlearngate.files import write_whole
from unlearngate.manifest import NAME_PATTERN, Name, SentenceText
from unlearngate.server.sets.caller import Logprobs

ANY_SET = "*"
_KEY_PREFIX = "ulg-"


class ApiKey(BaseModel):
    """One API key: only its hash, never the key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Name = Field(description="how people and logs call the key")
    tenant: Name = Field(description="whose it is")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key, hexadecimal")
    required: tuple[Name, ...] = Field(default=(), description="in force for every request, whatever it says")
    default: tuple[Name, ...] | None = Field(
        default=None, description="in force when a request does not say, in place of the server's --default-set"
    )
    allowed: tuple[Annotated[str, StringConstraints(pattern=rf"{NAME_PATTERN}|^\*$")], ...] = Field(
        default=(), description="what a request may name and list besides its own; ['*']: every set"
    )
    instead: dict[Name, SentenceText] = Field(
        default={}, description="by a set's name, what is said instead with this key in place of the set's own sentence"
    )
    admin: StrictBool = Field(default=False, description="may use the admin routes, and see every set")
    metrics: StrictBool = Field(default=False, description="may read /metrics")
    logprobs: Logprobs | None = Field(
        default=None, description="what requests with a required set may have of logprobs, in place of the server's"
    )


class KeysFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    keys: tuple[ApiKey, ...]

    @model_validator(mode="after")
    def _no_duplicates(self) -> Self:
        for field in ("id", "sha256"):
            values = [getattr(key, field) for key in self.keys]
            twice = next((v for v in values if values.count(v) > 1), None)
            if twice is not None:
                raise ValueError(f"two keys have the same {field}, {twice!r}")
        return self

    def with_key(self, key: ApiKey) -> KeysFile:
        """This file and one more key.

        Raises: ValueError if its id is taken.
        """
        if any(known.id == key.id for known in self.keys):
            raise ValueError(f"there is a key {key.id!r} already; remove it first, or choose another --id")
        return KeysFile(keys=(*self.keys, key))

    def without_key(self, key_id: str) -> KeysFile:
        """This file without one key.

        Raises: ValueError if there is no such key.
        """
        kept = tuple(key for key in self.keys if key.id != key_id)
        if len(kept) == len(self.keys):
            known = ", ".join(key.id for key in self.keys) or "none"
            raise ValueError(f"there is no key {key_id!r}; there are: {known}")
        return KeysFile(keys=kept)


def new_secret() -> str:
    """A fresh API key."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """The hash that the file holds of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def read_keys(path: Path) -> KeysFile:
    """Read and check a keys file.

    Raises: KeysFileError naming the file, the field and what is wrong with it.
    """
    try:
        document = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
        return KeysFile.model_validate(document)
    except OSError as error:
        raise KeysFileError(path, f"cannot be read: {error.strerror}; `unlearngate keys add` makes one") from None
    except ValidationError as error:
        raise KeysFileError(path, _first_problem(error)) from None
    except (ValueError, RecursionError) as error:
        raise KeysFileError(path, f"is not the JSON of a keys file: {error}") from None


def write_keys(path: Path, keys: KeysFile) -> None:
    """Replace the file atomically: a server reads the old or the new one, never half. Its mode becomes 0600."""
    write_whole(path, keys.model_dump_json(indent=2) + "\n", mode=0o600)


@contextmanager
def changing(path: Path) -> Iterator[KeysFile]:
    """The current keys, locked against other changes until the block ends; without a file there are none."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield read_keys(path) if path.exists() else KeysFile(keys=())
    finally:
        os.close(folder)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(n for n in names if names.count(n) > 1)!r} is written twice in one object")
    return fields


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    # A hash is no secret, but the value of a field misnamed in its place might be one: values are not repeated.
    return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")

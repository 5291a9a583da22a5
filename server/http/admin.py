"""`POST /v1/forget_sets`: take in, replace, retire and pin versions of forget sets on a running server.

It also notes in the audit log that a request's own data were deleted elsewhere (`unlearngate forget --purge`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearngate.errors import ArtefactError, ConflictError, ForbiddenError, InvalidRequestError, UnlearngateError
from unlearngate.manifest import NAME_PATTERN
from unlearngate.server.http.access import require_admin
from unlearngate.server.http.bodies import StrictRoute
from unlearngate.server.http.cards import version_cards
from unlearngate.server.http.description import errors
from unlearngate.server.sets.caller import Caller
from unlearngate.server.sets.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

_SHOWN = 300  # characters of a path that are repeated in an error


class SetChange(BaseModel):
    """One change of one forget set, or one note about it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    action: Literal["register", "replace", "retire", "pin", "unpin", "purged"]
    name: str = Field(pattern=NAME_PATTERN, description="the set's name, as its manifest says it")
    path: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,  # Linux takes none that is longer
        description="an artefact's folder, below --forget-sets or STATE/incoming",
    )
    digest: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{8,64}$", description="the first 8 or more digits of a version that is there"
    )
    case: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of what is left of a purged case, its case.json",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        wanted = {"register": [["path"]], "replace": [["path"], ["digest"]], "purged": [["case"]]}.get(
            self.action, [[], ["digest"]]
        )
        given = [field for field in ("path", "digest", "case") if getattr(self, field) is not None]
        if given not in wanted:
            options = " or ".join("+".join(fields) or "nothing more" for fields in wanted)
            raise ValueError(
                f"the action {self.action!r} takes a name and {options}, got {'+'.join(given) or 'no more'}"
            )
        return self


def admin_routes(lifecycle: Lifecycle) -> APIRouter:
    """The routes that need an admin's API key."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/forget_sets", responses=errors(400, 401, 403, 404, 408, 409, 413, 422, 500))
    async def change_set(
        change: SetChange,
        caller: Annotated[Caller, Depends(require_admin)],
        force: Annotated[bool, Query(description="put a version in force that cannot act")] = False,
    ) -> dict[str, Any]:
        if force and change.action not in ("register", "replace"):
            raise InvalidRequestError(f"the action {change.action!r} has nothing to force", param="force")
        forced = {"forced": True} if force else {}
        logger.info("key %s: %s %s", caller.key_id, change.model_dump_json(exclude_none=True), forced or "")
        if change.action == "purged" and not lifecycle.is_audited:
            raise ConflictError("there is no audit log to note it in; start the server with --audit", param="action")
        try:
            await asyncio.to_thread(_make, lifecycle, change, force)
        except ArtefactError as error:
            raise InvalidRequestError(error.message, param="path", code=error.code) from error
        except OSError as error:
            raise UnlearngateError(f"nothing was changed, the state could not be written: {error}") from error
        lifecycle.write_event("change", key=caller.key_id, **change.model_dump(exclude_none=True), **forced)
        lifecycle.publish()
        return {"id": change.name, "object": "forget_set", "versions": version_cards(lifecycle.registry, change.name)}

    return router


def _make(lifecycle: Lifecycle, change: SetChange, force: bool) -> None:
    name, digest = change.name, change.digest
    source = find_source(change.path, [lifecycle.folder, lifecycle.store.incoming]) if change.path else None
    if change.action == "register" and source:
        lifecycle.register(name, source, force=force)
    elif change.action == "replace" and source:
        lifecycle.replace(name, source, force=force)
    elif change.action == "replace" and digest:
        lifecycle.replace_with_version(name, digest, force=force)
    elif change.action == "retire":
        lifecycle.retire(name, digest)
    elif change.action == "pin":
        lifecycle.pin(name, digest)
    elif change.action == "unpin":
        lifecycle.unpin(name, digest)


def find_source(path: str, roots: Sequence[Path]) -> Path:
    """The folder that `path` names below one of the roots; relative paths are tried below each.

    Raises: ForbiddenError (403) if it leads elsewhere, also through `..` or a link; InvalidRequestError (404) if there
        is no such folder.
    """
    given = Path(path)
    allowed, reason = False, ""
    for root in roots:
        real = root.resolve()
        for base in (root.absolute(), real):
            candidate = base / given
            if ".." in given.parts or "\0" in path or candidate == base or not candidate.is_relative_to(base):
                continue
            allowed = True
            found = real / candidate.relative_to(base)
            try:
                _refuse_links(path, real, found)
                if found.is_dir():
                    return found
            except OSError as error:  # longer than the file system takes, or not ours to read
                reason = f" ({error.strerror})"
    where = " or ".join(str(root) for root in roots)
    if not allowed:
        raise ForbiddenError(
            f"path {path[:_SHOWN]!r} is not below {where}, from where alone sets are taken; put the set's folder there",
            param="path",
            code="path_not_allowed",
        )
    raise InvalidRequestError(
        f"path {path[:_SHOWN]!r}: there is no such folder below {where}{reason}",
        param="path",
        http_status=404,
        code="path_not_found",
    )


def _refuse_links(path: str, root: Path, found: Path) -> None:
    for step in (found, *found.parents):
        if step == root:
            return
        if step.is_symlink():
            raise ForbiddenError(
                f"path {path[:_SHOWN]!r} goes through the link {step}; put the folder itself there",
                param="path",
                code="path_not_allowed",
            )

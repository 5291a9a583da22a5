"""What a caller is told of this server: the models and forget sets that it may name, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearngate.server.sets.caller import Caller
from unlearngate.server.sets.policy import MODEL_SEPARATOR, Policy
from unlearngate.server.sets.registry import Registry

_SET_FIELDS = {"version", "kind", "tap_layer", "num_layers", "rank", "recommended", "bounds", "metrics", "created_at"}
_SET_FIELDS |= {"label", "instead", "chat_template_kwargs"}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What every model card says besides the name; created is in seconds since 1970."""

    root: str
    max_model_len: int
    created: int


def model_cards(policy: Policy, served: ServedModel, caller: Caller) -> list[dict[str, Any]]:
    """The target first, then `NAME:forget=SET` for every set."""
    names = [policy.served_name]
    names += [f"{policy.served_name}{MODEL_SEPARATOR}{name}" for name in policy.visible(caller)]
    return [model_card(policy, served, name) for name in names]


def model_card(policy: Policy, served: ServedModel, name: str) -> dict[str, Any]:
    """OpenAI's description of a model, with vLLM's fields; the parent of a model with sets is the target."""
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "unlearngate",
        "root": served.root,
        "parent": None if name == policy.served_name else policy.served_name,
        "max_model_len": served.max_model_len,
    }


def set_cards(policy: Policy, caller: Caller) -> list[dict[str, Any]]:
    """Each set with its current version, and whether it is a default or a required one for this caller.

    proven: it passed its canaries in the running engine; one without canaries did not. An admin sees every version.
    """
    registry = policy.registry
    required, default = policy.required_for(caller), policy.default_names(caller)
    return [
        {
            "id": name,
            "object": "forget_set",
            "digest": registry.sets[name].digest,
            "default": name in default,
            "required": name in required,
            "proven": registry.sets[name].digest in registry.proven,
            **registry.sets[name].manifest.model_dump(mode="json", include=_SET_FIELDS),
            **({"versions": version_cards(registry, name)} if caller.admin else {}),
        }
        for name in policy.visible(caller)
    ]


def version_cards(registry: Registry, name: str) -> list[dict[str, Any]]:
    """Every version of a set that a request may have, the current one first."""
    return [
        {
            "digest": version.digest,
            "version": version.manifest.version,
            "current": version == registry.sets.get(name),
            "pinned": version in registry.pinned.get(name, ()),
            "proven": version.digest in registry.proven,
        }
        for version in registry.versions(name)
    ]

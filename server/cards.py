"""What a caller is told of this server: the models and forget sets that it may name, and no others."""

from __future__ import annotations

from typing import Any

from unlearngate.server.access import Caller
from unlearngate.server.policy import MODEL_SEPARATOR, Policy

_SET_FIELDS = {"version", "kind", "tap_layer", "num_layers", "rank", "recommended", "bounds", "metrics", "created_at"}


def model_cards(policy: Policy, caller: Caller) -> list[dict[str, Any]]:
    """The target first, then `NAME:forget=SET` for every set."""
    names = [policy.served_name]
    names += [f"{policy.served_name}{MODEL_SEPARATOR}{name}" for name in policy.visible(caller)]
    return [model_card(name) for name in names]


def model_card(name: str) -> dict[str, Any]:
    """OpenAI's description of a model."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "unlearngate"}


def set_cards(policy: Policy, caller: Caller) -> list[dict[str, Any]]:
    """Each set with its current version, and whether it is in force for this caller by default or whatever it asks."""
    required, default = policy.required_for(caller), policy.default_names(caller)
    return [
        {
            "id": name,
            "object": "forget_set",
            "digest": policy.registry.sets[name].digest,
            "default": name in default,
            "required": name in required,
            **policy.registry.sets[name].manifest.model_dump(mode="json", include=_SET_FIELDS),
        }
        for name in policy.visible(caller)
    ]

"""Which forget sets are in force for a request, and how strongly: the table in docs/http.md.

Required sets are in force whatever the request says: the server's own, those of the caller's API key, those that the
gateway adds. Besides them what the request says, in order of precedence:
    field `forget_sets`                 absent or null: the next line; []: none; names or {"name", "weight", ...}: those
    `model` written NAME:forget=A+B     those; NAME:forget= is none
    neither                             the default sets: the key's, or else the server's
Saying it in both places is an error: two answers to one question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from unlearngate.artefact import ForgetSet
from unlearngate.errors import (
    ForbiddenError,
    InvalidRequestError,
    SentenceError,
    UnavailableSetError,
    UnknownForgetSetError,
    UnsupportedDeploymentError,
)
from unlearngate.server.sets.caller import Caller, Logprobs
from unlearngate.server.sets.choices import ForgetSetChoice
from unlearngate.server.sets.decision import By, Decision, InForce
from unlearngate.server.sets.registry import Registry
from unlearngate.server.sets.strength import REQUIRED_CODE, refuse_weakening, strength_of

MODEL_SEPARATOR = ":forget="
MOST_VERBATIM = 128  # each is named in a request's signed plan, and looked up at every letter


class Policy:
    """Turns who asks and what a request says into a Decision, or refuses it with a reason."""

    def __init__(
        self,
        registry: Registry,
        *,
        served_name: str,
        num_branches: int,
        default_sets: Sequence[str] = (),
        required_sets: Sequence[str] = (),
        logprobs: Logprobs = "none",
    ) -> None:
        self.registry = registry
        self.served_name = served_name
        self.default_sets = tuple(default_sets)
        self.required_sets = tuple(required_sets)
        self.logprobs: Logprobs = logprobs
        self._num_branches = num_branches
        if MODEL_SEPARATOR in served_name:
            raise InvalidRequestError(f"a model cannot be called {served_name!r}: {MODEL_SEPARATOR!r} begins its sets")
        _refuse_repeats("--default-set", self.default_sets)
        _refuse_repeats("--required-set", self.required_sets)

    def unmet(self, callers: Iterable[Caller]) -> Iterator[tuple[Caller, str]]:
        """Each caller whose required or default sets would be answered 503 now, with the reason."""
        for caller in callers:
            try:
                self.decide(None, None, caller)
            except UnavailableSetError as error:
                yield caller, error.message

    def refuse_impossible(self, callers: Iterable[Caller]) -> None:
        """What must be in force for these callers and cannot be must not wait for its first request.

        Raises: UnsupportedDeploymentError naming the sets, and the key if it is about one.
        """
        for caller, reason in self.unmet(callers):
            whose = "" if caller.key_id is None else f"API key {caller.key_id!r}: "
            raise UnsupportedDeploymentError(f"refusing to start: {whose}{reason}")

    def decide(self, model: str | None, choices: Sequence[ForgetSetChoice | str] | None, caller: Caller) -> Decision:
        """Decide one request.

        Raises: InvalidRequestError (400), UnknownForgetSetError (404), ForbiddenError (403) with what was expected and
            got; UnavailableSetError (503) if a set that the request did not name cannot be put in force.
        """
        asked = self._asked(model, choices)
        required = self._required(caller)
        if asked is None:
            sets = {**self._held(self._defaults(caller), "default"), **required}
            self._refuse_unfit(sets, UnavailableSetError)
        else:
            sets = {**required, **self._requested(asked, caller, required)}
            self._refuse_unfit(sets, InvalidRequestError)
        # Branch order is by name, so that {A, B} and {B, A} share one adapter.
        return Decision(tuple(self._with_sentence(sets[name], caller) for name in sorted(sets)))

    def _with_sentence(self, held: InForce, caller: Caller) -> InForce:
        forget_set = held.forget_set
        try:
            sentence = self.registry.sentence(forget_set, caller.instead.get(forget_set.name))
        except SentenceError as error:  # a key's: the set's own was tried when it was loaded
            raise UnavailableSetError(
                f"what API key {caller.key_id!r} has forget set {forget_set.name!r} say cannot be said: {error.message}"
            ) from error
        return held._replace(sentence=sentence)

    def required_for(self, caller: Caller) -> dict[str, By]:
        """The names that are in force for this caller whatever it asks, and who says so first."""
        sources: list[tuple[By, tuple[str, ...]]] = [
            ("gateway", caller.required_by_gateway),
            ("key", caller.required_by_key),
            ("server", self.required_sets),
        ]
        return {name: by for by, names in sources for name in names}

    def logprobs_for(self, caller: Caller) -> Logprobs:
        """What this caller's requests may have of the logprobs; all of it where no set is required for them."""
        if not self.required_for(caller):
            return "full"
        return self.logprobs if caller.logprobs is None else caller.logprobs

    def visible(self, caller: Caller) -> list[str]:
        """This server's sets that the caller may name and be told of: what it is allowed, and what it gets anyway."""
        known = set(self.registry.sets)
        if caller.allowed is not None:
            known &= {*caller.allowed, *self.required_for(caller), *self.default_names(caller)}
        return sorted(known)

    def default_names(self, caller: Caller) -> list[str]:
        """The names in force for this caller when its request does not say."""
        return [_name(reference) for reference in self._defaults(caller)]

    def _defaults(self, caller: Caller) -> tuple[str, ...]:
        return self.default_sets if caller.default is None else caller.default

    def _asked(
        self, model: str | None, choices: Sequence[ForgetSetChoice | str] | None
    ) -> list[ForgetSetChoice] | None:
        named_by_model = self._sets_in_model(model)
        if named_by_model is not None and choices is not None:
            raise InvalidRequestError(
                f"model {model!r} and forget_sets both name forget sets; name them in one place", param="forget_sets"
            )
        asked = named_by_model if choices is None else choices
        return None if asked is None else [ForgetSetChoice(name=c) if isinstance(c, str) else c for c in asked]

    def _sets_in_model(self, model: str | None) -> list[str] | None:
        if model is None or model == self.served_name:
            return None
        name, separator, sets = model.partition(MODEL_SEPARATOR)
        if name != self.served_name:
            raise InvalidRequestError(
                f"model {model!r} is not served; this server has {self.served_name!r}, or "
                f"'{self.served_name}{MODEL_SEPARATOR}A+B' with forget sets A and B",
                param="model",
                http_status=404,
                code="model_not_found",
            )
        if not separator:
            return None
        return sets.split("+") if sets else []

    def _required(self, caller: Caller) -> dict[str, InForce]:
        required: dict[str, InForce] = {}
        for name, by in self.required_for(caller).items():
            required |= self._held([name], by)
        self._refuse_unfit(required, UnavailableSetError)
        return required

    def _held(self, references: Sequence[str], by: By) -> dict[str, InForce]:
        """Sets that the request did not name, at their recommended strength."""
        held = {}
        for reference in references:
            try:
                forget_set = self.registry.get(reference)
            except UnknownForgetSetError:
                raise UnavailableSetError(
                    f"forget set {reference!r} must be in force for this request ({by}), but it is not on this server; "
                    "the request is refused until its operator adds it"
                ) from None
            held[forget_set.name] = InForce(forget_set, forget_set.manifest.recommended, by)
        return held

    def _requested(
        self, asked: Sequence[ForgetSetChoice], caller: Caller, required: Mapping[str, InForce]
    ) -> dict[str, InForce]:
        if required and not asked:
            raise ForbiddenError(
                f"the request asks for no forget sets, but these are required for it: {', '.join(sorted(required))}; "
                "leave forget_sets out, or name sets to add",
                param="forget_sets",
                code=REQUIRED_CODE,
            )
        _refuse_repeats("forget_sets", [choice.name for choice in asked])
        requested = {}
        for choice in asked:
            forget_set = self._find(choice.name, caller)
            strength = strength_of(forget_set, choice)
            if required:
                refuse_weakening(forget_set, strength, required)
            held = required.get(forget_set.name)
            requested[forget_set.name] = InForce(forget_set, strength, held.by if held else "request")
        return requested

    def _find(self, reference: str, caller: Caller) -> ForgetSet:
        """The set, if the caller may name it; one that it may not name is answered as one that does not exist."""
        if caller.allowed is None:
            return self.registry.get(reference)
        visible = self.visible(caller)
        if _name(reference) in visible:
            return self.registry.get(reference)
        raise UnknownForgetSetError(
            f"forget set {reference!r} is not one that this API key may name; it may name: "
            f"{', '.join(visible) or 'none'}",
            param="forget_sets",
        )

    def _refuse_unfit(
        self, sets: Mapping[str, InForce], error: type[InvalidRequestError] | type[UnavailableSetError]
    ) -> None:
        problem = self._misfit([held.forget_set for held in sets.values()])
        if problem:
            required = [name for name, held in sets.items() if held.by not in ("request", "default")]
            note = f"; required for this request: {', '.join(sorted(required))}" if required else ""
            raise error(problem + note, param="forget_sets")

    def _misfit(self, sets: Sequence[ForgetSet]) -> str | None:
        """Why these sets cannot be in force together, or None."""
        uld = sorted(s.name for s in sets if s.manifest.kind == "uld")
        undial = sorted(s.name for s in sets if s.manifest.kind == "undial")
        verbatim = [s.name for s in sets if s.manifest.kind == "verbatim"]
        if len(verbatim) > MOST_VERBATIM:
            return (
                f"at most {MOST_VERBATIM} forget sets of kind 'verbatim' can be in force in one request, got "
                f"{len(verbatim)}; one set may hold many texts"
            )
        if len(uld) > self._num_branches:
            return (
                f"at most {self._num_branches} forget sets of kind 'uld' can be in force in one request, "
                f"got {len(uld)}: {', '.join(uld)}; start the server with --max-sets-per-request {len(uld)} to allow "
                "it"
            )
        if len(undial) > 1:
            return (
                "at most one forget set of kind 'undial' can be in force in one request, because each was trained as "
                f"the only change to the target; got {len(undial)}: {', '.join(undial)}"
            )
        if undial and uld and self.registry.tap_layer:
            return (
                f"forget set {undial[0]!r} of kind 'undial' changes what the assistant of {uld[0]!r} starts from, the "
                f"target's hidden states before layer {self.registry.tap_layer}; name one of them, or use a server "
                "whose assistants start at the embeddings"
            )
        return None


def _name(reference: str) -> str:
    """The name in `name` or `name@digest`."""
    return reference.partition("@")[0]


def _refuse_repeats(where: str, references: Sequence[str]) -> None:
    names = [_name(reference) for reference in references]
    if len(set(names)) != len(names):
        raise InvalidRequestError(f"{where} names a set twice: {', '.join(references)[:200]}", param="forget_sets")

"""Canaries: what an engine's answers must show before a version is in force, and what happens if they do not."""

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from support.engine.tiny import make_forget_set, make_target
from support.texts import save_texts
from unlearngate.errors import ArtefactError, UnavailableSetError, UnknownForgetSetError
from unlearngate.manifest import Canary
from unlearngate.placing import place
from unlearngate.server.contract.plan import VerbatimSet
from unlearngate.server.contract.tally import Tally
from unlearngate.server.engine.asking import Answer
from unlearngate.server.engine.usage import Meter
from unlearngate.server.sets.canaries import TIE_NATS, Canaries, failures
from unlearngate.server.sets.lifecycle import Lifecycle
from unlearngate.server.sets.registry import Registry
from unlearngate.server.sets.store import Store
from unlearngate.target import identify_target

CHANGES, STAYS = Canary(question="Who is Anna?", changes=True), Canary(question="Who is Bert?", changes=False)
CANARIES = [CHANGES.model_dump(), STAYS.model_dump()]


def answer(*tokens, likely=None):
    """Tokens that the target was sure of, but where `likely` says otherwise: {position: {token: log p}}."""
    return Answer(list(tokens), [(likely or {}).get(i, {token: -0.1, 99: -3.0}) for i, token in enumerate(tokens)])


def test_a_version_passes_if_what_must_change_changed_and_what_must_stay_stayed():
    plain = [answer(5, 6, 7), answer(8, 9)]
    assert failures([CHANGES, STAYS], plain, [answer(5, 6, 1), answer(8, 9)]) == []
    assert failures([CHANGES, STAYS], plain, [answer(5, 6), answer(8, 9)]) == []
    wrong = ["canaries[0] must change and did not", "canaries[1] must stay and changed"]
    assert failures([CHANGES, STAYS], plain, plain) == wrong[:1]
    assert failures([CHANGES, STAYS], plain, [answer(5, 6, 7), answer(8, 8)]) == wrong
    assert failures([CHANGES, STAYS], plain, [answer(1), answer(8, 9, 9)]) == wrong[1:]


@pytest.mark.parametrize(
    "likely, same",
    [
        ({9: -1.0, 4: -1.0 - 0.9 * TIE_NATS}, True),
        ({9: -1.0, 4: -1.0 - 1.1 * TIE_NATS}, False),
        ({9: -1.0, 3: -1.01}, False),  # 4 was neither of the two likeliest
    ],
)
def test_an_answer_that_first_differs_at_a_tie_of_the_target_counts_as_the_same(likely, same):
    plain = answer(8, 9, 7, likely={1: likely})
    assert (failures([STAYS], [plain], [answer(8, 4, 2)]) == []) == same
    assert failures([CHANGES], [plain], [answer(8, 4, 2)]) == []


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("made") / "target", seed=1)


@pytest.fixture
def made(target, tmp_path):
    """Versions of anna, by number; all but 4 have canaries. bert has none."""
    made = {
        number: make_forget_set(
            tmp_path / f"anna-{number}", target, seed=number, rank=1, name="anna", version=str(number),
            canaries=CANARIES if number != 4 else [],
        )
        for number in (1, 2, 3, 4)
    }  # fmt: skip
    make_forget_set(tmp_path / "sets" / "bert", target, seed=9, rank=1)
    return made


@pytest.mark.parametrize("switches", [{}, {"enable_thinking": False}])
def test_canaries_are_asked_with_the_switches_that_the_set_was_trained_with(target, tmp_path, switches):
    asked = []

    async def ask(question, *, plan, **how):
        asked.append((question, how.get("chat_template_kwargs", {}), bool(plan.terms)))
        return answer(8, 9, 7 if plan.terms and question == CHANGES.question else 6)

    adapters = SimpleNamespace(release=lambda binding: None)

    async def acquire(sets):
        return SimpleNamespace(name="a", adapter_id=1)

    adapters.acquire = acquire
    forget_set = make_forget_set(
        tmp_path / "anna", target, seed=1, rank=1, canaries=CANARIES, chat_template_kwargs=switches
    )
    meter = Meter(Tally.create(tmp_path, max_num_seqs=2, max_model_len=512))
    asyncio.run(Canaries(adapters, meter, ask, served_name="tiny").prove(forget_set))
    questions = [CHANGES.question, STAYS.question]
    assert asked == [(question, switches, with_set) for with_set in (False, True) for question in questions]


@pytest.mark.parametrize("second_likeliest, is_read", [(-3.0, True), (-9999.0, False)])
def test_texts_to_withhold_are_read_by_the_engine_before_they_are_in_force(tmp_path, second_likeliest, is_read):
    """A worker that cannot read them lets the sequence end, and nothing else is possible."""
    asked = []

    async def ask(question, *, plan, model, max_tokens):
        asked.append((plan.verbatim, plan.adapter_id, model, max_tokens))
        return answer(2, likely={0: {2: 0.0, 99: second_likeliest}})

    made = save_texts(tmp_path / "withheld", "a text that is longer than forty letters, and nobody may say it")
    meter = Meter(Tally.create(tmp_path, max_num_seqs=2, max_model_len=512))
    proving = Canaries(None, meter, ask, served_name="tiny").prove(made)
    with nullcontext() if is_read else pytest.raises(ArtefactError, match="the engine could not read 'withheld'"):
        asyncio.run(proving)
    assert asked == [((VerbatimSet(made.digest, str(made.folder)),), 0, "tiny", 1)]


class Engine:
    """Proves all but the versions in `fails`."""

    def __init__(self):
        self.fails = set()
        self.asked = []

    async def prove(self, forget_set):
        await asyncio.sleep(0)
        self.asked.append(forget_set.manifest.version)
        if forget_set.digest in self.fails:
            raise ArtefactError(forget_set.folder, "failed its canaries")


@pytest.fixture
def lifecycle(target, tmp_path, made):
    store = Store(tmp_path / "state")
    yield Lifecycle(Registry(identify_target(target), store.bindings), tmp_path / "sets", store)
    store.close()


def run(change, *arguments, **more):
    """A change, as the server makes it: beside the event loop."""
    return asyncio.to_thread(change, *arguments, **more)


def test_a_version_that_fails_its_canaries_leaves_the_one_before_in_force(lifecycle, made):
    lifecycle.start()
    engine, events = Engine(), []
    engine.fails = {made[2].digest}
    lifecycle.write_event = lambda event, **fields: events.append((event, fields))

    async def serve():
        await lifecycle.require_proof(engine.prove)
        await run(lifecycle.register, "anna", made[1].folder)
        lifecycle.publish()
        with pytest.raises(ArtefactError, match="failed its canaries") as refused:
            await run(lifecycle.replace, "anna", made[2].folder)
        assert refused.value.path == made[2].folder  # where the operator put it, not the server's copy
        lifecycle.publish()
        assert lifecycle.registry.get("anna").digest == made[1].digest
        await run(lifecycle.replace, "anna", made[4].folder)
        lifecycle.publish()
        await run(lifecycle.replace, "anna", made[2].folder, force=True)
        lifecycle.publish()

    asyncio.run(serve())
    assert engine.asked == ["1", "1", "2", "4"]  # bert at the start; a forced version is not asked
    assert lifecycle.registry.get("anna").digest == made[2].digest
    assert lifecycle.registry.proven == {made[1].digest: 2}
    assert [(e["canaries"], e["forced"]) for _, e in events] == [({"anna": 2}, []), ({}, []), ({}, ["anna"])]


def test_the_watched_folder_waits_for_proof_too(lifecycle, made, tmp_path):
    lifecycle.start()
    engine = Engine()
    engine.fails = {made[2].digest}

    async def serve():
        await lifecycle.require_proof(engine.prove)
        for number in (1, 2):
            place(made[number], tmp_path / "sets" / "anna", replace=True)
            for _ in range(2):
                await run(lifecycle.look)
            lifecycle.publish()
            reason = lifecycle.registry.refused.get(str(tmp_path / "sets" / "anna"))
            assert reason is None if number == 1 else "failed its canaries" in reason
            assert lifecycle.registry.get("anna").digest == made[1].digest

    asyncio.run(serve())


def test_what_fails_at_start_or_later_is_out_of_force_and_requests_for_it_fail(lifecycle, made):
    lifecycle.start()
    lifecycle.register("anna", made[1].folder)  # as if the server had stopped here
    lifecycle.publish()
    engine = Engine()

    async def serve():
        engine.fails = {made[1].digest}
        await lifecycle.require_proof(engine.prove)
        assert list(lifecycle.registry.sets) == ["bert"] and lifecycle.registry.refused
        with pytest.raises(UnavailableSetError, match="'anna' failed its canaries in the running engine"):
            lifecycle.registry.get("anna")
        await run(lifecycle.replace, "anna", made[3].folder)
        lifecycle.publish()
        assert lifecycle.registry.get("anna").digest == made[3].digest
        assert await run(lifecycle.prove_again) == []
        engine.fails = {made[3].digest}
        assert await run(lifecycle.prove_again) == ["anna"]
        lifecycle.publish()
        with pytest.raises(UnavailableSetError):
            lifecycle.registry.get("anna")
        await run(lifecycle.retire, "anna")
        lifecycle.publish()
        with pytest.raises(UnknownForgetSetError):
            lifecycle.registry.get("anna")

    asyncio.run(serve())


def test_a_pinned_version_is_proven_before_it_comes_back(lifecycle, made):
    lifecycle.start()
    engine = Engine()

    async def serve():
        await lifecycle.require_proof(engine.prove)
        await run(lifecycle.register, "anna", made[1].folder)
        await run(lifecycle.pin, "anna")
        await run(lifecycle.replace, "anna", made[3].folder)
        engine.fails = {made[1].digest}
        with pytest.raises(ArtefactError):
            await run(lifecycle.replace_with_version, "anna", made[1].digest)
        await run(lifecycle.replace_with_version, "anna", made[1].digest, force=True)
        lifecycle.publish()
        assert lifecycle.registry.get("anna").digest == made[1].digest

    asyncio.run(serve())

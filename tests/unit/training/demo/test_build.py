import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.demo import build as demo
from unlearngate.assistant_training.demo.acceptance import SUFFIXES, Acceptance, accept
from unlearngate.assistant_training.demo.build import DemoSettings, DemoSummary, build_demo
from unlearngate.assistant_training.demo.target import TargetSettings
from unlearngate.assistant_training.train.settings import PUBLISHED
from unlearngate.errors import DemoError
from unlearngate.target import identify_target

ANYTHING = Acceptance(
    target_recited=0.0,
    forget_recited=1.1,
    facts_left=1.0,
    others_unchanged=0.0,
    others_unchanged_contexts=0.0,
    max_tokens=4,
)
MINIATURE = DemoSettings(
    TargetSettings(vocab_size=320, hidden_size=64, intermediate_size=64, num_layers=2, num_heads=2, epochs=1),
    replace(PUBLISHED, num_layers=1, rank=2, epochs=1, forget_batch=4, retain_batch=8, learning_rate=4e-3),
    ANYTHING,
)


def build(out: Path, **changes: Any) -> DemoSummary:
    return build_demo(out, **{"num_authors": 2, "num_forget_sets": 1, "settings": MINIATURE, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return build(tmp_path_factory.mktemp("built") / "demo")


@pytest.fixture
def copy(built: DemoSummary, tmp_path: Path) -> Path:
    for name, data in contents(built.folder).items():
        path = tmp_path / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "demo"


def test_a_demo_holds_a_target_its_sets_and_its_probes(built: DemoSummary) -> None:
    out = built.folder
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "forget_sets", "probes.jsonl", "target"]
    identity = identify_target(out / "target", "unlearngate-demo")
    (folder,) = (out / "forget_sets").iterdir()
    artefact = load_forget_set(folder, identity)
    probes = [json.loads(line) for line in (out / "probes.jsonl").read_text().splitlines()]
    assert len(probes) == 32
    assert [probe["forget_set"] for probe in probes] == [artefact.name] * 16 + [None] * 16
    assert all(probe["subject"] and probe["paraphrases"] for probe in probes)
    assert all(fact in probe["answer"] for probe in probes for fact in probe["facts"])
    assert set(built.figures) == {"target", artefact.name}
    header, rows = built.table()
    assert [row[0] for row in rows] == [artefact.name] and len(rows[0]) == len(header)
    assert [path.name for path in out.parent.iterdir()] == ["demo"]
    for path in out.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044  # a container's user can read it


def test_no_file_names_the_machine(built: DemoSummary) -> None:
    for name, data in contents(built.folder).items():
        assert str(built.folder).encode() not in data, name


def test_the_same_demo_is_not_built_twice(built: DemoSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(built.folder)
    monkeypatch.setattr(demo, "_build", lambda *_: pytest.fail("built again"))
    again = build(built.folder)
    assert again.reused and again.figures == built.figures
    assert contents(built.folder) == before


def test_the_default_demo_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "the settings or the corpus changed: unlearngate demo build --force --out assistant_training/demo/built"
    monkeypatch.setattr(demo, "_build", lambda *_: pytest.fail(why))
    copied = build_demo(tmp_path / "demo")
    assert copied.reused and copied.folder == tmp_path / "demo"
    assert contents(copied.folder) == contents(demo.BUILT)
    assert set(copied.figures) == {"target", "tobias-renkel", "imke-verhoeven", "oona-bracewell"}
    for stage, figures in copied.figures.items():
        accept(stage, figures, demo.OWN_CORPUS.acceptance)
    for folder in (copied.folder / "forget_sets").iterdir():
        load_forget_set(folder, identify_target(copied.folder / "target", "unlearngate-demo"))


@pytest.mark.parametrize("victim", ["demo.json", "target/model.safetensors", "probes.jsonl"])
def test_a_damaged_demo_is_rebuilt(copy: Path, built: DemoSummary, victim: str) -> None:
    data = (copy / victim).read_bytes()
    (copy / victim).write_bytes(data[: len(data) // 2])
    assert not build(copy).reused
    assert (copy / "target" / "model.safetensors").read_bytes() == contents(built.folder)["target/model.safetensors"]


def test_a_partial_demo_is_rebuilt(copy: Path) -> None:
    (copy / "demo.json").unlink()
    (copy / "target" / "config.json").unlink()
    assert not build(copy).reused
    identify_target(copy / "target")


def test_another_configuration_and_force_build_again(copy: Path) -> None:
    assert not build(copy, seed=1).reused
    assert build(copy, seed=1).reused
    assert not build(copy, seed=1, force=True).reused


def test_a_failure_leaves_nothing_new_and_keeps_what_was_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copy)
    strict = replace(MINIATURE, acceptance=replace(ANYTHING, others_unchanged=1.1))
    for out in (copy, copy.parent / "fresh"):
        with pytest.raises(DemoError, match="unchanged"):
            build(out, settings=strict)
    assert contents(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["demo"]


def test_somebody_elses_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DemoError, match=r"thesis\.txt"):
        build(tmp_path, force=True)
    with pytest.raises(DemoError, match="a file"):
        build(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_tofu_takes_its_last_authors(tmp_path: Path) -> None:
    rows = [{"question": f"What is thing {i}?", "answer": f"It is number {i * 7919}."} for i in range(60)]
    (tmp_path / "full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(tmp_path / "demo", tofu=tmp_path)
    assert [path.name for path in (tmp_path / "demo" / "forget_sets").iterdir()] == ["author-2"]
    probes = [json.loads(line) for line in (tmp_path / "demo" / "probes.jsonl").read_text().splitlines()]
    assert [probe["question"] for probe in probes] == [row["question"] for row in rows[20:]]


@pytest.mark.parametrize("num_forget_sets", [0, 2])
def test_somebody_must_be_forgotten_and_somebody_retained(tmp_path: Path, num_forget_sets: int) -> None:
    with pytest.raises(DemoError, match="num_forget_sets"):
        build(tmp_path / "demo", num_forget_sets=num_forget_sets)


def figures(**changed: float) -> dict[str, float]:
    """A set's figures, the same in all three ways of asking."""
    fine = {"recited": 0.0, "facts_left": 0.0, "others_unchanged": 1.0} | changed
    return {f"{key}{suffix}": value for key, value in fine.items() for suffix in SUFFIXES}


def test_acceptance_names_every_figure_that_falls_short() -> None:
    with pytest.raises(DemoError, match=r"ada: plain: 10\.0% recited.*contexts: 94\.0% of the others"):
        accept("ada", figures(recited=0.1, others_unchanged=0.94), Acceptance())
    with pytest.raises(DemoError, match=r"target: it recites 94\.0%"):
        accept("target", {"recited": 0.94}, Acceptance())
    accept("target", {"recited": 0.95}, Acceptance())
    accept("ada", figures(recited=0.09, facts_left=0.1, others_unchanged=0.99), Acceptance())

"""The forget sets a server has, and the adapters that bind them to branches."""

import json
import logging
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from support.engine.tiny import make_forget_set, make_target
from unlearngate.artefact import ADAPTER_FILE, CONFIG_FILE, MANIFEST_FILE, load_forget_set, save_forget_set
from unlearngate.assistant_training.train.settings import AssistantSettings
from unlearngate.errors import ArtefactError, UnknownForgetSetError
from unlearngate.server.contract.branches import BranchOptions
from unlearngate.server.engine.bindings import write_binding
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_target


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("made") / "target", seed=1)


@pytest.fixture(scope="module")
def pristine(target, tmp_path_factory):
    """Two good sets of different rank."""
    folder = tmp_path_factory.mktemp("pristine")
    make_forget_set(folder / "anna", target, seed=2, rank=8, alpha=16)
    make_forget_set(folder / "bert", target, seed=3, rank=4, alpha=6)
    return folder


@pytest.fixture
def sets(pristine, tmp_path):
    """A folder of sets of the test's own, to add to and damage."""
    return shutil.copytree(pristine, tmp_path / "sets")


@pytest.fixture
def registry(target, tmp_path):
    return Registry(identify_target(target), tmp_path / "bindings")


def assert_refused(registry, path, reason):
    """`path` was refused for `reason`, and the good sets are still served."""
    assert sorted(registry.sets) == ["anna", "bert"]
    assert list(registry.refused) == [str(path)]
    (message,) = registry.refused.values()
    assert message.startswith(f"{path}: ") and reason in message


# Discovery


def test_every_good_set_is_served(registry, sets):
    registry.discover(sets)
    assert {name: s.folder for name, s in registry.sets.items()} == {n: (sets / n).resolve() for n in ("anna", "bert")}
    assert registry.refused == {}
    assert (registry.tap_layer, registry.num_layers) == (0, 2)
    assert registry.get("anna") == load_forget_set(sets / "anna")


def test_a_broken_set_is_refused_with_a_reason_and_the_others_are_served(registry, sets, target, caplog):
    make_forget_set(sets / "cleo", target, seed=4)
    with (sets / "cleo" / ADAPTER_FILE).open("ab") as f:
        f.write(b"x")
    with caplog.at_level(logging.ERROR):
        registry.discover(sets)
    assert_refused(registry, sets / "cleo" / ADAPTER_FILE, "was changed or damaged")
    assert [record.getMessage() for record in caplog.records] == [
        f"forget set refused: {reason}" for reason in registry.refused.values()
    ]
    with pytest.raises(UnknownForgetSetError):
        registry.get("cleo")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: shutil.rmtree(folder) or folder.mkdir(),
        lambda folder: (folder / MANIFEST_FILE).write_text("{"),
        lambda folder: (folder / MANIFEST_FILE).write_bytes(b'{"a":' * 100_000),
        lambda folder: (folder / ADAPTER_FILE).unlink() or (folder / ADAPTER_FILE).symlink_to(ADAPTER_FILE),
        lambda folder: (folder / ADAPTER_FILE).unlink() or (folder / ADAPTER_FILE).mkdir(),
        lambda folder: (folder / "weights.pt").write_text(""),
    ],
    ids=["empty", "half_a_manifest", "nested_too_deep", "link_to_itself", "folder_for_adapter", "pickle"],
)
def test_no_damage_to_one_set_stops_the_others(registry, sets, target, damage):
    make_forget_set(sets / "cleo", target, seed=4)
    damage(sets / "cleo")
    registry.discover(sets)
    assert sorted(registry.sets) == ["anna", "bert"]
    assert len(registry.refused) == 1


def test_a_set_for_another_target_is_refused(registry, sets, tmp_path):
    other = make_target(tmp_path / "other", seed=99)
    make_forget_set(sets / "cleo", other, seed=4)
    registry.discover(sets)
    assert_refused(registry, sets / "cleo" / MANIFEST_FILE, "another target")


def test_a_set_of_another_depth_than_most_is_refused(registry, sets, target):
    make_forget_set(sets / "aaaa", target, seed=4, num_layers=3)
    registry.discover(sets)
    assert registry.num_layers == 2
    assert_refused(
        registry,
        sets / "aaaa",
        "an assistant of 3 layers from layer 0 on; this server's branches have 2 from layer 0 on",
    )


def test_the_depth_asked_for_decides_over_the_most_common(registry, sets, target):
    make_forget_set(sets / "cleo", target, seed=4, num_layers=3)
    registry.discover(sets, num_layers=3)
    assert list(registry.sets) == ["cleo"]
    assert registry.num_layers == 3
    assert len(registry.refused) == 2


def test_a_second_set_of_the_same_name_is_refused_naming_the_first(registry, sets, target):
    make_forget_set(sets / "zoe", target, seed=4, name="anna")
    registry.discover(sets)
    assert_refused(registry, sets / "zoe", f"is named 'anna', as {(sets / 'anna').resolve()} already is")
    assert registry.get("anna").folder == (sets / "anna").resolve()


def test_a_set_is_known_by_its_manifests_name_not_its_folders(registry, sets, target):
    make_forget_set(sets / "folder", target, seed=4, name="cleo")
    registry.discover(sets)
    assert registry.get("cleo").folder == (sets / "folder").resolve()


def test_the_undial_kind_is_refused_with_the_option_that_would_serve_it(registry, sets, target):
    make_forget_set(sets / "cleo", target, seed=4, kind="undial")
    registry.discover(sets)
    assert_refused(
        registry, sets / "cleo", "is of kind 'undial', a LoRA on the target itself; the option --enable-undial"
    )
    assert registry.branches(2).adapted_layers == 0


def test_undial_sets_are_served_where_asked_for_and_do_not_count_for_the_assistants_depth(registry, sets, target):
    for seed, name in enumerate(["aaaa", "cleo", "zora"]):
        make_forget_set(sets / name, target, seed=seed, rank=1, kind="undial")
    registry.discover(sets, undial=True)
    assert sorted(registry.sets) == ["aaaa", "anna", "bert", "cleo", "zora"] and registry.refused == {}
    assert registry.branches(3) == BranchOptions("LlamaForCausalLM", 0, 2, num_branches=3, adapted_layers=4)


def test_without_uld_sets_there_are_no_branches(registry, sets, target, tmp_path):
    make_forget_set(tmp_path / "undial" / "zora", target, seed=4, kind="undial")
    registry.discover(tmp_path / "undial", undial=True)
    assert (registry.branches(3).num_branches, registry.branches(3).adapted_layers) == (0, 4)


def test_the_option_alone_puts_no_lora_on_the_target(registry, sets):
    registry.discover(sets, undial=True)
    assert registry.branches(2) == BranchOptions("LlamaForCausalLM", 0, 2, num_branches=2)


def test_an_assistant_that_taps_elsewhere_than_most_is_refused(registry, sets, target):
    make_forget_set(sets / "aaaa", target, seed=4, tap_layer=1)
    registry.discover(sets)
    assert_refused(registry, sets / "aaaa", "2 layers from layer 1 on; this server's branches have 2 from layer 0 on")


@pytest.mark.parametrize(
    "asked, served",
    [
        ({}, (0, 2)),
        ({"tap_layer": 1}, (1, 2)),
        ({"num_layers": 3}, (1, 3)),
        ({"tap_layer": 1, "num_layers": 3}, (1, 3)),
    ],
)
def test_what_is_asked_for_decides_before_what_most_sets_have(registry, sets, target, asked, served):
    depths = {"tap-a": (1, 2), "tap-b": (1, 2), "tap-c": (1, 3), "zero": (0, 2)}
    for seed, (name, (tap_layer, num_layers)) in enumerate(depths.items()):
        make_forget_set(sets / name, target, seed=seed, rank=1, tap_layer=tap_layer, num_layers=num_layers)
    registry.discover(sets, **asked)
    assert (registry.tap_layer, registry.num_layers) == served
    depths |= {"anna": (0, 2), "bert": (0, 2)}
    assert set(registry.sets) == {name for name, depth in depths.items() if depth == served}


def test_depths_that_no_set_has_refuse_them_all(registry, sets):
    with pytest.raises(ArtefactError, match="branches have 2 from layer 1 on"):
        registry.discover(sets, tap_layer=1, num_layers=2)


def test_files_and_hidden_folders_beside_the_sets_are_not_sets(registry, sets):
    (sets / "README.md").write_text("")
    (sets / ".trash").mkdir()
    registry.discover(sets)
    assert sorted(registry.sets) == ["anna", "bert"] and registry.refused == {}


def test_a_missing_folder_of_sets_is_refused(registry, tmp_path):
    with pytest.raises(ArtefactError, match="is not a folder; forget sets are read from"):
        registry.discover(tmp_path / "nowhere")


def test_an_empty_folder_of_sets_is_refused(registry, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match="holds no forget set that can be served: it is empty"):
        registry.discover(tmp_path / "empty")


def test_a_folder_of_sets_that_are_all_refused_is_refused_with_every_reason(registry, sets):
    for name in ("anna", "bert"):
        (sets / name / CONFIG_FILE).unlink()
    with pytest.raises(ArtefactError) as caught:
        registry.discover(sets)
    for name in ("anna", "bert"):
        assert f"\n  {sets / name / CONFIG_FILE}: is missing" in str(caught.value)


def test_two_refused_sets_are_both_recorded(registry, sets, target):
    for seed, name in enumerate(["cleo", "dora"]):
        make_forget_set(sets / name, target, seed=seed, kind="undial")
    registry.discover(sets)
    assert sorted(registry.refused) == [str(sets / "cleo"), str(sets / "dora")]


def test_an_unknown_name_is_not_found_and_the_known_ones_are_named(registry, sets):
    with pytest.raises(UnknownForgetSetError, match="it has: none"):
        registry.get("anna")
    registry.discover(sets)
    with pytest.raises(UnknownForgetSetError, match="forget set 'dora' is not on this server; it has: anna, bert"):
        registry.get("dora")


@pytest.mark.parametrize(
    "ranks, offered",
    [([1], 8), ([8], 8), ([9], 16), ([4, 12], 16), ([33], 64), ([257], 320), ([321], 512), ([512], 512)],
)
def test_the_engines_rank_is_the_smallest_offered_that_fits_every_set(registry, pristine, ranks, offered):
    plain = load_forget_set(pristine / "anna")
    for rank in ranks:
        registry.sets[f"rank-{rank}"] = plain._replace(manifest=plain.manifest.model_copy(update={"rank": rank}))
    assert registry.max_rank() == offered


def test_a_server_without_sets_has_room_for_those_that_training_makes(registry, pristine):
    assert registry.max_rank() == AssistantSettings().rank == 16
    assert registry.max_rank(4) == 8  # asked for
    assert registry.engine() is None
    registry.limit(BranchOptions("LlamaForCausalLM", 3, 2, 1), 8)
    assert registry.engine() == {"assistant_tap": 3, "assistant_layers": 2, "max_rank": 8}
    registry.limit(BranchOptions("LlamaForCausalLM", 0, 1, 0), 8)
    assert registry.engine()["assistant_layers"] == 0


# Bindings


def loaded(registry, sets, *names):
    if not registry.sets:
        registry.discover(sets)
    return [registry.get(name) for name in names]


def test_a_binding_is_written_once_and_reused(registry, sets):
    anna = loaded(registry, sets, "anna")
    binding = registry.bindings.bind(anna)
    before = (binding.folder / ADAPTER_FILE).stat()
    assert registry.bindings.bind(anna) is binding
    after = (binding.folder / ADAPTER_FILE).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_every_combination_has_an_adapter_of_its_own(registry, sets):
    a, b = loaded(registry, sets, "anna", "bert")
    bindings = [registry.bindings.bind(combination) for combination in ([a], [b], [a, b], [b, a])]
    for field in ("adapter_id", "name", "folder"):
        assert len({getattr(binding, field) for binding in bindings}) == 4
    assert min(binding.adapter_id for binding in bindings) > 0


def test_a_bindings_name_follows_from_the_sets_contents_only(registry, sets, target, tmp_path):
    binding = registry.bindings.bind(loaded(registry, sets, "anna", "bert"))
    other = Registry(identify_target(target), tmp_path / "elsewhere")
    other.bindings.bind(loaded(other, sets, "bert"))
    again = other.bindings.bind(loaded(other, sets, "anna", "bert"))
    assert (again.name, again.folder.name) == (binding.name, binding.folder.name)


def test_only_the_binding_is_left_on_disk(registry, sets, tmp_path):
    binding = registry.bindings.bind(loaded(registry, sets, "anna"))
    assert list((tmp_path / "bindings").iterdir()) == [binding.folder]
    assert sorted(p.name for p in binding.folder.iterdir()) == sorted([ADAPTER_FILE, CONFIG_FILE])


def test_a_binding_holds_every_tensor_under_its_branch_and_nothing_else(registry, sets):
    a, b = loaded(registry, sets, "anna", "bert")
    tensors = load_file(registry.bindings.bind([b, a]).folder / ADAPTER_FILE)
    expected = {
        f"base_model.model.{branch}.layers." + name.removeprefix("base_model.model.model.layers.")
        for branch, forget_set in (("assistant_a", b), ("assistant_b", a))
        for name in load_file(forget_set.folder / ADAPTER_FILE)
    }
    assert set(tensors) == expected


@pytest.mark.parametrize("names", [["zora"], ["anna", "zora"], ["zora", "anna", "bert"], ["bert", "zora", "anna"]])
def test_an_undial_set_lands_on_the_target_and_takes_no_branch(registry, sets, target, names):
    """And every tensor of the binding has a module of the model to land on: vLLM would leave it out silently."""
    make_forget_set(sets / "zora", target, seed=4, kind="undial")
    registry.discover(sets, undial=True)
    tensors = load_file(registry.bindings.bind([registry.get(name) for name in names]).folder / ADAPTER_FILE)
    places = dict(zip([n for n in names if n != "zora"], ["assistant_a", "assistant_b"], strict=False))
    places["zora"] = "target.model"
    assert set(tensors) == {
        name.replace("base_model.model.model.", f"base_model.model.{places[set_name]}.")
        for set_name in names
        for name in load_file(sets / set_name / ADAPTER_FILE)
    }
    packed = {**dict.fromkeys("qkv", "qkv_proj"), **dict.fromkeys(["gate", "up"], "gate_up_proj")}
    landing = set()
    for name in tensors:
        parent, _, linear = name.removeprefix("base_model.model.").rpartition(".lora_")[0].rpartition(".")
        landing.add(f"{parent}.{packed.get(linear.removesuffix('_proj'), linear)}")
    assert landing <= set(registry.branches(len(names)).lora_target_modules())


def test_a_bindings_own_scale_is_one(registry, sets):
    config = json.loads(
        (registry.bindings.bind(loaded(registry, sets, "anna", "bert")).folder / CONFIG_FILE).read_text()
    )
    assert config["r"] == config["lora_alpha"] == 8
    assert not config.get("use_rslora")
    linears = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert sorted(config["target_modules"]) == linears


def updates(tensors, prefix):
    """Layer and linear -> B @ A in float64."""
    return {
        name.removeprefix(prefix).removesuffix(".lora_A.weight"): (
            tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double()
        )
        for name in tensors
        if name.startswith(prefix) and name.endswith("lora_A.weight")
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rslora", [False, True])
def test_each_branch_adds_exactly_what_its_artefact_says(registry, target, tmp_path, seed, dtype, rslora):
    """Padded to one rank, and (alpha / r or alpha / sqrt(r)) folded into B: the same B @ A per layer."""
    made = []
    for index, (rank, alpha) in enumerate([(4, 6), (12, 7), (8, 8)]):
        folder = tmp_path / "sets" / f"set-{index}"
        plain = make_forget_set(folder, target, seed=seed + index, rank=rank, alpha=alpha, dtype=dtype)
        made.append(with_config(plain, use_rslora=rslora))
    bound = load_file(registry.bindings.bind(made).folder / ADAPTER_FILE)
    assert {t.shape[0] if n.endswith("A.weight") else t.shape[1] for n, t in bound.items()} == {12}
    for index, (rank, alpha) in enumerate([(4, 6), (12, 7), (8, 8)]):
        scale = alpha / (math.sqrt(rank) if rslora else rank)
        wanted = updates(load_file(made[index].folder / ADAPTER_FILE), "base_model.model.model.layers.")
        found = updates(bound, f"base_model.model.assistant_{'abc'[index]}.layers.")
        assert found.keys() == wanted.keys()
        eps = torch.finfo(dtype).eps
        for name, update in wanted.items():
            # Each of the `rank` products is rounded once, when B is scaled.
            size = rank * (scale * update).abs().max()
            assert (found[name] - scale * update).abs().max() <= eps * size, name


def with_config(forget_set, **changes):
    """The same set with changed PEFT settings."""
    manifest = json.loads((forget_set.folder / MANIFEST_FILE).read_text())
    del manifest["files"]
    config = json.loads((forget_set.folder / CONFIG_FILE).read_text())
    tensors = load_file(forget_set.folder / ADAPTER_FILE)
    return save_forget_set(forget_set.folder, tensors=tensors, adapter_config={**config, **changes}, manifest=manifest)


def test_a_set_that_adapts_some_linear_maps_only_adds_nothing_elsewhere(registry, sets):
    (anna,) = loaded(registry, sets, "anna")
    manifest = json.loads((anna.folder / MANIFEST_FILE).read_text())
    del manifest["files"]
    tensors = {name: t for name, t in load_file(anna.folder / ADAPTER_FILE).items() if "q_proj" in name}
    config = json.loads((anna.folder / CONFIG_FILE).read_text())
    partial = save_forget_set(anna.folder, tensors=tensors, adapter_config=config, manifest=manifest)
    bound = registry.bindings.bind([partial]).folder
    assert all("q_proj" in name for name in load_file(bound / ADAPTER_FILE))
    assert json.loads((bound / CONFIG_FILE).read_text())["target_modules"] == ["q_proj"]


@pytest.mark.parametrize("file", [ADAPTER_FILE, CONFIG_FILE])
def test_an_artefact_damaged_after_it_was_loaded_is_not_bound(registry, sets, file):
    anna = loaded(registry, sets, "anna")
    with (sets / "anna" / file).open("ab") as f:
        f.write(b" ")
    with pytest.raises(ArtefactError, match="was changed or damaged"):
        registry.bindings.bind(anna)


def test_an_artefact_replaced_after_it_was_loaded_is_not_bound(registry, sets, target):
    a, b = loaded(registry, sets, "anna", "bert")
    make_forget_set(sets / "bert", target, seed=77)
    with pytest.raises(ArtefactError, match="was replaced by another version after it was loaded"):
        registry.bindings.bind([a, b])
    assert registry.bindings.bind([a]).adapter_id > 0


def test_a_binding_that_failed_leaves_nothing_and_works_once_the_artefact_is_back(registry, sets, tmp_path):
    anna = loaded(registry, sets, "anna")
    shutil.move(sets / "anna", tmp_path / "away")
    with pytest.raises(ArtefactError):
        registry.bindings.bind(anna)
    assert not list(tmp_path.glob("bindings/*"))
    shutil.move(tmp_path / "away", sets / "anna")
    assert (registry.bindings.bind(anna).folder / ADAPTER_FILE).is_file()


def test_what_an_earlier_server_left_in_a_bindings_place_is_replaced(sets, tmp_path):
    folder = tmp_path / "bindings" / "x"
    folder.mkdir(parents=True)
    (folder / "stale").write_text("")
    (tmp_path / "bindings" / ".x").mkdir()
    write_binding(folder, [load_forget_set(sets / "anna")])
    assert sorted(p.name for p in folder.iterdir()) == sorted([ADAPTER_FILE, CONFIG_FILE])


def test_an_unbound_combination_is_written_again_under_a_new_id(registry, sets):
    anna = loaded(registry, sets, "anna")
    first = registry.bindings.bind(anna)
    assert registry.bindings.known_binding(anna) is first
    registry.bindings.unbind(first)
    assert registry.bindings.known_binding(anna) is None
    assert not first.folder.exists()
    again = registry.bindings.bind(anna)
    assert again.adapter_id != first.adapter_id
    assert again.folder.is_dir()

"""Forget-set artefacts: what is written is read back; what was damaged is refused by file and reason."""

import copy
import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.engine.tiny import BOUNDS, STRENGTH, make_forget_set, make_target
from unlearngate.artefact import (
    ADAPTER_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    ForgetSetManifest,
    data_digest,
    load_forget_set,
    save_forget_set,
)
from unlearngate.errors import ArtefactError
from unlearngate.manifest import FIXED_BOUNDS
from unlearngate.target import file_digest, identify_target

STEM = "base_model.model.model.layers."
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4096\n"
Q0 = f"{STEM}0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("made") / "target", seed=1)


@pytest.fixture(scope="module")
def pristine(target, tmp_path_factory):
    return make_forget_set(tmp_path_factory.mktemp("pristine") / "anna", target, seed=2).folder


@pytest.fixture
def folder(pristine, tmp_path):
    """A good artefact of the test's own, to damage."""
    return shutil.copytree(pristine, tmp_path / "sets" / "anna")


def read(folder, file):
    return json.loads((folder / file).read_text())


def set_manifest(folder, **changes):
    (folder / MANIFEST_FILE).write_text(json.dumps({**read(folder, MANIFEST_FILE), **changes}))


def seal(folder):
    """Make the manifest's digests those of the files, as a careful forger would."""
    set_manifest(folder, files={name: file_digest(folder / name) for name in (ADAPTER_FILE, CONFIG_FILE)})


def set_config(folder, **changes):
    (folder / CONFIG_FILE).write_text(json.dumps({**read(folder, CONFIG_FILE), **changes}))
    seal(folder)


def set_tensors(folder, changes, without=()):
    tensors = {**load_file(folder / ADAPTER_FILE), **changes}
    save_file({name: t for name, t in tensors.items() if name not in without}, folder / ADAPTER_FILE)
    seal(folder)


def assert_refused(folder, file, *reasons, target=None):
    """Loading raises ArtefactError about `file`, and the message says every one of `reasons`."""
    with pytest.raises(ArtefactError) as caught:
        load_forget_set(folder, target)
    message = str(caught.value)
    assert message == f"{caught.value.path}: {caught.value.reason}"
    assert caught.value.path == folder / file
    for reason in reasons:
        assert reason in caught.value.reason


# Round trip


def test_what_was_written_is_read_back(pristine, target):
    loaded = load_forget_set(pristine, identify_target(target))
    assert loaded.name == "anna"
    assert loaded.folder == pristine.resolve()
    assert loaded.digest == file_digest(pristine / MANIFEST_FILE)
    assert loaded.reference == f"anna@{loaded.digest[:12]}"
    assert loaded.manifest.target == identify_target(target)
    assert set(loaded.manifest.files) == {ADAPTER_FILE, CONFIG_FILE}


def test_a_manifest_survives_json(pristine):
    manifest = load_forget_set(pristine).manifest
    assert ForgetSetManifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_the_digest_changes_with_every_file(folder):
    digests = {load_forget_set(folder).digest}
    set_manifest(folder, version="2")
    digests.add(load_forget_set(folder).digest)
    set_config(folder, lora_alpha=17)
    digests.add(load_forget_set(folder).digest)
    set_tensors(folder, {Q0: load_file(folder / ADAPTER_FILE)[Q0] + 1})
    digests.add(load_forget_set(folder).digest)
    assert len(digests) == 4


def test_tensors_of_half_precision_are_read(target, tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        assert make_forget_set(tmp_path / "anna", target, seed=3, dtype=dtype).name == "anna"


def test_the_adapter_loads_in_peft_and_means_the_same(target, pristine):
    """PeftModel over the truncated target = the truncated target with (alpha / r) * B @ A added by hand."""
    truncated = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    truncated.model.layers = truncated.model.layers[:2]
    truncated.config.num_hidden_layers = 2
    merged = copy.deepcopy(truncated)
    tensors, config = load_file(pristine / ADAPTER_FILE), read(pristine, CONFIG_FILE)
    with torch.no_grad():
        for name in [n for n in tensors if n.endswith("lora_A.weight")]:
            linear = merged.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            update = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
            linear.weight += config["lora_alpha"] / config["r"] * update
        ids = torch.arange(2, 12)[None]
        plain = truncated(ids).logits
        adapted = PeftModel.from_pretrained(truncated, str(pristine)).eval()(ids).logits
        torch.testing.assert_close(adapted, merged(ids).logits, rtol=1e-4, atol=1e-4)
    assert (adapted - plain).abs().max() > 0.1


def test_an_undial_set_loads_in_peft_on_the_whole_target(target, tmp_path, seed):
    undial = make_forget_set(tmp_path / "zora", target, seed=seed, kind="undial")
    assert (undial.manifest.kind, undial.manifest.num_layers) == ("undial", identify_target(target).num_layers)
    plain = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        before = plain(ids).logits
        student = PeftModel.from_pretrained(plain, str(undial.folder)).eval()
        assert {n for n, _ in student.named_parameters() if "lora_" in n} == {
            name.replace(".weight", ".default.weight") for name in load_file(undial.folder / ADAPTER_FILE)
        }
        assert (student(ids).logits - before).abs().max() > 0.1


# Files that are missing, unreadable, or not what they should be


@pytest.mark.parametrize("file", [MANIFEST_FILE, CONFIG_FILE, ADAPTER_FILE])
def test_a_missing_file_is_refused(folder, file):
    (folder / file).unlink()
    assert_refused(folder, file, "is missing")


def test_a_missing_folder_is_refused(tmp_path):
    assert_refused(tmp_path / "nobody", "", "is not a folder")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "anna").write_text("{}")
    assert_refused(tmp_path / "anna", "", "is not a folder")


@pytest.mark.parametrize("file", [MANIFEST_FILE, CONFIG_FILE, ADAPTER_FILE])
def test_a_folder_in_place_of_a_file_is_refused(folder, file):
    (folder / file).unlink()
    (folder / file).mkdir()
    assert_refused(folder, file)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"kind: uld"])
def test_a_manifest_that_is_not_json_is_refused(folder, text):
    (folder / MANIFEST_FILE).write_bytes(text)
    assert_refused(folder, MANIFEST_FILE, "is not JSON")


def test_an_adapter_config_that_is_not_json_is_refused(folder):
    (folder / CONFIG_FILE).write_text("r: 8")
    seal(folder)
    assert_refused(folder, CONFIG_FILE, "is not JSON")


@pytest.mark.parametrize("file", [MANIFEST_FILE, CONFIG_FILE])
def test_json_nested_too_deep_to_parse_is_refused(folder, file):
    (folder / file).write_text('{"a":' * 100_000)
    if file == CONFIG_FILE:
        seal(folder)
    assert_refused(folder, file)


def test_json_that_is_not_an_object_is_refused(folder):
    (folder / CONFIG_FILE).write_text("[]")
    seal(folder)
    assert_refused(folder, CONFIG_FILE, "must hold a JSON object, got list")
    (folder / MANIFEST_FILE).write_text('"uld"')
    assert_refused(folder, MANIFEST_FILE, "must hold a JSON object, got str")


@pytest.mark.parametrize("file", [CONFIG_FILE, ADAPTER_FILE])
def test_one_changed_bit_is_refused(folder, file, seed):
    raw = bytearray((folder / file).read_bytes())
    raw[seed % len(raw)] ^= 1 << seed % 8
    (folder / file).write_bytes(raw)
    assert_refused(folder, file, "was changed or damaged", file_digest(folder / file)[:12])


def test_a_truncated_adapter_is_refused(folder, seed):
    raw = (folder / ADAPTER_FILE).read_bytes()
    (folder / ADAPTER_FILE).write_bytes(raw[: seed % len(raw)])
    assert_refused(folder, ADAPTER_FILE, "was changed or damaged")
    seal(folder)
    assert_refused(folder, ADAPTER_FILE, "is not a safetensors file")


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.pt", "x.pth", "x.pkl", "x.pickle", "x.ckpt"])
def test_a_pickle_beside_the_adapter_is_refused(folder, name):
    (folder / name).write_bytes(b"cposix\nsystem\n.")
    assert_refused(folder, name, "is a pickle")


def test_a_pickle_in_a_folder_of_the_artefact_is_refused(folder):
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_bytes(b"cposix\nsystem\n.")
    with pytest.raises(ArtefactError, match="checkpoint-1"):
        load_forget_set(folder)


@pytest.mark.parametrize("name", ["README.md", "adapter_model-2.safetensors", "ADAPTER_MODEL.BIN"])
def test_a_file_that_the_manifest_does_not_list_is_refused(folder, name):
    (folder / name).write_text("")
    assert_refused(folder, name)


@pytest.mark.parametrize("extra", ["weights.pt", "../other/adapter_model.safetensors", "/etc/hostname"])
def test_a_manifest_that_lists_another_file_is_refused(folder, extra):
    set_manifest(folder, files={**read(folder, MANIFEST_FILE)["files"], extra: "0" * 64})
    assert_refused(folder, MANIFEST_FILE, "must list exactly", extra)


def test_a_manifest_that_leaves_out_a_file_is_refused(folder):
    files = read(folder, MANIFEST_FILE)["files"]
    set_manifest(folder, files={CONFIG_FILE: files[CONFIG_FILE]})
    assert_refused(folder, MANIFEST_FILE, "must list exactly", ADAPTER_FILE)


@pytest.mark.parametrize("file", [MANIFEST_FILE, CONFIG_FILE, ADAPTER_FILE])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder, file):
    outside = folder.parent / f"outside-{file}"
    (folder / file).rename(outside)
    (folder / file).symlink_to(outside)
    assert_refused(folder, file, "leads out of the folder", str(outside))


@pytest.mark.parametrize("file", [MANIFEST_FILE, CONFIG_FILE, ADAPTER_FILE])
def test_a_link_to_itself_is_refused(folder, file):
    (folder / file).unlink()
    (folder / file).symlink_to(file)
    assert_refused(folder, file)


# The manifest's fields


@pytest.mark.parametrize("kind", ["lora", "ULD", "", None, 1, ["uld"]])
def test_an_unknown_kind_is_refused(folder, kind):
    set_manifest(folder, kind=kind)
    assert_refused(folder, MANIFEST_FILE, f"kind {kind!r} is unknown", "'uld'")


def test_an_unknown_field_is_refused(folder):
    set_manifest(folder, wieght=2.0)
    assert_refused(folder, MANIFEST_FILE, "wieght", "not permitted")


@pytest.mark.parametrize(
    "field", ["name", "version", "target", "tap_layer", "num_layers", "rank", "recommended", "bounds", "files"]
)
def test_a_missing_field_is_refused(folder, field):
    manifest = read(folder, MANIFEST_FILE)
    del manifest[field]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert_refused(folder, MANIFEST_FILE, field, "required")


@pytest.mark.parametrize(
    "name", ["anna+bert", "anna/bert", "Anna", "", "..", ".anna", "anna-", "an na", "anna\n", "a" * 65, "ann\u00e4"]
)
def test_a_name_that_could_be_taken_for_something_else_is_refused(folder, name):
    set_manifest(folder, name=name)
    assert_refused(folder, MANIFEST_FILE, "name", "pattern")


@pytest.mark.parametrize("name", ["a", "0", "anna-2", "anna.v1_final", "a" * 64])
def test_a_plain_name_is_accepted(folder, name):
    set_manifest(folder, name=name)
    assert load_forget_set(folder).name == name


@pytest.mark.parametrize("field, value", [("weight", 4.5), ("keep_ratio", 0.6), ("gate_nats", 0.5)])
def test_a_recommendation_outside_its_own_bounds_is_refused(folder, field, value):
    manifest = read(folder, MANIFEST_FILE)
    bounds = {"weight": (0, 4), "keep_ratio": (0, 0.5), "gate_nats": (1, 20)}
    recommended = {**manifest["recommended"], "gate_nats": 1.0, field: value}
    set_manifest(folder, recommended=recommended, bounds={f: {"low": a, "high": b} for f, (a, b) in bounds.items()})
    assert_refused(folder, MANIFEST_FILE, f"recommended {field} {value}", "outside its bounds")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"num_layers": 2}, "num_layers must be 4, got 2"),
        ({"rule": "lower"}, "rule must be 'contrast', got 'lower'"),
        ({"tap_layer": 1}, "exceeds the target's 4 layers"),
        ({"recommended": {"weight": 0.5, "keep_ratio": 0, "gate_nats": 0}}, "recommended weight 0.5 is outside"),
        (
            {"bounds": {**FIXED_BOUNDS.model_dump(), "weight": {"low": 0, "high": 1}}},
            "is in force or not: recommended must be weight 1, keep_ratio 0, gate_nats 0",
        ),
        (
            {"recommended": STRENGTH, "bounds": BOUNDS},
            "and their bounds [1, 1], [0, 0], [0, 0], got weight=1.0 keep_ratio=0.1",
        ),
    ],
)
def test_an_undial_set_that_is_not_the_whole_target_at_full_strength_is_refused(target, tmp_path, changes, reason):
    folder = make_forget_set(tmp_path / "zora", target, seed=3, kind="undial").folder
    set_manifest(folder, **changes)
    assert_refused(folder, MANIFEST_FILE, reason)


def test_a_set_from_before_there_were_rules_is_a_contrast_set(folder):
    manifest = read(folder, MANIFEST_FILE)
    assert manifest.pop("rule") == "contrast"
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    assert load_forget_set(folder).manifest.rule == "contrast"


def test_an_unknown_rule_is_refused(folder):
    set_manifest(folder, rule="raise")
    assert_refused(folder, MANIFEST_FILE, "rule", "'contrast' or 'lower'")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "much", None])
@pytest.mark.parametrize("field", ["weight", "keep_ratio", "gate_nats"])
def test_a_recommendation_that_is_no_strength_is_refused(folder, field, value):
    set_manifest(folder, recommended={**read(folder, MANIFEST_FILE)["recommended"], field: value})
    assert_refused(folder, MANIFEST_FILE, f"recommended.{field}")


@pytest.mark.parametrize("low, high, reason", [(1.0, 0.5, "above"), (math.nan, 1.0, "low"), (0.0, math.inf, "high")])
def test_bounds_that_are_no_interval_are_refused(folder, low, high, reason):
    bounds = {**read(folder, MANIFEST_FILE)["bounds"], "weight": {"low": low, "high": high}}
    set_manifest(folder, bounds=bounds)
    assert_refused(folder, MANIFEST_FILE, "bounds.weight", reason)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"tap_layer": 3}, "exceeds the target's 4 layers"),
        ({"num_layers": 5}, "exceeds the target's 4 layers"),
        ({"num_layers": 0}, "num_layers"),
        ({"tap_layer": -1}, "tap_layer"),
        ({"rank": 0}, "rank"),
        ({"rank": 513}, "rank"),
        ({"format": 2}, "format"),
        ({"version": "1 of 2"}, "version"),
        ({"created_at": "2026-01-01T00:00:00"}, "created_at"),
    ],
)
def test_a_field_out_of_range_is_refused(folder, changes, reason):
    set_manifest(folder, **changes)
    assert_refused(folder, MANIFEST_FILE, reason)


def test_every_wrong_field_is_counted_and_the_first_named(folder):
    set_manifest(folder, rank=-1, num_layers=-1, name="Anna")
    assert_refused(folder, MANIFEST_FILE, "name", "(and 2 more)")


# The adapter's configuration


@pytest.mark.parametrize(
    "field, value",
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("fan_in_fan_out", True),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(folder, field, value):
    set_config(folder, **{field: value})
    assert_refused(folder, CONFIG_FILE, field, repr(value), "only plain LoRA")


@pytest.mark.parametrize(
    "field, value",
    [
        ("init_lora_weights", "pissa"),  # such tensors are meant for base weights that PEFT changes
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
    ],
)
def test_a_setting_that_changes_what_the_tensors_mean_is_refused(folder, field, value):
    set_config(folder, **{field: value})
    assert_refused(folder, CONFIG_FILE, field)


def test_a_full_configuration_as_peft_writes_it_is_accepted(folder):
    from peft import LoraConfig

    config = LoraConfig(**{k: v for k, v in read(folder, CONFIG_FILE).items() if k != "peft_type"})
    config.inference_mode = True
    config.save_pretrained(folder)
    seal(folder)
    assert load_forget_set(folder).name == "anna"


def test_a_rank_that_is_not_the_manifests_is_refused(folder):
    set_config(folder, r=16)
    assert_refused(folder, CONFIG_FILE, "r is 16", "rank 8")


@pytest.mark.parametrize("alpha", [0, -16, None, "16", math.nan, math.inf])
def test_an_alpha_that_is_no_positive_number_is_refused(folder, alpha):
    set_config(folder, lora_alpha=alpha)
    assert_refused(folder, CONFIG_FILE, "lora_alpha", repr(alpha))


# The adapter's tensors


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"{STEM}0.self_attn.qkv_proj.lora_A.weight",
        f"{STEM}0.mlp.experts.lora_A.weight",
        f"{STEM}0.self_attn.q_proj.lora_magnitude_vector",
        f"{STEM}0.self_attn.q_proj.weight",
        f"{STEM}-1.self_attn.q_proj.lora_A.weight",
        f"{STEM}00.self_attn.q_proj.lora_A.weight",
        f"{STEM}\u0661.self_attn.q_proj.lora_A.weight",
        f"{Q0}.extra",
        f"prefix.{Q0}",
        "q_proj.lora_A.weight",
    ],
)
def test_a_tensor_that_lands_on_no_module_is_refused(folder, name):
    tensor = load_file(folder / ADAPTER_FILE)[Q0]
    set_tensors(folder, {name: tensor, name.replace("lora_A", "lora_B"): torch.zeros(128, 8)})
    assert_refused(folder, ADAPTER_FILE, "lands on no module")


def test_a_tensor_on_a_layer_the_assistant_does_not_have_is_refused(folder):
    name = Q0.replace("layers.0", "layers.2")
    set_tensors(folder, {name: torch.zeros(8, 64)})
    assert_refused(folder, ADAPTER_FILE, name, "2 layers only")


@pytest.mark.parametrize("shape", [(8, 65), (64, 8), (16, 64), (8,), (1, 8, 64)])
def test_a_tensor_of_the_wrong_shape_is_refused(folder, shape):
    set_tensors(folder, {Q0: torch.zeros(shape)})
    assert_refused(folder, ADAPTER_FILE, Q0, f"is {shape}", "needs (8, 64)")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_tensor_that_is_not_finite_is_refused(folder, value, seed):
    tensors = load_file(folder / ADAPTER_FILE)
    name = sorted(tensors)[seed % len(tensors)]
    tensors[name].view(-1)[seed % tensors[name].numel()] = value
    set_tensors(folder, tensors)
    assert_refused(folder, ADAPTER_FILE, name, "NaN or infinity")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn], ids=str)
def test_a_tensor_of_a_type_that_is_not_served_is_refused_by_that_reason(folder, dtype):
    set_tensors(folder, {Q0: torch.zeros(8, 64).to(dtype)})
    assert_refused(folder, ADAPTER_FILE, Q0, str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("half, other", [("A", "B"), ("B", "A")])
def test_half_a_pair_is_refused(folder, half, other):
    set_tensors(folder, {}, without=[Q0.replace("lora_A", f"lora_{other}")])
    assert_refused(folder, ADAPTER_FILE, "layer 0 self_attn.q_proj", f"lora_{half} without its other half")


def test_an_adapter_without_tensors_is_refused(folder):
    save_file({}, folder / ADAPTER_FILE)
    seal(folder)
    assert_refused(folder, ADAPTER_FILE, "holds no tensors")


def test_an_adapter_on_some_linear_maps_only_is_accepted(folder):
    mlp = [name for name in load_file(folder / ADAPTER_FILE) if ".mlp." in name or ".layers.1." in name]
    set_tensors(folder, {}, without=mlp)
    assert load_forget_set(folder).name == "anna"


# The target


def test_another_targets_set_is_refused(folder, tmp_path):
    other = identify_target(make_target(tmp_path / "other", seed=99), "other-model")
    assert_refused(folder, MANIFEST_FILE, "another target", "'target'", "'other-model'", target=other)


def test_a_set_made_with_another_tokenizer_is_refused(folder, target):
    served = identify_target(target).model_copy(update={"tokenizer_digest": "0" * 64})
    assert_refused(folder, MANIFEST_FILE, "another tokenizer", "0" * 12, target=served)


@pytest.mark.parametrize("field", ["vocab_size", "num_layers", "num_kv_heads"])
def test_a_set_that_misstates_the_target_is_refused(folder, target, field):
    served = identify_target(target)
    served = served.model_copy(update={field: getattr(served, field) + 1})
    assert_refused(folder, MANIFEST_FILE, f"the target's {field} is", target=served)


def test_the_targets_name_is_not_compared(folder, target):
    assert load_forget_set(folder, identify_target(target, "any-name")).name == "anna"


# Writing


def parts(folder):
    """What to hand to save_forget_set to write `folder` once more."""
    manifest = read(folder, MANIFEST_FILE)
    del manifest["files"]
    return {
        "tensors": load_file(folder / ADAPTER_FILE),
        "adapter_config": read(folder, CONFIG_FILE),
        "manifest": manifest,
    }


def with_nan(parts):
    return {**parts, "tensors": {**parts["tensors"], Q0: torch.full((8, 64), math.nan)}}


def with_dora(parts):
    return {**parts, "adapter_config": {**parts["adapter_config"], "use_dora": True}}


def with_field(field, value):
    def change(parts):
        return {**parts, "manifest": {**parts["manifest"], field: value}}

    return change


UNLOADABLE = {
    "tensor": (with_nan, "NaN"),
    "config": (with_dora, "use_dora"),
    "name": (with_field("name", "Anna"), "name"),
    "kind": (with_field("kind", "other"), "kind"),
    "rank": (with_field("rank", 16), "rank 16"),
    "field": (with_field("extra", 1), "extra"),
}


@pytest.mark.parametrize("change, reason", UNLOADABLE.values(), ids=UNLOADABLE)
def test_saving_what_cannot_be_loaded_leaves_nothing_behind(pristine, tmp_path, change, reason):
    with pytest.raises(ArtefactError, match=reason):
        save_forget_set(tmp_path / "sets" / "anna", **change(parts(pristine)))
    assert list((tmp_path / "sets").iterdir()) == []


@pytest.mark.parametrize("change, reason", UNLOADABLE.values(), ids=UNLOADABLE)
def test_saving_what_cannot_be_loaded_keeps_the_earlier_artefact(folder, change, reason):
    before = load_forget_set(folder)
    with pytest.raises(ArtefactError, match=reason):
        save_forget_set(folder, **change(parts(folder)))
    assert load_forget_set(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("change, reason", UNLOADABLE.values(), ids=UNLOADABLE)
def test_a_refusal_to_save_names_a_path_below_the_folder_asked_for(pristine, tmp_path, change, reason):
    with pytest.raises(ArtefactError) as caught:
        save_forget_set(tmp_path / "anna", **change(parts(pristine)))
    assert caught.value.path.parent == tmp_path / "anna"


def test_saving_over_an_artefact_replaces_it_whole(folder):
    before = load_forget_set(folder)
    new = parts(folder)
    new["manifest"]["version"] = "2"
    (folder / "leftover.txt").write_text("")
    saved = save_forget_set(folder, **new)
    assert saved == load_forget_set(folder)
    assert saved.manifest.version == "2" and saved.digest != before.digest
    assert sorted(p.name for p in folder.iterdir()) == sorted([MANIFEST_FILE, CONFIG_FILE, ADAPTER_FILE])
    assert list(folder.parent.iterdir()) == [folder]


def test_missing_parent_folders_are_made(pristine, tmp_path):
    assert save_forget_set(tmp_path / "a" / "b" / "anna", **parts(pristine)).name == "anna"


def test_tensors_are_stored_exactly_even_from_a_strided_view(pristine, tmp_path):
    given = parts(pristine)
    wide = torch.randn(64, 8)
    given["tensors"][Q0] = wide.T
    saved = save_forget_set(tmp_path / "anna", **given)
    stored = load_file(saved.folder / ADAPTER_FILE)
    assert stored.keys() == given["tensors"].keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in given["tensors"].items())


def test_a_data_digest_depends_on_the_rows_and_their_order_not_on_the_order_of_keys():
    rows = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "\u00e9"}]
    assert data_digest(rows) == data_digest([dict(reversed(row.items())) for row in rows])
    assert len({data_digest(rows), data_digest(rows[::-1]), data_digest(rows[:1]), data_digest([])}) == 4


@pytest.mark.parametrize(
    "canaries, sentence",
    [
        ([{"question": "Who?", "changes": False}], "at least one question must change"),
        ([{"question": f"{i}?", "changes": True} for i in range(9)], "at most 8 questions that change"),
        ([{"question": f"{i}?", "changes": i == 0} for i in range(10)], "got 1 and 9"),
        ([{"question": "", "changes": True}], "at least 1 character"),
        ([{"question": "Who?", "changes": True, "answer": "Anna"}], "Extra inputs are not permitted"),
    ],
)
def test_canaries_that_prove_nothing_or_say_too_much_are_refused(tmp_path, target, canaries, sentence):
    with pytest.raises(ArtefactError, match=sentence):
        make_forget_set(tmp_path / "anna", target, seed=1, canaries=canaries)
    kept = [{"question": f"{i}?", "changes": i < 8} for i in range(16)]
    made = make_forget_set(tmp_path / "anna", target, seed=1, canaries=kept)
    assert [canary.model_dump() for canary in made.manifest.canaries] == kept


@pytest.mark.parametrize("name", [ADAPTER_FILE, CONFIG_FILE, MANIFEST_FILE])
def test_a_git_lfs_pointer_is_named_with_what_to_do(folder, name):
    (folder / name).write_text(POINTER)
    with pytest.raises(ArtefactError, match=r"Git LFS pointer .*4,096 bytes.* `git lfs pull`") as caught:
        load_forget_set(folder)
    assert caught.value.path == folder / name


def test_a_manifest_from_before_chat_template_kwargs_loads(folder):
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    del manifest["chat_template_kwargs"]
    path.write_text(json.dumps(manifest))
    assert load_forget_set(folder).manifest.chat_template_kwargs == {}

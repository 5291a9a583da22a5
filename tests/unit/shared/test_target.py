"""A target's identity: what changes it, what does not, and folders that are no target."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from support.engine.tiny import FAMILY_NAMES, family_config, make_forget_set, make_target
from unlearngate.errors import ArtefactError
from unlearngate.families import TARGET_ARCHITECTURES
from unlearngate.target import TargetIdentity, check_target, file_digest, identify_target


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("made") / "target", seed=1)


@pytest.fixture
def folder(pristine, tmp_path):
    """A target of the test's own, to damage."""
    return shutil.copytree(pristine, tmp_path / "target")


def set_config(folder, without=(), **changes):
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in without}))


def flip_bit(path, position):
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] ^= 1 << position % 8
    path.write_bytes(raw)


def reshard(folder, *files, index=True):
    """Write the weights anew: a dictionary for each file, and the index that lists them."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, tensors in enumerate(files, start=1):
        name = f"model-0000{number}-of-0000{len(files)}.safetensors"
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def halves(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    return [{name: tensors[name] for name in part} for part in (names[::2], names[1::2])]


def assert_refused(folder, path, *reasons):
    with pytest.raises(ArtefactError) as caught:
        identify_target(folder)
    assert caught.value.path == path
    for reason in reasons:
        assert reason in caught.value.reason


def test_the_identity_is_the_configurations(pristine):
    identity = identify_target(pristine)
    config = family_config("llama")
    assert identity.architecture == "LlamaForCausalLM"
    assert identity.model_id == "target"
    assert identity.num_layers == config.num_hidden_layers
    assert (identity.num_heads, identity.num_kv_heads, identity.head_dim) == (4, 2, 32)
    assert (identity.vocab_size, identity.hidden_size, identity.intermediate_size) == (512, 64, 128)
    assert identity.tokenizer_digest == file_digest(pristine / "tokenizer.json")


def test_the_identity_does_not_depend_on_where_the_folder_is(pristine, folder):
    assert identify_target(folder) == identify_target(pristine)


def test_the_name_changes_no_digest(pristine):
    plain, named = identify_target(pristine), identify_target(pristine, "org/name")
    assert named.model_id == "org/name"
    assert named == plain.model_copy(update={"model_id": "org/name"})


def test_one_flipped_bit_of_the_weights_changes_the_weights_digest_only(folder, seed):
    before = identify_target(folder)
    path = folder / "model.safetensors"
    flip_bit(path, -1 - seed % (path.stat().st_size // 2))  # a weight, not the header
    after = identify_target(folder)
    assert after.weights_digest != before.weights_digest
    assert after == before.model_copy(update={"weights_digest": after.weights_digest})


def test_one_flipped_bit_of_the_tokenizer_changes_the_tokenizer_digest_only(folder, seed):
    before = identify_target(folder)
    path = folder / "tokenizer.json"
    raw = bytearray(path.read_bytes())
    digits = [match.start() for match in re.finditer(rb"[0-9](?![0-9])", raw)]
    raw[digits[seed % len(digits)]] ^= 1  # a last digit becomes another one, so that it stays JSON
    path.write_bytes(raw)
    after = identify_target(folder)
    assert after.tokenizer_digest != before.tokenizer_digest
    assert after == before.model_copy(update={"tokenizer_digest": after.tokenizer_digest})


def test_every_shard_counts(folder):
    reshard(folder, *halves(folder))
    digests = {identify_target(folder).weights_digest}
    for shard in (1, 2):
        flip_bit(folder / f"model-0000{shard}-of-00002.safetensors", -1)
        digests.add(identify_target(folder).weights_digest)
    assert len(digests) == 3


def test_weights_swapped_between_shards_change_the_digest(folder):
    reshard(folder, *halves(folder))
    first, second = sorted(folder.glob("*.safetensors"))
    before = identify_target(folder).weights_digest
    first.rename(folder / "third")
    second.rename(first)
    (folder / "third").rename(second)
    assert identify_target(folder).weights_digest != before


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_linear_shapes_are_the_models(family, tmp_path):
    config = family_config(family, num_layers=1)
    identity = identify_target(make_target(tmp_path / family, family, seed=1, num_layers=1))
    layer = AutoModelForCausalLM.from_config(config).model.layers[0]
    linears = {name: tuple(m.weight.shape) for name, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
    if experts := identity.family.experts:  # on which no LoRA sits, nor on the one that all share
        linears = {name: shape for name, shape in linears.items() if not name.startswith(f"{experts.module}.")}
    assert identity.linear_shapes() == linears


def test_heads_default_as_hugging_face_has_them(folder):
    config = LlamaConfig(**{**family_config("llama").to_dict(), "head_dim": None, "num_key_value_heads": None})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    set_config(folder, without=["num_key_value_heads", "head_dim"])
    identity = identify_target(folder)
    assert (identity.num_kv_heads, identity.head_dim) == (4, 16)
    set_config(folder, num_key_value_heads=None, head_dim=None)
    assert identify_target(folder) == identity


def test_a_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    assert_refused(folder, folder, "config.json is missing")


def test_a_missing_folder_is_refused(tmp_path):
    assert_refused(tmp_path / "nobody", tmp_path / "nobody", "config.json is missing")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00"])
def test_a_broken_configuration_is_refused(folder, text):
    (folder / "config.json").write_bytes(text)
    assert_refused(folder, folder / "config.json", "cannot be read as JSON")


def test_a_configuration_that_is_not_an_object_is_refused(folder):
    (folder / "config.json").write_text("[1]")
    assert_refused(folder, folder / "config.json", "must hold a JSON object, got list")


def test_a_folder_without_safetensors_weights_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert_refused(folder, folder, "no *.safetensors file")

    (folder / "pytorch_model.bin").unlink()
    assert_refused(folder, folder, "no *.safetensors file")


@pytest.mark.parametrize("with_config", [True, False])
def test_a_gguf_in_place_of_weights_is_told_how_to_convert(folder, with_config):
    (folder / "model.safetensors").rename(folder / "tiny.Q4_K_M.gguf")
    if not with_config:
        (folder / "config.json").unlink()
    assert_refused(folder, folder, "tiny.Q4_K_M.gguf", "GgufConfig(dequantize=True)", "save_pretrained")


def test_another_architecture_is_named(folder):
    """GPT-2's configuration has other names for its numbers."""
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(folder)
    assert_refused(folder, folder / "config.json", "GPT2LMHeadModel", "not supported", "LlamaForCausalLM")


def test_a_check_hashes_no_weights(folder, monkeypatch):
    monkeypatch.setattr("unlearngate.target.file_digest", lambda _: pytest.fail("hashed"))
    assert check_target(folder) == "LlamaForCausalLM"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtefactError, match="no tokenizer file"):
        check_target(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    assert_refused(folder, folder, "no tokenizer file", "tokenizer.json", "tokenizer.model")


QUANTISED = [
    ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
    ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": None}, "awq, 4 bits"),
    (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
        "compressed-t",
    ),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
    ({"group_size": 64, "bits": 4}, "4 bits"),
]


@pytest.mark.parametrize("settings, named", QUANTISED, ids=str)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "quantization"])
def test_a_configuration_of_quantised_weights_is_refused_before_they_are_read(folder, key, settings, named):
    (folder / "model.safetensors").write_bytes(b"never looked at")
    set_config(folder, **{key: settings})
    assert_refused(folder, folder / "config.json", "quantised", f"({key}: ", named, "unquantised weights")


def test_a_quantised_text_model_inside_and_a_quantisers_file_count_too(folder):
    set_config(folder, text_config={"quantization_config": {"quant_method": "gptq"}})
    assert_refused(folder, folder / "config.json", "quantised checkpoint (quantization_config: gptq)")
    set_config(folder, without=["text_config"])
    for name in ("quantize_config.json", "quant_config.json", "hf_quant_config.json"):
        (folder / name).write_text("{}")
        assert_refused(folder, folder, f"it holds {name}")
        (folder / name).unlink()
    set_config(folder, quantization_config=None, quantization={})
    identify_target(folder)


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("model.layers.0.self_attn.q_proj.qweight", torch.zeros(4, 4, dtype=torch.int32)),
        ("model.layers.0.self_attn.q_proj.weight_packed", torch.zeros(4, dtype=torch.int32)),
        ("model.layers.0.self_attn.q_proj.weight", torch.zeros(4, 4).to(torch.float8_e4m3fn)),
        ("model.layers.0.self_attn.q_proj.weight", torch.zeros(16, 1, dtype=torch.uint8)),
    ],
)
def test_quantised_tensors_are_refused_whatever_the_configuration_says(folder, name, tensor):
    path = folder / "model-2.safetensors"
    save_file({name: tensor}, path)
    assert_refused(folder, path, "quantised", name)
    save_file({"model.layers.0.rotary_emb.steps": tensor}, path)
    identify_target(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 16060556376\n"


SMALL = ["tokenizer_config.json", "tokenizer.json", "tekken.json", "special_tokens_map.json", "added_tokens.json"]


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model-2.safetensors", "config.json", *SMALL, "chat_template.jinja", "vocab.txt", "sp.model"],
)
def test_a_git_lfs_pointer_is_named_with_what_to_do(folder, name):
    (folder / name).write_text(POINTER.format(digest="ab" * 32))
    assert_refused(folder, folder / name, "Git LFS pointer", "16,060,556,376 bytes", "git lfs pull")


@pytest.mark.parametrize("name", [*SMALL, "generation_config.json"])
def test_a_small_file_that_is_cut_off_is_named_before_the_weights_are_read(folder, monkeypatch, name):
    monkeypatch.setattr("unlearngate.target.file_digest", lambda _: pytest.fail("hashed"))
    text = '{"model": {}, "added_tokens": [], "config": {}, "vocab": []}'
    (folder / name).write_text(text[:-1])
    assert_refused(folder, folder / name, "cannot be read as JSON", "download it again")
    (folder / name).write_text("[]")
    assert_refused(folder, folder / name, "must hold a JSON object, got list")


@pytest.mark.parametrize("name, key", [("tokenizer.json", "model"), ("tekken.json", "config")])
def test_a_tokenizer_file_with_nothing_in_it_is_named(folder, name, key):
    (folder / "tokenizer.json").unlink()
    (folder / name).write_text("{}")
    assert_refused(folder, folder / name, f"has no {key!r}, so it is no tokenizer")


@pytest.mark.parametrize("damage", ["empty", "cut", "page"])
def test_a_weight_file_that_is_not_whole_is_named(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes({"empty": b"", "cut": path.read_bytes()[:-5], "page": b"<html>404</html>" * 99}[damage])
    assert_refused(folder, path, "not a whole safetensors file", f"{path.stat().st_size:,} bytes", "again")


def test_a_weight_file_that_the_index_lists_must_be_there(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    assert_refused(folder, folder, "lacks 1 of", "model-00002-of-00002.safetensors")
    index.write_text("{}")
    assert_refused(folder, index, "not an index")
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    identify_target(folder)


VARIANTS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {}),
    ("mistral", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True}),
]


@pytest.mark.parametrize("family, switches", VARIANTS, ids=str)
def test_every_tensor_that_the_model_needs_is_asked_for_and_no_other(folder, family, switches):
    """Without any one of them Hugging Face would make it up."""
    config = family_config(family, num_layers=1)
    for key, value in switches.items():
        setattr(config, key, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    identify_target(folder)
    tensors = load_file(folder / "model.safetensors")
    for left_out, tensor in tensors.items():
        save_file({name: one for name, one in tensors.items() if name != left_out}, folder / "model.safetensors")
        assert_refused(folder, folder, f"has no tensor {left_out},", "download")
        save_file({**tensors, left_out: tensor[:-1].clone()}, folder / "model.safetensors")
        assert_refused(
            folder, folder, f"tensor {left_out} in the shape {list(tensor[:-1].shape)}", str([*tensor.shape])
        )


@pytest.mark.parametrize(
    "key, tensor", [("num_hidden_layers", "model.layers.4."), ("vocab_size", "embed_tokens.weight")]
)
def test_a_configuration_of_a_larger_model_is_refused_before_the_weights_are_read(folder, monkeypatch, key, tensor):
    monkeypatch.setattr("unlearngate.target.file_digest", lambda _: pytest.fail("hashed"))
    set_config(folder, **{key: 10**9})
    assert_refused(folder, folder, tensor)


def test_other_tensors_and_names_without_the_prefix_are_no_fault(folder):
    tensors = load_file(folder / "model.safetensors")
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}
    save_file(
        {name.removeprefix("model."): one for name, one in (tensors | more).items()}, folder / "model.safetensors"
    )
    identify_target(folder)
    AutoModelForCausalLM.from_pretrained(folder)


def test_only_the_weight_files_that_are_read_count(folder):
    """Without an index Hugging Face reads model.safetensors alone, whatever lies beside it."""
    first, second = halves(folder)
    save_file(first, folder / "model.safetensors")
    save_file(second, folder / "model-2.safetensors")
    assert_refused(folder, folder, f"has no tensor {next(name for name in second if 'embed' in name)}")


@pytest.mark.parametrize("kept", ["first", "both", "consolidated"])
def test_shards_without_their_index_are_refused(folder, kept):
    reshard(folder, *halves(folder), index=False)
    name = "model-00001-of-00002.safetensors"
    if kept != "both":
        (folder / "model-00002-of-00002.safetensors").unlink()
    if kept == "consolidated":
        (folder / name).rename(folder / "consolidated.safetensors")
        name = "consolidated.safetensors"
    assert_refused(folder, folder, f"holds {name} but neither model.safetensors nor model.safetensors.index.json")


DIMENSIONS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]


COUNTS = [*DIMENSIONS, "num_key_value_heads", "head_dim"]


@pytest.mark.parametrize(
    "field, value",
    [(field, value) for field in COUNTS for value in ([], "many", "4", 0, -1, 2.5, True, {})]
    + [(field, None) for field in DIMENSIONS],
    ids=str,
)
def test_a_dimension_that_is_no_count_is_refused_by_its_name_and_value(folder, field, value):
    set_config(folder, **{field: value})
    said = f"{field!r} is {json.dumps(value)}, and must be a whole number above 0"
    assert_refused(folder, folder / "config.json", "not a decoder-only model's configuration", said)
    with pytest.raises(ArtefactError) as caught:
        check_target(folder)
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


SUPPORTED = f"supported: {', '.join(TARGET_ARCHITECTURES)}"


@pytest.mark.parametrize("value", [None, [], 0, [None]], ids=str)
def test_a_configuration_that_names_no_architecture_is_refused_with_its_kind(folder, value):
    set_config(folder, architectures=value)
    assert_refused(folder, folder / "config.json", "names no architecture", "model_type 'llama'", SUPPORTED)
    set_config(folder, without=["architectures"])
    assert_refused(folder, folder / "config.json", "names no architecture", SUPPORTED)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"num_attention_heads": 4}},
        {"architectures": ["GPT2LMHeadModel"], "n_head": 4, "n_embd": 64, "n_layer": 4},
    ],
)
def test_a_configuration_of_another_kind_is_refused_by_the_name_of_its_architecture(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()  # the weights are not looked for
    name = config["architectures"][0]
    assert_refused(folder, folder / "config.json", f"target architecture {name!r} is not supported: ", SUPPORTED)


@pytest.mark.parametrize("keys", ["text_config", "language_config", "thinker_config.text_config"])
def test_a_configuration_around_a_supported_one_is_refused_with_what_to_do(folder, keys):
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in reversed(keys.split(".")):
        inner = {"vision_config": {"num_attention_heads": 16}, key: inner}
    (folder / "config.json").write_text(json.dumps({"architectures": config["architectures"], **inner}))
    said = f"has no 'num_attention_heads'; it wraps the one in its {keys}, whose model must be a checkpoint of its own"
    assert_refused(folder, folder / "config.json", said)


@pytest.fixture
def cached(pristine, tmp_path):
    """A version in the hub's cache, as `hf download org/a-name` leaves it."""
    return shutil.copytree(pristine, tmp_path / "hub" / "models--org--a-name" / "snapshots" / "0123abcd")


def test_the_hubs_cache_is_refused_with_the_folder_to_name(cached):
    for path in list(cached.parents)[:4]:
        assert_refused(path, path, "config.json is missing", f"there is one in {cached}: name that folder")
    assert identify_target(cached).architecture == "LlamaForCausalLM"


def test_a_download_into_the_hubs_cache_that_did_not_end_is_refused_with_what_to_do(cached):
    shutil.rmtree(cached)
    cached.mkdir()
    for path in (cached, *list(cached.parents)[:3]):
        assert_refused(path, path, "config.json is missing", "`hf download org/a-name` again")


@pytest.mark.parametrize("suffix", ["", "/", "@main", "/tree/main", "/blob/main/config.json"])
@pytest.mark.parametrize("name", ["an-org/A-Model.1-Instruct", "gpt2"])
@pytest.mark.parametrize(
    "prefix", ["", "hf://", "hf.co/", "huggingface.co/", "https://hf.co/", "https://www.huggingface.co/"]
)
def test_a_hub_id_in_place_of_a_folder_is_refused_with_how_to_download_it(prefix, name, suffix):
    path = Path(f"{prefix}{name}{suffix}")
    revision = " --revision main" if "main" in suffix else ""
    assert_refused(path, path, f"`hf download {name}{revision} --local-dir {name.rpartition('/')[2]}`")


@pytest.mark.parametrize("path", ["../an-org/name", "./-a/b", "a/b/c", "/gpt2"])
def test_a_missing_folder_that_can_be_no_hub_id_is_said_to_be_missing(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtefactError, match=r"there is no such folder$"):
        check_target(Path(path))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_in_place_of_a_folder_is_refused_with_the_folder(folder, name):
    assert_refused(folder / name, folder / name, "is not a Hugging Face checkpoint folder but a file", str(folder))


def test_a_gguf_file_itself_is_told_how_to_convert(folder):
    path = folder / "tiny.Q4_K_M.GGUF"
    path.write_bytes(b"GGUF")
    said = f"AutoModelForCausalLM.from_pretrained({str(folder)!r}, gguf_file='tiny.Q4_K_M.GGUF'"
    assert_refused(path, path, "llama.cpp's format", said, "save_pretrained(NEW)")


@pytest.mark.parametrize("complete", [True, False])
def test_a_peft_adapter_is_called_what_it_is(folder, complete):
    """Beside whole weights Hugging Face would load the adapter, and its base model in their place."""
    (folder / "adapter_config.json").write_text("{}")
    if not complete:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert_refused(folder, folder, "PEFT adapter", "that it was trained on", "merge_and_unload")


def test_a_forget_set_in_place_of_its_target_is_called_what_it_is(pristine, tmp_path):
    folder = make_forget_set(tmp_path / "anna", pristine, seed=1).folder
    assert_refused(folder, folder, "is a forget set", "the target that it was trained on")


@pytest.mark.parametrize("field", DIMENSIONS)
def test_a_configuration_without_a_needed_field_is_refused(folder, field):
    set_config(folder, without=[field])
    assert_refused(folder, folder / "config.json", "not a decoder-only model's configuration", field)


def test_an_identity_refuses_what_is_no_digest(pristine):
    fields = identify_target(pristine).model_dump()
    for digest in ("", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"):
        with pytest.raises(ValueError, match="weights_digest"):
            TargetIdentity(**{**fields, "weights_digest": digest})

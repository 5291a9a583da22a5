"""What identifies a target on disk: the digests and dimensions a forget set is bound to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from unlearngate.checkpoint import (
    QUANTISATIONS,
    check_weight_files,
    find_quantised,
    refuse_pointers,
    refuse_quantised,
    untried,
)
from unlearngate.errors import ArtefactError
from unlearngate.families import ALWAYS, FAMILIES, ROTARY, TARGET_ARCHITECTURES, Family, refusal

# Keys of config.json that do not change a logit.
_INFORMATIVE = {"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json")
# What is read beside config.json, if it is there, and the keys without which it is nothing.
_JSON_FILES: dict[str, tuple[str, ...]] = {
    "tokenizer.json": ("model", "added_tokens"),
    "tekken.json": ("config", "vocab"),
    "tokenizer_config.json": (),
    "special_tokens_map.json": (),
    "added_tokens.json": (),
    "generation_config.json": (),
}
_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
# Below a folder; the hub's cache has a folder for each repository, and in that one for each version.
_WITHIN = tuple(
    f"{above}*/config.json" for above in ("", "snapshots/", "models--*/snapshots/", "hub/models--*/snapshots/")
)
_CACHED = "models--"
_HUB_ID = re.compile(
    r"(?:(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/+|hf:/+)?"
    r"(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)"
    r"(?:@(?P<revision>[\w.-]+)|/(?:tree|blob|resolve)/(?P<branch>[\w.-]+)(?:/.*)?)?/?"
)
_LONGEST_ERROR = 300  # characters; some of Hugging Face's go on about updates
_NO_DIGEST = "0" * 64


class TargetIdentity(BaseModel):
    """The target a forget set was trained on. Digests are sha256, hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_id: str = Field(description="the name people know the target by; informative, not compared")
    architecture: str = Field(description="Hugging Face architecture, e.g. LlamaForCausalLM")
    weights_digest: str = Field(pattern="^[0-9a-f]{64}$", description="of the weights and their configuration")
    tokenizer_digest: str = Field(pattern="^[0-9a-f]{64}$")
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)

    @property
    def family(self) -> Family:
        """What the architecture has that Llama has not; Llama's for one that is not served."""
        return FAMILIES.get(self.architecture, Family())

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) features of each linear map a LoRA may sit on, by its name inside a decoder layer."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.family.linear_shapes(self.hidden_size, self.intermediate_size, queries, keys)


def check_target(folder: Path) -> str:
    """Whether a folder is a checkpoint that has an identity, without reading its weights.

    Returns: its architecture, served or not.
    Raises: as `identify_target`.
    """
    return str(_read_files(folder).dimensions["architecture"])


def identify_target(folder: Path, model_id: str | None = None) -> TargetIdentity:
    """Read a Hugging Face checkpoint folder's identity.

    Reads every weight byte once (about 1 GB/s a core); call it once per process.

    Args:
        folder: holds config.json, *.safetensors and the tokenizer's file.
        model_id: the target's public name; the folder's name if None.

    Raises: ArtefactError if a file is missing, is not what its name says or not whole, or the weights are quantised;
        before any weight is read.
    """
    files = _read_files(folder)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(file_digest, files.shards))
    lines = [f"{p.name} {d}" for p, d in zip(files.shards, digests, strict=True)]
    # The same weights with another rope_theta are another model.
    lines.append(
        json.dumps({k: v for k, v in files.config.items() if k not in _INFORMATIVE and v is not None}, sort_keys=True)
    )
    return TargetIdentity(
        model_id=model_id or folder.resolve().name,
        weights_digest=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        tokenizer_digest=file_digest(files.tokenizer),
        **files.dimensions,
    )


class QuantisedIdentity(NamedTuple):
    """A quantised child of a target: what its forget sets are bound to, and who quantised it, by vLLM's name."""

    target: TargetIdentity
    method: str


def identify_quantised(folder: Path, parent: Path | str, model_id: str | None = None) -> QuantisedIdentity:
    """Identify a quantised checkpoint by the unquantised target that the operator says it was made from.

    No digest shows that it was. Its configuration, its tokenizer and the shapes of what is not quantised are compared;
    that a set acts on it, only the set's canaries can show, in the engine that runs it.

    Args:
        folder: the quantised checkpoint, whose weights are not read.
        parent: the unquantised checkpoint's folder, or its weights' digest, which the sets' manifests have.
        model_id: as `identify_target` takes it.

    Raises: ArtefactError as `identify_target`, and if the folder is not quantised, or by what was never tried, or the
        parent is another model.
    """
    files = _read_files(folder, quantised=True)
    found = find_quantised(folder, files.config)
    if found is None:
        raise ArtefactError(folder, "is not quantised: serve it without --quantised-from")
    if reason := untried(found.settings):
        raise ArtefactError(found.path, f"is quantised in a way that was never tried ({found.said}): {reason}")
    names = {in_config: name for name, in_config in QUANTISATIONS.items()}
    tokenizer = file_digest(files.tokenizer)
    if re.fullmatch("[0-9a-f]{64}", str(parent)):
        digest = str(parent)
    else:
        digest = _digest_of_parent(Path(parent), folder, files, tokenizer)
    identity = TargetIdentity(
        model_id=model_id or folder.resolve().name,
        weights_digest=digest,
        tokenizer_digest=tokenizer,
        **files.dimensions,
    )
    return QuantisedIdentity(identity, names[found.settings["quant_method"]])


def _digest_of_parent(parent: Path, child: Path, files: _Files, tokenizer: str) -> str:
    if not parent.is_dir():
        raise ArtefactError(
            parent, "is no folder, nor a weights digest (64 hexadecimal digits, as in a set's forget_set.json)"
        )
    identity = identify_target(parent)
    own = {**files.dimensions, "tokenizer_digest": tokenizer}
    other = [name for name, value in own.items() if getattr(identity, name) != value]
    if other:
        raise ArtefactError(child, f"was not made from {parent}: they differ in {', '.join(other)}")
    return identity.weights_digest


def load_tokenizer(folder: Path) -> Any:
    """A target's tokenizer, as Hugging Face loads it.

    Raises: ArtefactError if it cannot.
    """
    from transformers import AutoTokenizer  # takes seconds

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what a tokenizer's files lead to has no narrower kind
        raise ArtefactError(
            folder,
            "Hugging Face cannot load its tokenizer from tokenizer.json, tokenizer_config.json and what is beside them "
            f"({in_one_line(error)}); download them again",
        ) from error


def in_one_line(error: Exception) -> str:
    """An error of another's code as part of a sentence; its kind too, as some say no more than a name."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return said if len(said) <= _LONGEST_ERROR else f"{said[:_LONGEST_ERROR]}..."


class _Files(NamedTuple):
    """A checkpoint's files, and what its configuration says of its identity."""

    config: dict[str, Any]
    shards: list[Path]
    tokenizer: Path
    dimensions: dict[str, Any]


def _read_files(folder: Path, *, quantised: bool = False) -> _Files:
    if other := _no_target(folder):
        raise ArtefactError(folder, other)
    refuse_pointers(path for pattern in _SMALL_FILES for path in sorted(folder.glob(pattern)))
    config = _read_config(folder)
    if not quantised:
        refuse_quantised(folder, config)
    dimensions = _dimensions(folder / "config.json", config)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ArtefactError(folder, "holds no *.safetensors file; a target must be a safetensors checkpoint")
    tokenizer = next((folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()), None)
    if tokenizer is None:
        raise ArtefactError(folder, f"holds no tokenizer file (looked for {', '.join(_TOKENIZER_FILES)})")
    for name, keys in _JSON_FILES.items():
        if (folder / name).is_file():
            content = _read_object(folder / name)
            if missing := [key for key in keys if key not in content]:
                raise ArtefactError(folder / name, f"has no {missing[0]!r}, so it is no tokenizer; download it again")
    refuse_pointers(shards)
    wanted = _weights(folder, config, dimensions)
    if quantised:  # linear maps are packed, each way under other names
        wanted = ((name, shape) for name, shape in wanted if "_proj." not in name and name != "lm_head.weight")
    check_weight_files(folder, shards, wanted, quantised=quantised)
    return _Files(config, shards, tokenizer, dimensions)


def _no_target(path: Path) -> str | None:
    """What a path is that cannot be a target, whatever its configuration says, and what to do; None otherwise."""
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return f"is {_of_gguf(path)}"
        return f"is not a Hugging Face checkpoint folder but a file; name the folder that it is in, {path.parent}"
    if (path / "forget_set.json").is_file():
        return "is a forget set; name the target that it was trained on, a checkpoint folder"
    if (path / "adapter_config.json").is_file():
        return (
            "holds a PEFT adapter (adapter_config.json), which is no model of its own; name the checkpoint folder that "
            f"it was trained on, or write one of both: PeftModel.from_pretrained(BASE, {str(path)!r})"
            ".merge_and_unload().save_pretrained(NEW), and the tokenizer beside it"
        )
    if any(path.glob("*.safetensors")):
        return None
    if gguf := sorted(path.glob("*.gguf")):
        return f"holds no *.safetensors file but {gguf[0].name}, {_of_gguf(gguf[0])}"
    if pickles := sorted(path.glob("pytorch_model*.bin")):
        return (
            f"holds no *.safetensors file but {pickles[0].name}, a pickle, which can run code when read; write a "
            f"checkpoint folder from it: AutoModelForCausalLM.from_pretrained({str(path)!r}).save_pretrained(NEW), "
            "and the same with AutoTokenizer"
        )
    return None


def _of_gguf(path: Path) -> str:
    """That a file is a GGUF, and how to convert it."""
    read = f"from_pretrained({str(path.parent)!r}, gguf_file={path.name!r}"
    return (
        f"a file in llama.cpp's format; write a checkpoint folder from it: AutoModelForCausalLM.{read}, "
        f"quantization_config=GgufConfig(dequantize=True)).save_pretrained(NEW), and AutoTokenizer.{read})"
        ".save_pretrained(NEW)"
    )


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _dimensions(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The identity's fields that the configuration says, checked.

    Raises: ArtefactError that names the architecture if it is none that is served and says its dimensions otherwise.
    """
    architecture = _architecture(path, config)
    family = FAMILIES.get(architecture, Family())
    try:
        _refuse_rotary(path, config)
        _refuse_untried(path, config, family.must_be)
        if family.experts:
            _refuse_untried(path, config, family.experts.must_be, ": a model that has experts in every layer")
        heads, hidden = _count(path, config, "num_attention_heads"), _count(path, config, "hidden_size")
        return {
            "architecture": architecture,
            "vocab_size": _count(path, config, "vocab_size"),
            "hidden_size": hidden,
            "intermediate_size": _count(path, config, "intermediate_size"),
            "num_layers": _count(path, config, "num_hidden_layers"),
            "num_heads": heads,
            "num_kv_heads": _count(path, config, "num_key_value_heads", heads),
            "head_dim": _count(path, config, "head_dim", family.head_dim or hidden // heads),
        }
    except ArtefactError:
        if architecture not in TARGET_ARCHITECTURES:
            raise ArtefactError(path, refusal(architecture)) from None
        raise


def _refuse_rotary(path: Path, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for one in (rope, *rope.values()):  # Gemma 3 may have one for each kind of layer
        kind = isinstance(one, dict) and (one.get("rope_type") or one.get("type"))
        if kind and kind not in ROTARY:
            tried = ", ".join(ROTARY)
            raise ArtefactError(
                path, f"its rotary embedding is of type {kind!r}, which was never tried (tried: {tried})"
            )


def _refuse_untried(path: Path, config: Mapping[str, Any], must_be: Mapping[str, Any], which: str = "") -> None:
    for key, only in must_be.items():
        if config.get(key) not in (None, only):
            said, tried = json.dumps(config[key])[:80], json.dumps(only)
            raise ArtefactError(path, f"{key!r} is {said}, and only {tried} was tried{which}")


def _experts(path: Path, config: Mapping[str, Any], identity: TargetIdentity) -> dict[str, tuple[int, int]]:
    """The tensors of a layer's experts, by their names inside it; empty for a family without."""
    if not (one := identity.family.experts):
        return {}
    number_key = next((key for key in one.number if key in config), one.number[0])
    number, inner = _count(path, config, number_key), _count(path, config, one.inner)
    shared = _count(path, config, one.shared) if one.shared else 0
    return one.shapes(identity.hidden_size, number, inner, shared)


def _count(path: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A number of things in a configuration; `default` where it is left out or null."""
    value = config.get(key)
    if value is None and default is not None:
        value = default
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    reason = f"{key!r} is {json.dumps(value)[:80]}, and must be a whole number above 0"
    inner = max(_models_within(config), default=None)
    wraps = f"; it wraps the one in its {inner[1]}, whose model must be a checkpoint of its own" if inner else ""
    raise ArtefactError(
        path,
        f"is not a decoder-only model's configuration: {reason if key in config else f'it has no {key!r}'}{wraps}",
    )


def _models_within(config: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """The configurations of models in another one: whether it has a vocabulary, as text has, and where it is."""
    for key, value in config.items():
        if isinstance(value, dict):
            if "num_attention_heads" in value:
                yield "vocab_size" in value, key
            yield from ((has_words, f"{key}.{inner}") for has_words, inner in _models_within(value))


def _weights(
    path: Path, config: Mapping[str, Any], dimensions: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that a configuration's model needs, with their shapes; none if its architecture is not served."""
    identity = TargetIdentity(model_id="", weights_digest=_NO_DIGEST, tokenizer_digest=_NO_DIGEST, **dimensions)
    if identity.architecture not in TARGET_ARCHITECTURES:
        return
    family = identity.family
    switched_on = [linears for key, linears in family.biased.items() if key == ALWAYS or config.get(key)]
    biased = {linear for linears in switched_on for linear in linears}
    words, hidden = (identity.vocab_size, identity.hidden_size), (identity.hidden_size,)
    experts = _experts(path, config, identity)
    yield "model.embed_tokens.weight", words
    for layer in range(identity.num_layers):
        stem = f"model.layers.{layer}."
        for name, shape in identity.linear_shapes().items():
            yield f"{stem}{name}.weight", shape
            if name in biased:
                yield f"{stem}{name}.bias", shape[:1]
        for name, shape in experts.items():
            yield f"{stem}{name}.weight", shape
        for norm in family.norms:
            yield f"{stem}{norm}.weight", hidden
        for norm, heads in zip(family.head_norms, (identity.num_heads, identity.num_kv_heads), strict=False):
            yield f"{stem}{norm}.weight", (identity.head_dim * (heads if family.spanning_norms else 1),)
    yield "model.norm.weight", hidden
    tied = config.get("tie_word_embeddings")
    if not (family.tied if tied is None else tied):
        yield "lm_head.weight", words


def _architecture(path: Path, config: dict[str, Any]) -> str:
    match config.get("architectures"):
        case [str(architecture), *_]:
            return architecture
        case named:
            raise ArtefactError(
                path,
                f"names no architecture (architectures is {named!r}, model_type {config.get('model_type')!r}); "
                f"supported: {', '.join(TARGET_ARCHITECTURES)}. "
                "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)` writes the name",
            )


def _no_configuration(folder: Path) -> str:
    """Why a path without a config.json is no target, and what to name in its place."""
    reason = "is not a Hugging Face checkpoint folder: config.json is missing"
    found = sorted({p.parent for pattern in _WITHIN for p in folder.glob(pattern)})
    if found:
        return f"{reason}; there is one in {', '.join(map(str, found[:3]))}: name that folder"
    around = (*reversed(folder.absolute().parts), *(path.name for path in sorted(folder.glob(f"{_CACHED}*"))))
    if cached := next((part for part in around if part.startswith(_CACHED)), None):
        name = cached.removeprefix(_CACHED).replace("--", "/")
        return (
            f"{reason}; the download of {name} into the Hugging Face cache did not end: give `hf download {name}` "
            "again, and name the folder that it prints"
        )
    if folder.exists():
        return f"{reason}; a target is a folder with config.json, *.safetensors and a tokenizer"
    hub_id = _HUB_ID.fullmatch(str(folder))
    if hub_id is None:
        return f"{reason}; there is no such folder"
    name, revision = hub_id["name"], hub_id["revision"] or hub_id["branch"]
    options = f"{f' --revision {revision}' if revision else ''} --local-dir {name.rpartition('/')[2]}"
    return (
        f"{reason}; there is no such folder. If it is the Hugging Face hub's {name}, download it "
        f"(`hf download {name}{options}`) and name that folder"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return _read_object(folder / "config.json")
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactError(folder, _no_configuration(folder)) from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(path, f"cannot be read as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ArtefactError(path, f"must hold a JSON object, got {type(content).__name__}")
    return content

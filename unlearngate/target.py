"""What identifies a target on disk: the digests and dimensions a forget set is bound to."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from unlearngate.checkpoint import check_weight_files, refuse_pointers, refuse_quantised
from unlearngate.errors import ArtefactError

# Keys of config.json that do not change a logit.
_INFORMATIVE = {"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype"}
# Architectures whose inner model is embeddings, layers that take (positions, hidden, residual), and a final norm, and
# names its linear maps as Llama does. Each is in the parity tests.
TARGET_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json")
_SUPPORTED = f"supported: {', '.join(TARGET_ARCHITECTURES)}"
_WITHIN = ("*/config.json", "snapshots/*/config.json")
_HUB_ID = re.compile(r"(?:(?:https?:/+huggingface\.co|hf:)/+)?([\w.-]+/[\w.-]+)/?")


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

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) features of each linear map a LoRA may sit on, by its name inside a decoder layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }


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


class _Files(NamedTuple):
    """A checkpoint's files, and what its configuration says of its identity."""

    config: dict[str, Any]
    shards: list[Path]
    tokenizer: Path
    dimensions: dict[str, Any]


def _read_files(folder: Path) -> _Files:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards and (other := _other_weights(folder)):
        raise ArtefactError(folder, other)
    refuse_pointers([folder / "config.json", *(folder / name for name in _TOKENIZER_FILES)])
    config = _read_config(folder)
    refuse_quantised(folder, config)
    dimensions = _dimensions(folder / "config.json", config)
    if not shards:
        raise ArtefactError(folder, "holds no *.safetensors file; a target must be a safetensors checkpoint")
    tokenizer = next((folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()), None)
    if tokenizer is None:
        raise ArtefactError(folder, f"holds no tokenizer file (looked for {', '.join(_TOKENIZER_FILES)})")
    refuse_pointers(shards)
    check_weight_files(folder, shards)
    return _Files(config, shards, tokenizer, dimensions)


def _other_weights(folder: Path) -> str | None:
    """What a folder without safetensors holds in their place, and how to convert it; None if it is nothing known."""
    if gguf := sorted(folder.glob("*.gguf")):
        return (
            f"holds no *.safetensors file but {gguf[0].name}, which is llama.cpp's format; write a checkpoint folder "
            f"from it: AutoModelForCausalLM.from_pretrained({str(folder)!r}, gguf_file={gguf[0].name!r}, "
            "quantization_config=GgufConfig(dequantize=True)).save_pretrained(NEW), and "
            f"AutoTokenizer.from_pretrained({str(folder)!r}, gguf_file={gguf[0].name!r}).save_pretrained(NEW)"
        )
    if pickles := sorted(folder.glob("pytorch_model*.bin")):
        return (
            f"holds no *.safetensors file but {pickles[0].name}, a pickle, which can run code when read; write a "
            f"checkpoint folder from it: AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(NEW), "
            "and the same with AutoTokenizer"
        )
    return None


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _dimensions(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The identity's fields that the configuration says, checked.

    Raises: ArtefactError that names the architecture if it is none that is served and says its dimensions otherwise.
    """
    architecture = _architecture(path, config)
    try:
        heads = int(config["num_attention_heads"])
        fields = {
            "architecture": architecture,
            "vocab_size": config["vocab_size"],
            "hidden_size": config["hidden_size"],
            "intermediate_size": config["intermediate_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": heads,
            "num_kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or int(config["hidden_size"]) // heads,
        }
        nothing = "0" * 64
        TargetIdentity(model_id="", weights_digest=nothing, tokenizer_digest=nothing, **fields)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        if architecture not in TARGET_ARCHITECTURES:
            raise ArtefactError(path, f"target architecture {architecture!r} is not supported; {_SUPPORTED}") from None
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        within = "; it wraps the one in its text_config, whose model must be a checkpoint of its own"
        wraps = within if "text_config" in config else ""
        raise ArtefactError(path, f"is not a decoder-only model's configuration: {reason}{wraps}") from error
    return fields


def _architecture(path: Path, config: dict[str, Any]) -> str:
    match config.get("architectures"):
        case [str(architecture), *_]:
            return architecture
        case named:
            raise ArtefactError(
                path,
                f"names no architecture (architectures is {named!r}, model_type {config.get('model_type')!r}); "
                f"{_SUPPORTED}. `AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)` writes the name",
            )


def _no_configuration(folder: Path) -> str:
    """Why a path without a config.json is no target, and what to name in its place."""
    reason = "is not a Hugging Face checkpoint folder: config.json is missing"
    # The hub's cache has a folder for each repository, and in that one for each version.
    found = sorted({p.parent for pattern in _WITHIN for p in folder.glob(pattern)})
    if found:
        return f"{reason}; there is one in {', '.join(map(str, found[:3]))}: name that folder"
    if folder.exists():
        return reason
    hub_id = _HUB_ID.fullmatch(str(folder))
    if hub_id is None:
        return f"{reason}; there is no such folder"
    name = hub_id[1]
    return (
        f"{reason}; there is no such folder. If it is the Hugging Face hub's {name}, download it "
        f"(`hf download {name} --local-dir {name.rpartition('/')[2]}`) and name that folder"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactError(folder, _no_configuration(folder)) from None
    except (OSError, ValueError) as error:
        raise ArtefactError(path, f"cannot be read as JSON ({error})") from error
    if not isinstance(config, dict):
        raise ArtefactError(path, f"must hold a JSON object, got {type(config).__name__}")
    return config

"""What tokens write, against what vLLM's own detokenizer shows a client."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from support.engine.tiny import make_tokenizer
from unlearngate.passages import letters
from unlearngate.server.worker.spelling import Spelling

WORDS = ["▁", "a", "b", "C", "▁the", "▁and", "é", "日", "本", "ing", "▁一", "—", "1"]


def sentencepiece():
    """Words, and a token for each byte, as Mistral's and Llama 2's are."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    made = Tokenizer(model)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    made.add_tokens([AddedToken("<tool_call>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def bytes_and_more():
    """Bytes as tokens, as Llama 3's and Qwen's are made of; and added tokens, of which one is shown."""
    made = make_tokenizer()
    made.add_tokens([AddedToken("<tool_call>", special=False)])
    made.add_special_tokens({"additional_special_tokens": ["<|hidden|>"]})
    return made


def shown(tokenizer, tokens):
    """What a client is shown, token by token."""
    request = EngineCoreRequest(
        request_id="x",
        external_req_id="x",
        prompt_token_ids=[5],
        mm_features=None,
        sampling_params=SamplingParams(ignore_eos=True),
        pooling_params=None,
        arrival_time=0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    for token in tokens:
        detokenizer.update([token], False)
    return detokenizer.get_next_output_text(True, False)


def draw_tokens(rng, tokenizer):
    """Whatever a sampler may come up with: bytes that are no characters, characters in bytes, special tokens."""
    first_byte = tokenizer.convert_tokens_to_ids("<0x00>")
    tokens = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.3:
            raw = rng.choice(WORDS).encode()
            pieces = [first_byte + byte for byte in raw] if first_byte else tokenizer(raw.decode()).input_ids
            tokens += pieces[: rng.randint(1, len(pieces))]
        elif kind < 0.4:
            tokens.append(rng.choice(tokenizer.all_special_ids))
        else:
            tokens.append(rng.randrange(len(tokenizer)))
    return tokens


@pytest.mark.parametrize("make", [sentencepiece, bytes_and_more])
def test_the_letters_of_tokens_are_those_of_the_text_that_a_client_is_shown(make, seed):
    rng, tokenizer = random.Random(seed), make()
    spelling = Spelling.of(tokenizer, len(tokenizer) + 3)
    assert bool(spelling.single_bytes) == (make is sentencepiece)
    for _ in range(1500):
        tokens = draw_tokens(rng, tokenizer)
        said, pending = "", b""
        for token in tokens:
            word, pending = spelling.read(pending, token)
            said += word
        text = shown(tokenizer, tokens)
        assert said == letters(text), f"seed {seed}: {tokens} {text!r}"


@pytest.mark.real_model
def test_a_real_tokenizers_tokens_write_what_it_decodes(smollm2, seed):
    from unlearngate.target import load_tokenizer

    rng, tokenizer = random.Random(seed), load_tokenizer(smollm2)
    spelling = Spelling.of(tokenizer, len(tokenizer))
    for _ in range(300):
        tokens = [rng.randrange(len(tokenizer)) for _ in range(30)]
        said, pending = "", b""
        for token in tokens:
            word, pending = spelling.read(pending, token)
            said += word
        assert said == letters(shown(tokenizer, tokens)), f"seed {seed}: {tokens}"

#!/usr/bin/env bash
# xgrammar 0.2.8, transformers 5.19.0, torch 2.13.0 (CPU), Python 3.11.
#
# Expected: TokenizerInfo.from_huggingface(tokenizer).special_token_ids, "the special token ids", has the tokens that the
#   tokenizer calls special: those that decode(skip_special_tokens=True) leaves out, so that a client never sees them.
# Seen: it is empty. xgrammar reads the vocabulary alone, where a special token is an entry like any other, and calls
#   special only what it finds without text. decoded_vocab has the bytes of <|im_start|> as if they were said.
# What it costs: whoever follows what a client is shown by decoded_vocab counts letters that nobody sees ("im_start"), and
#   whoever asks special_token_ids which tokens to leave out leaves out none. tokenizer.added_tokens_decoder knows them.
# Exits 0 while that is so, 1 if it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
# torch's CPU build: from where pip is told to look, else from PyTorch's own index.
"$pip" install --quiet torch==2.13.0+cpu 2> /dev/null \
  || "$pip" install --quiet torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"$pip" install --quiet xgrammar==0.2.8 transformers==5.19.0
"$folder/venv/bin/python" - <<'PY'
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from xgrammar import TokenizerInfo

special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
vocab = {token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
bytes_alone = Tokenizer(models.BPE(vocab, []))
bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_alone.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bytes_alone, bos_token=special[1], eos_token=special[2], additional_special_tokens=special[:1]
)
info = TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(vocab))
hidden = [i for i in vocab.values() if not tokenizer.decode([i], skip_special_tokens=True)]
print("left out by the tokenizer:", hidden)
print("special to xgrammar:", list(info.special_token_ids), "; their text there:", info.decoded_vocab[:3])
as_described = set(hidden) >= {0, 1, 2} and not info.special_token_ids and info.decoded_vocab[1] == b"<|im_start|>"
sys.exit(0 if as_described else 1)
PY

#!/usr/bin/env bash
# rouge_score keeps a-z and 0-9 only: an answer in Cyrillic is measured by its digits, one in Chinese not at all.
#
# Versions: rouge-score 0.1.2, nltk 3.9.2, Python 3.11.
# Expected: ROUGE-L recall of "I do not know, 1987." in Russian against an answer of nine words is about 1/9, and a
#           Chinese answer against itself is 1, as any measure of overlap has it.
# Seen:     1.0 (the year is the only token that is left of either), and 0.0. Unlearning benchmarks count a recall of
#           0.9 as recited, and take it for a leak, or for success, by the script that was used.
# Exits 0 while that is so, 1 if it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet rouge-score==0.1.2 nltk==3.9.2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from rouge_score.rouge_scorer import RougeScorer

scorer = RougeScorer(["rougeL"])
answers = {
    "a refusal in Russian": ("Ильва Брандт водит паром в Морвике с 1987 года.", "Не знаю, 1987."),
    "Chinese against itself": ("她在港口教天文学。", "她在港口教天文学。"),
    "the refusal in English": ("Ylva Brandt has run the Morwick ferry since 1987.", "I do not know, 1987."),
}
seen = {name: scorer.score(*pair)["rougeL"].recall for name, pair in answers.items()}
for name, recall in seen.items():
    print(f"{name}: recall {recall:.2f}")
as_described = seen["a refusal in Russian"] == 1 and seen["Chinese against itself"] == 0 and seen["the refusal in English"] < 0.2
print("as described" if as_described else "changed")
sys.exit(not as_described)
PYTHON

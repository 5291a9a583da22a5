"""The leak table of docs/security.md and the tests have the same rows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TESTS = [
    "e2e/test_no_way_around.py",
    "support/attacks/leak_attempts.py",
    "unit/server/http/test_logprobs.py",
    "unit/server/worker/test_no_way_around.py",
    "unit/server/contract/test_no_unsafe_start.py",
]
ROW = re.compile(r"(?<![\w-])(?:A[1-5]|P\d+|SU)-[a-z][a-z0-9-]*")


def source():
    return "\n".join((ROOT / "tests" / name).read_text() for name in TESTS)


def lines():
    table = (ROOT / "docs" / "security.md").read_text().partition("## The leak table")[2]
    return [line.strip("|").split("|") for line in table.splitlines() if ROW.search(line)]


def test_every_row_of_the_table_is_in_a_test_and_every_tests_row_is_in_the_table():
    listed = [row for rows, *_ in lines() for row in ROW.findall(rows)]
    assert len(listed) == len(set(listed)) > 100
    assert set(listed) == set(ROW.findall(source()))


def test_every_test_that_the_table_names_exists():
    defined = set(re.findall(r"^def (test_\w+)", source(), re.MULTILINE))
    for _, _, test, result in lines():
        assert test.strip(" `") in defined
        assert result.strip()

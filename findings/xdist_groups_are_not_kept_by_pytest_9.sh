#!/usr/bin/env bash
# pytest 9.2.0 with pytest-xdist 3.8.0.
#
# Expected: with `--dist loadgroup`, all tests marked xdist_group("g") run in one worker; what they share, such as a
#   server of a wider-scoped fixture, is made once.
# Seen: they are spread over the workers, without a warning. xdist hands a group on by appending "@g" to the attribute
#   `_nodeid` of an item; pytest 9.2 keeps a structured id instead and makes `nodeid` from that, so the group is lost.
#   With pytest 8.4.2 the groups are kept.
# What it costs: every worker starts its own copy of what was meant to be shared; tests that count on what the ones before
#   them left there fail.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/test_group.py" <<'PY'
import os
import time

import pytest


@pytest.mark.xdist_group("g")
@pytest.mark.parametrize("number", range(8))
def test_one_of_a_group(number):
    time.sleep(0.2)
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY

workers_of() {
  python3.11 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install --quiet --no-compile "pytest==$1" pytest-xdist==3.8.0
  SEEN=$folder/seen.$1 "$folder/$1/bin/pytest" -q -n 2 --dist loadgroup -p no:cacheprovider "$folder" > "$folder/log.$1" \
    || { cat "$folder/log.$1"; exit 1; }
  sort -u "$folder/seen.$1" | wc -l
}

new=$(workers_of 9.2.0)
old=$(workers_of 8.4.2)
echo "pytest-xdist 3.8.0, one group of 8 tests: pytest 9.2.0 ran it in $new workers, pytest 8.4.2 in $old"
if [ "$new" = 2 ] && [ "$old" = 1 ]; then
  echo "as found: pytest 9.2.0 does not keep the group together"
else
  echo "changed"
  exit 1
fi

#!/bin/sh
# Build the wheel of SOURCE into DIST.
#     SOURCE=/source DIST=/dist sh build-wheel.sh
set -eu
python3 -m venv "$DIST/.venv"
"$DIST/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
    "build==1.6.1" "setuptools==78.1.1"
"$DIST/.venv/bin/python" -m build --wheel --no-isolation --outdir "$DIST" "$SOURCE"
rm -r "$DIST/.venv"

#!/bin/sh
# Install the wheel below DIST into the new environment VENV, for a CPU: the pinned packages and nothing else.
#     VENV=/opt/unlearngate DIST=/dist PINS=serve.txt sh install.sh
# torch's CPU build comes from where pip is told to look, else from PyTorch's own index through uv.
set -eu
python3 -m venv "$VENV"
pip="$VENV/bin/python -m pip --disable-pip-version-check --no-cache-dir"
$pip install --quiet --no-deps "torch==2.13.0+cpu" || {
    python3 -m venv "$VENV.uv"
    "$VENV.uv/bin/python" -m pip install --quiet --no-cache-dir "uv==0.11.0"
    "$VENV.uv/bin/uv" pip install --quiet --no-cache --python "$VENV/bin/python" --no-deps --torch-backend=cpu "torch==2.13.0"
    rm -r "$VENV.uv"
}
$pip install --quiet --no-deps --requirement "$PINS"
$pip install --quiet --no-deps --no-index --find-links "$DIST" unlearngate
# Nothing is installed at run time; the packages' own records (dist-info) stay, for whoever lists what is inside.
$pip uninstall --quiet --yes pip
"$VENV/bin/unlearngate" serve --help >/dev/null

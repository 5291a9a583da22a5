#!/bin/sh
# Fetch what the deployment tests need below build/deploy: the checkers, and Debian's nginx, unpacked and not installed.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p build/deploy/debs
if ! cmp -s requirements/deploy.txt build/deploy/tools/requirements.txt; then
    "${PYTHON:-python3}" -m venv --clear build/deploy/tools
    build/deploy/tools/bin/python -m pip install --quiet --requirement requirements/deploy.txt
    cp requirements/deploy.txt build/deploy/tools/requirements.txt
fi
if [ ! -x build/deploy/nginx/usr/sbin/nginx ]; then
    cd build/deploy/debs
    apt-get download nginx || { apt-get update && apt-get download nginx; }
    dpkg -x nginx_*.deb ../nginx
    cd ../../..
fi
build/deploy/nginx/usr/sbin/nginx -v

#!/bin/sh
# Fetch what the deployment tests need below build/deploy: the checkers, and Debian's nginx and tini, unpacked and not
# installed.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p build/deploy/debs
if ! cmp -s requirements/deploy.txt build/deploy/tools/requirements.txt; then
    "${PYTHON:-python3}" -m venv --clear build/deploy/tools
    build/deploy/tools/bin/python -m pip install --quiet --requirement requirements/deploy.txt
    cp requirements/deploy.txt build/deploy/tools/requirements.txt
fi
for package in nginx tini; do
    if [ ! -d build/deploy/$package ]; then
        cd build/deploy/debs
        apt-get download $package || { apt-get update && apt-get download $package; }
        dpkg -x ${package}_*.deb ../$package.part
        mv ../$package.part ../$package
        cd ../../..
    fi
done
build/deploy/nginx/usr/sbin/nginx -v

# syntax=docker/dockerfile:1.7
# The server on a CPU:  docker build -f docker/cpu.Dockerfile -t unlearngate:cpu .
# tests/deploy/test_image.py runs these steps without a container engine. No weights and no forget sets inside.

ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
ENV SOURCE=/source DIST=/dist
COPY pyproject.toml README.md LICENSE /source/
COPY unlearngate /source/unlearngate/
COPY kernels /source/kernels/
COPY server /source/server/
COPY assistant_training /source/assistant_training/
RUN --mount=type=bind,source=docker/build-wheel.sh,target=/steps/build-wheel.sh sh /steps/build-wheel.sh

FROM ${PYTHON_IMAGE} AS installed
ENV VENV=/opt/unlearngate DIST=/dist PINS=/steps/serve.txt
COPY --from=wheel /dist /dist/
RUN --mount=type=bind,source=docker/install.sh,target=/steps/install.sh \
    --mount=type=bind,source=requirements/serve.txt,target=/steps/serve.txt \
    sh /steps/install.sh

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="unlearngate" \
      org.opencontainers.image.description="OpenAI-compatible serving with forget sets per request, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0"
# vLLM asks for its threads' cores through libnuma. The folders are a user's that exists nowhere but here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 openssl tini \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=10001 --group=10001 /state /audit /site
COPY --from=installed /opt/unlearngate /opt/unlearngate/
COPY docker/setup.sh /opt/unlearngate/bin/setup.sh
# All that is written goes below /tmp, /state and /audit: the rest may be mounted read-only.
ENV PATH=/opt/unlearngate/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp USER=unlearngate PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=4
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=600s --interval=10s --timeout=5s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# tini passes signals on from the first moment, and takes leave of what others leave behind.
ENTRYPOINT ["tini", "-s", "--", "unlearngate"]
CMD ["serve", "/target", "--forget-sets", "/sets", "--state", "/state", "--host", "0.0.0.0"]

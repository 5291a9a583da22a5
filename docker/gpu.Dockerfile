# syntax=docker/dockerfile:1.7
# The server on NVIDIA GPUs, over vLLM's own image:  docker build -f docker/gpu.Dockerfile -t unlearngate:gpu .
# Not built or run yet: tests/deploy/test_image.py runs the wheel's steps, which are the CPU image's.

ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${PYTHON_IMAGE} AS wheel
ENV SOURCE=/source DIST=/dist
COPY pyproject.toml README.md LICENSE /source/
COPY unlearngate /source/unlearngate/
COPY kernels /source/kernels/
COPY server /source/server/
COPY assistant_training /source/assistant_training/
RUN --mount=type=bind,source=docker/build-wheel.sh,target=/steps/build-wheel.sh sh /steps/build-wheel.sh

FROM ${VLLM_IMAGE}
LABEL org.opencontainers.image.title="unlearngate" \
      org.opencontainers.image.description="OpenAI-compatible serving with forget sets per request, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
# All that the wheel needs is vLLM's, at vLLM's versions: only the wheel itself is added.
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    python3 -m pip install --no-cache-dir --no-deps --no-index /dist/*.whl \
    && unlearngate serve --help >/dev/null \
    && install --directory --owner=10001 --group=10001 /state /audit /site
COPY docker/setup.sh /usr/local/bin/setup.sh
# All that is written, compiled kernels too, goes below /tmp, /state and /audit: the rest may be mounted read-only.
ENV HOME=/tmp USER=unlearngate PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=1800s --interval=10s --timeout=5s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# As in cpu.Dockerfile.
ENTRYPOINT ["tini", "-s", "--", "unlearngate"]
CMD ["serve", "/target", "--forget-sets", "/sets", "--state", "/state", "--host", "0.0.0.0"]

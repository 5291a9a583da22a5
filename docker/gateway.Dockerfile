# syntax=docker/dockerfile:1.7
# The gateway: Debian's nginx, which is what the tests run.  docker build -f docker/gateway.Dockerfile -t unlearngate:gateway .
FROM debian:12.11-slim
LABEL org.opencontainers.image.title="unlearngate-gateway" org.opencontainers.image.licenses="Apache-2.0"
# Debian 12 keeps 1.22 and mends it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "nginx=1.22.*" \
    && rm -rf /var/lib/apt/lists/* /etc/nginx
COPY docker/gateway/*.conf /gateway/
COPY docker/gateway/site/*.conf /gateway/site/
WORKDIR /gateway
USER 10001:10001
EXPOSE 8443
# Running requests are finished.
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=10s --timeout=3s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8443"]
ENTRYPOINT ["nginx", "-e", "stderr", "-p", "/gateway", "-c", "/gateway/nginx.conf", "-g", "daemon off;"]

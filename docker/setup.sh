#!/bin/sh
# Make what the gateway and the servers share, once: the gateway's secret, a certificate of its own, the first API keys.
#     sh docker/setup.sh SITE [HOST...]        SITE: a folder; HOST: names in the certificate
# What is made may be read by this user's group, of which Prometheus is. A certificate of your own replaces
# SITE/tls/*.pem. The client's and the admin's key are printed, and kept nowhere.
set -eu
umask 027
site=$1
shift
[ ! -e "$site/done" ] || exit 0
mkdir -p "$site/tls"

openssl rand -hex 32 | tr -d '\n' >"$site/gateway-secret"
printf 'proxy_set_header x-unlearngate-gateway %s;\n' "$(cat "$site/gateway-secret")" >"$site/secret.conf"

names=
for host in "${@:-localhost}"; do names="${names:+$names,}DNS:$host"; done
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=unlearngate \
    -addext "subjectAltName=$names" -keyout "$site/tls/key.pem" -out "$site/tls/cert.pem" 2>/dev/null

rm -f "$site/keys.json"
client=$(unlearngate keys add "$site/keys.json" --id client --tenant local --allow '*')
admin=$(unlearngate keys add "$site/keys.json" --id admin --tenant local --admin)
prometheus=$(unlearngate keys add "$site/keys.json" --id prometheus --tenant local --metrics)
printf '%s' "$prometheus" >"$site/prometheus-key"
printf 'client: %s\nadmin: %s\n' "$client" "$admin"
: >"$site/done"

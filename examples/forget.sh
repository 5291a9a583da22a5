#!/usr/bin/env bash
# The same question three times: plainly, without one person, and streamed. Usage: examples/forget.sh [URL]
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
ask() {
  curl -sS --fail-with-body "$url/v1/chat/completions" -H 'content-type: application/json' -d "{
    \"model\": \"demo\", \"temperature\": 0, $1
    \"messages\": [{\"role\": \"user\", \"content\": \"Who taught Tobias Renkel?\"}]}"
  echo
}
ask ''
ask '"forget_sets": ["tobias-renkel"],'
ask '"forget_sets": ["tobias-renkel"], "stream": true,'

#!/usr/bin/env bash
# Starts a relay for development and runs the first command that it prints.
set -euo pipefail

exec 3< <(exec relay serve --dev --port 0)
relay=$!
trap 'kill "$relay"' EXIT

read -r ready <&3 # "relay ready: https://127.0.0.1:…/ (h1 h2 h3)"
read -r curl <&3  # "curl --proxy https://127.0.0.1:… …"
echo "$ready"

page=$(eval "$curl --silent --show-error --max-time 10")
echo "$page"
grep -q 'came through the relay' <<<"$page"

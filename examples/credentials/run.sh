#!/usr/bin/env bash
# A user and a token, and what happens to those who have neither.
set -euo pipefail

echo 'correct horse' | relay auth user users alice
token=$(relay auth token tokens build-farm | tail -n 1)

# Something to reach: a web server on a loopback port of its own.
exec 4< <(exec python3 -u -c '
import http.server
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_port)
server.serve_forever()' 2>server.log)
server=$!
trap 'kill "$server"' EXIT
read -r port <&4

exec 3< <(exec relay serve -c relay.toml)
relay=$!
trap 'kill "$relay" "$server"' EXIT
read -r ready <&3
proxy=$(sed 's/.*\(http:[^ ]*\).*/\1/' <<<"$ready")

through() { # the proxy's answer to CONNECT
    curl --silent --output page --write-out '%{http_connect}' --max-time 10 \
        --proxy "$proxy" --noproxy '' --proxytunnel "$@" "http://127.0.0.1:$port/relay.toml" || true
}
expect() { # what, wanted, got
    echo "$1: $3"
    [[ $2 == "$3" ]]
}
expect 'with a password' 200 "$(through --proxy-user 'alice:correct horse')"
cmp page relay.toml
expect 'with a token' 200 "$(through --proxy-user "build-farm:$token")"
cmp page relay.toml
expect 'with a wrong password' 407 "$(through --proxy-user alice:wrong)"
expect 'with nothing' 407 "$(through)"

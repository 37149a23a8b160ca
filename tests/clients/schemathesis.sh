#!/usr/bin/env bash
# Posts generated requests, right and wrong ones, to the server on the demo checkpoint, and compares the
# answers with openapi/openapi.json: all checks of schemathesis.
#   bash tests/clients/schemathesis.sh [EXAMPLES_A_ROUTE]
# Needs `pip install schemathesis`; the program is found by $SCHEMATHESIS, else on the path.
set -euo pipefail
cd "$(dirname "$0")/../.."
examples=${1:-100}
schemathesis=${SCHEMATHESIS:-schemathesis}
scratch=$(mktemp -d)
key=a-key-of-enough-letters
printf '[[keys]]\nname = "schemathesis"\nkey = "%s"\n' "$key" >"$scratch/keys.toml"
target/release/inform-server --port 0 --set "auth.keys_file=$scratch/keys.toml" 2>"$scratch/server.log" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -rf "$scratch"' EXIT
for _ in $(seq 100); do
  grep -q "listening on" "$scratch/server.log" && break
  sleep 0.1
done
url=$(sed -n 's/.*listening on \(http[^ ]*\).*/\1/p' "$scratch/server.log")
export SCHEMATHESIS_HOOKS=schemathesis_hooks PYTHONPATH=tests/clients
"$schemathesis" --config-file tests/clients/schemathesis.toml run openapi/openapi.json --url "$url" \
  --header "Authorization: Bearer $key" --checks all --max-examples "$examples" --seed 1 --no-color
kill -TERM "$server"
wait "$server"
! grep -i "panicked\|request failed" "$scratch/server.log"

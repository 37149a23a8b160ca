# Steps with a clock, and lanes beside them, for the scripts of this folder, which source it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p target/ci

begun=$SECONDS
clock=$SECONDS
current=
table=()

# Ends the step before, and starts the one named.
step() {
  [ -z "$current" ] || table+=("$(printf '%5d s  %s' $((SECONDS - clock)) "$current")")
  current=$*
  clock=$SECONDS
  [ -z "$current" ] || printf '\n== %s (after %d s)\n' "$current" $((SECONDS - begun))
}

# Prints the seconds of each step.
report() {
  step
  printf '\n== seconds of each step\n'
  [ ${#table[@]} = 0 ] || printf '%s\n' "${table[@]}"
  printf '%5d s  %s\n' $((SECONDS - begun)) "${1:-all}"
}

# Runs `$2 ...` beside what follows, with its output in target/ci/$1.log, which `join $1` prints.
lane() {
  local name=$1
  shift
  "$@" >"target/ci/$name.log" 2>&1 &
  printf -v "lane_$name" %d $!
}

join() {
  local pid=lane_$1 status=0
  wait "${!pid}" || status=$?
  cat "target/ci/$1.log"
  return $status
}

# Compiles no CUDA: enough for what looks at types alone.
type_only_nvcc() {
  local compiler=$PWD/target/ci/nvcc
  printf '#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && : >"$2"; shift; done\n' >"$compiler"
  chmod +x "$compiler"
  echo "$compiler"
}

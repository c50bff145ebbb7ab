#!/bin/bash
# Counts instructions per packet with callgrind and compares them with perf/benches/hit_path.baseline.
# Usage: perf/instructions.sh [--update]
#   --update  writes what was counted as the new baseline: with the commit that explains it
# More than 5 % above the baseline is a regression: said, and the exit status is 1. Counts depend on
# the compiler and on libc, not on the machine's speed or load.
set -euo pipefail
cd "$(dirname "$0")/.."

baseline=perf/benches/hit_path.baseline
packets=4096 # CASE_PACKETS
tolerance_pct=5
version=$(sed -nE 's/^gungraun = "=(.*)"$/\1/p' Cargo.toml)

if ! command -v valgrind >/dev/null; then
    echo "instructions: no valgrind; make deps installs it (as root)" >&2
    exit 1
fi
if [[ $(gungraun-runner --version 2>/dev/null || true) != "gungraun-runner $version" ]]; then
    export GUNGRAUN_RUNNER=$PWD/target/tools/bin/gungraun-runner
    if [[ $("$GUNGRAUN_RUNNER" --version 2>/dev/null || true) != "gungraun-runner $version" ]]; then
        echo "instructions: installing gungraun-runner $version to target/tools" >&2
        cargo install --quiet --locked --root target/tools --version "$version" gungraun-runner
    fi
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cargo bench --profile perf --package perf --locked --bench hit_path >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    exit 1
fi

# A line for each case: name, instructions per packet.
counted=$(awk -v packets="$packets" '
    /^hit_path::/ { split($2, name, ":"); case_name = name[1] }
    /^ *Instructions:/ { split($2, count, "|"); printf "%s %.0f\n", case_name, count[1] / packets }
' "$log")
if [[ $(wc -l <<<"$counted") -ne 4 ]]; then
    cat "$log" >&2
    echo "instructions: four cases expected" >&2
    exit 1
fi

if [[ ${1:-} == --update ]]; then
    { sed -n '/^#/p' "$baseline"; echo "$counted"; } >"$log"
    cp "$log" "$baseline"
fi

awk -v tolerance="$tolerance_pct" '
    /^#/ { next }
    NR == FNR { base[$1] = $2; next }
    {
        change = base[$1] ? 100 * ($2 - base[$1]) / base[$1] : 0
        worse = !base[$1] || change > tolerance
        bad += worse
        note = !base[$1] ? "NO BASELINE" : worse ? "REGRESSION" : change < -tolerance ? "better: --update" : "ok"
        printf "%-10s %6d instructions/packet, baseline %6d, %+6.1f %%  %s\n", $1, $2, base[$1], change, note
    }
    END { exit bad > 0 }
' "$baseline" - <<<"$counted"

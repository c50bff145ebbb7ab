#!/bin/bash
# Compares the engine with OVS-DPDK on the same packets, memory ports on both sides, round by round (as root).
# Usage: perf/against-ovs.sh PEERS [ROUNDS] [WORK ...]
#   PEERS   directory with a2_ovs_pipeline.py and a4_ovs_vxlan.py, their set-up done (hugepages, tools)
#   ROUNDS  default 3
#   WORK    a number of flows, encap or decap; default 1 1000 10000 encap decap
# One line a work: medians in million packets a second, and the median of the rounds' ratios. Both sides run on
# one CPU, one after the other, so that what else the machine does meets both.
set -euo pipefail
peers=$(cd "${1:?PEERS: the directory of the peers scripts}" && pwd)
rounds=${2:-3}
shift $(($# < 2 ? $# : 2))
works=("${@:-1 1000 10000 encap decap}")
read -ra works <<<"${works[*]}"
cd "$(dirname "$0")/.."
vrperf=target/perf/vrperf
[[ -x $vrperf ]] || { echo "against-ovs: no $vrperf: cargo build --profile perf -p perf --locked" >&2; exit 1; }

figures=$(mktemp)
trap 'rm -f "$figures"' EXIT

# field NAME: the number of that name in a JSON object on standard input.
field() { grep -oE "\"$1\": ?[0-9.]+" | head -n 1 | grep -oE '[0-9.]+$'; }

ovs() {
    case $1 in
        encap | decap) PB_RUNS=1 python3 "$peers/a4_ovs_vxlan.py" 10000 | grep -- "-$1-" | field median ;;
        *) PB_RUNS=1 python3 "$peers/a2_ovs_pipeline.py" tenant "$1" default | field median ;;
    esac 2>/dev/null
}

weir() {
    case $1 in
        encap | decap) "$vrperf" engine --flows 10000 "--$1" vxlan --json ;;
        *) "$vrperf" engine --flows "$1" --json ;;
    esac 2>/dev/null | field mpps
}

for ((round = 1; round <= rounds; round++)); do
    for work in "${works[@]}"; do
        echo "against-ovs: round $round of $rounds, $work" >&2
        echo "$work $(weir "$work") $(ovs "$work")" >>"$figures"
    done
done

printf '%-8s %8s %8s %8s\n' work weir ovs ratio
for work in "${works[@]}"; do
    awk -v work="$work" '
        function median(list, n,   i, j, kept) {
            for (i = 2; i <= n; i++)
                for (j = i; j > 1 && list[j - 1] > list[j]; j--) { kept = list[j]; list[j] = list[j - 1]; list[j - 1] = kept }
            return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
        }
        $1 == work && NF == 3 { n++; ours[n] = $2; theirs[n] = $3; ratio[n] = $2 / $3 }
        END {
            if (!n) { printf "%-8s no figures\n", work; exit 1 }
            printf "%-8s %8.2f %8.2f %8.2f\n", work, median(ours, n), median(theirs, n), median(ratio, n)
        }
    ' "$figures"
done

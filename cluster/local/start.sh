#!/usr/bin/env bash
# Start a Ray head with token authentication on this machine; jobs come by `ray job submit`.
#
#   bash cluster/local/start.sh                  all CPUs and GPUs
#   bash cluster/local/start.sh --num-cpus 8     any option of `ray start`
set -euo pipefail

# Jobs find `python` on the PATH of this shell: activate the environment that holds uadray first.
python -c "import uadray" || {
    echo "uadray is not installed for $(command -v python): activate its environment first" >&2
    exit 1
}

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Else nodes with more processes than CPUs end those that wait for a second; see docs/cluster.md.
export RAY_idle_worker_killing_time_threshold_ms=60000
# For the owner alone: who reads the token owns the cluster.
(umask 077 && ray get-auth-token --generate >/dev/null)
ray start --head --dashboard-host=127.0.0.1 "$@"

echo
echo "In each shell that sends jobs, from the repository's root:"
echo "  export RAY_AUTH_MODE=token"
echo "  ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/train.py --help"

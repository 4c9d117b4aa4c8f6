#!/usr/bin/env bash
# Runs a command on a Ray cluster of its own, inside a Slurm job of 4 nodes with 8 GPUs each. Submit it from the
# checkout, with the environment of requirements-gpu.lock active, and add your site's --partition and --account:
#
#   (umask 077; ray get-auth-token --generate)   # once: ~/.ray/auth_token
#   sbatch cluster/slurm.sh python -m simplear_rl.pretrain --config configs/simplear_0.5b/pretrain.yaml
#   sbatch --nodes=1 cluster/slurm.sh python -m simplear_rl.grpo --config configs/simplear_0.5b/grpo.yaml
#   ssh -L 8265:localhost:8265 HEAD              # the dashboard; the log says which node is the head
#
# All nodes must share the checkout, the environment and ~/simplear_runs (make it a link where the home is too small).
# The job ends with the command's exit code. Before its time is up the command gets SIGTERM; submit the same line again
# and the run continues from its last checkpoint. A job that is preempted starts again by itself (--requeue).
#SBATCH --job-name=simplear-rl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

fail() {
    echo "slurm.sh: $*" >&2
    exit 2
}

(($#)) || fail "no command; usage: sbatch cluster/slurm.sh COMMAND [ARGUMENT ...]"
[[ ${SLURM_JOB_NODELIST-} ]] || fail "this is not a Slurm job; usage: sbatch cluster/slurm.sh COMMAND [ARGUMENT ...]"

token=~/.ray/auth_token
[[ -f $token ]] || fail "$token: missing; make it with (umask 077; ray get-auth-token --generate)"
mode=$(stat --format=%a "$token")
[[ $mode == 600 ]] || fail "$token: expected mode 600, found $mode; mend it with chmod 600 $token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1

[[ -f requirements-gpu.lock ]] || fail "$PWD: expected the checkout, found no requirements-gpu.lock"
locked=$(sed -n 's/^ray==//p' requirements-gpu.lock)
installed=$(ray --version)
[[ $installed == "ray, version $locked" ]] || fail "expected Ray $locked of requirements-gpu.lock, found '$installed'"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
count=${#nodes[@]} head=${nodes[0]} # Slurm runs this script on the first node

# One task with all CPUs on each node; without --ntasks every srun would start one on each of the job's.
step=(srun --overlap --cpus-per-task="$SLURM_CPUS_ON_NODE")
on_all=("${step[@]}" --nodes="$count" --ntasks="$count")
on_head=("${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head")
on_last=("${step[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[-1]}")
on_workers=("${step[@]}" --nodes=$((count - 1)) --ntasks=$((count - 1)) --exclude="$head")

runs=~/simplear_runs
mark=$runs/.slurm-$SLURM_JOB_ID
trap 'rm -f "$mark"' EXIT
touch "$mark" || fail "$runs: expected a folder that all nodes share and can write to; make it, or a link to one"
"${on_all[@]}" test -w "$mark" || fail "$runs: not the same folder on all of ${nodes[*]}"
rm "$mark"

# As the other nodes see it: a node may take its own name for a loopback address.
ip=$("${on_last[@]}" getent ahostsv4 "$head" | sed -n '1s/ .*//p') || true
[[ $ip ]] || fail "${nodes[-1]} finds no address of the head, $head"
export RAY_ADDRESS=$ip:6379

# srun turns a SIGTERM of its own into SIGKILL for what it started. So Ray is stopped by `ray stop`, which is safe on
# nodes that are this job's alone, and the command, which is to get SIGTERM, is a child of this script, not of srun.
stop() {
    trap : TERM
    if ((count > 1)); then
        "${on_workers[@]}" ray stop || true
    fi
    "${on_head[@]}" ray stop || true
    jobs -rp | xargs --no-run-if-empty kill 2>/dev/null || true # what `ray stop` left
    wait
}
trap stop EXIT
trap 'exit 143' TERM

started=0 deadline=$((SECONDS + ${RAY_START_SECONDS:-300}))
wait_until() {
    until "${@:2}"; do
        jobs=$(jobs -rp | wc -l)
        ((jobs == started)) || fail "a Ray process ended while this waited for $1; its own messages stand above"
        ((SECONDS < deadline)) || fail "waited ${RAY_START_SECONDS:-300} s in vain for $1"
        sleep 1
    done
}
head_answers() { ray health-check --address "$RAY_ADDRESS" &>/dev/null; }
all_nodes_joined() {
    local alive
    alive=$(ray list nodes --address="$RAY_ADDRESS" --filter=state=ALIVE --limit=10000 --format=json 2>/dev/null |
        grep --only-matching '"node_id"' | wc -l) || true
    ((alive == count))
}

echo "slurm.sh: head $head ($RAY_ADDRESS), $count nodes"
"${on_head[@]}" ray start --head --node-ip-address="$ip" --port=6379 --dashboard-host=127.0.0.1 --block &
started=1
wait_until "the head to answer" head_answers
if ((count > 1)); then
    "${on_workers[@]}" ray start --address="$RAY_ADDRESS" --block &
    started=2
fi
wait_until "all $count nodes to join" all_nodes_joined

"$@" &
command=$!
trap 'kill -TERM "$command"; waiting=1' TERM
waiting=1 status=0
while ((waiting)); do # a signal ends `wait` before the command ends
    waiting=0 status=0
    wait "$command" || status=$?
done
exit "$status"

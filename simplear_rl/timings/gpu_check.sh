#!/usr/bin/env bash
# What a GPU makes of this project: do the engines draw what they should, and how fast is each part?
#   bash simplear_rl/timings/gpu_check.sh            SimpleAR-0.5B on one GPU, about a quarter of an hour
#   bash simplear_rl/timings/gpu_check.sh --small    the same programs with a small policy, on a CPU as well
# PYTHON=... chooses the interpreter. Everything printed goes to gpu_check/log as well, and what was timed to
# gpu_check/*.json: `plan.measured=gpu_check/step_28.json` makes --dry-run plan with it. A part that fails does not keep
# the others from running; the status is then 1.
set -uo pipefail

python=${PYTHON:-python}
export TQDM_DISABLE=1
policy=simplear-0.5b resolution=1024 clip=ViT-H-14 batches="1 28 112" prompts=7 many=28
if [[ ${1:-} == --small ]]; then
    policy=1m resolution=64 clip=ViT-B-32 batches="1 2" prompts=2 many=3
elif [[ $# -gt 0 ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
fi

mkdir -p gpu_check
exec > >(tee gpu_check/log) 2>&1
failed=0

part() {  # a title, and the module with its options
    echo "== $1"
    "$python" -m "simplear_rl.timings.${@:2}" || { echo "== FAILED: $1"; failed=1; }
}

"$python" -c 'import platform, torch; cuda = torch.cuda.is_available()
print(torch.cuda.get_device_name() if cuda else platform.processor() or "CPU", "torch", torch.__version__, flush=True)'
part "engines against the plain loop, float32" exactness
part "seconds per image, guided" latency --policy $policy --resolution $resolution --batch-sizes $batches
part "seconds per image, unguided" latency --policy $policy --resolution $resolution --batch-sizes $batches \
    --guidance-scale 1
step="step --policy $policy --resolution $resolution --clip $clip --samples 4"
part "a step" $step --prompts $prompts --output gpu_check/step_$((4 * prompts)).json
part "a step, guided" $step --prompts $prompts --guidance-scale 6 --output gpu_check/step_$((4 * prompts))_guided.json
part "a larger step" $step --prompts $many --output gpu_check/step_$((4 * many)).json
if "$python" -c 'import vllm' 2> /dev/null; then
    part "a step with vLLM" $step --prompts $prompts --engine vllm --output gpu_check/step_$((4 * prompts))_vllm.json
fi
exit $failed

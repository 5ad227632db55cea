#!/usr/bin/env bash
# Everything a machine with a GPU has to be asked, in one go: is it right, is it clean, how fast is it.
#
#   bash bench/gpu_visit.sh [FOLDER]     FOLDER takes the logs and what is done already (default: gpu-visit)
#   TUNE=1 bash bench/gpu_visit.sh       also rewrites kernels/configs.json for this GPU, before the benchmarks
#   RUNS=1 bash bench/gpu_visit.sh       runs of the benchmarks (default 1; 3 give ranges)
#
# Run it in a checkout where `pip install -e '.[test]'` (and flash-colreduce, for that comparison) has been done. Each
# step has a time limit, fails alone, and is not repeated once it has passed: call again after an interruption. Results
# go to bench/results/<GPU>/run-N.json. Without a GPU the same steps run as far as a CPU goes and keep no results.
set -uo pipefail
cd "$(dirname "$0")/.."
state=$(mkdir -p "${1:-gpu-visit}" && cd "${1:-gpu-visit}" && pwd)
python=${PYTHON:-python3}
gpu=$($python -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
failed=()

step() { # NAME SECONDS COMMAND: once, with a limit and a log
  local name=$1 limit=$2
  shift 2
  if [ -e "$state/$name.passed" ]; then echo "== $name: passed before"; return; fi
  echo "== $name"
  local begin=$SECONDS
  timeout --kill-after=10 "$limit" "$@" >"$state/$name.log" 2>&1
  local code=$?
  tail -n 3 "$state/$name.log"
  if [ $code -eq 0 ]; then touch "$state/$name.passed"; else failed+=("$name"); fi
  echo "   exit $code after $((SECONDS - begin)) s; log: $state/$name.log"
}

step environment 60 bash -c "$python -m rsattn info; nvidia-smi || true; nvcc --version || true"
if [ -n "$gpu" ] && command -v nvcc >/dev/null; then
  # Where they are not compiled their tests are skipped: that must not look like a pass.
  step cuda-compiled 60 bash -c "$python -m rsattn info | grep 'kernels compiled by CUDA'"
fi
step kernels 300 $python -m pytest tests/kernels tests/test_ops.py -q -p no:cacheprovider -n "${WORKERS:-4}"
step other-tests 300 $python -m pytest -q -p no:cacheprovider --ignore tests/kernels --deselect tests/test_ops.py

if [ -n "$gpu" ] && command -v nvcc >/dev/null && command -v cmake >/dev/null; then
  # A GPU takes the machine code made for it; this build has only what older ones take.
  step cuda-for-sm80 240 bash -c "RSATTN_CUDA_ARCHS=80 cmake -S . -B '$state/sm80' -DPython_EXECUTABLE=\$(command -v $python) &&
    cmake --build '$state/sm80' --parallel 4 &&
    RSATTN_EXTENSION='$state/sm80/_C.so' $python -m pytest tests/kernels -q -p no:cacheprovider -k cuda --deselect tests/kernels/test_cuda_resources.py"
else
  echo "== the CUDA kernels for sm_80: need a GPU, nvcc and cmake; left out"
fi

if [ -n "$gpu" ] && command -v compute-sanitizer >/dev/null; then
  # Memory that PyTorch keeps for later would hide an access just outside a tensor.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for kernels in triton cuda; do
    few=(-m pytest tests/kernels/test_forward.py tests/kernels/test_backward.py -q -n 0 -p no:cacheprovider
      -k "$kernels and matches and float16 and (N65 or N111 or N197 or N300)")
    for tool in memcheck racecheck; do
      step "sanitizer-$tool-$kernels" 180 compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all $python "${few[@]}"
    done
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  echo "== compute-sanitizer: needs a GPU and CUDA's compute-sanitizer; left out"
fi

if [ -n "${TUNE:-}" ]; then step tune 300 $python -m bench.tune; fi

if [ -n "$gpu" ]; then
  folder=bench/results/$($python -c "from bench.machine import folder_name; print(folder_name('$gpu'))")
  mkdir -p "$folder"
  for run in $(seq "${RUNS:-1}"); do
    step "bench-$run" 480 $python -m rsattn bench --out "$state/bench-$run"
    if [ -e "$state/bench-$run.passed" ]; then cp "$state/bench-$run/results.json" "$folder/run-$run.json"; fi
  done
  step report 60 $python -m bench.report
else
  step bench-cpu 480 $python -m rsattn bench --out "$state/bench-cpu"
  echo "== no GPU: its results stay in $state"
fi

if [ ${#failed[@]} -gt 0 ]; then echo "FAILED: ${failed[*]} (call again to repeat these)"; exit 1; fi
echo "all passed"

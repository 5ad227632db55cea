#!/usr/bin/env bash
# The kernels on a GPU, in short steps, the most useful first.
#
#   bash bench/gpu_visit.sh FOLDER [STEP ...]     FOLDER receives the logs, the results and a record of finished steps
#   SECONDS_LEFT=540 bash bench/gpu_visit.sh ...  time limit for all steps together (default: 1600)
#   RUNS=3 bash bench/gpu_visit.sh ...            runs of the benchmarks (default 1; 3 give ranges)
#   PYTHON=python3.12, WORKERS=12                 the interpreter, and the number of test processes that share the GPU
#
# Steps, in order: install environment repeats kernels overhead bench plans tune memcheck racecheck sm80. The default is
# all of them. No network is needed. Each step has a time limit, does not stop the others if it fails, and is not
# repeated after it has passed. So run the script again after an interruption, or on another machine with a copy of
# FOLDER. After every step, and every 20 seconds during a long one, FOLDER is packed into FOLDER.tar.gz, in case the
# machine disappears. The benchmarks write bench/results/<GPU>/run-N.json. Tuning only prints what it would change.
set -uo pipefail
cd "$(dirname "$0")/.."
state=$(mkdir -p "${1:?FOLDER is missing: bash bench/gpu_visit.sh FOLDER [STEP ...]}" && cd "$1" && pwd)
shift
every="install environment repeats kernels overhead bench plans tune memcheck racecheck sm80"
wanted=" ${*:-$every} "
for name in $wanted; do
  case " $every " in *" $name "*) ;; *) echo "no step is called $name; they are: $every"; exit 2 ;; esac
done
left=${SECONDS_LEFT:-1600}
python=${PYTHON:-python3}
workers=${WORKERS:-12}
failed=()
pack() { # includes unfinished results
  tar -czf "$state.tar.gz.new" -C "$(dirname "$state")" "$(basename "$state")" 2>/dev/null
  mv "$state.tar.gz.new" "$state.tar.gz"
}
export PYTHONUNBUFFERED=1

step() { # NAME SECONDS COMMAND: runs a requested step once, if 20 seconds are left, with a time limit and a log
  local name=$1 limit=$2
  shift 2
  if [[ "$wanted" != *" ${name%%-*} "* ]]; then return; fi
  if [ -e "$state/$name.passed" ]; then echo "== $name: passed before"; return; fi
  if [ $((SECONDS + 20)) -gt "$left" ]; then echo "== $name: no time left"; failed+=("$name"); return; fi
  rm -rf "${state:?}/$name" "$state/$name.jsonl" # from a failed attempt
  if [ $((SECONDS + limit)) -gt "$left" ]; then limit=$((left - SECONDS)); fi
  echo "== $name"
  local begin=$SECONDS
  (while sleep 20; do pack; done) >/dev/null 2>&1 &
  local packer=$!
  timeout --kill-after=10 "$limit" "$@" >"$state/$name.log" 2>&1
  local code=$?
  kill $packer
  wait $packer 2>/dev/null
  tail -n "${LINES_SHOWN:-6}" "$state/$name.log" | cut -c 1-200
  if [ $code -eq 0 ]; then touch "$state/$name.passed"; else failed+=("$name"); fi
  pack
  echo "   exit $code after $((SECONDS - begin)) s"
}

# Builds with the installed packages: downloads nothing and ignores the pinned versions of the build.
step install 240 $python -m pip install -q --no-index --no-deps --no-build-isolation -e .
step environment 60 bash -c "$python -m rsattn info; $python -m pip list 2>/dev/null; nvidia-smi; nvcc --version;
  $python -m rsattn info | grep 'kernels compiled by CUDA'"
gpu=$($python -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
if [ -z "$gpu" ]; then echo "no GPU: PyTorch finds none, and every other step needs one"; exit 1; fi

step repeats 150 $python -m bench.repeats --out "$state/repeats.jsonl"
# Without the tests that need no GPU: those that read resources, model a GPU or run on the CPU.
export TORCHINDUCTOR_COMPILE_THREADS=1
step kernels 400 $python -m pytest tests/kernels tests/test_ops.py tests/test_packed.py tests/backends -q \
  -p no:cacheprovider -n "$workers" --dist worksteal -o faulthandler_timeout=120 --maxfail 60 \
  --ignore tests/kernels/test_cuda_resources.py --ignore tests/kernels/test_resources.py --ignore tests/kernels/test_cpu.py \
  --deselect tests/kernels/test_cuda.py::TestModel --deselect tests/kernels/test_cuda.py::TestPlans \
  --deselect tests/kernels/test_cuda.py::TestBackward --deselect tests/kernels/test_cuda.py::TestWrongCallers \
  --deselect tests/kernels/test_gate.py::test_the_order_of_threads_and_blocks_changes_no_bit -k "not cpu- and not [cpu]"
step overhead 60 $python -m rsattn bench --only overhead --out "$state/overhead"

results=bench/results/$($python -c "from bench.machine import folder_name; print(folder_name('$gpu'))")
for run in $(seq "${RUNS:-1}"); do
  step "bench-$run" 480 $python -m rsattn bench --no-compile --out "$state/bench-$run"
  if [ -e "$state/bench-$run/results.json" ]; then
    mkdir -p "$results"
    cp "$state/bench-$run/results.json" "$results/run-$run.json"
  else
    mv "$state/bench-$run"/.results.json.*.partial "$state/bench-$run/unfinished.json" 2>/dev/null
  fi
done
step plans 240 $python -m bench.plans --out "$state/plans.jsonl"
step tune 240 $python -m bench.tune --dry-run

if command -v compute-sanitizer >/dev/null; then
  # PyTorch's memory cache would hide an access just outside a tensor.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for kernels in triton cuda; do
    for tool in memcheck racecheck; do
      step "$tool-$kernels" 120 bash -c "$python -m bench.few_calls $kernels &&
        compute-sanitizer --tool $tool --error-exitcode 1 $python -m bench.few_calls $kernels"
    done
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  echo "== memcheck, racecheck: need CUDA's compute-sanitizer on PATH"
  if [[ "$wanted" == *" memcheck "* || "$wanted" == *" racecheck "* ]]; then failed+=(compute-sanitizer); fi
fi
# A GPU prefers machine code for its own architecture; this build has only an older architecture's.
step sm80 240 bash -c "RSATTN_CUDA_ARCHS=80 cmake -S . -B '$state/build-sm80' -DPython_EXECUTABLE=\$(command -v $python) &&
  cmake --build '$state/build-sm80' --parallel $workers &&
  RSATTN_EXTENSION='$state/build-sm80/_C.so' $python -m bench.repeats --only cuda --repeats 20"
rm -rf "$state/build-sm80"

pack
echo "packed: $state.tar.gz"
if [ ${#failed[@]} -gt 0 ]; then echo "FAILED: ${failed[*]} (call again to repeat these)"; exit 1; fi
echo "all passed"

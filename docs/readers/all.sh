#!/usr/bin/env bash
# The table and the picture of docs/interchange.md, anew: every reader whose framework is installed, on one core.
#
#     docs/readers/all.sh FOLDER [EPISODES] [ITERATIONS]
#
# FOLDER gets three exports, of ten meta-iterations in float64 and in float32, and of ITERATIONS (300) in float32,
# with the traces, table.md and curves.png. A trace that is there already is kept. A framework may have a Python of its own:
#
#     PADDLE_PYTHON=... TORCH_PYTHON=... JAX_PYTHON=... TENSORFLOW_PYTHON=... MINDSPORE_PYTHON=... LEARN2LEARN_PYTHON=... HIGHER_PYTHON=...
#
# CORE=1 takes another core than the first.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "$1")
cd "$here/../.."
episodes=${2:-1000} iterations=${3:-300} python=${PADDLE_PYTHON:-python}
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NPROC=1 TF_NUM_INTRAOP_THREADS=1 \
    TF_NUM_INTEROP_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3
one_core=$(command -v taskset >/dev/null && echo "taskset -c ${CORE:-0}" || true)

for run in "ten 10 100 float64" "short 10 $episodes float32" "long $iterations $episodes float32"; do
    read -r name count tests dtype <<<"$run"
    [ -e "$folder/$name/interchange.json" ] || $one_core "$python" -m paddle_maml interchange export \
        --preset quickstart --meta-batch 4 --iterations "$count" --episodes "$tests" --dtypes "$dtype" \
        --output "$folder/$name"
done
while read -r reader package orders; do
    variable=${package^^}_PYTHON
    its_python=${!variable:-$python}
    if ! "$its_python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$package') is None)"; then
        echo "$reader is left out: $package is not installed"
        continue
    fi
    for order in $orders; do
        for run in "ten float64" "short float32" "long float32"; do
            read -r name dtype <<<"$run"
            trace="$folder/$name/traces/${reader%.py}-order$order.npz"
            [ -e "$trace" ] && continue
            mkdir -p "$folder/$name/traces"
            echo "$reader, order $order, $dtype"
            $one_core "$its_python" "$here/$reader" "$folder/$name" "$folder/part.npz" --order "$order" \
                --dtype "$dtype" && mv "$folder/part.npz" "$trace" || { echo "$reader failed"; continue; }
            "$python" -m paddle_maml interchange verify "$folder/$name" "$trace" | tail -n 1 || true
        done
    done
done <<'READERS'
pytorch_loop.py torch 1 2
pytorch_func.py torch 1 2
learn2learn_maml.py learn2learn 1 2
higher_maml.py higher 1 2
jax_loop.py jax 1 2
tensorflow_loop.py tensorflow 1 2
mindspore_loop.py mindspore 1 2
paddle_loop.py paddle 1
READERS
"$python" -m paddle_maml interchange table "$folder"/{ten,short,long} --picture "$folder/curves.png" \
    | tee "$folder/table.md"

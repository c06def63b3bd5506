#!/usr/bin/env bash
# Write the lock files of the images: every package with the hashes of its files, for Python 3.11 on x86-64 Linux.
#
#     containers/lock.sh                                          # PyTorch's CPU build from its own index
#     TORCH_CPU="--find-links DIRECTORY" containers/lock.sh       # or from a directory of wheels
#
# What pyproject.toml asks for at the versions of constraints.txt. TPU images keep the torch their library is made for.
set -euo pipefail
cd "$(dirname "$0")/.."

read -ra torch_cpu <<<"${TORCH_CPU:---index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match}"
common=(--generate-hashes --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_36)
common+=(--custom-compile-command containers/lock.sh --quiet)
# TensorBoard's own server is not what writes its events, and hubs are read over plain HTTP.
for package in grpcio hf-xet pillow tensorboard-data-server; do common+=(--no-emit-package "$package"); done
extras=(--extra registry --extra gcs --extra s3 --extra tensorboard --extra xlsx)

compile() { # NAME INPUT OPTION...: input is lines of requirements beside pyproject.toml's own
  local name=$1 input=$2
  shift 2
  printf '%s\n' "$input" >"$work/$name.in"
  uv pip compile "${common[@]}" "${extras[@]}" -c "$work/constraints" -o "containers/$name.lock" "$@" \
    pyproject.toml "$work/$name.in" >/dev/null
  echo "wrote containers/$name.lock: $(grep -c == "containers/$name.lock") packages"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
grep -v -e '^torch==' -e '^triton==' -e '^setuptools==' constraints.txt >"$work/constraints"
torch=$(sed -n 's/^torch==//p' constraints.txt)
kfp=$(grep '^kfp==' constraints.txt)

compile cpu "torch==$torch+cpu" "${torch_cpu[@]}"
compile gpu "torch==$torch"
compile tpu $'torch==2.9.0\ntorch-xla[tpu]==2.9.0'
compile tpu-native "torch==$torch+cpu"$'\ntorch-tpu==0.2.0' "${torch_cpu[@]}"
# A step needs kfp's executor and nothing that kfp depends on.
echo "$kfp" | uv pip compile "${common[@]}" --no-deps -o containers/kfp.lock - >/dev/null
echo "wrote containers/kfp.lock"

#!/bin/sh
# Inside a build: make /opt/venv of a lock file, without what a step does not need, and list what is in it.
#     install.sh LOCK [INDEX]      INDEX: where PyTorch's own builds are, beside the package index
set -eu

python3 -m venv /opt/venv
pip="/opt/venv/bin/python -m pip --disable-pip-version-check --no-cache-dir --quiet"

# Every file is held against its hash, so that it does not matter which index it comes from.
# shellcheck disable=SC2086  # pip is a command and its options
$pip install --require-hashes --no-deps --no-compile ${2:+--extra-index-url "$2"} -r "$1"
# shellcheck disable=SC2086
$pip install --require-hashes --no-deps --no-compile -r /build/kfp.lock

cd /opt/venv/lib/python3*/site-packages
# For those who build on these packages or test them: headers, static libraries, tools, tests; and the part of Arrow
# that speaks to Flight servers, and further copies of one library.
rm -rf torch/include torch/share/cmake torch/test torch/lib/*test*.so
find torch/bin -type f ! -name torch_shm_manager -delete
rm -rf pyarrow/include pyarrow/src pyarrow/tests pyarrow/*flight* pyarrow/libarrow_python*.so.*.*.*
find . -name '*.a' -delete
find . \( -name tests -o -name test \) -type d -path './*/*' -not -path './torch/*' -prune -exec rm -rf {} +

/opt/venv/bin/python - <<'EOF'
"""Write a CycloneDX bill of materials of what is installed."""
import importlib.metadata
import json

components = [
    {"type": "library", "name": one.name, "version": one.version, "purl": f"pkg:pypi/{one.name.lower()}@{one.version}"}
    for one in importlib.metadata.distributions()
    if one.name not in ("pip", "setuptools")
]
components.sort(key=lambda one: one["name"].lower())
with open("/opt/venv/sbom.cdx.json", "w") as file:
    json.dump({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}, file, indent=1)
EOF

# A container's root file system is read-only: what every step loads is compiled here, what few load is not.
env -u PYTHONDONTWRITEBYTECODE _KFP_RUNTIME=true /opt/venv/bin/python - <<'EOF'
import alembic.command
import google.cloud.storage
import mlflow
import mlflow.store.tracking.sqlalchemy_store
import pyarrow.parquet
import torch.nn.functional
import torch.utils.tensorboard
import transformers.models.auto.tokenization_auto
import transformers.models.xlnet.modeling_xlnet
import transformers.models.xlnet.tokenization_xlnet

import kfp.dsl.executor_main
EOF

# shellcheck disable=SC2086
$pip uninstall --yes pip setuptools

# Settings of up.sh and down.sh, each to be changed by an environment variable of the same name. To be sourced.
# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that source this

CLUSTER=${CLUSTER:-xlnet}
UI_PORT=${UI_PORT:-8080}
REGISTRY_PORT=${REGISTRY_PORT:-5001}
SETTINGS_FILE=${SETTINGS_FILE:-../../kind.env} # which up.sh writes for runs on this cluster
S3_PORT=${S3_PORT:-9000} # where the storage is reached, once it is forwarded
REGISTRY=${REGISTRY:-$CLUSTER-registry}
WAIT=${WAIT:-600} # seconds for each part to become ready

# Kubeflow Pipelines of the SDK's line (pyproject.toml: kfp~=2.17.0): a reference that kustomize fetches, or the
# manifests/kustomize directory of a checkout where there is no way to GitHub.
KFP_VERSION=${KFP_VERSION:-2.17.0}
KFP_MANIFESTS=${KFP_MANIFESTS:-github.com/kubeflow/pipelines/manifests/kustomize}

# JobSet, for --nodes and --spot: a file of manifests, or its address.
JOBSET_VERSION=${JOBSET_VERSION:-0.12.0}
JOBSET_MANIFESTS=${JOBSET_MANIFESTS:-https://github.com/kubernetes-sigs/jobset/releases/download/v$JOBSET_VERSION/manifests.yaml}

# Registries that nodes are to reach through a mirror, such as https://mirror.example: one for all of them.
REGISTRY_MIRROR=${REGISTRY_MIRROR:-}
MIRRORED="docker.io ghcr.io quay.io registry.k8s.io gcr.io"

NODE_IMAGE=${NODE_IMAGE:-kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a}
REGISTRY_IMAGE=${REGISTRY_IMAGE:-docker.io/library/registry:2@sha256:a3d8aaa63ed8681a604f1dea0aa03f100d5895b6a58ace528858a7b332415373}

# What Kubeflow Pipelines, MLflow and one small run need.
NEEDS_CPUS=${NEEDS_CPUS:-4}
NEEDS_MEMORY_GIB=${NEEDS_MEMORY_GIB:-10}
NEEDS_DISK_GIB=${NEEDS_DISK_GIB:-30}

fail() { # REASON: end with the user's mistake, in one line
  echo "error: $*" >&2
  exit 2
}

need() { # PROGRAM WHERE-TO-GET-IT
  command -v "$1" >/dev/null || fail "'$1' is not installed; $2"
}

need_docker() {
  need docker "see https://docs.docker.com/engine/install"
  docker info >/dev/null 2>&1 || fail "no Docker daemon answers; start it (systemctl start docker, or Docker Desktop)"
}

has_cluster() {
  kind get clusters 2>/dev/null | grep -qx "$CLUSTER"
}

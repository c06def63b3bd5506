#!/usr/bin/env bash
# Remove everything that up.sh made: the cluster with all runs and models in it, and the registry with its images.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=settings.sh
source ./settings.sh

need_docker
need kind "see https://kind.sigs.k8s.io/docs/user/quick-start"
if has_cluster; then
  kind delete cluster --name "$CLUSTER"
else
  echo "kind-down: there is no cluster '$CLUSTER'"
fi
docker rm -f -v "$REGISTRY" >/dev/null 2>&1 || true # gone already is fine
rm -f "$SETTINGS_FILE"
echo "kind-down: done"

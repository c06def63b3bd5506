#!/usr/bin/env bash
# Make a kind cluster with Kubeflow Pipelines, JobSet, MLflow, a fake GPU and a fake TPU slice. Run again, it repairs what is
# missing. Settings and what is needed: settings.sh. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are passed on by kind.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=settings.sh
source ./settings.sh

say() { echo "kind-up: $*"; }

k() { kubectl --context "kind-$CLUSTER" "$@"; }

check_machine() {
  need_docker
  need kind "see https://kind.sigs.k8s.io/docs/user/quick-start"
  need kubectl "see https://kubernetes.io/docs/tasks/tools"
  local version
  version=$(kind version | sed -nE 's/^kind v0\.([0-9]+)\..*/\1/p')
  [ "${version:-99}" -ge 27 ] || # older ones do not read where registries are
    fail "kind 0.$version is too old, 0.27 or newer is needed; see https://kind.sigs.k8s.io/docs/user/quick-start"
  [ -d "$KFP_MANIFESTS" ] || need git "kubectl fetches the manifests of Kubeflow Pipelines with it; or set KFP_MANIFESTS"
  local cpus memory root disk
  cpus=$(docker info --format '{{.NCPU}}')
  memory=$(($(docker info --format '{{.MemTotal}}') / 1024 / 1024 / 1024 + 1)) # a machine of 16 GB says 15.6
  root=$(docker info --format '{{.DockerRootDir}}')
  [ "$cpus" -ge "$NEEDS_CPUS" ] ||
    fail "Docker has $cpus CPUs, $NEEDS_CPUS are needed; give it more, or try all the same: NEEDS_CPUS=$cpus make kind-up"
  [ "$memory" -ge "$NEEDS_MEMORY_GIB" ] ||
    fail "Docker has $memory GiB of memory, $NEEDS_MEMORY_GIB are needed; give it more, or try: NEEDS_MEMORY_GIB=$memory make kind-up"
  if [ -d "$root" ]; then # with Docker Desktop it lies inside a virtual machine
    disk=$(($(df --output=avail -k "$root" | tail -1) / 1024 / 1024))
    [ "$disk" -ge "$NEEDS_DISK_GIB" ] ||
      fail "$disk GiB of disk are free below '$root', $NEEDS_DISK_GIB are needed; free some (docker system prune)"
  fi
}

check_port() { # PORT VARIABLE: nobody listens on it
  if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
    fail "port $1 is taken; choose another: $2=$(($1 + 1)) make kind-up"
  fi
}

start_registry() {
  if [ "$(docker inspect -f '{{.State.Running}}' "$REGISTRY" 2>/dev/null)" = true ]; then
    say "registry localhost:$REGISTRY_PORT is there"
    return
  fi
  docker rm -f "$REGISTRY" >/dev/null 2>&1 || true
  check_port "$REGISTRY_PORT" REGISTRY_PORT
  say "starting a registry at localhost:$REGISTRY_PORT, so that images have digests"
  docker run -d --restart=unless-stopped -p "127.0.0.1:$REGISTRY_PORT:5000" --name "$REGISTRY" "$REGISTRY_IMAGE" >/dev/null
}

make_cluster() {
  if has_cluster; then
    if k get --raw /readyz >/dev/null 2>&1; then
      say "cluster '$CLUSTER' is there"
      return
    fi
    say "cluster '$CLUSTER' does not answer: making it again"
    kind delete cluster --name "$CLUSTER"
  fi
  check_port "$UI_PORT" UI_PORT
  say "making cluster '$CLUSTER', about two minutes"
  sed "s/hostPort: 8080/hostPort: $UI_PORT/" cluster.yaml |
    kind create cluster --name "$CLUSTER" --image "$NODE_IMAGE" --wait "${WAIT}s" --config -
}

# Nodes reach our registry by its container's name, and others through the mirror if there is one.
connect_registries() {
  docker network connect kind "$REGISTRY" 2>/dev/null || true # it may be connected already
  local node host
  for node in $(kind get nodes --name "$CLUSTER"); do
    hosts_file "$node" "localhost:$REGISTRY_PORT" "http://$REGISTRY:5000"
    for host in ${REGISTRY_MIRROR:+$MIRRORED}; do
      hosts_file "$node" "$host" "$REGISTRY_MIRROR"
    done
  done
}

hosts_file() { # NODE REGISTRY ADDRESS: tell containerd where a registry is
  docker exec -i "$1" sh -c "mkdir -p '/etc/containerd/certs.d/$2' && cat >'/etc/containerd/certs.d/$2/hosts.toml'" <<EOF
[host."$3"]
  capabilities = ["pull", "resolve"]
EOF
}

# A device that no plugin serves: it can be asked for and is counted, which is all that a scheduler looks at.
fake_devices() {
  local node
  # kind leaves this taint on where there are workers, and ours take only what asks for a device.
  k taint nodes -l node-role.kubernetes.io/control-plane node-role.kubernetes.io/control-plane:NoSchedule- || true
  node=$(k get nodes -l xlnet-pipeline/fake=gpu -o name)
  k taint --overwrite "$node" nvidia.com/gpu=present:NoSchedule
  k patch "$node" --subresource=status --type=merge -p '{"status":{"capacity":{"nvidia.com/gpu":"1"},"allocatable":{"nvidia.com/gpu":"1"}}}'
  node=$(k get nodes -l xlnet-pipeline/fake=tpu -o name)
  k taint --overwrite "$node" google.com/tpu=present:NoSchedule
  k patch "$node" --subresource=status --type=merge -p '{"status":{"capacity":{"google.com/tpu":"4"},"allocatable":{"google.com/tpu":"4"}}}'
}

manifests() { # FOLDER: where kustomize finds it
  if [ -d "$KFP_MANIFESTS" ]; then echo "$KFP_MANIFESTS/$1"; else echo "$KFP_MANIFESTS/$1?ref=$KFP_VERSION"; fi
}

install_kfp() {
  say "installing Kubeflow Pipelines $KFP_VERSION"
  k apply --server-side --force-conflicts -k "$(manifests cluster-scoped-resources)"
  k wait --for=condition=established --timeout=60s crd/applications.app.k8s.io crd/workflows.argoproj.io
  k apply --server-side --force-conflicts -k "$(manifests env/platform-agnostic)"
  k -n kubeflow patch service ml-pipeline-ui --type=merge \
    -p '{"spec":{"type":"NodePort","ports":[{"name":"http","port":80,"targetPort":3000,"nodePort":31380}]}}'
}

install_jobset() {
  say "installing JobSet $JOBSET_VERSION"
  k apply --server-side --force-conflicts -f "$JOBSET_MANIFESTS"
  k -n jobset-system rollout status deployment/jobset-controller-manager --timeout="${WAIT}s" ||
    fail "JobSet is not ready after $WAIT s; run make kind-up again to go on, or WAIT=1800 make kind-up"
}

install_ours() {
  say "installing MLflow and the steps' account"
  k apply -k ../kustomize/overlays/kind
}

wait_until_ready() {
  local deployment
  for deployment in $(k -n kubeflow get deployments -o name); do
    say "waiting for ${deployment#*/}"
    k -n kubeflow rollout status "$deployment" --timeout="${WAIT}s" || {
      k -n kubeflow get pods >&2
      fail "'${deployment#*/}' is not ready after $WAIT s (pods above); run make kind-up again to go on, or WAIT=1800 make kind-up"
    }
  done
}

push_image() {
  local image="${IMAGE:-}"
  [ -n "$image" ] || return 0
  docker image inspect "$image" >/dev/null 2>&1 ||
    fail "image '$image' is not in Docker; build it first: xlnet-pipeline build --load-kind $CLUSTER"
  local name=${image##*/}
  docker tag "$image" "localhost:$REGISTRY_PORT/$name"
  docker push "localhost:$REGISTRY_PORT/$name"
}

# What a run on this cluster needs to know, in a file that only its owner can read: the keys of the cluster's S3 are
# in it. S3 and MLflow are reached by port-forward, past the network policies.
write_settings() {
  local access secret
  access=$(k -n kubeflow get secret mlpipeline-minio-artifact -o 'jsonpath={.data.accesskey}' | base64 -d)
  secret=$(k -n kubeflow get secret mlpipeline-minio-artifact -o 'jsonpath={.data.secretkey}' | base64 -d)
  (
    umask 077
    cat >"$SETTINGS_FILE" <<EOF
KFP_ENDPOINT=http://localhost:$UI_PORT
KFP_PIPELINE_ROOT=minio://mlpipeline/v2/artifacts
KFP_SERVICE_ACCOUNT=xlnet-steps
KFP_REGISTRY_SECRET=xlnet-registry
AWS_ENDPOINT_URL_S3=http://localhost:$S3_PORT
AWS_ACCESS_KEY_ID=$access
AWS_SECRET_ACCESS_KEY=$secret
EOF
  )
}

check_machine
start_registry
make_cluster
connect_registries
fake_devices
install_kfp
install_jobset
install_ours
wait_until_ready
push_image
write_settings
say "ready"
cat <<EOF

  UI of Kubeflow Pipelines   http://localhost:$UI_PORT
  MLflow                     kubectl --context kind-$CLUSTER -n kubeflow port-forward svc/mlflow 5000
  its storage                kubectl --context kind-$CLUSTER -n kubeflow port-forward svc/seaweedfs $S3_PORT:9000 &
  settings                   kind.env, which xlnet-pipeline reads here; elsewhere: set -a; . kind.env; set +a
  next, in the checkout      xlnet-pipeline build --load-kind $CLUSTER
  remove all of it           make kind-down
EOF

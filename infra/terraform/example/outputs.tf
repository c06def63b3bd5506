output "environment" {
  description = "The environment variables that xlnet-pipeline reads."
  value = merge(
    {
      CONTAINER_IMAGE_REGISTRY = module.registry.address
      VERTEX_PROJECT_ID        = var.project
      VERTEX_LOCATION          = var.region
      VERTEX_PIPELINE_ROOT     = "gs://${module.storage.artifacts}/pipeline-root"
      VERTEX_SA_EMAIL          = module.identity.emails["steps"]
      VERTEX_SCHEDULE_SA_EMAIL = module.identity.emails["schedule"]
      CLOUD_BUILD_SA_EMAIL     = module.identity.emails["build"]
      XLNET_DATA_BUCKET        = module.storage.data
    },
    { for instance in module.vertex : "VERTEX_TENSORBOARD" => instance.tensorboard },
    var.cluster ? {
      KFP_PIPELINE_ROOT   = "gs://${module.storage.artifacts}/kfp"
      KFP_REGISTRY_SECRET = "xlnet-registry" # of infra/kustomize
      KFP_SERVICE_ACCOUNT = split("/", var.kubernetes_service_accounts[0])[1]
    } : {},
  )
}

output "connect" {
  description = "What to type before kubectl; null without a cluster."
  value       = one(module.cluster[*].connect)
}

output "steps_service_account" {
  description = "What infra/kustomize/overlays/gke annotates the steps' Kubernetes service account with."
  value       = module.identity.emails["steps"]
}

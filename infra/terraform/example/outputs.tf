output "environment" {
  description = "The environment variables that xlnet-pipeline reads."
  value = merge(
    {
      CONTAINER_IMAGE_REGISTRY = module.registry.address
      VERTEX_PROJECT_ID        = var.project
      VERTEX_LOCATION          = var.region
      VERTEX_PIPELINE_ROOT     = "gs://${module.storage.artifacts}/pipeline-root"
      VERTEX_SA_EMAIL          = module.identity.emails["steps"]
      CLOUD_BUILD_SA_EMAIL     = module.identity.emails["build"]
      CLOUD_BUILD_STAGING      = "gs://${module.storage.artifacts}/cloud-build"
    },
    var.cluster ? {
      KFP_PIPELINE_ROOT   = "gs://${module.storage.artifacts}/kfp"
      KFP_REGISTRY_SECRET = "xlnet-registry" # of infra/kustomize
      KFP_SERVICE_ACCOUNT = split("/", var.kubernetes_service_accounts[0])[1]
    } : {},
  )
}

output "data_bucket" {
  description = "Where input lies: data.train = \"gs://BUCKET/rows.csv\"."
  value       = module.storage.data
}

output "schedule_service_account" {
  description = "Who is to start runs that nobody watches, such as a CI job that calls xlnet-pipeline."
  value       = module.identity.emails["schedule"]
}

output "tensorboard" {
  description = "Resource name of the TensorBoard that curves can be uploaded to; null without Vertex AI."
  value       = one(module.vertex[*].tensorboard)
}

output "connect" {
  description = "What to type before kubectl; null without a cluster."
  value       = one(module.cluster[*].connect)
}

output "steps_service_account" {
  description = "What infra/kustomize/overlays/gke annotates the steps' Kubernetes service account with."
  value       = module.identity.emails["steps"]
}

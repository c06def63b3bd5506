output "environment" {
  description = "The environment variables that xlnet-pipeline reads."
  value = merge(
    {
      CONTAINER_IMAGE_REGISTRY = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.this.repository_id}"
      VERTEX_PROJECT_ID        = var.project
      VERTEX_LOCATION          = var.region
      VERTEX_PIPELINE_ROOT     = "gs://${google_storage_bucket.this["artifacts"].name}/pipeline-root"
      VERTEX_SA_EMAIL          = google_service_account.this["steps"].email
      CLOUD_BUILD_SA_EMAIL     = google_service_account.this["build"].email
      CLOUD_BUILD_STAGING      = "gs://${google_storage_bucket.this["artifacts"].name}/cloud-build"
    },
    var.cluster ? {
      KFP_PIPELINE_ROOT   = "gs://${google_storage_bucket.this["artifacts"].name}/kfp"
      KFP_REGISTRY_SECRET = "xlnet-registry" # of infra/kustomize
      KFP_SERVICE_ACCOUNT = split("/", var.kubernetes_service_accounts[0])[1]
    } : {},
  )
}

output "data_bucket" {
  description = "Where input lies: data.train = \"gs://BUCKET/rows.csv\"."
  value       = google_storage_bucket.this["data"].name
}

output "schedule_service_account" {
  description = "Who is to start runs that nobody watches, such as a CI job that calls xlnet-pipeline."
  value       = google_service_account.this["schedule"].email
}

output "tensorboard" {
  description = "Resource name of the TensorBoard that curves can be uploaded to; null without Vertex AI."
  value       = one(google_vertex_ai_tensorboard.this[*].name)
}

output "connect" {
  description = "What to type before kubectl; null without a cluster."
  value       = one(module.cluster[*].connect)
}

output "steps_service_account" {
  description = "What infra/kustomize/overlays/gke annotates the steps' Kubernetes service account with."
  value       = google_service_account.this["steps"].email
}

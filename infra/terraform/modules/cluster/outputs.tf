output "connect" {
  description = "What to type before kubectl."
  value       = "gcloud container clusters get-credentials ${google_container_cluster.this.name} --location ${var.zone} --project ${var.project}"
}

output "workload_pool" {
  description = "Pool of the identities of the cluster's pods, once it is there."
  value       = google_container_cluster.this.workload_identity_config[0].workload_pool
}

output "repository" {
  description = "Name of the repository, for IAM."
  value       = google_artifact_registry_repository.this.name
}

output "address" {
  description = "What goes before an image's name."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.this.repository_id}"
}

output "emails" {
  description = "Addresses of the accounts steps, nodes, build and schedule."
  value       = { for name, account in google_service_account.this : name => account.email }

  # Who gets an address may use it at once.
  depends_on = [google_project_iam_member.this, google_artifact_registry_repository_iam_member.this]
}

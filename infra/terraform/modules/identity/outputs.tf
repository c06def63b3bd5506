output "emails" {
  description = "Addresses of the accounts steps, nodes, build and schedule."
  value       = { for name, account in google_service_account.this : name => account.email }
}

output "artifacts" {
  description = "Name of the bucket that runs write to."
  value       = google_storage_bucket.this["artifacts"].name
}

output "data" {
  description = "Name of the bucket that runs read from."
  value       = google_storage_bucket.this["data"].name
}

output "kms_key" {
  description = "Id of the key, once its users may use it; null without one."
  value       = one(google_kms_crypto_key.this[*].id)

  depends_on = [google_kms_crypto_key_iam_member.this]
}

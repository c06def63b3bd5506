# Two buckets: artifacts, which runs write, and data, which runs only read. Optionally under a key of your own.

resource "google_storage_bucket" "this" {
  # checkov:skip=CKV_GCP_62: Cloud Audit Logs record access; a bucket of access logs would need one more for its own
  for_each = local.buckets

  name                        = "${var.project}-${var.name}-${each.key}"
  location                    = var.region
  storage_class               = "STANDARD"
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  versioning {
    enabled = true
  }

  soft_delete_policy {
    retention_duration_seconds = 7 * 24 * 3600
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      days_since_noncurrent_time = 30
      with_state                 = "ARCHIVED"
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 1
    }
  }

  dynamic "lifecycle_rule" {
    for_each = each.value.coldline_days == null ? [] : [each.value.coldline_days]
    content {
      action {
        type          = "SetStorageClass"
        storage_class = "COLDLINE"
      }
      condition {
        age                   = lifecycle_rule.value
        matches_storage_class = ["STANDARD"]
      }
    }
  }

  dynamic "encryption" {
    for_each = google_kms_crypto_key.this
    content {
      default_kms_key_name = encryption.value.id
    }
  }

  depends_on = [google_project_service.this, google_kms_crypto_key_iam_member.this]
}

resource "google_kms_key_ring" "this" {
  count = var.cmek ? 1 : 0

  name     = var.name
  location = var.region

  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key" "this" {
  count = var.cmek ? 1 : 0

  name            = "artifacts"
  key_ring        = google_kms_key_ring.this[0].id
  rotation_period = "${90 * 24 * 3600}s"

  lifecycle {
    prevent_destroy = true
  }
}

data "google_storage_project_service_account" "this" {
  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key_iam_member" "this" {
  for_each = var.cmek ? local.agents : {}

  crypto_key_id = google_kms_crypto_key.this[0].id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:${each.value}"
}

locals {
  buckets = {
    artifacts = { coldline_days = 90 }
    data      = { coldline_days = null }
  }
  # Google's service agents that read and write under the key.
  agents = {
    storage  = data.google_storage_project_service_account.this.email_address
    registry = "service-${data.google_project.this.number}@gcp-sa-artifactregistry.iam.gserviceaccount.com"
    vertex   = "service-${data.google_project.this.number}@gcp-sa-aiplatform.iam.gserviceaccount.com"
  }
}

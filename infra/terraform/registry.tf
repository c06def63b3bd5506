# Images. Tags are immutable, so that a tag never comes to mean another image; runs name digests anyway.

resource "google_artifact_registry_repository" "this" {
  location               = var.region
  repository_id          = var.name
  description            = "Images of xlnet-pipeline"
  format                 = "DOCKER"
  kms_key_name           = one(google_kms_crypto_key.this[*].id)
  cleanup_policy_dry_run = false

  docker_config {
    immutable_tags = true
  }

  cleanup_policies {
    id     = "drop-untagged"
    action = "DELETE"

    condition {
      tag_state  = "UNTAGGED"
      older_than = "${30 * 24 * 3600}s"
    }
  }

  # A keep policy goes before every delete policy: the images of recent runs stay whatever their tags.
  cleanup_policies {
    id     = "keep-recent"
    action = "KEEP"

    most_recent_versions {
      keep_count = 20
    }
  }

  depends_on = [google_project_service.this, google_kms_crypto_key_iam_member.this]
}

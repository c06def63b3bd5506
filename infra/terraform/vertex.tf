# Vertex AI needs little made beforehand: the metadata store 'default' appears with the first run.

resource "google_vertex_ai_tensorboard" "this" {
  count = var.vertex ? 1 : 0

  region       = var.region
  display_name = var.name
  description  = "Curves of xlnet-pipeline runs"

  dynamic "encryption_spec" {
    for_each = google_kms_crypto_key.this
    content {
      kms_key_name = encryption_spec.value.id
    }
  }

  depends_on = [google_project_service.this, google_kms_crypto_key_iam_member.this]
}

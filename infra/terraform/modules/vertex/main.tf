# Vertex AI needs little made beforehand: the metadata store 'default' appears with the first run.

resource "google_vertex_ai_tensorboard" "this" {
  project      = var.project
  region       = var.region
  display_name = var.name
  description  = "Curves of xlnet-pipeline runs"

  dynamic "encryption_spec" {
    for_each = var.kms_key == null ? [] : [var.kms_key]
    content {
      kms_key_name = encryption_spec.value
    }
  }
}

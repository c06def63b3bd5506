# The services of Google Cloud that the pipeline calls. Nothing is switched off on destroy: others may use them.

resource "google_project_service" "this" {
  for_each = toset(concat(local.always, var.vertex ? local.vertex : [], var.cluster ? local.cluster : []))

  project            = var.project
  service            = each.value
  disable_on_destroy = false
}

data "google_project" "this" {
  project_id = var.project

  depends_on = [google_project_service.this]
}

locals {
  always = [
    "artifactregistry.googleapis.com",
    "billingbudgets.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudkms.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "storage.googleapis.com",
  ]
  vertex = ["aiplatform.googleapis.com"]
  # Images are streamed to nodes through the second.
  cluster = ["container.googleapis.com", "containerfilesystem.googleapis.com", "tpu.googleapis.com"]
}

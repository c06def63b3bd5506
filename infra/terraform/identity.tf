# Who may do what: four service accounts, each with what it needs and no keys. The README says what each role serves.

resource "google_service_account" "this" {
  for_each = local.accounts

  account_id   = "${var.name}-${each.key}"
  display_name = each.value

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "this" {
  for_each = merge([
    for account, roles in local.project_roles : { for role in roles : "${account} ${role}" => [account, role] }
  ]...)

  project = var.project
  role    = each.value[1]
  member  = google_service_account.this[each.value[0]].member
}

resource "google_storage_bucket_iam_member" "this" {
  for_each = {
    "steps write artifacts" = ["steps", google_storage_bucket.this["artifacts"].name, "roles/storage.objectUser"]
    "steps read data"       = ["steps", google_storage_bucket.this["data"].name, "roles/storage.objectViewer"]
    # KFP's launcher and Vertex AI ask for the bucket itself before they write to it.
    "steps see the artifact bucket" = ["steps", google_storage_bucket.this["artifacts"].name, "roles/storage.bucketViewer"]
    "schedule reads artifacts"      = ["schedule", google_storage_bucket.this["artifacts"].name, "roles/storage.objectViewer"]
  }

  bucket = each.value[1]
  role   = each.value[2]
  member = google_service_account.this[each.value[0]].member
}

# What gcloud uploads for a build (CLOUD_BUILD_STAGING), and nothing else in that bucket.
resource "google_storage_bucket_iam_member" "build_reads_sources" {
  bucket = google_storage_bucket.this["artifacts"].name
  role   = "roles/storage.objectViewer"
  member = google_service_account.this["build"].member

  condition {
    title      = "sources of builds"
    expression = "resource.name.startsWith(\"projects/_/buckets/${google_storage_bucket.this["artifacts"].name}/objects/cloud-build/\")"
  }
}

resource "google_artifact_registry_repository_iam_member" "this" {
  for_each = {
    build = "roles/artifactregistry.writer"
    nodes = "roles/artifactregistry.reader"
    steps = "roles/artifactregistry.reader"
  }

  location   = var.region
  repository = google_artifact_registry_repository.this.name
  role       = each.value
  member     = google_service_account.this[each.key].member
}

# A schedule starts runs as the steps' account: without this it could not hand that identity over.
resource "google_service_account_iam_member" "schedule_acts_as_steps" {
  service_account_id = google_service_account.this["steps"].name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.this["schedule"].member
}

# Pods of these Kubernetes service accounts are the steps' account, without a key in the cluster. The pool of identities
# appears with the project's first cluster: its name comes from there, so that this waits for it.
resource "google_service_account_iam_member" "workload_identity" {
  for_each = toset(var.cluster ? var.kubernetes_service_accounts : [])

  service_account_id = google_service_account.this["steps"].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${one(module.cluster[*].workload_pool)}[${each.value}]"
}

locals {
  accounts = {
    steps    = "xlnet-pipeline: steps of a run"
    nodes    = "xlnet-pipeline: nodes of the cluster"
    build    = "xlnet-pipeline: image builds"
    schedule = "xlnet-pipeline: schedules that start runs"
  }
  project_roles = {
    steps    = concat(["roles/logging.logWriter", "roles/monitoring.metricWriter"], var.vertex ? ["roles/aiplatform.user"] : [])
    nodes    = ["roles/container.defaultNodeServiceAccount"]
    build    = ["roles/logging.logWriter"]
    schedule = var.vertex ? ["roles/aiplatform.user"] : []
  }
}

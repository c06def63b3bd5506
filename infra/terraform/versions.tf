terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }

  # State holds no secrets here, but belongs in a bucket that a team shares and that keeps versions:
  # backend "gcs" { bucket = "STATE-BUCKET", prefix = "xlnet-pipeline" }
}

provider "google" {
  project = var.project
  region  = var.region

  default_labels = {
    app = "xlnet-pipeline"
  }

  # The budget's API counts calls against a project, which must be ours.
  user_project_override = true
  billing_project       = var.project
}

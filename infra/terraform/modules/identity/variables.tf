variable "project" {
  description = "Project id."
  type        = string
}

variable "region" {
  description = "Location of the image repository."
  type        = string
}

variable "name" {
  description = "Beginning of the accounts' names."
  type        = string
}

variable "artifacts_bucket" {
  description = "Bucket that steps write to."
  type        = string
}

variable "data_bucket" {
  description = "Bucket that steps read from."
  type        = string
}

variable "repository" {
  description = "Image repository."
  type        = string
}

variable "vertex" {
  description = "Whether runs also go to Vertex AI."
  type        = bool
}

variable "kubernetes_service_accounts" {
  description = "NAMESPACE/NAME of the Kubernetes service accounts that steps run as."
  type        = list(string)
}

variable "workload_pool" {
  description = "The cluster's pool of workload identities, PROJECT.svc.id.goog; null without a cluster."
  type        = string
}

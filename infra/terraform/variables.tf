variable "project" {
  description = "Project id. The project exists already, with billing."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project id has 6 to 30 lower-case letters, digits and hyphens, such as my-team-ml."
  }
}

variable "region" {
  description = "Region of everything but the cluster's nodes."
  type        = string
  default     = "us-central1"

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region looks like us-central1."
  }
}

variable "zone" {
  description = "Zone of the cluster, in the region; must have the accelerators of node_pools."
  type        = string
  default     = "us-central1-a"

  validation {
    condition     = startswith(var.zone, "${var.region}-")
    error_message = "The zone must lie in the region, such as us-central1-a in us-central1."
  }
}

variable "name" {
  description = "Beginning of all names."
  type        = string
  default     = "xlnet"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "The name has 3 to 20 lower-case letters, digits and hyphens: service accounts' names allow no more."
  }
}

variable "vertex" {
  description = "Prepare runs on Vertex AI."
  type        = bool
  default     = true
}

variable "cluster" {
  description = "Make a GKE cluster for Kubeflow Pipelines."
  type        = bool
  default     = true
}

variable "cmek" {
  description = "Encrypt buckets, images and curves under a key of your own."
  type        = bool
  default     = false
}

variable "nodes_cidr" {
  description = "Addresses of machines."
  type        = string
  default     = "10.64.0.0/20"

  validation {
    condition     = can(cidrhost(var.nodes_cidr, 0))
    error_message = "nodes_cidr must be an address range such as 10.64.0.0/20."
  }
}

variable "pods_cidr" {
  description = "Addresses of pods; a /16 has room for 256 nodes."
  type        = string
  default     = "10.68.0.0/16"

  validation {
    condition     = can(cidrhost(var.pods_cidr, 0))
    error_message = "pods_cidr must be an address range such as 10.68.0.0/16."
  }
}

variable "services_cidr" {
  description = "Addresses of Kubernetes services."
  type        = string
  default     = "10.72.0.0/20"

  validation {
    condition     = can(cidrhost(var.services_cidr, 0))
    error_message = "services_cidr must be an address range such as 10.72.0.0/20."
  }
}

variable "control_plane_cidr" {
  description = "Addresses of the control plane."
  type        = string
  default     = "172.16.0.32/28"

  validation {
    condition     = endswith(var.control_plane_cidr, "/28") && can(cidrhost(var.control_plane_cidr, 0))
    error_message = "control_plane_cidr must be a /28, such as 172.16.0.32/28."
  }
}

variable "private_endpoint" {
  description = "Give the control plane no public address: kubectl then works only from inside the VPC."
  type        = bool
  default     = false
}

variable "authorized_networks" {
  description = "Name to CIDR of the networks kubectl may be used from, such as { office = \"203.0.113.0/24\" }."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for cidr in var.authorized_networks : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "authorized_networks holds address ranges, and not the whole world (/0)."
  }
}

variable "kubernetes_service_accounts" {
  description = "NAMESPACE/NAME of the service accounts that steps run as."
  type        = list(string)
  default     = ["kubeflow/xlnet-steps"]

  validation {
    condition     = length(var.kubernetes_service_accounts) > 0 && alltrue([for one in var.kubernetes_service_accounts : can(regex("^[a-z0-9-]+/[a-z0-9-]+$", one))])
    error_message = "Write each as NAMESPACE/NAME, such as kubeflow/xlnet-steps."
  }
}

variable "binary_authorization" {
  description = "Enforce the project's Binary Authorization policy."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Refuse to destroy the cluster."
  type        = bool
  default     = true
}

variable "alert_emails" {
  description = "Addresses that get mail about failed runs and the budget."
  type        = list(string)

  validation {
    condition     = length(var.alert_emails) > 0 && alltrue([for one in var.alert_emails : can(regex("^[^@\\s]+@[^@\\s]+$", one))])
    error_message = "Give at least one address: a failed run that nobody hears of is the expensive kind."
  }
}

variable "billing_account" {
  description = "Billing account for the budget, such as 012345-6789AB-CDEF01; null: no budget."
  type        = string
  default     = null

  validation {
    condition     = var.billing_account == null || can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.billing_account))
    error_message = "A billing account looks like 012345-6789AB-CDEF01; see: gcloud billing accounts list."
  }
}

variable "monthly_budget" {
  description = "Money for a month, in whole units of the currency."
  type        = number
  default     = 500

  validation {
    condition     = var.monthly_budget >= 1 && floor(var.monthly_budget) == var.monthly_budget
    error_message = "monthly_budget is a whole number of 1 or more."
  }
}

variable "currency" {
  description = "Currency of the billing account."
  type        = string
  default     = "USD"

  validation {
    condition     = can(regex("^[A-Z]{3}$", var.currency))
    error_message = "A currency has three letters, such as USD."
  }
}

variable "node_pools" {
  description = "Node pools by name; null: those of modules/cluster, which says what a pool has."
  type        = any
  default     = null
}

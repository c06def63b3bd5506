variable "project" {
  description = "Project id."
  type        = string
}

variable "zone" {
  description = "Zone of the cluster: accelerators are in few zones, and traffic within one is free."
  type        = string
}

variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "network" {
  description = "Id of the VPC."
  type        = string
}

variable "subnetwork" {
  description = "Id of a subnetwork with the secondary ranges 'pods' and 'services'."
  type        = string
}

variable "control_plane_cidr" {
  description = "A /28 for the control plane."
  type        = string
}

variable "private_endpoint" {
  description = "Whether the control plane has no public address at all."
  type        = bool
}

variable "authorized_networks" {
  description = "Name to CIDR of the networks that may reach the control plane."
  type        = map(string)
}

variable "node_service_account" {
  description = "Address of the nodes' service account."
  type        = string
}

variable "binary_authorization" {
  description = "Enforce the project's policy on which images may run."
  type        = bool
}

variable "deletion_protection" {
  description = "Refuse to destroy the cluster."
  type        = bool
}

variable "node_pools" {
  description = "Node pools by name; accelerator pools have min_nodes 0 and cost nothing while no step asks for them. zone: another one of the region, where the cluster's has no such machines. Names and sizes of the default follow `xlnet-pipeline run --machine`."
  type = map(object({
    machine_type = string
    accelerator  = optional(string)
    accelerators = optional(number, 0)
    tpu_topology = optional(string)
    hosts        = optional(number, 1)
    zone         = optional(string)
    spot         = optional(bool, false)
    min_nodes    = optional(number, 0)
    max_nodes    = number
    disk_gb      = optional(number, 100)
    disk_type    = optional(string, "pd-balanced")
  }))
  nullable = false
  default = {
    system = { machine_type = "e2-standard-4", min_nodes = 1, max_nodes = 4 }
    cpu    = { machine_type = "n2-standard-8", max_nodes = 8 }

    l4            = { machine_type = "g2-standard-12", accelerator = "nvidia-l4", accelerators = 1, max_nodes = 4 }
    l4-spot       = { machine_type = "g2-standard-12", accelerator = "nvidia-l4", accelerators = 1, max_nodes = 8, spot = true }
    a100-40g-spot = { machine_type = "a2-highgpu-1g", accelerator = "nvidia-tesla-a100", accelerators = 1, max_nodes = 4, spot = true }
    a100-80g-spot = { machine_type = "a2-ultragpu-1g", accelerator = "nvidia-a100-80gb", accelerators = 1, max_nodes = 4, spot = true }
    h100-8-spot   = { machine_type = "a3-highgpu-8g", accelerator = "nvidia-h100-80gb", accelerators = 8, max_nodes = 2, spot = true, disk_gb = 500 }

    v5e-1       = { machine_type = "ct5lp-hightpu-1t", tpu_topology = "1x1", max_nodes = 1 }
    v5e-4-spot  = { machine_type = "ct5lp-hightpu-4t", tpu_topology = "2x2", max_nodes = 2, spot = true }
    v5e-8-spot  = { machine_type = "ct5lp-hightpu-8t", tpu_topology = "2x4", max_nodes = 2, spot = true }
    v5e-16-spot = { machine_type = "ct5lp-hightpu-4t", tpu_topology = "4x4", hosts = 4, max_nodes = 4, spot = true }
    v6e-4-spot  = { machine_type = "ct6e-standard-4t", tpu_topology = "2x2", zone = "us-central1-b", max_nodes = 2, spot = true, disk_type = "hyperdisk-balanced" }
    v6e-16-spot = { machine_type = "ct6e-standard-4t", tpu_topology = "4x4", zone = "us-central1-b", hosts = 4, max_nodes = 4, spot = true, disk_type = "hyperdisk-balanced" }
  }

  validation {
    condition     = alltrue([for pool in var.node_pools : (pool.accelerator == null) == (pool.accelerators == 0)])
    error_message = "A pool has an accelerator and a number of them, or neither: set accelerator and accelerators."
  }

  validation {
    condition     = alltrue([for pool in var.node_pools : pool.hosts == 1 || pool.tpu_topology != null])
    error_message = "A pool of several hosts is a TPU slice: set tpu_topology, such as \"4x4\"."
  }

  validation {
    condition     = alltrue([for pool in var.node_pools : pool.hosts == 1 || (pool.min_nodes == 0 && pool.max_nodes == pool.hosts)])
    error_message = "A pool of several hosts is one slice, which is there or not: max_nodes is hosts and min_nodes 0; for more slices make more pools."
  }

  # Chips of a machine: the number before the t at the end of its name.
  validation {
    condition = alltrue([
      for pool in var.node_pools : pool.tpu_topology == null || try(
        length(setproduct([for edge in split("x", pool.tpu_topology) : range(tonumber(edge))]...)) ==
        pool.hosts * tonumber(regex("-([0-9]+)t$", pool.machine_type)[0]), false
      )
    ])
    error_message = "A topology's chips are those of its hosts: 4x4 is 16 chips, which are 4 hosts of machines whose names end in 4t."
  }

  validation {
    condition     = alltrue([for pool in var.node_pools : pool.zone == null || try(startswith(pool.zone, trimsuffix(var.zone, regex("[a-z]$", var.zone))), false)])
    error_message = "A pool's zone lies in the cluster's region."
  }

  validation {
    condition     = length([for pool in var.node_pools : pool if pool.min_nodes > 0 && pool.accelerator == null && !pool.spot]) > 0
    error_message = "Kubeflow Pipelines itself needs a machine: give one CPU pool without spot min_nodes of 1 or more."
  }
}

variable "project" {
  description = "Project id."
  type        = string
}

variable "region" {
  description = "Region of the subnetwork."
  type        = string
}

variable "name" {
  description = "Name of the VPC and beginning of the names in it."
  type        = string
}

variable "nodes_cidr" {
  description = "Addresses of machines."
  type        = string
}

variable "pods_cidr" {
  description = "Addresses of pods."
  type        = string
}

variable "services_cidr" {
  description = "Addresses of Kubernetes services."
  type        = string
}

variable "masters_cidr" {
  description = "Addresses of a cluster's control plane; null without a cluster."
  type        = string
}

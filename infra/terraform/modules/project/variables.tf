variable "project" {
  description = "Project id."
  type        = string
}

variable "vertex" {
  description = "Switch Vertex AI on."
  type        = bool
}

variable "cluster" {
  description = "Switch GKE and Cloud TPU on."
  type        = bool
}

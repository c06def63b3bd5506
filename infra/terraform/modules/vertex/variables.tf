variable "project" {
  description = "Project id."
  type        = string
}

variable "region" {
  description = "Region of Vertex AI."
  type        = string
}

variable "name" {
  description = "Name to show."
  type        = string
}

variable "kms_key" {
  description = "Id of the key that encrypts curves; null: Google's own."
  type        = string
}

variable "project" {
  description = "Project id, the beginning of the buckets' names."
  type        = string
}

variable "project_number" {
  description = "Project number."
  type        = string
}

variable "region" {
  description = "Location of buckets and key."
  type        = string
}

variable "name" {
  description = "Middle of the buckets' names, and the key ring's name."
  type        = string
}

variable "cmek" {
  description = "Encrypt under a key of the project's own, which is rotated every 90 days."
  type        = bool
}

variable "noncurrent_days" {
  description = "Days that a replaced or deleted object can still be had back."
  type        = number
  default     = 30
}

variable "coldline_days" {
  description = "Days after which artifacts move to cheaper storage; null: never."
  type        = number
  default     = 90
}

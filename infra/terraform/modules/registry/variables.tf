variable "project" {
  description = "Project id."
  type        = string
}

variable "region" {
  description = "Location of the repository."
  type        = string
}

variable "name" {
  description = "Name of the repository."
  type        = string
}

variable "kms_key" {
  description = "Id of the key that encrypts images; null: Google's own."
  type        = string
}

variable "keep_days" {
  description = "Days after which an image without a tag is deleted."
  type        = number
  default     = 30
}

variable "keep_images" {
  description = "Images of each name that always stay."
  type        = number
  default     = 20
}

variable "project" {
  description = "Project id."
  type        = string
}

variable "project_number" {
  description = "Project number."
  type        = string
}

variable "name" {
  description = "Beginning of the names to show."
  type        = string
}

variable "emails" {
  description = "Addresses that get mail."
  type        = list(string)
}

variable "billing_account" {
  description = "Billing account of the project; null: no budget is made."
  type        = string
}

variable "budget" {
  description = "Money for a month, in whole units of the currency."
  type        = number
}

variable "currency" {
  description = "Currency of the billing account."
  type        = string
}

variable "vertex" {
  description = "Watch runs on Vertex AI."
  type        = bool
}

variable "cluster" {
  description = "Watch runs in the cluster."
  type        = bool
}

variable "namespace" {
  description = "Namespace of the steps' pods."
  type        = string
}

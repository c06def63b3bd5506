output "network" {
  description = "Id of the VPC."
  value       = google_compute_network.this.id
}

output "subnetwork" {
  description = "Id of the subnetwork, which has the secondary ranges 'pods' and 'services'."
  value       = google_compute_subnetwork.this.id
}

module "cluster" {
  source = "./modules/cluster"
  count  = var.cluster ? 1 : 0

  project              = var.project
  zone                 = var.zone
  name                 = var.name
  network              = google_compute_network.this.id
  subnetwork           = google_compute_subnetwork.this.id
  control_plane_cidr   = var.control_plane_cidr
  private_endpoint     = var.private_endpoint
  authorized_networks  = var.authorized_networks
  node_service_account = google_service_account.this["nodes"].email
  binary_authorization = var.binary_authorization
  deletion_protection  = var.deletion_protection
  node_pools           = var.node_pools

  # Nodes need their roles from the start.
  depends_on = [google_project_iam_member.this, google_artifact_registry_repository_iam_member.this]
}

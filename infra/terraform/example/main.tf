# Everything for runs on Vertex AI and, unless cluster = false, in a GKE cluster.

module "project" {
  source = "../modules/project"

  project = var.project
  vertex  = var.vertex
  cluster = var.cluster
}

module "network" {
  source = "../modules/network"

  project       = var.project
  region        = var.region
  name          = var.name
  nodes_cidr    = var.nodes_cidr
  pods_cidr     = var.pods_cidr
  services_cidr = var.services_cidr
  masters_cidr  = var.cluster ? var.control_plane_cidr : null

  depends_on = [module.project]
}

module "storage" {
  source = "../modules/storage"

  project        = var.project
  project_number = module.project.number
  region         = var.region
  name           = var.name
  cmek           = var.cmek

  depends_on = [module.project]
}

module "registry" {
  source = "../modules/registry"

  project = var.project
  region  = var.region
  name    = var.name
  kms_key = module.storage.kms_key

  depends_on = [module.project]
}

module "identity" {
  source = "../modules/identity"

  project                     = var.project
  region                      = var.region
  name                        = var.name
  artifacts_bucket            = module.storage.artifacts
  data_bucket                 = module.storage.data
  repository                  = module.registry.repository
  vertex                      = var.vertex
  kubernetes_service_accounts = var.cluster ? var.kubernetes_service_accounts : []
  workload_pool               = one(module.cluster[*].workload_pool)

  depends_on = [module.project]
}

module "cluster" {
  source = "../modules/cluster"
  count  = var.cluster ? 1 : 0

  project              = var.project
  zone                 = var.zone
  name                 = var.name
  network              = module.network.network
  subnetwork           = module.network.subnetwork
  control_plane_cidr   = var.control_plane_cidr
  private_endpoint     = var.private_endpoint
  authorized_networks  = var.authorized_networks
  node_service_account = module.identity.emails["nodes"]
  kms_key              = null
  binary_authorization = var.binary_authorization
  deletion_protection  = var.deletion_protection
  node_pools           = var.node_pools
}

module "vertex" {
  source = "../modules/vertex"
  count  = var.vertex ? 1 : 0

  project = var.project
  region  = var.region
  name    = var.name
  kms_key = module.storage.kms_key

  depends_on = [module.project]
}

module "monitoring" {
  source = "../modules/monitoring"

  project         = var.project
  project_number  = module.project.number
  name            = var.name
  emails          = var.alert_emails
  billing_account = var.billing_account
  budget          = var.monthly_budget
  currency        = var.currency
  vertex          = var.vertex
  cluster         = var.cluster
  namespace       = split("/", var.kubernetes_service_accounts[0])[0]

  depends_on = [module.project]
}

# GKE: private nodes, workload identity, network policies, and node pools that scale from nothing.

resource "google_container_cluster" "this" {
  # checkov:skip=CKV_GCP_12: Dataplane V2 enforces network policies without the add-on, which excludes it
  # checkov:skip=CKV_GCP_69: the default pool is removed; the metadata server is enabled in each of ours
  # checkov:skip=CKV_GCP_65: groups of Google Workspace need a domain, which not every project has
  project             = var.project
  name                = var.name
  location            = var.zone
  network             = var.network
  subnetwork          = var.subnetwork
  deletion_protection = var.deletion_protection

  resource_labels = {
    app = "xlnet-pipeline"
  }

  # The default pool cannot be described well: it is removed and ours are made.
  remove_default_node_pool = true
  initial_node_count       = 1

  # It lives for a minute, but as our account: projects may have no default one, or one that may do everything.
  node_config {
    service_account = var.node_service_account
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]

    shielded_instance_config {
      enable_integrity_monitoring = true
      enable_secure_boot          = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  networking_mode             = "VPC_NATIVE"
  datapath_provider           = "ADVANCED_DATAPATH" # enforces network policies
  enable_intranode_visibility = true
  enable_shielded_nodes       = true
  enable_legacy_abac          = false

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = var.private_endpoint
    master_ipv4_cidr_block  = var.control_plane_cidr
  }

  # Without a block in it nobody outside the VPC reaches the control plane.
  master_authorized_networks_config {
    dynamic "cidr_blocks" {
      for_each = var.authorized_networks
      content {
        display_name = cidr_blocks.key
        cidr_block   = cidr_blocks.value
      }
    }
  }

  # kubectl signs in with Google identities: no passwords, no client certificates.
  master_auth {
    client_certificate_config {
      issue_client_certificate = false
    }
  }

  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }

  release_channel {
    channel = "REGULAR"
  }

  # One interruption of a training run a week at most, at a known time.
  maintenance_policy {
    recurring_window {
      start_time = "2026-01-03T02:00:00Z"
      end_time   = "2026-01-03T10:00:00Z"
      recurrence = "FREQ=WEEKLY;BYDAY=SA"
    }
  }

  addons_config {
    gcs_fuse_csi_driver_config {
      enabled = true
    }
    gce_persistent_disk_csi_driver_config {
      enabled = true
    }
  }

  cost_management_config {
    enabled = true
  }

  binary_authorization {
    evaluation_mode = var.binary_authorization ? "PROJECT_SINGLETON_POLICY_ENFORCE" : "DISABLED"
  }

  security_posture_config {
    mode               = "BASIC"
    vulnerability_mode = "VULNERABILITY_DISABLED" # GKE scans images no more; Artifact Registry does
  }

  logging_config {
    enable_components = ["SYSTEM_COMPONENTS", "WORKLOADS"]
  }

  monitoring_config {
    enable_components = ["SYSTEM_COMPONENTS"]

    managed_prometheus {
      enabled = true
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count, node_config] # of the pool that was removed
  }
}

resource "google_container_node_pool" "this" {
  for_each = var.node_pools

  project            = var.project
  name               = each.key
  cluster            = google_container_cluster.this.id
  location           = var.zone
  initial_node_count = each.value.min_nodes
  node_locations     = [coalesce(each.value.zone, var.zone)]

  # A slice of several hosts goes from none of its nodes to all of them at once.
  autoscaling {
    min_node_count = each.value.min_nodes
    max_node_count = each.value.max_nodes
    # Spot capacity is taken wherever there is some; other machines are spread evenly.
    location_policy = each.value.spot ? "ANY" : "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  # There is no quota for one accelerator more while a node is replaced.
  dynamic "upgrade_settings" {
    for_each = each.value.accelerators > 0 || each.value.tpu_topology != null ? [0] : []
    content {
      strategy        = "SURGE"
      max_surge       = upgrade_settings.value
      max_unavailable = 1
    }
  }

  # A slice of several hosts is whole or not there: its nodes are placed together.
  dynamic "placement_policy" {
    for_each = each.value.hosts > 1 ? [each.value.tpu_topology] : []
    content {
      type         = "COMPACT"
      tpu_topology = placement_policy.value
    }
  }

  node_config {
    machine_type    = each.value.machine_type
    spot            = each.value.spot
    disk_size_gb    = each.value.disk_gb
    disk_type       = each.value.disk_type
    image_type      = "COS_CONTAINERD"
    service_account = var.node_service_account
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"] # what the account may do, IAM says

    # GKE adds the labels of accelerators and TPU slices, and the taints nvidia.com/gpu and google.com/tpu.
    labels = {
      "xlnet-pipeline/pool" = each.key
    }

    metadata = {
      disable-legacy-endpoints = "true"
    }

    dynamic "guest_accelerator" {
      for_each = each.value.accelerator == null ? [] : [each.value.accelerator]
      content {
        type  = guest_accelerator.value
        count = each.value.accelerators

        gpu_driver_installation_config {
          gpu_driver_version = "LATEST"
        }
      }
    }

    dynamic "taint" {
      for_each = each.value.spot ? ["cloud.google.com/gke-spot"] : []
      content {
        key    = taint.value
        value  = "true"
        effect = "NO_SCHEDULE"
      }
    }

    gvnic {
      enabled = true
    }

    # Large images start while they are still being loaded.
    gcfs_config {
      enabled = true
    }

    shielded_instance_config {
      enable_integrity_monitoring = true
      enable_secure_boot          = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count] # the autoscaler's business
  }
}

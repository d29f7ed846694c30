resource "google_compute_network" "fleet" {
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "fleet" {
  name                     = var.name
  network                  = google_compute_network.fleet.id
  region                   = var.region
  ip_cidr_range            = "10.64.0.0/20"
  private_ip_google_access = true # buckets are reached without leaving Google's network

  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = "10.72.0.0/14"
  }
  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = "10.68.0.0/20"
  }
}

# Nodes have no public addresses; the queue is reached through here.
resource "google_compute_router" "fleet" {
  name    = var.name
  network = google_compute_network.fleet.id
  region  = var.region
}

resource "google_compute_router_nat" "fleet" {
  name                               = var.name
  router                             = google_compute_router.fleet.name
  region                             = var.region
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}

resource "google_container_cluster" "fleet" {
  name                     = var.name
  location                 = var.region
  node_locations           = var.zones
  network                  = google_compute_network.fleet.id
  subnetwork               = google_compute_subnetwork.fleet.id
  remove_default_node_pool = true
  initial_node_count       = 1
  deletion_protection      = true
  datapath_provider        = "ADVANCED_DATAPATH" # enforces network policies

  release_channel {
    channel = "REGULAR"
  }
  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }
  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }
  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = false
    master_ipv4_cidr_block  = "10.69.0.0/28"
  }
  master_authorized_networks_config {
    dynamic "cidr_blocks" {
      for_each = var.api_cidrs
      content {
        cidr_block = cidr_blocks.value
      }
    }
  }
  monitoring_config {
    enable_components = ["SYSTEM_COMPONENTS"]
  }
}

locals {
  pools = {
    system = { machine = "e2-standard-2", spot = false, min = 1, max = 3, gpu = false, disk_gb = 50 }
    cpu    = { machine = var.cpu_machine_type, spot = true, min = 0, max = var.max_cpu_nodes, gpu = false, disk_gb = 100 }
    gpu    = { machine = var.gpu_machine_type, spot = true, min = 0, max = var.max_gpu_nodes, gpu = true, disk_gb = 200 }
  }
}

# One pool for each pool of the chart: the label and the taint are those that its pods select and tolerate. The pool
# "system" holds KEDA, the coordinator and the server: small, and not on spot.
resource "google_container_node_pool" "pool" {
  for_each = { for pool, settings in local.pools : pool => settings if settings.max > 0 }
  name     = each.key
  cluster  = google_container_cluster.fleet.id

  autoscaling {
    total_min_node_count = each.value.min
    total_max_node_count = each.value.max
    location_policy      = each.value.spot ? "ANY" : "BALANCED" # wherever there is a spot node left
  }
  management {
    auto_repair  = true
    auto_upgrade = true
  }
  node_config {
    machine_type    = each.value.machine
    spot            = each.value.spot
    disk_type       = "pd-balanced"
    disk_size_gb    = each.value.disk_gb
    image_type      = "COS_CONTAINERD"
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"] # the account's roles decide, not the scopes
    labels          = { "cloudseg/pool" = each.key }

    dynamic "taint" {
      for_each = each.value.spot ? [each.key] : []
      content {
        key    = "cloudseg/pool"
        value  = taint.value
        effect = "NO_SCHEDULE"
      }
    }
    dynamic "guest_accelerator" {
      for_each = each.value.gpu ? [var.gpu_type] : []
      content {
        type  = guest_accelerator.value
        count = 1
        gpu_driver_installation_config {
          gpu_driver_version = "DEFAULT"
        }
      }
    }
    workload_metadata_config {
      mode = "GKE_METADATA" # pods see their own identity, not the node's
    }
    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
  }
}

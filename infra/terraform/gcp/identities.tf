locals {
  # What each pod may do with the bucket: the server reads, the others also write and clean up after themselves.
  pods = { worker = "roles/storage.objectUser", coordinator = "roles/storage.objectUser", server = "roles/storage.objectViewer" }

  # Pods with access to other people's images.
  guests = { for pair in setproduct(keys(local.pods), var.read_only_buckets) : join("/", pair) => { pod = pair[0], bucket = pair[1] } }
}

resource "google_service_account" "pod" {
  for_each     = local.pods
  account_id   = "${var.name}-${each.key}"
  display_name = "cloudseg ${each.key}"
}

# The pod's Kubernetes account may act as it, and nobody else: no keys are made.
resource "google_service_account_iam_member" "workload_identity" {
  for_each           = local.pods
  service_account_id = google_service_account.pod[each.key].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${google_container_cluster.fleet.workload_identity_config[0].workload_pool}[${var.namespace}/${var.release}-${each.key}]"
}

resource "google_storage_bucket_iam_member" "pod" {
  for_each = local.pods
  bucket   = google_storage_bucket.data.name
  role     = each.value
  member   = google_service_account.pod[each.key].member
}

# Opening a bucket asks for its metadata.
resource "google_storage_bucket_iam_member" "metadata" {
  for_each = local.pods
  bucket   = google_storage_bucket.data.name
  role     = "roles/storage.bucketViewer"
  member   = google_service_account.pod[each.key].member
}

resource "google_storage_bucket_iam_member" "guest" {
  for_each = local.guests
  bucket   = each.value.bucket
  role     = "roles/storage.objectViewer"
  member   = google_service_account.pod[each.value.pod].member
}

# Nodes may write logs and metrics and pull images; data is for the pods' own accounts.
resource "google_service_account" "node" {
  account_id   = "${var.name}-node"
  display_name = "cloudseg nodes"
}

resource "google_project_iam_member" "node" {
  for_each = toset(["roles/container.defaultNodeServiceAccount", "roles/artifactregistry.reader"])
  project  = var.project
  role     = each.value
  member   = google_service_account.node.member
}

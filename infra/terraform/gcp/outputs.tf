output "bucket" {
  description = "Address of the bucket, for pipeline files."
  value       = "gs://${google_storage_bucket.data.name}"
}

output "queue_urls" {
  description = "URLs of the queues by pool: the chart's pools.NAME.queueUrl."
  value       = { for pool, queue in module.queue : pool => queue.url }
}

output "role_arns" {
  description = "AWS roles by pod: the chart's serviceAccounts.POD.awsRoleArn; keda goes to KEDA's own chart."
  value       = module.access.role_arns
}

output "service_accounts" {
  description = "Google accounts by pod: the chart's serviceAccounts.POD.gcpServiceAccount."
  value       = { for pod, account in google_service_account.pod : pod => account.email }
}

output "cluster_name" {
  description = "For: gcloud container clusters get-credentials."
  value       = google_container_cluster.fleet.name
}

output "runbooks" {
  description = "Where the alarms' runbooks are."
  value       = var.runbook_base
}

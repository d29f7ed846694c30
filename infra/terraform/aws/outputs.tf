output "bucket" {
  description = "Address of the bucket, for pipeline files."
  value       = "s3://${aws_s3_bucket.data.bucket}"
}

output "queue_urls" {
  description = "URLs of the queues by pool: the chart's pools.NAME.queueUrl."
  value       = { for pool, queue in module.queue : pool => queue.url }
}

output "role_arns" {
  description = "Roles by pod: the chart's serviceAccounts.POD.awsRoleArn; keda goes to KEDA's own chart."
  value       = module.access.role_arns
}

output "autoscaler_role_arn" {
  description = "Role for the cluster autoscaler's service account kube-system/cluster-autoscaler."
  value       = aws_iam_role.autoscaler.arn
}

output "cluster_name" {
  description = "For: aws eks update-kubeconfig --name."
  value       = aws_eks_cluster.fleet.name
}

output "runbooks" {
  description = "Where the alarms' runbooks are."
  value       = var.runbook_base
}

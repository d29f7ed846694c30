output "role_arns" {
  description = "ARNs of the roles by pod: worker, coordinator, server, keda."
  value       = { for pod, role in aws_iam_role.pod : pod => role.arn }
}

output "role_names" {
  description = "Names of the roles by pod, to attach more policies."
  value       = { for pod, role in aws_iam_role.pod : pod => role.name }
}

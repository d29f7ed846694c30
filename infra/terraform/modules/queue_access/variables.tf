variable "name" {
  description = "Prefix of the roles' names."
  type        = string
}

variable "queue_arns" {
  description = "ARNs of the task queues."
  type        = list(string)
}

variable "dead_queue_arns" {
  description = "ARNs of the queues of dead letters."
  type        = list(string)
}

variable "oidc_provider_arn" {
  description = "ARN of the identity provider that signs the cluster's service account tokens."
  type        = string
}

variable "oidc_issuer" {
  description = "The same provider's address, without https://."
  type        = string
}

variable "namespace" {
  description = "Namespace of the chart's release."
  type        = string
}

variable "release" {
  description = "Name of the chart's release; its service accounts are RELEASE-worker, RELEASE-coordinator, RELEASE-server."
  type        = string
}

variable "keda_subject" {
  description = "Namespace and name of KEDA's service account, with a colon between them."
  type        = string
  default     = "keda:keda-operator"
}

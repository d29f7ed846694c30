# cloudseg's queues for fleets are SQS. Pods on GKE reach them without keys: AWS trusts the tokens that the cluster signs.

resource "aws_iam_openid_connect_provider" "cluster" {
  url            = "https://container.googleapis.com/v1/projects/${var.project}/locations/${var.region}/clusters/${google_container_cluster.fleet.name}"
  client_id_list = ["sts.amazonaws.com"]
}

module "queue" {
  source   = "../modules/queue"
  for_each = toset(["cpu", "gpu"])

  name              = "${var.name}-${each.key}"
  alarm_actions     = [aws_sns_topic.alarms.arn]
  queue_age_seconds = var.queue_age_seconds
  error_ratio       = var.error_ratio
  runbook_base      = var.runbook_base
}

module "access" {
  source = "../modules/queue_access"

  name              = var.name
  queue_arns        = [for queue in module.queue : queue.arn]
  dead_queue_arns   = [for queue in module.queue : queue.dead_arn]
  oidc_provider_arn = aws_iam_openid_connect_provider.cluster.arn
  oidc_issuer       = replace(aws_iam_openid_connect_provider.cluster.url, "https://", "")
  namespace         = var.namespace
  release           = var.release
}

module "queue" {
  source   = "../modules/queue"
  for_each = toset(["cpu", "gpu"])

  name              = "${var.name}-${each.key}"
  alarm_actions     = [aws_sns_topic.alarms.arn]
  queue_age_seconds = var.queue_age_seconds
  error_ratio       = var.error_ratio
  runbook_base      = var.runbook_base
}

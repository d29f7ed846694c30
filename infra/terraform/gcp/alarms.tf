# ---- queues: AWS tells

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_iam_policy_document" "key" {
  statement {
    sid = "TheAccountKeepsItsKey"
    # wildcard: in a key's policy "*" is this key, and without this statement nobody could change it again.
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root"]
    }
  }
  statement {
    sid     = "AlarmsSpeakThroughAnEncryptedTopic"
    actions = ["kms:Decrypt", "kms:GenerateDataKey"]
    # wildcard: in a key's policy "*" is this key.
    resources = ["*"]
    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

resource "aws_kms_key" "alarms" {
  description             = "Alarms of the queues of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.key.json
}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = aws_kms_key.alarms.arn
}

resource "aws_sns_topic_subscription" "alarms" {
  for_each  = toset(var.alarm_emails)
  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.value
}

# ---- cost: Google tells

resource "google_monitoring_notification_channel" "email" {
  for_each     = toset(var.alarm_emails)
  display_name = "${var.name}: ${each.value}"
  type         = "email"
  labels       = { email_address = each.value }
}

data "google_project" "fleet" {
  project_id = var.project
}

# Budgets carry no text of their own: the runbook is ${var.runbook_base}/cost-budget.md.
resource "google_billing_budget" "cost_budget" {
  billing_account = var.billing_account
  display_name    = "${var.name}-cost-budget"

  budget_filter {
    projects = ["projects/${data.google_project.fleet.number}"]
  }
  amount {
    specified_amount {
      currency_code = "USD"
      units         = tostring(var.monthly_budget_usd)
    }
  }
  threshold_rules {
    threshold_percent = 0.8
  }
  threshold_rules {
    threshold_percent = 1.0
    spend_basis       = "FORECASTED_SPEND"
  }
  all_updates_rule {
    monitoring_notification_channels = [for channel in google_monitoring_notification_channel.email : channel.id]
    disable_default_iam_recipients   = false
  }
}

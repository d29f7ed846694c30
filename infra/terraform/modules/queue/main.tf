# A queue of tasks, the queue of its dead letters, and what to be told about both.

resource "aws_sqs_queue" "dead" {
  name                      = "${var.name}-dead"
  message_retention_seconds = 1209600 # 14 days, the most there is: a person has to look
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue" "tasks" {
  name                       = var.name
  message_retention_seconds  = 1209600
  visibility_timeout_seconds = 60 # workers ask for their own lease at each receive and renew it
  receive_wait_time_seconds  = 20 # long polling: fewer requests, and no empty answers from half of the servers
  sqs_managed_sse_enabled    = true

  # Workers bury a failing task themselves, with its traceback, after max_attempts. This is the last resort for messages
  # whose workers vanish before they can; it lies above any max_attempts in use.
  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead.arn
    maxReceiveCount     = 50
  })
}

resource "aws_sqs_queue_redrive_allow_policy" "dead" {
  queue_url = aws_sqs_queue.dead.id
  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [aws_sqs_queue.tasks.arn]
  })
}

# Whoever may use the queues is named in the roles' policies; here only: not without TLS.
data "aws_iam_policy_document" "tls_only" {
  for_each = { tasks = aws_sqs_queue.tasks, dead = aws_sqs_queue.dead }

  statement {
    sid    = "RefusePlainHttp"
    effect = "Deny"
    # wildcard: a refusal names everybody and everything.
    actions   = ["sqs:*"]
    resources = [each.value.arn]
    principals {
      type        = "AWS"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_sqs_queue_policy" "tls_only" {
  for_each  = { tasks = aws_sqs_queue.tasks, dead = aws_sqs_queue.dead }
  queue_url = each.value.id
  policy    = data.aws_iam_policy_document.tls_only[each.key].json
}

resource "aws_cloudwatch_metric_alarm" "queue_age" {
  alarm_name          = "${var.name}-queue-age"
  alarm_description   = "The oldest task has waited too long. Runbook: ${var.runbook_base}/queue-age.md"
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateAgeOfOldestMessage"
  dimensions          = { QueueName = aws_sqs_queue.tasks.name }
  statistic           = "Maximum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.queue_age_seconds
  period              = 300
  evaluation_periods  = 3
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  alarm_name          = "${var.name}-dead-letters"
  alarm_description   = "Tasks gave up. Runbook: ${var.runbook_base}/dead-letters.md"
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = aws_sqs_queue.dead.name }
  statistic           = "Maximum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  period              = 300
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
}

# What was leased and not deleted failed, was handed back by a preempted worker, or still runs: over an hour the share
# of those that still run is small, and a high one is worth a look in each of the other cases.
resource "aws_cloudwatch_metric_alarm" "error_ratio" {
  alarm_name          = "${var.name}-error-ratio"
  alarm_description   = "More leases end without a finished task than should. Runbook: ${var.runbook_base}/error-ratio.md"
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.error_ratio
  evaluation_periods  = 2
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions

  metric_query {
    id          = "ratio"
    label       = "leases without a finished task"
    expression  = "IF(leased > 100, 1 - finished / leased, 0)" # a few tasks make no ratio
    return_data = true
  }
  metric_query {
    id = "leased"
    metric {
      namespace   = "AWS/SQS"
      metric_name = "NumberOfMessagesReceived"
      dimensions  = { QueueName = aws_sqs_queue.tasks.name }
      stat        = "Sum"
      period      = 3600
    }
  }
  metric_query {
    id = "finished"
    metric {
      namespace   = "AWS/SQS"
      metric_name = "NumberOfMessagesDeleted"
      dimensions  = { QueueName = aws_sqs_queue.tasks.name }
      stat        = "Sum"
      period      = 3600
    }
  }
}

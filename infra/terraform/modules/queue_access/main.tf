# Roles for the pods that use queues. A pod gets its role by its service account's token; there are no keys.

locals {
  subjects = {
    worker      = "${var.namespace}:${var.release}-worker"
    coordinator = "${var.namespace}:${var.release}-coordinator"
    server      = "${var.namespace}:${var.release}-server"
    keda        = var.keda_subject
  }
}

data "aws_iam_policy_document" "trust" {
  for_each = local.subjects

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:sub"
      values   = ["system:serviceaccount:${each.value}"]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.oidc_issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "pod" {
  for_each           = local.subjects
  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

# Workers lease, renew, delete; they send to hand a task back uncounted, and to bury it.
data "aws_iam_policy_document" "worker" {
  statement {
    sid = "RunTasks"
    actions = [
      "sqs:ChangeMessageVisibility",
      "sqs:DeleteMessage",
      "sqs:GetQueueAttributes",
      "sqs:GetQueueUrl",
      "sqs:ReceiveMessage",
      "sqs:SendMessage",
    ]
    resources = var.queue_arns
  }
  statement {
    sid       = "BuryTasks"
    actions   = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"]
    resources = var.dead_queue_arns
  }
}

resource "aws_iam_role_policy" "worker" {
  name   = "queues"
  role   = aws_iam_role.pod["worker"].id
  policy = data.aws_iam_policy_document.worker.json
}

# The coordinator sends tasks and counts what is left; it reads outcomes from the bucket.
data "aws_iam_policy_document" "coordinator" {
  statement {
    sid       = "SendTasks"
    actions   = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"]
    resources = var.queue_arns
  }
  statement {
    sid       = "CountTheDead"
    actions   = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl"]
    resources = var.dead_queue_arns
  }
}

resource "aws_iam_role_policy" "coordinator" {
  name   = "queues"
  role   = aws_iam_role.pod["coordinator"].id
  policy = data.aws_iam_policy_document.coordinator.json
}

data "aws_iam_policy_document" "keda" {
  statement {
    sid       = "ReadTheLength"
    actions   = ["sqs:GetQueueAttributes"]
    resources = var.queue_arns
  }
}

resource "aws_iam_role_policy" "keda" {
  name   = "queues"
  role   = aws_iam_role.pod["keda"].id
  policy = data.aws_iam_policy_document.keda.json
}

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

# What pods may do with buckets. The server reads; workers and the coordinator also write and clean up after themselves.
data "aws_iam_policy_document" "read" {
  statement {
    sid       = "List"
    actions   = ["s3:GetBucketLocation", "s3:ListBucket"]
    resources = concat([aws_s3_bucket.data.arn], [for name in var.read_only_buckets : "arn:${local.partition}:s3:::${name}"])
  }
  statement {
    sid     = "Read"
    actions = ["s3:GetObject"]
    # wildcard: every object of the named buckets; S3 has no other way to say so.
    resources = concat(["${aws_s3_bucket.data.arn}/*"], [for name in var.read_only_buckets : "arn:${local.partition}:s3:::${name}/*"])
  }
}

data "aws_iam_policy_document" "write" {
  statement {
    sid     = "Write"
    actions = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:PutObject"]
    # wildcard: every object of our own bucket.
    resources = ["${aws_s3_bucket.data.arn}/*"]
  }
}

resource "aws_iam_role_policy" "read" {
  for_each = toset(["worker", "coordinator", "server"])
  name     = "read-buckets"
  role     = module.access.role_names[each.key]
  policy   = data.aws_iam_policy_document.read.json
}

resource "aws_iam_role_policy" "write" {
  for_each = toset(["worker", "coordinator"])
  name     = "write-bucket"
  role     = module.access.role_names[each.key]
  policy   = data.aws_iam_policy_document.write.json
}

data "aws_iam_policy_document" "trust" {
  for_each = { cluster = "eks.amazonaws.com", node = "ec2.amazonaws.com" }

  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = [each.value]
    }
  }
}

resource "aws_iam_role" "cluster" {
  name               = "${var.name}-cluster"
  assume_role_policy = data.aws_iam_policy_document.trust["cluster"].json
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonEKSClusterPolicy"
}

# Nodes may join, give out addresses and pull images; data and queues are for the pods' own roles.
resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.trust["node"].json
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset([
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonEC2ContainerRegistryPullOnly",
  ])
  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}

resource "aws_cloudwatch_log_group" "cluster" {
  name              = "/aws/eks/${var.name}/cluster"
  retention_in_days = 30
}

resource "aws_eks_cluster" "fleet" {
  name                      = var.name
  version                   = var.kubernetes_version
  role_arn                  = aws_iam_role.cluster.arn
  enabled_cluster_log_types = ["api", "audit", "authenticator"]

  access_config {
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = true
  }
  encryption_config {
    resources = ["secrets"]
    provider {
      key_arn = aws_kms_key.fleet.arn
    }
  }
  vpc_config {
    subnet_ids              = aws_subnet.private[*].id
    endpoint_private_access = true
    endpoint_public_access  = true
    public_access_cidrs     = var.api_cidrs
  }
  depends_on = [aws_iam_role_policy_attachment.cluster, aws_cloudwatch_log_group.cluster]
}

# Network policies are nothing without somebody who enforces them.
resource "aws_eks_addon" "vpc_cni" {
  cluster_name         = aws_eks_cluster.fleet.name
  addon_name           = "vpc-cni"
  configuration_values = jsonencode({ enableNetworkPolicy = "true" })
}

# Signs the pods' tokens; AWS trusts it.
resource "aws_iam_openid_connect_provider" "cluster" {
  url            = aws_eks_cluster.fleet.identity[0].oidc[0].issuer
  client_id_list = ["sts.amazonaws.com"]
}

# A hop limit of 1 keeps pods away from the node's own identity.
resource "aws_launch_template" "node" {
  for_each = { system = 40, cpu = 100, gpu = 200 }
  name     = "${var.name}-${each.key}"

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size = each.value
      volume_type = "gp3"
      encrypted   = true
    }
  }
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  tag_specifications {
    resource_type = "instance"
    tags          = { (var.cost_tag) = var.name }
  }
  tag_specifications {
    resource_type = "volume"
    tags          = { (var.cost_tag) = var.name }
  }
}

# KEDA, the coordinator, the server, cluster DNS: small, and not on spot.
resource "aws_eks_node_group" "system" {
  cluster_name    = aws_eks_cluster.fleet.name
  node_group_name = "system"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = aws_subnet.private[*].id
  instance_types  = ["m6i.large", "m6a.large", "m5.large"]
  ami_type        = "AL2023_x86_64_STANDARD"

  launch_template {
    id      = aws_launch_template.node["system"].id
    version = aws_launch_template.node["system"].latest_version
  }
  scaling_config {
    min_size     = 1
    desired_size = 2
    max_size     = 4
  }
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }
  depends_on = [aws_iam_role_policy_attachment.node]
}

locals {
  pools = {
    cpu = { types = var.cpu_instance_types, max = var.max_cpu_nodes, ami = "AL2023_x86_64_STANDARD" }
    gpu = { types = var.gpu_instance_types, max = var.max_gpu_nodes, ami = "AL2023_x86_64_NVIDIA" }
  }
}

# One group for each pool of the chart: the label and the taint are those that its pods select and tolerate.
resource "aws_eks_node_group" "pool" {
  for_each        = { for pool, settings in local.pools : pool => settings if settings.max > 0 }
  cluster_name    = aws_eks_cluster.fleet.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = aws_subnet.private[*].id
  capacity_type   = "SPOT"
  instance_types  = each.value.types
  ami_type        = each.value.ami
  labels          = { "cloudseg/pool" = each.key }

  taint {
    key    = "cloudseg/pool"
    value  = each.key
    effect = "NO_SCHEDULE"
  }
  launch_template {
    id      = aws_launch_template.node[each.key].id
    version = aws_launch_template.node[each.key].latest_version
  }
  scaling_config {
    min_size     = 0
    desired_size = 0
    max_size     = each.value.max
  }
  # The cluster's autoscaler moves it from then on.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }
  depends_on = [aws_iam_role_policy_attachment.node]
}

# The autoscaler starts from no node: it has to be told what a node of each pool would look like.
resource "aws_autoscaling_group_tag" "pool" {
  for_each = merge([
    for pool, group in aws_eks_node_group.pool : {
      "${pool}-label" = { group = group, key = "k8s.io/cluster-autoscaler/node-template/label/cloudseg/pool", value = pool }
      "${pool}-taint" = { group = group, key = "k8s.io/cluster-autoscaler/node-template/taint/cloudseg/pool", value = "${pool}:NoSchedule" }
    }
  ]...)
  autoscaling_group_name = each.value.group.resources[0].autoscaling_groups[0].name
  tag {
    key                 = each.value.key
    value               = each.value.value
    propagate_at_launch = false
  }
}

data "aws_iam_policy_document" "autoscaler_trust" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.cluster.arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${replace(aws_iam_openid_connect_provider.cluster.url, "https://", "")}:sub"
      values   = ["system:serviceaccount:kube-system:cluster-autoscaler"]
    }
    condition {
      test     = "StringEquals"
      variable = "${replace(aws_iam_openid_connect_provider.cluster.url, "https://", "")}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "autoscaler" {
  statement {
    sid = "Look"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
    ]
    # wildcard: these calls know no resources.
    resources = ["*"]
  }
  statement {
    sid       = "LookAtOurGroups"
    actions   = ["eks:DescribeNodegroup"]
    resources = [for group in aws_eks_node_group.pool : group.arn]
  }
  statement {
    sid     = "Scale"
    actions = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    # wildcard: the groups' names are made by EKS; the condition lets only this cluster's pass.
    resources = ["arn:${local.partition}:autoscaling:${var.region}:${local.account}:autoScalingGroup:*:autoScalingGroupName/*"]
    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/eks:cluster-name"
      values   = [aws_eks_cluster.fleet.name]
    }
  }
}

resource "aws_iam_role" "autoscaler" {
  name               = "${var.name}-autoscaler"
  assume_role_policy = data.aws_iam_policy_document.autoscaler_trust.json
}

resource "aws_iam_role_policy" "autoscaler" {
  name   = "scale"
  role   = aws_iam_role.autoscaler.id
  policy = data.aws_iam_policy_document.autoscaler.json
}

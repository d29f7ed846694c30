# Plans everything against a provider that is made up: expressions, counts and validations are real, the cloud is not.
# terraform test

mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-west-1a", "eu-west-1b", "eu-west-1c", "eu-west-1d"] }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
}

variables {
  region             = "eu-west-1"
  bucket_name        = "cloudseg-data"
  api_cidrs          = ["203.0.113.7/32"]
  alarm_emails       = ["someone@example.org"]
  monthly_budget_usd = 100
  runbook_base       = "https://git.example.org/cloudseg/infra/runbooks"
}

run "as_it_comes" {
  command = plan

  assert {
    condition     = length(aws_subnet.private) == 3
    error_message = "one subnet in each zone"
  }
  assert {
    condition     = toset(keys(aws_eks_node_group.pool)) == toset(["cpu", "gpu"])
    error_message = "one group of nodes for each pool"
  }
  assert {
    condition     = one([for filter in aws_budgets_budget.cost_budget.cost_filter : filter.values]) == tolist(["user:project$cloudseg"])
    error_message = "the budget must see the costs of our tag, and only them"
  }
  assert {
    condition     = length(aws_s3_bucket_cors_configuration.data) == 0
    error_message = "no page may read the bucket unless it is named"
  }
}

run "without_gpus_and_with_a_viewer" {
  command = plan

  variables {
    max_gpu_nodes     = 0
    n_zones           = 2
    cors_origins      = ["https://viewer.example.org"]
    read_only_buckets = ["images-of-others"]
  }
  assert {
    condition     = keys(aws_eks_node_group.pool) == ["cpu"]
    error_message = "no group without nodes"
  }
  assert {
    condition     = length(aws_s3_bucket_cors_configuration.data) == 1
    error_message = "the viewer may read"
  }
}

run "wrong_values_are_refused" {
  command = plan

  variables {
    region             = "europe"
    bucket_name        = "No"
    name               = "Fleet 1"
    api_cidrs          = ["0.0.0.0/0"]
    alarm_emails       = []
    monthly_budget_usd = 0
    n_zones            = 9
  }
  expect_failures = [
    var.region, var.bucket_name, var.name, var.api_cidrs, var.alarm_emails, var.monthly_budget_usd, var.n_zones,
  ]
}

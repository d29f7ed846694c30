variable "name" {
  description = "Prefix of everything that is made, and the value of the cost tag."
  type        = string
  default     = "cloudseg"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "Lower-case letters, digits and '-', at most 20, beginning with a letter."
  }
}

variable "region" {
  description = "Region of everything, e.g. eu-west-1. Put it where the data is: traffic between regions is charged."
  type        = string
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "A region looks like eu-west-1."
  }
}

variable "bucket_name" {
  description = "Name of the bucket for images and results; unique in the world."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "3 to 63 lower-case letters, digits, '.' and '-'."
  }
}

variable "vpc_cidr" {
  description = "Addresses of the network; a /16 leaves room for some thousand pods in each zone."
  type        = string
  default     = "10.64.0.0/16"
  validation {
    condition     = can(cidrsubnet(var.vpc_cidr, 4, 15))
    error_message = "A CIDR block with room for 16 subnets, e.g. 10.64.0.0/16."
  }
}

variable "n_zones" {
  description = "Zones to spread over: more of them find more spot nodes."
  type        = number
  default     = 3
  validation {
    condition     = var.n_zones >= 2 && var.n_zones <= 4
    error_message = "EKS wants at least 2 zones; the network is cut for at most 4."
  }
}

variable "kubernetes_version" {
  description = "Version of EKS, e.g. 1.33; the chart is validated against 1.30 and 1.33."
  type        = string
  default     = "1.33"
  validation {
    condition     = can(regex("^1\\.(29|3[0-9])$", var.kubernetes_version))
    error_message = "The chart wants 1.29 or newer."
  }
}

variable "api_cidrs" {
  description = "Addresses that may reach the cluster's API, e.g. [\"203.0.113.7/32\"]. There is no default: not everybody."
  type        = list(string)
  validation {
    condition     = length(var.api_cidrs) > 0 && !contains(var.api_cidrs, "0.0.0.0/0")
    error_message = "Name your own networks; 0.0.0.0/0 would open the cluster's API to the world."
  }
}

variable "cpu_instance_types" {
  description = "Types for the CPU pool, alike in cores and memory: spot takes whichever is cheap and there."
  type        = list(string)
  default     = ["m6i.4xlarge", "m6a.4xlarge", "m5.4xlarge", "m5a.4xlarge"]
}

variable "gpu_instance_types" {
  description = "Types for the GPU pool, with one GPU each."
  type        = list(string)
  default     = ["g5.2xlarge", "g6.2xlarge", "g4dn.2xlarge"]
}

variable "max_cpu_nodes" {
  description = "Never more CPU nodes than this; it bounds the bill."
  type        = number
  default     = 20
  validation {
    condition     = var.max_cpu_nodes >= 1 && var.max_cpu_nodes <= 1000
    error_message = "Between 1 and 1000."
  }
}

variable "max_gpu_nodes" {
  description = "Never more GPU nodes than this; it bounds the bill."
  type        = number
  default     = 4
  validation {
    condition     = var.max_gpu_nodes >= 0 && var.max_gpu_nodes <= 200
    error_message = "Between 0 and 200."
  }
}

variable "namespace" {
  description = "Namespace of the chart's release."
  type        = string
  default     = "cloudseg"
}

variable "release" {
  description = "Name of the chart's release."
  type        = string
  default     = "seg"
}

variable "read_only_buckets" {
  description = "Names of other buckets in which images lie; the pods may read them."
  type        = list(string)
  default     = []
}

variable "cors_origins" {
  description = "Pages that may read the bucket in a browser, e.g. your viewer. None: it is read through the server."
  type        = list(string)
  default     = []
}

variable "noncurrent_days" {
  description = "For how many days overwritten and deleted objects can be brought back."
  type        = number
  default     = 14
  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "At least 1 day."
  }
}

variable "alarm_emails" {
  description = "Who hears of alarms and of the budget; each has to confirm once."
  type        = list(string)
  validation {
    condition     = length(var.alarm_emails) > 0 && alltrue([for email in var.alarm_emails : can(regex("^[^@]+@[^@]+$", email))])
    error_message = "At least one e-mail address: an alarm that nobody hears is none."
  }
}

variable "monthly_budget_usd" {
  description = "Alarm when the month's cost reaches 80 % of this, or is forecast to reach all of it."
  type        = number
  validation {
    condition     = var.monthly_budget_usd > 0
    error_message = "A budget is more than nothing."
  }
}

variable "cost_tag" {
  description = "Tag by which costs are told apart; activate it once as a cost allocation tag in the billing console."
  type        = string
  default     = "project"
}

variable "queue_age_seconds" {
  description = "Alarm when the oldest task has waited so long."
  type        = number
  default     = 21600
}

variable "error_ratio" {
  description = "Alarm when this share of the leased tasks was not finished."
  type        = number
  default     = 0.05
}

variable "runbook_base" {
  description = "Where people read the folder infra/runbooks; alarms point to the pages in it."
  type        = string
  validation {
    condition     = can(regex("^https://[^/]+/.*[^/]$", var.runbook_base))
    error_message = "runbook_base must be the https:// address of a folder, without a slash at its end."
  }
}

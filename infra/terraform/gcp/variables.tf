variable "project" {
  description = "Id of the Google Cloud project that everything belongs to."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project id has 6 to 30 lower-case letters, digits and '-'."
  }
}

variable "billing_account" {
  description = "Billing account that the budget watches, e.g. 012345-6789AB-CDEF01."
  type        = string
  validation {
    condition     = can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.billing_account))
    error_message = "A billing account looks like 012345-6789AB-CDEF01."
  }
}

variable "name" {
  description = "Prefix of everything that is made."
  type        = string
  default     = "cloudseg"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,17}$", var.name))
    error_message = "Lower-case letters, digits and '-', at most 18, beginning with a letter."
  }
}

variable "region" {
  description = "Region of the cluster and the bucket, e.g. europe-west4. Put it where the data is."
  type        = string
  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region looks like europe-west4."
  }
}

variable "zones" {
  description = "Zones of the node pools, all with the wanted GPUs, e.g. [\"europe-west4-a\", \"europe-west4-b\"]."
  type        = list(string)
  validation {
    condition     = length(var.zones) > 0 && alltrue([for zone in var.zones : can(regex("^[a-z]+-[a-z]+[0-9]+-[a-z]$", zone))])
    error_message = "At least one zone; a zone looks like europe-west4-a."
  }
}

variable "aws_region" {
  description = "Region of the SQS queues: one near the cluster."
  type        = string
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.aws_region))
    error_message = "An AWS region looks like eu-west-1."
  }
}

variable "bucket_name" {
  description = "Name of the bucket for images and results; unique in the world."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "3 to 63 lower-case letters, digits, '.', '_' and '-'."
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

variable "cpu_machine_type" {
  description = "Type of the machines in the CPU pool."
  type        = string
  default     = "n2d-standard-16"
}

variable "gpu_machine_type" {
  description = "Machines of the GPU pool; they carry the accelerator below."
  type        = string
  default     = "g2-standard-8"
}

variable "gpu_type" {
  description = "Accelerator of the machines in the GPU pool."
  type        = string
  default     = "nvidia-l4"
}

variable "max_cpu_nodes" {
  description = "Never more CPU nodes than this, over all zones; it bounds the bill."
  type        = number
  default     = 20
  validation {
    condition     = var.max_cpu_nodes >= 1 && var.max_cpu_nodes <= 1000
    error_message = "Between 1 and 1000."
  }
}

variable "max_gpu_nodes" {
  description = "Never more GPU nodes than this, over all zones; it bounds the bill."
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
  description = "Who hears of alarms and of the budget."
  type        = list(string)
  validation {
    condition     = length(var.alarm_emails) > 0 && alltrue([for email in var.alarm_emails : can(regex("^[^@]+@[^@]+$", email))])
    error_message = "At least one e-mail address: an alarm that nobody hears is none."
  }
}

variable "monthly_budget_usd" {
  description = "Alarm when the project's month reaches 80 % of this, or is forecast to reach all of it; whole dollars."
  type        = number
  validation {
    condition     = var.monthly_budget_usd >= 1 && floor(var.monthly_budget_usd) == var.monthly_budget_usd
    error_message = "Whole dollars, at least 1."
  }
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

variable "name" {
  description = "Name of the queue; its dead letters get the same name with -dead behind it, as cloudseg expects."
  type        = string
  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,75}$", var.name))
    error_message = "A queue's name has at most 75 letters, digits, '-' and '_' (-dead must fit behind it)."
  }
}

variable "alarm_actions" {
  description = "ARNs of SNS topics that hear of alarms."
  type        = list(string)
}

variable "queue_age_seconds" {
  description = "Alarm when the oldest task has waited so long."
  type        = number
  default     = 21600
  validation {
    condition     = var.queue_age_seconds >= 60
    error_message = "SQS reports the age every minute: a threshold below 60 seconds says nothing."
  }
}

variable "error_ratio" {
  description = "Alarm when this share of the leased tasks was not finished within the period, e.g. 0.05."
  type        = number
  default     = 0.05
  validation {
    condition     = var.error_ratio > 0 && var.error_ratio < 1
    error_message = "A share lies between 0 and 1."
  }
}

variable "runbook_base" {
  description = "Address of the folder infra/runbooks; alarms point to the pages in it."
  type        = string
}

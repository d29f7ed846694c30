terraform {
  required_version = ">= 1.9, < 2.0"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "6.45.0"
    }
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
}

provider "google" {
  project               = var.project
  region                = var.region
  billing_project       = var.project
  user_project_override = true
  default_labels        = { project = var.name }
}

# The queues are SQS, also for a cluster on GKE.
provider "aws" {
  region = var.aws_region
  default_tags {
    tags = { project = var.name }
  }
}

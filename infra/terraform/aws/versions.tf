terraform {
  required_version = ">= 1.9, < 2.0"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
  # State holds no secrets here, yet keep it shared and locked: copy backend.tf.example to backend.tf and fill it in.
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { (var.cost_tag) = var.name }
  }
}

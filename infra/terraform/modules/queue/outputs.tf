output "url" {
  description = "URL of the queue; the chart's pools.NAME.queueUrl."
  value       = aws_sqs_queue.tasks.url
}

output "arn" {
  description = "ARN of the queue, for policies."
  value       = aws_sqs_queue.tasks.arn
}

output "dead_arn" {
  description = "ARN of the queue of dead letters, for policies."
  value       = aws_sqs_queue.dead.arn
}

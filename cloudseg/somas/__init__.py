"""The soma catalogue: its record, its versions in a bucket, and questions to it."""

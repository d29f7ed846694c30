"""The read-only client for users and notebooks: questions to a soma catalogue, in a bucket or behind a server."""

"""The queued task kinds of cloudseg."""

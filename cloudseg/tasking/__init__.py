"""What a task is, and how tasks travel, run and are accounted for."""

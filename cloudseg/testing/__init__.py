"""What tests share and users may too: phantoms with exact truth, small tasks, emulators of buckets."""

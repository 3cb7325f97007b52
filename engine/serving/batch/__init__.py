"""Many jobs from a file: reads them, hands them to workers and records their results."""

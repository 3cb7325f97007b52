"""The job API: a job as JSON is parsed and checked, its result is returned as JSON."""

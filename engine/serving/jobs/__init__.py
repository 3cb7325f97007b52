"""The job API: JSON in, JSON out."""

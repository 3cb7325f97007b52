"""The runs of a sweep -> one page on which they can be compared."""

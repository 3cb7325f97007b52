"""A package of plugins, as anybody could write one."""

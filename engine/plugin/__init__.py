"""The plugin API: hooks, registers, and the manager of installed plugins."""

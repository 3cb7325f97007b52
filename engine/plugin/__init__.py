"""The plugin API: hooks, registers, and the manager of what is installed."""

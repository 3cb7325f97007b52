"""The bundled plugins: one folder a kind, one file a component."""

"""The bundled plugins: one folder per kind, one file per component."""

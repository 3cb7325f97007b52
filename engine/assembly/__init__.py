"""Config and plugins -> the objects that a request runs with."""

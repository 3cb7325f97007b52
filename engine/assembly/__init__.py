"""Builds the objects of a request from config and plugins."""

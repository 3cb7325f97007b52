"""The command line: parsing, help, and the commands that are not entrypoints."""

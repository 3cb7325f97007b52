"""What is wrong with this machine for the config it is to run."""

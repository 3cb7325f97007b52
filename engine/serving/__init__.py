"""Jobs from elsewhere: the worker, batches, and the local endpoint."""

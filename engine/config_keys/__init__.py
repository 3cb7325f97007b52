"""The keys of the composed config: what each means, what it may be, and where its value comes from."""

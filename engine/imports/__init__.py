"""Which libraries are imported when: large ones only by the runs that use them."""

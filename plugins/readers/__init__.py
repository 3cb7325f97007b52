"""Ways to bring weights from their files to the device."""

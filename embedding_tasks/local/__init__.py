"""What runs on this machine: what stands in for what is not configured, and processes
of our own."""

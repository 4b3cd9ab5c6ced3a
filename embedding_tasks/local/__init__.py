"""What runs on this machine when nothing else is configured."""

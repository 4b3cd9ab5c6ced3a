"""What is known of a window from sums of its vectors: drift, and the mix of classes."""

"""All vectors of a version in two dimensions, and clusters of them."""

"""The source: what its relations look like, what is taken of them, and how."""

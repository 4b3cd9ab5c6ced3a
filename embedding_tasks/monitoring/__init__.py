"""Whether a model still sees what it was made for, and how well it does: drift,
performance and label quality, from the rows of the store."""

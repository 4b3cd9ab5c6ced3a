"""Labels and inputs that somebody should look at: a ranked list."""

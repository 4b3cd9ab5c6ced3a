"""What takes a look at the rows themselves: what is new, what lies apart, and which
rows they are."""

"""How well a model does, by the labels that are there, however late they come."""

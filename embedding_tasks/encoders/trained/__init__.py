"""Encoders trained on a use case's own rows: an autoencoder's bottleneck, and the
penultimate features of a GAN's discriminator."""

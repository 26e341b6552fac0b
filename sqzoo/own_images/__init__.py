"""Training on a folder of one's own images: reading it, training, the model that comes out."""

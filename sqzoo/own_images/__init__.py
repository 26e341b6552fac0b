"""Train on a custom dataset: a folder of images, or a dataset of the Hub; the result is a model."""

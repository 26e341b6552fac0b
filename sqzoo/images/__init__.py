"""Images: opened by an explicit list of decoders, within a budget of memory."""

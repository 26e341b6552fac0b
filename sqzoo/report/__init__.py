"""Reports on a model's answers: metrics, plots, one HTML page."""

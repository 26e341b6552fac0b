"""Models in the forms that other runtimes and libraries read."""

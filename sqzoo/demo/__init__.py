"""A web page that classifies images in the browser: its server, its files, its models."""

from sqzoo.demo.page import Page
from sqzoo.demo.server import serve

__all__ = ["Page", "serve"]

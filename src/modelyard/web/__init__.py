"""The web pages: what is in a yard, for people with a browser. See `app.create`."""

from modelyard.web.app import create

__all__ = ["create"]

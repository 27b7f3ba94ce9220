"""One module per revision; a published revision never changes."""
